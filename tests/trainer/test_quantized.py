"""A frozen UNet in 4 or 8 bits: trained over as the whole one is, by bitsandbytes' kernels for processors."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ipadapter_core.errors import MismatchError
from ipadapter_core.file.container import read_header
from ipadapter_trainer.backbones.unet import UNetBackbone
from ipadapter_trainer.backbones.unet_sites import discover_sites
from ipadapter_trainer.config import AdapterConfig, BaseModelConfig, Config, EncoderConfig
from ipadapter_trainer.files.checkpoint_export import export_checkpoint
from ipadapter_trainer.loop import train
from ipadapter_trainer.models.image_encoder import load_image_encoder
from ipadapter_trainer.models.loading import load_base
from ipadapter_trainer.models.network import TrainableAdapter, new_adapter
from ipadapter_trainer.models.quantized import full_weight
from ipadapter_trainer.optimizer import MissingPackageError
from ipadapter_trainer.planning import make_plan
from ipadapter_trainer.resume.weights import Weights
from ipadapter_trainer.run import open_run
from ipadapter_trainer.state import CheckpointError
from support.ldm_names import write_single_file
from support.training import make_config, write_pictures

CPU = torch.device("cpu")
CLOSE = {"nf4": 0.2, "int8": 0.02}  # of the predictions' deviation
SMALLER = {"nf4": 0.3, "int8": 0.5}  # than half precision at most, of a linear layer, with its scales


@pytest.fixture
def config(
    tmp_path: Path, small_base_folder: Callable[[str], Path], encoder_folder: Callable[[str], Path]
) -> Callable[..., Config]:
    def make(quantization: str, steps: int = 1) -> Config:
        return make_config(
            small_base_folder("sd15"),
            encoder_folder("clip"),
            write_pictures(tmp_path / "pictures", 4),
            tmp_path / "run",
            base={"precision": "fp32", "quantization": quantization},
            train={"steps": steps, "batch_size": 2, "log_every": 1, "trackers": []},
        )

    return make


def unet_of(model: Path, quantization: str, **settings: Any) -> UNetBackbone:
    settings = {"precision": "fp32", **settings}
    return load_base(
        BaseModelConfig(model=str(model), quantization=quantization, **settings), CPU, only=frozenset({"model"})
    )


def adapter_on(base: UNetBackbone, encoder: Path) -> TrainableAdapter:
    config = EncoderConfig(model=str(encoder), precision="fp32")
    return new_adapter(AdapterConfig(), base, load_image_encoder(config, "base", CPU))


def predict(base: UNetBackbone) -> torch.Tensor:
    torch.manual_seed(0)
    latents, text = torch.randn(2, 4, 16, 16), torch.randn(2, 7, base.model.config.cross_attention_dim)
    with torch.no_grad():
        return base.model(latents, torch.tensor([10, 600]), text).sample


@pytest.mark.parametrize("kind", CLOSE)
@pytest.mark.usefixtures("bitsandbytes")
def test_it_predicts_about_the_same(small_base_folder: Callable[[str], Path], kind: str) -> None:
    folder = small_base_folder("sd15")
    whole, quantized = unet_of(folder, "none"), unet_of(folder, kind)
    wanted, given = predict(whole), predict(quantized)
    assert 0 < float((given - wanted).std() / wanted.std()) < CLOSE[kind]


@pytest.mark.parametrize("kind", CLOSE)
@pytest.mark.usefixtures("bitsandbytes")
def test_projections_start_from_the_text_ones(
    small_base_folder: Callable[[str], Path], encoder_folder: Callable[[str], Path], kind: str
) -> None:
    folder = small_base_folder("sd15")
    whole, quantized = unet_of(folder, "none"), unet_of(folder, kind)
    for is_used in (False, True):  # int8 moves its scales at the first forward
        started, rounded = (adapter_on(base, encoder_folder("clip")).adapter for base in (whole, quantized))
        for index in range(started.spec.num_sites):
            wanted, given = started.site(index).to_k_ip.weight, rounded.site(index).to_k_ip.weight
            assert (given - wanted).abs().max() < CLOSE[kind] * wanted.abs().max()
        if not is_used:
            before = Weights.of(quantized.model, "base.model", "")
            predict(quantized)
            assert Weights.of(quantized.model, "base.model", "").equals(before), "a run that goes on is known again"


@pytest.mark.parametrize("kind", CLOSE)
@pytest.mark.usefixtures("bitsandbytes")
def test_only_the_adapter_learns(config: Callable[..., Config], kind: str) -> None:
    losses = {}
    for quantization in ("none", kind):
        run = open_run(config(quantization))
        frozen = {name: tensor.clone() for name, tensor in run.base.model.state_dict().items()}
        batches = run.batches(0)
        loss = run.loss(next(batches))
        run.accelerator.backward(loss)
        gradients = [parameter.grad for parameter in run.network.trained_parameters()]
        assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
        assert any(gradient.any() for gradient in gradients if gradient is not None)
        assert all(parameter.grad is None for parameter in run.base.model.parameters())
        run.step(batches)
        after = run.base.model.state_dict()
        assert all(torch.equal(tensor, after[name]) for name, tensor in frozen.items())
        losses[quantization] = float(loss.detach())
    assert losses[kind] == pytest.approx(losses["none"], rel=CLOSE[kind])
    assert losses[kind] != losses["none"]


@pytest.mark.usefixtures("bitsandbytes")
def test_a_run_goes_on_with_the_quantization_it_began_with(config: Callable[..., Config], tmp_path: Path) -> None:
    train(config("nf4"))
    for other in ("none", "int8"):
        with pytest.raises(CheckpointError) as caught:
            train(config(other, 2))
        assert f"base.quantization is '{other}', was 'nf4'" in str(caught.value)
        assert "another UNet" not in str(caught.value)
    assert train(config("nf4", 2)).step == 2
    report = export_checkpoint(tmp_path / "run", None)
    shapes = {name: tuple(tensor["shape"]) for name, tensor in read_header(report.path).items() if name[0] != "_"}
    whole = open_run(config("none")).network.adapter.state_dict()
    assert shapes == {name: tuple(tensor.shape) for name, tensor in whole.items()}


@pytest.mark.parametrize("kind", SMALLER)
@pytest.mark.usefixtures("bitsandbytes")
def test_plan_counts_what_is_kept(config: Callable[..., Config], kind: str) -> None:
    whole, quantized = (make_plan(config(quantization)) for quantization in ("none", kind))
    assert quantized.trained["frozen_parameters"] == whole.trained["frozen_parameters"]
    unet = open_run(config("none")).base.model
    linear = sum(module.weight.nbytes for module in unet.modules() if type(module) is torch.nn.Linear)
    kept = linear - (whole.memory["frozen_model"] - quantized.memory["frozen_model"])
    assert 0.125 * linear < kept < SMALLER[kind] * linear


def test_without_the_package(config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(MissingPackageError, match=r'"nf4" without .*pip install bitsandbytes, or set base\.quant'):
        open_run(config("nf4"))


def test_without_a_gpu(small_base_folder: Callable[[str], Path]) -> None:
    pytest.importorskip("bitsandbytes")
    with pytest.raises(MismatchError, match=r'"int8" on this machine \(No GPU found.*quantization = "none"'):
        unet_of(small_base_folder("sd15"), "int8")


def test_a_single_file(small_base_folder: Callable[[str], Path], tmp_path: Path) -> None:
    folder, file = small_base_folder("sd15"), tmp_path / "one.safetensors"
    write_single_file(folder, file)
    with pytest.raises(MismatchError, match=r"single file .*one\.safetensors.*save_pretrained"):
        unet_of(file, "nf4", config=str(folder))
    settings = BaseModelConfig(model=str(file), config=str(folder), quantization="nf4")
    assert load_base(settings, CPU, only=frozenset({"text"})).model.device.type == "meta", "which fills a cache"


def test_a_layer_that_is_not_quantised_is_taken_as_it_is(small_base_folder: Callable[[str], Path]) -> None:
    _, (attention, *_) = discover_sites(unet_of(small_base_folder("sd15"), "none").model)
    assert full_weight(attention.to_k) is attention.to_k.weight
