"""Weights of a site that several kinds of base models share."""

import torch
from torch import nn

from ..operations import Operations


class CrossAttentionProjection(nn.Module):
    """`to_k_ip` and `to_v_ip` of one attention site (arXiv 2308.06721, equation 4)."""

    def __init__(self, cross_attention_dim: int, site_dim: int, ops: Operations, *, bias: bool = False) -> None:
        super().__init__()
        self.to_k_ip = ops.Linear(cross_attention_dim, site_dim, bias=bias)
        self.to_v_ip = ops.Linear(cross_attention_dim, site_dim, bias=bias)


class HeadNorm(nn.Module):
    """The weights of a root mean square norm over each head."""

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(head_dim))
