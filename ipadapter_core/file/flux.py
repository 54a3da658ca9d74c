"""Adapters for FLUX.1 and Chroma: those of XLabs (x-flux) and of InstantX (FLUX.1-dev-IP-Adapter), and our trainer's."""

import re
from collections.abc import Callable, Mapping

from ..errors import UnsupportedFamilyError
from .names import XLABS
from .perceiver import read_resampler
from .shapes import block_dims, inconsistent, matrix, tokens_of
from .signatures import Shapes, Signature, dim_of
from .spec import AdapterSpec, EncoderHint, Feature, Negative, Projection

INSTANTX_FLUX = "InstantX FLUX"
_BASE, _BACKBONE = "FLUX.1", "FLUX"
_HEAD_DIM = 128
_ENCODER = EncoderHint(kind="SigLIP", image_size=384)
_TOKEN_DIM = 4096
_SITE = re.compile(r"ip_adapter\.(\d+)\.to_[kv]_ip\.weight")
_VERSIONS = {4: "v1", 16: "v2"}  # by tokens


def _read_xlabs(shapes: Shapes, _stated: Mapping[str, object]) -> AdapterSpec:
    _, image_dim = matrix(shapes, "image_proj.proj.weight")
    num_tokens, _ = tokens_of(shapes, "image_proj.proj.weight")
    _check_blocks(shapes)
    return AdapterSpec(
        family=" ".join(("XLabs FLUX", _VERSIONS.get(num_tokens, f"of {num_tokens} tokens"))),
        base=_BASE,
        projection=Projection.LINEAR,
        feature=Feature.IMAGE_EMBEDS,
        image_dim=image_dim,
        cross_attention_dim=_token_dim(shapes),
        num_tokens=num_tokens,
        site_dims=block_dims(shapes, _SITE),
        negative=Negative.BLACK_PICTURE,  # x-flux: a picture of zeros where no negative one is given
        backbone=_BACKBONE,
        layout=XLABS,
    )


def _read_plus(shapes: Shapes, stated: Mapping[str, object]) -> AdapterSpec:
    """What XLabs' are at the blocks, with tokens that a resampler makes."""
    resampler, image_dim = read_resampler(shapes, stated, "image_proj", dim_of(shapes, "image_proj.latents", 1))
    _check_blocks(shapes)
    return AdapterSpec(
        family=f"{_BASE} plus",
        base=_BASE,
        projection=Projection.RESAMPLER,
        feature=Feature.HIDDEN_STATES,
        image_dim=image_dim,
        cross_attention_dim=_token_dim(shapes),
        num_tokens=resampler.num_queries + resampler.num_mean_pooled,
        site_dims=block_dims(shapes, _SITE),
        negative=Negative.ZERO_PIXELS,
        resampler=resampler,
        backbone=_BACKBONE,
        layout=XLABS,
    )


def _check_blocks(shapes: Shapes) -> None:
    numbers = {int(match[1]) for name in shapes if (match := _SITE.fullmatch(name))}
    if numbers != set(range(len(numbers))):
        raise UnsupportedFamilyError(
            f"this is an XLabs FLUX adapter for some of the double blocks ({len(numbers)})",
            expected="one for all of them, as XLabs publishes",
            action="choose another adapter",
        )


def _read_instantx(shapes: Shapes, _stated: Mapping[str, object]) -> AdapterSpec:
    hidden_dim, image_dim = matrix(shapes, "image_proj.proj.0.weight")
    num_tokens, _ = tokens_of(shapes, "image_proj.proj.2.weight")
    return AdapterSpec(
        family=INSTANTX_FLUX,
        base=_BASE,
        projection=Projection.TWO_LAYERS,
        feature=Feature.IMAGE_EMBEDS,
        image_dim=image_dim,
        cross_attention_dim=_token_dim(shapes),
        num_tokens=num_tokens,
        site_dims=block_dims(shapes, _SITE),
        negative=Negative.ZERO_FEATURES,
        backbone=_BACKBONE,
        layout=INSTANTX_FLUX,
        head_dim=_HEAD_DIM,
        encoder=_ENCODER,
        hidden_dim=hidden_dim,
    )


FLUX_ADAPTERS: tuple[tuple[Signature, Callable[[Shapes, Mapping[str, object]], AdapterSpec]], ...] = (
    (
        Signature(
            XLABS,
            (
                "image_proj.proj.weight",
                "image_proj.norm.weight",
                "ip_adapter.0.to_k_ip.weight",
                "ip_adapter.0.to_k_ip.bias",
            ),
        ),
        _read_xlabs,
    ),
    (
        Signature(
            f"{_BASE} plus",
            (
                "image_proj.latents",
                "image_proj.proj_in.weight",
                "image_proj.layers.0.0.to_q.weight",
                "image_proj.layers.0.1.1.weight",
                "ip_adapter.0.to_k_ip.weight",
                "ip_adapter.0.to_k_ip.bias",
            ),
        ),
        _read_plus,
    ),
    (
        Signature(
            INSTANTX_FLUX,
            (
                "image_proj.proj.0.weight",
                "image_proj.proj.2.weight",
                "image_proj.norm.weight",
                "ip_adapter.0.to_k_ip.weight",
            ),
            dims=(("ip_adapter.0.to_k_ip.weight", 1, _TOKEN_DIM),),  # a UNet's wrongly numbered layers are narrower
        ),
        _read_instantx,
    ),
)


def _token_dim(shapes: Shapes) -> int:
    dims = {matrix(shapes, name)[1] for name in shapes if _SITE.fullmatch(name)}
    if len(dims) != 1:
        raise inconsistent(f"to_k_ip and to_v_ip expect image tokens of different widths: {sorted(dims)}")
    return dims.pop()
