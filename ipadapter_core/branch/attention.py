"""The decoupled cross-attention (arXiv 2308.06721, equation 5), the same for sampling and for training.

    out = softmax(q k^T / sqrt(D)) v + strength * softmax(q k_ip^T / sqrt(D)) v_ip

The strength is already folded into `v_ip`: see `kv.pack_sites`.
"""

# G conditioning groups (cond, uncond, …), B latents per group, L query positions, H heads, N image tokens, D head dim

from collections.abc import Callable

import torch
from torch import Tensor

from .guard import NO_GUARD, Guard

# q (G, H, B·L, D), k and v (G, H, N, D) to (G, B·L, H·D)
AttentionFunction = Callable[[Tensor, Tensor, Tensor], Tensor]


def image_attention(q: Tensor, k: Tensor, v: Tensor, attention: AttentionFunction) -> Tensor:
    """Attend from every latent of a group to that group's image tokens.

    All latents of a group share their keys and queries never see each other, so the latents are laid along the query
    axis: no key or value is copied per latent.

    Args:
        q: (G·B, L, H·D), groups outermost.
        k, v: (G, H, N, D).

    Returns:
        (G·B, L, H·D).
    """
    groups, heads, _, head_dim = k.shape
    out = attention(q.reshape(groups, -1, heads, head_dim).transpose(1, 2), k, v)
    return out if q.shape[0] == groups else out.reshape(q.shape)


def add_to_tokens(
    out: Tensor,
    image: Tensor,
    first: int,
    mask: Tensor | None = None,
    gate: Tensor | None = None,
    strength: float = 1.0,
    guard: Guard = NO_GUARD,
) -> Tensor:
    """Add the image branch to a part of a sequence; changed in place unless the part is all of it.

    Args:
        out: (B, S, H·D).
        image: (B, H, L, D), as the attention gives it, for tokens `first` to `first` + L.
        mask, strength, guard: as `add_image_attention`'s.
        gate: 0-dim, (B, 1, 1), or (B, 1 or L, H·D).
    """
    heads = image.transpose(1, 2)  # added as it lies, without a copy
    length = heads.shape[1]
    is_whole = length == out.shape[1]
    part = out if is_whole else out[:, first : first + length]
    if guard.changes_branch:
        added = guard.held_back(part, heads.flatten(2), _times(weight_of(mask, gate), strength))
        if is_whole:
            return part + added
        part.add_(added)
        return out
    part = part.view(len(part), length, *heads.shape[2:])
    weight = weight_of(mask, gate)
    if weight is not None and weight.ndim:
        is_of_channels = weight.shape[-1] > 1
        weight = weight.view(*weight.shape[:-1], *heads.shape[2:]) if is_of_channels else weight[..., None]
    if is_whole:
        return add_image_attention(part, heads, weight, strength=strength).flatten(2)
    if weight is None:
        part.add_(heads, alpha=strength)
    else:
        part.addcmul_(heads, weight, value=strength)
    return out


def add_image_attention(
    out: Tensor,
    image: Tensor,
    mask: Tensor | None = None,
    gate: Tensor | None = None,
    strength: float = 1.0,
    guard: Guard = NO_GUARD,
) -> Tensor:
    """Add the image branch to the text branch.

    Args:
        out, image: (G·B, L, C).
        mask: (1 or G·B, L, 1), 0..1; None is 1 everywhere.
        gate: 0-dim; None is 1.
        strength: 1 where it is folded into the values.
        guard: what holds the image branch back.
    """
    weight = weight_of(mask, gate)
    if guard.changes_branch:
        return out + guard.held_back(out, image, _times(weight, strength))
    if weight is None:
        return torch.add(out, image, alpha=strength)
    return torch.addcmul(out, image, weight, value=strength)


def _times(weight: Tensor | None, strength: float) -> Tensor | float:
    return strength if weight is None else weight * strength


def weight_of(mask: Tensor | None, gate: Tensor | None) -> Tensor | None:
    """What multiplies an image branch; None is 1."""
    return mask * gate if mask is not None and gate is not None else mask if gate is None else gate
