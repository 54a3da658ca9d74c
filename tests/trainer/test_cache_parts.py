"""A cache of only a part: what it has is read, the rest is encoded as without one."""

from collections.abc import Callable, Mapping
from itertools import combinations, islice
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from ipadapter_core.file.spec import Negative
from ipadapter_trainer.backbones.unet import UNetBackbone
from ipadapter_trainer.cache.fill import fill
from ipadapter_trainer.cache.store import CacheError, CacheStore
from ipadapter_trainer.cache.training import open_stores
from ipadapter_trainer.cli import app
from ipadapter_trainer.config import Config
from ipadapter_trainer.config_file import ConfigError, write_config
from ipadapter_trainer.data.loader import World, held_out_batches, open_batches
from ipadapter_trainer.data.pictures import picture_digest
from ipadapter_trainer.data.records import DataError
from ipadapter_trainer.data.sources import load_records, open_sources
from ipadapter_trainer.loop import train
from ipadapter_trainer.models.loading import load_base
from ipadapter_trainer.objective import Objective
from ipadapter_trainer.planning import make_plan
from ipadapter_trainer.readers.opening import open_reader
from ipadapter_trainer.readers.pictures import PictureReader
from ipadapter_trainer.run import geometry, open_run
from support.pictures import write_shard
from support.training import make_config, write_pictures

CPU = torch.device("cpu")
ALL = ("latents", "text", "features")
SOME = [parts for count in (1, 2) for parts in combinations(ALL, count)]
PICTURES = 4
RANDOM = {"crop": "random", "flip": 0.5, "augment": {"crop_scale": 0.5, "flip": 0.5}}
READ = {"latents": ("latent_mean", "latent_std"), "text": ("text",), "features": ("features",)}
ENCODED = {"latents": ("pixels",), "text": (), "features": ("references",)}

Make = Callable[..., Config]


@pytest.fixture
def config(
    tmp_path: Path, small_base_folder: Callable[..., Path], encoder_folder: Callable[..., Path]
) -> Callable[..., Config]:
    """Of a run with some parts in the cache; none: without a cache."""
    pictures = write_pictures(tmp_path / "pictures", PICTURES)

    def make(*parts: str, layout: str = "sd15", **changes: dict[str, Any]) -> Config:
        place = {"path": str(tmp_path / "cache"), "precision": "fp32", "parts": list(parts)}
        cache = {**(place if parts else {}), **changes.pop("cache", {})}
        data = {"path": str(pictures), **changes.pop("data", {})}
        run = tmp_path / "-".join(("run", *parts))
        return make_config(
            small_base_folder(layout), encoder_folder("clip"), pictures, run, data=data, cache=cache, **changes
        )

    return make


def models(config: Config) -> tuple[UNetBackbone, PictureReader]:
    reader = open_reader(config, CPU)
    return load_base(config.base, CPU, only=frozenset({"vae", "text"})), reader


def computed(config: Config) -> dict[str, int]:
    report = fill(config, *models(config), open_sources(config))
    return {kind: share.computed for kind, share in report.shares.items()}


def tensors(batch: object, names: tuple[str, ...]) -> list[torch.Tensor]:
    values = [value for name in names if (value := getattr(batch, name)) is not None]
    return [part for value in values for part in (value.values() if isinstance(value, Mapping) else (value,))]


@pytest.mark.parametrize("layout", ["sd15", "sdxl"])
def test_what_is_cached_is_that_of_a_whole_cache_and_the_rest_that_of_none(config: Make, layout: str) -> None:
    """Bit by bit, at random crops, flips and changes: so the loss is made of nothing else."""
    random = {"layout": layout, "data": RANDOM, "cache": {"variants": 2}}
    whole = config(*ALL, **random)
    base, reader = models(whole)
    fill(whole, base, reader, open_sources(whole))
    records = load_records(whole.data)
    objective = Objective(whole.objective, base, reader.no_image(Negative.ZERO_FEATURES), reader)
    for parts in (*SOME, ALL):
        part = config(*parts, **random)
        read = [
            open_batches(one, records, World(), geometry(base, reader), 0, stores)
            for one, stores in (
                (part, open_stores(part, base, reader)),
                (whole, open_stores(whole, base, reader)),
                (part, None),
            )
        ]
        for ours, cached, plain in islice(zip(*read, strict=True), PICTURES):
            assert ours.keys == cached.keys == plain.keys
            for kind in ALL:
                like, unlike = (cached, plain) if kind in parts else (plain, cached)
                wanted = READ[kind] if kind in parts else ENCODED[kind]
                assert tensors(ours, wanted) or not wanted
                assert all(map(torch.equal, tensors(ours, wanted), tensors(like, wanted)))
                assert not tensors(ours, ENCODED[kind] if kind in parts else READ[kind])
                assert not tensors(unlike, wanted)
            assert torch.equal(ours.sizes, (cached if "latents" in parts else plain).sizes)
            mine, theirs, raw = (objective.condition(batch) for batch in (ours, cached, plain))
            for name in ("latents", "text", "features"):
                like = theirs if name in parts else raw
                assert all(map(torch.equal, tensors(mine, (name,)), tensors(like, (name,))))


def test_losses_are_those_of_the_whole_cache_and_of_none(config: Make) -> None:
    part, whole, plain = (train(config(*parts, train={"steps": 2})).losses for parts in (("latents", "text"), ALL, ()))
    assert len(part) == 2
    assert part == pytest.approx(list(whole), rel=1e-4)
    assert part == pytest.approx(list(plain), rel=1e-4)


def test_a_reference_that_is_not_cached_is_changed_anew_each_time(config: Make) -> None:
    part = config("latents", "text", data=RANDOM, train={"batch_size": 1})
    base, reader = models(part)
    fill(part, base, reader, open_sources(part))
    stores, records = open_stores(part, base, reader), load_records(part.data)
    batches = open_batches(part, records, World(), geometry(base, reader), 0, stores)
    seen: dict[str, list[Any]] = {}
    for batch in islice(batches, 2 * PICTURES):
        seen.setdefault(batch.keys[0], []).append(batch)
    for first, second in seen.values():
        assert torch.equal(first.latent_mean, second.latent_mean)
        assert not torch.equal(first.references["pixels"], second.references["pixels"])
    plain = held_out_batches(part, records, geometry(base, reader), stores)
    as_they_are = held_out_batches(config(), records, geometry(base, reader))
    for batch, other in zip(plain, as_they_are, strict=True):
        assert torch.equal(batch.references["pixels"], other.references["pixels"])


def test_only_what_is_wanted_is_made_and_what_is_there_serves_every_choice(config: Make) -> None:
    assert computed(config("latents", "text")) == {"text": PICTURES + 1, "latents": PICTURES}
    assert computed(config("text")) == {"text": 0}
    assert computed(config("features", "text")) == {"text": 0, "features": PICTURES}
    assert computed(config(*ALL)) == {"text": 0, "latents": 0, "features": 0}


def test_what_a_choice_lacks_is_said_and_what_it_does_not_want_is_not(config: Make) -> None:
    part = config("latents", "text")
    computed(part)
    open_stores(part, *models(part)).require(load_records(part.data))
    wider = config(*ALL)
    with pytest.raises(CacheError, match=f"{PICTURES} of {PICTURES} pictures are not in the cache"):
        open_stores(wider, *models(wider)).require(load_records(wider.data))
    with pytest.raises(CacheError, match="not in the cache"):
        open_run(wider)


def test_a_cache_from_before_there_were_parts_is_read(config: Make, tmp_path: Path) -> None:
    """Recipes, keys and tensors as they were then, written by hand."""
    whole = config(*ALL)
    base, reader = models(whole)
    encoder = reader.encoder
    pixels = encoder.format.pixel_format
    same: dict[str, Any] = {"format": 1, "seed": None, "precision": "fp32"}
    recipes: dict[str, dict[str, Any]] = {
        "latents": {**same, "autoencoder": base.vae_id, "resolution": 64, "bucket_step": None, "crop": "center", "flip": 0.0},
        "features": {
            **same, "encoder": encoder.identity, "size": pixels.size, "mean": list(pixels.mean),
            "std": list(pixels.std), "crop": "center", "augment": None,
        },
        "text": {
            "format": 1, "precision": "fp32", "text_encoder": base.text_id,
            "tokenizer": [[len(text.tokenizer), text.tokenizer.model_max_length] for text in base.texts],
        },
    }  # fmt: skip
    records = load_records(whole.data)
    digests = {f"{picture_digest(record.image.read())}:0" for record in records}
    texts = {picture_digest(caption.encode()) for caption in ("", *(record.caption for record in records))}
    entries: dict[str, dict[str, dict[str, torch.Tensor]]] = {
        "latents": {key: {"mean": torch.ones(2), "std": torch.ones(2), "sizes": torch.arange(6)} for key in digests},
        "features": {key: {"features": torch.ones(2)} for key in digests},
        "text": {key: {"text": torch.ones(2)} for key in texts},
    }
    for kind, recipe in recipes.items():
        CacheStore(tmp_path / "cache", kind, recipe).write(entries[kind])
    for parts in (*SOME, ALL):
        stores = open_stores(config(*parts), base, reader)
        stores.require(records)
        assert {store.kind: len(store) for store in stores.all} == {kind: len(entries[kind]) for kind in parts}


@pytest.mark.parametrize(("parts", "skipped"), [(("features", "text"), 1), (("latents",), 1), (("text",), 0)])
def test_broken_pictures_are_met_where_they_are_read(
    config: Make, tmp_path: Path, parts: tuple[str, ...], skipped: int
) -> None:
    (tmp_path / "pictures" / "1.png").write_bytes(b"no picture")
    broken = config(*parts, data={"max_skipped": 0.5})
    assert fill(broken, *models(broken), open_sources(broken)).skipped == skipped
    open_stores(broken, *models(broken)).require(load_records(broken.data))


@pytest.mark.parametrize("part", ["features", "latents"])
def test_too_many_broken_pictures_of_a_stream_stop_the_work_whatever_is_cached(
    config: Make, tmp_path: Path, part: str
) -> None:
    members = {f"{number:03}": {"png": b"no picture %d" % number, "txt": b"a text"} for number in range(110)}
    write_shard(tmp_path / "00.tar", members)
    with pytest.raises(DataError, match=r"of 110 pictures read so far cannot be used"):
        computed(config(part, data={"path": str(tmp_path / "00.tar")}))


def test_the_encoders_of_what_is_not_cached_stay(config: Make) -> None:
    for parts, gone in ((("latents", "text"), {"text"}), (("features",), set()), (("text", "features"), {"text"})):
        part = config(*parts)
        computed(part)
        run = open_run(part)
        run.release_encoders()
        assert {kind for kind, model in (("text", run.base.pipeline.text_encoder),) if model is None} == gone
        assert torch.isfinite(run.loss(next(run.batches(0))))


def test_the_command_makes_what_is_wanted_with_the_models_it_takes(config: Make, tmp_path: Path) -> None:
    for parts in (("features",), ("latents",), ("text",)):
        file = tmp_path / "my.toml"
        write_config(config(*parts), file)
        ran = CliRunner().invoke(app, ["cache", str(file), "--prune", "--json"])
        assert ran.exit_code == 0, ran.output
    kinds = sorted(path.name.split("-")[0] for path in (tmp_path / "cache").iterdir() if path.is_dir())
    assert kinds == ["features", "latents", "text"], "pruning leaves what another choice of parts reads"


def test_plan_counts_what_is_encoded(config: Make) -> None:
    part = config("latents", "text")
    computed(part)
    plan, whole = (make_plan(one) for one in (part, config()))
    assert plan.measured["is_cached"] is True
    assert plan.measured["encoded"] == ["features"]
    assert whole.measured["encoded"] == ["latents", "text", "features"]
    vision = models(part)[1].encoder.vision.model
    weights = (*vision.parameters(), *vision.buffers())
    assert plan.memory["frozen_encoders"] == sum(tensor.nbytes for tensor in weights)
    assert whole.memory["frozen_encoders"] > plan.memory["frozen_encoders"]
    assert set(plan.cache) == {"latents_bytes", "text_bytes", "total_bytes"}
    assert plan.cache["total_bytes"] == plan.cache["latents_bytes"] + plan.cache["text_bytes"]  # type: ignore[operator]


def test_a_cache_of_nothing_is_a_mistake_in_the_config(config: Make) -> None:
    with pytest.raises(ConfigError, match=r"cache\.parts is empty.*cache\.path"):
        config(cache={"path": "cache", "parts": []})
    with pytest.raises(ConfigError, match="parts"):
        config(cache={"path": "cache", "parts": ["latent"]})
