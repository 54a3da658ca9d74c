"""What is SD3.5's own: a network that runs while it samples, and attention over the picture's own keys."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from support import comfy_host, families, tiny_sd3
from support.families import apply, sample
from support.published import instantx_sd35, random_tensors, write_safetensors

NAME = "instantx_sd35"
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture
def adapter(base_directory: Path) -> Any:
    return families.adapter_of(NAME, base_directory)


@pytest.fixture
def model(adapter: Any) -> Any:
    return families.model_of(NAME)


@pytest.fixture
def tokens(adapter: Any) -> Any:
    return families.tokens_of(NAME, adapter)


@pytest.fixture
def runs(adapter: Any, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The timesteps the network of the adapter is run with."""
    seen: list[Tensor] = []
    network = comfy_host.pack("ipadapter_core.network.adapter").IPAdapter
    original = network.timed_tokens

    def noted(self: Any, features: Tensor, timestep: Tensor) -> Any:
        seen.append(timestep)
        return original(self, features, timestep)

    monkeypatch.setattr(network, "timed_tokens", noted)
    return seen


@pytest.mark.parametrize("is_split", [False, True])
def test_the_network_runs_once_per_step(
    model: Any, adapter: Any, tokens: Any, runs: list[Tensor], is_split: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    patched = apply(model, adapter, tokens)
    if is_split:  # cond and uncond one after the other
        monkeypatch.setattr(type(model.model), "memory_required", lambda *_, **__: 1e30)
    for _ in range(2):
        runs.clear()
        sample(NAME, patched, steps=3)
        times = [float(time) for time in runs]
        assert len(times) == 3
        assert times == sorted(times, reverse=True)
        assert times[0] == pytest.approx(1000)


def test_what_flows_are_features(adapter: Any, tokens: Any) -> None:
    assert torch.equal(tokens.cond, families.features_of(NAME))
    assert not tokens.uncond.any()


def test_comfyui_brings_the_network_to_the_device(model: Any, adapter: Any, tokens: Any) -> None:
    second = families.tokens_of(NAME, adapter, seed=3)
    patched = apply(apply(model, adapter, tokens), adapter, second)
    assert set(patched.model_patches_models()) == {adapter.patcher}
    assert model.model_patches_models() == []


def test_a_run_leaves_nothing_behind(model: Any, adapter: Any, tokens: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run = comfy_host.pack("nodes.patching.run").Run
    runs, original = [], run.resident

    def noted(self: Any, *more: Any) -> Any:
        runs.append(self)
        return original(self, *more)

    monkeypatch.setattr(run, "resident", noted)
    patched = apply(model, adapter, tokens)
    sample(NAME, patched)
    first = runs[-1]
    sample(NAME, patched)
    assert runs[-1] is not first
    (plan,) = comfy_host.pack("nodes.patching.applied").applied_to(patched.model_options["transformer_options"]).plans
    assert set(vars(plan.kv)) == {"sites", "strengths", "adapter", "tokens", "is_per_frame"}
    per_row = 2 * tiny_sd3.WIDTH * 5 * tiny_sd3.BLOCKS * 4
    assert plan.kv.num_bytes(7, 4) == 2 * per_row
    assert 2 * per_row <= first.num_bytes <= 2 * per_row + tokens.num_bytes


def test_comfyui_keeps_room_for_keys_and_values(
    model: Any, adapter: Any, tokens: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import comfy.model_management

    given: list[float] = []
    original = comfy.model_management.load_models_gpu

    def noted(models: Any, memory_required: float = 0, **more: Any) -> Any:
        given.append(memory_required)
        return original(models, memory_required=memory_required, **more)

    patched = apply(model, adapter, families.tokens_of(NAME, adapter, references=40))
    (plan,) = comfy_host.pack("nodes.patching.applied").applied_to(patched.model_options["transformer_options"]).plans
    monkeypatch.setattr(comfy.model_management, "load_models_gpu", noted)
    most = []
    for each in (model, patched):
        given.clear()
        sample(NAME, each, steps=1)
        most.append(max(given))
    assert most[1] - most[0] >= plan.kv.num_bytes(1, 4) > 1e5


def test_references_are_brought_to_the_device_once(
    model: Any, adapter: Any, tokens: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, keys = comfy_host.pack("nodes.patching.run").Run, []
    original = run.kept

    def noted(self: Any, key: Any, make: Callable[[], Tensor]) -> Tensor:
        def made() -> Tensor:
            keys.append(key)
            return make()

        return original(self, key, made)

    monkeypatch.setattr(run, "kept", noted)
    sample(NAME, apply(model, adapter, tokens), steps=3)
    assert len(keys) == 1


def joined(
    model: Any, adapter: Any, tokens: Any, q: Tensor, *, size: tuple[int, int], text: int = 4, **use: Any
) -> tuple[Tensor, Tensor]:
    """What a block's attention gives without and with the adapter, where queries, keys and values are alike."""
    run, joint = comfy_host.pack("nodes.patching.run"), comfy_host.pack("nodes.patching.joint")
    options = apply(model, adapter, tokens, **use).model_options["transformer_options"]
    options = options | {"cond_or_uncond": [1, 0], "sigmas": torch.tensor([0.5])}
    applied = comfy_host.pack("nodes.patching.applied").applied_to(options)
    step = run.Step(run.Run(applied, applied.model_sampling), options, size=size)
    out = q.clone()
    own = joint.Own(q, q, q.unflatten(-1, (tiny_sd3.HEADS, -1)), text, 2)
    with torch.inference_mode():
        return q, joint.add_images(step, out, own, ("joint", 1, 0), options)


@pytest.mark.parametrize("size", [(8, 8), (9, 7)], ids=["even", "odd"])
def test_a_mask_lies_on_the_grid_of_tokens(model: Any, adapter: Any, tokens: Any, size: tuple[int, int]) -> None:
    rows, columns = (-(-side // 2) for side in size)
    q = torch.randn(2, 4 + rows * columns, tiny_sd3.WIDTH, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(1, *size)
    mask[:, :4] = 1  # of the latent: the first two rows of tokens
    before, whole = joined(model, adapter, tokens, q, size=size)
    _, masked = joined(model, adapter, tokens, q, size=size, mask=mask)
    top = 4 + 2 * columns
    assert torch.equal(whole[:, :4], before[:, :4])
    assert not torch.allclose(whole[:, 4:], before[:, 4:], rtol=1e-2)
    torch.testing.assert_close(masked[:, :top], whole[:, :top], **CLOSE)
    assert torch.equal(masked[:, top:], before[:, top:])


def test_a_strength_multiplies_what_the_attention_gives(model: Any, adapter: Any, tokens: Any) -> None:
    q = torch.randn(2, 20, tiny_sd3.WIDTH, generator=torch.Generator().manual_seed(0))
    before, whole = joined(model, adapter, tokens, q, size=(8, 8))
    _, half = joined(model, adapter, tokens, q, size=(8, 8), strength=0.5)
    torch.testing.assert_close(half - before, 0.5 * (whole - before), **CLOSE)


def test_many_negatives_are_refused(model: Any, adapter: Any, tokens: Any) -> None:
    image_tokens = comfy_host.pack("ipadapter_core.branch.tokens").ImageTokens
    many = image_tokens(tokens.cond, torch.zeros(3, *tokens.cond.shape[1:]), adapter.adapter_id)
    with pytest.raises(ValueError, match="3 pictures to move away from, for 1 reference"):
        apply(model, adapter, many)


def test_references_are_combined_with_factors(model: Any, adapter: Any, tokens: Any) -> None:
    both = {"tokens0": tokens, "tokens1": families.tokens_of(NAME, adapter, seed=9)}
    drawn = [
        sample(
            NAME, apply(model, adapter, comfy_host.run("IPACombineTokens", tokens=both, method=method, weights=factors))
        )
        for method, factors in (("average", ""), ("average", "2, 2"), ("add", ""), ("concat", ""), ("concat", "1, 0.5"))
    ]
    alone = sample(NAME, apply(model, adapter, tokens))
    torch.testing.assert_close(drawn[1], drawn[2], **CLOSE)  # two means are a sum
    pictures = [alone, *drawn[:2], *drawn[3:]]
    for number, picture in enumerate(pictures):
        assert all((picture - other).norm() > 1e-3 * picture.norm() for other in pictures[:number])


def test_every_latent_has_its_own_reference(model: Any, adapter: Any) -> None:
    application, site = (
        comfy_host.pack("nodes.patching.application"),
        comfy_host.pack("ipadapter_core.strength.site"),
    )
    sites, tokens = application.fitting_sites(model, adapter), families.tokens_of(NAME, adapter, references=2)
    numbers = range(len(sites.sites))
    with torch.inference_mode():
        patched = application.patch_sites(
            model,
            sites,
            adapter,
            dict.fromkeys(numbers, tokens),
            dict.fromkeys(numbers, site.SiteStrength(1.0)),
            application.Limits(),
            per_frame=True,
        )
    image_tokens = comfy_host.pack("ipadapter_core.branch.tokens").ImageTokens
    each = [image_tokens(row[None], tokens.uncond, adapter.adapter_id) for row in tokens.cond]
    both = sample(NAME, patched, batch=2)
    for number in range(2):
        alone = sample(NAME, apply(model, adapter, each[number]), batch=2)
        torch.testing.assert_close(both[number], alone[number], **CLOSE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_bases(model: Any, adapter: Any, tokens: Any, dtype: torch.dtype) -> None:
    half = tiny_sd3.comfy_sd3(tiny_sd3.diffusers_sd3(), dtype)
    errors = [
        (sample(NAME, rounded, steps=1).float() - sample(NAME, full, steps=1)).norm()
        for rounded, full in ((half, model), (apply(half, adapter, tokens), apply(model, adapter, tokens)))
    ]
    assert errors[1] < 1.2 * errors[0], "more is lost than the base model alone loses"


@pytest.mark.parametrize("where", ["image_proj.layers.0.1.1.weight", "ip_adapter.1.to_v_ip.weight"])
def test_damaged_weights_are_found_before_anything_is_patched(base_directory: Path, model: Any, where: str) -> None:
    tensors = families.tensors_of(NAME)
    tensors[where][0, 0] = torch.nan
    file = f"damaged-{where}.safetensors"
    write_safetensors(base_directory / "models" / "ipadapter" / file, tensors)
    damaged = comfy_host.run("IPALoadAdapter", adapter_file=file, image_encoder="none")
    with pytest.raises(ValueError, match=r"NaN or infinite keys or values from InstantX SD3\.5"):
        apply(model, damaged, families.tokens_of(NAME, damaged))


def test_an_adapter_of_another_number_of_blocks_is_refused(base_directory: Path, model: Any) -> None:
    shapes = instantx_sd35(
        blocks=tiny_sd3.BLOCKS + 1, width=tiny_sd3.WIDTH, image=24, tokens=5, dim=32, inner=64, time=16
    )
    write_safetensors(base_directory / "models" / "ipadapter" / "more.safetensors", random_tensors(shapes))
    more = comfy_host.run("IPALoadAdapter", adapter_file="more.safetensors", image_encoder="none")
    with pytest.raises(ValueError, match=r"4 attention layers, .* and a model .* \(3 attention layers, 192 wide\)"):
        apply(model, more, families.tokens_of(NAME, more))


def test_a_file_stays_as_it_is_published(base_directory: Path, adapter: Any, tmp_path: Path) -> None:
    core = comfy_host.pack("ipadapter_core.network.adapter")
    container = comfy_host.pack("ipadapter_core.file.container")
    core.save_adapter(adapter.network, tmp_path / "again.safetensors")
    again, wanted = container.read_tensors(tmp_path / "again.safetensors"), families.tensors_of(NAME)
    assert again.tensors.keys() == wanted.keys()
    assert all(torch.equal(again.tensors[name], wanted[name]) for name in wanted)
    assert core.load_adapter(tmp_path / "again.safetensors").spec == adapter.spec
    assert "time_dim" in json.loads(again.metadata["ipadapter.spec"])["resampler"]


def test_a_call_past_comfyui_that_says_no_noise_level(model: Any, adapter: Any, tokens: Any) -> None:
    options = apply(model, adapter, tokens).model_options["transformer_options"] | {"cond_or_uncond": [0]}
    inputs = (torch.randn(1, 16, 8, 8), torch.ones(1), torch.randn(1, 5, tiny_sd3.TEXT_DIM), torch.randn(1, 12))
    x, time, text, pooled = inputs
    with pytest.raises(ValueError, match="does not say its noise level"):
        model.model.diffusion_model(x, time, context=text, y=pooled, transformer_options=options)


@pytest.mark.parametrize("scaling", ["K+V", "K+V w/ C penalty", "K+mean(V) w/ C penalty"])
def test_scalings_of_keys_are_refused(model: Any, adapter: Any, tokens: Any, scaling: str) -> None:
    application = comfy_host.pack("nodes.patching.application")
    find: Callable = comfy_host.pack("ipadapter_core.strength.scaling").find_scaling
    sites = application.fitting_sites(model, adapter)
    strengths = {0: comfy_host.pack("ipadapter_core.strength.site").SiteStrength(1.0)}
    with pytest.raises(ValueError, match="embeds_scaling"):
        application.patch_sites(model, sites, adapter, {0: tokens}, strengths, application.Limits(), find(scaling))
