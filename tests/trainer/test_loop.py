"""A run goes on after any interruption as if there had been none."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ipadapter_core.file.container import read_tensors
from ipadapter_trainer.config import Config
from ipadapter_trainer.loop import train
from ipadapter_trainer.metrics_log import read_records
from ipadapter_trainer.state import DivergedError, find_checkpoints
from support.training import make_config, write_pictures

WATCHED = {"every": 2, "images": 2, "sample_every": 3, "samples": 1, "sampler_steps": 1}
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "plain": {},
    "average, schedule and accumulation": {
        "optimizer": {"ema_decay": 0.9, "schedule": "cosine", "warmup_steps": 2},
        "train": {"accumulate": 2},
    },
    "prodigy": {"optimizer": {"name": "prodigy", "learning_rate": 1.0}},
    "adafactor": {"optimizer": {"name": "adafactor"}},
    "augmented, from workers": {
        "data": {"workers": 2, "crop": "random", "flip": 0.5, "augment": {"color": 0.5, "flip": 0.5}},
        "objective": {"noise_offset": 0.1, "drop_image": 0.3},
    },
    "another objective": {
        "objective": {
            "huber_c": 0.1,
            "huber_schedule": "exponential",
            "debiased": True,
            "pyramid_noise": 0.9,
            "input_perturbation": 0.1,
            "timestep_sampling": "sigmoid",
        },
    },
}


@pytest.fixture
def config(tmp_path: Path, small_base_folder: Callable[..., Path], encoder_folder: Callable[[str], Path]) -> Any:
    pictures = write_pictures(tmp_path / "pictures")

    def make(run: str, **changes: dict[str, Any]) -> Config:
        return make_config(small_base_folder(), encoder_folder("clip"), pictures, tmp_path / run, **changes)

    return make


def with_steps(changes: dict[str, dict[str, Any]], steps: int) -> dict[str, dict[str, Any]]:
    return {**changes, "train": {**changes.get("train", {}), "steps": steps}}


def final_tensors(config: Config) -> dict[str, torch.Tensor]:
    checkpoint = find_checkpoints(config.run)[-1]
    files = [checkpoint / "adapter.safetensors", *checkpoint.glob("ema.safetensors")]
    return {f"{file.name}/{name}": value for file in files for name, value in read_tensors(file).tensors.items()}


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param(changes, id=name, marks=[] if name == "average, schedule and accumulation" else pytest.mark.long)
        for name, changes in VARIANTS.items()
    ],
)
def test_resumed_run_equals_an_uninterrupted_one_bit_for_bit(config: Any, changes: dict[str, dict[str, Any]]) -> None:
    whole = config("whole", **with_steps(changes, 5))
    outcome = train(whole)
    part = config("part", **with_steps({**changes, "checkpoint": {"every": 3}}, 5))
    # stopping at 3 by its own steps would change what a cosine schedule aims at, so the run is cut off instead
    cut = Interrupted(3)
    with pytest.raises(KeyboardInterrupt), cut:
        train(part)
    resumed = train(part)
    wanted, given = final_tensors(whole), final_tensors(part)
    assert wanted.keys() == given.keys()
    assert all(torch.equal(wanted[name], given[name]) for name in wanted)
    assert resumed.losses == outcome.losses[-len(resumed.losses) :]
    assert resumed.samples == outcome.samples


class Interrupted:
    """Ends training right after the checkpoint of a step, as a power cut would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def __enter__(self) -> None:
        from ipadapter_trainer.state import State

        self.save = State.save

        def save_and_die(state: State) -> Path:
            path = self.save(state)
            if state.counters.step == self.step:
                raise KeyboardInterrupt
            return path

        State.save = save_and_die  # type: ignore[method-assign]

    def __exit__(self, *_: object) -> None:
        from ipadapter_trainer.state import State

        State.save = self.save  # type: ignore[method-assign]


@pytest.mark.long
def test_watching_changes_nothing(config: Any) -> None:
    """Validation, pictures and the report draw from no generator that training uses."""
    averaged = {"optimizer": {"ema_decay": 0.5}}
    plain = config("plain", validation={"images": 2, "every": 100}, **averaged)
    watched = config("watched", validation=WATCHED, **averaged)
    train(plain)
    train(watched)
    wanted, given = final_tensors(plain), final_tensors(watched)
    assert all(torch.equal(wanted[name], given[name]) for name in wanted)
    kinds = [(record["step"], record["kind"]) for record in read_records(watched.run)]
    assert [step for step, kind in kinds if kind == "validation"] == [0, 2, 4]
    assert [step for step, kind in kinds if kind == "samples"] == [0, 3, 4]
    assert (watched.run / "report.html").is_file()
    assert (watched.run / "best.safetensors").is_file()


def test_average_is_what_is_validated(config: Any) -> None:
    """With a decay near 1 the average stays at the start, and so does its validation loss."""
    slow = {"ema_decay": 0.99999999, "learning_rate": 0.01}
    at_both_ends = {"every": 4, "images": 2}
    averaged = config("averaged", validation=at_both_ends, optimizer=slow)
    trained = config("trained", validation=at_both_ends, optimizer={"learning_rate": 0.01})
    for one in (averaged, trained):
        train(one)
    moved = [
        abs(losses[-1] - losses[0])
        for losses in (
            [record["true"] for record in read_records(one.run) if record["kind"] == "validation"]
            for one in (averaged, trained)
        )
    ]
    assert moved[1] > 0
    assert moved[0] < moved[1]


def test_only_the_last_checkpoints_are_kept(config: Any) -> None:
    one = config("run", checkpoint={"every": 1, "keep": 2})
    train(one)
    assert [folder.name for folder in find_checkpoints(one.run)] == ["step-00000003", "step-00000004"]
    assert not list((one.run / "checkpoints").glob(".*"))


def test_finished_run_is_left_as_it_is(config: Any) -> None:
    one = config("run")
    train(one)
    before = final_tensors(one)
    again = train(one)
    assert (again.step, again.losses) == (4, ())
    assert all(torch.equal(before[name], value) for name, value in final_tensors(one).items())


def test_diverged_loss_ends_the_run(config: Any) -> None:
    with pytest.raises(DivergedError, match=r"a loss of (nan|inf) at step \d.*lower optimizer.learning_rate"):
        train(config("run", optimizer={"learning_rate": 1e30, "clip_norm": 1e30}))


def test_block_subset_trains_only_its_sites(config: Any, base_folder: Callable[..., Path]) -> None:
    """Of a model with all sites of SD1.5."""
    base = {"model": str(base_folder())}
    one = config("run", base=base, adapter={"blocks": "style"}, optimizer={"learning_rate": 0.01})
    train(one)
    for name, value in final_tensors(one).items():
        if ".to_v_ip" in name:
            site = (int(name.split(".")[-3]) - 1) // 2
            assert bool(value.any()) == (site in {0, 1, 2, 3, *range(8, 15)})
