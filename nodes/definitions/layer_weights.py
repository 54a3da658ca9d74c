"""`IPALayerWeights`: the user's own factors by group of layers and by single layer."""

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io, ui

from ...ipadapter_core.backbone.registry import discover_sites
from ...ipadapter_core.strength.layer_weights import GROUPS, LayerWeights, parse_site_factors
from ...ipadapter_core.strength.presets import PRESET_GROUPS, resolve_preset
from ..arrivals import checked
from ..errors import problem
from ..previews import levels
from ..sockets import CATEGORY, IPAWeights

_GROUP_TOOLTIPS = {
    "input": "layers on the way down",
    "middle": "layers of the middle block",
    "output": "layers on the way up",
    "style": "layers known to carry style",
    "composition": "layers known to carry composition",
}


class IPALayerWeights(io.ComfyNode):
    """Factors that multiply those of the layer preset."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IPALayerWeights",
            display_name="IP-Adapter Layer Weights",
            category=CATEGORY,
            description="Factors per group of attention layers and per single layer, on top of the layer preset.",
            search_aliases=[
                "layer weights",
                "block weights",
                "style",
                "composition",
                "mad scientist",
                "IPAdapter Mad Scientist",
            ],
            inputs=[
                *(
                    io.Float.Input(
                        group,
                        default=1.0,
                        min=-5.0,
                        max=5.0,
                        step=0.05,
                        tooltip=f"Factor for the {_GROUP_TOOLTIPS[group]}; no unit. Neutral: 1; 0 switches them off. Only "
                        "UNets (SD1.5, SDXL) have them: leave it at 1 elsewhere.",
                    )
                    for group in GROUPS
                ),
                io.String.Input(
                    "site_factors",
                    display_name="site factors",
                    default="",
                    multiline=True,
                    tooltip="Factors for single layers, one per line or separated by commas: '3: 0.5' (layers count "
                    "from 0 in file order), '4-9: 0', 'output.1: 1.2'; on other models than UNets by their blocks, 'double.3: 0.5' "
                    "or 'single.0: 0' (FLUX.1, Chroma), 'joint.3: 0' (SD3.5), 'block.3: 0' (Anima, Z-Image, Qwen-Image). Neutral: empty.",
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="Draws a bar for each block of this model, and says at once if it has no such layer. Changes nothing "
                    "else. Neutral: unconnected, which draws the groups.",
                ),
                io.Combo.Input(
                    "layer_preset",
                    display_name="layer preset",
                    options=[name for group in PRESET_GROUPS for name in group],
                    default="all",
                    optional=True,
                    tooltip="With a model: lights the blocks of this preset, to see what it does together with the factors. The one "
                    "that acts is chosen in Apply IP-Adapter. Neutral: all.",
                ),
            ],
            outputs=[IPAWeights.Output("layer_weights", tooltip="For layer weights of Apply IP-Adapter.")],
            is_output_node=True,  # seen without anything behind it
        )

    @classmethod
    def validate_inputs(cls, site_factors: str | None) -> bool | str:
        return site_factors is None or problem(lambda: parse_site_factors(site_factors))

    @classmethod
    @checked
    def execute(
        cls,
        input: float,
        middle: float,
        output: float,
        style: float,
        composition: float,
        site_factors: str,
        model: ModelPatcher | None = None,
        layer_preset: str = "all",
    ) -> io.NodeOutput:
        groups = dict(zip(GROUPS, (input, middle, output, style, composition), strict=True))
        weights = LayerWeights(groups, parse_site_factors(site_factors))
        shown = groups if model is None else _blocks(weights, model, layer_preset)
        return io.NodeOutput(weights, ui=ui.PreviewImage(levels(shown), cls=cls))


def _blocks(weights: LayerWeights, model: ModelPatcher, preset: str) -> dict[str, float]:
    """What the strength is multiplied with in each block of a model, as it runs; of several layers the most."""
    sites = discover_sites(model.get_model_object("diffusion_model"))
    strengths = weights.apply(resolve_preset(preset, sites, 1.0), sites)
    blocks: dict[str, float] = {}
    for site in sorted(sites.sites, key=lambda site: site.depth):
        strength, name = strengths.get(site.index), f"{site.block[0]}.{site.block[1]}"
        value = 0.0 if strength is None else strength.value
        blocks[name] = max(blocks.get(name, value), value, key=abs)
    return blocks
