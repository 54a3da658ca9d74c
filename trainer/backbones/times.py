"""Which times a flow model is trained on: those of larger pictures lie nearer to noise."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TimeShift:
    """A time t becomes e^m t / (1 + (e^m - 1) t), where m is linear in the number of tokens (arXiv 2403.03206, section 5.3.2).

    As in diffusers' `FlowMatchEulerDiscreteScheduler` with `use_dynamic_shifting`. Small, and sent to the data workers.

    Attributes:
        base, most: m at `base_tokens` and at `most_tokens`.
        patch: cells of the latent on a token's side.
    """

    base: float
    most: float
    base_tokens: int = 256
    most_tokens: int = 4096
    patch: int = 2

    def mean(self, height: int, width: int) -> float:
        """m of a latent of so many cells."""
        tokens = (height // self.patch) * (width // self.patch)
        return self.base + (self.most - self.base) * (tokens - self.base_tokens) / (self.most_tokens - self.base_tokens)

    def of(self, time: float, height: int, width: int) -> float:
        """The time, 0..1, of a picture whose latent has so many cells."""
        factor = math.exp(self.mean(height, width))
        return factor * time / (1 + (factor - 1) * time)

    @classmethod
    def of_scheduler(cls, config: Mapping[str, Any], patch: int) -> "TimeShift":
        """What the settings of a `FlowMatchEulerDiscreteScheduler` say; one that does not look at sizes has one shift."""
        if not config["use_dynamic_shifting"]:
            mean = math.log(config["shift"])
            return cls(mean, mean, patch=patch)
        return cls(
            config["base_shift"],
            config["max_shift"],
            config["base_image_seq_len"],
            config["max_image_seq_len"],
            patch,
        )
