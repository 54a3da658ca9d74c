"""Which programs read an adapter file right: found out by reading it with diffusers' own loader and comparing outputs.

diffusers guesses sizes that it does not read from the tensors, and loads some files without a word into a network that
computes something else. So the comparison decides; a table says only what diffusers' pipelines do around the network.
No UNet is built: the loader needs the names and widths of the cross-attention layers, and those an adapter file has.
"""

# B samples, S feature positions, E encoder dim, N image tokens, C cross-attention dim, L query positions

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
from diffusers.loaders import IPAdapterMixin, UNet2DConditionLoadersMixin
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor, nn
from torch.nn import functional

from ipadapter_core.branch.attention import add_image_attention, image_attention
from ipadapter_core.file.names import USUAL_LAYOUT, XLABS
from ipadapter_core.file.sd3 import INSTANTX_SD3
from ipadapter_core.file.spec import PENULTIMATE, USUAL_BACKBONE, AdapterSpec, Feature, Negative, Projection
from ipadapter_core.network.adapter import IPAdapter

from ..readers.reader import FEATURES, IDENTITY
from .comparing import as_float, image_tokens, random_features, relative_difference
from .facts import Preprocess
from .flux_portability import flux_difference
from .sd3_portability import sd3_difference

NATIVE_ONLY, EVERYWHERE = "native nodes only", "native nodes and diffusers"
TOLERANCE = 1e-3  # of the largest value; float32 on both sides differs by 1e-5, another network by more than a tenth
_LOADING_ERRORS = (RuntimeError, ValueError, LookupError, TypeError, AttributeError)
_USUAL_NEGATIVE = {
    (USUAL_LAYOUT, Projection.LINEAR): Negative.ZERO_FEATURES,
    (USUAL_LAYOUT, Projection.RESAMPLER): Negative.ZERO_PIXELS,
    (USUAL_LAYOUT, Projection.MLP): Negative.ZERO_PIXELS,
    (XLABS, Projection.LINEAR): Negative.BLACK_PICTURE,
    (INSTANTX_SD3, Projection.TIMED_RESAMPLER): Negative.ZERO_FEATURES,
}
_USUAL_PICTURES = {INSTANTX_SD3: ("SigLIP", "stretch")}  # encoders, and how references are cut, where not as everywhere
_EVERYWHERE = ("CLIP", "center")
_CUTS = {"center": "crops references to their center", "stretch": "stretches references to a square"}
_SDXL_TEXT = 2048
_MOST_WIDTHS = 10  # the loader reads one digit of a block's number


@dataclass(frozen=True)
class Portability:
    """Whether diffusers computes what the nodes compute, and why not.

    Attributes:
        weights_load: the network diffusers builds of the file gives the same outputs.
        reasons: what keeps `pipeline(ip_adapter_image=…)` from giving the nodes' pictures; empty if nothing does.
        difference: largest difference of outputs, in parts of their largest value; None if diffusers cannot load it.
    """

    weights_load: bool
    reasons: tuple[str, ...]
    difference: float | None

    @property
    def label(self) -> str:
        return NATIVE_ONLY if self.reasons else EVERYWHERE

    def to_json(self) -> dict[str, object]:
        return {
            "label": self.label,
            "diffusers_weights": self.weights_load,
            "reasons": list(self.reasons),
            "difference": self.difference,
            "checked_with": f"diffusers {diffusers.__version__}",
        }


def check_portability(path: Path, adapter: IPAdapter, preprocess: Preprocess | None) -> Portability:
    """Read a file with diffusers and compare it with what the core made of it.

    Args:
        path: adapter file under published names.
        adapter: the same file, read by the core.
        preprocess: how references are prepared; None if nobody knows, then nothing is said about it.
    """
    around = _conventions(adapter.spec, preprocess)
    compare = _COMPARED.get(adapter.spec.layout)
    if compare is None:
        return Portability(False, (f"diffusers has no adapters for {adapter.spec.base}",), None)
    try:
        difference = compare(path, adapter)
    except _LOADING_ERRORS as error:
        first_sentence = (str(error).strip().splitlines() or [type(error).__name__])[0].partition(". ")[0].rstrip(".")
        return Portability(False, (f"diffusers cannot load it ({first_sentence})", *around), None)
    if not difference <= TOLERANCE:
        wrong = f"diffusers loads it without a word and computes something else (outputs differ by {difference:.0%})"
        return Portability(False, (wrong, *around), difference)
    return Portability(True, around, difference)


def other_nodes_reasons(spec: AdapterSpec, portability: Portability) -> tuple[str, ...]:
    """What keeps ComfyUI's most used other IP-Adapter nodes from reading it, by their documented limits; not run.

    They are narrower than diffusers, whose limits they share.
    """
    if spec.backbone != USUAL_BACKBONE:
        return (f"they read adapters for UNets, this is one for {spec.base}",)
    reasons = list(portability.reasons)
    tokens = {Projection.LINEAR: 4, Projection.RESAMPLER: 16}.get(spec.projection)
    if spec.face is not None:
        tokens = spec.num_tokens  # they take 16 for a portrait
    if spec.num_tokens != tokens:
        reasons.append(f"they read {tokens} image tokens, it has {spec.num_tokens}")
    if spec.resampler is not None:
        dim, heads = (1280, 20) if spec.cross_attention_dim == _SDXL_TEXT else (spec.cross_attention_dim, 12)
        if (spec.resampler.dim, spec.resampler.num_heads) != (dim, heads):
            reasons.append(
                f"they read a resampler of width {dim} with {heads} heads, it has {spec.resampler.dim} and "
                f"{spec.resampler.num_heads}"
            )
    return tuple(reasons)


class UNetOutline(nn.Module, UNet2DConditionLoadersMixin):  # type: ignore[misc]
    """What diffusers' IP-Adapter loader sees of a UNet: named cross-attention processors and their widths."""

    def __init__(self, spec: AdapterSpec, dtype: torch.dtype) -> None:
        super().__init__()
        widths = list(dict.fromkeys(spec.site_dims))
        if len(widths) > _MOST_WIDTHS:
            raise ValueError(f"{len(widths)} widths of attention layers; diffusers' UNets have one digit of blocks")
        self.dtype, self.device = dtype, torch.device("cpu")
        self.config = SimpleNamespace(
            cross_attention_dim=spec.cross_attention_dim, block_out_channels=widths, encoder_hid_dim_type=None
        )
        self.encoder_hid_proj: Any = None
        self.attn_processors: dict[str, Any] = {
            f"down_blocks.{widths.index(dim)}.attentions.{site}.transformer_blocks.0.attn2.processor": AttnProcessor2_0()
            for site, dim in enumerate(spec.site_dims)
        }

    def _load_ip_adapter_loras(self, state_dicts: object) -> dict[str, object]:
        """None: a LoRA is no part of what is compared, and diffusers warns of it where peft is missing."""
        return {}

    def set_attn_processor(self, processors: dict[str, Any]) -> None:
        self.attn_processors = processors


class _Pipeline(IPAdapterMixin):  # type: ignore[misc]
    """A pipeline that has a UNet and nothing else."""

    def __init__(self, unet: UNetOutline) -> None:
        self.unet = unet


def load_in_diffusers(path: Path, adapter: IPAdapter) -> UNetOutline:
    """Read an adapter file with diffusers' `load_ip_adapter`, at its default settings.

    Raises:
        RuntimeError, ValueError, LookupError, TypeError, AttributeError: diffusers cannot.
    """
    unet = UNetOutline(adapter.spec, next(adapter.parameters()).dtype)
    _Pipeline(unet).load_ip_adapter(str(path.parent), subfolder="", weight_name=path.name, image_encoder_folder=None)
    return unet


@torch.no_grad()
def _unet_difference(path: Path, adapter: IPAdapter) -> float:
    """Largest difference of tokens and of one attention layer of every width, in parts of the largest value."""
    unet = load_in_diffusers(path, adapter)
    features = random_features(adapter.spec)
    tokens = image_tokens(adapter, features)
    theirs = _their_tokens(adapter.spec, as_float(unet.encoder_hid_proj), features)
    worst = relative_difference(theirs[0][:, 0], tokens)
    seen: set[int] = set()
    for site, processor in enumerate(unet.attn_processors.values()):
        ours = adapter.site(site)
        weights = ((processor.to_k_ip[0], ours.to_k_ip), (processor.to_v_ip[0], ours.to_v_ip))
        if not all(torch.equal(given.weight, wanted.weight) for given, wanted in weights):
            return 1.0
        if adapter.spec.site_dims[site] not in seen:
            seen.add(adapter.spec.site_dims[site])
            worst = max(worst, _attention_difference(adapter, site, processor, tokens, theirs))
    return worst


def _their_tokens(spec: AdapterSpec, projection: Any, features: Mapping[str, Tensor]) -> Any:
    """One (B, 1, N, C)."""
    if spec.face is not None and spec.reads_pictures:  # which its users have to tell it
        (layer,) = projection.image_projection_layers
        layer.clip_embeds, layer.shortcut = features[FEATURES][None], bool(spec.face.has_shortcut)
    read = features[FEATURES] if spec.face is None else features[IDENTITY]
    return projection([read[:, None]])


def _attention_difference(adapter: IPAdapter, site: int, processor: Any, tokens: Tensor, theirs: Any) -> float:
    dim, text_dim = adapter.spec.site_dims[site], adapter.spec.cross_attention_dim
    heads = 8 if dim % 8 == 0 else 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(site)
        attn = Attention(dim, cross_attention_dim=text_dim, heads=heads, dim_head=dim // heads)
        hidden, text = torch.randn(2, 5, dim), torch.randn(2, 7, text_dim)
    expected = as_float(processor)(attn, hidden, (text, theirs))
    projections, query = as_float(adapter.site(site)), attn.to_q(hidden)  # (B, L, dim)
    k, v = (_heads(projection(tokens), heads) for projection in (projections.to_k_ip, projections.to_v_ip))
    image = image_attention(query, k, v, _attend)
    plain = _attend(*(_heads(x, heads) for x in (query, attn.to_k(text), attn.to_v(text))))
    return relative_difference(expected, attn.to_out[0](add_image_attention(plain, image)))


def _conventions(spec: AdapterSpec, preprocess: Preprocess | None) -> tuple[str, ...]:
    """What diffusers' pipelines do with a reference that this adapter was not trained with."""
    reasons = []
    if spec.face is not None:
        return (*_of_faces(spec), *_of_pictures(spec, preprocess))
    usual = Feature.IMAGE_EMBEDS if spec.projection is Projection.LINEAR else Feature.HIDDEN_STATES
    if spec.feature is not usual:
        reasons.append(f"diffusers gives it {_words(usual)}, it reads {_words(spec.feature)}")
    elif usual is Feature.HIDDEN_STATES and spec.layer != PENULTIMATE:
        reasons.append(f"diffusers gives it hidden state {PENULTIMATE}, it reads {spec.layer}")
    negative = _USUAL_NEGATIVE.get((spec.layout, spec.projection), spec.negative)
    if spec.negative is not negative:
        reasons.append(f"diffusers' negative is {_words(negative)}, it was trained with {_words(spec.negative)}")
    return (*reasons, *_of_pictures(spec, preprocess))


def _of_pictures(spec: AdapterSpec, preprocess: Preprocess | None) -> tuple[str, ...]:
    reasons = []
    encoders, crop = _USUAL_PICTURES.get(spec.layout, _EVERYWHERE)
    if preprocess is not None and preprocess.encoder_kind != encoders:
        reasons.append(f"diffusers' pipelines read {encoders} encoders, it reads {preprocess.encoder_kind}")
    if preprocess is not None and preprocess.crop != crop:
        reasons.append(f"diffusers {_CUTS[crop]}, it was trained with crop {preprocess.crop!r}")
    return tuple(reasons)


def _of_faces(spec: AdapterSpec) -> tuple[str, ...]:
    """diffusers finds no faces: `ip_adapter_image_embeds` has what `docs/formats.md` says, and the rest is told."""
    if not spec.reads_pictures:
        return ()
    assert spec.face is not None
    return (
        "diffusers has to be told the face's picture: clip_embeds of unet.encoder_hid_proj.image_projection_layers[0], "
        f"and its shortcut = {bool(spec.face.has_shortcut)}",
    )


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def _heads(x: Tensor, heads: int) -> Tensor:
    return x.reshape(*x.shape[:-1], heads, -1).transpose(1, 2)


_COMPARED: Mapping[str, Callable[[Path, IPAdapter], float]] = {
    USUAL_LAYOUT: _unet_difference,
    XLABS: flux_difference,
    INSTANTX_SD3: sd3_difference,
}
"""By layout: reads a file with diffusers and gives the largest difference."""


def _words(value: Feature | Negative) -> str:
    return str(value.value).replace("_", " ")
