"""The decoupled cross-attention inside a diffusers UNet, by the arithmetic of the nodes (`branch.attention`).

The K/V of every site, and a LoRA where there is one, come in by `cross_attention_kwargs={"image_kv": …, "image_lora": …}`: all of the adapter's own computation happens
in one forward of the adapter, so that DDP, FSDP and gradient checkpointing see an ordinary module and a frozen UNet.
"""

# B samples, L query positions, N image tokens, T text tokens, H heads, D head dim

from typing import Any, cast

from torch import Tensor, nn
from torch.nn import functional

from ipadapter_core.branch.attention import add_image_attention, image_attention

from .attend import attend
from .image_prompt import LayerLora, LayerLoras, SiteKVs
from .unet_sites import attention_layers


class DecoupledAttention:
    """Attention of any layer of a UNet; at a cross-attention site also over its image tokens (arXiv 2308.06721, eq. 5).

    Args:
        site: number of the site; None elsewhere, where `image_kv`, which the UNet hands to every layer, is not used.

        layer: number of the layer in a LoRA; None where it has none.

    `image_mask` (B, L, 1), 0..1, is for a UNet whose sites are all of one size; None is 1 everywhere.
    """

    def __init__(self, site: int | None, layer: int | None = None) -> None:
        self.site, self.layer = site, layer

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        image_kv: SiteKVs | None = None,
        image_mask: Tensor | None = None,
        image_lora: LayerLoras | None = None,
    ) -> Tensor:
        assert attention_mask is None, "the trainer passes no attention masks"
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        lora: LayerLora = {} if image_lora is None or self.layer is None else image_lora[self.layer]
        query = _project(attn.to_q, hidden_states, lora, "q")
        key, value = (_project(attn.to_k, context, lora, "k"), _project(attn.to_v, context, lora, "v"))
        q, k, v = (_heads(x, attn.heads) for x in (query, key, value))
        out = attend(q, k, v)
        kv = None if image_kv is None or self.site is None else image_kv[self.site]
        if kv is not None:
            k, v = (_heads(x.to(query.dtype), attn.heads) for x in kv)
            out = add_image_attention(out, image_attention(query, k, v, attend), image_mask)
        linear, dropout = attn.to_out
        projected: Tensor = dropout(_project(linear, out, lora, "out"))
        return projected


def install(unet: nn.Module) -> None:
    """Replace the attention processors of a UNet; without `image_kv` it computes what it did before."""
    numbers = {id(attn): number for number, (_, attn) in enumerate(attention_layers(unet))}
    for module in unet.modules():
        if hasattr(module, "set_processor"):
            layer = numbers.get(id(module))
            site = layer // 2 if layer is not None and layer % 2 else None
            cast(Any, module).set_processor(DecoupledAttention(site, layer))


def _project(linear: nn.Module, x: Tensor, lora: LayerLora, part: str) -> Tensor:
    """A layer as if up times down were part of its weight (arXiv 2106.09685), which may be quantised."""
    projected: Tensor = linear(x)
    if part not in lora:
        return projected
    down, up = (weight.to(x.dtype) for weight in lora[part])
    return projected + functional.linear(functional.linear(x, down), up)


def _heads(x: Tensor, heads: int) -> Tensor:
    """(B, L, H·D) to (B, H, L, D)."""
    return x.reshape(*x.shape[:-1], heads, -1).transpose(1, 2)
