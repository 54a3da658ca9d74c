"""The part of the sampling in which an adapter acts."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ..errors import BadInputError

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
