"""Embeds scalings: what of the image branch a weight multiplies."""

# F frames, T image tokens, N tokens per reference, D channels

from collections.abc import Callable
from dataclasses import dataclass

from einops import rearrange
from torch import Tensor

from ..errors import one_of

_FULL_WIDTH = 1280  # channels of the widest layers of SD1.5 and SDXL, which a channel penalty leaves alone

# V (F, T, D), weight (F or 1, 1, 1), tokens per reference, to the V that is attended to
_ScaleValue = Callable[[Tensor, Tensor, int], Tensor]


def _whole(value: Tensor, weight: Tensor, _tokens: int) -> Tensor:
    return value * weight


def _mean_only(value: Tensor, weight: Tensor, tokens: int) -> Tensor:
    references = rearrange(value, "f (r n) d -> f r n d", n=tokens)
    mean = references.mean(dim=-2, keepdim=True)
    scaled = references - mean + mean * weight[:, None]
    return rearrange(scaled, "f r n d -> f (r n) d")


@dataclass(frozen=True)
class Scaling:
    """How a weight enters keys and values.

    Attributes:
        keys: K is multiplied too, which sharpens or flattens the attention.
        penalty: the weight is first multiplied by channels / 1280, so that narrow layers get less.
        value: how V is scaled.
    """

    keys: bool = False
    penalty: bool = False
    value: _ScaleValue = _whole

    def apply(self, key: Tensor, value: Tensor, weight: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
        """Fold a weight into K and V of one site.

        Args:
            key, value: (F, T, D), D all channels of the site.
            weight: (F or 1, 1, 1), no unit.
            tokens: image tokens per reference; T is a multiple.
        """
        if self.penalty:
            weight = weight * (key.shape[-1] / _FULL_WIDTH)
        return key * weight if self.keys else key, self.value(value, weight, tokens)


SCALINGS: dict[str, Scaling] = {
    "V only": Scaling(),
    "K+V": Scaling(keys=True),
    "K+V w/ C penalty": Scaling(keys=True, penalty=True),
    "K+mean(V) w/ C penalty": Scaling(keys=True, penalty=True, value=_mean_only),
}
VALUE_ONLY = SCALINGS["V only"]


def find_scaling(name: str) -> Scaling:
    """Raises BadInputError for an unknown name."""
    return one_of(name, SCALINGS, "embeds scaling")
