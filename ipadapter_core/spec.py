"""`AdapterSpec`: everything the rest of the project needs to know about an adapter file, read once at load."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from enum import Enum

from .errors import UnreadableFileError

SPEC_KEY = "ipadapter.spec"
DEFAULT_HEAD_DIM = 64
PENULTIMATE = -2
CROPS = ("center", "pad", "stretch")  # how a picture becomes the encoder's square; see `preprocess.encoder_pixels`


class Projection(str, Enum):
    """How image features become image tokens."""

    LINEAR = "linear"
    RESAMPLER = "resampler"
    MLP = "mlp"


class Feature(str, Enum):
    """Which output of the image encoder the projection reads."""

    IMAGE_EMBEDS = "image_embeds"
    HIDDEN_STATES = "hidden_states"


class Negative(str, Enum):
    """What stands for "no image" on the uncond side, as the adapter was trained."""

    ZERO_FEATURES = "zero_features"
    ZERO_PIXELS = "zero_pixels"


@dataclass(frozen=True, kw_only=True)
class ResamplerSpec:
    """Dimensions of a perceiver resampler (tencent-ailab/IP-Adapter, ip_adapter/resampler.py)."""

    dim: int
    depth: int
    num_heads: int
    head_dim: int
    ff_dim: int
    num_queries: int
    max_positions: int | None = None
    num_mean_pooled: int = 0


@dataclass(frozen=True, kw_only=True)
class EncoderHint:
    """What a file's metadata says about its image encoder and how pictures are cut for it; None: it says nothing."""

    name: str | None = None
    image_size: int | None = None
    crop: str | None = None


@dataclass(frozen=True, kw_only=True)
class AdapterSpec:
    """An adapter file in numbers.

    Attributes:
        family: name shown to the user, such as "SDXL plus".
        base: the base model in words, such as "SDXL".
        image_dim: width E of the encoder output that the projection reads.
        cross_attention_dim: width C of the base model's text tokens and of the image tokens.
        num_tokens: image tokens N per reference; None where every feature position gives one (full-face).
        site_dims: channels of each attention site, in checkpoint order (down, up, middle).
        layer: index of the hidden state read when `feature` is HIDDEN_STATES, counted from the last (-1); -2 is usual.
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
    encoder: EncoderHint = EncoderHint()

    @property
    def num_sites(self) -> int:
        return len(self.site_dims)

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
        stated = json.loads(text)
    except json.JSONDecodeError as error:
        raise _bad_metadata(f"metadata {SPEC_KEY} is not JSON ({error})") from error
    if not isinstance(stated, dict):
        raise _bad_metadata(f"metadata {SPEC_KEY} is a {type(stated).__name__}")
    return stated


def with_metadata(spec: AdapterSpec, metadata: Mapping[str, str]) -> AdapterSpec:
    """Complete a spec read from tensors by what only metadata can tell: layer, negative, feature, encoder.

    Dimensions come from the tensors alone; the head size, which no shape shows, is read at detection.

    Raises:
        UnreadableFileError: the metadata has a value outside its range.
    """
    stated = stated_spec(metadata)
    if not stated:
        return spec
    layer, encoder = stated.get("layer", spec.layer), stated.get("encoder", {})
    if not isinstance(layer, int) or layer >= 0:
        raise _bad_metadata(
            f"metadata {SPEC_KEY} has layer {layer!r}, not a negative number counted from the last layer"
        )
    if not isinstance(encoder, dict):
        raise _bad_metadata(f"metadata {SPEC_KEY} has encoder {encoder!r}, not an object")
    name, image_size = encoder.get("name"), encoder.get("image_size")
    if not isinstance(name, str | None) or not isinstance(image_size, int | None):
        raise _bad_metadata(f"metadata {SPEC_KEY} has encoder {encoder!r}, not a name and an image_size")
    try:
        feature = Feature(stated.get("feature", spec.feature))
        negative = Negative(stated.get("negative", spec.negative))
    except ValueError as error:
        raise _bad_metadata(f"metadata {SPEC_KEY} has a value nobody knows ({error})") from error
    crop = encoder.get("crop")
    if crop is not None and crop not in CROPS:
        raise _bad_metadata(f"metadata {SPEC_KEY} has crop {crop!r}, none of {', '.join(CROPS)}")
    hint = EncoderHint(name=name, image_size=image_size, crop=crop)
    return replace(spec, feature=feature, negative=negative, layer=layer, encoder=hint)


def _bad_metadata(found: str) -> UnreadableFileError:
    return UnreadableFileError(
        found,
        expected="a JSON object as docs/formats.md describes it",
        action="export the adapter again, or remove the metadata entry",
    )
