"""A base model the pack does not know becomes one it does by a row and an install function; the laws hold for it."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from support import comfy_host, toy
from support.graphs import PLAIN
from support.published import random_tensors, tiny_adapter, write_safetensors
from support.tiny_unet import CONTEXT_DIM


@pytest.fixture
def model(base_directory: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The toy as a MODEL, with its rows in both registries."""
    monkeypatch.setitem(comfy_host.pack("ipadapter_core.backbone.registry").BACKBONES, "Toy", toy.row())
    monkeypatch.setitem(comfy_host.pack("nodes.patching.install").INSTALL, "Toy", toy.install)
    return toy.comfy_model()


@pytest.fixture
def adapter(model: Any, base_directory: Path) -> Any:
    """An adapter for it, loaded by the node from a file that says what it is for."""
    shapes = tiny_adapter("base", site_dims=(toy.WIDTH,) * toy.BLOCKS, cross_attention_dim=CONTEXT_DIM)
    metadata = {"ipadapter.spec": json.dumps({"backbone": "Toy"})}
    write_safetensors(base_directory / "models" / "ipadapter" / "toy.safetensors", random_tensors(shapes), metadata)
    return comfy_host.run("IPALoadAdapter", adapter_file="toy.safetensors", image_encoder="none")


@pytest.fixture
def tokens(adapter: Any) -> Any:
    generator = torch.Generator().manual_seed(2)
    sides = [torch.randn(1, 4, CONTEXT_DIM, generator=generator) for _ in range(2)]
    return comfy_host.pack("ipadapter_core.branch.tokens").ImageTokens(*sides, adapter.adapter_id)


@pytest.fixture
def apply(model: Any, adapter: Any, tokens: Any) -> Callable[..., Any]:
    """IPAApply on the toy, or on `onto`."""

    def run(onto: Any = None, **settings: Any) -> Any:
        given = {"model": onto or model, "adapter": adapter, "tokens": tokens}
        return comfy_host.run("IPAApply", **given | PLAIN | settings)

    return run


def test_the_image_acts_by_the_formula(
    model: Any, adapter: Any, tokens: Any, apply: Callable, sample: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = sample(apply(strength=0.7), batch=2)

    def forward(block: toy.Block, x: Tensor, context: Tensor, options: dict[str, Any]) -> Tensor:
        q, site = block.to_q(x), adapter.network.site(options["block_index"])
        out = scaled_dot_product_attention(*map(toy.split, (q, block.to_k(context), block.to_v(context))))
        rows = options["cond_or_uncond"]
        seen = torch.cat([(tokens.uncond if number else tokens.cond).expand(2, -1, -1) for number in rows])
        keys, values = seen @ site.to_k_ip.weight.T, seen @ site.to_v_ip.weight.T
        out = out + 0.7 * scaled_dot_product_attention(*map(toy.split, (q, keys, values)))
        x = x + block.out(out.transpose(1, 2).flatten(2))
        return x + block.mlp(x)

    monkeypatch.setattr(toy.Block, "forward", forward)
    torch.testing.assert_close(given, sample(model, batch=2), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "neutral",
    [{"strength": 0.0}, {"mask": torch.zeros(1, 8, 8)}, {"start_percent": 0.5, "end_percent": 0.5}],
    ids=["strength", "mask", "range"],
)
def test_what_is_neutral_changes_nothing(
    model: Any, apply: Callable, sample: Callable, neutral: dict[str, Any]
) -> None:
    assert torch.equal(sample(apply(**neutral)), sample(model))


def test_the_other_laws(model: Any, apply: Callable, sample: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, before = sample(apply()), sample(model)
    assert not torch.allclose(whole, before, rtol=1e-2)
    assert torch.equal(sample(apply(mask=torch.ones(1, 16, 16))), whole)
    assert torch.equal(sample(apply()), whole)
    one = apply(apply(strength=0.7), strength=0.4, layer_preset="style")
    two = apply(apply(strength=0.4, layer_preset="style"), strength=0.7)
    torch.testing.assert_close(sample(one), sample(two), rtol=1e-4, atol=1e-4)
    assert torch.equal(sample(model), before)
    masked = sample(apply(mask=torch.stack((torch.zeros(8, 8), torch.ones(8, 8)))), batch=2)
    assert torch.equal(masked[0], sample(model, batch=2)[0])
    assert torch.equal(masked[1], sample(apply(), batch=2)[1])
    step, calls = comfy_host.pack("nodes.patching.run").Step, Counter()
    original = step.add_images

    def counted(self: Any, out: Tensor, q: Tensor, address: tuple, *more: Any) -> Tensor:
        calls[address] += 1
        return original(self, out, q, address, *more)

    monkeypatch.setattr(step, "add_images", counted)
    sample(apply(), steps=1)
    assert calls == {("block", number, 0): 1 for number in range(toy.BLOCKS)}


def test_presets_and_weights_name_what_the_row_names(apply: Callable, sample: Callable) -> None:
    weights = comfy_host.run(
        "IPALayerWeights",
        site_factors="block.0: 0, 1: 0",
        input=1.0,
        middle=1.0,
        output=1.0,
        style=1.0,
        composition=1.0,
    )
    assert torch.equal(sample(apply(layer_weights=weights)), sample(apply(layer_preset="style")))
    with pytest.raises(ValueError, match="layer preset 'weak input', which is about the layers input"):
        apply(layer_preset="weak input")
    other = comfy_host.run(
        "IPALayerWeights", site_factors="", input=0.5, middle=1.0, output=1.0, style=1.0, composition=1.0
    )
    with pytest.raises(ValueError, match="layer weights for input, which this kind of model does not have"):
        apply(layer_weights=other)


def test_a_compiled_model_draws_the_same(model: Any, apply: Callable, sample: Callable) -> None:
    from comfy_api.torch_helpers import set_torch_compile_wrapper
    from comfy_extras.nodes_torch_compile import skip_torch_compile_dict

    options = {"guard_filter_fn": skip_torch_compile_dict}
    compiled = model.clone()
    set_torch_compile_wrapper(model=compiled, backend="eager", options=options)
    bare, patched = sample(model, steps=1), sample(apply(), steps=1)
    for onto, wanted in ((compiled, bare), (apply(compiled), patched), (compiled, bare)):
        torch.testing.assert_close(sample(onto, steps=1), wanted, rtol=1e-3, atol=1e-3)


def test_an_adapter_of_another_backbone_is_refused(model: Any, make_adapter: Callable, make_tokens: Callable) -> None:
    adapter = make_adapter("base", "sd15")
    with pytest.raises(ValueError, match=r"an adapter for .* and a model of the .* kind"):
        comfy_host.run("IPAApply", model=model, adapter=adapter.loaded, tokens=make_tokens(adapter), **PLAIN)


def test_without_its_row_the_model_and_the_adapter_are_unknown(adapter: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(comfy_host.pack("ipadapter_core.backbone.registry").BACKBONES, "Toy")
    with pytest.raises(ValueError, match="an adapter for a base model of the kind 'Toy'"):
        comfy_host.run("IPALoadAdapter", adapter_file="toy.safetensors", image_encoder="none")
