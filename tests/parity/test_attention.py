"""One attention layer in float64: text plus image attention equals diffusers' IP-Adapter processor to 1e-12."""

from collections.abc import Sequence

import pytest
import torch
from diffusers.image_processor import IPAdapterMaskProcessor
from diffusers.models.attention_processor import Attention, IPAdapterAttnProcessor2_0
from torch import Tensor

from ipadapter_core.branch.masks import mask_to_tokens
from ipadapter_core.branch.tokens import ImageTokens
from ipadapter_core.network.adapter import IPAdapter, build_adapter
from parity.oracle import COND_LAST, CoreProcessor, batched, make_plan, site_of
from support.published import random_tensors, tiny_adapter

DIM, HEADS, CONTEXT, TEXT = 24, 3, 16, 7
HEIGHT, WIDTH = 6, 4
EXACT = {"rtol": 0, "atol": 1e-12}


class Layer:
    """A cross-attention layer of diffusers, and what is attended to."""

    def __init__(self, latents: int) -> None:
        torch.manual_seed(0)
        self.latents = latents
        self.attention = Attention(DIM, cross_attention_dim=CONTEXT, heads=HEADS, dim_head=DIM // HEADS).double()
        self.hidden = torch.randn(2 * latents, HEIGHT * WIDTH, DIM, dtype=torch.float64)
        self.text = torch.randn(2 * latents, TEXT, CONTEXT, dtype=torch.float64)

    def diffusers(
        self,
        adapters: Sequence[IPAdapter],
        states: Sequence[Tensor],
        scales: list[float | list[float]],
        masks: list[Tensor] | None = None,
    ) -> Tensor:
        """States (2·B, R, N, C) and masks (1, R, h, w), one per adapter."""
        processor = IPAdapterAttnProcessor2_0(DIM, CONTEXT, num_tokens=[0] * len(adapters), scale=scales)
        for index, adapter in enumerate(adapters):
            processor.to_k_ip[index] = adapter.site(0).to_k_ip
            processor.to_v_ip[index] = adapter.site(0).to_v_ip
        with torch.no_grad():
            return processor(self.attention, self.hidden, (self.text, list(states)), ip_adapter_masks=masks)

    def core(
        self,
        adapters: Sequence[IPAdapter],
        tokens: Sequence[ImageTokens],
        scales: Sequence[float],
        masks: Sequence[Tensor | None] | None = None,
        conditions: Sequence[int] = COND_LAST,
    ) -> Tensor:
        site = site_of(self.attention, 0)
        plans = [
            make_plan(adapter, given, [site], {0: scale}, mask)
            for adapter, given, scale, mask in zip(
                adapters, tokens, scales, masks or [None] * len(adapters), strict=True
            )
        ]
        processor = CoreProcessor(plans, site, conditions, lambda _: (HEIGHT, WIDTH))
        with torch.no_grad():
            return processor(self.attention, self.hidden, self.text)


def an_adapter(seed: int = 0) -> IPAdapter:
    return build_adapter(
        random_tensors(tiny_adapter("base", site_dims=(DIM,), cross_attention_dim=CONTEXT), seed, dtype=torch.float64),
        {},
    )


def random_tokens(count: int, references: int = 1, seed: int = 1) -> ImageTokens:
    generator = torch.Generator().manual_seed(seed)
    cond, uncond = torch.randn(2, references, count, CONTEXT, dtype=torch.float64, generator=generator)
    return ImageTokens(cond, uncond, "a")


@pytest.mark.parametrize("latents", [1, 3])
@pytest.mark.parametrize("num_tokens", [1, 4, 16, 257])
@pytest.mark.parametrize("scale", [1.0, 0.35, -0.8, 2.5, 0.0])
def test_one_adapter(latents: int, num_tokens: int, scale: float) -> None:
    layer, adapter, tokens = Layer(latents), an_adapter(), random_tokens(num_tokens)
    expected = layer.diffusers([adapter], [batched(tokens.uncond, tokens.cond, latents)], [scale])
    torch.testing.assert_close(layer.core([adapter], [tokens], [scale]), expected, **EXACT)


@pytest.mark.parametrize("conditions", [(0,), (1,), (0, 1), (1, 0), (1, 0, 0), (0, 1, 0, 1)])
def test_every_order_of_cond_and_uncond(conditions: tuple[int, ...]) -> None:
    layer, adapter, tokens = Layer(len(conditions)), an_adapter(), random_tokens(4)
    state = torch.stack([(tokens.cond, tokens.uncond)[condition] for condition in conditions for _ in range(2)])
    expected = layer.diffusers([adapter], [state], [0.9])
    torch.testing.assert_close(layer.core([adapter], [tokens], [0.9], conditions=conditions), expected, **EXACT)


@pytest.mark.parametrize("references", [2, 3])
def test_several_references_act_as_one_sequence(references: int) -> None:
    layer, adapter, tokens = Layer(3), an_adapter(), random_tokens(4, references)
    expected = layer.diffusers([adapter], [batched(tokens.uncond, tokens.cond, 3)], [0.7])
    torch.testing.assert_close(layer.core([adapter], [tokens], [0.7]), expected, **EXACT)


def test_references_that_share_one_negative() -> None:
    layer, adapter, tokens = Layer(1), an_adapter(), random_tokens(4, 3)
    shared = ImageTokens(tokens.cond, tokens.uncond[:1], "a")
    expected = layer.diffusers([adapter], [batched(tokens.uncond[:1].expand(3, -1, -1), tokens.cond, 1)], [0.7])
    torch.testing.assert_close(layer.core([adapter], [shared], [0.7]), expected, **EXACT)


@pytest.mark.parametrize("scales", [[0.6, 1.1], [1.0, 0.0], [-0.5, 0.5]])
def test_two_adapters(scales: list[float]) -> None:
    layer, adapters = Layer(3), [an_adapter(0), an_adapter(1)]
    tokens = [random_tokens(4, seed=2), random_tokens(16, references=2, seed=3)]
    expected = layer.diffusers(adapters, [batched(t.uncond, t.cond, 3) for t in tokens], list(scales))
    torch.testing.assert_close(layer.core(adapters, tokens, scales), expected, **EXACT)


def half_mask(height: int, width: int) -> Tensor:
    """1 on the left half, soft towards the right."""
    return (1.5 - 2 * torch.linspace(0, 1, width)).clamp(0, 1).expand(1, height, width).contiguous()


@pytest.mark.parametrize("latents", [1, 3])
def test_mask_of_the_feature_maps_size(latents: int) -> None:
    layer, adapter, tokens, mask = Layer(latents), an_adapter(), random_tokens(16), half_mask(HEIGHT, WIDTH)
    state = batched(tokens.uncond, tokens.cond, latents)
    expected = layer.diffusers([adapter], [state], [1.3], [mask[None]])
    assert not torch.equal(expected, layer.diffusers([adapter], [state], [1.3]))
    torch.testing.assert_close(layer.core([adapter], [tokens], [1.3], [mask]), expected, **EXACT)


def test_two_adapters_with_their_masks() -> None:
    layer, adapters = Layer(3), [an_adapter(0), an_adapter(1)]
    tokens = [random_tokens(4, seed=2), random_tokens(16, seed=3)]
    masks = [half_mask(HEIGHT, WIDTH), 1 - half_mask(HEIGHT, WIDTH)]
    states = [batched(t.uncond, t.cond, 3) for t in tokens]
    expected = layer.diffusers(adapters, states, [0.6, 1.1], [mask[None] for mask in masks])
    torch.testing.assert_close(layer.core(adapters, tokens, [0.6, 1.1], masks), expected, **EXACT)


def test_a_mask_per_reference_is_an_application_per_reference() -> None:
    """diffusers gives each reference of an adapter its mask and scale; we apply the adapter once per reference."""
    layer, adapter, tokens = Layer(3), an_adapter(), random_tokens(4, references=2)
    masks, scales = torch.stack((half_mask(HEIGHT, WIDTH), 1 - half_mask(HEIGHT, WIDTH)), dim=1), [0.6, 1.1]
    expected = layer.diffusers([adapter], [batched(tokens.uncond, tokens.cond, 3)], [scales], [masks])
    single = [ImageTokens(tokens.cond[i : i + 1], tokens.uncond[i : i + 1], "a") for i in range(2)]
    ours = layer.core([adapter] * 2, single, scales, [masks[:, i] for i in range(2)])
    torch.testing.assert_close(ours, expected, **EXACT)


def test_masks_of_other_sizes_are_averaged_where_diffusers_resamples_bicubically() -> None:
    """On purpose: an average stays in 0..1 and keeps the mask's area; bicubic interpolation without antialiasing keeps
    neither, so a sharp edge rings and thin parts vanish. Everything else about masks is the same (see above)."""
    mask = torch.zeros(1, 48, 32)
    mask[..., 8:9] = 1  # a line thinner than the 8 columns of a cell
    mask[..., 21:] = 1  # an edge inside a cell
    ours = mask_to_tokens(mask, HEIGHT, WIDTH)
    theirs = IPAdapterMaskProcessor.downsample(mask, 1, HEIGHT * WIDTH, 1)
    assert ours.shape == theirs.shape
    assert ours.min() >= 0
    assert ours.max() <= 1
    torch.testing.assert_close(ours.mean(), mask.mean())
    assert theirs.min() < 0
    assert theirs.reshape(HEIGHT, WIDTH)[:, 1].max() == 0  # the line is gone
    assert ours.reshape(HEIGHT, WIDTH)[:, 1].min() == 1 / 8
    same_size = half_mask(HEIGHT, WIDTH)
    torch.testing.assert_close(
        mask_to_tokens(same_size, HEIGHT, WIDTH), IPAdapterMaskProcessor.downsample(same_size, 1, HEIGHT * WIDTH, 1)
    )
