"""The joint attention of SD3 and SD3.5 inside diffusers' transformer, as InstantX's adapter adds to it.

K/V and the adapter's own norms come in by `joint_attention_kwargs={"image": …}`, all from one forward of the adapter.
"""

# B samples, L picture positions, T text tokens, N image tokens, H heads, D head dim

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ipadapter_core.backbone.row import in_heads
from ipadapter_core.branch.timed import exchange, joint_attention

from .attend import attend
from .image_prompt import ImagePrompt


class JointAttention:
    """Attention of any layer of the transformer; of a block's joint attention the picture also attends, apart, to itself
    and to the image tokens.

    Args:
        site: number of the block; None for a layer where a picture attends to itself alone, which takes no image.
        epsilon: of the adapter's norms.
    """

    def __init__(self, site: int | None, epsilon: float) -> None:
        self.site, self.epsilon = site, epsilon

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image: ImagePrompt | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        assert attention_mask is None, "the trainer passes no attention masks"
        length = hidden_states.shape[1]
        layers = (attn.to_q, attn.to_k, attn.to_v)
        query, key, value = (layer(hidden_states).unflatten(-1, (attn.heads, -1)) for layer in layers)  # (B, L, H, D)
        parts = [(_normed(query, attn.norm_q), _normed(key, attn.norm_k), value)]
        if encoder_hidden_states is not None:
            layers = (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
            q, k, v = (layer(encoder_hidden_states).unflatten(-1, (attn.heads, -1)) for layer in layers)
            parts.append((_normed(q, attn.norm_added_q), _normed(k, attn.norm_added_k), v))
        q, k, v = (torch.cat(each, dim=1).transpose(1, 2) for each in zip(*parts, strict=True))
        out = attend(q, k, v)
        picture, text = out[:, :length], out[:, length:]
        added = self._image(image, query, (key, value))
        if added is not None:
            picture = picture + added
        linear, dropout = attn.to_out
        projected: Tensor = dropout(linear(picture))
        if encoder_hidden_states is None:
            return projected
        return projected, text if attn.context_pre_only else attn.to_add_out(text)

    def _image(self, image: ImagePrompt | None, query: Tensor, own: tuple[Tensor, Tensor]) -> Tensor | None:
        """What the image adds (B, L, H·D), of queries, keys and values before any norm."""
        if image is None or self.site is None:
            return None
        kv, norms = image.kv[self.site], image.norms[self.site]
        if kv is None or norms is None:
            return None
        of_query, of_key = (exchange(None, weight.to(query.dtype), self.epsilon) for weight in norms)
        k, v = (in_heads(x.to(query.dtype), query.shape[-1]) for x in kv)
        out = joint_attention(
            of_query(query), (of_key(own[0]), own[1]), (k, v), functional.scaled_dot_product_attention
        )
        strength = image.strengths[self.site] if image.strengths else None
        added = out.transpose(1, 2).flatten(2)
        return added if strength is None else added * strength.to(added.dtype)


def _normed(x: Tensor, norm: Any) -> Tensor:
    normed: Tensor = x if norm is None else norm(x)
    return normed
