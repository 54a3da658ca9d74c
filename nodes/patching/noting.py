"""What is noted of an image branch for who records it (`Recording`); nothing, and at no cost, where nobody does."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from ...ipadapter_core.branch.plan import PatchPlan
from ...ipadapter_core.branch.recording import Shown
from ...ipadapter_core.branch.rows import Rows

if TYPE_CHECKING:
    from .run import Step


def parts_of(
    step: "Step", plan: PatchPlan, slot: int, value: Tensor, attend: Callable[[Tensor], Tensor]
) -> tuple[Tensor, ...]:
    """As `Recording.parts`; none where nobody records.

    Args:
        value: of the image tokens, (…, T, D).
    """
    recording = step.run.recording
    return () if recording is None else recording.parts(plan, slot, value, attend)


def note(
    step: "Step",
    plan: PatchPlan,
    slot: int,
    rows: Rows,
    image: Tensor,
    parts: Sequence[Tensor],
    weight: Tensor | None,
    grid: Sequence[int],
    covers: Sequence[int],
) -> None:
    """As `Recording.add`; `grid` and `covers` are those of `Shown`."""
    recording = step.run.recording
    if recording is None:
        return
    if step.is_partial or not all((*step.size, *grid)):
        recording.fault = "another node shows the model a part of the picture, and nobody says which"
        return
    shown = Shown(step.evaluation, step.frames, step.size, (grid[0], grid[1]), (covers[0], covers[1]))
    recording.add(plan, slot, rows, shown, step.level, image, parts, weight)


def note_patches(
    step: "Step",
    plan: PatchPlan,
    slot: int,
    rows: Rows,
    image: Tensor,
    parts: Sequence[Tensor],
    weight: Tensor | None,
    patch_size: int,
) -> None:
    """As `note`, where tokens are patches of the latent, `patch_size` of its cells on a side."""
    grid = [-(-size // patch_size) for size in step.size]
    note(step, plan, slot, rows, image, parts, weight, grid, [size * patch_size for size in grid])
