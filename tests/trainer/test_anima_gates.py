"""Adapters for Anima with gates: a number of each block (anima_lora), or a layer that reads the time (LuciferTC)."""

# B pictures, L cells of the picture, H heads, D head dim

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import linear, silu

from ipadapter_core.encoder.pixels import encoder_pixels
from ipadapter_core.errors import MismatchError, UnsupportedFamilyError
from ipadapter_core.network.adapter import save_adapter
from ipadapter_core.strength.site import SiteStrength
from ipadapter_trainer.backbones.image_prompt import ImagePrompt
from ipadapter_trainer.config import AdapterConfig, BaseModelConfig, EncoderConfig
from ipadapter_trainer.config_file import ConfigError, parse_config
from ipadapter_trainer.files.adapter_file import open_adapter
from ipadapter_trainer.models.image_encoder import load_image_encoder
from ipadapter_trainer.models.loading import load_base
from ipadapter_trainer.models.network import TrainableAdapter, new_adapter
from ipadapter_trainer.watch.sampling import (
    Reference,
    Sampler,
    SampleSettings,
    encode_prompt,
    guided,
    sample_grid,
)
from support.encoders import WIDTH
from support.published import anima_lucifer, random_tensors, write_safetensors
from support.steps import difference, loss_and_gradients
from support.tiny_anima_base import untouched, write_anima_base
from support.tiny_base import write_base

CPU = torch.device("cpu")
SIZE = (12, 8)  # latent cells
RELATIVE = 1e-5
METADATA = {"ipadapter.spec": '{"head_dim": 16}'}  # of the tiny model: published ones are 128
KINDS = {
    "block": {"gate": "block", "kind": "plus", "tokens": 4, "resampler_dim": 64, "resampler_depth": 1},
    "time": {"gate": "time", "kind": "full"},
    "time, fewer tokens": {"gate": "time", "kind": "plus", "tokens": 4, "resampler_depth": 2},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_anima_base(tmp_path_factory.mktemp("base") / "anima")


def loaded(folder: Path) -> Any:
    return load_base(BaseModelConfig(model=str(folder), precision="fp32"), CPU)


@pytest.fixture
def adapter_for(folder: Path, encoder_folder: Callable[[str], Path]) -> Callable[..., tuple[Any, TrainableAdapter]]:
    settings = {"model": str(encoder_folder("clip")), "precision": "fp32", "feature": "last_hidden_state"}
    encoder = load_image_encoder(EncoderConfig.model_validate(settings), "plus", CPU)

    def make(kind: str, **changes: Any) -> tuple[Any, TrainableAdapter]:
        """A base that is not yet `install`ed, and a new adapter for it."""
        base = loaded(folder)
        return base, new_adapter(AdapterConfig.model_validate(KINDS[kind] | changes), base, encoder)

    return make


def opened(network: TrainableAdapter) -> TrainableAdapter:
    """With gates of all sizes, as after some training."""
    with torch.no_grad():
        for site in network.adapter.ip_adapter.values():
            gates = [site.gate] if hasattr(site, "gate") else list(site.adaln_ip.parameters())
            for gate in gates:
                gate.copy_(torch.randn(gate.shape, generator=torch.Generator().manual_seed(gate.numel())))
    return network


def features(rows: int = 3) -> dict[str, Tensor]:
    return {"features": torch.randn(rows, 5, WIDTH, generator=torch.Generator().manual_seed(1))}


def given(base: Any, rows: int = 3) -> tuple[Tensor, Tensor, dict[str, Tensor], Tensor]:
    """Noisy latents, times, text, sizes."""
    noisy = torch.randn(rows, 16, *SIZE, generator=torch.Generator().manual_seed(2))
    return noisy, torch.tensor([0.9, 0.4, 0.05][:rows]), base.encode_text(["a fox"] * rows), torch.zeros(rows, 6)


class Plain:
    """The formula around diffusers' own block: a query is read off its norm, a timestep embedding off what the block is
    given, and the image is added before the attention's projection or to what the block gives."""

    def __init__(self, block: Any, site: Any, tokens: Tensor) -> None:
        self.site, self.tokens = site, tokens
        block.attn2.norm_q.register_forward_hook(self.note)
        if hasattr(site, "gate"):
            block.attn2.to_out[0].register_forward_pre_hook(lambda _, inputs: (inputs[0] + site.gate * self.image(),))
        else:
            block.register_forward_hook(self.add, with_kwargs=True)

    def note(self, _module: Any, _inputs: Any, query: Tensor) -> None:
        self.query = query  # (B, H, L, D)

    def image(self) -> Tensor:
        heads = self.query.shape[1]
        key, value = (
            linear(self.tokens, layer.weight, layer.bias).unflatten(-1, (heads, -1)).transpose(1, 2)
            for layer in (self.site.to_k_ip, self.site.to_v_ip)
        )
        scores = self.query @ key.transpose(-1, -2) / math.sqrt(key.shape[-1])
        return (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)

    def add(self, _module: Any, inputs: tuple[Any, ...], _named: dict[str, Any], out: Tensor) -> Tensor:
        layer, embedded = self.site.adaln_ip[1], inputs[2]
        return out + linear(silu(embedded), layer.weight, layer.bias)[:, None] * self.image()


@pytest.mark.parametrize("is_checkpointed", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_is_the_formula_in_diffusers_own_blocks(
    adapter_for: Callable[..., tuple[Any, TrainableAdapter]], folder: Path, kind: str, is_checkpointed: bool
) -> None:
    """Loss, and the gradient of every weight; with checkpointing two forwards come before their backward passes."""
    base, network = adapter_for(kind)
    opened(network)
    base.install()
    if is_checkpointed:
        base.enable_checkpointing()
    inputs = given(base)
    answer = base.predict(*inputs, network(features(), base.adapter_times(inputs[1])))
    base.predict(*inputs, network({"features": features()["features"].flip(0)}, base.adapter_times(inputs[1].flip(0))))
    loss, gradients = loss_and_gradients(answer, network)
    other, tokens = loaded(folder), network.adapter.image_proj(features()["features"])
    assert tokens.shape[1] == (KINDS[kind].get("tokens") or 5)
    for number, block in enumerate(other.model.transformer_blocks):
        Plain(block, network.adapter.ip_adapter[str(number)], tokens)
    expected = untouched(other, *inputs[:3])
    expected_loss, expected_gradients = loss_and_gradients(expected, network)
    assert difference(answer, expected) < RELATIVE
    nothing = ImagePrompt((None,) * len(base.sites.sites))
    assert difference(answer, base.predict(*inputs, nothing)) > 1e-3, "the image does nothing"
    assert loss == pytest.approx(expected_loss, rel=RELATIVE)
    largest = max(float(gradient.norm()) for gradient in expected_gradients.values())
    for name, gradient in expected_gradients.items():
        assert gradient.any(), name
        near = float((gradients[name] - gradient).norm())
        assert near < 1e-4 * float(gradient.norm()) + 1e-7 * largest, name  # a bias of keys has a gradient of rounding


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_a_new_adapter_leaves_the_model_as_it_is(
    adapter_for: Callable[..., tuple[Any, TrainableAdapter]], folder: Path, kind: str
) -> None:
    base, network = adapter_for(kind)
    base.install()
    inputs = given(base)
    prompt = network(features(), base.adapter_times(inputs[1]))
    assert all(float(value.abs().max()) > 0 for _, value in prompt.kv if kind != "block"), (
        "there is something behind it"
    )
    assert difference(base.predict(*inputs, prompt), untouched(loaded(folder), *inputs[:3])) < RELATIVE
    for name, tensor in network.state_dict().items():
        assert tensor.isfinite().all(), name
    again = adapter_for(kind)[1].state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in network.state_dict().items())


@torch.no_grad()
def test_a_gate_of_each_block_can_open(adapter_for: Callable[..., tuple[Any, TrainableAdapter]]) -> None:
    """Whatever it starts with: it is closed, and the model's own projections of text lie behind it."""
    base, network = adapter_for("block")
    for attention, site in zip(base.attentions, network.adapter.ip_adapter.values(), strict=True):
        assert site.gate == 0
        assert torch.equal(site.to_v_ip.weight, attention.to_v.weight)
    assert all(site.gate == 0 for site in adapter_for("block", init="random")[1].adapter.ip_adapter.values())


@torch.no_grad()
@pytest.mark.parametrize("strength", [0.3, 1.0])
@pytest.mark.parametrize("swap", [False, True])
def test_a_strength_multiplies_the_tokens_of_a_gate_by_time(
    adapter_for: Callable[..., tuple[Any, TrainableAdapter]], strength: float, swap: bool
) -> None:
    """As in the nodes; where the image is left out, tokens of zeros add nothing."""
    base, network = adapter_for("time, fewer tokens")
    opened(network)
    base.install()
    noisy, _, text, sizes = given(base, rows=2)
    times = torch.tensor([0.4])
    none, image = (
        network({"features": x}, base.adapter_times(times)) for x in (torch.zeros(1, 5, WIDTH), features(1)["features"])
    )
    prompt = guided(none, image, {site.index: SiteStrength(strength, swap) for site in base.sites.sites})
    given_answer = base.predict(noisy, times.expand(2), text, sizes, prompt)
    tokens = strength * network.adapter.image_proj(features(1)["features"])
    rows = torch.cat((tokens, torch.zeros_like(tokens)) if swap else (torch.zeros_like(tokens), tokens))
    pairs = tuple(network.adapter.kv(index, rows) for index in range(len(base.sites.sites)))
    expected = base.predict(noisy, times.expand(2), text, sizes, image._replace(kv=pairs))
    assert difference(given_answer, expected) < RELATIVE
    assert (
        difference(given_answer, base.predict(noisy, times.expand(2), text, sizes, none._replace(kv=(None,) * 3)))
        > 1e-3
    )


@torch.no_grad()
def test_pictures_are_drawn_with_the_gate_of_each_step(
    adapter_for: Callable[..., tuple[Any, TrainableAdapter]],
) -> None:
    """Held against Euler's method by diffusers' scheduler, and the steps read different gates."""
    base, network = adapter_for("time, fewer tokens")
    opened(network)
    base.install()
    settings = SampleSettings(strengths=(1.0,), steps=3, guidance=1.0, size=(64, 48), seed=7)
    sampler = Sampler(base, settings, encode_prompt(base, ""))
    text, image = base.encode_text(["a fox"]), features(1)
    reference = Reference("it", Image.new("RGB", (8, 8)), "", "a fox", image, text)
    drawn = sample_grid(sampler, network, features(1), [reference])
    scheduler = base.pipeline.scheduler
    scheduler.set_timesteps(sigmas=[1.0, 2 / 3, 1 / 3])
    latents, gates = sampler.noise(0, 0), []
    for timestep, sigma in zip(scheduler.timesteps, scheduler.sigmas, strict=False):
        prompt = network(image, base.adapter_times(sigma[None]))
        gates.append(prompt.gates[0])
        answer = base.predict(latents, sigma[None], text, torch.zeros(1, 6), prompt)
        latents = scheduler.step(answer, timestep, latents, return_dict=False)[0]
    expected = base.decode(latents)[0].permute(1, 2, 0)
    given = torch.tensor(np.asarray(drawn.rows[0][0]) / 255.0)
    assert float((given - expected).abs().max()) < 0.5 / 255 + 1e-4
    assert difference(gates[0], gates[2]) > 0.05


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"kind": "full", "gate": "none"}, r'adapter\.kind = "full".*gate = "none".*set adapter\.kind = "plus"'),
        ({"kind": "full", "gate": "block"}, r'adapter\.kind = "full".*gate = "block".*set adapter\.kind = "plus"'),
        ({"kind": "base", "gate": "time"}, r'adapter\.kind = "base".*"full" or "plus".*set adapter\.kind = "plus"'),
    ],
)
def test_kinds_a_gate_is_not_for(folder: Path, changes: dict[str, str], found: str) -> None:
    base = loaded(folder)
    with pytest.raises(MismatchError, match=found):
        base.check_adapter(AdapterConfig.model_validate(changes))
    base.check_adapter(AdapterConfig.model_validate(changes | {"kind": "plus"}))


@pytest.mark.parametrize("key", ["resampler_dim", "negative"])
def test_what_a_gate_by_time_decides_itself(key: str) -> None:
    value: object = {"resampler_dim": 64, "negative": "noise"}[key]
    sections = {
        "base": {"model": "b"},
        "data": {"path": "d"},
        "adapter": {"kind": "plus", "gate": "time", key: value},
        "train": {"output": "o", "steps": 1},
    }
    with pytest.raises(ConfigError, match=rf"adapter\.{key}.*gate"):
        parse_config(sections, "test")


def test_a_gate_is_for_anima_alone(tmp_path: Path, encoder_folder: Callable[[str], Path]) -> None:
    write_base(tmp_path / "sd15", "sd15")
    base = loaded(tmp_path / "sd15")
    encoder = load_image_encoder(EncoderConfig(model=str(encoder_folder("clip")), precision="fp32"), "plus", CPU)
    with pytest.raises(MismatchError, match=r'adapter\.gate = "block".*no Anima.*set adapter\.gate = "none"'):
        new_adapter(AdapterConfig(kind="plus", gate="block"), base, encoder)
    new_adapter(AdapterConfig(kind="plus"), base, encoder)


def test_a_file_with_another_gate_is_no_start(
    adapter_for: Callable[..., tuple[Any, TrainableAdapter]], tmp_path: Path
) -> None:
    path = tmp_path / "block.safetensors"
    save_adapter(adapter_for("block")[1].adapter, path)
    settings = {"gate": "none", "pretrained": str(path)}
    with pytest.raises(MismatchError, match=r'adapter\.gate "?block"?, not "?none"?.*set adapter\.gate = "block"'):
        adapter_for("block", **settings)
    adapter_for("block", **settings | {"gate": "block"})


def test_a_published_file_reads_pictures_as_its_author_did(
    folder: Path, encoder_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """Whose metadata say nothing of it."""
    path = tmp_path / "published.safetensors"
    write_safetensors(path, random_tensors(anima_lucifer(blocks=3, width=32, image=WIDTH)), METADATA)
    reader = open_adapter(path, loaded(folder), str(encoder_folder("siglip")), "fp32").reader
    image = torch.rand(1, 40, 30, 3)
    given = reader.encoder.format.pixels(image)
    assert torch.equal(given, encoder_pixels(image, reader.encoder.format.pixel_format, "pad", padding="black"))
    assert float(given[0, :, 10, 0].max()) == -1, "the side is black"


def test_a_file_that_changes_the_model_too_is_no_start(
    adapter_for: Callable[..., tuple[Any, TrainableAdapter]], tmp_path: Path
) -> None:
    """LuciferTC's published adapter carries a LoRA, without which it would be another."""
    path = tmp_path / "published.safetensors"
    write_safetensors(path, random_tensors(anima_lucifer(blocks=3, width=96, image=24, rank=2, text=16)), {})
    with pytest.raises(UnsupportedFamilyError, match=r"published\.safetensors.*with a LoRA for the model itself"):
        adapter_for("time", pretrained=str(path))
