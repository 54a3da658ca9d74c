"""What diffusers reads of an SD3.5 adapter file, held against the core.

No transformer is built: the loader needs the number and width of the attentions, which an adapter file has.
"""

# B samples, L picture positions, T text tokens, H heads, D head dim

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from diffusers.loaders import SD3IPAdapterMixin
from diffusers.loaders.transformer_sd3 import SD3Transformer2DLoadersMixin
from diffusers.models.attention_processor import Attention, JointAttnProcessor2_0
from torch import Tensor, nn
from torch.nn import functional

from ipadapter_core.backbone.sd3 import SD3
from ipadapter_core.branch.timed import exchange, joint_attention
from ipadapter_core.network.adapter import IPAdapter

from ..readers.reader import FEATURES
from .comparing import as_float, random_features, random_timesteps, relative_difference

_DEPTH, _HEAD_DIM = 4, 64


class TransformerOutline(nn.Module, SD3Transformer2DLoadersMixin):  # type: ignore[misc]
    """What diffusers' IP-Adapter loader sees of a transformer: its joint attentions and their width."""

    def __init__(self, adapter: IPAdapter) -> None:
        super().__init__()
        spec = adapter.spec
        self.dtype, self.device = next(adapter.parameters()).dtype, torch.device("cpu")
        self.config = SimpleNamespace(
            attention_head_dim=spec.head_dim, num_attention_heads=spec.site_dims[0] // spec.head_dim
        )
        self.image_proj: Any = None
        attentions = [
            (site, name)
            for site in range(spec.num_sites)
            for name in ("attn", "attn2")[: 2 if site < spec.second_attentions else 1]
        ]
        self.attn_processors: dict[str, Any] = {
            f"transformer_blocks.{site}.{name}.processor": JointAttnProcessor2_0() for site, name in attentions
        }

    def set_attn_processor(self, processors: dict[str, Any]) -> None:
        self.attn_processors = processors


class _Pipeline(SD3IPAdapterMixin):  # type: ignore[misc]
    """A pipeline that has a transformer and nothing else."""

    def __init__(self, transformer: TransformerOutline) -> None:
        self.transformer = transformer


def load_in_sd3(path: Path, adapter: IPAdapter) -> TransformerOutline:
    """Read an adapter file with diffusers' `load_ip_adapter`, at its default settings.

    Raises:
        RuntimeError, ValueError, LookupError, TypeError, AttributeError: diffusers cannot.
    """
    transformer = TransformerOutline(adapter)
    _Pipeline(transformer).load_ip_adapter(
        str(path.parent), subfolder="", weight_name=path.name, image_encoder_folder=None
    )
    return transformer


@torch.no_grad()
def sd3_difference(path: Path, adapter: IPAdapter) -> float:
    """Largest difference of tokens and of what the first block adds, in parts of the largest value; of the other blocks
    the weights are compared. Errors as `load_in_sd3`."""
    assert adapter.spec.resampler is not None
    given = adapter.spec.resampler
    if (given.depth, given.head_dim) != (_DEPTH, _HEAD_DIM):  # it would leave layers without weights
        raise ValueError(
            f"it builds a resampler of {_DEPTH} layers with heads of {_HEAD_DIM}, this has {given.depth} of {given.head_dim}"
        )
    transformer = load_in_sd3(path, adapter)
    if adapter.spec.second_attentions:
        weights = [x for processor in transformer.attn_processors.values() for x in processor.parameters()]
        if any(tensor.is_meta for tensor in weights):  # it says nothing, and fails as it draws
            raise ValueError(
                f"it takes second attentions of blocks, of which {adapter.spec.base} has {adapter.spec.second_attentions}, "
                "for further blocks, and leaves as many attentions without weights"
            )
    features, timesteps = random_features(adapter.spec)[FEATURES], random_timesteps()
    tokens, time = as_float(adapter.image_proj)(features, timesteps)
    theirs, their_time = as_float(transformer.image_proj)(features, timesteps)
    for site, processor in enumerate(transformer.attn_processors.values()):
        loaded, wanted = processor.state_dict(), adapter.site(site).state_dict()
        if loaded.keys() != wanted.keys() or not all(torch.equal(loaded[name], wanted[name]) for name in wanted):
            return 1.0
    first = next(iter(transformer.attn_processors.values()))
    return max(
        relative_difference(theirs, tokens),
        relative_difference(their_time, time),
        _attention_difference(adapter, as_float(first), tokens, time),
    )


def _attention_difference(adapter: IPAdapter, processor: Any, tokens: Tensor, time: Tensor) -> float:
    spec, timed = adapter.spec, SD3.layout(adapter.spec.layout).timed
    assert timed is not None
    dim, heads = spec.site_dims[0], spec.site_dims[0] // spec.head_dim
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        attn = Attention(dim, added_kv_proj_dim=dim, heads=heads, dim_head=spec.head_dim, context_pre_only=False)
        picture, text = torch.randn(2, 5, dim), torch.randn(2, 3, dim)
    plain = JointAttnProcessor2_0()(attn, picture, text)[0]
    processor.scale = 1.0
    added = processor(attn, picture, text, ip_hidden_states=tokens, temb=time)[0] - plain
    weights = as_float(cast(nn.Module, adapter.site(0)))
    of_query, of_key = (exchange(None, weight, timed.epsilon) for weight in timed.adapter_norms(weights))
    q, k, v = (layer(picture).unflatten(-1, (heads, -1)) for layer in (attn.to_q, attn.to_k, attn.to_v))
    pair = timed.kv(weights, tokens, functional.silu(time))
    ours = joint_attention(of_query(q), (of_key(k), v), pair, functional.scaled_dot_product_attention)
    return relative_difference(added, functional.linear(ours.transpose(1, 2).flatten(2), attn.to_out[0].weight))
