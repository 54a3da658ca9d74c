"""Resume state: folders `checkpoints/step-00001000` that are complete or not there.

A checkpoint holds the adapter in published form (float32), its moving average, optimiser, schedule, scaler and every
rank's generators (by accelerate), the counters and the config.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from torch import Tensor

from ipadapter_core.errors import IPAdapterError
from ipadapter_core.file.container import read_tensors, sync, write_safetensors

from .config import Config
from .config_file import ConfigError, read_config, write_config
from .models.network import TrainableAdapter
from .sharding import SHARDED

_KIND = "checkpoint"  # in messages
ADAPTER, EMA, COUNTERS, CONFIG, REST = "adapter.safetensors", "ema.safetensors", "state.json", "config.toml", "rest"
BEST = "best.safetensors"  # in the run folder
BEST_STEP = "ipadapter.step"  # in its metadata: whatever rule it was kept by
_PREFIX = "step-"
# What may differ between the run that wrote a checkpoint and the one that goes on from it.
_FREE = frozenset(
    {"train.steps", "train.log_every", "train.trackers", "train.output", "data.workers", "export", "validation"}
    | {"checkpoint", "train.compile", "train.gradient_checkpointing"}
)


class CheckpointError(IPAdapterError):
    """A checkpoint that cannot be used."""


@dataclass
class Counters:
    """How far a run is.

    Attributes:
        step: optimiser steps done.
        samples: samples seen by all processes.
        pairs: records of the data set; None for a stream.
        ema_step: steps of the moving average.
    """

    step: int = 0
    samples: int = 0
    pairs: int | None = None
    ema_step: int = 0


@dataclass(frozen=True, eq=False)
class State:
    """Everything a checkpoint saves and restores."""

    config: Config
    accelerator: Accelerator
    adapter: torch.nn.Module  # as prepared by accelerate
    schedule: Any
    ema: EMAModel | None
    counters: Counters

    def __post_init__(self) -> None:
        self.accelerator.register_for_checkpointing(self.schedule)
        if self.accelerator.distributed_type not in SHARDED:  # the adapter's own file has the weights already
            self.accelerator.register_save_state_pre_hook(_keep_no_weights)
            self.accelerator.register_load_state_pre_hook(_expect_no_weights)

    @property
    def network(self) -> TrainableAdapter:
        network: TrainableAdapter = self.accelerator.unwrap_model(self.adapter)
        return network

    def folder(self, step: int) -> Path:
        return self.config.run / "checkpoints" / f"{_PREFIX}{step:08d}"

    def save(self) -> Path:
        """Write a checkpoint aside, rename it, and delete those beyond `checkpoint.keep`. Every process must call it."""
        final = self.folder(self.counters.step)
        partial = final.with_name(f".{final.name}.partial")
        if self.accelerator.is_main_process and not final.exists():
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        self.accelerator.wait_for_everyone()
        if final.exists():
            return final
        self.accelerator.save_state(str(partial / REST))
        weights = adapter_weights(self.accelerator, self.adapter)
        if self.accelerator.is_main_process:
            self._save_own(partial, weights)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            sync(*partial.rglob("*"), partial)  # so that the rename never comes before the contents
            partial.rename(final)
            sync(final.parent)
            self._delete_old()
        self.accelerator.wait_for_everyone()
        return final

    def restore(self, folder: Path) -> None:
        """Continue from a checkpoint of this run (see `check_same_run`)."""
        stated = json.loads((folder / COUNTERS).read_text(encoding="utf-8"))
        for name, value in stated.items():
            setattr(self.counters, name, value)
        if self.accelerator.distributed_type not in SHARDED:
            self.network.adapter.load_state_dict(read_tensors(folder / ADAPTER, _KIND).tensors)
        self.accelerator.load_state(str(folder / REST))
        if self.ema is not None:
            shadow = read_tensors(folder / EMA, _KIND).tensors
            names = trained_names(self.network)
            state = self.ema.state_dict() | {"optimization_step": self.counters.ema_step}
            self.ema.load_state_dict(state | {"shadow_params": [shadow[name] for name in names]})
            self.ema.to(self.accelerator.device)

    def ema_weights(self) -> dict[str, Tensor]:
        """The adapter's weights with the moving average in place of the trained ones."""
        assert self.ema is not None
        weights = dict(self.network.adapter.state_dict())
        weights.update(zip(trained_names(self.network), self.ema.shadow_params, strict=True))
        return weights

    def _save_own(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        metadata = self.network.spec.to_metadata()
        write_safetensors(folder / ADAPTER, weights, metadata)
        if self.ema is not None:
            self.counters.ema_step = self.ema.optimization_step
            write_safetensors(folder / EMA, self.ema_weights(), metadata)
        write_config(self.config, folder / CONFIG)
        (folder / COUNTERS).write_text(json.dumps(asdict(self.counters)), encoding="utf-8")

    def _delete_old(self) -> None:
        for folder in find_checkpoints(self.config.run)[: -self.config.checkpoint.keep]:
            doomed = folder.rename(folder.with_name(f".{folder.name}.deleted"))  # never half a checkpoint by its name
            shutil.rmtree(doomed)


def find_checkpoints(run: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    return sorted((run / "checkpoints").glob(f"{_PREFIX}*"))


def clean_up(run: Path) -> None:
    """Remove what a killed process left half written or half deleted."""
    for folder in (run / "checkpoints").glob(f".{_PREFIX}*"):
        shutil.rmtree(folder)


def adapter_weights(accelerator: Accelerator, adapter: torch.nn.Module) -> dict[str, Tensor]:
    """Whole weights under published names; every process must call it, the main one gets them."""
    if accelerator.distributed_type in SHARDED:
        state_dict = accelerator.get_state_dict(adapter)
        return {name.removeprefix("adapter."): tensor for name, tensor in (state_dict or {}).items()}
    network: TrainableAdapter = accelerator.unwrap_model(adapter)
    return dict(network.adapter.state_dict())


def trained_names(network: TrainableAdapter) -> list[str]:
    """Published names of the trained tensors, in the order of `trained_parameters`."""
    return [name.removeprefix("adapter.") for name, value in network.named_parameters() if value.requires_grad]


def check_same_run(config: Config, folder: Path) -> None:
    """Raises CheckpointError if a setting differs that changes what is trained."""
    try:
        before = read_config(folder / CONFIG)
    except ConfigError as error:
        raise CheckpointError(
            f"{folder} whose {CONFIG} cannot be read ({error})",
            expected="a checkpoint this version of the trainer wrote",
            action="start a new run in another train.output",
        ) from error
    old, new = _flat(before.model_dump()), _flat(config.model_dump())
    changed = [
        f"{name} was {old.get(name)!r} and is {value!r}"
        for name, value in new.items()
        if old.get(name) != value and not any(name == free or name.startswith(f"{free}.") for free in _FREE)
    ]
    if changed:
        raise CheckpointError(
            f"{folder.parents[1]} holds a run with other settings: {'; '.join(changed)}",
            expected="the same settings when a run goes on",
            action="set them back, or choose another train.output",
        )


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _keep_no_weights(_models: list[Any], weights: list[Any], _folder: str) -> None:
    weights.clear()


def _expect_no_weights(models: list[Any], _folder: str) -> None:
    models.clear()
