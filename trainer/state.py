"""Resume state: folders `checkpoints/step-00001000` that are complete or not there.

A checkpoint holds the adapter in published form (float32), its moving average, optimiser, schedule, scaler and every
rank's generators (by accelerate), the counters, the config, and what the run is (`RunIdentity`).
"""

import json
import logging
import shlex
import shutil
from collections.abc import Callable, Mapping
from contextlib import nullcontext
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
from .models.network import TrainableAdapter, published_name
from .resume.earlier import differences_by_name
from .resume.identify import default_settings
from .resume.identity import Difference, RunIdentity
from .resume.pickles import check_pickles, tensors_only
from .resume.sums import FILES, SUM, changed_files, file_sums, is_whole, sealed
from .sharding import SHARDED
from .storage import GOES_ON, StorageError, storage

_KIND = "checkpoint"  # in messages
ADAPTER, EMA, COUNTERS, CONFIG, REST = "adapter.safetensors", "ema.safetensors", "state.json", "config.toml", "rest"
IDENTITY = "identity.json"
BEST = "best.safetensors"  # in the run folder
BEST_STEP = "ipadapter.step"  # in its metadata: whatever rule it was kept by
_PREFIX = "step-"
_SCALER = "scaler.pt"
_OF_CONFIG = ("lr", "initial_lr", "weight_decay", "betas")  # of an optimiser's groups: those of the session that runs
_LARGEST = torch.finfo(torch.float16).max  # what is exported; weights of use are far below
_NO_NUMBERS = "no numbers any more, or too large for float16"
logger = logging.getLogger(__name__)


class CheckpointError(IPAdapterError):
    """A checkpoint that cannot be used."""


class DivergedError(IPAdapterError):
    """The loss, or the weights, are no numbers any more."""


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
    """Everything a checkpoint saves and restores.

    Attributes:
        adapter, optimizer: as prepared by accelerate.
        identity: finds out what the run is, once; first while the models have all their parts.
    """

    config: Config
    accelerator: Accelerator
    adapter: torch.nn.Module
    optimizer: Any
    schedule: Any
    ema: EMAModel | None
    counters: Counters
    identity: Callable[[], RunIdentity]

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
        """Write a checkpoint aside, rename it, and delete those beyond `checkpoint.keep`. Every process must call it.

        Raises:
            DivergedError: a weight is no finite number. Nothing is written.
        """
        self._check_finite()
        final = self.folder(self.counters.step)
        partial = final.with_name(f".{final.name}.partial")
        if self.accelerator.is_main_process and not final.exists():
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        self.accelerator.wait_for_everyone()
        if final.exists():
            return final
        try:
            with storage(f"the checkpoint of step {self.counters.step}", final, goes_on=GOES_ON):
                self._write(partial, final)
        except StorageError:
            shutil.rmtree(partial, ignore_errors=True)  # its room is needed
            raise
        return final

    def _write(self, partial: Path, final: Path) -> None:
        self.accelerator.save_state(str(partial / REST))
        weights = adapter_weights(self.accelerator, self.adapter)
        if self.accelerator.is_main_process:
            self._save_own(partial, weights)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            note = {**asdict(self.counters), FILES: file_sums(partial)}  # of all processes' files
            (partial / COUNTERS).write_text(json.dumps(sealed(note)), encoding="utf-8")
            sync(*partial.rglob("*"), partial)  # so that the rename never comes before the contents
            partial.rename(final)
            sync(final.parent)
            self._delete_old()
        self.accelerator.wait_for_everyone()

    def restore(self, folder: Path) -> None:
        """Continue from a checkpoint of this run (see `check_same_run`), with this session's learning rate and the like."""
        stated = _counters(folder)
        for name in ("step", "samples", "ema_step"):
            setattr(self.counters, name, stated[name])
        if self.accelerator.distributed_type not in SHARDED:
            self.network.load_published(_finite_weights(folder))
        settings = [
            {name: group[name] for name in _OF_CONFIG if name in group} for group in self.optimizer.param_groups
        ]
        base_rates = list(self.schedule.base_lrs)
        self._restore_rest(folder / REST)
        for group, own in zip(self.optimizer.param_groups, settings, strict=True):
            group.update(own)
        self._set_rates(base_rates)
        self._restore_average(folder / EMA)

    def _restore_rest(self, folder: Path) -> None:
        check_pickles(folder, _not_ours)
        scaler = self.accelerator.scaler
        if not (folder / _SCALER).is_file():  # saved with another precision
            self.accelerator.scaler = None
        with tensors_only(folder, _not_ours) if self.accelerator.distributed_type in SHARDED else nullcontext():
            self.accelerator.load_state(str(folder))
        self.accelerator.scaler = scaler
        self.accelerator.step = 0  # forwards since the last optimiser step, which train.accumulate may count otherwise

    def _set_rates(self, base_rates: list[float]) -> None:
        """Learning rates by this session's schedule, at the step that was restored."""
        factors = [factor(self.schedule.last_epoch) for factor in self.schedule.lr_lambdas]
        rates = [base * factor for base, factor in zip(base_rates, factors, strict=True)]
        self.schedule.load_state_dict(self.schedule.state_dict() | {"base_lrs": base_rates, "_last_lr": rates})
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate

    def _restore_average(self, file: Path) -> None:
        if self.ema is None:
            return
        names = trained_names(self.network)
        if file.is_file():
            shadow = read_tensors(file, _KIND).tensors
        else:  # it begins here
            self.counters.ema_step = 0
            shadow = {name: value.clone() for name, value in self.network.published().items()}
        state = self.ema.state_dict() | {"optimization_step": self.counters.ema_step}
        self.ema.load_state_dict(state | {"shadow_params": [shadow[name] for name in names]})
        self.ema.to(self.accelerator.device)

    def ema_weights(self) -> dict[str, Tensor]:
        """The adapter's weights with the moving average in place of the trained ones."""
        assert self.ema is not None
        weights = self.network.published()
        weights.update(zip(trained_names(self.network), self.ema.shadow_params, strict=True))
        return weights

    def _check_finite(self) -> None:
        parameters = (parameter.detach() for parameter in self.adapter.parameters() if parameter.requires_grad)
        own = (part.to_local() if hasattr(part, "to_local") else part for part in parameters)  # FSDP's have one
        lost = torch.stack([~_are_numbers(part) for part in own]).any()
        if self.accelerator.reduce(lost.float()).item():
            raise diverged(self.config.run, f"weights that are {_NO_NUMBERS}, at step {self.counters.step}")

    def _save_own(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        metadata = self.network.metadata
        write_safetensors(folder / ADAPTER, weights, metadata)
        if self.ema is not None:
            self.counters.ema_step = self.ema.optimization_step
            write_safetensors(folder / EMA, self.ema_weights(), metadata)
        write_config(self.config, folder / CONFIG)
        (folder / IDENTITY).write_text(json.dumps(self.identity().to_json()), encoding="utf-8")

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
        return {published_name(name): tensor for name, tensor in (state_dict or {}).items()}
    network: TrainableAdapter = accelerator.unwrap_model(adapter)
    return network.published()


def trained_names(network: TrainableAdapter) -> list[str]:
    """Published names of the trained tensors, in the order of `trained_parameters`."""
    return [published_name(name) for name, value in network.named_parameters() if value.requires_grad]


def _not_ours(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{path} asks to run code, or is damaged ({reason.rstrip('.')})",
        expected="a checkpoint as this trainer writes it",
        action="delete its step's folder: the run then goes on from the one before. If somebody else made this run, "
        "take its adapter.safetensors alone",
    )


def check_files(folder: Path, *names: str) -> None:
    """Read the files of a checkpoint, or those named, again. Of an earlier version's nobody noted what they were.

    Raises:
        CheckpointError: one is missing, or not as it was written.
    """
    note = _counters(folder)
    if FILES not in note and SUM not in note:
        return
    damaged = None if FILES in note and is_whole(note) else (folder / COUNTERS, "is not as it was written")
    if damaged is None:
        wanted = {name: value for name, value in note[FILES].items() if not names or name in names}
        damaged = next(changed_files(folder, wanted), None)
    if damaged is not None:
        path, problem = damaged
        raise CheckpointError(
            f"{path}, which {problem}",
            expected="the files that were saved",
            action=_without(folder),
        )


def check_last_checkpoint(config: Config, identity: RunIdentity) -> None:
    """Raises CheckpointError if a run's folder has a checkpoint to go on from that is damaged or of another run."""
    for checkpoint in find_checkpoints(config.run)[-1:]:
        check_files(checkpoint)
        check_same_run(identity, config, checkpoint)


def check_same_run(identity: RunIdentity, config: Config, folder: Path) -> None:
    """Raises CheckpointError if a checkpoint is of a run that is another in some fact."""
    fits = True
    if (folder / IDENTITY).is_file():
        before = _read_identity(folder)
        fits = identity.fits(before)
        differences = list(identity.differences(before, default_settings()))
    else:
        differences = list(differences_by_name(identity, config, _read_config(folder), _counters(folder)))
        if not differences:
            logger.warning(
                "%s was written by an earlier version, which noted neither weights nor pictures: going on, as paths, "
                "settings and numbers are the same%s",
                folder,
                "" if identity.forward_samples is None else "; the pictures come in the order of this version",
            )
    if differences:
        raise CheckpointError(
            f"{folder.parents[1]} holds a run that is another: {'; '.join(one.found for one in differences)}",
            expected="the same run when it goes on",
            action=f"{_joined(differences)}; or begin another run"
            + (
                f" with the weights of this one: `ipadapter train CONFIG --restart-from {shlex.quote(str(folder))} "
                "--set train.output=ANOTHER_FOLDER`"
                if fits
                else ": `ipadapter train CONFIG --set train.output=ANOTHER_FOLDER`"
            ),
        )


def _joined(differences: list[Difference]) -> str:
    return "; ".join(dict.fromkeys(one.remedy for one in differences))


def _read_identity(folder: Path) -> RunIdentity:
    try:
        return RunIdentity.from_json(json.loads((folder / IDENTITY).read_text(encoding="utf-8")))
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise _unreadable(folder, IDENTITY, error) from error


def _read_config(folder: Path) -> Config:
    try:
        return read_config(folder / CONFIG)
    except ConfigError as error:
        raise _unreadable(folder, CONFIG, error) from error


def _counters(folder: Path) -> dict[str, Any]:
    try:
        stated = json.loads((folder / COUNTERS).read_text(encoding="utf-8"))
        return {**asdict(Counters()), **{name: stated[name] for name in ("step", "samples")}, **stated}
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise _unreadable(folder, COUNTERS, error) from error


def _unreadable(folder: Path, name: str, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{folder / name}, which cannot be read ({type(error).__name__}: {error})",
        expected="a checkpoint as this version of the trainer wrote it",
        action=_without(folder),
    )


def diverged(run: Path, found: str) -> DivergedError:
    """What is found when training has gone astray, and from where it can go on."""
    good = next(filter(_is_good, reversed(find_checkpoints(run))), None)
    return DivergedError(
        found,
        expected="finite numbers",
        action="lower optimizer.learning_rate, or set base.precision to bf16; "
        + (f"the run then goes on from the last good checkpoint, {good}" if good else "no checkpoint is good yet"),
    )


def _is_good(folder: Path) -> bool:
    try:
        _finite_weights(folder)
    except IPAdapterError:
        return False
    return True


def _finite_weights(folder: Path) -> dict[str, Tensor]:
    """The trained weights of a checkpoint. Raises CheckpointError, UnreadableFileError."""
    tensors = read_tensors(folder / ADAPTER, _KIND).tensors
    if not all(map(_are_numbers, tensors.values())):
        raise CheckpointError(
            f"{folder / ADAPTER}, whose weights are {_NO_NUMBERS}",
            expected="finite numbers",
            action=_without(folder),
        )
    return tensors


def _are_numbers(tensor: Tensor) -> Tensor:
    return (tensor.abs() <= _LARGEST).all()  # false for NaN as well


def _without(folder: Path) -> str:
    return f"delete the folder {folder}; the run then goes on from the checkpoint before it, if there is one"


def _keep_no_weights(_models: list[Any], weights: list[Any], _folder: str) -> None:
    weights.clear()


def _expect_no_weights(models: list[Any], _folder: str) -> None:
    models.clear()
