"""`ipadapter plan` counts what is there and leaves nothing behind."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from ipadapter_trainer.cache.fill import fill
from ipadapter_trainer.config import Config
from ipadapter_trainer.data.sources import open_sources
from ipadapter_trainer.loop import train
from ipadapter_trainer.models.loading import load_base
from ipadapter_trainer.plan_words import plan_in_words
from ipadapter_trainer.planning import flop_counter, make_plan
from ipadapter_trainer.readers.opening import open_reader
from ipadapter_trainer.state import CheckpointError
from support.pictures import write_shards
from support.training import make_config, write_pictures


@pytest.mark.parametrize("layout", ["sd15", "sdxl"])
def test_plan_counts_and_writes_nothing(
    tmp_path: Path, base_folder: Callable[..., Path], encoder_folder: Callable[[str], Path], layout: str
) -> None:
    pictures = write_pictures(tmp_path / "pictures", 6)
    config = make_config(
        base_folder(layout),
        encoder_folder("clip"),
        pictures,
        tmp_path / "run",
        optimizer={"ema_decay": 0.9},
        validation={"every": 5, "images": 2},
        train={"steps": 12, "batch_size": 2, "accumulate": 2, "log_every": 1, "trackers": []},
    )
    plan = make_plan(config).to_json()
    trained, data, memory, measured = (plan[name] for name in ("trained", "data", "memory", "measured"))
    assert trained["adapter"].endswith("base")
    if layout == "sd15":  # 16 sites of 32, 64 and 128 channels over 16-wide tokens, and the projection of 4 tokens
        channels = 5 * 32 + 5 * 64 + 6 * 128
        assert trained["parameters"] == 2 * 16 * channels + (4 * 16 * 20 + 4 * 16) + 2 * 16
    assert data == {
        "steps": 12, "samples_per_step": 4, "samples": 48, "pictures": 4, "epochs": 12.0,
        "times_seen": [12.0], "held_out": 2
    }  # fmt: skip
    assert memory["gradients"] == memory["moving_average"] == 4 * trained["parameters"]
    assert 2 * memory["gradients"] <= memory["optimizer"] < 2.1 * memory["gradients"]
    assert memory["activations"] > 0
    assert measured["flops_backward"] > measured["flops_forward"] / 4
    assert measured["is_cached"] is False
    assert measured["images_per_second"] > 0
    assert plan["cache"]["latents_bytes"] > 6 * 2 * 4 * 64 * 2
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("first", "second", "sizes", "epochs", "seen"),
    [
        ({}, {"repeats": 3.0}, (), 6.0, [6.0, 18.0]),
        ({"weight": 3.0}, {"weight": 1.0}, (), 10.0, [11.25, 7.5]),
        ({}, {"repeats": 3.0}, (128,), 3.0, [6.0, 18.0]),
    ],
)
def test_plan_knows_how_often_each_data_set_comes_and_all_texts(
    tmp_path: Path,
    small_base_folder: Callable[..., Path],
    encoder_folder: Callable[[str], Path],
    first: dict[str, float],
    second: dict[str, float],
    sizes: tuple[int, ...],
    epochs: float,
    seen: list[float],
) -> None:
    for name, count in (("first", 4), ("second", 2)):
        write_pictures(tmp_path / name, count)
    rows = [{"file_name": f"{number}.png", "text": [f"shape {number}", "a shape"]} for number in range(4)]
    (tmp_path / "first" / "metadata.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    more = [{"path": str(tmp_path / "second"), **second}]
    places = small_base_folder("sd15"), encoder_folder("clip"), tmp_path / "first", tmp_path / "run"
    train = {"steps": 30, "batch_size": 2, "trackers": []}
    data = {"more": more, "more_resolutions": list(sizes), **first}
    plan = make_plan(make_config(*places, data=data, train=train)).to_json()
    assert (plan["data"]["epochs"], plan["data"]["times_seen"]) == (epochs, seen)
    texts = plan["cache"]["text_bytes"]
    (tmp_path / "first" / "metadata.jsonl").write_text("".join(f"{json.dumps({**row, 'text': 'a'})}\n" for row in rows))
    fewer = make_plan(make_config(*places, data=data, train=train)).to_json()["cache"]["text_bytes"]
    assert fewer / texts == pytest.approx((3 + 1) / (5 + 1))


def test_plan_with_a_filled_cache_measures_training_from_it(
    tmp_path: Path, small_base_folder: Callable[..., Path], encoder_folder: Callable[[str], Path]
) -> None:
    pictures = write_pictures(tmp_path / "pictures", 4)
    places = small_base_folder("sd15"), encoder_folder("clip"), pictures, tmp_path / "run"
    config = make_config(*places, cache={"path": str(tmp_path / "cache")})
    before = make_plan(config).to_json()
    cpu = torch.device("cpu")
    reader = open_reader(config, cpu)
    fill(config, load_base(config.base, cpu), reader, open_sources(config))
    after = make_plan(config).to_json()
    assert (before["measured"]["is_cached"], after["measured"]["is_cached"]) == (False, True)
    assert before["memory"]["frozen_encoders"] > after["memory"]["frozen_encoders"] == 0
    assert after["cache"] == before["cache"]


def test_plan_says_that_the_run_folder_has_another_run(
    tmp_path: Path, small_base_folder: Callable[..., Path], encoder_folder: Callable[[str], Path]
) -> None:
    pictures = write_pictures(tmp_path / "pictures", 4)

    def config(**changes: Any) -> Config:
        sections = {"train": {"steps": 1, "batch_size": 2, "trackers": []}, **changes}
        return make_config(small_base_folder("sd15"), encoder_folder("clip"), pictures, tmp_path / "run", **sections)

    train(config())
    assert "refused" not in make_plan(config(optimizer={"learning_rate": 0.5})).to_json()
    other = config(objective={"min_snr_gamma": 5.0})
    with pytest.raises(CheckpointError) as caught:
        train(other)
    plan = make_plan(other).to_json()
    assert plan["refused"] == str(caught.value)
    advice = plan_in_words(plan, other, memory=None, file="my.toml")["advice"]
    assert advice[0] == f"train refuses this as it is. {caught.value}"


def test_plan_of_a_stream_writes_nothing(
    tmp_path: Path, small_base_folder: Callable[..., Path], encoder_folder: Callable[[str], Path]
) -> None:
    write_shards(tmp_path / "shards", shards=2, per_shard=4)
    before = sorted(tmp_path.rglob("*"))
    config = make_config(
        small_base_folder(), encoder_folder("clip"), tmp_path / "shards" / "{00..01}.tar", tmp_path / "run"
    )
    plan = make_plan(config).to_json()
    assert "pictures" not in plan["data"]
    assert sorted(tmp_path.rglob("*")) == before


def test_attention_is_counted_on_the_cpu() -> None:
    q = torch.empty(1, 2, 64, 8, requires_grad=True)
    product = 2 * 2 * 64 * 64 * 8
    with flop_counter() as forward:
        out = functional.scaled_dot_product_attention(q, q, q)
    with flop_counter() as backward:
        out.sum().backward()
    assert forward.get_total_flops() == 2 * product
    assert backward.get_total_flops() == 5 * product  # as on a GPU: one is done again to save memory
