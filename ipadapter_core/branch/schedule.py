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


def sigma_range(
    start_percent: float, end_percent: float, percent_to_sigma: Callable[[float], float]
) -> SigmaRange | None:
    """The range between two points of the sampling; None if it covers all of it.

    Args:
        start_percent, end_percent: 0..1 of the sampling, 0 is its beginning.
        percent_to_sigma: the model's schedule (`model_sampling.percent_to_sigma`).

    Raises:
        BadInputError: outside 0..1, or start after end.
    """
    if not -_ROUNDING <= start_percent <= end_percent + _ROUNDING <= 1 + 2 * _ROUNDING:
        raise BadInputError(
            f"start_percent {start_percent:.7g} and end_percent {end_percent:.7g}",
            expected="0 <= start_percent <= end_percent <= 1",
            action="set start_percent to where the image prompt begins and end_percent to where it ends",
        )
    end_percent = min(max(end_percent, 0.0), 1.0)
    start_percent = min(max(start_percent, 0.0), end_percent)
    if start_percent <= 0 and end_percent >= 1:
        return None
    return SigmaRange(percent_to_sigma(start_percent), percent_to_sigma(end_percent))
