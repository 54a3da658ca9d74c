"""Repairing the numbers of attention sites, as hand-written conversions get them wrong.

Right is 1, 3, 5 … in the order down blocks, up blocks, middle block.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

from torch import Tensor

_PROJECTION = re.compile(r"to_([kv])_ip\.weight")
# Sites in the down, middle and up part of a UNet, by their number: SD1.5 and SD2.x; SDXL.
_LAYOUTS = {16: (6, 1, 9), 70: (24, 10, 36)}


def repair_numbers(sites: Mapping[tuple[int, str], Tensor]) -> tuple[dict[tuple[int, str], Tensor], list[str]]:
    """Sites under right numbers, and a note for each thing that was wrong.

    What cannot be told with certainty is left as it is: the core then says what does not fit.
    """
    notes: list[str] = []
    parts: dict[str, dict[int, Tensor]] = {"k": {}, "v": {}}
    for (number, name), tensor in sites.items():
        match = _PROJECTION.fullmatch(name)
        if match is None:  # FaceID's LoRA uses the even numbers
            return dict(sites), notes
        parts[match[1]][number] = tensor
    total = len(parts["k"])
    right = list(range(1, 2 * total, 2))
    if total != len(parts["v"]) or not all(_is_counter(sorted(numbers)) for numbers in parts.values()):
        return dict(sites), notes
    if any(sorted(numbers) != right for numbers in parts.values()):
        notes.append(f"attention layers were numbered {_shown(parts['k'])}, not 1, 3, 5 …")
    ordered = {part: [numbers[number] for number in sorted(numbers)] for part, numbers in parts.items()}
    wrong = _wrong_order([tensor.shape[0] for tensor in ordered["k"]])
    if wrong is not None:
        why, order = wrong
        notes.append(f"attention layers were in another order ({why}), as their widths show")
        ordered = {part: [tensors[old] for old in order] for part, tensors in ordered.items()}
    return {
        (2 * site + 1, f"to_{part}_ip.weight"): tensor
        for part, tensors in ordered.items()
        for site, tensor in enumerate(tensors)
    }, notes


def _is_counter(numbers: Sequence[int]) -> bool:
    """0 or 1 and on in steps of 1 or 2: nothing is missing in between."""
    steps = {after - before for before, after in pairwise(numbers)}
    return bool(numbers) and numbers[0] in (0, 1) and (not steps or steps in ({1}, {2}))


def _wrong_order(widths: Sequence[int]) -> tuple[str, list[int]] | None:
    """Why an order is wrong, and which old place each site of the right one has; None if nothing shows it."""
    layout = _LAYOUTS.get(len(widths))
    if layout is None or _is_unet(widths, layout):
        return None
    for why, mistake in _MISTAKES.items():
        order = mistake(layout)
        if _is_unet([widths[old] for old in order], layout):
            return why, order
    return None


def _is_unet(widths: Sequence[int], layout: tuple[int, int, int]) -> bool:
    """Wider on the way down, narrower on the way up, widest in the middle."""
    num_down, num_middle, _ = layout
    down, up, middle = widths[:num_down], widths[num_down:-num_middle], widths[-num_middle:]
    return (
        list(down) == sorted(down)
        and list(up) == sorted(up, reverse=True)
        and set(middle) == {max(widths)}
        and set(down) == set(up)
    )


def _middle_first(layout: tuple[int, int, int]) -> list[int]:
    num_down, num_middle, num_up = layout
    start = num_down + num_middle
    return [*range(num_down), *range(start, start + num_up), *range(num_down, start)]


def _as_text(layout: tuple[int, int, int]) -> list[int]:
    by_text = sorted(range(1, 2 * sum(layout), 2), key=str)
    return [by_text.index(number) for number in range(1, 2 * sum(layout), 2)]


_MISTAKES: dict[str, Callable[[tuple[int, int, int]], list[int]]] = {
    "names sorted, which puts the middle block before the up blocks": _middle_first,
    "numbers sorted as text, which puts 11 before 3": _as_text,
}


def _shown(numbers: Mapping[int, Tensor]) -> str:
    return ", ".join(map(str, sorted(numbers)[:3])) + " …"
