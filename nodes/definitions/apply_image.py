"""`IPAApplyImage`: encode references and patch a clone of the model, in one node."""

import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io, ui
from torch import Tensor

from ...ipadapter_core.branch.guard import NO_GUARD, Guard
from ...ipadapter_core.file.spec import CROPS
from ...ipadapter_core.numbers import parse_numbers
from ...ipadapter_core.strength.curve import Schedule
from ...ipadapter_core.strength.layer_weights import LayerWeights
from ..arrivals import checked
from ..encoding.pictures import choose, encode_several, seen
from ..inputs import apply_inputs, range_problem
from ..patching.application import ApplySettings, apply_adapter
from ..sockets import CATEGORY, LoadedAdapter

_AS_TRAINED = "as trained"
_MORE_IMAGES = tuple(f"image{number}" for number in range(2, 17))


class IPAApplyImage(io.ComfyNode):
    """Encode a reference and steer a model with it, in one node."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IPAApplyImage",
            display_name="Apply IP-Adapter from Image",
            category=CATEGORY,
            description="Encodes reference images and steers a model with them: Encode Image for IP-Adapter "
            "and Apply IP-Adapter in one.",
            search_aliases=[
                *(
                    "ipadapter",
                    "ip adapter",
                    "IPAdapter",
                    "image prompt",
                    "reference image",
                    "image variation",
                    "style",
                ),
                *("style transfer", "composition", "character", "regional"),
            ],
            inputs=[
                *apply_inputs(
                    io.Image.Input("image", tooltip="Reference image; a batch is several references that act together.")
                ),
                io.Combo.Input(
                    "crop",
                    options=[_AS_TRAINED, *CROPS],
                    default=_AS_TRAINED,
                    optional=True,
                    advanced=True,
                    tooltip="How a picture becomes the encoder's square: 'center' cuts the long sides, 'pad' fills the short "
                    "ones with neutral colour, 'stretch' distorts. Neutral: 'as trained', what the file says, else 'center'.",
                ),
                io.String.Input(
                    "image_strengths",
                    display_name="image strengths",
                    default="",
                    optional=True,
                    tooltip="With several images: one factor each, on top of strength, such as '1, 0.5'; the first is for image, "
                    "the next for image2. 0 leaves an image out; those not listed have 1. Neutral: empty.",
                ),
                io.Autogrow.Input(
                    "references",
                    optional=True,
                    template=io.Autogrow.TemplateNames(
                        io.Image.Input("image", optional=True, tooltip="One more reference image, of any size."),
                        names=list(_MORE_IMAGES),
                        min=0,
                    ),
                    tooltip="More reference images; a new input appears when the last one is connected.",
                ),
            ],
            outputs=[io.Model.Output("model", tooltip="The patched model; the one that came in is unchanged.")],
        )

    @classmethod
    def validate_inputs(
        cls, start_percent: float | None, end_percent: float | None, references: object = None
    ) -> bool | str:
        # ComfyUI hands what grows to every check, asked for or not
        return range_problem(start_percent, end_percent)

    @classmethod
    @checked
    def execute(
        cls,
        model: ModelPatcher,
        adapter: LoadedAdapter,
        image: Tensor,
        strength: float,
        start_percent: float,
        end_percent: float,
        layer_preset: str,
        layer_weights: LayerWeights | None = None,
        mask: Tensor | None = None,
        schedule: Schedule | None = None,
        guard: Guard = NO_GUARD,
        crop: str = _AS_TRAINED,
        image_strengths: str = "",
        references: dict[str, Tensor] | None = None,
    ) -> io.NodeOutput:
        images = [image, *(references or {}).values()]
        strengths = parse_numbers(image_strengths, "image strengths")
        settings = ApplySettings(
            strength, start_percent, end_percent, layer_preset, layer_weights, mask, schedule=schedule, guard=guard
        )
        encoder, cut = choose(adapter), None if crop == _AS_TRAINED else crop
        patched = apply_adapter(model, adapter, encode_several(adapter, encoder, images, strengths, cut), settings)
        shown = torch.cat([seen(adapter, encoder, each, cut) for each in images])
        return io.NodeOutput(patched, ui=ui.PreviewImage(shown, cls=cls))
