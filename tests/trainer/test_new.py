"""`ipadapter new` writes a config that fits the pictures, the models and the machine, and that trains as it is."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from ipadapter_core.errors import IPAdapterError
from ipadapter_trainer.cli import app
from ipadapter_trainer.config import Config
from ipadapter_trainer.config_file import read_config
from ipadapter_trainer.loop import train
from ipadapter_trainer.start.suggestion import Wanted, suggest, to_toml
from ipadapter_trainer.start.survey import Machine, Models, Pictures, find_models, survey
from support.pictures import write_shards
from support.tiny_anima_base import write_anima_base
from support.tiny_flux_base import write_flux_base
from support.tiny_sd3_base import write_sd3_base
from support.tiny_studio_base import write_studio_base
from support.training import write_pictures

GIB = 2**30
RECIPES = Path(__file__).parents[2] / "trainer" / "configs"
TWENTY = Pictures(count=20, captioned=20, side=700, cut=0.0, groups=0, broken=0)
GPU = Machine(memory=12 * GIB, has_bf16=True, cores=8)
SD15 = Models(base="sd15", encoder="clip", is_sdxl=False, fits_published=True)
SDXL = replace(SD15, is_sdxl=True)


def config_of(tmp_path: Path, pictures: Pictures, models: Models = SD15, machine: Machine = GPU) -> Config:
    file = tmp_path / "made.toml"
    file.write_text(to_toml(suggest("pictures", "mine", pictures, models, machine), "header"), encoding="utf-8")
    return read_config(file)


def draw(folder: Path, count: int, size: tuple[int, int]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.new("RGB", size, (number, 0, 0)).save(folder / f"{number}.png")


def test_few_pictures_start_from_the_published_adapter(tmp_path: Path) -> None:
    config = config_of(tmp_path, TWENTY)
    assert config.adapter.kind == "plus"
    assert config.adapter.pretrained == "models/ip-adapter-plus_sd15.safetensors"
    assert (config.data.reference, config.data.resolution, config.data.buckets) == ("self", 512, False)
    assert not config.data.augment.is_neutral, "or it would learn to copy"
    assert config.optimizer.learning_rate < 1e-4
    assert config.validation.images == 5
    assert config.data.caption is None, "all have one"
    sdxl = config_of(tmp_path, TWENTY, SDXL)
    assert sdxl.adapter.pretrained == "sdxl_models/ip-adapter-plus_sdxl_vit-h.safetensors"


def test_very_many_pictures_start_from_nothing(tmp_path: Path) -> None:
    config = config_of(tmp_path, replace(TWENTY, count=300_000, captioned=300_000))
    assert (config.adapter.kind, config.adapter.pretrained, config.optimizer.learning_rate) == ("base", None, 1e-4)
    assert config.cache.path is None, "it would not fit on a disk"
    assert config.train.batch_size * config.train.accumulate == 32


def test_too_few_to_hold_some_out_hold_none_out(tmp_path: Path) -> None:
    made = suggest("pictures", "mine", replace(TWENTY, count=5), SD15, GPU)
    assert "validation" not in made.config
    assert any("too few to hold some out" in note for note in made.notes)


@pytest.mark.parametrize(
    ("side", "models", "resolution"),
    [(700, SD15, 512), (450, SD15, 448), (100, SD15, 384), (2000, SDXL, 1024), (900, SDXL, 896), (300, SDXL, 768)],
)
def test_the_resolution_is_what_pictures_and_model_have(
    tmp_path: Path, side: int, models: Models, resolution: int
) -> None:
    assert config_of(tmp_path, replace(TWENTY, side=side), models).data.resolution == resolution


def test_more_memory_is_used(tmp_path: Path) -> None:
    for models, least in ((SD15, 6), (SDXL, 16)):
        made = [
            config_of(tmp_path, TWENTY, models, replace(GPU, memory=size * GIB)) for size in (least, 12, 24, 48, 80)
        ]
        first, *_, last = made
        assert first.train.gradient_checkpointing
        assert (last.train.batch_size, last.train.accumulate, last.train.gradient_checkpointing) == (4, 1, False)
        assert {config.train.batch_size * config.train.accumulate for config in made} == {4}


def test_a_gpu_that_is_too_small_gets_what_takes_least(tmp_path: Path) -> None:
    small = replace(GPU, memory=12 * GIB)
    config = config_of(tmp_path, TWENTY, SDXL, small)
    assert (config.optimizer.name, config.optimizer.ema_decay, config.train.batch_size) == ("adafactor", None, 1)
    assert any("too little memory" in note for note in suggest("p", "mine", TWENTY, SDXL, small).notes)
    assert config_of(tmp_path, TWENTY, SD15, small).optimizer.name == "adamw"


def test_precision_is_what_the_machine_has(tmp_path: Path) -> None:
    old = config_of(tmp_path, TWENTY, SD15, replace(GPU, has_bf16=False))
    none = config_of(tmp_path, TWENTY, SD15, Machine(memory=None, has_bf16=False, cores=2))
    assert (old.base.precision, none.base.precision, none.data.workers) == ("fp16", "fp32", 2)


def test_pictures_are_looked_at(tmp_path: Path) -> None:
    draw(tmp_path / "square", 8, (600, 600))
    draw(tmp_path / "wide", 8, (800, 400))
    for name in ("cats", "dogs"):
        draw(tmp_path / "groups" / name, 4, (600, 600))
    (tmp_path / "square" / "0.txt").write_text("a word")
    (tmp_path / "square" / "9.png").write_bytes(b"no picture")
    assert survey(str(tmp_path / "square")) == Pictures(count=9, captioned=1, side=600, cut=0.0, groups=0, broken=1)
    assert survey(str(tmp_path / "wide")).cut == 0.5
    grouped = survey(str(tmp_path / "groups"))
    assert grouped.groups == 2
    assert config_of(tmp_path, survey(str(tmp_path / "wide"))).data.buckets
    assert config_of(tmp_path, survey(str(tmp_path / "square"))).data.caption == ""
    assert config_of(tmp_path, grouped).data.reference == "group"


def test_models_are_known_by_their_folders(
    base_folder: Callable[..., Path], encoder_folder: Callable[..., Path]
) -> None:
    assert not find_models(str(base_folder("sd15")), "laion/CLIP-ViT-H-14-laion2B-s32B-b79K").fits_published
    assert find_models(str(base_folder("sdxl")), str(encoder_folder("clip"))).is_sdxl
    assert find_models("stabilityai/stable-diffusion-xl-base-1.0", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K") == Models(
        base="stabilityai/stable-diffusion-xl-base-1.0",
        encoder="laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
        is_sdxl=True,
        fits_published=True,
    )
    assert not find_models("sd15", str(encoder_folder("clip"))).fits_published
    assert not find_models("sd15", "facebook/dinov2-base").fits_published
    assert find_models("owner/my-sdxl/diffusers@v1", "clip").is_sdxl
    assert not find_models("owner/sd15/xl@xl", "clip").is_sdxl


def test_the_config_it_writes_trains(
    tmp_path: Path,
    small_base_folder: Callable[..., Path],
    encoder_folder: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_pictures(Path("my pictures"), 8)
    models = ["--base", str(small_base_folder()), "--encoder", str(encoder_folder())]
    result = CliRunner().invoke(app, ["new", "my pictures", *models, "--json"])
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert said["config"] == "my pictures.toml"
    assert said["next"] == ["ipadapter plan 'my pictures.toml'", "ipadapter train 'my pictures.toml'"]
    small = ["train.steps=1", "data.resolution=64", "data.workers=0", "validation.every=1", "train.trackers=[]"]
    config = read_config(Path("my pictures.toml"), [*small, "validation.sampler_steps=1", "cache.variants=1"])
    assert train(config).is_finished
    again = CliRunner().invoke(app, ["new", "my pictures", *models])
    assert isinstance(again.exception, IPAdapterError)
    assert "my pictures.toml, which is there" in str(again.exception)


def test_what_has_to_be_downloaded_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_pictures(Path("mine"), 8)
    said = json.loads(CliRunner().invoke(app, ["new", "mine", "-o", "my.toml", "--json"]).stdout)
    assert said["next"] == [
        "hf download h94/IP-Adapter models/ip-adapter-plus_sd15.safetensors --local-dir .",
        "ipadapter plan my.toml",
        "ipadapter train my.toml",
    ]


def test_commands_are_whole_lines_on_a_narrow_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_pictures(Path("mine"), 8)
    said = CliRunner().invoke(app, ["new", "mine"], env={"COLUMNS": "60"}).stdout.splitlines()
    assert said[-3:] == [
        "next: hf download h94/IP-Adapter models/ip-adapter-plus_sd15.safetensors --local-dir .",
        "next: ipadapter plan mine.toml",
        "next: ipadapter train mine.toml",
    ]


def test_what_is_decided_already_is_kept_and_what_hangs_on_it_follows(tmp_path: Path) -> None:
    def decided(**wanted: Any) -> Config:
        made = suggest("pictures", "mine", TWENTY, SD15, GPU, Wanted(**wanted))
        (tmp_path / "made.toml").write_text(to_toml(made, "header"), encoding="utf-8")
        return read_config(tmp_path / "made.toml")

    short = decided(kind="base", steps=120)
    assert (short.adapter.kind, short.adapter.pretrained) == ("base", None)
    assert (short.train.steps, short.optimizer.warmup_steps) == (120, 12)
    assert short.checkpoint.every <= 120
    assert short.optimizer.learning_rate == 1e-4
    mine = decided(start_from="mine.safetensors")
    assert (mine.adapter.kind, mine.adapter.pretrained) == ("plus", "mine.safetensors")
    assert mine.optimizer.learning_rate == 2e-5
    anew = decided(start_from="none")
    assert (anew.adapter.kind, anew.adapter.pretrained, anew.optimizer.learning_rate) == ("plus", None, 1e-4)


def test_the_command_takes_what_is_decided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_pictures(Path("mine"), 8)
    asked = ["--kind", "base", "--steps", "70", "--start-from", "none"]
    assert CliRunner().invoke(app, ["new", "mine", *asked]).exit_code == 0
    config = read_config(Path("mine.toml"))
    assert (config.adapter.kind, config.train.steps, config.adapter.pretrained) == ("base", 70, None)


def test_shards_are_not_looked_at(tmp_path: Path) -> None:
    write_shards(tmp_path / "shards", shards=1, per_shard=2)
    with pytest.raises(IPAdapterError, match=r"streamed.*sd15_base\.toml"):
        survey(str(tmp_path / "shards"))


@pytest.mark.parametrize(
    ("write", "recipe"),
    [
        (write_flux_base, "flux_base"),
        (write_sd3_base, "sd35_large"),
        (partial(write_studio_base, family="z_image"), "z_image_plus"),
        (partial(write_studio_base, family="qwen_image"), "qwen_image_plus"),
        (write_anima_base, "anima_plus"),
    ],
)
def test_nothing_is_suggested_for_transformers(
    tmp_path: Path, write: Callable[[Path], Path], recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be an adapter of SD1.5 that begins with one of SD1.5's; the recipe that is named is there."""
    base, pictures = write(tmp_path / "model"), write_pictures(tmp_path / "pictures", 8)
    monkeypatch.chdir(tmp_path)
    made = CliRunner().invoke(app, ["new", str(pictures), "--base", str(base)])
    assert isinstance(made.exception, IPAdapterError)
    assert f"trainer/configs/{recipe}.toml" in str(made.exception)
    assert (RECIPES / f"{recipe}.toml").is_file()
    assert not list(tmp_path.glob("*.toml"))


@pytest.mark.parametrize(
    ("name", "recipe"),
    [
        ("black-forest-labs/FLUX.1-dev", "flux_base"),
        ("models/flux1-dev.safetensors", "flux_base"),
        ("stabilityai/stable-diffusion-3.5-large", "sd35_large"),
        ("models/sd3.5_medium.safetensors", "sd35_large"),
        ("Tongyi-MAI/Z-Image-Turbo", "z_image_plus"),
        ("Qwen/Qwen-Image@main", "qwen_image_plus"),
        ("circlestone-labs/Anima-Base-v1.0-Diffusers", "anima_plus"),
    ],
)
def test_transformers_are_known_by_their_names(name: str, recipe: str) -> None:
    with pytest.raises(IPAdapterError, match=rf"by its name.*trainer/configs/{recipe}\.toml"):
        find_models(name, "clip")


@pytest.mark.parametrize("name", ["cagliostrolab/animagine-xl-4.0", "owner/animaPencilXL_v5", "sdxl-influx-free/x"])
def test_models_with_names_alike_are_none(name: str) -> None:
    find_models(name, "clip")
