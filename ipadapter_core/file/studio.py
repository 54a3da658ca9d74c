"""Adapters this project's own trainer makes for transformers: a resampler, and keys normed over each head."""

import re
from collections.abc import Callable, Mapping

from ..errors import UnsupportedFamilyError, shown
from .perceiver import read_resampler
from .shapes import block_dims, inconsistent, matrix
from .signatures import Shapes, Signature, dim_of
from .spec import AdapterSpec, Feature, Negative, Projection

STUDIO = "IP-Adapter Studio"
_SITE = re.compile(r"ip_adapter\.(\d+)\.to_[kv]_ip\.weight")
# kind of base model, also its name in words: number and width of its blocks
_SIZES = {"Z-Image": (30, 3840), "Qwen-Image": (60, 3072)}


def _read(shapes: Shapes, stated: Mapping[str, object]) -> AdapterSpec:
    resampler, image_dim = read_resampler(shapes, stated, "image_proj", dim_of(shapes, "image_proj.latents", 1))
    head_dim = dim_of(shapes, "ip_adapter.0.norm_ip_k.weight", 0)
    site_dims = block_dims(shapes, _SITE)
    if not head_dim or any(dim % head_dim for dim in site_dims):
        raise inconsistent(f"heads of size {head_dim} (ip_adapter.0.norm_ip_k.weight) do not divide {site_dims[0]}")
    named = stated.get("backbone")
    base = named if isinstance(named, str) else _by_size(site_dims)
    if base not in _SIZES:
        raise UnsupportedFamilyError(
            f"this is an adapter made with IP-Adapter Studio for {shown(base or 'a base model it does not name')} "
            f"({len(site_dims)} attention layers, {site_dims[0]} wide)",
            expected=f"one for {' or '.join(_SIZES)}",
            action="update IP-Adapter Studio, or export the adapter again",
        )
    return AdapterSpec(
        family=f"{base} plus",
        base=base,
        projection=Projection.RESAMPLER,
        feature=Feature.HIDDEN_STATES,
        image_dim=image_dim,
        cross_attention_dim=matrix(shapes, "ip_adapter.0.to_k_ip.weight")[1],
        num_tokens=resampler.num_queries + resampler.num_mean_pooled,
        site_dims=site_dims,
        negative=Negative.ZERO_FEATURES,
        resampler=resampler,
        backbone=base,
        layout=STUDIO,
        head_dim=head_dim,
    )


def _by_size(site_dims: tuple[int, ...]) -> str | None:
    size = (len(site_dims), site_dims[0])
    return next((name for name, known in _SIZES.items() if known == size), None)


STUDIO_ADAPTERS: tuple[tuple[Signature, Callable[[Shapes, Mapping[str, object]], AdapterSpec]], ...] = (
    (
        Signature(
            STUDIO,
            (
                "image_proj.latents",
                "image_proj.proj_in.weight",
                "image_proj.layers.0.0.to_q.weight",
                "image_proj.layers.0.1.1.weight",
                "ip_adapter.0.to_k_ip.weight",
                "ip_adapter.0.norm_ip_k.weight",
            ),
            lacks=("ip_adapter.0.norm_ip.linear.weight",),
        ),
        _read,
    ),
)
