"""What the demo proves, in numbers."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

TOLERANCE = 1e-4


@dataclass(frozen=True)
class Check:
    """One row of the table."""

    claim: str
    measured: str
    holds: bool


def check(latents: Mapping[float | None, Tensor], reference: Tensor | None) -> list[Check]:
    """Compare latents.

    Args:
        latents: by strength, in rising order; None is the run without the adapter.
        reference: diffusers' at strength 1; None if it was not made.
    """
    plain = latents[None]
    changes = [_difference(latent, plain) for strength, latent in latents.items() if strength is not None]
    checks = [
        Check(
            "strength 0 = no adapter, bit for bit", f"difference {changes[0]:g}", bool((latents[0.0] == plain).all())
        ),
        Check(
            "change grows with strength",
            " < ".join(f"{change:.3g}" for change in changes),
            all(low < high for low, high in itertools.pairwise(changes)),
        ),
    ]
    if reference is not None:
        error = _difference(latents[1.0], reference)
        checks.append(Check(f"strength 1 = diffusers within {TOLERANCE:g}", f"{error:.1e}", error <= TOLERANCE))
    return checks


def _difference(latent: Tensor, from_latent: Tensor) -> float:
    """The largest difference of any number, relative to the largest number."""
    return float((latent - from_latent).abs().max() / from_latent.abs().max())
