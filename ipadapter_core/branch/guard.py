"""What keeps an image branch from burning a picture: less of what text says already, no more than text has in all."""

# B rows, L tokens, C channels

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import BadInputError

_SMALL = 1e-6


@dataclass(frozen=True)
class Guard:
    """How an image branch is held back; all of 0..1, where 0 is not at all.

    Attributes:
        orthogonal: how much of the image branch's part along the text branch is taken away, as PuLID (arXiv 2404.16022,
            `pulid/attention_processor.py`) does it.
        rescale: how far text and image together are brought back to the spread that text alone has in each row, as is
            done for a large guidance (arXiv 2305.08891, section 3.4).
        noise: of the negative side, in units of the references' own spread, as ComfyUI's nodes for InstantID have it.

    Raises:
        BadInputError: a number outside 0..1.
    """

    orthogonal: float = 0.0
    rescale: float = 0.0
    noise: float = 0.0

    def __post_init__(self) -> None:
        for name, value in (("orthogonal", self.orthogonal), ("rescale", self.rescale), ("noise", self.noise)):
            if not 0 <= value <= 1:
                raise BadInputError(
                    f"{name} of {value:.4g}",
                    expected="a number from 0 (off) to 1 (as much as there is)",
                    action="set it between them",
                )

    @property
    def changes_branch(self) -> bool:
        return self.orthogonal > 0 or self.rescale > 0

    def held_back(self, out: Tensor, image: Tensor, weight: Tensor | float = 1.0) -> Tensor:
        """What is to be added to `out` in place of `image`, weights included.

        Args:
            out: (B, L, C), the text branch.
            image: (B, L, C).
            weight: mask, gate and strength together: 0-dim, or to be broadcast over `image`.
        """
        added = image * weight
        if self.orthogonal > 0:
            along = (added * out).sum(dim=-1, keepdim=True) / out.square().sum(dim=-1, keepdim=True).clamp_min(_SMALL)
            added = added - self.orthogonal * along * out
        if self.rescale > 0:
            both = out + added
            spread, wanted = (x.std(dim=(1, 2), keepdim=True) for x in (both, out))
            factor = torch.lerp(torch.ones_like(wanted), wanted / spread.clamp_min(_SMALL), self.rescale)
            added = both * factor - out
        return added


NO_GUARD = Guard()
