"""A transformer in one file, under the names that ComfyUI's own classes have, is trained as the folder of the same model."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.loaders import single_file_utils
from safetensors.torch import load_file, save_file
from torch import Tensor

from ipadapter_core.errors import IPAdapterError, MismatchError
from ipadapter_core.file.container import read_header
from ipadapter_trainer.config import BaseModelConfig
from ipadapter_trainer.files.checkpoint_export import export_checkpoint
from ipadapter_trainer.hub import ModelNotFoundError
from ipadapter_trainer.loop import train
from ipadapter_trainer.models.float8 import Float8Linear
from ipadapter_trainer.models.loading import load_base
from support import tiny_flux, tiny_qwen_image, tiny_sd3, tiny_z_image
from support.encoders import write_folder
from support.tiny_flux_base import write_flux_base
from support.tiny_sd3_base import write_sd3_base
from support.tiny_studio_base import loadable_z_image, write_studio_base
from support.training import make_config, write_pictures

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("base_directory")  # a ComfyUI, whose classes are asked
PREFIX = "model.diffusion_model."
EVERYTHING = frozenset({"model", "vae", "text"})


def of_z_image() -> dict[str, Tensor]:
    """Its timestep's MLP is as wide as diffusers makes it, not as the tiny one's."""
    names = dict(tiny_z_image.comfy_z_image(tiny_z_image.diffusers_z_image()).model.diffusion_model.state_dict())
    wide = loadable_z_image().state_dict()
    return names | {name: tensor for name, tensor in wide.items() if name.startswith("t_embedder.")}


def weights_of(model: Any) -> dict[str, Tensor]:
    return dict(model.model.diffusion_model.state_dict())


FAMILIES: dict[str, tuple[Callable[[Path], Path], Callable[[], dict[str, Tensor]]]] = {
    "flux": (write_flux_base, lambda: weights_of(tiny_flux.comfy_flux(tiny_flux.diffusers_flux()))),
    "sd3": (
        lambda folder: write_sd3_base(folder, transformer=tiny_sd3.diffusers_sd3()),
        lambda: weights_of(tiny_sd3.comfy_sd3(tiny_sd3.diffusers_sd3())),
    ),
    "z_image": (partial(write_studio_base, family="z_image"), of_z_image),
    "qwen_image": (
        partial(write_studio_base, family="qwen_image"),
        lambda: weights_of(tiny_qwen_image.comfy_qwen_image(tiny_qwen_image.diffusers_qwen_image(), in_any=True)),
    ),
}


@pytest.fixture(autouse=True)
def flux_is_narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers splits FLUX's single blocks at the width of the published ones, which it has as a constant."""
    convert = single_file_utils.convert_flux_transformer_checkpoint_to_diffusers
    code = convert.__code__
    assert 3072 in code.co_consts
    narrow = tuple(tiny_flux.WIDTH if constant == 3072 else constant for constant in code.co_consts)
    monkeypatch.setattr(convert, "__code__", code.replace(co_consts=narrow))


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def folder(family: str, tmp_path: Path) -> Path:
    return FAMILIES[family][0](tmp_path / "base")


def write(family: str, folder: Path, *, prefix: str = "", **more: Tensor) -> Path:
    """One of `FAMILIES` as a file, named as its makers name it, or, with its prefix, as ComfyUI saves it."""
    made = FAMILIES[family][1]()
    if family == "flux" and not prefix:
        made = {name.replace("_norm.weight", "_norm.scale"): tensor for name, tensor in made.items()}
    tensors = {f"{prefix}{name}": tensor.contiguous() for name, tensor in made.items()}
    save_file(tensors | more, folder / "one.safetensors")
    return folder / "one.safetensors"


def load(file: Path, folder: Path, only: frozenset[str] = EVERYTHING, **settings: Any) -> Any:
    config = BaseModelConfig(model=str(file), config=str(folder), precision="fp32", **settings)
    return load_base(config, CPU, only=only)


@pytest.mark.parametrize("prefix", ["", PREFIX])
def test_it_has_the_weights_of_the_folder(family: str, folder: Path, tmp_path: Path, prefix: str) -> None:
    beside = {"vae.encoder.conv_in.weight": torch.zeros(1)} if prefix else {}  # of a checkpoint that has all parts
    given = load(write(family, tmp_path, prefix=prefix, **beside), folder)
    wanted = load_base(BaseModelConfig(model=str(folder), precision="fp32"), CPU)
    assert type(given) is type(wanted)
    ours, theirs = given.model.state_dict(), wanted.model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert (given.vae_id, given.text_id) == (wanted.vae_id, wanted.text_id)
    assert given.sites.sites == wanted.sites.sites


def test_a_file_in_float8_is_read(family: str, folder: Path, tmp_path: Path) -> None:
    """One without scales: its numbers are what they are."""
    file = write(family, tmp_path)
    save_file({name: tensor.to(torch.float8_e4m3fn) for name, tensor in load_file(file).items()}, file)
    given = dict(load(file, folder).model.named_parameters())
    wanted = load_base(BaseModelConfig(model=str(folder), precision="fp32"), CPU).model
    for name, tensor in wanted.named_parameters():
        assert torch.equal(given[name], tensor.to(torch.float8_e4m3fn).float()), name


def test_it_is_trained_in_float8(family: str, folder: Path, tmp_path: Path) -> None:
    base = load(write(family, tmp_path), folder, quantization="fp8")
    assert any(isinstance(module, Float8Linear) for module in base.model.modules())


def test_a_run_is_trained_and_exported(tmp_path: Path) -> None:
    folder = FAMILIES["flux"][0](tmp_path / "base")
    write_folder("clip", tmp_path / "encoder")
    base = {"model": str(write("flux", tmp_path)), "config": str(folder)}
    pictures = write_pictures(tmp_path / "pictures", 4)
    once = {"steps": 1, "batch_size": 2, "log_every": 1, "trackers": []}
    config = make_config(folder, tmp_path / "encoder", pictures, tmp_path / "run", base=base, train=once)
    assert train(config).is_finished
    stated = read_header(export_checkpoint(config.run, None).path)["__metadata__"]
    assert json.loads(stated["ipadapter.training"])["prediction_type"] == "flow"
    assert train(config.model_copy(update={"base": BaseModelConfig(model=str(folder), precision="fp32")})).step == 1


def test_a_cache_needs_no_weights_of_it(family: str, folder: Path, tmp_path: Path) -> None:
    base = load(write(family, tmp_path), folder, only=frozenset({"vae", "text"}))
    assert base.model.device.type == "meta"
    assert base.encode_text(["a cat"])


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("scaled", MismatchError, "few bits with scales beside them"),
        ("other", ModelNotFoundError, "without a transformer of SD3 or SD3.5"),
        ("cut", ModelNotFoundError, "cannot be loaded"),
        ("nf4", IPAdapterError, "diffusers quantises no single files"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, name: str, error: type[IPAdapterError], message: str) -> None:
    folder = FAMILIES["sd3"][0](tmp_path / "base")
    settings = {"quantization": "nf4"} if name == "nf4" else {}
    file = tmp_path / "one.safetensors"
    if name == "other":
        write("qwen_image", tmp_path)
    elif name == "cut":
        tensors = FAMILIES["sd3"][1]()
        save_file({key: x.contiguous() for key, x in tensors.items() if "joint_blocks.1." not in key}, file)
    else:
        write(
            "sd3",
            tmp_path,
            **({"joint_blocks.0.x_block.mlp.fc1.scale_weight": torch.ones(1)} if name == "scaled" else {}),
        )
    with pytest.raises(error, match=message):
        load(file, folder, **settings)


@pytest.mark.parametrize("only", [EVERYTHING, frozenset({"vae", "text"})])
@pytest.mark.parametrize("key", ["num_layers", "num_single_layers", "guidance_embeds"])
def test_a_config_of_another_model_leaves_no_weights_out(tmp_path: Path, key: str, only: frozenset[str]) -> None:
    """diffusers would leave out what has no place, and say so in a log: FLUX.1-dev would be trained as schnell."""
    folder = FAMILIES["flux"][0](tmp_path / "base")
    file, config = write("flux", tmp_path), folder / "transformer" / "config.json"
    load(file, folder, only)
    settings = json.loads(config.read_text())
    config.write_text(json.dumps(settings | {key: settings[key] - 1 if key.startswith("num") else False}))
    with pytest.raises(ModelNotFoundError, match=r"more weights than .* describes.*the very model"):
        load(file, folder, only)


def test_what_lies_beside_the_transformer_is_no_matter(tmp_path: Path) -> None:
    """A checkpoint of all parts may have a text encoder in few bits, which is not read."""
    folder = FAMILIES["sd3"][0](tmp_path / "base")
    load(write("sd3", tmp_path, prefix=PREFIX, **{"text_encoders.t5xxl.x.scale_weight": torch.ones(1)}), folder)
