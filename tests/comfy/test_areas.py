"""A mask is over the whole picture: a prompt for an area gets the part of the mask that lies in it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from support import tiny_unet

SIZE = 16  # of the latent
LEFT, RIGHT = (SIZE, SIZE // 2, 0, 0), (SIZE, SIZE // 2, 0, SIZE // 2)
pytestmark = pytest.mark.parametrize("layout", tiny_unet.EITHER_LAYOUT)


def prompt(seed: int, area: tuple[int, int, int, int] | None = None) -> list:
    generator = torch.Generator().manual_seed(seed)
    text = torch.randn(1, 7, tiny_unet.CONTEXT_DIM, generator=generator)
    options = {"pooled_output": torch.zeros(1, tiny_unet.POOLED_DIM)}
    return [[text, options if area is None else options | {"area": area, "strength": 1.0}]]


def draw(model: Any, positive: list, batch: int = 1, steps: int = 2) -> Tensor:
    """Without a negative."""
    import comfy.samplers

    guider = comfy.samplers.CFGGuider(model)
    guider.inner_set_conds({"positive": positive})
    guider.set_cfg(1.0)
    noise = torch.randn(batch, 4, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", steps)
    with torch.inference_mode():
        return guider.sample(noise, noise * 0, comfy.samplers.sampler_object("euler"), sigmas, disable_pbar=True)


def half(side: slice) -> Tensor:
    mask = torch.zeros(1, 64, 64)
    mask[..., side] = 1
    return mask


ON_THE_LEFT, ON_THE_RIGHT = half(slice(0, 32)), half(slice(32, 64))


@pytest.mark.parametrize("area", [LEFT, RIGHT], ids=["left", "right"])
def test_a_mask_elsewhere_does_nothing_and_one_there_does_all(setting: tuple, apply: Callable, area: tuple) -> None:
    model, adapter, tokens = setting
    there, elsewhere = (ON_THE_LEFT, ON_THE_RIGHT) if area == LEFT else (ON_THE_RIGHT, ON_THE_LEFT)
    positive = prompt(3, area)
    without, whole = draw(model, positive), draw(apply(model, adapter, tokens), positive)
    assert not torch.allclose(without, whole, rtol=1e-2)
    assert torch.equal(draw(apply(model, adapter, tokens, mask=elsewhere), positive), without)
    torch.testing.assert_close(draw(apply(model, adapter, tokens, mask=there), positive), whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 2])
def test_areas_of_one_size_in_one_batch_have_their_own_part(setting: tuple, apply: Callable, batch: int) -> None:
    model, adapter, tokens = setting
    positive = [*prompt(3, LEFT), *prompt(4, RIGHT)]
    given = draw(apply(model, adapter, tokens, mask=ON_THE_RIGHT), positive, batch)
    without, whole = draw(model, positive, batch), draw(apply(model, adapter, tokens), positive, batch)
    torch.testing.assert_close(given[..., : SIZE // 2], without[..., : SIZE // 2], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(given[..., SIZE // 2 :], whole[..., SIZE // 2 :], rtol=1e-4, atol=1e-4)


def test_areas_in_percent_are_known_too(setting: tuple, apply: Callable) -> None:
    model, adapter, tokens = setting
    positive = prompt(3, ("percentage", 1.0, 0.5, 0.0, 0.5))
    without = draw(model, positive)
    assert torch.equal(draw(apply(model, adapter, tokens, mask=ON_THE_LEFT), positive), without)
    assert not torch.equal(draw(apply(model, adapter, tokens, mask=ON_THE_RIGHT), positive), without)


def test_masks_per_latent_are_cut_as_well(setting: tuple, apply: Callable) -> None:
    model, adapter, tokens = setting
    positive = prompt(3, RIGHT)
    masks = torch.cat((ON_THE_LEFT, ON_THE_RIGHT))
    given = draw(apply(model, adapter, tokens, mask=masks), positive, batch=2)
    torch.testing.assert_close(given[0], draw(model, positive, batch=2)[0], rtol=1e-5, atol=1e-5)
    whole = draw(apply(model, adapter, tokens), positive, batch=2)
    torch.testing.assert_close(given[1], whole[1], rtol=1e-5, atol=1e-5)
