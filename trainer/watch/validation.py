"""Validation loss on a fixed grid of picture, timestep and noise, under the true, no and another picture's reference.

Training loss says little: its noise over timesteps hides all progress. Here everything random is fixed, so that two
steps of a run differ by the weights alone, and what the true reference is worth over a wrong one tells whether the
adapter looks at it at all.
"""

# I pictures, T timesteps, R kinds of reference, B cells of a batch, C latent channels, h w latent size

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import torch
from torch import Tensor, nn

from ipadapter_core.errors import BadInputError

from .. import named
from ..batch import Batch
from ..draws import sample_generator
from ..objective import Condition, Objective

TRUE, NULL, SHUFFLED = range(3)
_NUM_TIMESTEPS = 1000
_LEAST_PICTURES = 2
_CPU = torch.device("cpu")


@dataclass(frozen=True, eq=False)
class ValidationGrid:
    """Pictures and what conditions them, on the CPU; noise follows from seed, picture and timestep.

    Attributes:
        pictures: one `Condition` of batch size 1 each; sizes may differ.
        masks: of the loss, (1, 1, h, w), or None.
        timesteps: each picture is tried at each.
    """

    pictures: tuple[Condition, ...]
    masks: tuple[Tensor | None, ...]
    timesteps: tuple[int, ...]
    seed: int

    def noise(self, picture: int, timestep: int) -> Tensor:
        """(1, C, h, w), standard normal."""
        generator = sample_generator(self.seed, picture * _NUM_TIMESTEPS + timestep, "validation")
        return torch.randn(self.pictures[picture].latents.shape, generator=generator)

    def other(self, picture: int) -> int:
        """The picture whose reference is used in the shuffled grid: never itself, and far from it in the data."""
        return (picture + len(self.pictures) // 2) % len(self.pictures)


@dataclass(frozen=True)
class ValidationLosses:
    """Means over the grid.

    Attributes:
        true, null, shuffled: loss with the picture's own reference, without one, with another picture's.
        gap_null, gap_shuffled: what the true reference gains over these; near 0: the reference is not used.
        gap_error: standard error of gap_shuffled over the pictures.
        pictures: how many these are means over.
        per_timestep, gap_per_timestep: true loss and gap_shuffled, by timestep.

    The fields' names are those of a "validation" record in metrics.jsonl.
    """

    true: float
    null: float
    shuffled: float
    gap_null: float
    gap_shuffled: float
    gap_error: float
    pictures: int
    per_timestep: dict[int, float]
    gap_per_timestep: dict[int, float]


def build_grid(
    batches: Iterable[Batch], objective: Objective, *, timesteps: Sequence[int], seed: int
) -> ValidationGrid:
    """Encode held-out pictures once.

    Args:
        batches: of any size, drawn without dropping text; what they say about images dropped is ignored.
        objective: gives latents (mean, not sampled), features and text.

    Raises:
        BadInputError: fewer than two pictures, so that none can stand for a wrong reference.
    """
    pictures: list[Condition] = []
    masks: list[Tensor | None] = []
    for batch in batches:
        kept = replace(
            batch,
            latent_noise=torch.zeros_like(batch.latent_noise),
            drop_image=torch.zeros_like(batch.drop_image),
        )
        condition = objective.condition(kept.to(objective.base.device))
        for index in range(len(batch.positions)):
            pictures.append(_on(_row(condition, index), _CPU))
            masks.append(None if batch.loss_mask is None else batch.loss_mask[index : index + 1].cpu())
    if len(pictures) < _LEAST_PICTURES:
        raise BadInputError(
            f"{len(pictures)} validation pictures",
            expected=f"at least {_LEAST_PICTURES}: the reference of another one is the control",
            action="raise validation.images, or add pictures to validation.path",
        )
    return ValidationGrid(tuple(pictures), tuple(masks), tuple(timesteps), seed)


@torch.no_grad()
def validate(
    grid: ValidationGrid,
    adapter: nn.Module,
    objective: Objective,
    *,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    total: Callable[[Tensor], Tensor] = lambda values: values,
) -> ValidationLosses:
    """Losses over the whole grid, the cells shared out over the processes.

    Draws nothing from the global generators, and leaves the adapter in the mode it was in. Every process runs the same
    number of forwards, as a sharded adapter needs.

    Args:
        adapter: maps features to K/V, as `Objective.losses` wants it.
        batch_size: cells per forward.
        rank, world_size: this process and how many there are.
        total: sums a tensor over the processes; `accelerator.reduce`.
    """
    batches = list(_batches(grid, batch_size))
    mine = [(*batches[number % len(batches)], number < len(batches)) for number in _share(batches, rank, world_size)]
    was_training = adapter.training
    adapter.eval()
    try:
        losses = [_losses(grid, kind, cells, adapter, objective) for kind, cells, _ in mine]
    finally:
        adapter.train(was_training)
    table = torch.zeros(3, len(grid.pictures), len(grid.timesteps))  # (R, I, T)
    for (kind, cells, counts), values in zip(mine, losses, strict=True):
        if counts:
            pictures, columns = zip(*cells, strict=True)
            table[kind, list(pictures), list(columns)] = values.float().cpu()
    return _summary(total(table.to(objective.base.device)).cpu().double(), grid.timesteps)


Cells = tuple[tuple[int, int], ...]  # picture, column of the timestep


def _batches(grid: ValidationGrid, batch_size: int) -> Iterator[tuple[int, Cells]]:
    """Cells that fit in one tensor, by kind of reference."""
    order = sorted(range(len(grid.pictures)), key=lambda picture: grid.pictures[picture].latents.shape)
    for kind in (TRUE, NULL, SHUFFLED):
        for _, alike in groupby(order, key=lambda picture: grid.pictures[picture].latents.shape):
            cells = [(picture, column) for picture in alike for column in range(len(grid.timesteps))]
            for start in range(0, len(cells), batch_size):
                yield kind, tuple(cells[start : start + batch_size])


def _share(batches: Sequence[object], rank: int, world_size: int) -> range:
    """Numbers of this process's batches; the last ones go past the end where they do not come out even."""
    return range(rank, -(-len(batches) // world_size) * world_size, world_size)


def _losses(grid: ValidationGrid, kind: int, cells: Cells, adapter: nn.Module, objective: Objective) -> Tensor:
    device = objective.base.device
    pictures = [picture for picture, _ in cells]
    features = [grid.pictures[grid.other(picture) if kind == SHUFFLED else picture].features for picture in pictures]
    condition = _on(_stack([grid.pictures[picture] for picture in pictures], named.joined(features)), device)
    if kind == NULL:
        everyone = torch.ones(len(cells), dtype=torch.bool, device=device)
        condition = replace(condition, features=objective.drop(condition.features, everyone))
    timesteps = [grid.timesteps[column] for _, column in cells]
    noise = torch.cat([grid.noise(picture, timestep) for picture, timestep in zip(pictures, timesteps, strict=True)])
    masks = [mask for picture in pictures if (mask := grid.masks[picture]) is not None]
    return objective.losses(
        adapter,
        condition,
        noise.to(device),
        torch.tensor(timesteps, device=device) / _NUM_TIMESTEPS,
        torch.cat(masks).to(device) if masks else None,
    )


def _summary(table: Tensor, timesteps: tuple[int, ...]) -> ValidationLosses:
    """From (R, I, T)."""
    gap = table[SHUFFLED] - table[TRUE]
    true, null, shuffled = table.mean(dim=(1, 2)).tolist()
    return ValidationLosses(
        true=true,
        null=null,
        shuffled=shuffled,
        gap_null=null - true,
        gap_shuffled=shuffled - true,
        gap_error=(gap.mean(dim=1).std() / len(gap) ** 0.5).item(),
        pictures=len(gap),
        per_timestep=dict(zip(timesteps, table[TRUE].mean(dim=0).tolist(), strict=True)),
        gap_per_timestep=dict(zip(timesteps, gap.mean(dim=0).tolist(), strict=True)),
    )


def _stack(pictures: Sequence[Condition], features: Mapping[str, Tensor]) -> Condition:
    return Condition(
        latents=torch.cat([picture.latents for picture in pictures]),
        text=named.joined([picture.text for picture in pictures]),
        sizes=torch.cat([picture.sizes for picture in pictures]),
        features=features,
    )


def _row(condition: Condition, index: int) -> Condition:
    return _each(condition, lambda tensor: tensor[index : index + 1])


def _on(condition: Condition, device: torch.device) -> Condition:
    return _each(condition, lambda tensor: tensor.to(device))


def _each(condition: Condition, change: Callable[[Tensor], Tensor]) -> Condition:
    return Condition(
        latents=change(condition.latents),
        text=named.each(condition.text, change),
        sizes=change(condition.sizes),
        features=named.each(condition.features, change),
    )
