"""XLabs' image attention inside diffusers' FLUX, by the arithmetic of the nodes (`branch.attention`).

K/V come in by `joint_attention_kwargs={"image_kv": …}`, as a UNet's do. What the image gives leaves a block's attention
as a third output, which diffusers' own block adds after its MLP: without a gate, and without an output projection.
"""

# B samples, L query positions, T text tokens, N image tokens, H heads, D head dim

from typing import Any

import torch
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor

from ipadapter_core.branch.attention import image_attention

from .attend import attend
from .image_prompt import SiteKVs

RotaryTable = tuple[Tensor, Tensor]


class FluxImageAttention:
    """Attention of any block of a FLUX; in a double block also over its image tokens.

    Args:
        site: number of the double block; None in single blocks, where `image_kv` is not used.

    As `FluxIPAdapterAttnProcessor` does, the image is asked with the picture's queries after their norm and before
    positions are turned into them.
    """

    def __init__(self, site: int | None) -> None:
        self.site = site

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: RotaryTable | None = None,
        image_kv: SiteKVs | None = None,
    ) -> Tensor | tuple[Tensor, ...]:
        assert attention_mask is None, "the trainer passes no attention masks"
        assert not attn.fused_projections, "the trainer fuses no projections"
        heads = attn.heads
        query = attn.norm_q(_heads(attn.to_q(hidden_states), heads))
        key = attn.norm_k(_heads(attn.to_k(hidden_states), heads))
        value = _heads(attn.to_v(hidden_states), heads)
        picture_query = query
        if encoder_hidden_states is not None:
            query = torch.cat((attn.norm_added_q(_heads(attn.add_q_proj(encoder_hidden_states), heads)), query), dim=1)
            key = torch.cat((attn.norm_added_k(_heads(attn.add_k_proj(encoder_hidden_states), heads)), key), dim=1)
            value = torch.cat((_heads(attn.add_v_proj(encoder_hidden_states), heads), value), dim=1)
        if image_rotary_emb is not None:
            query = apply_rotary_emb(query, image_rotary_emb, sequence_dim=1)
            key = apply_rotary_emb(key, image_rotary_emb, sequence_dim=1)
        out = attend(*(x.transpose(1, 2) for x in (query, key, value))).to(query.dtype)
        if encoder_hidden_states is None:
            return out
        texts = encoder_hidden_states.shape[1]
        linear, dropout = attn.to_out
        answers = dropout(linear(out[:, texts:])), attn.to_add_out(out[:, :texts])
        kv = None if image_kv is None or self.site is None else image_kv[self.site]
        if kv is None:
            return answers
        k, v = (_heads(x.to(hidden_states.dtype), heads).transpose(1, 2) for x in kv)
        return *answers, image_attention(picture_query.flatten(2), k, v, attend)


def install(transformer: Any) -> None:
    """Replace the attention processors of a FLUX; without `image_kv` it computes what it did before."""
    for site, block in enumerate(transformer.transformer_blocks):
        block.attn.set_processor(FluxImageAttention(site))
    for block in transformer.single_transformer_blocks:
        block.attn.set_processor(FluxImageAttention(None))


def _heads(x: Tensor, heads: int) -> Tensor:
    """(B, L, H·D) to (B, L, H, D)."""
    return x.reshape(*x.shape[:-1], heads, -1)
