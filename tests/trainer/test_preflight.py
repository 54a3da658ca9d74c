"""A run says what is wrong with its data before it loads a model, and makes its cache itself."""

import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from ipadapter_core.errors import IPAdapterError
from ipadapter_trainer.cache.fill import fill
from ipadapter_trainer.cache.training import open_stores
from ipadapter_trainer.cli import app
from ipadapter_trainer.config import Config
from ipadapter_trainer.data.sources import open_sources
from ipadapter_trainer.evaluation import evaluate
from ipadapter_trainer.loop import train
from ipadapter_trainer.models.loading import load_base
from ipadapter_trainer.planning import make_plan
from ipadapter_trainer.readers.opening import open_reader
from ipadapter_trainer.run import open_run
from support.pictures import write_shards
from support.published import random_tensors, write_safetensors
from support.published_transformers import instantx_flux
from support.tiny_pe import write_pe_folder
from support.training import make_config, write_pictures

CPU = torch.device("cpu")
NOWHERE = Path("nowhere")


def broken(folder: Path) -> dict[str, Any]:
    for number in range(4):
        (folder / f"{number}.png").write_bytes(b"no picture")
    return {}


def missing_references(folder: Path) -> dict[str, Any]:
    rows = "".join(f"{path.name},gone.png\n" for path in sorted(folder.glob("*.png")))
    (folder / "metadata.csv").write_text(f"image,reference\n{rows}")
    return {"data": {"reference": "column", "reference_column": "reference", "caption": ""}}


def one_held_out(folder: Path) -> dict[str, Any]:
    return {"validation": {"every": 1, "images": 1}}


def no_pretrained(folder: Path) -> dict[str, Any]:
    return {"adapter": {"pretrained": str(folder / "gone.safetensors")}}


def pretrained_is_a_picture(folder: Path) -> dict[str, Any]:
    return {"adapter": {"pretrained": str(folder / "0.png")}}


def output_in_a_file(folder: Path) -> dict[str, Any]:
    return {"train": {"output": str(folder / "0.png" / "run")}}


def cache_is_a_file(folder: Path) -> dict[str, Any]:
    return {"cache": {"path": str(folder / "0.png")}}


MISTAKES: dict[Callable[[Path], dict[str, Any]], str] = {
    broken: r"4 of 8 pictures looked at cannot be used, the first .*0\.png.*max_skipped",
    missing_references: r"8 of 8 pictures looked at cannot be used, the first .*gone\.png",
    one_held_out: r"1 validation pictures.*at least 2",
    no_pretrained: r"gone\.safetensors",
    pretrained_is_a_picture: r"0\.png",
    output_in_a_file: r"train\.output.*0\.png is a file",
    cache_is_a_file: r"cache\.path.*0\.png is a file",
}


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__)
def test_data_is_checked_before_models_are_loaded(tmp_path: Path, mistake: Callable[[Path], dict[str, Any]]) -> None:
    """The models of this config do not exist, and nobody gets so far as to see it."""
    pictures = write_pictures(tmp_path / "pictures", 8)
    config = make_config(NOWHERE, NOWHERE, pictures, tmp_path / "run", **mistake(pictures))
    with pytest.raises(IPAdapterError, match=MISTAKES[mistake]):
        open_run(config)
    assert not (tmp_path / "run").exists()


def test_the_encoder_is_looked_for_before_the_base_is_loaded(tmp_path: Path) -> None:
    pictures = write_pictures(tmp_path / "pictures", 8)
    with pytest.raises(IPAdapterError, match=r"encoder\.model = 'nowhere'"):
        open_run(make_config(NOWHERE, NOWHERE, pictures, tmp_path / "run"))


def test_a_layer_the_encoder_lacks_is_said_before_the_base_is_loaded(
    tmp_path: Path, encoder_folder: Callable[..., Path]
) -> None:
    pictures = write_pictures(tmp_path / "pictures", 8)
    settings: dict[str, dict[str, Any]] = {"adapter": {"kind": "plus"}, "encoder": {"layer": -9}}
    with pytest.raises(IPAdapterError, match=r"without hidden_states of layer -9.*a layer from -\d to -1"):
        open_run(make_config(NOWHERE, encoder_folder("clip"), pictures, tmp_path / "run", **settings))


def test_a_feature_the_encoder_lacks_is_said_before_the_base_is_loaded(tmp_path: Path) -> None:
    write_pe_folder(tmp_path / "pe")
    pictures = write_pictures(tmp_path / "pictures", 8)
    wanted = r'without image_embeds\. Expected: encoder\.feature = "last_hidden_state": .* set encoder\.feature'
    with pytest.raises(IPAdapterError, match=wanted):
        open_run(make_config(NOWHERE, tmp_path / "pe", pictures, tmp_path / "run"))


def test_a_missing_timm_is_said_before_the_base_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pe_folder(tmp_path / "pe")
    pictures = write_pictures(tmp_path / "pictures", 8)
    last = {"encoder": {"feature": "last_hidden_state"}}
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(IPAdapterError, match="pip install timm"):
        open_run(make_config(NOWHERE, tmp_path / "pe", pictures, tmp_path / "run", **last))


@pytest.mark.parametrize("name", ["clip_model", "dino_model"])
def test_what_rates_pictures_is_looked_for_before_anything_is_encoded(
    tmp_path: Path, small_base_folder: Callable[..., Path], encoder_folder: Callable[..., Path], name: str
) -> None:
    pictures, cache = write_pictures(tmp_path / "pictures", 8), {"path": str(tmp_path / "cache")}
    validation = {"sample_every": 1, "images": 2, name: "nowhere"}
    models = small_base_folder(), encoder_folder()
    with pytest.raises(IPAdapterError, match=rf"validation\.{name} = 'nowhere'"):
        train(make_config(*models, pictures, tmp_path / "run", validation=validation, cache=cache))
    assert not (tmp_path / "cache").exists()


def test_a_wrong_adapter_file_is_said_before_the_base_is_loaded(tmp_path: Path) -> None:
    pictures = write_pictures(tmp_path / "pictures", 8)
    config = make_config(NOWHERE, NOWHERE, pictures, tmp_path / "run", validation={"every": 1, "images": 2})
    other = random_tensors(instantx_flux(blocks=2, width=128, image=24, tokens=4))
    write_safetensors(pictures / "other.safetensors", other)
    files = {"gone.safetensors": "gone", "0.png": "0.png", "other.safetensors": "InstantX FLUX.*the trainer does not"}
    for file, said in files.items():
        with pytest.raises(IPAdapterError, match=said):
            evaluate(config, pictures / file, tmp_path / "eval", images=None)
        pair = ["--adapter", str(pictures / file), "--image", str(pictures / "0.png")]
        drawn = CliRunner().invoke(app, ["sample", "--base", "nowhere", *pair, "-o", str(tmp_path / "out")])
        assert re.search(said, str(drawn.exception))


def test_nothing_is_drawn_for_a_place_where_no_folder_can_be(tmp_path: Path) -> None:
    pictures = write_pictures(tmp_path / "pictures", 8)
    config = make_config(NOWHERE, NOWHERE, pictures, tmp_path / "run", validation={"every": 1, "images": 2})
    with pytest.raises(IPAdapterError, match=r"--output .*0\.png is a file"):
        evaluate(config, tmp_path / "gone.safetensors", pictures / "0.png", images=None)
    given = ["--adapter", "gone.safetensors", "--image", str(pictures / "0.png"), "-o", str(pictures / "0.png" / "out")]
    drawn = CliRunner().invoke(app, ["sample", "--base", "nowhere", *given])
    assert "0.png is a file" in str(drawn.exception)


def test_a_few_broken_pictures_are_no_reason_to_stop(
    tmp_path: Path, small_base_folder: Callable[..., Path], encoder_folder: Callable[..., Path]
) -> None:
    pictures = write_pictures(tmp_path / "pictures", 8)
    (pictures / "0.png").write_bytes(b"no picture")
    open_run(make_config(small_base_folder(), encoder_folder(), pictures, tmp_path / "run"))


def entries(config: Config) -> dict[Path, int]:
    assert config.cache.path is not None
    return {path: path.stat().st_mtime_ns for path in Path(config.cache.path).rglob("*.safetensors")}


def test_training_fills_its_cache_and_learns_the_same(
    tmp_path: Path, small_base_folder: Callable[..., Path], encoder_folder: Callable[..., Path]
) -> None:
    pictures = write_pictures(tmp_path / "pictures", 6)

    def config(name: str, steps: int = 2) -> Config:
        return make_config(
            small_base_folder(),
            encoder_folder(),
            pictures,
            tmp_path / name,
            cache={"path": str(tmp_path / f"{name}-cache"), "precision": "fp32"},
            train={"steps": steps, "batch_size": 2, "log_every": 1, "trackers": []},
            validation={"every": 2, "images": 2, "timesteps": [500]},
        )

    before = config("before")
    reader = open_reader(before, load_base(before.base, CPU).device)
    fill(before, load_base(before.base, CPU), reader, open_sources(before))
    assert make_plan(config("itself")).to_json()["measured"]["is_cached"] is False  # type: ignore[index]
    assert not (tmp_path / "itself-cache").exists(), "a plan fills nothing"
    assert train(config("itself")).losses == train(before).losses
    made = entries(config("itself"))
    assert len(made) == len(entries(before)) > 0
    train(config("itself", steps=3))
    assert entries(config("itself")) == made, "what is there is not made again"


def test_training_completes_a_cache_that_lacks_some(
    tmp_path: Path, small_base_folder: Callable[..., Path], encoder_folder: Callable[..., Path]
) -> None:
    pictures = write_pictures(tmp_path / "pictures", 8)
    few = tmp_path / "few"
    few.mkdir()
    for number in range(4):
        shutil.copy(pictures / f"{number}.png", few)
        shutil.copy(pictures / f"{number}.txt", few)
    for name, folder in (("first", few), ("second", pictures)):
        cache = {"path": str(tmp_path / "cache")}
        config = make_config(small_base_folder(), encoder_folder(), folder, tmp_path / name, cache=cache)
        assert train(config).is_finished
    base = load_base(config.base, CPU)
    open_stores(config, base, open_reader(config, CPU)).require(open_sources(config)[0])


def test_training_fills_the_cache_of_a_stream(
    tmp_path: Path, small_base_folder: Callable[..., Path], encoder_folder: Callable[..., Path]
) -> None:
    write_shards(tmp_path / "shards", shards=2, per_shard=4)
    data = tmp_path / "shards" / "{00..01}.tar"
    config = make_config(
        small_base_folder(), encoder_folder(), data, tmp_path / "run", cache={"path": str(tmp_path / "c")}
    )
    assert train(config).is_finished
    assert len(entries(config)) >= 3
