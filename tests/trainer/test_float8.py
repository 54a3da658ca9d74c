"""A frozen model kept in float8: trained over as one whose weights were rounded to float8, in about half the room."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from ipadapter_trainer.backbones.backbone import Backbone
from ipadapter_trainer.config import AdapterConfig, BaseModelConfig, EncoderConfig
from ipadapter_trainer.loop import train
from ipadapter_trainer.models.float8 import STORED, Float8Linear
from ipadapter_trainer.models.image_encoder import load_image_encoder
from ipadapter_trainer.models.loading import load_base
from ipadapter_trainer.models.network import new_adapter
from ipadapter_trainer.planning import make_plan
from support.tiny_flux_base import write_flux_base
from support.training import make_config, write_pictures

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_flux_base(tmp_path_factory.mktemp("flux") / "base")


@pytest.fixture(params=["flux", "sd15"])
def folder(request: pytest.FixtureRequest, flux: Path, small_base_folder: Callable[[str], Path]) -> Path:
    return flux if request.param == "flux" else small_base_folder("sd15")


def open_base(folder: Path, quantization: str) -> Backbone:
    config = BaseModelConfig.model_validate({"model": str(folder), "precision": "fp32", "quantization": quantization})
    return load_base(config, CPU)


def step(base: Backbone, encoder: Path) -> dict[str, torch.Tensor]:
    """Gradients of one answer, and the answer."""
    config = EncoderConfig(model=str(encoder), precision="fp32")
    network = new_adapter(AdapterConfig(init="random"), base, load_image_encoder(config, "base", CPU))
    base.install()
    torch.manual_seed(0)
    image = network({"features": torch.randn(2, network.spec.image_dim)})
    noisy = torch.randn(2, base.latent_channels, 8, 8)
    text = base.encode_text(["a cat", ""])
    answer = base.predict(noisy, torch.tensor([0.2, 0.7]), text, torch.zeros(2, 6), image)
    answer.square().mean().backward()
    gradients = {name: each.grad for name, each in network.named_parameters() if each.grad is not None}
    return {"answer": answer.detach(), **gradients}


def test_a_step_is_that_of_rounded_weights(folder: Path, encoder_folder: Callable[[str], Path]) -> None:
    narrow, rounded = open_base(folder, "fp8"), open_base(folder, "none")
    layers = {name: each for name, each in narrow.model.named_modules() if isinstance(each, Float8Linear)}
    assert layers
    for name in layers:
        weight = rounded.model.get_submodule(name).weight
        weight.data = weight.to(STORED).float()
    given, wanted = (step(base, encoder_folder("clip")) for base in (narrow, rounded))
    assert given.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(given[name], tensor, rtol=1e-5, atol=1e-7)
    whole = step(open_base(folder, "none"), encoder_folder("clip"))
    assert not torch.equal(given["answer"], whole["answer"])


def test_all_linear_layers_of_the_blocks_are_narrow_and_nothing_else(flux: Path) -> None:
    model = open_base(flux, "fp8").model
    blocks = (*model.transformer_blocks, *model.single_transformer_blocks)
    inside = [each for block in blocks for each in block.modules() if isinstance(each, nn.Linear)]
    assert all(each.weight.dtype is STORED and not each.weight.requires_grad for each in inside)
    others = [each for each in model.modules() if isinstance(each, nn.Linear) and not isinstance(each, Float8Linear)]
    assert others
    assert all(each.weight.dtype is torch.float32 for each in others)


def test_a_run_trains_and_its_plan_says_the_room(
    flux: Path, encoder_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    pictures = write_pictures(tmp_path / "pictures", 4)

    def config(quantization: str) -> object:
        base = {"quantization": quantization, "precision": "bf16"}
        changes = {"train": {"steps": 2, "trackers": []}}
        return make_config(flux, encoder_folder("clip"), pictures, tmp_path / quantization, base=base, **changes)

    assert train(config("fp8")).is_finished
    plans = {name: make_plan(config(name)).memory for name in ("none", "fp8")}
    room = {name: memory["frozen_model"] for name, memory in plans.items()}
    model = open_base(flux, "none").model
    blocks = (*model.transformer_blocks, *model.single_transformer_blocks)
    saved = sum(each.weight.numel() for block in blocks for each in block.modules() if isinstance(each, nn.Linear))
    assert room["none"] - room["fp8"] == saved
    assert plans["fp8"]["activations"] == plans["none"]["activations"], "no widened weight waits for the backward pass"
