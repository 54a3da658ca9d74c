"""`IPACombineTokens`: several references into one set of tokens."""

import math
import re

from comfy_api.latest import io

from ...ipadapter_core.branch.tokens import COMBINATIONS, ImageTokens, combine
from ...ipadapter_core.errors import BadInputError
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
    def execute(cls, tokens: dict[str, ImageTokens], method: str, weights: str) -> io.NodeOutput:
        parts = [part for part in tokens.values() if part is not None]
        return io.NodeOutput(combine(parts, method, parse_factors(weights, len(parts))))


def parse_factors(text: str, count: int) -> list[float]:
    """Numbers separated by commas, spaces or line ends; 1 for each of `count` if there are none.

    Raises:
        BadInputError: something that is not a number.
    """
    words = [word for word in re.split(r"[,;\s]+", text) if word]
    try:
        factors = [float(word) for word in words]
    except ValueError:
        factors = [math.nan]
    if not all(math.isfinite(factor) for factor in factors):
        raise BadInputError(
            f"weights {text!r}", expected="numbers separated by commas, such as '1, 0.5'", action="correct the list"
        )
    return factors or [1.0] * count
