"""Every kind of base model beside UNets: errors while sampling, fake GPUs, odd weights. Other packs: `test_family_neighbours`."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses import FakeTensorMode

from support import comfy_host, families
from support.families import EACH, FAMILIES, apply, differs, sample

pytestmark = pytest.mark.parametrize("name", EACH)
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
CUDA = "cuda:0"


@pytest.fixture
def setting(name: str, base_directory: Path) -> families.Setting:
    return families.setting_of(name, base_directory)


def state(model: Any) -> tuple[object, ...]:
    """What sampling must leave as it was."""
    modules = list(model.model.modules())
    hooks = sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules)
    weights = [parameter.clone() for parameter in model.model.parameters()]
    return hooks, len(model.object_patches_backup), len(model.backup), [hash(w.sum().item()) for w in weights]


@pytest.mark.parametrize("failing", ["a callback", "the model"])
def test_nothing_is_left_after_an_error_while_sampling(name: str, setting: tuple, failing: str) -> None:
    model = setting[0]
    model.unpatch_model()
    before, plain, patched = state(model), sample(name, model), apply(*setting)
    wanted = sample(name, patched)

    def fail(*_: object) -> None:
        raise InterruptedError("stopped")

    broken = patched.clone()
    if failing == "the model":
        broken.set_model_unet_function_wrapper(
            lambda run, call: (run(call["input"], call["timestep"], **call["c"]), fail())
        )
    with pytest.raises(InterruptedError):
        sample(name, broken, steps=3, callback=fail if failing == "a callback" else None)
    patched.unpatch_model()
    model.unpatch_model()
    assert state(model) == before
    assert torch.equal(sample(name, patched), wanted)
    assert torch.equal(sample(name, model), plain)


def test_a_strength_may_differ_from_queue_to_queue(name: str, setting: tuple) -> None:
    first = sample(name, apply(*setting, strength=0.4))
    other = sample(name, apply(*setting, strength=0.9))
    assert differs(first, other)
    assert torch.equal(sample(name, apply(*setting, strength=0.4)), first)


def applied_outside_inference_mode(name: str, setting: tuple, **use: Any) -> Any:
    """A fake device cannot take tensors that were made in inference mode; the features differ from every other test's."""
    application = comfy_host.pack("nodes.patching.application")
    model, features = setting[0], families.features_of(name, seed=77)
    adapter = comfy_host.pack("nodes.loading").open_adapter(f"{name}-0.safetensors", "none")
    with torch.no_grad():
        tokens = adapter.project(features, torch.zeros_like(features))
        return application.apply_adapter(model, adapter, tokens, application.ApplySettings(**use))


def on_a_fake_gpu(model: Any, dtype: torch.dtype, mode: FakeTensorMode) -> Any:
    """ComfyUI's model with every weight on a device that is not there."""
    base = copy.copy(model.model)
    base._modules = dict(base._modules)
    base.diffusion_model = copy.deepcopy(model.model.diffusion_model)
    base.diffusion_model.dtype, base.manual_cast_dtype = dtype, None
    with mode:
        for module in base.diffusion_model.modules():
            for kind in (module._parameters, module._buffers):
                for key, tensor in kind.items():
                    if tensor is not None:
                        held = torch.empty(
                            tensor.shape, device=CUDA, dtype=dtype if tensor.is_floating_point() else None
                        )
                        kind[key] = held if kind is module._buffers else torch.nn.Parameter(held, requires_grad=False)
    return base


MASKED = {"mask": torch.rand(2, 16, 16), "end_percent": 0.6}


@pytest.mark.parametrize(
    ("use", "dtype"),
    [
        pytest.param({}, torch.bfloat16, id="plain-bfloat16", marks=pytest.mark.long),
        pytest.param(MASKED, torch.float16, id="masks and range-float16"),
        pytest.param({}, torch.float16, id="plain-float16", marks=pytest.mark.long),
        pytest.param(MASKED, torch.bfloat16, id="masks and range-bfloat16", marks=pytest.mark.long),
    ],
)
def test_on_a_gpu_that_is_not_there(
    name: str, setting: tuple, use: dict[str, Any], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    import comfy.patcher_extension
    from comfy.ldm.modules import attention

    model, family, batch = setting[0], FAMILIES[name], 3
    patched = applied_outside_inference_mode(name, setting, **use)
    monkeypatch.setattr(attention, "optimized_attention", attention.attention_pytorch)  # ComfyUI's choice on a GPU
    families.use_attention(monkeypatch, attention.attention_pytorch)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    base = on_a_fake_gpu(model, dtype, mode)
    rows = 2 * batch
    with mode:
        sigma = torch.full((rows,), 0.7, device=CUDA)
        options = patched.model_options["transformer_options"] | {"cond_or_uncond": [1, 0], "sigmas": sigma}
        options["wrappers"] = comfy.patcher_extension.merge_nested_dicts({}, patched.wrappers)  # as the sampler does
        given = {
            "c_crossattn": torch.zeros(rows, 7, family.text_dim, device=CUDA, dtype=dtype),
            "y": torch.zeros(rows, family.pooled_dim, device=CUDA, dtype=dtype),
            "guidance": torch.full((rows,), 3.5, device=CUDA),
            **family.inputs,
        }
        x = torch.zeros(rows, family.channels, *family.depth, 8, 8, device=CUDA)
        out = base.apply_model(x, sigma, transformer_options=options, **given)
    assert (str(out.device), out.shape) == (CUDA, x.shape)


def test_weights_in_eight_bits_that_are_cast_when_used(name: str, setting: tuple) -> None:
    stored = FAMILIES[name].model_in(torch.float8_e4m3fn, torch.float32)
    plain, drawn = sample(name, stored), sample(name, apply(stored, *setting[1:]))
    assert drawn.isfinite().all()
    assert differs(drawn, plain)


def test_a_model_of_which_a_part_stays_on_the_host(name: str, setting: tuple) -> None:
    model = setting[0]
    wanted = sample(name, apply(*setting))
    partly = apply(*setting)
    partly.partially_load(torch.device("cpu"), 1)
    try:
        torch.testing.assert_close(sample(name, partly), wanted, **CLOSE)
    finally:
        partly.detach()
    assert torch.equal(sample(name, apply(*setting)), wanted)
    assert model.model is partly.model
