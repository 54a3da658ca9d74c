"""How many sample pictures a run draws, and how long that takes."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import ceil

import torch
from torch import Tensor

from ..backbones.image_prompt import ImagePrompt
from ..config import Config
from ..meter import wait_for
from .sampling import Reference, Sampler, Share, sample_grid

_STEPS = 2  # the first is slower, and not counted


def sample_pace(
    config: Config,
    sampler: Sampler,
    references: Sequence[Reference],
    adapter: Callable[..., ImagePrompt],
    no_image: Mapping[str, Tensor],
    processes: int,
) -> dict[str, object]:
    """Counts of all that is drawn in a run, and hours from drawing a few pictures with two denoising steps.

    Args:
        references: what is drawn at each turn, as `open_drawing` gives it.
        adapter, no_image: as `sample_grid` wants them.
        processes: that share the drawing.
    """
    steps, every, settings = config.train.steps, config.validation.sample_every, sampler.settings
    assert every is not None
    times = 1 + ceil(steps / every)
    texts, strengths = len(config.validation.texts), len(settings.strengths)
    together = settings.rows_together(len(references), Share(size=processes))
    step, rest = _seconds(sampler, references[:together], adapter, no_image)
    turns = ceil(ceil(len(references) / together) / processes) * strengths if references else 0
    hours = turns * (settings.steps * step + rest) / 3600
    return {
        "references": len(references) // texts,
        "texts": texts,
        "strengths": strengths,
        "pictures": len(references) * strengths,
        "times": times,
        "hours_each_time": hours,
        "hours": times * hours,
    }


def _seconds(
    sampler: Sampler,
    references: Sequence[Reference],
    adapter: Callable[..., ImagePrompt],
    no_image: Mapping[str, Tensor],
) -> tuple[float, float]:
    """Of a denoising step of these references at full strength, and of what comes after the last."""
    if not references:
        return 0.0, 0.0
    at: list[float] = []

    def note(_: object = None) -> None:
        wait_for(sampler.base.device)
        at.append(time.perf_counter())

    settings = replace(sampler.settings, steps=_STEPS, strengths=(1.0,), batch_size=len(references))
    with torch.no_grad():
        sample_grid(Sampler(sampler.base, settings, sampler.negative), adapter, no_image, references, note)
    note()
    first, last, end = at[-3:]
    return last - first, end - last
