"""One loop for the models that are trained here: resumable, exact after a resume, an averaged model as the result."""

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file
from torch import Tensor, nn
from tqdm import tqdm

from ipadapter_core.file.container import write_aside, write_safetensors

SAVE_EVERY = 100  # steps
RESULT, LOSSES, STATE = "result.safetensors", "losses.jsonl", "state.pt"

LossAt = Callable[[nn.Module, torch.Generator], Tensor]


@dataclass(frozen=True)
class Recipe:
    """How one model is trained.

    Attributes:
        learning_rate: at the end of the warm-up; falls to 0 along a cosine.
        average: decay of the running average of the weights, reached after a while.
    """

    steps: int
    learning_rate: float
    weight_decay: float = 0.0
    warmup: int = 100
    average: float = 0.998
    seed: int = 0

    def rate_at(self, step: int) -> float:
        """Share of the learning rate."""
        rise = min(1.0, (step + 1) / self.warmup)
        return rise * 0.5 * (1 + math.cos(math.pi * step / self.steps))


def train(name: str, model: nn.Module, loss_at: LossAt, recipe: Recipe, folder: Path) -> nn.Module:
    """Train a model and leave its averaged weights in it; done at once where FOLDER holds the result.

    A run that was cut off goes on at its last saved step. What is random about a step follows from seed and step alone.

    Args:
        loss_at: (model, generator of the step) -> loss; draws its own batch.
        folder: of `result.safetensors` (float32), `losses.jsonl` (step, loss, seconds), `state.pt`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    result = folder / RESULT
    if result.exists():
        model.load_state_dict(load_file(result))
        return model
    optimizer = torch.optim.AdamW(
        model.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay, betas=(0.9, 0.99), fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, recipe.rate_at)
    averaged = EMAModel(model.parameters(), decay=recipe.average, foreach=True)
    parts = {"model": model, "averaged": averaged, "optimizer": optimizer, "schedule": schedule}
    first, spent = _resume(folder, parts)
    start = time.monotonic() - spent
    with (
        (folder / LOSSES).open("a", encoding="utf-8") as log,
        tqdm(total=recipe.steps, initial=first, desc=name) as bar,
    ):
        for step in range(first, recipe.steps):
            generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
            loss = loss_at(model.train(), generator)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            schedule.step()
            averaged.step(model.parameters())
            seconds = time.monotonic() - start
            log.write(json.dumps({"step": step + 1, "loss": loss.item(), "seconds": round(seconds, 1)}) + "\n")
            bar.set_postfix(loss=f"{loss.item():.4f}", refresh=False)
            bar.update()
            if (step + 1) % SAVE_EVERY == 0:
                log.flush()
                _save(folder, parts, step + 1, seconds)
    averaged.copy_to(model.parameters())
    write_aside(result, lambda path: write_safetensors(path, model.state_dict(), {}))
    (folder / STATE).unlink(missing_ok=True)
    return model


def _save(folder: Path, parts: Mapping[str, Any], step: int, seconds: float) -> None:
    state = {"step": step, "seconds": seconds} | {key: part.state_dict() for key, part in parts.items()}
    write_aside(folder / STATE, lambda path: torch.save(state, path))


def _resume(folder: Path, parts: Mapping[str, Any]) -> tuple[int, float]:
    """Steps done and seconds spent."""
    path = folder / STATE
    if not path.exists():
        return 0, 0.0
    state = torch.load(path, weights_only=True)
    for key, part in parts.items():
        part.load_state_dict(state[key])
    lines = (folder / LOSSES).read_text(encoding="utf-8").splitlines()[: state["step"]]
    (folder / LOSSES).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return state["step"], state["seconds"]
