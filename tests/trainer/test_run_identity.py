"""What makes a run another run is named, each difference and its remedy; what does not is free, and takes effect."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ipadapter_trainer.cache.fill import fill
from ipadapter_trainer.config import Config
from ipadapter_trainer.loop import train
from ipadapter_trainer.metrics_log import read_records
from ipadapter_trainer.resume.sums import FILES, SUM, file_sums, sealed
from ipadapter_trainer.run import open_run
from ipadapter_trainer.state import CONFIG, COUNTERS, IDENTITY, CheckpointError, find_checkpoints
from support.encoders import write_folder
from support.pictures import write_shards
from support.tiny_base import write_base
from support.training import make_config, write_pictures

HELD_OUT = {"every": 2, "images": 2, "timesteps": [500]}
Changes = dict[str, dict[str, Any]]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return write_pictures(tmp_path / "pictures")


@pytest.fixture
def config(pictures: Path, tmp_path: Path, small_base_folder: Callable[..., Path], encoder_folder: Any) -> Any:
    def make(steps: int = 2, /, **changes: dict[str, Any]) -> Config:
        settings = {**changes, "train": {"steps": steps, **changes.get("train", {})}}
        return make_config(small_base_folder(), encoder_folder("clip"), pictures, tmp_path / "run", **settings)

    return make


def go_on(config: Config) -> int:
    """A step of a run, its first or after its last checkpoint, and a checkpoint: `train` without what watches it."""
    run = open_run(config, lacking="fill")
    for checkpoint in find_checkpoints(config.run)[-1:]:
        run.state.restore(checkpoint)
    run.step(run.batches(run.state.counters.step))
    run.state.save()
    return run.state.counters.step


DECIDES: dict[str, tuple[Changes, Changes, str]] = {
    "another size of the held-out set": (
        {"validation": HELD_OUT},
        {"validation": {**HELD_OUT, "images": 4}},
        r"4 pictures to train on, not the 6 .* 4 pictures held out, not the 2 .*validation\.path",
    ),
    "no held-out set any more": (
        {"validation": HELD_OUT},
        {},
        r"8 pictures to train on, not the 6",
    ),
    "held out late": ({}, {"validation": HELD_OUT}, r"6 pictures to train on, not the 8"),
    "all settings that decide": (
        {},
        {
            "adapter": {"tokens": 3, "blocks": "style"},
            "data": {"resolution": 32},
            "objective": {"noise_offset": 0.1},
            "optimizer": {"name": "adafactor"},
            "train": {"seed": 1, "batch_size": 4},
        },
        r"objective\.noise_offset is 0\.1, was 0\.0; data\.resolution is 32, was 64; train\.seed is 1, was 0; "
        r"optimizer\.name is 'adafactor', was 'adamw'; adapter\.tokens is 3, was 4; "
        r"adapter\.blocks trains other layers than before; a step has 4 samples .*, not 2",
    ),
}


@pytest.mark.parametrize(("before", "after", "message"), DECIDES.values(), ids=DECIDES)
def test_what_decides_a_run_is_named(config: Any, before: Changes, after: Changes, message: str) -> None:
    assert go_on(config(4, **before)) == 1
    with pytest.raises(CheckpointError, match=message) as caught:
        go_on(config(4, **after))
    has_other_shapes = "tokens" in after.get("adapter", {})
    assert ("--restart-from" in str(caught.value)) != has_other_shapes
    assert go_on(config(4, **before)) == 2  # "set it back" is possible


def test_a_run_that_is_another_is_refused_before_its_cache_is_filled(
    config: Any, pictures: Path, tmp_path: Path
) -> None:
    cache = {"path": str(tmp_path / "cache")}
    train(config(2, cache=cache))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*")}
    write_pictures(pictures, 9)
    for path in (cache["path"], str(tmp_path / "another")):
        with pytest.raises(CheckpointError, match="9 pictures to train on, not the 8"):
            train(config(4, cache={"path": path}))
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*")} == before
    assert not (tmp_path / "another").exists()


def test_a_grown_folder_is_another_data_set(config: Any, pictures: Path) -> None:
    train(config(2))
    shutil.copy(pictures / "0.png", pictures / "new.png")
    (pictures / "new.txt").write_text("a new one")
    with pytest.raises(CheckpointError, match=r"9 pictures to train on, not the 8 .*data\.path"):
        train(config(4))
    (pictures / "0.png").unlink()
    with pytest.raises(CheckpointError, match="other pictures to train on, though as many"):
        train(config(4))
    shutil.copy(pictures / "new.png", pictures / "0.png")
    (pictures / "new.png").unlink()
    assert train(config(4)).step == 4


def test_other_models_are_known_by_their_weights(config: Any, tmp_path: Path) -> None:
    train(config(2))
    other = {"base": {"model": str(write_base(tmp_path / "other", seed=5)), "precision": "fp32"}}
    named = r"base\.model has another UNet and autoencoder and text encoder than before"
    with pytest.raises(CheckpointError, match=named) as caught:
        train(config(4, **other))
    assert str(tmp_path / "other") in str(caught.value)
    predicts_v = {"base": {"model": str(write_base(tmp_path / "v", prediction_type="v_prediction"))}}
    with pytest.raises(CheckpointError, match=r"prediction_type is 'v_prediction', was 'epsilon'"):
        train(config(4, **predicts_v))
    write_folder("siglip", tmp_path / "siglip")
    with pytest.raises(CheckpointError, match=r"encoder\.model has another image encoder than before"):
        train(config(4, encoder={"model": str(tmp_path / "siglip")}))


FREE: dict[str, tuple[Changes, Changes]] = {
    "precision, an average, and how it is read": (
        {},
        {
            "base": {"precision": "bf16"},
            "encoder": {"precision": "bf16", "feature": "image_embeds"},
            "adapter": {"init": "random", "tokens": 4, "negative": "zero_features"},
            "data": {"max_skipped": 0.5, "workers": 1},
            "optimizer": {"ema_decay": 0.9},
        },
    ),
    "precision, no average, and the schedule": (
        {"base": {"precision": "bf16"}, "optimizer": {"ema_decay": 0.9}},
        {"base": {"precision": "fp16"}, "optimizer": {"schedule": "cosine", "warmup_steps": 1}},
    ),
    "another average, and shares of a step": (
        {"optimizer": {"ema_decay": 0.9}, "train": {"batch_size": 4}},
        {"optimizer": {"ema_decay": 0.5}, "train": {"batch_size": 1, "accumulate": 4}},
    ),
    "shares of a step, the other way": (
        {"train": {"batch_size": 1, "accumulate": 3}},
        {"train": {"batch_size": 3}},
    ),
}


@pytest.mark.parametrize(("before", "after"), FREE.values(), ids=FREE)
def test_what_does_not_decide_a_run_is_free(config: Any, before: Changes, after: Changes) -> None:
    go_on(config(4, **before))
    changed = config(4, **after)
    assert go_on(changed) == 2
    assert (find_checkpoints(changed.run)[-1] / "ema.safetensors").is_file() == ("ema_decay" in str(after))


def test_with_buckets_the_samples_of_a_forward_decide_the_order(config: Any) -> None:
    sizes = {"data": {"buckets": True, "bucket_step": 16}}
    train(config(2, **sizes, train={"batch_size": 2}))
    with pytest.raises(CheckpointError, match="a forward has 1 samples, not 2, which decides their order"):
        train(config(4, **sizes, train={"batch_size": 1, "accumulate": 2}))
    assert train(config(4, **sizes, train={"batch_size": 2})).step == 4


def test_another_share_of_a_step_changes_no_loss(config: Any) -> None:
    fast = {"optimizer": {"learning_rate": 0.02}}
    one = config(3, train={"batch_size": 4}, **fast)
    losses = [*train(one).losses, *train(config(6, train={"batch_size": 1, "accumulate": 4}, **fast)).losses]
    shutil.rmtree(one.run)
    assert losses == pytest.approx(list(train(config(6, train={"batch_size": 4}, **fast)).losses), rel=1e-3)


def test_moved_models_and_pictures_are_the_same_run(config: Any, tmp_path: Path, pictures: Path) -> None:
    one = config(2)
    train(one)
    for name, place in (("base", one.base.model), ("encoder", one.encoder.model), ("elsewhere", str(pictures))):
        shutil.copytree(place, tmp_path / "moved" / name)
    shutil.copytree(one.run, tmp_path / "run2")
    moved = make_config(*(tmp_path / "moved" / name for name in ("base", "encoder", "elsewhere")), tmp_path / "run2")
    there, here = train(moved), train(config(4))
    assert there.losses == here.losses


def test_a_new_learning_rate_is_trained_with(config: Any) -> None:
    rates = {"learning_rate": 0.25, "weight_decay": 0.5, "betas": [0.5, 0.75]}
    train(config(2, optimizer={"schedule": "cosine"}))
    again = config(4, optimizer={**rates, "schedule": "constant"})
    train(again)
    assert [record["learning_rate"] for record in read_records(again.run) if record["step"] > 2] == [0.25, 0.25]
    state = torch.load(find_checkpoints(again.run)[-1] / "rest" / "optimizer.bin", weights_only=False)
    (group,) = state["param_groups"]
    assert (group["lr"], group["weight_decay"], list(group["betas"])) == (0.25, 0.5, [0.5, 0.75])


def test_an_average_begun_late_starts_at_the_weights_of_then(config: Any) -> None:
    train(config(2, optimizer={"learning_rate": 0.1}))
    late = open_run(config(3, optimizer={"ema_decay": 0.9}))
    late.state.restore(find_checkpoints(late.config.run)[-1])
    trained = dict(late.network.adapter.state_dict())
    assert all(torch.equal(value, trained[name]) for name, value in late.state.ema_weights().items())
    assert train(late.config).step == 3


def test_a_cache_may_move_and_be_left_out(config: Any, tmp_path: Path) -> None:
    cached = config(2, cache={"path": str(tmp_path / "cache"), "precision": "fp32"})
    opened = open_run(config(2))
    fill(cached, opened.base, opened.reader, (opened.source,))
    train(cached)
    shutil.move(tmp_path / "cache", tmp_path / "moved")
    train(config(3, cache={"path": str(tmp_path / "moved"), "precision": "fp32"}))
    train(config(4, cache={"path": str(tmp_path / "moved"), "precision": "fp32", "parts": ["text"]}))
    assert train(config(5)).step == 5


def test_other_readers_of_a_stream_are_another_run(config: Any, tmp_path: Path) -> None:
    write_shards(tmp_path / "shards", 4, 6)
    streamed = {"path": str(tmp_path / "shards"), "resolution": 64}

    def with_workers(steps: int, workers: int, **data: object) -> Config:
        changed: Config = config(steps, data={**streamed, "workers": workers, **data})
        return changed

    train(with_workers(2, 2))
    with pytest.raises(CheckpointError, match=r"the stream has 1 reader in each process, not 2\..*data\.workers = 2"):
        train(with_workers(4, 1))
    with pytest.raises(CheckpointError, match=r"data\.shuffle_buffer is 3, was 1000"):
        train(with_workers(4, 2, shuffle_buffer=3))
    (tmp_path / "shards" / "03.tar").rename(tmp_path / "shards" / "04.tar")
    with pytest.raises(CheckpointError, match="other shards to train on"):
        train(with_workers(4, 2))
    (tmp_path / "shards" / "04.tar").rename(tmp_path / "shards" / "03.tar")
    write_shards(tmp_path / "others", 4, 7)
    with pytest.raises(CheckpointError, match="other shards to train on"):
        train(with_workers(4, 2, path=str(tmp_path / "others")))
    assert train(with_workers(4, 2)).step == 4


def make_old(config: Config) -> Path:
    """A checkpoint as the trainer wrote it before it knew identities and sums."""
    (checkpoint,) = find_checkpoints(config.run)
    (checkpoint / IDENTITY).unlink()
    counters = checkpoint / "state.json"
    stated = json.loads(counters.read_text())
    counters.write_text(json.dumps({name: stated[name] for name in ("step", "samples", "pairs", "ema_step")}))
    return checkpoint


def test_an_old_checkpoint_goes_on_where_that_is_safe(config: Any, caplog: pytest.LogCaptureFixture) -> None:
    train(config(2, checkpoint={"every": 100}))
    make_old(config(2))
    assert train(config(4, optimizer={"learning_rate": 0.01})).step == 4
    assert re.search("step-00000002 was written by an earlier version", caplog.text)


YOUNGER: dict[str, Any] = {
    "debiased": True,
    "huber_c": 0.1,
    "huber_schedule": "exponential",
    "pyramid_noise": 0.9,
    "input_perturbation": 0.1,
    "timestep_sampling": "sigmoid",
    "timestep_logit_mean": 0.5,
    "timestep_logit_std": 0.5,
}


def test_a_checkpoint_from_before_a_setting_goes_on_with_its_default_alone(config: Any) -> None:
    train(config(2, checkpoint={"every": 100}))
    (checkpoint,) = find_checkpoints(config(2).run)
    counters = json.loads((checkpoint / COUNTERS).read_text())
    del counters[SUM]
    stated = json.loads((checkpoint / IDENTITY).read_text())
    for name in YOUNGER:
        del stated["settings"][f"objective.{name}"]
    (checkpoint / IDENTITY).write_text(json.dumps(stated))
    (checkpoint / COUNTERS).unlink()
    note = {**counters, FILES: file_sums(checkpoint)}
    (checkpoint / COUNTERS).write_text(json.dumps(sealed(note)))
    with pytest.raises(CheckpointError) as caught:
        train(config(4, objective=YOUNGER))
    for name, value in YOUNGER.items():
        assert f"objective.{name} is {value!r}, was " in str(caught.value)
    assert train(config(4)).step == 4


OLD: dict[str, tuple[Changes, str]] = {
    "models": ({"base": {"model": "MOVED", "precision": "fp32"}}, r"base\.model is '.*', was '.*'"),
    "objective": ({"objective": {"noise_offset": 0.1}}, r"objective\.noise_offset is 0\.1, was 0\.0"),
    "batch": ({"train": {"batch_size": 4}}, r"a step has 4 samples .*, not 2"),
    "held out": ({"validation": HELD_OUT}, r"6 pictures to train on, not the 8"),
}


@pytest.mark.parametrize(
    ("after", "message"),
    [
        pytest.param(*row, id=name, marks=[pytest.mark.long] * (name in ("objective", "batch")))
        for name, row in OLD.items()
    ],
)
def test_an_old_checkpoint_is_refused_where_nobody_can_tell(
    config: Any, tmp_path: Path, after: Changes, message: str
) -> None:
    one = config(2, checkpoint={"every": 100})
    train(one)
    make_old(one)
    if "base" in after:
        shutil.copytree(one.base.model, tmp_path / "moved")
        after = {"base": {**after["base"], "model": str(tmp_path / "moved")}}
    with pytest.raises(CheckpointError, match=message):
        train(config(4, **after))
    assert train(config(3)).step == 3  # what it advises: set it back once …
    if "base" in after:
        assert train(config(4, **after)).step == 4  # … and what is written then knows the weights


@pytest.mark.parametrize("damage", ["not JSON", '{"weights": 3}'])
def test_an_identity_that_cannot_be_read_is_said(config: Any, damage: str) -> None:
    one = config(2, checkpoint={"every": 100})
    train(one)
    checkpoint = make_old(one)
    (checkpoint / IDENTITY).write_text(damage)
    with pytest.raises(CheckpointError, match=r"identity\.json, which cannot be read.*delete the folder"):
        train(config(4))
    shutil.rmtree(checkpoint)  # as it advises
    assert train(config(4)).step == 4


def test_the_config_of_a_checkpoint_is_not_needed_to_go_on(config: Any) -> None:
    """A setting that another version does not know decides nothing by itself."""
    one = config(2)
    train(one)
    for folder in (one.run, *find_checkpoints(one.run)):
        with (folder / CONFIG).open("a") as file:
            file.write("\n[nobody]\nknows = 1\n")
    stated = find_checkpoints(one.run)[-1] / "state.json"
    counters = json.loads(stated.read_text())
    counters.pop("files", None), counters.pop("sum", None)
    stated.write_text(json.dumps(counters))
    assert train(config(4)).step == 4
