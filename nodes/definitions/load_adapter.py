"""`IPALoadAdapter`: recognise an adapter file and find the image encoder it was trained with."""

import logging

from comfy_api.latest import io

from ...ipadapter_core.encoder.resolution import LARGEST_RESOLUTION
from .. import paths
from ..arrivals import checked
from ..errors import problem
from ..loading import check_files, describe, encoder_choices, open_adapter
from ..sockets import CATEGORY, IPAAdapter

logger = logging.getLogger(__name__)
# A node whose text is told again where its output comes from the cache; ComfyUI 0.18 does not know of such.
_TOLD_AGAIN = {name: True for name in ("has_intermediate_output",) if name in io.Schema.__dataclass_fields__}
WHAT_IT_IS = "ipadapter_studio"  # nodes/web/texts.js shows it: the text, then the choices it is for


class IPALoadAdapter(io.ComfyNode):
    """Load an adapter file and, unless told otherwise, the image encoder that fits it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IPALoadAdapter",
            display_name="Load IP-Adapter",
            category=CATEGORY,
            description="Loads an IP-Adapter. Its kind is read from its tensors; the node shows what it is.",
            search_aliases=["ipadapter", "ip adapter", "image prompt", "IPAdapter Model Loader", "unified loader"],
            inputs=[
                io.Combo.Input(
                    "adapter_file",
                    display_name="adapter file",
                    options=paths.adapter_files(),
                    tooltip="A file of models/ipadapter. The name does not matter: the kind is read from the tensors.",
                ),
                io.Combo.Input(
                    "image_encoder",
                    display_name="image encoder",
                    options=encoder_choices(),
                    default=paths.AUTO,
                    tooltip="The image encoder of models/clip_vision. 'auto' (recommended) finds the one the adapter "
                    "needs; 'none' if you connect a CLIP_VISION to Encode Image for IP-Adapter. A name ending in / "
                    "is a folder with a transformers model.",
                ),
                io.Int.Input(
                    "encoder_resolution",
                    display_name="encoder resolution",
                    advanced=True,
                    default=0,
                    min=0,
                    max=LARGEST_RESOLUTION,
                    optional=True,
                    tooltip="Side of the square that the image encoder reads, in pixels: a multiple of its patch (14 or "
                    "16), such as 448 for adapters trained at 448. 0 is neutral: what the file says, or the encoder's "
                    "own.",
                ),
            ],
            outputs=[IPAAdapter.Output("adapter", tooltip="The adapter with its image encoder.")],
            **_TOLD_AGAIN,
        )

    @classmethod
    def validate_inputs(cls, adapter_file: str | None, image_encoder: str | None) -> bool | str:
        # In place of ComfyUI's own check: workflows may name a file that is not offered any more and yet works.
        return problem(lambda: check_files(adapter_file, image_encoder))

    @classmethod
    def fingerprint_inputs(
        cls, adapter_file: str | None, image_encoder: str | None, encoder_resolution: int | None = 0
    ) -> str:
        # ComfyUI gives None for a linked input
        return paths.fingerprint([*paths.adapter_candidates(adapter_file), *paths.encoder_candidates(image_encoder)])

    @classmethod
    @checked
    def execute(cls, adapter_file: str, image_encoder: str, encoder_resolution: int = 0) -> io.NodeOutput:
        adapter = open_adapter(adapter_file, image_encoder, encoder_resolution)
        text = describe(adapter)
        logger.info("IP-Adapter %s: %s", adapter_file, text.replace("\n", "; "))
        return io.NodeOutput(adapter, ui={WHAT_IT_IS: [text, adapter_file, image_encoder, str(encoder_resolution)]})
