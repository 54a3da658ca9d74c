"""The curve of a training, drawn."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

Point = tuple[float, float]
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _FOOT = 512, 288, 56, 16, 28, 28  # pixels
_PAPER, _INK, _GRID = (32, 32, 34), (225, 225, 225), (62, 62, 66)
_FAINT, _LINE, _CHECKED = (70, 92, 112), (86, 156, 214), (240, 170, 80)
_LETTERS = 13  # pixels
_DECAY = 0.9


def curve(losses: Sequence[Point], checked: Sequence[Point], total: int) -> Image.Image:
    """Losses by step: as they came and smoothed, and those of the held-out pictures; `total` steps wide."""
    sheet = Image.new("RGB", (_WIDTH, _HEIGHT), _PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(_LETTERS)
    low, high = bounds([value for _, value in (*losses, *checked)] or [0.0, 1.0])

    def place(point: Point) -> tuple[float, float]:
        step, value = point
        across = (_WIDTH - _LEFT - _RIGHT) * step / max(total, 1)
        return _LEFT + across, _TOP + (_HEIGHT - _TOP - _FOOT) * (high - value) / (high - low)

    for share in (0.0, 0.5, 1.0):
        value = low + share * (high - low)
        (left, y), (right, _) = place((0, value)), place((total, value))
        pen.line((left, y, right, y), fill=_GRID)
        pen.text((6, y - 8), f"{value:.3f}", _INK, font)
    for step in (0, total):
        text = f"{step:,}"
        left = place((step, low))[0] - (font.getlength(text) if step else 0)
        pen.text((left, _HEIGHT - _FOOT + 6), text, _INK, font)
    for points, color, width in ((losses, _FAINT, 1), (_smoothed(losses), _LINE, 2), (checked, _CHECKED, 2)):
        _line(pen, [place(point) for point in points], color, width)
    pen.text((_LEFT, 6), "training loss", _LINE, font)
    if checked:
        pen.text((_LEFT + 120, 6), "held-out pictures", _CHECKED, font)
    return sheet


def bounds(values: Sequence[float]) -> tuple[float, float]:
    """Lowest and highest value on the sheet: with room around them, but none below 0 where a loss never is."""
    low, high = min(values), max(values)
    margin = 0.05 * (high - low) or 0.1 * abs(high) or 1.0
    return low - margin if low < 0 else max(low - margin, 0.0), high + margin


def _line(pen: ImageDraw.ImageDraw, points: Sequence[Point], color: tuple[int, int, int], width: int) -> None:
    if len(points) > 1:
        pen.line(points, fill=color, width=width)
    for x, y in points if len(points) == 1 or color == _CHECKED else ():
        pen.ellipse((x - 2, y - 2, x + 2, y + 2), fill=color)


def _smoothed(points: Sequence[Point]) -> list[Point]:
    """Exponential mean without the pull towards its start."""
    smooth, mean, weight = [], 0.0, 0.0
    for x, y in points:
        mean, weight = _DECAY * mean + (1 - _DECAY) * y, _DECAY * weight + (1 - _DECAY)
        smooth.append((x, mean / weight))
    return smooth
