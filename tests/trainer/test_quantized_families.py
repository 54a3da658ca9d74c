"""Frozen transformers in 4 or 8 bits: each family and kind is trained over one, exported, and drawn with."""

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from ipadapter_core.file.container import read_tensors
from ipadapter_core.network.adapter import load_adapter, save_adapter
from ipadapter_trainer.cli import app
from ipadapter_trainer.config import AdapterConfig, BaseModelConfig, Config, EncoderConfig
from ipadapter_trainer.files.checkpoint_export import export_checkpoint
from ipadapter_trainer.loop import train
from ipadapter_trainer.models.image_encoder import load_image_encoder
from ipadapter_trainer.models.loading import load_base
from ipadapter_trainer.models.network import new_adapter
from ipadapter_trainer.optimizer import MissingPackageError
from ipadapter_trainer.run import open_run
from ipadapter_trainer.state import ADAPTER, find_checkpoints
from support.tiny_anima_base import write_anima_base
from support.tiny_flux_base import write_flux_base
from support.tiny_sd3_base import sd3_transformer, write_sd3_base
from support.tiny_studio_base import write_studio_base
from support.training import make_config, write_pictures

pytestmark = pytest.mark.usefixtures("bitsandbytes", "no_report")
CPU = torch.device("cpu")
LAYERS = {"nf4": "Linear4bit", "int8": "Linear8bitLt"}  # classes of bitsandbytes
CLOSE = {"nf4": 0.3, "int8": 0.05}  # of the largest weight


def medium(folder: Path) -> Path:
    """With second attentions, as SD3.5-Medium."""
    return write_sd3_base(folder, transformer=sd3_transformer(dual=(0,)))


PLUS = {"kind": "plus", "tokens": 4, "resampler_dim": 64}
BASES: dict[str, Callable[[Path], Path]] = {
    "flux": write_flux_base,
    "sd3": write_sd3_base,
    "sd35_medium": medium,
    "z_image": partial(write_studio_base, family="z_image"),
    "qwen_image": partial(write_studio_base, family="qwen_image"),
    "anima": write_anima_base,
}
KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {  # base, encoder, adapter
    "flux base": ("flux", "clip", {"kind": "base"}),
    "flux plus": ("flux", "clip", PLUS),
    "sd3": ("sd3", "siglip", PLUS),
    "sd35_medium": ("sd35_medium", "siglip", PLUS),
    "z_image": ("z_image", "clip", PLUS),
    "qwen_image": ("qwen_image", "clip", PLUS),
    "anima": ("anima", "clip", PLUS),
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def of(name: str) -> Path:
        if name not in made:
            made[name] = BASES[name](tmp_path_factory.mktemp("base") / name)
        return made[name]

    return of


@pytest.fixture
def config(
    bases: Callable[[str], Path], encoder_folder: Callable[[str], Path], tmp_path: Path
) -> Callable[[str, str], Config]:
    pictures = write_pictures(tmp_path / "pictures", 4)

    def make(kind: str, quantization: str) -> Config:
        base, encoder, adapter = KINDS[kind]
        return make_config(
            bases(base),
            encoder_folder(encoder),
            pictures,
            tmp_path / f"run-{quantization}",
            base={"precision": "fp32", "quantization": quantization},
            encoder={"precision": "fp32", **({"feature": "last_hidden_state"} if base == "anima" else {})},
            adapter=adapter,
            train={"steps": 2, "batch_size": 2, "log_every": 1, "trackers": [], "gradient_checkpointing": True},
            optimizer={"learning_rate": 0.01},
        )

    return make


@pytest.mark.parametrize("quantization", LAYERS)
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_trained_over(config: Callable[[str, str], Config], kind: str, quantization: str) -> None:
    """Two steps, after which the file that is exported has the weights that were trained."""
    whole, asked = open_run(config(kind, "none")), config(kind, quantization)
    run = open_run(asked)
    assert any(type(module).__name__ == LAYERS[quantization] for module in run.base.model.modules())
    assert run.base.sites.sites == whole.base.sites.sites
    for name, wanted in whole.network.adapter.state_dict().items():  # what starts from the model's own weights
        given = run.network.adapter.state_dict()[name]
        assert (given - wanted).abs().max() <= CLOSE[quantization] * wanted.abs().max(), name
    losses = [float(one.loss(next(one.batches(0))).detach()) for one in (run, whole)]
    assert losses[0] == pytest.approx(losses[1], rel=CLOSE[quantization])
    assert losses[0] != losses[1]
    assert train(asked).is_finished
    exported = export_checkpoint(asked.run, None).path
    trained = read_tensors(find_checkpoints(asked.run)[-1] / ADAPTER).tensors
    given = load_adapter(exported).state_dict()
    assert given.keys() == trained.keys()
    assert all(torch.equal(given[name], tensor) for name, tensor in trained.items())
    before = run.network.adapter.state_dict()
    assert not all(torch.equal(before[name], tensor) for name, tensor in trained.items()), "it has learnt"


@pytest.fixture
def drawing(
    bases: Callable[[str], Path], encoder_folder: Callable[[str], Path], tmp_path: Path
) -> Callable[..., bytes]:
    """`ipadapter sample` with options: the one picture that it draws."""
    base, encoder, file = bases("flux"), encoder_folder("clip"), tmp_path / "adapter.safetensors"
    opened = load_base(BaseModelConfig(model=str(base), precision="fp32"), CPU)
    seen = load_image_encoder(EncoderConfig(model=str(encoder), precision="fp32"), "base", CPU)
    save_adapter(new_adapter(AdapterConfig(init="random"), opened, seen).adapter, file)
    reference = write_pictures(tmp_path / "pictures", 1) / "0.png"

    def draw(*options: str) -> bytes:
        made = ["--base", base, "--adapter", file, "--encoder", encoder, "--image", reference, "--output", tmp_path]
        fixed = ["--strength", "1", "--steps", "2", "--size", "64", "--json"]
        result = CliRunner().invoke(app, ["sample", *map(str, made), *fixed, *options], catch_exceptions=False)
        (picture,) = json.loads(result.stdout)["pictures"]
        return Image.open(picture).tobytes()

    return draw


@pytest.mark.parametrize("quantization", ["fp8", *LAYERS])
def test_it_is_drawn_with(drawing: Callable[..., bytes], quantization: str) -> None:
    whole, other = (np.frombuffer(drawing("--quantization", each), np.uint8) for each in ("none", quantization))
    assert np.array_equal(whole, np.frombuffer(drawing(), np.uint8))
    far = np.abs(whole.astype(int) - other).mean()
    assert 0 < far < 0.2 * whole.std(), "the same picture, a little off"


def test_what_cannot_be_is_said_in_words_of_the_command(
    drawing: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(MissingPackageError, match="--quantization none"):
        drawing("--quantization", "nf4")
