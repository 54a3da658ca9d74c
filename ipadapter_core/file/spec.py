"""`AdapterSpec`: everything the rest of the project needs to know about an adapter file, read once at load."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from enum import Enum
from typing import Any

from ..errors import UnreadableFileError
from ..numbers import is_whole
from .json_text import parse_json
from .names import USUAL_LAYOUT

SPEC_KEY = "ipadapter.spec"
DEFAULT_HEAD_DIM = 64
PENULTIMATE = -2
_DEEPEST_LAYER = -1000
_LARGEST_PICTURE = 2**16  # pixels of a side
USUAL_BACKBONE = "UNet"
CROPS = ("center", "pad", "stretch")  # how a picture becomes the encoder's square; see `encoder.pixels.encoder_pixels`
PADDINGS = ("mean", "black")  # what fills the short sides with crop "pad": the encoder's mean colour, or black


class Projection(str, Enum):
    """How image features become image tokens."""

    LINEAR = "linear"
    TWO_LAYERS = "two_layers"
    RESAMPLER = "resampler"
    MLP = "mlp"
    PATCHES = "patches"
    PERCEIVER = "perceiver"
    IDENTITY = "identity"
    IDENTITY_AND_FACE = "identity_and_face"
    TIMED_RESAMPLER = "timed_resampler"


class Feature(str, Enum):
    """What the projection reads: an output of the image encoder, or the embedding of a face."""

    IMAGE_EMBEDS = "image_embeds"
    HIDDEN_STATES = "hidden_states"
    LAST_HIDDEN_STATE = "last_hidden_state"  # after the encoder's last norm, where it has one
    IDENTITY = "identity"


class Negative(str, Enum):
    """What stands for "no image" on the uncond side, as the adapter was trained; its pixels: `encoder.pixels.no_image_pixels`."""

    ZERO_FEATURES = "zero_features"
    ZERO_PIXELS = "zero_pixels"
    BLACK_PICTURE = "black_picture"
    SAME_PICTURE = "same_picture"  # both sides see the reference
    NOISE = "noise"


@dataclass(frozen=True, kw_only=True)
class ResamplerSpec:
    """Dimensions of a perceiver resampler (tencent-ailab/IP-Adapter, ip_adapter/resampler.py).

    Attributes:
        time_dim: numbers a timestep is written with, where the resampler reads it as well; else None.
    """

    dim: int
    depth: int
    num_heads: int
    head_dim: int
    ff_dim: int
    num_queries: int
    max_positions: int | None = None
    num_mean_pooled: int = 0
    time_dim: int | None = None


@dataclass(frozen=True, kw_only=True)
class FaceSpec:
    """What a FaceID adapter reads of a face.

    Attributes:
        identity_dim: width of the recognition network's embedding (ArcFace: 512).
        hidden_dim: hidden units of the MLP that reads it; None where a resampler does.
        is_normed: the embedding is scaled to length 1; portrait-unnorm reads it as the network gives it.
        crop_size: side in pixels of the aligned face picture.
        token_dim: width of the tokens the projection makes. Kolors FaceID's are wider than what its K/V projections
            read: the model itself narrows them (`encoder_hid_proj`).
        has_shortcut: FaceID-Plus: v2 adds the identity's tokens to what the resampler makes, v1 does not. None where
            neither tensors nor metadata tell.
    """

    identity_dim: int
    crop_size: int
    token_dim: int
    hidden_dim: int | None = None
    is_normed: bool = True
    has_shortcut: bool | None = None


@dataclass(frozen=True, kw_only=True)
class EncoderHint:
    """What is known of an adapter's image encoder and how pictures are cut for it; None: nothing says so.

    Attributes:
        name: of its file or folder.
        kind: as `encoder.known.EncoderSpec.kind`; None where a width tells enough.
        image_size: side of its input in pixels; learned positions are interpolated where they cover another.
        crop, padding: names of CROPS and PADDINGS.
    """

    name: str | None = None
    kind: str | None = None
    image_size: int | None = None
    crop: str | None = None
    padding: str | None = None


@dataclass(frozen=True, kw_only=True)
class AdapterSpec:
    """An adapter file in numbers.

    Attributes:
        family: name shown to the user, such as "SDXL plus".
        base: the base model in words, such as "SDXL".
        backbone: the kind of base model, a name of `backbone.registry.BACKBONES`.
        image_dim: width E of what the projection reads (`feature`).
        cross_attention_dim: width C of the base model's text tokens and of the image tokens.
        num_tokens: image tokens N per reference; None where every feature position gives one (full-face).
        site_dims: channels of each attention site, in checkpoint order (of a UNet: down, up, middle).
        layer: index of the hidden state read when `feature` is HIDDEN_STATES, counted from the last (-1); -2 is usual.
        face: what it reads of a face; None for adapters that read pictures.
        layout: whose names and arithmetic the file has; see `names` and `Backbone.layouts`.
        head_dim: size of an attention head, where the adapter's own weights are about heads; else 0.
        hidden_dim: hidden units of a projection of two layers; else None.
        parts: what its projection has that others of its kind lack.
        no_image: shape of the tokens its file has for "no image"; empty if it has none.
        second_attentions: blocks of the base in which the picture attends to itself once more (SD3.5-Medium), which are
            no sites; 0 also where nothing says so.
    """

    family: str
    base: str
    projection: Projection
    feature: Feature
    image_dim: int
    cross_attention_dim: int
    num_tokens: int | None
    site_dims: tuple[int, ...]
    negative: Negative
    resampler: ResamplerSpec | None = None
    layer: int = PENULTIMATE
    backbone: str = USUAL_BACKBONE
    encoder: EncoderHint = EncoderHint()
    face: FaceSpec | None = None
    layout: str = USUAL_LAYOUT
    head_dim: int = 0
    hidden_dim: int | None = None
    parts: tuple[str, ...] = ()
    no_image: tuple[int, ...] = ()
    second_attentions: int = 0

    @property
    def num_sites(self) -> int:
        return len(self.site_dims)

    @property
    def token_dim(self) -> int:
        """Width of the tokens that `image_proj` makes."""
        return self.face.token_dim if self.face else self.cross_attention_dim

    @property
    def is_timed(self) -> bool:
        """Whether its tokens change with the noise level, so that what is encoded beforehand are features alone."""
        return self.projection is Projection.TIMED_RESAMPLER

    @property
    def reads_pictures(self) -> bool:
        """Whether it needs an image encoder; FaceID-Plus does, beside the face's embedding."""
        return self.feature is not Feature.IDENTITY

    def to_metadata(self) -> dict[str, str]:
        """The spec as safetensors metadata; `with_metadata` reads it back."""
        return {SPEC_KEY: json.dumps(asdict(self), sort_keys=True)}


def stated_spec(metadata: Mapping[str, str]) -> dict[str, object]:
    """The JSON object a file's metadata holds under `ipadapter.spec`; empty if there is none.

    Raises:
        UnreadableFileError: the entry is not a JSON object.
    """
    text = metadata.get(SPEC_KEY)
    if text is None:
        return {}
    try:
        stated = parse_json(text)
    except ValueError as error:
        raise _bad_metadata(f"metadata {SPEC_KEY} is not JSON ({error})") from error
    if not isinstance(stated, dict):
        raise _bad_metadata(f"metadata {SPEC_KEY} is a {type(stated).__name__}")
    return stated


def with_metadata(spec: AdapterSpec, metadata: Mapping[str, str]) -> AdapterSpec:
    """Complete a spec read from tensors by what only metadata can tell: layer, negative, feature, backbone, encoder,
    FaceID-Plus version.

    Dimensions come from the tensors alone; the head size, which no shape shows, is read at detection.

    Raises:
        UnreadableFileError: the metadata has a value outside its range.
    """
    stated = stated_spec(metadata)
    if not stated:
        return spec
    layer, encoder = stated.get("layer", spec.layer), stated.get("encoder", {})
    if not is_whole(layer) or not _DEEPEST_LAYER <= layer < 0:
        raise _bad_metadata(
            f"metadata {SPEC_KEY} has layer {layer!r}, not a negative number counted from the last layer"
        )
    backbone = stated.get("backbone", spec.backbone)
    if not isinstance(backbone, str):
        raise _bad_metadata(f"metadata {SPEC_KEY} has backbone {backbone!r}, not a name")
    if not isinstance(encoder, dict):
        raise _bad_metadata(f"metadata {SPEC_KEY} has encoder {encoder!r}, not an object")
    try:
        feature = Feature(stated.get("feature", spec.feature))
        negative = Negative(stated.get("negative", spec.negative))
    except ValueError as error:
        raise _bad_metadata(f"metadata {SPEC_KEY} has a value nobody knows ({error})") from error
    if feature is not spec.feature:
        raise _bad_metadata(f"metadata {SPEC_KEY} has feature {feature.value}, which {spec.family} does not read")
    hint = _stated_hint(spec.encoder, encoder)
    face = _stated_face(spec.face, stated.get("face")) if spec.face else None
    head_dim = stated.get("head_dim", spec.head_dim) if spec.head_dim else 0
    if not is_whole(head_dim) or (spec.head_dim and (head_dim < 1 or any(dim % head_dim for dim in spec.site_dims))):
        raise _bad_metadata(f"metadata {SPEC_KEY} has head_dim {head_dim!r}, which does not divide {spec.site_dims[0]}")
    return replace(spec, negative=negative, layer=layer, backbone=backbone, encoder=hint, face=face, head_dim=head_dim)


def _stated_hint(hint: EncoderHint, stated: Mapping[str, object]) -> EncoderHint:
    """The hint of the adapter's kind, where the metadata says nothing else."""
    said: dict[str, Any] = {
        field.name: stated[field.name] for field in fields(hint) if stated.get(field.name) is not None
    }
    image_size = said.get("image_size", 1)
    is_size = is_whole(image_size) and 0 < image_size <= _LARGEST_PICTURE
    if not is_size or not isinstance(said.get("name", ""), str) or not isinstance(said.get("kind", ""), str):
        raise _bad_metadata(f"metadata {SPEC_KEY} has encoder {stated!r}, not a name and an image_size")
    for name, known in (("crop", CROPS), ("padding", PADDINGS)):
        if said.get(name, known[0]) not in known:
            raise _bad_metadata(f"metadata {SPEC_KEY} has {name} {said[name]!r}, none of {', '.join(known)}")
    return replace(hint, **said)


def _stated_face(face: FaceSpec, stated: object) -> FaceSpec:
    has_shortcut = stated.get("has_shortcut") if isinstance(stated, dict) else stated
    if not isinstance(has_shortcut, bool | None):
        raise _bad_metadata(
            f"metadata {SPEC_KEY} has face {stated!r}, not an object whose has_shortcut is true or false"
        )
    return face if has_shortcut is None else replace(face, has_shortcut=has_shortcut)


def _bad_metadata(found: str) -> UnreadableFileError:
    return UnreadableFileError(
        found,
        expected="a JSON object as docs/formats.md describes it",
        action="export the adapter again, or remove the metadata entry",
    )
