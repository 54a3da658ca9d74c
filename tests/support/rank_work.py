"""What `test_processes.py` runs in several processes; imported there, so nothing of pytest is here."""

import os
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from PIL import Image

from ipadapter_trainer.config import Config
from ipadapter_trainer.loop import train
from ipadapter_trainer.resume.occupancy import OccupiedError, occupied
from ipadapter_trainer.watch.sampling import Sampler


def train_and_note(config: Config, notes: Path) -> None:
    """Train; `notes` gets a file for each batch of pictures drawn: process and pictures in its name."""
    torch.set_num_threads(1)
    rank, draw = os.environ["RANK"], Sampler.draw

    def noted(self: Sampler, noise: torch.Tensor, *given: Any) -> list[Image.Image]:
        (notes / f"{rank} {len(noise)} {len(list(notes.iterdir()))}").touch()
        return draw(self, noise, *given)

    Sampler.draw = noted  # type: ignore[method-assign]
    train(config)


def train_sharded(config: Config) -> None:
    """Train as FSDP of version 2 does on GPUs, each process with a part of the weights; accelerate wants GPUs for it."""
    torch.set_num_threads(1)
    os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT"}
    os.environ |= {"FSDP_AUTO_WRAP_POLICY": "NO_WRAP", "FSDP_RESHARD_AFTER_FORWARD": "true"}
    PartialState(cpu=True)
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    train(config)
    assert AcceleratorState().distributed_type is DistributedType.FSDP


def train_with_deepspeed(config: Config) -> None:
    """Train as DeepSpeed ZeRO-2 does on GPUs: gradients and optimiser in parts, accelerate wants GPUs for it."""
    torch.set_num_threads(1)
    os.environ |= {"DS_ACCELERATOR": "cpu", "ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}
    PartialState(cpu=True)
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    del os.environ["ACCELERATE_USE_CPU"]
    train(config)
    assert AcceleratorState().distributed_type is DistributedType.DEEPSPEED


def hold(run: Path, held: Path) -> None:
    """Hold a run folder in every process, and note that, or that its message is said."""
    try:
        with occupied(run):
            (held / os.environ["RANK"]).touch()
    except OccupiedError:
        (held / f"{os.environ['RANK']} says why").touch()
        raise
