"""cond and uncond get their own tokens, whatever the order and the split of the batch."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from support import tiny_unet

ORDERS = ([0, 1], [1, 0], [0], [1], [0, 0, 1], [1, 0, 0], [1, 0, 1, 0])


def forward(model: Any, latents: Tensor, text: Tensor, order: list[int]) -> Tensor:
    """One forward with the model's patches, as ComfyUI's sampler calls it."""
    options = dict(model.model_options["transformer_options"])
    options |= {"cond_or_uncond": order, "sigmas": torch.full((1,), 5.0), "uuids": []}
    pooled = torch.zeros(len(latents), 2816) if model.model.adm_channels else None
    with torch.inference_mode():
        return model.model.diffusion_model(
            latents, torch.full((len(latents),), 500.0), context=text, y=pooled, transformer_options=options
        )


@pytest.mark.parametrize("layout", tiny_unet.EITHER_LAYOUT)
@pytest.mark.parametrize("latents_per_group", [1, 3])
@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_every_order_equals_one_latent_at_a_time(
    layout: str,
    latents_per_group: int,
    order: list[int],
    model: Callable,
    make_adapter: Callable,
    make_tokens: Callable,
    apply: Callable,
) -> None:
    adapter = make_adapter("base", layout)
    patched = apply(model(layout), adapter, make_tokens(adapter, references=2))
    generator = torch.Generator().manual_seed(3)
    count = len(order) * latents_per_group
    latents = torch.randn(count, 4, 8, 8, generator=generator)
    text = torch.randn(count, 7, tiny_unet.CONTEXT_DIM, generator=generator)
    whole = forward(patched, latents, text, order)
    for index in range(count):
        alone = forward(
            patched, latents[index : index + 1], text[index : index + 1], [order[index // latents_per_group]]
        )
        torch.testing.assert_close(whole[index : index + 1], alone, rtol=1e-4, atol=1e-5)


def test_cond_and_uncond_differ(
    model: Callable, make_adapter: Callable, make_tokens: Callable, apply: Callable
) -> None:
    adapter = make_adapter("base", "sd15")
    patched = apply(model("sd15"), adapter, make_tokens(adapter))
    latents, text = torch.ones(1, 4, 8, 8), torch.ones(1, 7, tiny_unet.CONTEXT_DIM)
    assert not torch.allclose(forward(patched, latents, text, [0]), forward(patched, latents, text, [1]), rtol=1e-3)
