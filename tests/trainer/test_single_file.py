"""A base in a single file, in its original names, is the base that its folder in diffusers layout is."""

import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import huggingface_hub
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from safetensors.torch import load_file, save_file

from ipadapter_core.errors import MismatchError
from ipadapter_trainer.backbones.backbone import PARTS
from ipadapter_trainer.backbones.unet import UNetBackbone
from ipadapter_trainer.config import BaseModelConfig
from ipadapter_trainer.hub import ModelNotFoundError
from ipadapter_trainer.models.loading import load_base
from support.ldm_names import write_single_file
from support.trained import COLORS, write_teachable_base

CPU = torch.device("cpu")
CAPTIONS = ["a red cat", ""]
# name: layout of the folder, what it predicts, and whether its text encoder has SD2.x's names
MODELS = {"sd15": ("sd15", "epsilon", False), "sdxl": ("sdxl", "epsilon", False), "sd2": ("sd15", "v_prediction", True)}


def load(model: Path, *only: str, **settings: Any) -> UNetBackbone:
    """Whole, or only some parts."""
    config = BaseModelConfig(model=str(model), **{"precision": "fp32", **settings})
    return load_base(config, CPU, only=frozenset(only) or PARTS)


@pytest.fixture(scope="module")
def single_file(tmp_path_factory: pytest.TempPathFactory, base_folder: Callable[..., Path]) -> Callable[[str], Any]:
    """(file, folder of the same model), by name of the model."""
    folder = tmp_path_factory.mktemp("single")

    def make(name: str) -> tuple[Path, Path]:
        layout, prediction_type, open_clip = MODELS[name]
        source, path = base_folder(layout, prediction_type), folder / f"{name}.safetensors"
        if not path.is_file():
            write_single_file(source, path, open_clip=open_clip)
        return path, source

    return make


def same_weights(one: Any, other: Any) -> bool:
    left, right = one.state_dict(), other.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("name", MODELS)
def test_is_the_model_of_the_folder(single_file: Callable, name: str) -> None:
    path, folder = single_file(name)
    single, whole = load(path, config=str(folder)), load(folder)
    assert type(single.pipeline) is type(whole.pipeline)
    assert same_weights(single.model, whole.model)
    assert same_weights(single.vae, whole.vae)
    for one, other in zip(single.texts, whole.texts, strict=True):
        assert same_weights(one.model, other.model)
    assert dict(single.schedule.config) == dict(whole.schedule.config)
    assert single.schedule.config.prediction_type == MODELS[name][1]
    assert (single.vae_id, single.text_id) == (whole.vae_id, whole.text_id)
    text, expected = single.encode_text(CAPTIONS), whole.encode_text(CAPTIONS)
    assert text.keys() == expected.keys()
    assert all(torch.equal(text[name], expected[name]) for name in text)
    pixels = torch.rand(1, 3, 32, 32) * 2 - 1
    assert torch.equal(single.encode_pixels(pixels)[0], whole.encode_pixels(pixels)[0])
    assert torch.equal(single.scale_latents(torch.ones(1)), whole.scale_latents(torch.ones(1)))


def test_parts_that_are_not_asked_for_are_not_there(single_file: Callable) -> None:
    path, folder = single_file("sdxl")
    text = load(path, "text", config=str(folder))
    assert (text.model.device.type, text.vae) == ("meta", None)
    assert torch.equal(text.encode_text(CAPTIONS)["text"], load(folder, "text").encode_text(CAPTIONS)["text"])
    unet = load(path, "model", config=str(folder))
    assert unet.vae is unet.pipeline.text_encoder is unet.pipeline.text_encoder_2 is None
    assert unet.is_sdxl
    for model, config in ((path, str(folder)), (folder, None)):  # a cache of features alone needs nothing of it
        nothing = load_base(BaseModelConfig(model=str(model), config=config), CPU, only=frozenset())
        assert nothing.model.device.type == "meta"
        assert nothing.vae is nothing.pipeline.text_encoder is nothing.pipeline.text_encoder_2 is None


@pytest.mark.parametrize("form", ["file", "folder"])
@pytest.mark.parametrize(("name", "other"), [("sd15", "v_prediction"), ("sd2", "epsilon")])
def test_prediction_type_can_be_stated(single_file: Callable, form: str, name: str, other: str) -> None:
    path, folder = single_file(name)
    model, config = (path, {"config": str(folder)}) if form == "file" else (folder, {})
    assert load(model, "vae", **config, prediction_type=other).schedule.config.prediction_type == other
    assert load(model, "vae", **config).schedule.config.prediction_type == MODELS[name][1]


def test_mark_of_a_v_prediction_finetune_is_read(single_file: Callable, tmp_path: Path) -> None:
    path, folder = single_file("sd15")
    marked = tmp_path / "marked.safetensors"
    save_file({**load_file(path), "v_pred": torch.zeros(0)}, marked, {"format": "pt"})
    config = {"config": str(folder)}
    assert load(marked, "vae", **config).schedule.config.prediction_type == "v_prediction"
    assert load(marked, "vae", **config, prediction_type="epsilon").schedule.config.prediction_type == "epsilon"


@pytest.mark.parametrize("form", ["file", "file without", "folder"])
def test_another_autoencoder_takes_the_place_of_its_own(single_file: Callable, tmp_path: Path, form: str) -> None:
    path, folder = single_file("sd15")
    if form == "file without":
        path = without(path, "first_stage_model.", tmp_path)
    model, config = (folder, {}) if form == "folder" else (path, {"config": str(folder)})
    colors = write_teachable_base(tmp_path / "base") / COLORS
    tiny = load(model, "vae", "text", **config, vae=str(colors))
    assert isinstance(tiny.vae, AutoencoderTiny)
    mean, deviation = tiny.encode_pixels(torch.full((1, 3, 32, 32), 0.5))
    assert mean.shape == (1, 4, 4, 4)
    torch.testing.assert_close(mean[0, :, 0, 0], torch.tensor([0.5, 0.5, 0.5, 0.0]))
    assert not deviation.any()
    whole = load(model, "vae", **config, vae=str(tmp_path / "base" / "vae"))
    assert isinstance(whole.vae, AutoencoderKL)
    assert whole.latent_factor == tiny.latent_factor == 8


@pytest.mark.parametrize(("halves", "precision"), [("all", "fp16"), ("unet", "fp32"), ("text_encoder", "fp32")])
def test_folder_whose_weights_are_there_in_fp16_only(
    single_file: Callable, tmp_path: Path, halves: str, precision: str
) -> None:
    _, source = single_file("sd15")
    folder = shutil.copytree(source, tmp_path / "model")
    for path in folder.glob("*/*.safetensors"):
        if halves in ("all", path.parent.name):
            save_file({name: tensor.half() for name, tensor in load_file(path).items()}, path, {"format": "pt"})
            path.rename(path.with_name(f"{path.stem}.fp16.safetensors"))
    base, whole = load(folder, precision=precision), load(source, precision=precision)
    weight, expected = base.model.conv_in.weight, whole.model.conv_in.weight
    assert weight.dtype == expected.dtype
    rounded = expected.half().to(expected.dtype) if halves != "text_encoder" else expected
    assert torch.equal(weight, rounded)


def test_nothing_asks_the_network(single_file: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def refuse(*address: object, **_: object) -> NoReturn:
        asked.append(address)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(Exception, match=r"no network|connect"):
        huggingface_hub.HfApi().model_info("nobody/nothing")
    assert asked, "this is how it would be noticed"
    asked.clear()
    for name in ("sd15", "sdxl"):
        path, folder = single_file(name)
        load(path, config=str(folder), vae=str(folder / "vae"))
        load(folder)
    assert not asked


def without(path: Path, start: str, folder: Path) -> Path:
    """A copy of a file without the tensors whose names start so."""
    copy = folder / "less.safetensors"
    save_file({name: tensor for name, tensor in load_file(path).items() if not name.startswith(start)}, copy)
    return copy


UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model."
PART_OF = {"model": "model", "first_stage_model": "vae", "cond_stage_model": "text"}
LACKING = {
    UNET: r"without a UNet \(no tensor is called model\.diffusion_model",
    VAE: r"without an autoencoder .*base\.vae may name another",
    TEXT: "without a text encoder",
    UNET + "middle_block.0.in_layers.2.": "some of its weights are missing",
    VAE + "decoder.conv_in": "some of its weights are missing",
    TEXT + "transformer.text_model.final_layer_norm.": "some of its weights are missing",
}


@pytest.mark.parametrize("lacking", LACKING)
def test_file_that_lacks_something(single_file: Callable, tmp_path: Path, lacking: str) -> None:
    path, folder = single_file("sd15")
    with pytest.raises(ModelNotFoundError, match=LACKING[lacking]):
        load(without(path, lacking, tmp_path), PART_OF[lacking.partition(".")[0]], config=str(folder))


def cut(path: Path, folder: Path) -> Path:
    copy = folder / "cut.safetensors"
    copy.write_bytes(path.read_bytes()[:-100])
    return copy


def not_tensors(path: Path, folder: Path) -> Path:
    copy = folder / "page.safetensors"
    copy.write_text("<html>404</html>")
    return copy


def pickled(path: Path, folder: Path) -> Path:
    copy = folder / "model.ckpt"
    torch.save({"state_dict": {}}, copy)
    return copy


# name of it: how it is made of the SD1.5 file, base.config, and what is said
WRONG: dict[str, tuple[Callable[[Path, Path], Path], str | None, str]] = {
    "no config": (lambda path, folder: path, None, r"without base\.config.*stable-diffusion-v1-5"),
    "config that is not there": (lambda path, folder: path, "/no/where/at/all", r"base\.config = '/no/where/at/all'"),
    "config of another model": (lambda path, folder: path, "sdxl", r"base\.config = .*expected shape"),
    "not there": (lambda path, folder: folder / "x.safetensors", "sd15", r"x\.safetensors', which does not exist"),
    "not all there": (cut, "sd15", r"cut\.safetensors.*cannot be loaded"),
    "no tensors": (not_tensors, "sd15", r"page\.safetensors is damaged, or no safetensors file"),
    "pickled": (pickled, "sd15", r"model\.ckpt', which is no safetensors file.*may run code and is not opened"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_file_or_config(single_file: Callable, tmp_path: Path, wrong: str) -> None:
    make, config, message = WRONG[wrong]
    path, _ = single_file("sd15")
    with pytest.raises(ModelNotFoundError, match=message) as error:
        load(make(path, tmp_path), "text", config=str(single_file(config)[1]) if config in MODELS else config)
    assert "\n" not in str(error.value)


def test_sd15_config_for_an_sdxl_file(single_file: Callable) -> None:
    with pytest.raises(ModelNotFoundError, match=r"base\.config is of such a model"):
        load(single_file("sdxl")[0], "text", config=str(single_file("sd15")[1]))


def test_folder_of_which_something_is_made_up(single_file: Callable, tmp_path: Path) -> None:
    """transformers would go on with random weights, and with a tokenizer that knows no word."""
    _, source = single_file("sd15")
    folder = shutil.copytree(source, tmp_path / "model")
    weights = folder / "text_encoder" / "model.safetensors"
    tensors = load_file(weights)
    name = next(name for name in tensors if name.endswith("final_layer_norm.weight"))
    save_file({key: value for key, value in tensors.items() if key != name}, weights, {"format": "pt"})
    with pytest.raises(ModelNotFoundError, match=r"text_encoder lacks .*final_layer_norm\.weight"):
        load(folder, "text")
    save_file(tensors, weights, {"format": "pt"})
    shutil.rmtree(folder / "tokenizer")
    with pytest.raises(ModelNotFoundError, match="without the files of tokenizer"):
        load(folder, "text")


def test_wrong_autoencoder(single_file: Callable) -> None:
    _, folder = single_file("sd15")
    with pytest.raises(MismatchError, match=r"base\.vae = .* is a UNet2DConditionModel"):
        load(folder, vae=str(folder / "unet"))
    with pytest.raises(ModelNotFoundError, match=r"base\.vae = '/no/where' cannot be loaded.*correct base\.vae"):
        load(folder, vae="/no/where")
