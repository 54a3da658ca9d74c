"""`ipadapter sample` and `ipadapter eval`: from files to pictures and numbers, and what they say of wrong files."""

import inspect
import json
from dataclasses import asdict, replace
from functools import partial

import numpy as np
import pytest
import torch
import transformers
import typer
from diffusers import FluxPipeline, QwenImagePipeline, StableDiffusion3Pipeline, StableDiffusionPipeline, ZImagePipeline
from PIL import Image
from typer.testing import CliRunner

from ipadapter_core.errors import BadInputError, IPAdapterError, MismatchError
from ipadapter_core.file.spec import EncoderHint, Negative
from ipadapter_core.network.adapter import save_adapter
from ipadapter_trainer.commands.eval import evaluate
from ipadapter_trainer.commands.sample import sample
from ipadapter_trainer.config import AdapterConfig, BaseModelConfig, EncoderConfig
from ipadapter_trainer.config_file import read_config, write_config
from ipadapter_trainer.evaluation import held_out_pictures
from ipadapter_trainer.files.adapter_file import open_adapter
from ipadapter_trainer.files.facts import PREPROCESS_KEY, Preprocess
from ipadapter_trainer.models.image_encoder import load_image_encoder
from ipadapter_trainer.models.loading import load_base
from ipadapter_trainer.models.network import new_adapter
from support.encoders import IMAGE_SIZE, write_folder
from support.tiny_base import write_base
from support.tiny_flux_base import write_flux_base
from support.tiny_sd3_base import write_sd3_base
from support.tiny_studio_base import write_studio_base
from support.training import make_config, write_pictures

CPU = torch.device("cpu")
PLUS = {"kind": "plus", "tokens": 4, "resampler_dim": 64}
TRANSFORMERS = {  # how a base is written, the encoder of its adapter, and its kind
    "flux": (write_flux_base, "clip", {"kind": "base"}),
    "schnell": (partial(write_flux_base, guidance=False), "clip", PLUS),
    "sd3": (write_sd3_base, "siglip", PLUS),
    "z_image": (partial(write_studio_base, family="z_image"), "clip", PLUS),
    "qwen_image": (partial(write_studio_base, family="qwen_image"), "clip", PLUS),
}
app = typer.Typer(pretty_exceptions_enable=False)
app.command("sample")(sample)
app.command("eval")(evaluate)


def _run(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    write_base(folder / "base")
    write_folder("clip", folder / "encoder")
    write_folder("dinov2", folder / "dino", seed=9)
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    transformers.BitImageProcessor(size=size, crop_size=size).save_pretrained(folder / "dino")
    write_pictures(folder / "pictures", 6)
    base = load_base(BaseModelConfig(model=str(folder / "base"), precision="fp32"), CPU)
    encoder = load_image_encoder(EncoderConfig(model=str(folder / "encoder"), precision="fp32"), "base", CPU)
    adapter = new_adapter(AdapterConfig(init="random"), base, encoder).adapter
    save_adapter(adapter, folder / "adapter.safetensors")
    adapter.spec = replace(adapter.spec, encoder=EncoderHint(name=str(folder / "encoder")))
    save_adapter(adapter, folder / "names_folder.safetensors")
    return folder


def _sample_arguments(files, output, **changes):
    options = {
        "base": files / "base",
        "adapter": files / "adapter.safetensors",
        "encoder": files / "encoder",
        "image": files / "pictures" / "0.png",
        "strength": "0,1",
        "steps": 2,
        "size": "64x48",
        "output": output,
        **changes,
    }
    return ["sample", *(part for name, value in options.items() if value is not None for part in (f"--{name}", value))]


def test_sample_draws_a_sheet_and_pictures(files, tmp_path):
    second = ["--image", files / "pictures" / "1.png", "--prompt", "a red cat"]
    said = json.loads(_run(*_sample_arguments(files, tmp_path), *second, "--json"))
    assert [Image.open(path).size for path in said["pictures"]] == [(64, 48)] * 4
    assert Image.open(said["sheet"]).size == (3 * 264 + 8, 28 + 2 * 288 + 8)
    assert said["adapter"].endswith("base")


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=[pytest.mark.long] * (name == "schnell")) for name in TRANSFORMERS]
)
def test_sample_draws_with_transformers(files, encoder_folder, tmp_path, family):
    """What is drawn follows the reference, and at strength 0 it does not."""
    write, reads, kind = TRANSFORMERS[family]
    base, seen, file = write(tmp_path / "base"), encoder_folder(reads), tmp_path / "adapter.safetensors"
    opened = load_base(BaseModelConfig(model=str(base), precision="fp32"), CPU)
    settings = AdapterConfig(init="random", **kind)
    encoder = load_image_encoder(EncoderConfig(model=str(seen), precision="fp32"), settings.kind, CPU)
    save_adapter(new_adapter(settings, opened, encoder).adapter, file)
    made = {"base": base, "adapter": file, "encoder": seen, "guidance": 3}
    drawn = []
    for number, color in enumerate(("white", "red")):
        made["image"] = tmp_path / f"{color}.png"
        Image.new("RGB", (64, 64), color).save(made["image"])
        said = json.loads(_run(*_sample_arguments(files, tmp_path / str(number), **made), "--json"))
        drawn.append([np.asarray(Image.open(path)) for path in said["pictures"]])
    (nothing, one), (nothing_again, other) = drawn
    assert nothing.shape == (48, 64, 3)
    assert np.array_equal(nothing, nothing_again)
    assert not np.array_equal(one, nothing)
    assert not np.array_equal(one, other)


PIPELINES = {  # diffusers' pipeline of a family, and which of its arguments is the guidance
    "flux": (FluxPipeline, "guidance_scale"),
    "schnell": (FluxPipeline, "true_cfg_scale"),
    "sd3": (StableDiffusion3Pipeline, "guidance_scale"),
    "z_image": (ZImagePipeline, "guidance_scale"),
    "qwen_image": (QwenImagePipeline, "true_cfg_scale"),
    "sd15": (StableDiffusionPipeline, "guidance_scale"),
}


def _transformer_arguments(folder, tmp_path, encoder_folder, family, **changes):
    """Of `sample` with a new adapter for a model of a family; the guidance is not said."""
    write, reads, kind = TRANSFORMERS[family]
    base, seen, file = write(tmp_path / "base"), encoder_folder(reads), tmp_path / "adapter.safetensors"
    opened = load_base(BaseModelConfig(model=str(base), precision="fp32"), CPU)
    settings = AdapterConfig(**kind)
    encoder = load_image_encoder(EncoderConfig(model=str(seen), precision="fp32"), settings.kind, CPU)
    save_adapter(new_adapter(settings, opened, encoder).adapter, file)
    made = {"base": base, "adapter": file, "encoder": seen, "strength": "1", "steps": 1, **changes}
    return _sample_arguments(folder, tmp_path / "out", **made)


@pytest.mark.parametrize("family", PIPELINES)
def test_guidance_is_what_diffusers_has_unless_it_is_said(files, encoder_folder, tmp_path, family):
    pipeline, name = PIPELINES[family]
    usual = inspect.signature(pipeline.__call__).parameters[name].default
    if family == "z_image":
        usual += 1  # there 0 is what is 1 elsewhere
    asked = {"steps": 1, "strength": "1"}
    arguments = (
        _sample_arguments(files, tmp_path / "out", **asked)
        if family == "sd15"
        else _transformer_arguments(files, tmp_path, encoder_folder, family)
    )
    assert json.loads(_run(*arguments, "--json"))["guidance"] == usual
    assert json.loads(_run(*arguments, "--guidance", "2.5", "--json"))["guidance"] == 2.5


@pytest.mark.parametrize(
    ("family", "guidance", "message"),
    [
        ("flux", None, "has its guidance built in.*no negative prompt"),
        ("flux", "4", "has its guidance built in.*no negative prompt"),
        ("schnell", None, "guidance 1, at which nothing is compared.*--guidance higher"),
        ("sd15", "1", "guidance 1, at which nothing is compared.*--guidance higher"),
    ],
)
def test_a_negative_prompt_is_not_lost(files, encoder_folder, tmp_path, family, guidance, message):
    arguments = (
        _sample_arguments(files, tmp_path / "out")
        if family == "sd15"
        else _transformer_arguments(files, tmp_path, encoder_folder, family)
    )
    told = [] if guidance is None else ["--guidance", guidance]
    with pytest.raises(BadInputError, match=message):
        _run(*arguments, *told, "--negative-prompt", "ugly")
    assert not (tmp_path / "out").exists()


def test_schnell_is_guided_where_it_is_asked(files, encoder_folder, tmp_path):
    arguments = _transformer_arguments(files, tmp_path, encoder_folder, "schnell", guidance="3")
    first, other = (
        np.asarray(Image.open(json.loads(_run(*arguments, "--negative-prompt", word, "--json"))["sheet"]))
        for word in ("ugly", "a cat, red")
    )
    assert not np.array_equal(first, other)


def test_sample_draws_no_more_than_a_model_has_places_for(files, encoder_folder, tmp_path):
    arguments = _transformer_arguments(files, tmp_path, encoder_folder, "sd3", size="64x208")
    with pytest.raises(BadInputError, match=r"64x208 with .*at most 192 on a side"):
        _run(*arguments)


def test_sample_finds_the_encoder_the_adapter_names(files, tmp_path):
    given, found = (
        json.loads(_run(*_sample_arguments(files, tmp_path / str(number), **changes), "--json"))["pictures"]
        for number, changes in enumerate(
            ({}, {"encoder": None, "adapter": files / "names_folder.safetensors"}),
        )
    )
    for one, other in zip(given, found, strict=True):
        assert np.array_equal(np.asarray(Image.open(one)), np.asarray(Image.open(other)))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"encoder": None}, MismatchError, "no image encoder given.*20-wide pooled image_embeds"),
        ({"encoder": "dino"}, MismatchError, r"DINOv2.* are 24 wide.*20-wide"),
        ({"base": "sdxl"}, MismatchError, "attention layers"),
        ({"adapter": "pictures/0.png"}, IPAdapterError, "0.png"),
        ({"image": "no.png"}, BadInputError, r"--image .*no\.png"),
        ({"strength": "much"}, BadInputError, "--strength 'much'"),
        ({"size": "big"}, BadInputError, "--size big"),
        ({"size": "60"}, BadInputError, "multiples of 8"),
        ({"blocks": "stile"}, BadInputError, "layer preset 'stile'"),
    ],
)
def test_sample_says_what_is_wrong(files, tmp_path, changes, error, message):
    if changes.get("base") == "sdxl" and not (files / "sdxl").exists():
        write_base(files / "sdxl", "sdxl")
    changes = {
        name: files / value if value is not None and name in ("encoder", "base", "adapter", "image") else value
        for name, value in changes.items()
    }
    with pytest.raises(error, match=message):
        _run(*_sample_arguments(files, tmp_path, **changes))
    assert not list(tmp_path.rglob("*.png"))


def test_an_adapter_is_used_as_its_file_states(files, tmp_path):
    base = load_base(BaseModelConfig(model=str(files / "base"), precision="fp32"), CPU)
    config = EncoderConfig(model=str(files / "encoder"), layer=-1, crop="pad", precision="fp32")
    encoder = load_image_encoder(config, "plus", CPU)
    plus = AdapterConfig(kind="plus", resampler_dim=64, tokens=3, negative="zero_pixels")
    stated = Preprocess.of(encoder.spec, encoder.format.pixel_format, "pad")
    file = tmp_path / "plus.safetensors"
    save_adapter(new_adapter(plus, base, encoder).adapter, file, {PREPROCESS_KEY: json.dumps(asdict(stated))})
    opened = open_adapter(file, base, str(files / "encoder"), "fp32")
    assert (opened.reader.encoder.layer, opened.reader.encoder.format.crop) == (-1, "pad")
    assert torch.equal(opened.no_image["features"], encoder.no_image(Negative.ZERO_PIXELS))
    assert not any(parameter.requires_grad for parameter in opened.network.parameters())


@pytest.fixture
def config(files, tmp_path):
    validation = {
        "images": 3,
        "samples": 2,
        "timesteps": [100, 900],
        "sampler_steps": 2,
        "dino_model": str(files / "dino"),
        "prompt": "a shape",
    }
    made = make_config(files / "base", files / "encoder", files / "pictures", tmp_path / "run", validation=validation)
    write_config(made, tmp_path / "config.toml")
    return tmp_path / "config.toml"


def test_eval_measures_on_held_out_pictures(files, config, tmp_path):
    said = json.loads(_run("eval", config, "--adapter", files / "adapter.safetensors", "--json"))
    assert said["held_out"] == 3
    assert said["references"] == 2
    losses = said["losses"]
    assert losses["gap_shuffled"] == pytest.approx(losses["shuffled"] - losses["true"])
    assert list(losses["per_timestep"]) == ["100", "900"]
    assert {name: set(values) for name, values in said["strengths"].items()} == {
        "0": {"dino"},
        "0.5": {"dino", "dino_uplift"},
        "1": {"dino", "dino_uplift"},
    }
    folder = tmp_path / "run" / "eval-adapter"
    assert json.loads((folder / "eval.json").read_text()) == said
    assert len(list(folder.glob("*.png"))) == 1 + 2 * 3


def test_eval_prints_a_table_for_people(files, config):
    output = _run(
        "eval",
        config,
        "--adapter",
        files / "adapter.safetensors",
        "--images",
        "1",
        "--set",
        "validation.strengths=[1.0]",
    )
    assert "losses: gap shuffled" in output
    assert "strengths: 1: dino" in output


def test_eval_never_draws_what_was_trained_on(files, config):
    with pytest.raises(BadInputError, match="4 pictures to draw from, of 3 that are held out"):
        _run("eval", config, "--adapter", files / "adapter.safetensors", "--images", "4")


@pytest.mark.parametrize("holds_out", [True, False])
def test_eval_warns_of_pictures_that_were_trained_on(files, config, caplog, holds_out):
    settings = read_config(config, ["validation.sample_every=5"] if holds_out else [])
    held_out_pictures(settings, None)
    assert ("was trained on those" in caplog.text) != holds_out
