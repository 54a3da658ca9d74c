"""A plan is said in words and units, with what to change; programs get the numbers as before."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from typer.testing import CliRunner

from ipadapter_trainer.cli import app
from ipadapter_trainer.config import Config
from ipadapter_trainer.plan_words import plan_in_words
from ipadapter_trainer.words import count, duration, size, times
from support.training import make_config, write_pictures

GB = 10**9
PLAN: dict[str, dict[str, Any]] = {
    "trained": {
        "adapter": "SD1.5 plus", "tokens": 16, "encoder": "CLIP-ViT-H-14", "reads": "hidden_states of layer -2",
        "sites": "16 of 16 (all)", "parameters": 49_200_000,
    },
    "data": {"steps": 600, "samples_per_step": 4, "samples": 2400, "pictures": 30, "epochs": 18.0,
             "times_seen": [18.0], "held_out": 5},
    "memory": {
        "frozen_model": 1_700_000_000, "frozen_encoders": 0, "adapter": 200_000_000, "gradients": 200_000_000,
        "optimizer": 400_000_000, "moving_average": 0, "activations": 5_000_000_000, "total": 7_500_000_000,
    },
    "measured": {
        "is_cached": True, "encoded": [], "device": "cuda:0", "images_per_second": 1.0, "hours": 2 / 3,
        "peak_bytes": 9_100_000_000,
    },
    "cache": {"latents_bytes": 1, "features_bytes": 2, "text_bytes": 3, "total_bytes": 45_300_000},
}  # fmt: skip


def config(**sections: dict[str, Any]) -> Config:
    return make_config(Path("base"), Path("encoder"), Path("pictures"), Path("run"), **sections)


def test_says_how_long_how_much_and_how_often() -> None:
    said = plan_in_words(PLAN, config(validation={"every": 100}), memory=12 * GB, file="my.toml")
    assert str(said["time"]).startswith("about 40 min for 600 steps of 4 pictures")
    assert str(said["memory"]).startswith("9.1 GB of your 12.0 GB (frozen model 1.7 GB, adapter 200 MB")
    assert said["pictures"] == "30, each seen 18 times; 5 more are held out"
    assert said["advice"] == ["with 30 pictures start from a published adapter: adapter.pretrained"]
    assert "45.3 MB" in str(said["cache"])
    assert "49.2 million parameters" in str(said["trains"])
    assert said["next"] == "ipadapter train my.toml"


def test_says_how_often_pictures_of_several_sets_are_seen() -> None:
    said = plan_in_words(changed("data", times_seen=[36.0, 9.0]), config(), memory=None, file="my.toml")
    assert said["pictures"] == "30, each seen 9 times to 36 times, by data set; 5 more are held out"


def test_says_what_is_encoded_though_there_is_a_cache() -> None:
    said = [
        str(plan_in_words(changed("measured", encoded=encoded), config(), memory=None, file="my.toml")["time"])
        for encoded in ([], ["features"])
    ]
    assert "on cuda:0, from the cache;" in said[0]
    assert "on cuda:0, from the cache, features encoded in each step;" in said[1]


def changed(section: str, **values: object) -> dict[str, dict[str, Any]]:
    return {**PLAN, section: {**PLAN[section], **values}}


@pytest.mark.parametrize(
    ("plan", "sections", "advice"),
    [
        (changed("data", times_seen=[5.0, 900.0]), {}, "each picture 900 times is often"),
        (changed("data", times_seen=[0.4, 5.0]), {}, "not every picture is seen"),
        (changed("measured", peak_bytes=int(11.9 * GB)), {}, "lower train.batch_size"),
        (changed("measured", is_cached=False), {"cache": {"path": "cache"}}, "the cache is not filled yet"),
        (PLAN, {"validation": {"every": None}}, "nothing is validated"),
        (changed("measured", device="cpu"), {}, "not on a GPU"),
    ],
)
def test_says_what_to_change_and_only_that(
    plan: dict[str, Any], sections: dict[str, dict[str, Any]], advice: str
) -> None:
    asked = {"adapter": {"pretrained": "start.safetensors"}, "validation": {"every": 100}, **sections}
    (said,) = plan_in_words(plan, config(**asked), memory=12 * GB, file="my.toml")["advice"]  # type: ignore[misc]
    assert advice in said


def test_the_command_says_words_to_people_and_numbers_to_programs(
    tmp_path: Path, small_base_folder: Callable[..., Path], encoder_folder: Callable[..., Path]
) -> None:
    pictures = write_pictures(tmp_path / "pictures", 6)
    asked = make_config(
        small_base_folder(), encoder_folder(), pictures, tmp_path / "run", train={"steps": 3, "trackers": []}
    )
    file = tmp_path / "my.toml"
    file.write_text(tomli_w.dumps(asked.model_dump(mode="json", exclude_none=True)))
    words = CliRunner().invoke(app, ["plan", str(file)], env={"COLUMNS": "200"})
    assert words.exit_code == 0, words.output
    assert "each seen once" in words.stdout
    assert "with 6 pictures start from a published adapter" in " ".join(words.stdout.split())
    numbers = json.loads(CliRunner().invoke(app, ["plan", str(file), "--json"]).stdout)
    assert set(numbers) == {"trained", "data", "memory", "measured", "cache"}


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (duration(7.4), "7 s"),
        (duration(360), "6 min"),
        (duration(4 * 3600 + 300), "4 h 5 min"),
        (duration(51 * 3600), "2 d 3 h"),
        (size(999), "999 bytes"),
        (size(12_345), "12.3 kB"),
        (size(643_000), "643 kB"),
        (size(9_100_000_000), "9.1 GB"),
        (size(2.5e15), "2500 TB"),
        (count(12_345), "12,345"),
        (count(49_200_000), "49.2 million"),
        (count(2_600_000_000), "2.6 billion"),
        (times(0.4), "0.4 times"),
        (times(1.0), "once"),
        (times(18.0), "18 times"),
        (times(1234.5), "1,234 times"),
    ],
)
def test_numbers_as_people_say_them(said: str, words: str) -> None:
    assert said == words
