"""`inspect` says what a file is and which programs load it, for people and for programs."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from typer.testing import CliRunner

from ipadapter_core.errors import BadInputError, UnreadableFileError
from ipadapter_core.network.adapter import save_adapter
from ipadapter_trainer.commands.convert import convert
from ipadapter_trainer.commands.export import export
from ipadapter_trainer.commands.inspect import inspect
from ipadapter_trainer.files.export import export_adapter
from ipadapter_trainer.files.facts import ExportFacts, Preprocess
from ipadapter_trainer.files.inspection import inspect_path
from support import bad_files
from support.published import OTHER_FILES, PUBLISHED, nested, random_tensors, tiny_adapter, write_bin, write_safetensors
from support.published_transformers import instantx_flux, xlabs_flux
from support.training_states import run_config, tiny_ipadapter, write_accelerate_state, write_checkpoint

CLIP = Preprocess(encoder_kind="CLIP", crop="center", size=32, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.2))


def test_an_exported_adapter(tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    facts = ExportFacts(title="Mine", preprocess=CLIP, training={"step": 5}, license="MIT")
    export_adapter(tiny_ipadapter("plus", num_tokens=16), path, precision="bf16", facts=facts)
    result: Any = inspect_path(path)
    assert result["kind"] == "adapter"
    assert (result["tokens"], result["sites"], result["site_widths"], result["text_width"]) == (16, 3, [32, 64], 16)
    assert (result["feature"], result["layer"], result["negative"]) == ("hidden_states", -2, "zero_pixels")
    assert result["precision"] == "bf16"
    assert result["bytes"] == path.stat().st_size
    assert result["resampler"]["depth"] == 4
    assert result["loads_in"] == {
        "native nodes": True,
        "diffusers": True,
        "other ComfyUI nodes": False,
        "InvokeAI": False,
    }
    assert "resampler of width 16 with 12 heads" in result["why_not"]["other ComfyUI nodes"][0]
    assert result["metadata"]["title"] == "Mine"
    assert result["metadata"]["license"] == "MIT"
    assert result["preprocess"]["crop"] == "center"
    assert result["training"] == {"step": 5}
    assert "faults" not in result


@pytest.mark.parametrize(("kind", "tokens", "loads"), [("base", 4, True), ("base", 8, False)])
def test_a_published_bin_file(tmp_path: Path, kind: Any, tokens: int, loads: bool) -> None:
    path = write_bin(tmp_path / "base.bin", nested(tiny_ipadapter(kind, num_tokens=tokens).state_dict()))
    result: Any = inspect_path(path)
    assert result["loads_in"] == {
        "native nodes": True,
        "diffusers": loads,
        "other ComfyUI nodes": loads,
        "InvokeAI": False,
    }
    assert result["metadata"] == {}


def test_published_sizes_load_everywhere(tmp_path: Path) -> None:
    """The real SD1.5 base adapter's names and shapes."""
    path = write_safetensors(
        tmp_path / "sd15.safetensors", random_tensors(PUBLISHED["sd15_base"](), dtype=torch.float16)
    )
    result: Any = inspect_path(path)
    assert set(result["loads_in"].values()) == {True}
    assert "CLIP ViT-H/14" in result["encoder"]
    assert result["parameters"] == 22_319_616


def test_faults_of_an_adapter_that_loads(tmp_path: Path) -> None:
    widths = (1, 1, 2, 2, 4, 4, 4, 4, 4, 4, 2, 2, 2, 1, 1, 1)  # the middle block before the up blocks
    tensors = random_tensors(tiny_adapter("base", site_dims=widths, cross_attention_dim=2))
    result: Any = inspect_path(write_safetensors(tmp_path / "wrong.safetensors", tensors))
    assert "middle block before the up blocks" in result["faults"][0]
    assert "ipadapter convert" in result["next"]
    result = inspect_path(bad_files.weight_with_nan(tmp_path))
    assert result["faults"] == ["NaN or infinite values among the weights"]
    assert not result["loads_in"]["diffusers"]


def test_training_states_and_what_to_do_with_them(tmp_path: Path) -> None:
    state = write_accelerate_state(tmp_path / "checkpoint-10")
    result: Any = inspect_path(state.folder)
    assert (result["kind"], result["state_file"]) == ("training state", "model.safetensors")
    assert "accelerate" in result["source"]
    assert result["next"].startswith("ipadapter convert")
    result = inspect_path(bad_files.without_ip_adapter(tmp_path))
    assert result["kind"] == "incomplete adapter"
    assert "--state" in result["next"]


def test_runs_and_their_checkpoints(tmp_path: Path) -> None:
    config = run_config(tmp_path / "run", tmp_path)
    folder = write_checkpoint(config, tiny_ipadapter(), step=20, ema=tiny_ipadapter())
    result: Any = inspect_path(config.run)
    assert (result["kind"], result["checkpoints"]) == ("training run", ["step-00000020"])
    assert result["last"] == {"step": 20, "samples": 160}
    result = inspect_path(folder)
    assert (result["kind"], result["step"], result["has_moving_average"]) == ("checkpoint of a run", 20, True)
    assert result["adapter"]["kind"] == "adapter"


def test_models_and_encoders(
    tmp_path: Path, base_folder: Callable[..., Path], encoder_folder: Callable[..., Path]
) -> None:
    result: Any = inspect_path(base_folder())
    assert (result["kind"], result["pipeline"]) == ("text-to-image model", "StableDiffusionPipeline")
    result = inspect_path(encoder_folder("siglip"))
    assert (result["kind"], result["encoder"]["kind"]) == ("image encoder", "SigLIP")
    result = inspect_path(encoder_folder("dinov2") / "model.safetensors")
    assert result["kind"] == "image encoder"
    assert result["name"].startswith("DINOv2")


@pytest.mark.parametrize(
    ("name", "what"),
    [("controlnet", "a ControlNet"), ("lora_kohya", "a LoRA"), ("vae", "a VAE"), ("checkpoint", "a whole checkpoint")],
)
def test_other_kinds_by_name(tmp_path: Path, name: str, what: str) -> None:
    path = write_safetensors(tmp_path / "other.safetensors", random_tensors(OTHER_FILES[name], dtype=torch.float16))
    result: Any = inspect_path(path)
    assert result["kind"] == "something else"
    assert what in result["what"]


def test_families_that_the_trainer_does_not_build(tmp_path: Path) -> None:
    shapes = instantx_flux(blocks=2, width=128, image=8, tokens=2)
    result: Any = inspect_path(write_safetensors(tmp_path / "flux.safetensors", random_tensors(shapes)))
    assert result["kind"] == "adapter that the trainer does not build"
    assert "InstantX FLUX" in result["what"]


def test_xlabs_adapters_are_known(tmp_path: Path) -> None:
    shapes = xlabs_flux(4, blocks=2, width=32, image=8, text=16)
    result: Any = inspect_path(write_safetensors(tmp_path / "flux.safetensors", random_tensors(shapes)))
    assert (result["kind"], result["family"], result["sites"]) == ("adapter", "XLabs FLUX v1", 2)
    assert result["loads_in"] == {
        "native nodes": True,
        "diffusers": True,
        "other ComfyUI nodes": False,
        "InvokeAI": False,
    }
    assert "faults" not in result


def test_what_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UnreadableFileError, match="run code"):
        inspect_path(bad_files.code_in_bin(tmp_path))
    with pytest.raises(UnreadableFileError, match="no usable adapter file"):
        inspect_path(bad_files.truncated_safetensors(tmp_path))
    with pytest.raises(BadInputError, match="no run, training state"):
        inspect_path(tmp_path)


@pytest.fixture
def program() -> Callable[..., str]:
    app = typer.Typer()
    for command in (export, convert, inspect):
        app.command()(command)

    def run(*arguments: object) -> str:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.stdout

    return run


def test_commands_give_one_json_object(
    tmp_path: Path, encoder_folder: Callable[..., Path], program: Callable[..., str]
) -> None:
    config = run_config(tmp_path / "run", encoder_folder("clip"))
    write_checkpoint(config, tiny_ipadapter())
    exported = tmp_path / "mine.safetensors"
    result = json.loads(program("export", config.run, "-o", exported, "--precision", "bf16", "--json"))
    assert (result["precision"], result["read_back"]) == ("bf16", "equal")
    assert result["portability"]["label"] == "native nodes and diffusers"
    converted = tmp_path / "again.safetensors"
    result = json.loads(program("convert", exported, "-o", converted, "--encoder", "my-clip", "--json"))
    assert result["runs_here"] is True
    result = json.loads(program("inspect", converted, "--json"))
    assert result["encoder"].startswith("my-clip")
    assert result["training"]["recipe"]["train"]["steps"] == 30
    assert result["training"]["converted_from"] == "mine.safetensors"


def test_commands_show_a_table(tmp_path: Path, program: Callable[..., str]) -> None:
    path = tmp_path / "a.safetensors"
    save_adapter(tiny_ipadapter(), path)
    text = program("inspect", path)
    assert "family" in text
    assert "zero_features" in text
    for command in ("export", "convert", "inspect"):
        assert f"ipadapter {command}" in " ".join(program(command, "--help").split())


@pytest.mark.parametrize("kind", ["base", "plus"])
def test_an_adapter_of_zeros_is_called_one(tmp_path: Path, kind: Any) -> None:
    """Nothing differs from nothing: no share of it can be counted."""
    adapter = tiny_ipadapter(kind)
    for parameter in adapter.parameters():
        torch.nn.init.zeros_(parameter)
    save_adapter(adapter, tmp_path / "zeros.safetensors")
    result: Any = inspect_path(tmp_path / "zeros.safetensors")
    assert "nan" not in json.dumps(result).lower()
    assert result["loads_in"]["diffusers"]
    assert result["faults"] == ["all weights are 0: it changes no picture"]
    assert "next" not in result
    report = export_adapter(
        adapter,
        tmp_path / "out.safetensors",
        precision="fp16",
        facts=ExportFacts(title="0", preprocess=CLIP, training={}),
    )
    assert report.rounding == 0


def test_people_are_told_sizes_in_units(tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    export_adapter(
        tiny_ipadapter(), path, precision="fp32", facts=ExportFacts(title="Mine", preprocess=CLIP, training={})
    )
    app = typer.Typer()
    app.command()(inspect)
    said = CliRunner().invoke(app, [str(path)], env={"COLUMNS": "200"}).stdout
    nbytes = path.stat().st_size
    assert re.search(rf"^size +{nbytes / 1000:.1f} kB *$", said, re.MULTILINE), said
    assert re.search(r"^preprocess: size +32 pixels *$", said, re.MULTILINE), said
    assert json.loads(CliRunner().invoke(app, [str(path), "--json"]).stdout)["bytes"] == nbytes
