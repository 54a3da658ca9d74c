"""What the demo proves, in numbers."""

import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

TOLERANCE = 1e-4


@dataclass(frozen=True)
class Check:
    """One row of the table."""

    claim: str
    measured: str
    holds: bool


def arithmetic(latents: Mapping[float | None, Tensor]) -> list[Check]:
    """Compare latents.

    Args:
        latents: by strength, in rising order; None is the run without the adapter.
    """
    plain = latents[None]
    with_adapter = {strength: latent for strength, latent in latents.items() if strength is not None}
    largest = _largest_difference(latents[0.0], plain)
    changes = [_change(latent, plain) for latent in with_adapter.values()]
    return [
        Check("strength 0 = no adapter, bit for bit", f"difference {largest:g}", bool((latents[0.0] == plain).all())),
        Check(
            "change grows with strength",
            " < ".join(f"{change:.3g}" for change in changes),
            all(low < high for low, high in itertools.pairwise(changes)),
        ),
    ]


def same_as_diffusers(latent: Tensor, reference: Tensor) -> Check:
    """Compare the two programs' latents at strength 1."""
    error = _largest_difference(latent, reference)
    return Check(f"strength 1 = diffusers within {TOLERANCE:g}", f"{error:.1e}", error <= TOLERANCE)


def nearer_with_strength(similarities: Sequence[float]) -> Check:
    """Judge the strength sweep.

    Args:
        similarities: to the reference, from strength 0 to 1.
    """
    measured = ", ".join(f"{similarity:.2f}" for similarity in similarities)
    return Check("strength 1 is nearer to the reference than 0", measured, similarities[-1] > similarities[0])


def halves_apart(sides: Sequence[Sequence[Sequence[float]]]) -> Check:
    """Judge the two masks.

    Args:
        sides: for the left, then the right half: similarity of each picture to both references; its own is the first of
            the left and the second of the right.
    """
    left, right = (
        statistics.fmean(of_both[own] - of_both[1 - own] for of_both in pictures) for own, pictures in enumerate(sides)
    )
    measured = f"left {left:+.2f}, right {right:+.2f} over the other"
    return Check("each half is nearest to its own reference", measured, min(left, right) > 0)


def _change(latent: Tensor, plain: Tensor) -> float:
    """Root mean square of the difference, relative to the plain latent's."""
    return float((latent - plain).square().mean().sqrt() / plain.square().mean().sqrt())


def _largest_difference(latent: Tensor, from_latent: Tensor) -> float:
    """Of any number, relative to the largest number."""
    return float((latent - from_latent).abs().max() / from_latent.abs().max())
