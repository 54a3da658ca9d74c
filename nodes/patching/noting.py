"""What is noted of an image branch for who records it (`Recording`); nothing, and at no cost, where nobody does."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from ...ipadapter_core.branch.plan import PatchPlan
from ...ipadapter_core.branch.recording import Addition, Shown

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


def before_guard(step: "Step", plan: PatchPlan, out: Tensor) -> Tensor | None:
    """What something is added to, to be compared with what comes out; None where a recording does not need it."""
    return out.clone() if step.run.recording is not None and plan.guard.changes_branch else None


def held_back(out: Tensor, before: Tensor | None, first: int, length: int) -> Tensor | None:
    """What was added to tokens `first` to `first` + `length` since `before_guard`; None where that said so."""
    return None if before is None else (out - before)[:, first : first + length]


def note(step: "Step", made: Addition, grid: Sequence[int], covers: Sequence[int]) -> None:
    """As `Recording.add`; `grid` and `covers` are those of `Shown`."""
    recording = step.run.recording
    if recording is None:
        return
    if step.is_partial or not all((*step.size, *grid)):
        recording.fault = "another node shows the model a part of the picture, and nobody says which"
        return
    shown = Shown(step.evaluation, step.frames, step.size, (grid[0], grid[1]), (covers[0], covers[1]))
    recording.add(made, shown, step.level)


def note_patches(step: "Step", made: Addition, patch_size: int) -> None:
    """As `note`, where tokens are patches of the latent, `patch_size` of its cells on a side."""
    grid = [-(-size // patch_size) for size in step.size]
    note(step, made, grid, [size * patch_size for size in grid])
