"""`IPAEncodeImage`: reference pictures to image tokens."""

import logging

from comfy_api.latest import io, ui
from torch import Tensor

from ...ipadapter_core.file.spec import CROPS
from ..arrivals import checked
from ..encoding.pictures import choose, encode_image, seen
from ..sockets import CATEGORY, IPAAdapter, IPATokens, LoadedAdapter

logger = logging.getLogger(__name__)


class IPAEncodeImage(io.ComfyNode):
    """Encode one or more reference pictures."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IPAEncodeImage",
            display_name="Encode Image for IP-Adapter",
            category=CATEGORY,
            description="Turns reference images into image tokens. Every image of a batch is one reference.",
            search_aliases=["ipadapter encoder", "image prompt", "IPAdapter Encoder"],
            inputs=[
                IPAAdapter.Input("adapter", tooltip="The adapter the tokens are for."),
                io.Image.Input("image", tooltip="Reference image; a batch is several references that act together."),
                io.Combo.Input(
                    "crop",
                    options=list(CROPS),
                    default=CROPS[0],
                    tooltip="How a picture becomes the encoder's square: 'center' (usual) cuts the long sides, 'pad' "
                    "fills the short ones with neutral colour, 'stretch' distorts.",
                ),
                io.Image.Input(
                    "negative_image",
                    display_name="negative image",
                    optional=True,
                    tooltip="What the picture should move away from. Neutral: leave it unconnected.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="What of the reference counts, 0..1; 1 everywhere is neutral, as is no mask.",
                ),
                io.ClipVision.Input(
                    "clip_vision",
                    display_name="CLIP vision",
                    optional=True,
                    tooltip="Image encoder to use in place of the one Load IP-Adapter found. Neutral: unconnected.",
                ),
            ],
            outputs=[
                IPATokens.Output("tokens", tooltip="Image tokens, for Apply IP-Adapter or Combine IP-Adapter Tokens.")
            ],
        )

    @classmethod
    @checked
    def execute(
        cls,
        adapter: LoadedAdapter,
        image: Tensor,
        crop: str,
        negative_image: Tensor | None = None,
        mask: Tensor | None = None,
        clip_vision: object | None = None,
    ) -> io.NodeOutput:
        encoder = choose(adapter, clip_vision)
        trained = adapter.spec.encoder.crop
        if trained is not None and trained != crop:
            logger.warning("%s was trained with crop '%s', and gets '%s' here.", adapter.name, trained, crop)
        tokens = encode_image(adapter, encoder, image, crop=crop, negative_image=negative_image, mask=mask)
        return io.NodeOutput(tokens, ui=ui.PreviewImage(seen(adapter, encoder, image, crop, mask), cls=cls))
