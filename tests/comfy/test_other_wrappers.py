"""Packs that hook into ComfyUI at other places than ours, before or behind: the place changes nothing."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from support import tiny_unet

CLOSE = {"rtol": 1e-3, "atol": 1e-3}
pytestmark = pytest.mark.parametrize("layout", tiny_unet.EITHER_LAYOUT)


def part_of(value: Any, index: int, count: int) -> Any:
    return value.chunk(count)[index] if isinstance(value, Tensor) else value


@pytest.mark.parametrize("kind", ["diffusion_model", "apply_model"])
def test_tiles_between_comfyui_s_model_and_the_network(
    setting: tuple, apply: Callable, sample: Callable, kind: str
) -> None:
    model, adapter, tokens = setting
    patched = apply(model, adapter, tokens)

    def tiled(per_call: int, side: int = 4) -> Any:
        clone = patched.clone()

        def wrapper(executor: Any, x: Tensor, *more: Any, **named: Any) -> Tensor:
            corners = [(y, z) for y in range(0, x.shape[-2], side) for z in range(0, x.shape[-1], side)]
            out = torch.empty_like(x)
            for start in range(0, len(corners), per_call):
                some = corners[start : start + per_call]

                def repeated(value: Any, times: int = len(some)) -> Any:
                    return value.repeat(times, *[1] * (value.ndim - 1)) if isinstance(value, Tensor) else value

                batch = torch.cat([x[..., y : y + side, z : z + side] for y, z in some])
                given = {name: repeated(value) for name, value in named.items()}
                result = executor(batch, *map(repeated, more), **given)
                for (y, z), part in zip(some, result.chunk(len(some)), strict=True):
                    out[..., y : y + side, z : z + side] = part
            return out

        clone.add_wrapper_with_key(kind, "tiles", wrapper)
        return clone

    one = sample(tiled(1), steps=1)
    for per_call in (2, 3, 4):
        torch.testing.assert_close(sample(tiled(per_call), steps=1), one, **CLOSE)


def test_a_network_that_is_run_for_each_conditioning(setting: tuple, apply: Callable, sample: Callable) -> None:
    model, adapter, tokens = setting
    patched = apply(model, adapter, tokens)
    clone = patched.clone()

    def wrapper(executor: Any, *given: Any, **named: Any) -> Tensor:
        *tensors, options = given
        numbers, outputs = options["cond_or_uncond"], []
        for index in range(len(numbers)):
            own = [part_of(value, index, len(numbers)) for value in tensors]
            more = {name: part_of(value, index, len(numbers)) for name, value in named.items()}
            outputs.append(executor(*own, {**options, "cond_or_uncond": numbers[index : index + 1]}, **more))
        return torch.cat(outputs)

    clone.add_wrapper_with_key("diffusion_model", "alone", wrapper)
    torch.testing.assert_close(sample(clone, steps=1, batch=2), sample(patched, steps=1, batch=2), **CLOSE)


@pytest.mark.parametrize("batch", [1, 2])
def test_regions_of_both_sides_with_a_list_of_their_own(
    setting: tuple, apply: Callable, sample: Callable, batch: int
) -> None:
    model, adapter, tokens = setting
    patched = apply(model, adapter, tokens)
    clone = patched.clone()

    def before(q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]) -> tuple[Tensor, ...]:
        numbers = options["cond_or_uncond"]
        options["cond_or_uncond"] = [number for number in numbers for _ in range(2)]
        return tuple(torch.cat([part.repeat(2, 1, 1) for part in x.chunk(len(numbers))]) for x in (q, k, v))

    def behind(out: Tensor, options: dict[str, Any]) -> Tensor:
        parts = out.chunk(len(options["cond_or_uncond"]))
        options["cond_or_uncond"] = options["cond_or_uncond"][::2]
        return torch.cat(parts[1::2])

    clone.set_model_attn2_patch(before)
    clone.set_model_attn2_output_patch(behind)
    torch.testing.assert_close(sample(clone, steps=1, batch=batch), sample(patched, steps=1, batch=batch), **CLOSE)


@pytest.mark.parametrize("is_behind", [True, False], ids=["behind", "before"])
def test_windows_that_a_pack_cuts_around_the_batch(
    setting: tuple, apply: Callable, sample: Callable, is_behind: bool
) -> None:
    model, adapter, tokens = setting
    frames, length = 4, 2
    masks = torch.stack([torch.full((8, 8), float(frame % 2)) for frame in range(frames)])

    def windowed(given: Any) -> Any:
        clone = given.clone()

        def wrapper(executor: Any, model: Any, conds: Any, x: Tensor, t: Tensor, options: dict) -> list[Tensor]:
            out = [torch.zeros_like(x) for _ in conds]
            for start in range(0, len(x), length):
                frame = list(range(start, start + length))
                own = {**options["transformer_options"], "ad_params": {"sub_idxs": frame}}
                parts = executor(model, conds, x[frame], t[frame], {**options, "transformer_options": own})
                for whole, part in zip(out, parts, strict=True):
                    whole[frame] = part
            return out

        clone.add_wrapper_with_key("calc_cond_batch", "windows", wrapper)
        return clone

    def ours(given: Any) -> Any:
        return apply(given, adapter, tokens, mask=masks)

    cut = windowed(ours(model)) if is_behind else ours(windowed(model))
    torch.testing.assert_close(sample(cut, batch=frames), sample(ours(model), batch=frames), **CLOSE)


def test_a_pack_that_takes_the_slot_behind_ours(setting: tuple, apply: Callable, sample: Callable) -> None:
    from comfy.ldm.modules.attention import optimized_attention

    def halved(q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]) -> Tensor:
        return optimized_attention(q, k, v, options["n_heads"]) * 0.5

    model, adapter, tokens = setting
    behind, before = apply(model, adapter, tokens), model.clone()
    key = next(iter(behind.model_options["transformer_options"]["patches_replace"]["attn2"]))
    for each in (before, behind):
        each.set_model_attn2_replace(halved, *key)
    torch.testing.assert_close(sample(behind, steps=1), sample(apply(before, adapter, tokens), steps=1), **CLOSE)


def test_an_area_of_all_the_picture_is_no_area(setting: tuple, apply: Callable) -> None:
    import comfy.samplers

    model, adapter, tokens = setting
    mask = torch.rand(1, 50, 70, generator=torch.Generator().manual_seed(2))
    patched, size = apply(model, adapter, tokens, mask=mask), (13, 17)

    def draw(**area: Any) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        text = torch.randn(1, 7, tiny_unet.CONTEXT_DIM, generator=generator)
        guider = comfy.samplers.CFGGuider(patched)
        guider.inner_set_conds({"positive": [[text, {"pooled_output": torch.zeros(1, tiny_unet.POOLED_DIM), **area}]]})
        guider.set_cfg(1.0)
        noise = torch.randn(1, 4, *size, generator=generator)
        sigmas = comfy.samplers.calculate_sigmas(patched.get_model_object("model_sampling"), "normal", 1)
        with torch.inference_mode():
            return guider.sample(noise, noise * 0, comfy.samplers.sampler_object("euler"), sigmas, disable_pbar=True)

    torch.testing.assert_close(draw(area=(*size, 0, 0), strength=1.0), draw(), **CLOSE)
