"""`TrainableAdapter`: the network that learns, as one forward from image features to the K/V of every site."""

# B samples, S feature positions, E encoder dim, N image tokens, C cross-attention dim

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from ipadapter_core.backbone.unet import UNET
from ipadapter_core.errors import MismatchError
from ipadapter_core.file.detect import BASE_NAMES
from ipadapter_core.file.spec import AdapterSpec, EncoderHint, Negative, Projection, ResamplerSpec
from ipadapter_core.network.adapter import IPAdapter, load_adapter
from ipadapter_core.network.fit import check_sites
from ipadapter_core.strength.presets import resolve_preset

from ..config import AdapterConfig
from .image_encoder import ImageEncoder
from .processor import KV
from .sites import discover_sites

_PROJECTIONS = {"base": Projection.LINEAR, "plus": Projection.RESAMPLER, "full": Projection.MLP}
_USUAL_TOKENS = {"base": 4, "plus": 16, "full": None}
_USUAL_NEGATIVE = {"base": Negative.ZERO_FEATURES, "plus": Negative.ZERO_PIXELS, "full": Negative.ZERO_PIXELS}
_NARROW_TEXT, _NARROW_RESAMPLER, _WIDE_RESAMPLER = 768, 768, 1280
_FF_FACTOR = 4


class TrainableAdapter(nn.Module):
    """An adapter in float32, of which some sites may be left out.

    Invariants: `adapter.state_dict()` has the published names; a site that is not trained has zero values, so that the
    file acts on the trained sites alone in every program.
    """

    def __init__(self, adapter: IPAdapter, trained_sites: frozenset[int]) -> None:
        super().__init__()
        self.adapter = adapter.float()
        self.trained_sites = trained_sites
        adapter.requires_grad_(True)
        for index in range(adapter.spec.num_sites):
            if index not in trained_sites:
                for parameter in adapter.site(index).requires_grad_(False).parameters():
                    nn.init.zeros_(parameter)

    @property
    def spec(self) -> AdapterSpec:
        return self.adapter.spec

    def trained_parameters(self) -> Iterator[nn.Parameter]:
        return (parameter for parameter in self.parameters() if parameter.requires_grad)

    def forward(self, features: Tensor) -> tuple[KV | None, ...]:
        """Features (B, E) or (B, S, E) to each site's K and V (B, N, site dim); None where the site is not trained.

        Always in float32: the residual stream of a wide resampler leaves float16's range.
        """
        with torch.autocast(features.device.type, enabled=False):
            tokens = self.adapter.project(features.float())
            return tuple(
                (site.to_k_ip(tokens), site.to_v_ip(tokens)) if index in self.trained_sites else None
                for index, site in ((index, self.adapter.site(index)) for index in range(self.spec.num_sites))
            )


def new_adapter(
    config: AdapterConfig, unet: nn.Module, encoder: ImageEncoder, seed: int = 0, *, is_fresh: bool = False
) -> TrainableAdapter:
    """Build the network a config describes for a UNet and an encoder; a fresh one whatever `pretrained` says.

    Projections start as PyTorch initialises them, from `seed`; K/V from the text projections (arXiv 2308.06721,
    section 4.1.2) unless `init` is random.

    Raises:
        BadInputError: an unknown layer preset, or one without a site here.
        MismatchError: `pretrained` is another kind of adapter.
    """
    sites, attentions = discover_sites(unet)
    strengths = resolve_preset(config.blocks, sites, 1.0)
    trained = frozenset(index for index, strength in strengths.items() if strength.value and not strength.swap)
    spec = _spec(config, tuple(site.dim for site in sites.sites), sites.sites[0].context_dim, encoder)
    check_sites(spec, sites)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adapter = IPAdapter(spec)
    if config.pretrained is not None and not is_fresh:
        adapter.load_state_dict(_pretrained(Path(config.pretrained), spec))
    elif config.init == "text":
        _copy_text_projections(adapter, attentions)
    return TrainableAdapter(adapter, trained)


def _spec(config: AdapterConfig, site_dims: tuple[int, ...], dim: int, encoder: ImageEncoder) -> AdapterSpec:
    tokens = config.tokens or _USUAL_TOKENS[config.kind]
    resampler = None
    if config.kind == "plus":
        assert tokens is not None
        width = config.resampler_dim or (_NARROW_RESAMPLER if dim <= _NARROW_TEXT else _WIDE_RESAMPLER)
        if width % config.resampler_head_dim:
            raise MismatchError(
                f"a resampler of width {width} with heads of size {config.resampler_head_dim}",
                expected="a width that is a multiple of the head size",
                action="change adapter.resampler_dim or adapter.resampler_head_dim",
            )
        resampler = ResamplerSpec(
            dim=width,
            depth=config.resampler_depth,
            num_heads=width // config.resampler_head_dim,
            head_dim=config.resampler_head_dim,
            ff_dim=_FF_FACTOR * width,
            num_queries=tokens,
        )
    base = UNET.families.get((dim, len(site_dims))) or BASE_NAMES.get(dim, f"a base with {dim}-wide text tokens")
    return AdapterSpec(
        family=f"{base} {config.kind}",
        base=base,
        projection=_PROJECTIONS[config.kind],
        feature=encoder.feature,
        image_dim=encoder.width,
        cross_attention_dim=dim,
        num_tokens=tokens,
        site_dims=site_dims,
        negative=_USUAL_NEGATIVE[config.kind] if config.negative == "auto" else Negative(config.negative),
        resampler=resampler,
        layer=encoder.layer,
        encoder=EncoderHint(name=encoder.name, image_size=encoder.format.pixel_format.size, crop=encoder.format.crop),
    )


def _copy_text_projections(adapter: IPAdapter, attentions: tuple[Any, ...]) -> None:
    with torch.no_grad():
        for index, attention in enumerate(attentions):
            site = adapter.site(index)
            site.to_k_ip.weight.copy_(attention.to_k.weight)
            site.to_v_ip.weight.copy_(attention.to_v.weight)


def _pretrained(path: Path, spec: AdapterSpec) -> dict[str, Tensor]:
    given = load_adapter(path)
    wanted = {name: tuple(tensor.shape) for name, tensor in _meta(spec).items()}
    state_dict = given.state_dict()
    wrong = [name for name, shape in wanted.items() if name not in state_dict or state_dict[name].shape != shape]
    if wrong or len(state_dict) != len(wanted):
        raise MismatchError(
            f"adapter.pretrained {path.name} is {given.spec.family} ({given.spec.num_tokens} tokens, "
            f"{given.spec.num_sites} sites, reads {given.spec.image_dim}-wide features)",
            expected=f"{spec.family} ({spec.num_tokens} tokens, {spec.num_sites} sites, {spec.image_dim}-wide features)",
            action="describe that adapter in [adapter] and [encoder], or start without adapter.pretrained",
        )
    return cast("dict[str, Tensor]", state_dict)


def _meta(spec: AdapterSpec) -> dict[str, Tensor]:
    with torch.device("meta"):
        return cast("dict[str, Tensor]", IPAdapter(spec).state_dict())
