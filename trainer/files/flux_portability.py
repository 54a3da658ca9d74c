"""What diffusers makes of an adapter file for FLUX.1: read by its own loader, compared with the core's.

As in `portability`, no transformer is built: the loader needs the names of the blocks' attention and their width.
"""

# B samples, N image tokens, C token width, H heads, L query positions

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers.loaders import FluxIPAdapterMixin
from diffusers.loaders.transformer_flux import FluxTransformer2DLoadersMixin
from diffusers.models.transformers.transformer_flux import FluxAttention, FluxAttnProcessor
from torch import Tensor, nn
from torch.nn import functional

from ipadapter_core.branch.attention import image_attention
from ipadapter_core.file.spec import AdapterSpec, Projection
from ipadapter_core.network.adapter import IPAdapter

from ..readers.reader import FEATURES
from .comparing import as_float, random_features, relative_difference

_TOKENS = (4, 16)


class FluxOutline(nn.Module, FluxTransformer2DLoadersMixin):  # type: ignore[misc]
    """What diffusers' IP-Adapter loader sees of a FLUX: named processors of its double blocks, and widths."""

    def __init__(self, spec: AdapterSpec, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype, self.device, self.inner_dim = dtype, torch.device("cpu"), spec.site_dims[0]
        self.config = SimpleNamespace(joint_attention_dim=spec.cross_attention_dim, encoder_hid_dim_type=None)
        self.encoder_hid_proj: Any = None
        self.attn_processors: dict[str, Any] = {
            f"transformer_blocks.{site}.attn.processor": FluxAttnProcessor() for site in range(spec.num_sites)
        }

    def set_attn_processor(self, processors: dict[str, Any]) -> None:
        self.attn_processors = processors


class _Pipeline(FluxIPAdapterMixin):  # type: ignore[misc]
    """A pipeline that has a transformer and nothing else."""

    def __init__(self, transformer: FluxOutline) -> None:
        self.transformer = transformer


@torch.no_grad()
def flux_difference(path: Path, adapter: IPAdapter) -> float:
    """Largest difference of tokens and of what the image gives in one block, in parts of the largest value.

    Raises:
        RuntimeError, ValueError, LookupError, TypeError, AttributeError: diffusers cannot load it.
    """
    spec = adapter.spec
    if spec.projection is not Projection.LINEAR:  # the errors that it raises itself are about its own variables
        raise ValueError(f"it reads base adapters for FLUX.1, this is {spec.family}")
    if spec.num_tokens not in _TOKENS:
        raise ValueError(f"it reads {' or '.join(map(str, _TOKENS))} image tokens, this has {spec.num_tokens}")
    transformer = FluxOutline(spec, next(adapter.parameters()).dtype)
    _Pipeline(transformer).load_ip_adapter(
        str(path.parent), weight_name=path.name, image_encoder_pretrained_model_name_or_path=None
    )
    features = random_features(spec)[FEATURES]
    tokens = as_float(adapter.image_proj)(features)  # (B, N, C)
    theirs = as_float(transformer.encoder_hid_proj)([features[:, None]])  # one (B, 1, N, C)
    given = theirs[0].reshape(theirs[0].shape[0], -1, theirs[0].shape[-1])
    worst = relative_difference(given, tokens)
    for site, processor in enumerate(transformer.attn_processors.values()):
        ours = adapter.site(site)
        for loaded, wanted in ((processor.to_k_ip[0], ours.to_k_ip), (processor.to_v_ip[0], ours.to_v_ip)):
            if not (torch.equal(loaded.weight, wanted.weight) and torch.equal(loaded.bias, wanted.bias)):
                return 1.0
    return max(worst, _attention_difference(adapter, transformer, tokens, theirs))


def _attention_difference(adapter: IPAdapter, transformer: FluxOutline, tokens: Tensor, theirs: Any) -> float:
    dim = adapter.spec.site_dims[0]
    heads = 8 if dim % 8 == 0 else 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        attn = FluxAttention(dim, heads, dim // heads, added_kv_proj_dim=dim, bias=True, context_pre_only=False)
        hidden, text = torch.randn(2, 5, dim), torch.randn(2, 7, dim)
    processor = as_float(next(iter(transformer.attn_processors.values())))
    _, _, expected = processor(attn, hidden, text, ip_hidden_states=theirs)
    projections = as_float(adapter.site(0))
    k, v = (_heads(projection(tokens), heads) for projection in (projections.to_k_ip, projections.to_v_ip))
    query = attn.norm_q(attn.to_q(hidden).unflatten(-1, (heads, -1))).flatten(-2)
    return relative_difference(expected, image_attention(query, k, v, _attend))


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def _heads(x: Tensor, heads: int) -> Tensor:
    return x.reshape(*x.shape[:-1], heads, -1).transpose(1, 2)
