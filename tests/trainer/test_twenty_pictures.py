"""The recipe for 20 pictures can be seen to work: held-out pictures get easier, and their references go on to matter."""

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ipadapter_trainer.config import Config
from ipadapter_trainer.config_file import read_config
from ipadapter_trainer.files.checkpoint_export import export_checkpoint
from ipadapter_trainer.loop import train
from ipadapter_trainer.metrics_log import read_records
from ipadapter_trainer.watch.verdict import verdict_of
from support.trained import COLORS, write_teachable_base
from support.training import make_config

RECIPE = Path(__file__).parents[2] / "trainer" / "configs" / "my_20_images.toml"
SIDE, STEPS = 32, 60
SMALL: dict[str, object] = {  # what hangs on the size of models and of the run; the rest is the recipe's
    "base.precision": "fp32", "encoder.precision": "fp32", "adapter.resampler_dim": 64, "data.resolution": SIDE,
    "data.bucket_step": 8, "data.workers": 0, "optimizer.learning_rate": 0.003, "optimizer.warmup_steps": 5,
    "optimizer.ema_decay": 0.9, "train.steps": STEPS, "train.trackers": "[]", "checkpoint.every": STEPS,
    "validation.every": STEPS, "validation.sample_every": 1000, "validation.sampler_steps": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory, encoder_folder: Callable[[str], Path]) -> dict[str, object]:
    """A base, an adapter that was trained on all colours, and 20 pictures of some reds in one folder."""
    folder = tmp_path_factory.mktemp("twenty")
    base, encoder = write_teachable_base(folder / "base"), encoder_folder("clip")
    for name in ("wide", "mine"):
        (folder / name).mkdir()
    for number, color in enumerate(product((0, 255), repeat=3)):
        Image.new("RGB", (SIDE, SIDE), color).save(folder / "wide" / f"{number}.png")
    reds = np.random.default_rng(0).integers((200, 0, 0), 256, (20, 3))
    for number, color in enumerate(reds.tolist()):
        Image.new("RGB", (SIDE, SIDE), tuple(color)).save(folder / "mine" / f"{number}.png")
    published: Config = make_config(
        base,
        encoder,
        folder / "wide",
        folder / "published",
        base={"vae": str(base / COLORS)},
        adapter={"kind": "plus", "resampler_dim": 64},
        data={"resolution": SIDE, "caption": ""},
        train={"steps": 100, "batch_size": 8, "log_every": 100},
        optimizer={"learning_rate": 0.01},
        objective={"timestep_min": 500},
        checkpoint={"every": 100},
    )
    train(published)
    return {
        "base.model": base,
        "base.vae": base / COLORS,
        "encoder.model": encoder,
        "adapter.pretrained": export_checkpoint(published.run, None).path,
        "data.path": folder / "mine",
    }


def validated(config: Config) -> list[dict[str, Any]]:
    train(config)
    return [record for record in read_records(config.run) if record["kind"] == "validation"]


@pytest.mark.long
@pytest.mark.slow
def test_a_run_on_twenty_pictures_shows_that_it_works(places: dict[str, object], tmp_path: Path) -> None:
    def recipe(name: str, **more: object) -> Config:
        values = {**places, **SMALL, "train.output": tmp_path / name, **more}
        return read_config(RECIPE, [f"{key}={value}" for key, value in values.items()])

    before, after = validated(recipe("mine"))
    _, of_any = validated(recipe("group", **{"data.reference": "group"}))
    assert after["true"] < 0.97 * before["true"], "pictures that it never saw got easier"
    assert after["gap_null"] > 0
    assert after["gap_shuffled"] > 2 * after["gap_error"]
    assert not verdict_of(after).startswith(("No sign", "Something is wrong"))
    assert of_any["gap_shuffled"] < after["gap_shuffled"] / 2, "references of anything teach to look at none"
