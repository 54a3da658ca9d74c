"""`TrainableAdapter`: the network that learns, as one forward from image features to the K/V of every site."""

# B samples, S feature positions, E encoder dim, N image tokens, C cross-attention dim

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from ipadapter_core.backbone.anima import ScaledProjection
from ipadapter_core.backbone.registry import find_backbone
from ipadapter_core.backbone.row import SiteLayout
from ipadapter_core.encoder.choice import encoder_need
from ipadapter_core.errors import MismatchError
from ipadapter_core.face.lora_file import split_lora
from ipadapter_core.file.spec import AdapterSpec, EncoderHint, Negative, Projection, ResamplerSpec
from ipadapter_core.network.adapter import IPAdapter, load_adapter
from ipadapter_core.network.fit import check_sites
from ipadapter_core.strength.presets import resolve_preset

from ..backbones.backbone import Backbone
from ..backbones.image_prompt import KV, ImagePrompt
from ..config import AdapterConfig
from ..files.families import check_model_lora
from ..hub import find_file
from ..readers.reader import FEATURES
from .face_network import LORA_LAYERS, FaceLora, face_adapter_spec, face_tokens
from .image_encoder import ImageEncoder

_PROJECTIONS = {"base": Projection.LINEAR, "plus": Projection.RESAMPLER, "full": Projection.MLP}
_USUAL_TOKENS = {"base": 4, "plus": 16, "full": None}
_USUAL_NEGATIVE = {"base": Negative.ZERO_FEATURES, "plus": Negative.ZERO_PIXELS, "full": Negative.ZERO_PIXELS}
_NARROW_TEXT, _NARROW_RESAMPLER, _WIDE_RESAMPLER = 768, 768, 1280
_FF_FACTOR = 4
_TIME_DIM, _TIMES = 320, 1000  # as InstantX's SD3.5 adapter has them


class TrainableAdapter(nn.Module):
    """An adapter in float32, of which some sites may be left out or frozen.

    Invariants: `adapter.state_dict()` has the published names; a site that is neither trained nor frozen has zero
    values, so that the file acts in every program as it does here.

    Args:
        keeps_others: sites that are not trained act with the values they have; else they take no image.
        lora: trained beside it; None where the model stays as it is.
    """

    def __init__(
        self,
        adapter: IPAdapter,
        trained_sites: frozenset[int],
        *,
        keeps_others: bool = False,
        lora: FaceLora | None = None,
    ) -> None:
        super().__init__()
        self.adapter = adapter.float()
        self.trained_sites = trained_sites
        others = frozenset(range(adapter.spec.num_sites)) - trained_sites
        self.frozen_sites = others if keeps_others else frozenset[int]()
        adapter.requires_grad_(True)
        self.lora = None if lora is None else lora.float()
        for index in others:
            for parameter in adapter.site(index).requires_grad_(False).parameters():
                if not keeps_others:
                    nn.init.zeros_(parameter)

    @property
    def spec(self) -> AdapterSpec:
        return self.adapter.spec

    @property
    def metadata(self) -> dict[str, str]:
        """Of a file with its tensors."""
        layers = {} if self.lora is None else {LORA_LAYERS: json.dumps(self.lora.layers)}
        return self.spec.to_metadata() | layers

    def published(self) -> dict[str, Tensor]:
        """All its tensors under published names, its LoRA among them."""
        return {**self.adapter.state_dict(), **({} if self.lora is None else self.lora.state_dict())}

    def load_published(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `published`."""
        adapter, lora = split_lora(tensors)
        self.adapter.load_state_dict(adapter)
        if self.lora is not None:
            self.lora.load_state_dict(lora)

    def trained_parameters(self) -> Iterator[nn.Parameter]:
        return (parameter for parameter in self.parameters() if parameter.requires_grad)

    def forward(self, features: Mapping[str, Tensor], times: Tensor | None = None) -> ImagePrompt:
        """What a reader gave for B references to each site's K and V (B, N, site dim); None where the site is left out.

        Always in float32: the residual stream of a wide resampler leaves float16's range.

        Args:
            times: (B, …), as `Backbone.adapter_times` gives them; of no matter to adapters that give the same at all times.
        """
        device = next(iter(features.values())).device
        with torch.autocast(device.type, enabled=False):
            if self.spec.is_timed:
                assert times is not None
                return self._at(features[FEATURES].float(), times.float())
            tokens = (
                self.adapter.project(features[FEATURES].float())
                if self.spec.face is None
                else face_tokens(self.adapter, features)
            )
            return ImagePrompt(
                self._kv(tokens),
                lora=None if self.lora is None else self.lora.weights(),
                layout=self.spec.layout,
                gates=self._gates(times),
                idle=self._idle(),
            )

    @property
    def _at_sites(self) -> SiteLayout:
        return find_backbone(self.spec.backbone).layout(self.spec.layout)

    def _kv(self, tokens: Tensor) -> tuple[KV | None, ...]:
        acting, sites = self.trained_sites | self.frozen_sites, range(self.spec.num_sites)
        return tuple(self.adapter.kv(index, tokens) if index in acting else None for index in sites)

    def _idle(self) -> tuple[Tensor, ...]:
        """Clones, since FSDP takes the weights themselves away after this forward."""
        if not self._at_sites.scales_tokens:
            return ()
        sites = [self.adapter.site(index) for index in range(self.spec.num_sites)]
        return tuple(site.to_v_ip.bias.clone() for site in sites)

    def _gates(self, times: Tensor | None) -> tuple[Tensor | None, ...]:
        if self._at_sites.gate is None:
            return ()
        assert times is not None
        kept = [self.adapter.gate(index) for index in range(self.spec.num_sites)]
        return tuple(None if gate is None else gate(times.float()) for gate in kept)

    def _at(self, features: Tensor, times: Tensor) -> ImagePrompt:
        """Likewise, of an adapter whose tokens change with the time."""
        adapter = self.adapter
        tokens, time = adapter.timed_tokens(features, times * _TIMES)
        pairs = [adapter.timed_kv(index, tokens, functional.silu(time)) for index in range(self.spec.num_sites)]
        # clones, since FSDP takes the weights themselves away after this forward
        norms = [[weight.clone() for weight in adapter.timed_norms(index)] for index in range(self.spec.num_sites)]
        return ImagePrompt(tuple((k.flatten(2), v.flatten(2)) for k, v in pairs), tuple((q, k) for q, k in norms))


def published_name(name: str) -> str:
    """Of a parameter of a `TrainableAdapter`."""
    return name.removeprefix("adapter.").removeprefix("lora.")


def new_adapter(
    config: AdapterConfig, base: Backbone, encoder: ImageEncoder | None, seed: int = 0, *, is_fresh: bool = False
) -> TrainableAdapter:
    """Build the network a config describes for a base and an encoder; a fresh one whatever `pretrained` says.

    Projections start as PyTorch initialises them, from `seed`; K/V from the text projections (arXiv 2308.06721,
    section 4.1.2) unless `init` is random, and an adapter's own norms from the model's.

    Raises:
        BadInputError: an unknown layer preset, or one without a site here.
        MismatchError: `pretrained` is of another kind or size; says which. Or none of this kind is for such a base.
        UnreadableFileError, UnknownCheckpointError: as `load_adapter`, of `pretrained`.
        ModelNotFoundError: as `pretrained_file`.
    """
    wanted = wanted_adapter(config, base, encoder, is_fresh=is_fresh)
    spec, given = wanted.spec, wanted.given
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adapter = IPAdapter(spec)
        lora = FaceLora(spec, config.rank, base.lora_layers) if config.rank else None
    if given is not None:
        adapter.load_state_dict(given.state_dict())
        if given.lora and lora is not None:
            lora.load(given.lora)
    elif config.init == "text":
        _start(adapter, base)
    return TrainableAdapter(adapter, wanted.trained, keeps_others=config.other_blocks == "frozen", lora=lora)


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


def _start(adapter: IPAdapter, base: Backbone) -> None:
    """From the model's own weights, as far as it has some."""
    with torch.no_grad():
        for index in range(adapter.spec.num_sites):
            weights, site = base.text_kv(index), adapter.site(index)
            if weights is not None and weights[0].shape == site.to_k_ip.weight.shape:
                site.to_k_ip.weight.copy_(weights[0])
                site.to_v_ip.weight.copy_(weights[1])
            base.start(index, cast(nn.Module, site))


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
    keys: dict[str, object] = {"kind": kind, "gate": _gate(spec), "tokens": spec.num_tokens}
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


def _gate(spec: AdapterSpec) -> str:
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
