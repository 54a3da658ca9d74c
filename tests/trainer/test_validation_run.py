"""Watching a run changes nothing of it."""

import pytest
import torch
from safetensors.torch import load_file

from support.encoders import write_folder
from support.tiny_base import write_base
from support.training import make_config, write_pictures
from trainer.loop import train

WATCHED = {"every": 1, "sample_every": 1, "samples": 1, "sampler_steps": 1, "strengths": [1.0], "timesteps": [500]}
# the same pictures are held out, and looked at after training only
UNWATCHED = {"every": 1000, "timesteps": [500]}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    write_base(folder / "base")
    write_folder("clip", folder / "encoder")
    write_pictures(folder / "pictures", 5)
    trained = {}
    for name, validation in (("watched", WATCHED), ("unwatched", UNWATCHED)):
        config = make_config(
            folder / "base",
            folder / "encoder",
            folder / "pictures",
            folder / name,
            validation={"images": 2, **validation},
            train={"steps": 2},
            optimizer={"ema_decay": 0.5},
        )
        train(config)
        (checkpoint,) = (folder / name / "checkpoints").iterdir()
        trained[name] = load_file(checkpoint / "adapter.safetensors")
    assert len(list((folder / "watched/samples").iterdir())) >= 2
    return trained


def test_training_is_the_same_bit_for_bit_whether_or_not_it_is_watched(weights):
    assert weights["watched"].keys() == weights["unwatched"].keys()
    assert all(torch.equal(tensor, weights["unwatched"][name]) for name, tensor in weights["watched"].items())
