"""Adapters for SD3.5: InstantX/SD3.5-Large-IP-Adapter, whose resampler reads the noise level at every step."""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace

from ..numbers import is_whole
from .perceiver import read_resampler
from .shapes import block_dims, inconsistent, matrix
from .signatures import Shapes, Signature, dim_of
from .spec import AdapterSpec, EncoderHint, Feature, Negative, Projection

INSTANTX_SD3 = "InstantX SD3.5"
_ENCODER = EncoderHint(kind="SigLIP", image_size=384)
_LARGE, _MEDIUM = (38, 2432), (24, 1536)  # blocks, and their width; of SD3-Medium as well
_SITE = re.compile(r"ip_adapter\.(\d+)\.to_[kv]_ip\.weight")


def base_of_blocks(site_dims: tuple[int, ...], second_attentions: int = 0) -> str:
    """The base model with these joint blocks, in words."""
    blocks = len(site_dims), site_dims[0]
    if blocks == _LARGE and not second_attentions:
        return "SD3.5-Large"
    if blocks == _MEDIUM and second_attentions:
        return "SD3.5-Medium"
    return f"SD3 of {blocks[0]} blocks, {blocks[1]} wide"


def _read_instantx(shapes: Shapes, stated: Mapping[str, object]) -> AdapterSpec:
    resampler, image_dim = read_resampler(shapes, stated, "image_proj", dim_of(shapes, "image_proj.latents", 1))
    _, time_dim = matrix(shapes, "image_proj.time_embedding.linear_1.weight")
    token_dim, _ = matrix(shapes, "image_proj.proj_out.weight")
    head_dim = dim_of(shapes, "ip_adapter.0.norm_q.weight", 0)
    site_dims = block_dims(shapes, _SITE)
    second = stated.get("second_attentions", 0)
    if time_dim % 2:  # pairs of a sine and a cosine
        raise inconsistent(f"image_proj.time_embedding.linear_1.weight has {time_dim} columns, not an even number")
    if not head_dim or any(dim % head_dim for dim in site_dims):
        raise inconsistent(f"heads of size {head_dim} (ip_adapter.0.norm_q.weight) do not divide {site_dims[0]}")
    if not is_whole(second) or not 0 <= second <= len(site_dims):
        raise inconsistent(f"second_attentions is {second!r} of {len(site_dims)} blocks")
    return AdapterSpec(
        family=INSTANTX_SD3,
        base=base_of_blocks(site_dims, second),
        projection=Projection.TIMED_RESAMPLER,
        feature=Feature.HIDDEN_STATES,
        image_dim=image_dim,
        cross_attention_dim=token_dim,
        num_tokens=resampler.num_queries,
        site_dims=site_dims,
        negative=Negative.ZERO_FEATURES,
        resampler=replace(resampler, time_dim=time_dim),
        backbone="SD3",
        layout=INSTANTX_SD3,
        head_dim=head_dim,
        encoder=_ENCODER,
        second_attentions=second,
    )


SD3_ADAPTERS: tuple[tuple[Signature, Callable[[Shapes, Mapping[str, object]], AdapterSpec]], ...] = (
    (
        Signature(
            INSTANTX_SD3,
            (
                "image_proj.time_embedding.linear_1.weight",
                "image_proj.latents",
                "image_proj.proj_in.weight",
                "image_proj.layers.0.0.to_q.weight",
                "image_proj.layers.0.1.1.weight",
                "ip_adapter.0.norm_ip.linear.weight",
            ),
        ),
        _read_instantx,
    ),
)
