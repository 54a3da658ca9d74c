"""The part of the sampling in which an adapter acts."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import BadInputError
from ..strength.curve import Curve

_ROUNDING = 1e-6  # of a percent that another node computed


@dataclass(frozen=True)
class SigmaRange:
    """Active while `end <= sigma <= start`, both inclusive; sigma falls while sampling."""

    start: float
    end: float

    def gate(self, sigmas: Tensor) -> Tensor:
        """0-dim bool on the device of `sigmas`: whether the adapter acts at this step.

        Stays on the device: reading it on the host would make every step wait for the queue to drain.
        """
        sigma = sigmas.flatten()[0]
        return (sigma <= self.start) & (sigma >= self.end)


@dataclass(frozen=True)
class PercentRange:
    """Where in the sampling an adapter acts, 0..1; in sigmas only once it is known how is sampled.

    Raises:
        BadInputError: outside 0..1, or start after end.
    """

    start: float
    end: float

    def __post_init__(self) -> None:
        start, end = self.start, self.end
        if not -_ROUNDING <= start <= end + _ROUNDING <= 1 + 2 * _ROUNDING:
            raise BadInputError(
                f"an image prompt that acts from {start:.7g} to {end:.7g} of the sampling",
                expected="0 <= start <= end <= 1",
                action="let it start where the image prompt is to begin and end where it is to stop, both from 0 to 1",
            )
        end = min(max(end, 0.0), 1.0)
        object.__setattr__(self, "end", end)
        object.__setattr__(self, "start", min(max(start, 0.0), end))

    def sigmas(self, percent_to_sigma: Callable[[float], float]) -> SigmaRange:
        """The same in sigmas of a noise schedule (`model_sampling.percent_to_sigma`)."""
        return SigmaRange(percent_to_sigma(self.start), percent_to_sigma(self.end))


def percent_range(start: float, end: float) -> PercentRange | None:
    """The range between two points of the sampling; None if it covers all of it. Errors as `PercentRange`."""
    acting = PercentRange(start, end)
    return None if acting.start <= 0 and acting.end >= 1 else acting


@dataclass(frozen=True, eq=False)
class SigmaCurve:
    """A curve in sigmas.

    Attributes:
        sigmas: (P,), float32, rising.
        factors: (P,), float32.
    """

    sigmas: Tensor
    factors: Tensor

    def factor(self, sigmas: Tensor) -> Tensor:
        """0-dim, on the device of `sigmas`, where this has to be as well; nothing is read on the host."""
        sigma = sigmas.flatten()[:1].to(self.sigmas.dtype)
        above = torch.searchsorted(self.sigmas, sigma).clamp(1, len(self.sigmas) - 1)
        low, high = self.sigmas[above - 1], self.sigmas[above]
        part = ((sigma - low) / (high - low)).nan_to_num().clamp(0, 1)
        return torch.lerp(self.factors[above - 1], self.factors[above], part)[0]

    def to(self, device: torch.device) -> "SigmaCurve":
        return SigmaCurve(self.sigmas.to(device), self.factors.to(device))


_STRETCHES = 256  # between which a noise schedule is taken for straight


def curve_in_sigmas(curve: Curve, percent_to_sigma: Callable[[float], float], sigma_max: float) -> SigmaCurve:
    """A curve over the sampling in the sigmas of a noise schedule.

    Args:
        percent_to_sigma: `model_sampling`'s, of which 0 gives a number beyond all sigmas.
        sigma_max: the largest there is.
    """
    times = sorted({*(step / _STRETCHES for step in range(_STRETCHES + 1)), *(time for time, _ in curve.points)})
    jumps = {
        second: factor
        for (first, factor), (second, _) in zip(curve.points, curve.points[1:], strict=False)
        if first == second
    }
    points = [(min(percent_to_sigma(time), sigma_max), curve.at(time), jumps.get(time)) for time in reversed(times)]
    pairs = [(sigma, factor) for sigma, behind, before in points for factor in (behind, before) if factor is not None]
    sigmas, factors = torch.tensor(pairs, dtype=torch.float64).T
    return SigmaCurve(sigmas.float().contiguous(), factors.float().contiguous())
