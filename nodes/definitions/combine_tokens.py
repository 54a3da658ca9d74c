"""`IPACombineTokens`: several references into one set of tokens."""

from comfy_api.latest import io

from ...ipadapter_core.branch.tokens import COMBINATIONS, ImageTokens, combine
from ...ipadapter_core.numbers import parse_numbers
from ..arrivals import checked
from ..errors import problem
from ..sockets import CATEGORY, IPATokens

MAX_INPUTS = 16


class IPACombineTokens(io.ComfyNode):
    """Combine the tokens of several references."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IPACombineTokens",
            display_name="Combine IP-Adapter Tokens",
            category=CATEGORY,
            description="Combines tokens of several references made with the same adapter.",
            search_aliases=["combine embeds", "mix images", "several references", "IPAdapter Combine Embeds"],
            inputs=[
                io.Autogrow.Input(
                    "tokens",
                    template=io.Autogrow.TemplatePrefix(
                        IPATokens.Input("tokens", tooltip="Tokens of one or more references."),
                        prefix="tokens",
                        min=2,
                        max=MAX_INPUTS,
                    ),
                    tooltip="Tokens to combine; a new input appears when the last one is connected.",
                ),
                io.Combo.Input(
                    "method",
                    options=list(COMBINATIONS),
                    default="concat",
                    tooltip="'concat' keeps every reference whole (usual); 'average' and 'norm average' blend; "
                    "'subtract' takes the mean of the others from the first; 'add', 'max', 'min' work per number.",
                ),
                io.String.Input(
                    "weights",
                    default="",
                    tooltip="One factor per input, such as '1, 0.5'; no unit. Neutral: empty, which is 1 for each.",
                ),
            ],
            outputs=[IPATokens.Output("tokens", tooltip="The combined tokens.")],
        )

    @classmethod
    def validate_inputs(cls, weights: str | None, tokens: object = None) -> bool | str:
        # ComfyUI hands what grows to every check, asked for or not
        return weights is None or problem(lambda: parse_numbers(weights, "weights"))

    @classmethod
    @checked
    def execute(cls, tokens: dict[str, ImageTokens], method: str, weights: str) -> io.NodeOutput:
        parts = [part for part in tokens.values() if part is not None]
        factors = parse_numbers(weights, "weights") or [1.0] * len(parts)
        return io.NodeOutput(combine(parts, method, factors))
