"""What network a config describes, before it is made: its spec, its sites, and the file it starts from."""

import json
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from ipadapter_core.backbone.anima import ScaledProjection
from ipadapter_core.backbone.registry import find_backbone
from ipadapter_core.encoder.choice import encoder_need
from ipadapter_core.errors import MismatchError
from ipadapter_core.file.spec import AdapterSpec, EncoderHint, Negative, Projection, ResamplerSpec
from ipadapter_core.network.adapter import IPAdapter, load_adapter
from ipadapter_core.network.fit import check_sites
from ipadapter_core.strength.presets import resolve_preset

from ..backbones.backbone import Backbone
from ..config import AdapterConfig
from ..files.families import check_model_lora
from ..hub import find_file
from .face_network import face_adapter_spec
from .image_encoder import ImageEncoder

_PROJECTIONS = {"base": Projection.LINEAR, "plus": Projection.RESAMPLER, "full": Projection.MLP}
_USUAL_TOKENS = {"base": 4, "plus": 16, "full": None}
_USUAL_NEGATIVE = {"base": Negative.ZERO_FEATURES, "plus": Negative.ZERO_PIXELS, "full": Negative.ZERO_PIXELS}
_NARROW_TEXT, _NARROW_RESAMPLER, _WIDE_RESAMPLER = 768, 768, 1280
_FF_FACTOR = 4
_TIME_DIM = 320  # as InstantX's SD3.5 adapter has it


@dataclass(frozen=True, eq=False)
class WantedAdapter:
    """The network a config describes, before it is made.

    Attributes:
        trained: its sites.
        given: what it starts from, which fits; None: from nothing.
    """

    spec: AdapterSpec
    trained: frozenset[int]
    given: IPAdapter | None


def wanted_adapter(
    config: AdapterConfig, base: Backbone, encoder: ImageEncoder | None, *, is_fresh: bool = False
) -> WantedAdapter:
    """What `new_adapter` makes, with all its errors; of the base the layers are enough."""
    sites = base.sites
    strengths = resolve_preset(config.blocks, sites, 1.0)
    trained = frozenset(index for index, strength in strengths.items() if strength.value and not strength.swap)
    start = None if config.pretrained is None or is_fresh else pretrained_file(config.pretrained)
    given = None if start is None else load_adapter(start, verify_again=True)
    base.check_adapter(config)
    if config.reads_faces:
        spec = face_adapter_spec(config, base, encoder)
    else:
        assert encoder is not None
        spec = _spec(config, _sizes_of_start(config, given), base, encoder)
    check_sites(spec, sites)
    if start is not None and given is not None:
        check_model_lora(f"adapter.pretrained {start.name}", given)
        _check_start(start.name, given, spec)
        if given.lora and not config.rank:
            raise _lora_lost(start.name)
    return WantedAdapter(spec, trained, given)


def _lora_lost(name: str) -> MismatchError:
    return MismatchError(
        f"adapter.lora_rank = 0 with adapter.pretrained {name}, which carries a LoRA that its layers were trained with",
        expected="the rank of that LoRA",
        action="set adapter.lora_rank to the lora_rank that `ipadapter inspect` says of the file",
    )


def pretrained_file(named: str) -> Path:
    """The file that `adapter.pretrained` names, here or on the hub.

    Raises:
        ModelNotFoundError: the hub does not have it.
    """
    return find_file(
        named,
        "adapter.pretrained",
        "an adapter file, or one of the hub such as h94/IP-Adapter/models/ip-adapter-plus_sd15.safetensors",
    )


def _spec(
    config: AdapterConfig,
    sizes: tuple[int | None, int | None],
    base: Backbone,
    encoder: ImageEncoder,
) -> AdapterSpec:
    """Args: sizes: number of tokens and the resampler's width, None for the usual."""
    sites = base.sites
    dim = base.token_dim
    tokens = sizes[0] or base.usual_tokens.get(config.kind, _USUAL_TOKENS[config.kind])
    resampler = None
    if config.kind == "plus":
        assert tokens is not None
        width = sizes[1] or (_NARROW_RESAMPLER if dim <= _NARROW_TEXT else _WIDE_RESAMPLER)
        resampler = _resampler(config, tokens, width, _TIME_DIM if base.is_timed else None)
    has_heads = base.has_head_dim or base.is_timed or sites.backbone.layout(base.layout).headed_projection is not None
    spec = AdapterSpec(
        family=base.family(config.kind),
        base=base.base_name,
        backbone=sites.backbone.name,
        layout=base.layout,
        projection=_projection(config.kind, base),
        feature=encoder.feature,
        image_dim=encoder.width,
        cross_attention_dim=dim,
        num_tokens=tokens,
        site_dims=tuple(site.dim for site in sites.sites),
        negative=_negative(config, base),
        resampler=resampler,
        layer=encoder.layer,
        encoder=EncoderHint(
            name=encoder.name,
            kind=encoder.spec.kind if base.is_timed or base.names_encoder_kind else None,
            image_size=encoder.format.pixel_format.size,
            crop=encoder.format.crop,
        ),
        head_dim=sites.sites[0].head_dim if has_heads else 0,
        second_attentions=base.second_attentions,
    )
    return base.specified(spec, config)


def _projection(kind: str, base: Backbone) -> Projection:
    if base.is_timed:
        return Projection.TIMED_RESAMPLER
    return base.projections.get(kind, _PROJECTIONS[kind])


def _resampler(config: AdapterConfig, tokens: int, width: int, time_dim: int | None = None) -> ResamplerSpec:
    if width % config.resampler_head_dim:
        raise MismatchError(
            f"a resampler of width {width} with heads of size {config.resampler_head_dim}",
            expected="a width that is a multiple of the head size",
            action="change adapter.resampler_dim or adapter.resampler_head_dim",
        )
    return ResamplerSpec(
        dim=width,
        depth=config.resampler_depth,
        num_heads=width // config.resampler_head_dim,
        head_dim=config.resampler_head_dim,
        ff_dim=_FF_FACTOR * width,
        num_queries=tokens,
        time_dim=time_dim,
    )


def _negative(config: AdapterConfig, base: Backbone) -> Negative:
    if config.negative != "auto":
        return Negative(config.negative)
    return base.negatives.get(config.kind, _USUAL_NEGATIVE[config.kind])


def _sizes_of_start(config: AdapterConfig, given: IPAdapter | None) -> tuple[int | None, int | None]:
    """Number of tokens and the resampler's width; of the file to start from, where the config leaves them open."""
    tokens, width = config.tokens, config.resampler_dim
    if given is None or _kind(given.spec) != config.kind:
        return tokens, width
    resampler = None if config.gate == "time" else given.spec.resampler  # that one is as wide as the features
    return (
        given.spec.num_tokens if tokens is None else tokens,
        resampler.dim if width is None and resampler is not None else width,
    )


def _check_start(name: str, given: IPAdapter, spec: AdapterSpec) -> None:
    """Raises MismatchError if an adapter to start from has not the tensors of a spec."""
    wanted = {key: tuple(tensor.shape) for key, tensor in _meta(spec).items()}
    state_dict = given.state_dict()
    wrong = [key for key, shape in wanted.items() if key not in state_dict or state_dict[key].shape != shape]
    if not wrong and len(state_dict) == len(wanted):
        return
    differences = [
        (what, there, here, action)
        for (what, there, action), (_, here, _) in zip(_sizes(given.spec), _sizes(spec), strict=True)
        if there != here
    ]
    if not differences:
        differences = [("tensors", ", ".join(set(state_dict) ^ set(wanted)), "none of them", "start without it")]
    raise MismatchError(
        f"adapter.pretrained {name} ({given.spec.family}), which has "
        + "; ".join(f"{what} {there}, not {here}" for what, there, here, _ in differences),
        expected="a file of the kind and sizes that [adapter], encoder.model and base.model ask for",
        action=f"{differences[0][3]}, or name another file",
    )


def _sizes(spec: AdapterSpec) -> list[tuple[str, object, str]]:
    """What decides the shapes of an adapter: in words, its value, and what makes a config ask for that one."""
    kind, resampler = _kind(spec), spec.resampler
    names = {"resampler_dim": "dim", "resampler_depth": "depth", "resampler_head_dim": "head_dim"}
    keys: dict[str, object] = {"kind": kind, "gate": gate_of(spec), "tokens": spec.num_tokens}
    keys |= {key: getattr(resampler, name, None) for key, name in names.items()}
    own = [(f"adapter.{key}", value, f"set adapter.{key} = {json.dumps(value)}") for key, value in keys.items()]
    need, base = encoder_need(spec), f"choose a base.model like the one it is for ({spec.base})"
    return [
        *own,
        ("features of width", spec.image_dim, f"choose the encoder.model it reads: {need}"),
        ("text tokens of width", spec.cross_attention_dim, base),
        ("attention layers of widths", _in_short(spec.site_dims), base),
    ]


def _kind(spec: AdapterSpec) -> str:
    """As `adapter.kind` calls it."""
    kinds = {projection: kind for kind, projection in _PROJECTIONS.items()}
    kinds |= dict.fromkeys((Projection.TIMED_RESAMPLER, Projection.PERCEIVER), "plus")
    kinds[Projection.PATCHES] = "full" if spec.resampler is None else "plus"
    return kinds.get(spec.projection, spec.projection.value)


def gate_of(spec: AdapterSpec) -> str:
    """As `adapter.gate` calls it."""
    layout = find_backbone(spec.backbone).layout(spec.layout)
    if layout.gate is not None:
        return "time"
    return "block" if layout.site_projection is ScaledProjection else "none"


def _in_short(widths: tuple[int, ...]) -> str:
    """`320 (2), 640 (3)`, in the order of the layers."""
    return ", ".join(f"{width} ({sum(1 for _ in group)})" for width, group in groupby(widths))


def _meta(spec: AdapterSpec) -> dict[str, Tensor]:
    with torch.device("meta"):
        return cast("dict[str, Tensor]", IPAdapter(spec).state_dict())
