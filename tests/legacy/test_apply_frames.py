"""Nodes that give every latent its own reference: whole batches, weight lists, windows of AnimateDiff and ComfyUI."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from legacy import plain
from legacy.apply_fixtures import adapter, assert_draws, embeds, formula, forward
from legacy.facts import FACTS
from legacy.running import clip_vision, outputs, random_image
from support import tiny_unet

SCALINGS = next(item.options for item in FACTS["IPAdapterAdvanced"].inputs if item.name == "embeds_scaling")
WIDGETS = {"weight": 0.8, "weight_type": "linear", "start_at": 0.0, "end_at": 1.0, "embeds_scaling": "V only"}
FRAMES = 5


@pytest.fixture(params=[pytest.param("sd15", marks=pytest.mark.long), "sdxl"])
def layout(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def setting(base_directory: Path, model: Callable, layout: str) -> dict[str, Any]:
    """Embeds of three frames."""
    return {
        "model": model(layout),
        "ipadapter": adapter(base_directory, layout).payload,
        "pos_embed": embeds(3, seed=1),
        "neg_embed": embeds(3, seed=2),
    }


@pytest.fixture
def reference(base_directory: Path, layout: str) -> Callable[..., plain.Plain]:
    def make(positive: torch.Tensor | None = None, negative: torch.Tensor | None = None, **how: Any) -> plain.Plain:
        positive = embeds(3, seed=1) if positive is None else positive
        negative = embeds(3, seed=2) if negative is None else negative
        how = {"weights": plain.weights("linear", layout, 0.8), "per_frame": True} | how
        return formula(base_directory, layout, positive, negative, **how)

    return make


@pytest.mark.parametrize("latents", [1, 2, 3, 5])
@pytest.mark.parametrize("order", [(1, 0), (0,), (0, 1)], ids=str)
def test_embed_i_is_for_latent_i(
    setting: dict, reference: Callable, layout: str, latents: int, order: tuple[int, ...]
) -> None:
    given = outputs("IPAdapterEmbedsBatch", **setting, **WIDGETS)[0]
    assert_draws(given, setting["model"], layout, [reference()], order=order, latents=latents)


@pytest.mark.parametrize("scaling", SCALINGS)
def test_a_list_of_weights_has_one_per_frame(setting: dict, reference: Callable, layout: str, scaling: str) -> None:
    weights = [0.2, 1.5, -0.4, 0.9]
    given = outputs("IPAdapterEmbedsBatch", **setting, **WIDGETS | {"weight": weights, "embeds_scaling": scaling})[0]
    by_layer = dict.fromkeys(range(plain.COUNT[layout]), weights)
    assert_draws(given, setting["model"], layout, [reference(weights=by_layer, scaling=scaling)], latents=FRAMES)


def test_weights_over_time_of_one_image(setting: dict, reference: Callable, layout: str) -> None:
    one = {"pos_embed": embeds(1, seed=1), "neg_embed": embeds(1, seed=2)}
    weights = [0.0, 0.5, 1.0]
    given = outputs("IPAdapterEmbedsBatch", **setting | one, **WIDGETS | {"weight": weights})[0]
    wanted = reference(*one.values(), weights=dict.fromkeys(range(plain.COUNT[layout]), weights))
    assert_draws(given, setting["model"], layout, [wanted], latents=4)


@pytest.mark.parametrize("name", ["ease in", "style and composition", "style transfer precise", "composition precise"])
def test_lists_of_weights_with_weight_types(setting: dict, reference: Callable, layout: str, name: str) -> None:
    weights = [0.5, 1.0]
    given = outputs("IPAdapterEmbedsBatch", **setting, **WIDGETS | {"weight": weights, "weight_type": name})[0]
    each = [plain.weights(name, layout, weight) for weight in weights]
    by_layer = {number: [one[number] for one in each] for number in each[0]}
    wanted = reference(weights=by_layer, swapped=plain.swapped(name, layout))
    assert_draws(given, setting["model"], layout, [wanted], latents=3)


def test_masks_per_frame(setting: dict, reference: Callable, layout: str) -> None:
    masks = torch.rand(3, 24, 24, generator=torch.Generator().manual_seed(3))
    given = outputs("IPAdapterEmbedsBatch", **setting, **WIDGETS, attn_mask=masks)[0]
    assert_draws(given, setting["model"], layout, [reference(masks=masks)], latents=FRAMES)


@pytest.mark.parametrize("window", [[0, 1], [2, 3], [4, 0], [1, 2, 3]], ids=str)
def test_windows_of_animatediff(setting: dict, reference: Callable, layout: str, window: list[int]) -> None:
    masks = torch.rand(4, 24, 24, generator=torch.Generator().manual_seed(3))
    given = outputs("IPAdapterEmbedsBatch", **setting, **WIDGETS | {"weight": [0.5, 1.0]}, attn_mask=masks)[0]
    wanted = reference(weights=dict.fromkeys(range(plain.COUNT[layout]), (0.5, 1.0)), masks=masks)
    assert_draws(
        given,
        setting["model"],
        layout,
        [wanted],
        latents=len(window),
        ad_params={"sub_idxs": window, "full_length": FRAMES},
        plain_options={"frames": window},
    )


def test_animatediff_without_a_window(setting: dict, reference: Callable, layout: str) -> None:
    given = outputs("IPAdapterEmbedsBatch", **setting, **WIDGETS)[0]
    params = {"sub_idxs": None, "full_length": FRAMES}
    assert_draws(given, setting["model"], layout, [reference()], latents=FRAMES, ad_params=params)


@pytest.mark.parametrize("anchored", [False, True])
def test_windows_of_comfyui(setting: dict, layout: str, anchored: bool) -> None:
    """ComfyUI's own handler cuts the batch; each frame must get what it gets in a batch of its own."""
    import comfy.context_windows
    import comfy.sample

    patched = outputs("IPAdapterEmbedsBatch", **setting | {"pos_embed": embeds(FRAMES, seed=8)}, **WIDGETS)[0]
    seen: list[list[int]] = []
    windowed = patched.clone()
    windows = comfy.context_windows
    handler = windows.IndexListContextHandler(
        windows.get_matching_context_schedule(windows.ContextSchedules.STATIC_STANDARD),
        windows.get_matching_fuse_method(windows.ContextFuseMethods.FLAT),
        context_length=2,
        context_overlap=0,
        dim=0,
    )
    handler.causal_window_fix = anchored  # the older versions have none
    windowed.model_options["context_handler"] = handler

    def note(executor: Any, x: Any, *args: Any, **more: Any) -> Any:
        seen.append(list(more.get("transformer_options", args[-1])["context_window"].index_list))
        return executor(x, *args, **more)

    windowed.add_wrapper_with_key("diffusion_model", "test", note)
    whole, cut = (_sample(model) for model in (patched, windowed))
    assert {number for window in seen for number in window} == set(range(FRAMES))
    assert len(seen) > 1
    torch.testing.assert_close(cut, whole, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(whole[0], _sample(setting["model"])[0], rtol=1e-3)


def _sample(model: Any) -> torch.Tensor:
    import comfy.sample

    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(FRAMES, 4, 8, 8, generator=generator)
    text = [[torch.randn(1, 7, tiny_unet.CONTEXT_DIM, generator=generator), {"pooled_output": torch.zeros(1, 1280)}]]
    with torch.inference_mode():
        return comfy.sample.sample(model, noise, 1, 3.0, "euler", "normal", text, text, noise * 0, disable_pbar=True)


def test_images_are_frames(base_directory: Path, model: Callable, reference: Callable, layout: str) -> None:
    vision, images = clip_vision(), random_image(2, 30, 40)
    given = outputs(
        "IPAdapterBatch",
        model=model(layout),
        ipadapter=adapter(base_directory, layout).payload,
        image=images,
        encode_batch_size=0,
        clip_vision=vision,
        **WIDGETS,
    )[0]
    features = vision.encode_image(images).image_embeds
    wanted = reference(features, torch.zeros_like(features))
    assert_draws(given, model(layout), layout, [wanted], latents=3)
    assert forward(given, latents=2).shape[0] == 4
