"""ComfyUI's own nodes that change how a model is sampled: ours goes before or behind them, with masks, and both act."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from support import tiny_unet

SIZE, BATCH = (16, 16), 2  # self-attention guidance wants more than 4 x 4 in the middle


def perturbed(model: Any) -> Any:
    from comfy_extras.nodes_pag import PerturbedAttentionGuidance

    return PerturbedAttentionGuidance.execute(model=model, scale=3.0).result[0]


def self_attention(model: Any) -> Any:
    from comfy_extras.nodes_sag import SelfAttentionGuidance

    return SelfAttentionGuidance.execute(model=model, scale=0.5, blur_sigma=2.0).result[0]


def normalized(model: Any) -> Any:
    from comfy_extras.nodes_nag import NAGuidance

    return NAGuidance.execute(model=model, nag_scale=5.0, nag_alpha=0.5, nag_tau=1.5).result[0]


def free_u(model: Any) -> Any:
    from comfy_extras.nodes_freelunch import FreeU_V2

    return FreeU_V2.execute(model=model, b1=1.3, b2=1.4, s1=0.9, s2=0.2).result[0]


def hyper_tile(model: Any) -> Any:
    from comfy_extras.nodes_hypertile import HyperTile

    made: Any = HyperTile.execute(model=model, tile_size=64, swap_size=2, max_depth=0, scale_depth=False)
    return getattr(made, "result", made)[0]


def merged_tokens(model: Any) -> Any:
    from comfy_extras.nodes_tomesd import TomePatchModel

    return TomePatchModel.execute(model=model, ratio=0.3).result[0]


def deep_shrink(model: Any) -> Any:
    from comfy_extras.nodes_model_downscale import PatchModelAddDownscale

    return PatchModelAddDownscale.execute(
        model=model,
        block_number=2,
        downscale_factor=2.0,
        start_percent=0.0,
        end_percent=0.6,
        downscale_after_skip=True,
        downscale_method="bicubic",
        upscale_method="bicubic",
    ).result[0]


def rescaled(model: Any) -> Any:
    from comfy_extras.nodes_model_advanced import RescaleCFG

    return RescaleCFG().patch(model, 0.7)[0]


def slices(model: Any) -> Any:
    from comfy_extras.nodes_fresca import FreSca

    return FreSca.execute(model=model, scale_low=1.0, scale_high=1.25, freq_cutoff=4).result[0]


NODES: dict[str, Callable[[Any], Any]] = {
    "perturbed attention": perturbed,
    "self-attention guidance": self_attention,
    "normalized attention": normalized,
    "FreeU": free_u,
    "HyperTile": hyper_tile,
    "token merging": merged_tokens,
    "deep shrink": deep_shrink,
    "rescaled cfg": rescaled,
    "FreSca": slices,
}
RANDOM = {"HyperTile", "token merging"}  # they draw from the global generator


@pytest.mark.parametrize("layout", [pytest.param("sd15", marks=pytest.mark.long), "sdxl"])
@pytest.mark.parametrize("name", NODES)
def test_before_behind_and_with_masks(
    name: str,
    layout: str,
    model: Callable,
    make_adapter: Callable,
    make_tokens: Callable,
    apply: Callable,
    sample: Callable,
) -> None:
    adapter, change = make_adapter("base", layout), NODES[name]
    tokens = make_tokens(adapter)

    def draw(patched: Any) -> torch.Tensor:
        torch.manual_seed(0)
        return sample(patched, steps=2, size=SIZE, batch=BATCH)

    alone = draw(change(model(layout)))
    behind, before = (
        draw(apply(change(model(layout)), adapter, tokens)),
        draw(change(apply(model(layout), adapter, tokens))),
    )
    torch.testing.assert_close(behind, before, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(behind, alone, rtol=1e-2)
    assert not torch.allclose(behind, draw(apply(model(layout), adapter, tokens)), rtol=1e-2) or name in RANDOM
    masks = torch.stack((torch.zeros(16, 16), torch.ones(16, 16)))
    masked = draw(change(apply(model(layout), adapter, tokens, mask=masks)))
    torch.testing.assert_close(masked[0], alone[0], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(masked[1], behind[1], rtol=1e-3, atol=1e-3)


def test_weight_hooks_on_one_prompt(
    model: Callable, make_adapter: Callable, make_tokens: Callable, apply: Callable
) -> None:
    """A LoRA on the positive alone, by ComfyUI's hooks, splits the batch; each side keeps its tokens."""
    import comfy.hooks
    import comfy.samplers

    adapter = make_adapter("base", "sd15")
    base = model("sd15")
    patched = apply(base, adapter, make_tokens(adapter))
    name = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_q.weight"
    weight = base.model.state_dict()[name]
    change = torch.randn(weight.shape, generator=torch.Generator().manual_seed(8)) * 0.1

    def draw(source: Any, *, by_hook: bool) -> torch.Tensor:
        generator = torch.Generator().manual_seed(1)
        noise = torch.randn(1, 4, 8, 8, generator=generator)
        options = {"pooled_output": torch.zeros(1, tiny_unet.POOLED_DIM)}
        text = torch.randn(1, 7, tiny_unet.CONTEXT_DIM, generator=generator)
        hooked = dict(options)
        if by_hook:
            group = comfy.hooks.create_hook_lora({}, 1.0, 0.0)
            for hook in group.hooks:
                hook.weights = {name: ("diff", (change,))}
                hook.need_weight_init = False
            hooked["hooks"] = group
        else:
            source = source.clone()
            source.add_patches({name: ("diff", (change,))}, 1.0)
        guider = comfy.samplers.CFGGuider(source)
        guider.inner_set_conds({"positive": [[text, hooked]]})
        guider.set_cfg(1.0)
        sigmas = comfy.samplers.calculate_sigmas(source.get_model_object("model_sampling"), "normal", 2)
        sampler = comfy.samplers.sampler_object("euler")
        with torch.inference_mode():
            return guider.sample(noise, noise * 0, sampler, sigmas, disable_pbar=True)

    torch.testing.assert_close(draw(patched, by_hook=True), draw(patched, by_hook=False), rtol=1e-3, atol=1e-3)
    assert not torch.allclose(draw(patched, by_hook=True), draw(base, by_hook=True), rtol=1e-2)
