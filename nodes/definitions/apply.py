"""`IPAApply`: check that everything fits, then patch a clone of the model."""

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

from ...ipadapter_core.branch.guard import NO_GUARD, Guard
from ...ipadapter_core.branch.tokens import ImageTokens
from ...ipadapter_core.strength.curve import Schedule
from ...ipadapter_core.strength.layer_weights import LayerWeights
from ..arrivals import checked
from ..inputs import apply_inputs, range_problem
from ..patching.application import ApplySettings, apply_adapter
from ..sockets import CATEGORY, IPATokens, LoadedAdapter


class IPAApply(io.ComfyNode):
    """Steer a model with image tokens."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IPAApply",
            display_name="Apply IP-Adapter",
            category=CATEGORY,
            description="Steers a model with image tokens. Several may follow each other; their effects add up.",
            search_aliases=["ipadapter", "image prompt", "ip adapter apply", "IPAdapter Advanced", "IPAdapter Embeds"],
            inputs=apply_inputs(
                IPATokens.Input("tokens", tooltip="Tokens from Encode Image for IP-Adapter, made with this adapter.")
            ),
            outputs=[io.Model.Output("model", tooltip="The patched model; the one that came in is unchanged.")],
        )

    @classmethod
    def validate_inputs(cls, start_percent: float | None, end_percent: float | None) -> bool | str:
        return range_problem(start_percent, end_percent)

    @classmethod
    @checked
    def execute(
        cls,
        model: ModelPatcher,
        adapter: LoadedAdapter,
        tokens: ImageTokens,
        strength: float,
        start_percent: float,
        end_percent: float,
        layer_preset: str,
        layer_weights: LayerWeights | None = None,
        mask: Tensor | None = None,
        schedule: Schedule | None = None,
        guard: Guard = NO_GUARD,
    ) -> io.NodeOutput:
        settings = ApplySettings(
            strength, start_percent, end_percent, layer_preset, layer_weights, mask, schedule=schedule, guard=guard
        )
        return io.NodeOutput(apply_adapter(model, adapter, tokens, settings))
