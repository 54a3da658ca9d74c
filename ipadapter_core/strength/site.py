"""How strongly one site takes the image."""

from dataclasses import dataclass


@dataclass(frozen=True)
class SiteStrength:
    """How one site uses the image.

    Attributes:
        value: multiplies the values; 1 is neutral, 0 leaves the site unpatched.
        swap: give the image to the uncond side and nothing to the cond side ("precise" presets).
    """

    value: float
    swap: bool = False

    @property
    def factors(self) -> tuple[float, ...]:
        """One per frame; a single one serves all."""
        return (self.value,)


@dataclass(frozen=True)
class FrameStrength:
    """A `SiteStrength` whose value changes from frame to frame; the last of `factors` serves all further frames."""

    factors: tuple[float, ...]
    swap: bool = False


AnyStrength = SiteStrength | FrameStrength
