"""Weights that change over the frames of an animation, and which reference acts in which frame."""

# F frames of one pass of the curve, N source images

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from numbers import Real

from ..errors import BadInputError, one_of
from ..numbers import parse_numbers

CUSTOM, LINEAR, RANDOM = "custom", "linear", "random"
FULL_BATCH, SHIFT, ALTERNATE = "full batch", "shift batches", "alternate batches"
METHODS = (FULL_BATCH, SHIFT, ALTERNATE)
EASINGS: dict[str, Callable[[float], float]] = {  # 0..1 of the window to 0..1 of the way
    LINEAR: lambda x: x,
    "ease_in_out": lambda x: (1 - math.cos(math.pi * x)) / 2,
    "ease_in": lambda x: math.sin(math.pi * x / 2),
    "ease_out": lambda x: 1 - math.cos(math.pi * x / 2),
}
TIMINGS = (CUSTOM, *EASINGS, RANDOM)
_FEWEST_FRAMES = 2
_LONGEST = 1000  # bits
_MOST_FRAMES = 1_000_000  # also of all passes together: ten hours of film


@dataclass(frozen=True)
class Strategy:
    """How weights run, as it travels between nodes.

    Attributes:
        weights: numbers as text; the first and the last count unless `timing` is custom.
        timing: one of `TIMINGS`.
        frames: of one pass; in a custom one as many as there are weights.
        start_frame, end_frame: where in a pass the change begins, and the first frame after it.
        add_starting_frames, add_ending_frames: frames that repeat the first and the last weight, and show the first and
            the last source image on both sides.
        method: one of `METHODS`.
        frame_count: source images N.
    """

    weights: str
    timing: str
    frames: int
    start_frame: int
    end_frame: int
    add_starting_frames: int
    add_ending_frames: int
    method: str
    frame_count: int = 0

    def __post_init__(self) -> None:
        """Raises BadInputError: numbers of frames that are none, or too many, and names that are no text."""
        for name, known in (("timing", TIMINGS), ("method", METHODS)):
            if not isinstance(getattr(self, name), str):
                raise BadInputError(
                    f"{name} of a weight schedule that is no text",
                    expected=f"one of {', '.join(known)}",
                    action="connect a strategy as a weights node makes it",
                )
        for name in ("frames", "start_frame", "end_frame", "add_starting_frames", "add_ending_frames", "frame_count"):
            value = getattr(self, name)
            if not isinstance(value, int) or not 0 <= value <= _MOST_FRAMES:
                raise BadInputError(
                    f"{name} of a weight schedule that is no number of frames, or a huge one",
                    expected=f"a whole number from 0 to {_MOST_FRAMES}",
                    action="set the widget, or connect a strategy as a weights node makes it",
                )

    def to_dict(self) -> dict[str, object]:
        return asdict(self)

    @classmethod
    def from_dict(cls, stated: Mapping[str, object]) -> "Strategy":
        """Raises BadInputError if an entry is missing."""
        missing = [field.name for field in fields(cls) if field.default is MISSING and field.name not in stated]
        if missing:
            raise BadInputError(
                f"a weights strategy without {', '.join(missing)}",
                expected=f"a strategy with {', '.join(field.name for field in fields(cls))}",
                action="connect a strategy as a weights node makes it",
            )
        values = {field.name: stated[field.name] for field in fields(cls) if field.name in stated}
        values["weights"] = _as_text(values["weights"])
        return cls(**values)  # type: ignore[arg-type]


@dataclass(frozen=True)
class WeightSchedule:
    """What a strategy comes to.

    Attributes:
        strategy: with `frames` and `frame_count` as they are in effect.
        weights: one per frame.
        first, second: index of the source image of each frame; None where there is none.
    """

    strategy: Strategy
    weights: list[float]
    first: list[int] | None
    second: list[int] | None


def schedule_weights(strategy: Strategy, num_images: int) -> WeightSchedule:
    """Weights and source images of every frame.

    Args:
        num_images: N; 0 schedules weights alone.

    Raises:
        BadInputError: weights that are no numbers, an unknown timing or method, or too few images to fade between.
    """
    curve = _curve(strategy)
    frames = len(curve)
    pairs = _pairs(one_of(strategy.method, METHODS, "method"), num_images)
    if frames * max(1, len(pairs)) > _MOST_FRAMES:
        raise BadInputError(
            f"a weight schedule of {frames} frames for each of {len(pairs)} passes",
            expected=f"at most {_MOST_FRAMES} frames",
            action="use fewer frames, or fewer images",
        )
    weights: list[float] = []
    for number in range(max(1, len(pairs))):
        is_inverted = strategy.method == ALTERNATE and number % 2 == 1
        weights += [min(curve) + max(curve) - weight for weight in curve] if is_inverted else curve
    first = [pair[0] for pair in pairs for _ in range(frames)]
    second = [pair[1] for pair in pairs for _ in range(frames)] if strategy.method != FULL_BATCH else []
    in_effect = Strategy(**{**asdict(strategy), "frames": frames, "frame_count": num_images})
    before, after = strategy.add_starting_frames, strategy.add_ending_frames
    weights = [weights[0]] * before + weights + [weights[-1]] * after
    first, second = ([0] * before + order + [num_images - 1] * after if order else [] for order in (first, second))
    return WeightSchedule(in_effect, weights, first or None, second or None)


def prompt_schedule(strategy: Strategy, prompts: str) -> str:
    """Lines `"frame": "prompt",` that FizzNodes reads: one per source image, at the frame where it begins.

    Args:
        prompts: one per line; the last one is repeated if there are fewer than images.
    """
    lines = [line for line in prompts.splitlines() if line.strip()]
    if not lines or strategy.frame_count == 0:
        return ""
    first = strategy.add_starting_frames
    entries = [(first + number * strategy.frames, number) for number in range(strategy.frame_count)]
    if strategy.add_starting_frames:
        entries.insert(0, (0, 0))
    if strategy.add_ending_frames:
        entries.append((first + strategy.frame_count * strategy.frames, strategy.frame_count - 1))
    return "\n".join(f'"{frame}": "{lines[min(number, len(lines) - 1)]}",' for frame, number in entries)


def parse_weights(text: str) -> list[float]:
    """At least one number; see `parse_numbers`.

    Raises:
        BadInputError: none, or something that is no number.
    """
    weights = parse_numbers(text, "weights")
    if not weights:
        raise BadInputError(
            "no weights", expected="numbers separated by commas, such as '1.0, 0.0'", action="write at least one"
        )
    return weights


def _as_text(weights: object) -> str:
    """Another pack may hand the numbers themselves on."""
    if isinstance(weights, str):
        return weights
    numbers = weights if isinstance(weights, Sequence) else [weights]
    if not all(isinstance(number, str | Real) and not _is_long(number) for number in numbers):
        raise BadInputError(
            "a weight schedule whose weights are no numbers",
            expected="numbers, or a text of them separated by commas",
            action="connect a strategy as a weights node makes it",
        )
    return ", ".join(map(str, numbers))


def _is_long(number: object) -> bool:
    """Whether Python would not write a number out."""
    return isinstance(number, int) and number.bit_length() > _LONGEST


def _curve(strategy: Strategy) -> list[float]:
    weights = parse_weights(strategy.weights)
    if one_of(strategy.timing, TIMINGS, "timing") == CUSTOM:
        return weights
    start, end = weights[0], weights[-1]
    frames = max(strategy.frames, _FEWEST_FRAMES)
    window = range(strategy.start_frame, min(strategy.end_frame, frames))
    steps = max(len(window) - 1, 1)
    if strategy.timing == RANDOM:
        # Python's own generator, as in IPAdapter_plus: whoever seeds it gets the same weights
        change = [random.uniform(start, end) for _ in window]
    else:
        change = [start + (end - start) * EASINGS[strategy.timing](step / steps) for step in range(len(window))]
    if change:
        change[-1] = end
    before = min(strategy.start_frame, frames)
    return [start] * before + change + [end] * (frames - before - len(change))


def _pairs(method: str, num_images: int) -> list[tuple[int, int]]:
    """The two source images of each pass of the curve; a full batch has but one, given twice."""
    if method == FULL_BATCH or num_images == 0:
        return [(number, number) for number in range(num_images)]
    if num_images == 1:
        raise BadInputError(
            f"one image for '{method}'",
            expected="a batch of two images or more to fade between",
            action="connect a batch, or choose 'full batch'",
        )
    pairs = [(number, number + 1) for number in range(num_images - 1)]
    # alternately, so that an image keeps its side while it fades in and out again
    return pairs if method == SHIFT else [pair if pair[0] % 2 == 0 else pair[::-1] for pair in pairs]
