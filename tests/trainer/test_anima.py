"""Anima in training: the formula in diffusers' own model, text, latents and drawing as its pipeline has them."""

# B pictures, L cells of the picture, H heads, D head dim

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import linear

from ipadapter_core.errors import MismatchError
from ipadapter_trainer.backbones.image_prompt import ImagePrompt
from ipadapter_trainer.config import AdapterConfig, BaseModelConfig, EncoderConfig
from ipadapter_trainer.config_file import parse_config
from ipadapter_trainer.hub import ModelNotFoundError
from ipadapter_trainer.models.float8 import Float8Linear
from ipadapter_trainer.models.image_encoder import load_image_encoder
from ipadapter_trainer.models.loading import load_base
from ipadapter_trainer.models.network import TrainableAdapter, new_adapter
from support.encoders import WIDTH
from support.steps import difference, loss_and_gradients
from support.tiny_anima_base import untouched, write_anima_base
from support.tiny_base import write_base

CPU = torch.device("cpu")
CAPTIONS = ["a fox", "", "a much longer text that says what else is to be seen, and takes more places than the others"]
SIZE = (12, 8)  # latent cells
RELATIVE = 1e-5
ENCODER = {"precision": "fp32", "feature": "last_hidden_state"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_anima_base(tmp_path_factory.mktemp("base") / "anima")


def loaded(folder: Path, **settings: Any) -> Any:
    return load_base(BaseModelConfig(**{"model": str(folder), "precision": "fp32"} | settings), CPU)


@pytest.fixture
def base(folder: Path) -> Any:
    """Not `install`ed."""
    return loaded(folder)


def adapter_for(base: Any, encoder_folder: Callable[[str], Path], **settings: Any) -> TrainableAdapter:
    given = {"kind": "plus", "tokens": 4, "resampler_dim": 64, "resampler_depth": 2, "init": "random"}
    encoder = load_image_encoder(EncoderConfig(model=str(encoder_folder("clip")), **ENCODER), "plus", CPU)
    return new_adapter(AdapterConfig(**given | settings), base, encoder)


@pytest.fixture
def network(base: Any, encoder_folder: Callable[[str], Path]) -> TrainableAdapter:
    return adapter_for(base, encoder_folder)


def features(rows: int = len(CAPTIONS)) -> dict[str, Tensor]:
    return {"features": torch.randn(rows, 5, WIDTH, generator=torch.Generator().manual_seed(1))}


def given(base: Any) -> tuple[Tensor, Tensor, dict[str, Tensor], Tensor]:
    """Noisy latents, times, text, sizes."""
    noisy = torch.randn(len(CAPTIONS), 16, *SIZE, generator=torch.Generator().manual_seed(2))
    return noisy, torch.tensor([0.9, 0.4, 0.05]), base.encode_text(CAPTIONS), torch.zeros(len(CAPTIONS), 6)


def nothing(base: Any) -> ImagePrompt:
    return ImagePrompt((None,) * len(base.sites.sites))


class Plain:
    """The formula around diffusers' own cross-attention: its query is read off its norm, its output changed before the
    projection."""

    def __init__(self, attention: Any, site: Any, tokens: Tensor) -> None:
        self.attention, self.site, self.tokens = attention, site, tokens
        attention.norm_q.register_forward_hook(self.note)
        attention.to_out[0].register_forward_pre_hook(self.add)

    def note(self, _module: Any, _given: Any, query: Tensor) -> None:
        self.query = query  # (B, H, L, D)

    def add(self, _module: Any, given: tuple[Tensor]) -> tuple[Tensor]:
        heads = self.query.shape[1]
        key, value = (
            linear(self.tokens, layer.weight).unflatten(-1, (heads, -1)).transpose(1, 2)
            for layer in (self.site.to_k_ip, self.site.to_v_ip)
        )
        key = key / (key.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * self.attention.norm_k.weight
        scores = self.query @ key.transpose(-1, -2) / math.sqrt(key.shape[-1])
        return (given[0] + (scores.softmax(-1) @ value).transpose(1, 2).flatten(2),)


@pytest.mark.parametrize("is_checkpointed", [False, True])
def test_a_step_is_the_formula_in_diffusers_own_attention(
    base: Any, network: TrainableAdapter, folder: Path, is_checkpointed: bool
) -> None:
    """Loss, and the gradient of every weight; with checkpointing two forwards come before their backward passes."""
    base.install()
    if is_checkpointed:
        base.enable_checkpointing()
    inputs = given(base)
    answer = base.predict(*inputs, network(features()))
    base.predict(*inputs, network({"features": features()["features"].flip(0)}))
    loss, gradients = loss_and_gradients(answer, network)
    other, tokens = loaded(folder), network.adapter.image_proj(features()["features"])
    for number, block in enumerate(other.model.transformer_blocks):
        Plain(block.attn2, network.adapter.ip_adapter[str(number)], tokens)
    expected = untouched(other, *inputs[:3])
    expected_loss, expected_gradients = loss_and_gradients(expected, network)
    assert difference(answer, expected) < RELATIVE
    assert difference(answer, base.predict(*inputs, nothing(base))) > 1e-3, "the image does nothing"
    assert loss == pytest.approx(expected_loss, rel=RELATIVE)
    for name, gradient in expected_gradients.items():
        assert gradient.any(), name
        assert difference(gradients[name], gradient) < 1e-4, name


@torch.no_grad()
def test_without_an_image_nothing_is_changed(base: Any, folder: Path) -> None:
    base.install()
    inputs = given(base)
    assert difference(base.predict(*inputs, nothing(base)), untouched(loaded(folder), *inputs[:3])) < RELATIVE


@torch.no_grad()
def test_a_caption_is_the_same_in_a_batch(base: Any) -> None:
    """All are of one size, also an empty and a very long one."""
    together = base.encode_text([*CAPTIONS, "b" * 2000])["text"]
    assert together.shape == (4, 512, 24)
    assert together.isfinite().all()
    for row, caption in zip(together, CAPTIONS, strict=False):
        torch.testing.assert_close(row[None], base.encode_text([caption])["text"], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_new_adapter_starts_from_the_models_text(base: Any, encoder_folder: Callable[[str], Path]) -> None:
    network = adapter_for(base, encoder_folder, init="text")
    for attention, site in zip(base.attentions, network.adapter.ip_adapter.values(), strict=True):
        assert torch.equal(site.to_k_ip.weight, attention.to_k.weight)
        assert torch.equal(site.to_v_ip.weight, attention.to_v.weight)
    again = adapter_for(base, encoder_folder, init="text")
    for name, tensor in network.state_dict().items():
        assert tensor.isfinite().all(), name
        assert torch.equal(again.state_dict()[name], tensor), name


def test_noise_times_and_answers_are_diffusers_schedulers(base: Any) -> None:
    latents, noise = (torch.randn(2, 16, *SIZE, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    for place in (0.3, 0.8):
        scheduler = FlowMatchEulerDiscreteScheduler.from_config(base.pipeline.scheduler.config)
        scheduler.set_timesteps(sigmas=[place])
        time = base.time_shift.of(place, *SIZE)
        assert time == pytest.approx(scheduler.sigmas[0].item(), rel=1e-6)
        at = torch.tensor([time, time])
        noisy = base.noisy(latents, noise, at)
        torch.testing.assert_close(noisy, scheduler.scale_noise(latents, scheduler.timesteps[:1], noise))
        clean = scheduler.step(base.target(latents, noise, at), scheduler.timesteps[0], noisy).prev_sample
        torch.testing.assert_close(clean, latents, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_drawing_is_the_pipelines(base: Any) -> None:
    """Text, guidance, schedule and decoding; the pipeline goes through our processors, which then show no image."""
    base.install()
    noise = torch.randn(2, 16, *SIZE, generator=torch.Generator().manual_seed(3))
    size = {"height": 8 * SIZE[0], "width": 8 * SIZE[1], "num_inference_steps": 3, "output_type": "pt"}
    expected = base.pipeline(prompt=CAPTIONS[:2], negative_prompt=[""] * 2, latents=noise[:, :, None], **size).images
    text, negative = base.encode_text(CAPTIONS[:2]), base.encode_text([""] * 2)
    how = {"steps": 3, "guidance": 4.0, "progress": lambda: None}  # the pipeline's own
    drawn = base.denoise(noise, text, negative, lambda times: nothing(base), **how)
    torch.testing.assert_close(base.decode(drawn), expected, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_latents_go_there_and_back(base: Any) -> None:
    pixels = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(4)) * 2 - 1
    mean, std = base.encode_pixels(pixels)
    assert mean.shape == std.shape == (2, 16, 4, 6)
    seen = base.vae.decode(mean[:, :, None]).sample.squeeze(2)
    torch.testing.assert_close(base.decode(base.scale_latents(mean)), (seen / 2 + 0.5).clamp(0, 1))


@torch.no_grad()
def test_other_precisions(folder: Path, encoder_folder: Callable[[str], Path]) -> None:
    base = loaded(folder, precision="bf16", quantization="fp8")
    assert all(isinstance(block.attn2.to_q, Float8Linear) for block in base.model.transformer_blocks)
    network = adapter_for(base, encoder_folder, init="text")
    base.install()
    answer = base.predict(*given(base), network(features()))
    assert answer.dtype is torch.bfloat16
    assert answer.isfinite().all()
    with pytest.raises(MismatchError, match=r'base\.precision = "fp16".*set base\.precision = "bf16"'):
        loaded(folder, precision="fp16")


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"adapter": {"kind": "base"}}, r'adapter\.kind = "base".*set adapter\.kind = "plus"'),
        ({"encoder": {"feature": "auto"}}, r'encoder\.feature = "auto".*"last_hidden_state"'),
    ],
    ids=["kind", "feature"],
)
def test_what_it_cannot_do_is_refused(base: Any, changes: dict[str, dict[str, str]], found: str) -> None:
    sections: dict[str, dict[str, Any]] = {
        "base": {"model": "b"},
        "encoder": {"model": "e", "feature": "last_hidden_state"},
        "data": {"path": "d"},
        "adapter": {"kind": "plus"},
        "train": {"output": "o", "steps": 1},
    }
    base.check(parse_config(sections, "test"))
    for section, values in changes.items():
        sections[section] |= values
    with pytest.raises(MismatchError, match=found):
        base.check(parse_config(sections, "test"))


def test_a_folder_that_lacks_a_part_is_refused(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "base")
    shutil.rmtree(copy / "t5_tokenizer")
    with pytest.raises(ModelNotFoundError, match="without t5_tokenizer"):
        loaded(copy)
    load_base(BaseModelConfig(model=str(copy), precision="fp32"), CPU, only=frozenset({"model", "vae"}))


def test_another_modular_pipeline_is_refused(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "base")
    index = copy / "modular_model_index.json"
    index.write_text(index.read_text().replace("AnimaModularPipeline", "WanModularPipeline"))
    with pytest.raises(MismatchError, match="is a WanModularPipeline"):
        loaded(copy)


def test_a_usual_layout_goes_before_a_modular_one(folder: Path, tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", "sd15")
    shutil.copy(folder / "modular_model_index.json", base)
    assert load_base(BaseModelConfig(model=str(base), precision="fp32"), CPU, only=frozenset({"vae"})).word == "UNet"


def test_a_single_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "anima.safetensors"
    save_file({"net.llm_adapter.blocks.0.norm_mlp.weight": torch.zeros(2)}, file)
    with pytest.raises(ModelNotFoundError, match=r"a single file of Anima.*modular layout"):
        loaded(file)
