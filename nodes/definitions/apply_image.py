"""`IPAApplyImage`: encode a reference and patch a clone of the model, in one node."""

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

from ...ipadapter_core.strength.curve import Schedule
from ...ipadapter_core.strength.layer_weights import LayerWeights
from ..arrivals import checked
from ..encoding.pictures import choose, encode_image
from ..inputs import apply_inputs
from ..patching.application import ApplySettings, apply_adapter
from ..sockets import CATEGORY, LoadedAdapter


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
            search_aliases=["ipadapter", "image prompt", "ip adapter", "IPAdapter", "reference image"],
            inputs=apply_inputs(
                io.Image.Input("image", tooltip="Reference image; a batch is several references that act together.")
            ),
            outputs=[io.Model.Output("model", tooltip="The patched model; the one that came in is unchanged.")],
        )

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
    ) -> io.NodeOutput:
        settings = ApplySettings(
            strength, start_percent, end_percent, layer_preset, layer_weights, mask, schedule=schedule
        )
        tokens = encode_image(adapter, choose(adapter), image)
        return io.NodeOutput(apply_adapter(model, adapter, tokens, settings))
