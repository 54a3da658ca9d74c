"""Pictures that a node shows of what it does."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ..ipadapter_core.branch.masks import resized
from ..ipadapter_core.encoder.prepare import squared
from ..ipadapter_core.strength.curve import Curve

_GREY, _DARKEST = 0.5, 0.25
_SIDE, _SPACE, _BAR, _TEXT = 64, 8, 240, 56  # pixels of a chart's pictures, gaps, longest bar and numbers
_LINE, _ABOVE = 14, 6  # pixels of a line of a label, and above it
_LARGEST_SHEET = 8192  # pixels of the longer side
_PLOT, _MARGIN = (320, 160), 28  # pixels of a curve's plot and around it
_PAPER, _INK, _FILL, _FAINT = (32, 32, 34), (235, 235, 235), (86, 156, 214), (90, 90, 94)
_HEAT = ((0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164))  # evenly bright steps from 0 to 1


def shaded(image: Tensor | None, mask: Tensor) -> Tensor:
    """A picture, darker where a mask is lower.

    Args:
        image: (B, H, W, 3), 0..1, of which the first is shown; None is grey.
        mask: (1, H', W'), 0..1.

    Returns:
        (1, H, W, 3).
    """
    if image is None:
        image = torch.full((1, *mask.shape[1:], 3), _GREY)
    picture = image[:1].cpu()
    light = resized(mask.float().cpu(), (picture.shape[1], picture.shape[2]))
    return picture * (_DARKEST + (1 - _DARKEST) * light)[..., None]


def heated(image: Tensor, heat: Tensor, blending: float) -> Tensor:
    """Pictures with maps over them, dark where they are 0 and yellow where they are 1.

    Args:
        image: (B, H, W, 3), 0..1; one serves all maps.
        heat: (B, H, W), 0..1.
        blending: of the maps, 0..1.

    Returns:
        (B, H, W, 3).
    """
    place = heat.float().cpu().clamp(0, 1) * (len(_HEAT) - 1)
    below = place.floor().clamp_max(len(_HEAT) - 2)
    colours = torch.tensor(_HEAT) / 255
    at = below.long()
    colour = torch.lerp(colours[at], colours[at + 1], (place - below)[..., None])
    picture = image.cpu().expand_as(colour)
    grey = picture.mean(dim=-1, keepdim=True).expand_as(picture)  # its own colours would be taken for those of the map
    return torch.lerp(torch.lerp(picture, grey, blending), colour, blending)


def bars(rows: Sequence[tuple[Tensor, Tensor, float]]) -> Tensor:
    """A chart of pairs: both pictures (H, W, 3), 0..1, and a bar for a number from -1 to 1, which begins at 0.

    Returns:
        (1, H, W, 3).
    """
    height = len(rows) * (_SIDE + _SPACE) + _SPACE
    sheet = Image.new("RGB", (2 * _SIDE + _BAR + _TEXT + 5 * _SPACE, height), _PAPER)
    pen = ImageDraw.Draw(sheet)
    left = 2 * _SIDE + 3 * _SPACE
    for number, (picture, other, value) in enumerate(rows):
        top = _SPACE + number * (_SIDE + _SPACE)
        for place, shown in enumerate((picture, other)):
            sheet.paste(_thumbnail(shown), (_SPACE + place * (_SIDE + _SPACE), top))
        end = left + round(_BAR * max(value, 0.0))
        pen.rectangle((left, top + _SIDE // 3, max(end, left + 1), top + 2 * _SIDE // 3), fill=_FILL)
        pen.text((max(end, left + 1) + _SPACE, top + _SIDE // 2 - 6), f"{value:.3f}", fill=_INK)
    return torch.from_numpy(np.array(sheet)).float()[None] / 255


def _thumbnail(picture: Tensor) -> Image.Image:
    small = squared(picture.cpu(), _SIDE, "pad", "black")
    return Image.fromarray((255 * small).round().to(torch.uint8).numpy())


def levels(values: Mapping[str, float]) -> Tensor:
    """Factors as bars beside each other, from 0 upwards or downwards, each with its name below; those of 0 are not lit.

    Returns:
        (1, H, W, 3).
    """
    width, height = max(8, _PLOT[0] * 2 // max(len(values), 8)), _PLOT[1]
    low, high = min(0.0, *values.values(), 0.0), max(1.0, *values.values(), 1.0)
    room = max(ImageDraw.Draw(Image.new("RGB", (1, 1))).textlength(name) for name in values)
    names = Image.new("L", (int(room) + 2, len(values) * width))
    pen = ImageDraw.Draw(names)
    for number, name in enumerate(values):
        pen.text((int(room) - pen.textlength(name), number * width + width // 2 - 6), name, fill=255)
    names = names.rotate(90, expand=True)
    sheet = Image.new("RGB", (len(values) * width + 2 * _MARGIN, height + _MARGIN + names.height + 2 * _SPACE), _PAPER)
    pen = ImageDraw.Draw(sheet)

    def place(factor: float) -> float:
        return _MARGIN + (high - factor) / (high - low) * height

    for line in {low, 0.0, 1.0, high}:
        pen.line((_MARGIN, place(line), sheet.width - _MARGIN, place(line)), fill=_FAINT)
        pen.text((2, place(line) - 6), f"{line:g}", fill=_INK)
    for number, value in enumerate(values.values()):
        left, edges = _MARGIN + number * width, sorted((place(0.0), place(value)))
        pen.rectangle((left + 1, edges[0], left + width - 2, edges[1]), fill=_FILL if value else _FAINT)
    sheet.paste(_INK, (_MARGIN, height + _MARGIN + _SPACE), names)
    return torch.from_numpy(np.array(sheet)).float()[None] / 255


def drawn(curve: Curve, over: str) -> Tensor:
    """A curve as a picture (1, H, W, 3): time to the right, factors upwards, with 0 and 1 in sight.

    Args:
        over: what the time is of, for the axis.
    """
    width, height = _PLOT
    factors = [factor for _, factor in curve.points]
    low, high = min(0.0, *factors, 0.0), max(1.0, *factors, 1.0)
    sheet = Image.new("RGB", (width + 2 * _MARGIN, height + 2 * _MARGIN), _PAPER)
    pen = ImageDraw.Draw(sheet)

    def place(time: float, factor: float) -> tuple[float, float]:
        return _MARGIN + time * width, _MARGIN + (high - factor) / (high - low) * height

    for line in {low, 0.0, 1.0, high}:
        pen.line((*place(0, line), *place(1, line)), fill=_FAINT)
        pen.text((2, place(0, line)[1] - 6), f"{line:g}", fill=_INK)
    pen.text((_MARGIN, height + _MARGIN + 8), f"{over}: first", fill=_INK)
    pen.text((width + _MARGIN - 24, height + _MARGIN + 8), "last", fill=_INK)
    points = [(0.0, curve.points[0][1]), *curve.points, (1.0, curve.points[-1][1])]
    pen.line([place(*point) for point in points], fill=_FILL, width=3)
    return torch.from_numpy(np.array(sheet)).float()[None] / 255


def sheet(cells: Sequence[tuple[Tensor, str]], columns: int) -> Tensor:
    """Pictures (H, W, 3), 0..1, row by row, each below its label; made smaller where the whole would be huge.

    Returns:
        (1, H, W, 3).
    """
    width = max(picture.shape[1] for picture, _ in cells)
    height = max(picture.shape[0] for picture, _ in cells)
    rows = -(-len(cells) // columns)
    scale = min(1.0, _LARGEST_SHEET / (columns * (width + _SPACE)), _LARGEST_SHEET / (rows * (height + _SPACE)))
    width, height = max(1, int(width * scale)), max(1, int(height * scale))
    labels = [_wrapped(label, width) for _, label in cells]
    label_height = _ABOVE + _LINE * max(map(len, labels))
    step = (width + _SPACE, height + label_height + _SPACE)
    whole = Image.new("RGB", (columns * step[0] + _SPACE, rows * step[1] + _SPACE), _PAPER)
    pen = ImageDraw.Draw(whole)
    for number, (picture, _) in enumerate(cells):
        left, top = _SPACE + number % columns * step[0], _SPACE + number // columns * step[1]
        for line, text in enumerate(labels[number]):
            pen.text((left, top + _ABOVE // 2 + line * _LINE), text, fill=_INK)
        shown = Image.fromarray((255 * picture.cpu()).round().to(torch.uint8).numpy())
        if scale < 1:
            shown = shown.resize((max(1, int(shown.width * scale)), max(1, int(shown.height * scale))))
        whole.paste(shown, (left, top + label_height))
    return torch.from_numpy(np.array(whole)).float()[None] / 255


def _wrapped(text: str, width: int) -> list[str]:
    """A text in lines of at most so many pixels, as far as its words allow."""
    pen = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and pen.textlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
