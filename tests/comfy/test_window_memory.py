"""An animation takes the memory of a window, ComfyUI is told of it beforehand, and each frame has its own mask."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from support import comfy_host, tiny_unet
from support.published import random_tensors, tiny_adapter, write_safetensors

WINDOW, OVERLAP = 4, 1
TOKENS = 4
pytestmark = pytest.mark.parametrize("layout", tiny_unet.EITHER_LAYOUT)


def windowed(model: Any) -> Any:
    """As ComfyUI's context windows node for image models with frames in the batch."""
    import comfy.context_windows as windows

    clone = model.clone()
    handler = windows.IndexListContextHandler(
        windows.get_matching_context_schedule(windows.ContextSchedules.STATIC_STANDARD),
        windows.get_matching_fuse_method(windows.ContextFuseMethods.FLAT),
        context_length=WINDOW,
        context_overlap=OVERLAP,
        dim=0,
    )
    handler.causal_window_fix = False  # it adds a frame to each window
    clone.model_options["context_handler"] = handler
    windows.create_prepare_sampling_wrapper(clone)
    return clone


@pytest.fixture
def patched(
    layout: str, base_directory: Path, unet: Callable, model: Callable
) -> Callable[[int], tuple[Any, tuple[int, ...]]]:
    """The model with a reference for each of so many frames, and the channels of its sites."""
    dims = tiny_unet.site_dims(unet(layout))
    name = f"frames-{layout}.safetensors"
    shapes = tiny_adapter("base", site_dims=dims, num_tokens=TOKENS)
    write_safetensors(base_directory / "models" / "ipadapter" / name, random_tensors(shapes))
    loaded = comfy_host.run("IPALoadAdapter", adapter_file=name, image_encoder="none")
    application = comfy_host.pack("nodes.patching.application")
    strength = comfy_host.pack("ipadapter_core.strength.site").SiteStrength
    tokens_class = comfy_host.pack("ipadapter_core.branch.tokens").ImageTokens

    def make(frames: int) -> tuple[Any, tuple[int, ...]]:
        generator = torch.Generator().manual_seed(0)
        sides = [torch.randn(frames, TOKENS, tiny_unet.CONTEXT_DIM, generator=generator) for _ in range(2)]
        tokens = tokens_class(*sides, loaded.adapter_id)
        sites = application.fitting_sites(model(layout), loaded)
        every = range(len(sites.sites))
        result = application.patch_sites(
            model(layout),
            sites,
            loaded,
            dict.fromkeys(every, tokens),
            dict.fromkeys(every, strength(1.0)),
            application.Limits(mask=torch.rand(frames, 8, 8)),
            per_frame=True,
        )
        return result, dims

    return make


@pytest.mark.parametrize("frames", [8, 24])
def test_a_run_keeps_what_its_window_needs(
    patched: Callable, sample: Callable, frames: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, dims = patched(frames)
    step, most = comfy_host.pack("nodes.patching.run").Step, []
    original = step.add_images

    def measured(self: Any, *args: Any) -> Tensor:
        result = original(self, *args)
        most.append(self.run.num_bytes)
        return result

    monkeypatch.setattr(step, "add_images", measured)
    sample(windowed(model), batch=frames, steps=1)
    keys_and_values = 2 * WINDOW * 2 * TOKENS * sum(dims) * 4
    every_mask = frames * (64 + 16 + 4 + 1) * 4
    masks_of_windows = 8 * 2 * WINDOW * 64 * 4  # eight selections are kept
    assert keys_and_values <= max(most) <= keys_and_values + every_mask + masks_of_windows


def test_comfyui_keeps_room_for_the_window(
    patched: Callable, sample: Callable, monkeypatch: pytest.MonkeyPatch, model: Callable, layout: str
) -> None:
    import comfy.model_management

    given: list[int] = []
    original = comfy.model_management.load_models_gpu

    def noted(models: Any, memory_required: int = 0, **more: Any) -> Any:
        given.append(memory_required)
        return original(models, memory_required=memory_required, **more)

    monkeypatch.setattr(comfy.model_management, "load_models_gpu", noted)
    per_frame, dims = patched(24)
    needs = 2 * WINDOW * 2 * TOKENS * sum(dims) * 4
    sample(windowed(model(layout)), batch=24, steps=1)
    without = given[-1]
    for each in (windowed(per_frame), windowed(patched(300)[0])):
        given.clear()
        sample(each, batch=24, steps=1)
        column = without / 8  # of the latent, to which the estimate is rounded up
        assert needs <= max(given) - without < needs + column


def test_the_network_that_makes_the_keys_is_loaded_for_sampling(patched: Callable) -> None:
    model, _ = patched(8)
    networks = model.model_patches_models()
    assert {type(network.model).__name__ for network in networks} == {"IPAdapter"}


def test_the_host_keeps_the_tokens_alone(patched: Callable) -> None:
    model, _ = patched(300)
    (plan,) = comfy_host.pack("nodes.patching.applied").applied_to(model.model_options["transformer_options"]).plans
    assert sum(each.num_bytes for each in set(plan.kv.tokens.values())) == 2 * 300 * TOKENS * tiny_unet.CONTEXT_DIM * 4
    assert plan.kv.shared is None


def test_masked_out_frames_of_a_window_are_unpatched_ones(
    sample: Callable, model: Callable, layout: str, make_adapter: Callable, make_tokens: Callable, apply: Callable
) -> None:
    frames, adapter = 10, make_adapter("base", layout)
    masks = torch.stack([torch.full((8, 8), float(frame % 3 == 0)) for frame in range(frames)])
    patched = apply(model(layout), adapter, make_tokens(adapter), mask=masks)
    given = sample(windowed(patched), batch=frames, steps=1)
    without = sample(windowed(model(layout)), batch=frames, steps=1)
    whole = sample(windowed(apply(model(layout), adapter, make_tokens(adapter))), batch=frames, steps=1)
    for frame in range(frames):
        assert torch.equal(given[frame], (whole if frame % 3 == 0 else without)[frame])
