"""Anima: what our patches and hooks draw is what the formula gives, and no network keeps anything of it."""

import copy
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import rms_norm

from support import comfy_host, families, plain_anima, tiny_anima
from support.families import FAMILIES, apply, sample
from support.published import anima_lucifer, random_tensors, write_safetensors

ANIMA = [name for name in FAMILIES if name.startswith("anima")]
PLACES = {"anima_lucifer": "block", "anima_lucifer_rich": "block", "anima_lucifer_early": "before_mlp"}
UNCOND_THEN_COND = [1, 0]
STRENGTH = 0.7
EXACT, WHOLE = 1e-12, 1e-4  # relative
Size = tuple[int, int, int]


@pytest.fixture(scope="module", params=ANIMA)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def load(file: str, tensors: dict[str, Tensor], name: str, base_directory: Path) -> Any:
    metadata = FAMILIES[name].metadata | {"ipadapter.spec": f'{{"head_dim": {tiny_anima.HEAD_DIM}}}'}
    write_safetensors(base_directory / "models" / "ipadapter" / file, tensors, metadata)
    return comfy_host.run("IPALoadAdapter", adapter_file=file, image_encoder="none")


def formula(
    name: str,
    tensors: dict[str, Tensor],
    sides: list[Tensor],
    network: Any,
    strength: float,
    change: Callable[[Tensor], Tensor] = lambda image: image,
) -> Any:
    """A copy of the network that draws with the image, which `change` is given."""
    if name in PLACES:
        is_normed = FAMILIES[name].metadata.get("ip_norm_keys") == "True"
        image = plain_anima.lucifer_image(tensors, sides[0], strength, is_normed=is_normed)
    else:
        image = plain_anima.pe_image(tensors, sides, strength, network)
    return plain_anima.network_with(network, lambda *given: change(image(*given)), PLACES.get(name, "attention"))


def inputs(size: Size, batch: int, dtype: torch.dtype) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(3)
    rows = 2 * batch
    return {
        "x": torch.randn(rows, tiny_anima.LATENT_CHANNELS, *size, generator=generator).to(dtype),
        "timesteps": torch.full((rows,), 0.6),
        "context": torch.randn(rows, 7, tiny_anima.TEXT_DIM, generator=generator).to(dtype),
    }


def options_of(model: Any) -> dict[str, Any]:
    """As ComfyUI's sampler hands them to the network."""
    import comfy.patcher_extension

    wrappers = comfy.patcher_extension.merge_nested_dicts({}, model.wrappers)
    return model.model_options["transformer_options"] | {"cond_or_uncond": UNCOND_THEN_COND, "wrappers": wrappers}


def without_positions(
    q: Tensor, k: Tensor, _positions: Tensor, q_weight: Tensor, k_weight: Tensor, epsilon: float
) -> tuple[Tensor, Tensor]:
    return tuple(rms_norm(x, x.shape[-1:], weight, epsilon) for x, weight in ((q, q_weight), (k, k_weight)))


def error(given: Tensor, wanted: Tensor) -> float:
    return ((given - wanted).abs().max() / wanted.abs().max()).item()


def with_network(model: Any, network: Any) -> Any:
    """A MODEL of its own, which shares nothing that ComfyUI keeps of the other."""
    base = copy.copy(model.model)
    base._modules = dict(model.model._modules)
    base.diffusion_model, base.current_weight_patches_uuid = network, None
    return type(model)(base, model.load_device, model.offload_device)


def plain_network(model: Any) -> Any:
    """A copy of its network without any patch of its weights."""
    import comfy.model_management

    comfy.model_management.load_models_gpu([model])
    return copy.deepcopy(model.model.diffusion_model)


@pytest.mark.parametrize(("size", "batch"), [((1, 8, 8), 1), ((1, 9, 7), 2), ((3, 6, 4), 1)], ids=str)
def test_a_forward_is_what_the_formula_gives(
    name: str, size: Size, batch: int, base_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float64; the network is called by itself, and once it is another size, once a video."""
    import comfy.quant_ops

    # knows no float64; positions, which the image has nothing to do with, are left out on both sides
    monkeypatch.setattr(comfy.quant_ops, "ck", SimpleNamespace(rms_rope_split_half=without_positions))
    model = tiny_anima.comfy_anima(dtype=torch.float64, compute=torch.float64)
    tensors = random_tensors(FAMILIES[name].shapes(), 4, dtype=torch.float64)
    adapter = load(f"exact-{name}.safetensors", tensors, name, base_directory)
    features = families.features_of(name, references=2).double()
    sides = [features, torch.zeros_like(features[:1])]
    with torch.inference_mode():
        tokens = adapter.project(*sides)
        patched, network = apply(model, adapter, tokens, strength=STRENGTH), model.model.diffusion_model
        given = inputs(size, batch, torch.float64)
        drawn = network(**given, transformer_options=options_of(patched))
        plain = formula(name, tensors, sides, network, STRENGTH)
        wanted = plain(**given, transformer_options={"cond_or_uncond": UNCOND_THEN_COND})
        bare = network(**given, transformer_options={})
    assert error(bare, wanted) > 1e-3
    assert error(drawn, wanted) < EXACT


def test_a_sampling_is_what_the_formula_gives(name: str, base_directory: Path) -> None:
    model = families.model_of(name)
    adapter, tensors = families.adapter_of(name, base_directory), families.tensors_of(name)
    sides = [families.features_of(name), torch.zeros_like(families.features_of(name))]
    other = with_network(model, formula(name, tensors, sides, model.model.diffusion_model, STRENGTH))
    wanted = sample(name, other, steps=3, size=(9, 6), batch=2)
    patched = apply(model, adapter, families.tokens_of(name, adapter), strength=STRENGTH)
    assert error(sample(name, patched, steps=3, size=(9, 6), batch=2), wanted) < WHOLE


LORA = "anima_lucifer"


@pytest.fixture(scope="module")
def with_lora(base_directory: Path) -> Callable[[int], tuple[Any, dict[str, Tensor]]]:
    """An adapter that carries a LoRA, by a seed, and its tensors."""

    def make(seed: int) -> tuple[Any, dict[str, Tensor]]:
        size = {"width": tiny_anima.WIDTH, "image": 24, "text": tiny_anima.TEXT_DIM}
        tensors = random_tensors(anima_lucifer(blocks=tiny_anima.BLOCKS, rank=2, **size), seed, scale=0.1)
        return load(f"lora-{seed}.safetensors", tensors, LORA, base_directory), tensors

    return make


def merged(network: Any, *loras: dict[str, Tensor]) -> Any:
    """The network with B A added to the weights, alpha being the rank."""
    for tensors in loras:
        for key, down in tensors.items():
            if match := re.fullmatch(r"lora\.base_model\.model\.(.+)\.lora_A\.default\.weight", key):
                up = tensors[key.replace("lora_A", "lora_B")]
                network.get_submodule(match[1]).weight.data += up @ down
    return network


def test_the_lora_of_a_file_is_on_with_the_adapter_and_off_without(with_lora: Callable) -> None:
    model, (adapter, tensors) = families.model_of(LORA), with_lora(1)
    features = families.features_of(LORA)
    network = plain_network(model)
    before = {key: weight.clone() for key, weight in model.model.state_dict().items()}
    plain = sample(LORA, model)
    without = formula(LORA, tensors, [features], network, STRENGTH)
    wanted = sample(LORA, with_network(model, formula(LORA, tensors, [features], merged(network, tensors), STRENGTH)))
    patched = apply(model, adapter, families.tokens_of(LORA, adapter), strength=STRENGTH)
    assert error(sample(LORA, patched), wanted) < WHOLE
    assert error(sample(LORA, with_network(model, without)), wanted) > 1e-2
    assert torch.equal(sample(LORA, model), plain)
    patched.unpatch_model()
    model.unpatch_model()
    assert all(torch.equal(weight, before[key]) for key, weight in model.model.state_dict().items())
    assert not model.patches


def test_a_lora_is_on_once_however_often_its_adapter_is_applied(with_lora: Callable) -> None:
    model, (adapter, _) = families.model_of(LORA), with_lora(1)
    once = apply(model, adapter, families.tokens_of(LORA, adapter))
    twice = apply(once, adapter, families.tokens_of(LORA, adapter, seed=3))
    assert {key: len(patches) for key, patches in once.patches.items()} == {
        key: len(patches) for key, patches in twice.patches.items()
    }


def test_a_lora_fits_a_model_of_packed_weights(with_lora: Callable) -> None:
    model, (adapter, _) = families.model_of(LORA).clone(), with_lora(1)
    packed = copy.deepcopy(model.model.diffusion_model)
    for module in packed.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight = torch.nn.Parameter(torch.zeros(7, dtype=torch.uint8), requires_grad=False)
    model.add_object_patch("diffusion_model", packed)
    comfy_host.pack("nodes.patching.model_lora").check_model_lora(model, adapter)


def test_a_lora_is_not_on_at_strength_0(with_lora: Callable) -> None:
    model, (adapter, _) = families.model_of(LORA), with_lora(1)
    unused = apply(model, adapter, families.tokens_of(LORA, adapter), strength=0.0)
    assert unused is model
    assert not unused.patches


def test_the_loras_of_two_adapters_add_up(with_lora: Callable) -> None:
    model, (first, one), (second, two) = families.model_of(LORA), with_lora(1), with_lora(2)
    tokens = [families.tokens_of(LORA, adapter, seed=seed) for seed, adapter in ((1, first), (2, second))]
    both = apply(apply(model, first, tokens[0], strength=0.5), second, tokens[1])
    images = [
        plain_anima.lucifer_image(tensors, families.features_of(LORA, seed=seed), strength, is_normed=False)
        for tensors, seed, strength in ((one, 1, 0.5), (two, 2, 1.0))
    ]
    network = plain_anima.network_with(
        merged(plain_network(model), one, two), lambda *given: images[0](*given) + images[1](*given), "block"
    )
    assert error(sample(LORA, both), sample(LORA, with_network(model, network))) < WHOLE


def test_a_lora_for_layers_that_the_model_lacks_is_refused(with_lora: Callable) -> None:
    adapter, _ = with_lora(1)
    other = with_network(families.model_of(LORA), copy.deepcopy(families.model_of(LORA).model.diffusion_model))
    del other.model.diffusion_model.blocks[1].mlp
    with pytest.raises(ValueError, match=r"whose LoRA changes blocks\.1\.mlp\.layer1, 128 x 32, which this model"):
        apply(other, adapter, families.tokens_of(LORA, adapter))


def test_the_models_own_norm_is_taken_as_it_is_patched(base_directory: Path) -> None:
    """Keys of anima_lora's adapters go through a norm of the model, which merges and LoRAs change."""
    name = "anima_pe"
    model, adapter, tensors = (
        families.model_of(name),
        families.adapter_of(name, base_directory),
        families.tensors_of(name),
    )
    sides = [families.features_of(name), torch.zeros_like(families.features_of(name))]
    changed, network = model.clone(), plain_network(model)
    shift = torch.randn(tiny_anima.HEAD_DIM, generator=torch.Generator().manual_seed(6))
    key = "blocks.1.cross_attn.k_norm"
    changed.add_patches({f"diffusion_model.{key}.weight": ("diff", (shift,))})
    network.get_submodule(key).weight.data += shift
    wanted = sample(name, with_network(model, formula(name, tensors, sides, network, STRENGTH)))
    for _ in range(2):  # the second time, ComfyUI has patched the weights
        patched = apply(changed, adapter, families.tokens_of(name, adapter), strength=STRENGTH)
        assert error(sample(name, patched), wanted) < WHOLE


def hooks_of(network: Any) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in network.modules())


def test_hooks_are_there_only_while_the_network_runs(name: str, base_directory: Path) -> None:
    model, adapter = families.model_of(name), families.adapter_of(name, base_directory)
    network, counts = model.model.diffusion_model, []

    def count(given: dict[str, Any]) -> dict[str, Any]:
        counts.append(hooks_of(network))
        return given

    patched = apply(model, adapter, families.tokens_of(name, adapter))
    patched.set_model_patch(count, "post_input")
    sample(name, patched, steps=1, cfg=1.0)
    assert counts == [{"block": tiny_anima.BLOCKS, "before_mlp": 3 * tiny_anima.BLOCKS}.get(PLACES.get(name, ""), 0)]
    assert hooks_of(network) == 0


def test_an_error_within_the_network_leaves_no_hook(name: str, base_directory: Path) -> None:
    model, adapter = families.model_of(name), families.adapter_of(name, base_directory)

    def fail(given: dict[str, Any]) -> dict[str, Any]:
        raise InterruptedError("stopped")

    patched = apply(model, adapter, families.tokens_of(name, adapter))
    wanted, broken = sample(name, patched), patched.clone()
    broken.set_model_patch(fail, "mlp_patch")
    with pytest.raises(InterruptedError):
        sample(name, broken)
    assert hooks_of(model.model.diffusion_model) == 0
    assert torch.equal(sample(name, patched), wanted)


def test_two_threads_in_one_network_do_not_mix(name: str, base_directory: Path) -> None:
    model, adapter = families.model_of(name), families.adapter_of(name, base_directory)
    network, given = model.model.diffusion_model, inputs((1, 8, 8), 1, torch.float32)
    patched = [apply(model, adapter, families.tokens_of(name, adapter, seed=seed)) for seed in (1, 2)]
    options = [*(options_of(one) for one in patched), {}]

    def forward(number: int) -> Tensor:
        with torch.inference_mode():
            return network(**given, transformer_options=dict(options[number]))

    wanted = [forward(number) for number in range(3)]
    ready = threading.Barrier(3)

    def run(number: int) -> bool:
        same = True
        try:
            for _ in range(10):
                ready.wait(timeout=60)
                same &= torch.allclose(forward(number), wanted[number], rtol=1e-5, atol=1e-6)
        except threading.BrokenBarrierError:
            return True  # another thread failed, and says why
        finally:
            ready.abort() if not same else None
        return same

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(run, range(3))) == [True] * 3
    assert hooks_of(network) == 0


def test_a_cosmos_that_is_no_anima_is_refused(base_directory: Path) -> None:
    name = "anima_lucifer"
    adapter = families.adapter_of(name, base_directory)
    with pytest.raises(ValueError, match=r"a Cosmos-Predict2 model .* without Anima's text adapter"):
        apply(tiny_anima.comfy_cosmos(), adapter, families.tokens_of(name, adapter))


def test_a_tune_with_more_blocks_needs_an_adapter_with_as_many(base_directory: Path) -> None:
    name = "anima_lucifer"
    adapter = families.adapter_of(name, base_directory)
    tune = with_network(families.model_of(name), tiny_anima.anima_network(blocks=tiny_anima.BLOCKS + 1))
    with pytest.raises(ValueError, match=r"3 attention layers.* and a model of .*4 attention layers"):
        apply(tune, adapter, families.tokens_of(name, adapter))


def test_a_mask_lies_on_every_frame_of_a_video(
    name: str, base_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FAMILIES, name, replace(FAMILIES[name], depth=(2,)))
    model, adapter = families.model_of(name), families.adapter_of(name, base_directory)
    features, tensors, network = families.features_of(name), families.tensors_of(name), plain_network(model)
    left = torch.zeros(1, 8, 8)
    left[..., :4] = 1
    cells = left[:, ::2, ::2].flatten(1).repeat(1, 2)[..., None]
    sides = [features, torch.zeros_like(features)]
    masked = formula(name, tensors, sides, network, 1.0, lambda image: image * cells)
    drawn = sample(name, apply(model, adapter, families.tokens_of(name, adapter), mask=left))
    assert error(drawn, sample(name, with_network(model, masked))) < WHOLE
