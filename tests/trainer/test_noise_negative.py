"""`adapter.negative = "noise"`: a dropped reference is a picture of noise, another one each time, and the file says so."""

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from ipadapter_core.encoder.pixels import no_image_pixels
from ipadapter_core.file.spec import Negative
from ipadapter_core.network.adapter import load_adapter
from ipadapter_trainer.batch import Batch
from ipadapter_trainer.config import Config
from ipadapter_trainer.draws import CACHED_NOISES
from ipadapter_trainer.files.checkpoint_export import export_checkpoint
from ipadapter_trainer.files.portability import NATIVE_ONLY
from ipadapter_trainer.loop import train
from ipadapter_trainer.run import Run, open_run
from support.training import make_config, write_pictures

HALF = {"drop_text": 0.0, "drop_image": 0.5, "drop_both": 0.0}


@pytest.fixture
def config(
    tmp_path: Path, small_base_folder: Callable[..., Path], encoder_folder: Callable[..., Path]
) -> Callable[..., Config]:
    pictures = write_pictures(tmp_path / "pictures", 8)

    def make(negative: str, name: str = "run", **changes: dict[str, Any]) -> Config:
        places = small_base_folder(), encoder_folder(), pictures, tmp_path / name
        return make_config(*places, adapter={"negative": negative}, objective=HALF, **changes)

    return make


def first(run: Run, start: int = 0) -> Iterator[Batch]:
    return islice(run.batches(start), 8)


def features(run: Run, batch: Batch) -> torch.Tensor:
    return run.objective.condition(batch).features["features"]


def test_each_dropped_reference_is_another_noise_and_nothing_else_changes(config: Callable[..., Config]) -> None:
    plain, noisy = open_run(config("auto")), open_run(config("noise"))
    dropped = []
    for one, other in zip(first(plain), first(noisy), strict=True):
        given = features(noisy, other)
        kept = ~one.drop_image
        assert torch.equal(one.noise, other.noise)
        torch.testing.assert_close(given[kept], features(plain, one)[kept])
        dropped += list(given[one.drop_image])
    assert 4 <= len(dropped) <= 12
    assert len({tuple(row.tolist()) for row in dropped}) == len(dropped)
    whole = list(first(noisy))
    for one, other in zip(whole[3:], first(noisy, 3), strict=False):
        assert torch.equal(features(noisy, one), features(noisy, other)), "a resumed run meets the same noise"


def test_a_cache_has_a_choice_of_noises(config: Callable[..., Config], tmp_path: Path) -> None:
    cached = config("noise", cache={"path": str(tmp_path / "cache"), "precision": "fp32"})
    plain = config("auto", cache=cached.cache.model_dump())
    run, other = open_run(cached, lacking="fill"), open_run(plain, lacking="fill")
    assert run.objective.noises is not None
    noises = run.objective.noises["features"]
    assert len(noises) == CACHED_NOISES
    assert len(noises.unique(dim=0)) == CACHED_NOISES
    known = {tuple(row.tolist()) for row in noises}
    met = set()
    run.release_encoders()
    for batch, one in zip(first(run), first(other), strict=True):
        assert torch.equal(batch.drop_image, one.drop_image)
        given = features(run, batch)
        torch.testing.assert_close(given[~batch.drop_image], features(other, one)[~batch.drop_image])
        met |= {tuple(row.tolist()) for row in given[batch.drop_image]}
    assert met <= known
    assert len(met) >= 3
    for batch, again in zip(list(first(run))[3:], first(open_run(cached), 3), strict=False):
        assert torch.equal(features(run, batch), features(run, again))


def test_the_file_says_noise_and_diffusers_is_said_not_to_have_it(config: Callable[..., Config]) -> None:
    asked = config("noise", train={"steps": 1, "batch_size": 2, "trackers": []})
    assert train(asked).is_finished
    report = export_checkpoint(asked.run, None)
    assert load_adapter(report.path).spec.negative is Negative.NOISE
    assert report.portability.label == NATIVE_ONLY
    assert any("trained with noise" in reason for reason in report.portability.reasons)
    assert "docs/formats.md" in report.card.read_text()


@pytest.mark.parametrize("negative", Negative)
def test_no_image_is_what_the_nodes_make_of_it(config: Callable[..., Config], negative: Negative) -> None:
    encoder = open_run(config("auto")).reader.encoder
    wanted = encoder.features(no_image_pixels(negative, encoder.format.pixel_format))
    given = encoder.no_image(negative)
    torch.testing.assert_close(given, torch.zeros_like(wanted) if negative is Negative.ZERO_FEATURES else wanted)
