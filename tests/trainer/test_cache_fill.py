"""The cache holds what the models give for the data, once each, and makes again only what changed."""

import functools
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from ipadapter_core.file.spec import Negative
from ipadapter_trainer.backbones.unet import UNetBackbone
from ipadapter_trainer.cache.entries import stored
from ipadapter_trainer.cache.estimate import estimate_bytes
from ipadapter_trainer.cache.fill import FillReport, fill
from ipadapter_trainer.cache.store import CacheError
from ipadapter_trainer.cache.training import Stores, open_stores
from ipadapter_trainer.config import BaseModelConfig, Config, EncoderConfig
from ipadapter_trainer.config_file import parse_config
from ipadapter_trainer.data.loader import World, open_batches
from ipadapter_trainer.data.prepare import caption_digest, entry_key
from ipadapter_trainer.data.records import DataError
from ipadapter_trainer.data.sample import Geometry
from ipadapter_trainer.data.skips import SKIPPED
from ipadapter_trainer.data.sources import load_records, open_source
from ipadapter_trainer.models.image_encoder import load_image_encoder
from ipadapter_trainer.models.loading import load_base
from ipadapter_trainer.objective import Objective
from ipadapter_trainer.readers.pictures import PictureReader
from support.encoders import write_folder
from support.pictures import write_shard
from support.tiny_base import write_base

CPU = torch.device("cpu")
PICTURES, CAPTIONS = 7, 3


@functools.lru_cache
def _models(base: BaseModelConfig, encoder: EncoderConfig, kind: str) -> tuple[UNetBackbone, PictureReader]:
    return load_base(base, CPU, only=frozenset({"vae", "text"})), PictureReader(load_image_encoder(encoder, kind, CPU))


class Setup:
    """A data set, a config and loaded models, changed one thing at a time."""

    def __init__(self, folder: Path, base: Path, encoder: Path) -> None:
        self.folder = folder
        self.settings: dict[str, dict[str, object]] = {
            "base": {"model": str(base), "precision": "fp32"},
            "encoder": {"model": str(encoder), "precision": "fp32"},
            "data": {"path": str(folder / "data"), "resolution": 32, "workers": 0},
            "train": {"output": str(folder / "run"), "steps": 1, "batch_size": 2},
            "adapter": {"kind": "plus"},
            "cache": {"path": str(folder / "cache"), "shard_size": 4, "precision": "fp32"},
        }

    def write_pictures(self) -> None:
        (self.folder / "data").mkdir()
        for number in range(PICTURES):
            self.write_picture(number, number)
            self.picture(number).with_suffix(".txt").write_text(f"picture {number % CAPTIONS}")

    def picture(self, number: int) -> Path:
        return self.folder / "data" / f"{number}.png"

    def write_picture(self, number: int, seed: int) -> None:
        size = (40, 36) if number % 2 else (36, 48)
        noise = torch.randint(256, (*size, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
        Image.fromarray(noise.numpy()).save(self.picture(number))

    def config(self, **changes: object) -> Config:
        """With `section__key=value` changed."""
        settings = {section: dict(values) for section, values in self.settings.items()}
        for name, value in changes.items():
            section, key = name.split("__")
            settings.setdefault(section, {})[key] = value
        return parse_config(settings, "test")

    def models(self, config: Config) -> tuple[UNetBackbone, PictureReader]:
        return _models(config.base, config.encoder, config.adapter.kind)

    def fill(self, config: Config) -> FillReport:
        return fill(config, *self.models(config), [load_records(config.data)], batch_size=2)

    def stores(self, config: Config) -> Stores:
        return open_stores(config, *self.models(config))


@pytest.fixture
def setup(tmp_path: Path, base_folder: Callable[..., Path], encoder_folder: Callable[..., Path]) -> Setup:
    setup = Setup(tmp_path, base_folder(), encoder_folder("clip"))
    setup.write_pictures()
    return setup


def _computed(report: FillReport) -> dict[str, int]:
    return {kind: share.computed for kind, share in report.shares.items()}


ALL = {"text": CAPTIONS + 1, "latents": PICTURES, "features": PICTURES}
NOTHING = dict.fromkeys(ALL, 0)


def test_the_same_config_reuses_everything(setup: Setup) -> None:
    config = setup.config()
    first = setup.fill(config)
    assert _computed(first) == ALL
    assert first.skipped == 0
    again = setup.fill(config)
    assert _computed(again) == NOTHING
    assert {kind: share.reused for kind, share in again.shares.items()} == ALL
    assert again.nbytes == first.nbytes
    setup.stores(config).require(load_records(config.data))


@pytest.mark.parametrize(
    ("changes", "remade"),
    [
        ({"data__resolution": 40}, {"latents"}),
        ({"data__buckets": True, "data__bucket_step": 8}, {"latents"}),
        ({"data__crop": "random"}, {"latents"}),
        ({"data__flip": 0.5}, {"latents"}),
        ({"data__augment": {"gray": 0.5}}, {"features"}),
        ({"encoder__crop": "pad"}, {"features"}),
        ({"encoder__layer": -1}, {"features"}),
        ({"encoder__feature": "image_embeds"}, {"features"}),
        ({"encoder__precision": "bf16"}, {"features"}),
        ({"base__precision": "bf16"}, {"latents", "text"}),
        ({"cache__precision": "fp16"}, {"latents", "features", "text"}),
        ({"train__seed": 1}, set()),
        ({"train__steps": 2, "objective__drop_text": 0.3, "cache__shard_size": 3}, set()),
    ],
)
def test_what_changes_an_entry_is_another_folder_and_nothing_else_is(
    setup: Setup, changes: dict[str, object], remade: set[str]
) -> None:
    before, after = setup.stores(setup.config()), setup.stores(setup.config(**changes))
    assert {old.kind for old, new in zip(before.all, after.all, strict=True) if old.folder != new.folder} == remade


def test_how_often_a_target_is_flipped_is_part_of_what_it_is(setup: Setup) -> None:
    before, after = (setup.stores(setup.config(data__flip=flip)) for flip in (0.25, 0.5))
    assert before.latents.folder != after.latents.folder


def test_a_seed_counts_where_something_is_random(setup: Setup) -> None:
    random = {"data__crop": "random", "data__augment": {"flip": 0.5}}
    before, after = (setup.stores(setup.config(**random, train__seed=seed)) for seed in (0, 1))
    different = {old.kind for old, new in zip(before.all, after.all, strict=True) if old.folder != new.folder}
    assert different == {"latents", "features"}


def test_other_weights_are_another_folder(setup: Setup, tmp_path: Path) -> None:
    before = setup.stores(setup.config())
    write_folder("clip", tmp_path / "encoder", seed=1)
    other_base = write_base(tmp_path / "base", seed=1)
    after = setup.stores(setup.config(base__model=str(other_base), encoder__model=str(tmp_path / "encoder")))
    assert all(old.folder != new.folder for old, new in zip(before.all, after.all, strict=True))


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("fp16", 2e-3), ("bf16", 1e-2)])
@pytest.mark.parametrize("layout", ["sd15", "sdxl"])
def test_training_gets_what_it_would_encode_itself(
    setup: Setup, base_folder: Callable[..., Path], layout: str, precision: str, tolerance: float
) -> None:
    """The same latents (sampled from mean and deviation), features, text and sizes, batch by batch."""
    buckets = {"data__buckets": layout == "sdxl", "data__bucket_step": 8}
    config = setup.config(base__model=str(base_folder(layout)), cache__precision=precision, **buckets)
    setup.fill(config)
    base, reader = setup.models(config)
    stores = open_stores(config, base, reader)
    records, geometry = (
        load_records(config.data),
        Geometry(base.latent_channels, base.latent_factor, reader.preparation),
    )
    objective = Objective(config.objective, base, reader.no_image(Negative.ZERO_PIXELS), reader)
    cached = open_batches(config, records, World(), geometry, 0, stores)
    plain = open_batches(config, records, World(), geometry, 0)
    for _ in range(PICTURES):
        ready, raw = next(cached), next(plain)
        assert ready.keys == raw.keys
        assert torch.equal(ready.sizes, raw.sizes)
        assert (ready.pixels, ready.references) == (None, None)
        ours, theirs = objective.condition(ready), objective.condition(raw)
        pairs = [(ours.latents, theirs.latents)]
        for one, other in ((ours.text, theirs.text), (ours.features, theirs.features)):
            assert one.keys() == other.keys()
            pairs += [(one[name], other[name]) for name in other]
        for given, expected in pairs:
            scale = expected.abs().max().item()
            torch.testing.assert_close(given.float(), expected, atol=tolerance * scale, rtol=0)


def test_variants_differ_where_the_crop_is_random_and_more_of_them_keep_those_there(setup: Setup) -> None:
    random = {"data__crop": "random", "data__augment": {"crop_scale": 0.5}}
    setup.fill(setup.config(**random, cache__variants=2))
    more = setup.config(**random, cache__variants=3)
    assert _computed(setup.fill(more)) == {"text": 0, "latents": PICTURES, "features": PICTURES}
    stores = setup.stores(more)
    digest = stores.digests.digest(load_records(more.data)[0].image)
    for store, part in ((stores.latents, "mean"), (stores.features, "features")):
        tensors = [store.get(entry_key(digest, variant))[part] for variant in range(3)]
        assert not any(torch.equal(tensors[i], tensors[j]) for i, j in ((0, 1), (1, 2), (0, 2)))


def test_changed_pictures_and_captions_are_made_again(setup: Setup) -> None:
    config = setup.config()
    setup.fill(config)
    setup.write_picture(2, seed=99)
    setup.picture(3).with_suffix(".txt").write_text("something else")
    with pytest.raises(
        CacheError, match=f"2 of {PICTURES} pictures are not in the cache.*run `ipadapter cache CONFIG`"
    ):
        setup.stores(config).require(load_records(config.data))
    assert _computed(setup.fill(config)) == {"text": 1, "latents": 1, "features": 1}
    setup.stores(config).require(load_records(config.data))


def test_equal_pictures_and_captions_are_stored_once(setup: Setup) -> None:
    for number in range(PICTURES):
        setup.write_picture(number, seed=0) if number % 2 else None
    assert _computed(setup.fill(setup.config())) == {"text": 4, "latents": 5, "features": 5}


def test_a_truncated_shard_is_made_again(setup: Setup) -> None:
    config = setup.config()
    setup.fill(config)
    before = {key: setup.stores(config).latents.get(key)["mean"].clone() for key in _latent_keys(setup, config)}
    shard = next(setup.stores(config).latents.folder.glob("*.safetensors"))
    os.truncate(shard, shard.stat().st_size // 2)
    with pytest.raises(CacheError, match="not in the cache"):
        setup.stores(config).require(load_records(config.data))
    assert 0 < _computed(setup.fill(config))["latents"] < PICTURES
    store = setup.stores(config).latents
    assert not store.damaged
    for key, mean in before.items():
        torch.testing.assert_close(store.get(key)["mean"], mean)  # batched with others, so not bit by bit


def _latent_keys(setup: Setup, config: Config) -> list[str]:
    digests = setup.stores(config).digests
    return [entry_key(digests.digest(record.image), 0) for record in load_records(config.data)]


def test_broken_pictures_are_listed_and_left_out(setup: Setup) -> None:
    setup.picture(1).write_bytes(b"no picture")
    os.truncate(setup.picture(4), setup.picture(4).stat().st_size // 2)
    config = setup.config(data__max_skipped=0.5)
    report = setup.fill(config)
    assert report.skipped == 2
    assert (report.shares["latents"].computed, report.shares["latents"].failed) == (5, 2)
    listed = (Path(str(config.cache.path)) / SKIPPED).read_text().splitlines()
    assert len(listed) == 2
    assert any("1.png" in line for line in listed)
    setup.stores(config).require(load_records(config.data))
    assert setup.fill(config).skipped == 2
    assert len((Path(str(config.cache.path)) / SKIPPED).read_text().splitlines()) == 2


def test_too_many_broken_pictures_stop_the_work(setup: Setup) -> None:
    setup.picture(1).write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"1 of 7 pictures cannot be used.*1\.png"):
        setup.fill(setup.config())


def test_the_empty_caption_is_always_there(setup: Setup) -> None:
    config = setup.config()
    setup.fill(config)
    base, reader = setup.models(config)
    stores = open_stores(config, base, reader)
    torch.testing.assert_close(stores.text.get(caption_digest(""))["text"], base.encode_text([""])["text"][0])


def test_values_beyond_the_precision_name_the_remedy() -> None:
    entry = {"features": torch.tensor([7e4])}
    assert stored(entry, "bf16", "a.png")["features"].dtype == torch.bfloat16
    with pytest.raises(CacheError, match=r'features of a\.png reaches 7e\+04.*cache\.precision = "bf16"'):
        stored(entry, "fp16", "a.png")
    with pytest.raises(CacheError, match=r"features of a\.png is NaN.*base\.precision"):
        stored({"features": torch.tensor([torch.nan])}, "fp32", "a.png")


def test_sizes_stay_exact_in_sixteen_bits() -> None:
    sizes = torch.tensor([4097.0, 2049.0, 1.0, 3.0, 1024.0, 1024.0])
    assert torch.equal(stored({"sizes": sizes}, "fp16", "a.png")["sizes"], sizes)


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_the_estimate_is_near_what_the_disk_holds(setup: Setup, precision: str) -> None:
    config = setup.config(cache__precision=precision)
    report = setup.fill(config)
    counts = {"pictures": PICTURES, "references": PICTURES, "captions": CAPTIONS}
    estimate = estimate_bytes(config, *setup.models(config), **counts)
    recipes = 3 * 600
    assert abs(estimate["total"] - sum(report.nbytes.values())) < 0.1 * estimate["total"] + recipes
    assert estimate["total"] == sum(estimate[kind] for kind in report.nbytes)


def test_a_stream_is_cached_as_it_is_read(setup: Setup) -> None:
    def members(number: int) -> dict[str, bytes]:
        return {"png": setup.picture(number).read_bytes(), "txt": b"picture"}

    shards = setup.folder / "shards"
    shards.mkdir()
    write_shard(shards / "0.tar", {f"{number}": members(number) for number in range(5)})
    write_shard(shards / "1.tar", {"5": members(5), "broken": {"png": b"no picture", "txt": b"picture"}})
    config = setup.config(data__path=str(shards), data__max_skipped=0.5)
    models = setup.models(config)
    for computed in ({"text": 2, "latents": 6, "features": 6}, NOTHING):
        report = fill(config, *models, [open_source(config.data)], batch_size=2)
        assert (_computed(report), report.skipped) == (computed, 1)
    base, reader = models
    geometry = Geometry(base.latent_channels, base.latent_factor, reader.preparation)
    batches = open_batches(config, open_source(config.data), World(), geometry, 0, open_stores(config, *models))
    assert all(next(batches).latent_mean is not None for _ in range(6))


def test_every_member_of_a_group_is_cached_as_a_reference(setup: Setup) -> None:
    for number in range(PICTURES):
        folder = setup.folder / "data" / f"group {number % 2}"
        folder.mkdir(exist_ok=True)
        for path in (setup.picture(number), setup.picture(number).with_suffix(".txt")):
            path.rename(folder / path.name)
    config = setup.config(data__reference="group")
    assert _computed(setup.fill(config)) == ALL
    base, reader = setup.models(config)
    geometry = Geometry(base.latent_channels, base.latent_factor, reader.preparation)
    batches = open_batches(config, load_records(config.data), World(), geometry, 0, setup.stores(config))
    assert all(next(batches).features is not None for _ in range(20))


def test_no_path_is_said(setup: Setup) -> None:
    setup.settings["cache"].pop("path")
    with pytest.raises(CacheError, match=r"--set cache\.path=cache"):
        setup.fill(setup.config())
