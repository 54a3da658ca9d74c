"""`IPAGrid`: the same model with several strengths, presets and references, one for each cell of a sheet."""

from itertools import product

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ...ipadapter_core.branch.tokens import ImageTokens
from ...ipadapter_core.errors import BadInputError
from ...ipadapter_core.numbers import entries, parse_numbers
from ..arrivals import checked
from ..patching.application import ApplySettings, apply_adapter
from ..sockets import CATEGORY, IPAAdapter, IPATokens, LoadedAdapter

_MOST_REFERENCES, _MOST_CELLS = 16, 256


class IPAGrid(io.ComfyNode):
    """Models for a grid; what follows runs once for each."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IPAGrid",
            display_name="IP-Adapter Grid",
            category=CATEGORY,
            description="Applies an adapter with several strengths, layer presets and references. All that follows, such as "
            "KSampler and VAE Decode, runs once for each; IP-Adapter Grid Sheet makes one picture of them.",
            search_aliases=["xy plot", "compare strengths", "compare settings", "contact sheet", "x/y/z plot"],
            inputs=[
                io.Model.Input("model", tooltip="The model to steer."),
                IPAAdapter.Input("adapter", tooltip="An adapter made for this kind of model."),
                io.Autogrow.Input(
                    "tokens",
                    template=io.Autogrow.TemplatePrefix(
                        IPATokens.Input("tokens", tooltip="Tokens of a reference, made with this adapter."),
                        prefix="tokens",
                        min=1,
                        max=_MOST_REFERENCES,
                    ),
                    tooltip="References, a row each; a new input appears when the last one is connected.",
                ),
                io.String.Input(
                    "strengths",
                    default="0, 0.4, 0.7, 1",
                    tooltip="A column each: numbers separated by commas, no unit. Neutral: 0, the model without the adapter.",
                ),
                io.String.Input(
                    "layer_presets",
                    display_name="layer presets",
                    default="all",
                    multiline=True,
                    tooltip="A row each: layer presets separated by commas or line ends, as Apply IP-Adapter names them. "
                    "Neutral: all.",
                ),
            ],
            outputs=[
                io.Model.Output("models", is_output_list=True, tooltip="The patched models, row by row, for KSampler."),
                io.String.Output("labels", is_output_list=True, tooltip="What each was made with, for the sheet."),
                io.Int.Output("columns", tooltip="How many there are in a row, for the sheet."),
            ],
        )

    @classmethod
    @checked
    def execute(
        cls,
        model: ModelPatcher,
        adapter: LoadedAdapter,
        tokens: dict[str, ImageTokens],
        strengths: str,
        layer_presets: str,
    ) -> io.NodeOutput:
        columns, presets = parse_numbers(strengths, "strengths"), entries(layer_presets)
        references = list(enumerate((each for each in tokens.values() if each is not None), 1))
        cells = list(product(references, presets, columns))
        if not 0 < len(cells) <= _MOST_CELLS:
            raise BadInputError(
                f"a grid of {len(references)} references, {len(presets)} presets and {len(columns)} strengths",
                expected=f"at least one of each, and at most {_MOST_CELLS} cells in all",
                action="list fewer, or at least one of each",
            )
        models = [
            apply_adapter(model, adapter, reference, ApplySettings(strength, layer_preset=preset))
            for (_, reference), preset, strength in cells
        ]
        labels = [_label(number, len(references), preset, presets, strength) for (number, _), preset, strength in cells]
        return io.NodeOutput(models, labels, len(columns))


def _label(number: int, references: int, preset: str, presets: list[str], strength: float) -> str:
    """What tells a cell from the others, and no more."""
    parts = [f"reference {number}"] * (references > 1) + [preset] * (len(presets) > 1) + [f"strength {strength:g}"]
    return ", ".join(parts)
