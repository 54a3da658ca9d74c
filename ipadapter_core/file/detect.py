"""Recognise an adapter by its tensors: names and shapes, never the file's name.

Tables run from specific to broad. A new family is one row here, one projection class if it needs one, and one test.
Shapes follow the published files of tencent-ailab/IP-Adapter, ostris, InstantX, XLabs and Kwai-Kolors.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace

from ..errors import UnknownCheckpointError, UnreadableFileError, UnsupportedFamilyError
from ..face.lora_file import has_lora
from .anima import ANIMA_ADAPTERS, published_facts
from .flux import FLUX_ADAPTERS
from .names import canonical_name
from .perceiver import read_resampler
from .sd3 import SD3_ADAPTERS
from .shapes import inconsistent, matrix, tokens_of
from .signatures import FOREIGN, UNSUPPORTED, Shapes, Signature, dim_of
from .spec import (
    AdapterSpec,
    EncoderHint,
    FaceSpec,
    Feature,
    Negative,
    Projection,
    ResamplerSpec,
    stated_spec,
    with_metadata,
)
from .studio import STUDIO_ADAPTERS

__all__ = ["BASE_NAMES", "canonical_name", "detect", "face_crop_size"]

BASE_NAMES = {768: "SD1.5", 1024: "SD2.x", 2048: "SDXL"}
_SITE_KEY = re.compile(r"ip_adapter\.(\d+)\.to_([kv])_ip\.weight")
_ARCFACE_DIM = 512
# Aligned face pictures in pixels, by the width of the base model's text tokens; the usual size elsewhere.
_CROP_SIZES = {768: 224, 2048: 256}
_USUAL_CROP = 224
_KOLORS_ENCODER = EncoderHint(image_size=336)
_KOLORS_CROP = 336
_ONLY_V2 = 2048  # text width of the base for which FaceID-Plus was published as v2 alone
_LARGEST_SIDE = 2**24  # of a tensor
_TRANSFORMERS = (*FLUX_ADAPTERS, *SD3_ADAPTERS, *ANIMA_ADAPTERS, *STUDIO_ADAPTERS)
_LORA_MARKS = ("lora", "hada_w1")


def detect(shapes: Shapes, metadata: Mapping[str, str]) -> AdapterSpec:
    """What adapter these tensors are.

    Args:
        shapes: shape of every tensor under its flat name, canonical or published.
        metadata: the safetensors metadata; completes what shapes cannot show (head size, layer, negative convention).

    Raises:
        UnsupportedFamilyError: an IP-Adapter of a kind that does not run here yet.
        UnknownCheckpointError: no IP-Adapter.
        UnreadableFileError: an IP-Adapter with tensors missing or at odds with each other.
    """
    stated = stated_spec(metadata)
    shapes = {canonical_name(name): shape for name, shape in shapes.items()}
    if "projection" not in stated:  # a file that states its projection is ours, whatever its dimensions look like
        for signature in UNSUPPORTED:
            if signature.matches(shapes):
                raise _unsupported(signature)
    for signature, read in (*_TRANSFORMERS, *_PROJECTIONS):
        if signature.matches(shapes):
            _check_sizes(shapes)
            return with_metadata(read(shapes, published_facts(metadata) | stated), metadata)
    raise _unknown(shapes)


def _read_linear(shapes: Shapes, _stated: Mapping[str, object]) -> AdapterSpec:
    _, image_dim = matrix(shapes, "image_proj.proj.weight")
    num_tokens, dim = tokens_of(shapes, "image_proj.proj.weight")
    kind = {(768, 1024): "base or light", (768, 1280): "vit-G", (2048, 1024): "vit-H", (2048, 1280): "bigG"}
    return _spec(
        shapes,
        kind.get((dim, image_dim), "base"),
        projection=Projection.LINEAR,
        feature=Feature.IMAGE_EMBEDS,
        negative=Negative.ZERO_FEATURES,
        image_dim=image_dim,
        num_tokens=num_tokens,
    )


def _read_resampler(shapes: Shapes, stated: Mapping[str, object]) -> AdapterSpec:
    resampler, image_dim = read_resampler(shapes, stated, "image_proj", dim_of(shapes, "image_proj.latents", 1))
    spec = _spec(
        shapes,
        "plus (also plus-face and composition)",
        projection=Projection.RESAMPLER,
        feature=Feature.HIDDEN_STATES,
        negative=Negative.ZERO_PIXELS,
        image_dim=image_dim,
        num_tokens=resampler.num_queries + resampler.num_mean_pooled,
        resampler=resampler,
    )
    reads_identity = image_dim == _ARCFACE_DIM if "projection" not in stated else stated.get("feature") == "identity"
    if not reads_identity:
        return spec
    return replace(
        spec,
        family=f"{spec.base} FaceID portrait-unnorm (InstantID's has the same tensors)",
        feature=Feature.IDENTITY,
        negative=Negative.ZERO_FEATURES,
        face=FaceSpec(
            identity_dim=image_dim,
            crop_size=face_crop_size(spec.cross_attention_dim),
            token_dim=spec.cross_attention_dim,
            is_normed=False,
        ),
    )


def _read_kolors_plus(shapes: Shapes, stated: Mapping[str, object]) -> AdapterSpec:
    spec = _read_resampler(shapes, stated)
    if stated.get("base", "Kolors") != "Kolors":
        return spec
    return replace(spec, family="Kolors plus", base="Kolors", encoder=_KOLORS_ENCODER)


def _read_identity(shapes: Shapes, _stated: Mapping[str, object]) -> AdapterSpec:
    face, num_tokens = _identity(shapes)
    spec = _spec(
        shapes,
        "FaceID" if has_lora(shapes) else "FaceID portrait",
        projection=Projection.IDENTITY,
        feature=Feature.IDENTITY,
        negative=Negative.ZERO_FEATURES,
        image_dim=face.identity_dim,
        num_tokens=num_tokens,
    )
    return replace(spec, face=face)


def _read_identity_and_face(shapes: Shapes, stated: Mapping[str, object]) -> AdapterSpec:
    face, num_tokens = _identity(shapes)
    resampler, image_dim = read_resampler(shapes, stated, "image_proj.perceiver_resampler", num_tokens)
    spec = _spec(
        shapes,
        "FaceID-Plus",
        projection=Projection.IDENTITY_AND_FACE,
        feature=Feature.HIDDEN_STATES,
        negative=Negative.ZERO_PIXELS,
        image_dim=image_dim,
        num_tokens=num_tokens,
        resampler=resampler,
    )
    if face.token_dim != spec.cross_attention_dim:
        kolors = replace(face, crop_size=_KOLORS_CROP, has_shortcut=True)
        return replace(spec, family="Kolors FaceID", base="Kolors", encoder=_KOLORS_ENCODER, face=kolors)
    if face.token_dim == _ONLY_V2:
        return replace(spec, family=f"{spec.base} FaceID-Plus v2", face=replace(face, has_shortcut=True))
    return replace(spec, face=face)


def _identity(shapes: Shapes) -> tuple[FaceSpec, int]:
    """What the MLP over a face's embedding reads, and the number of tokens it makes."""
    hidden_dim, identity_dim = matrix(shapes, "image_proj.proj.0.weight")
    num_tokens, token_dim = tokens_of(shapes, "image_proj.proj.2.weight")
    face = FaceSpec(
        identity_dim=identity_dim, crop_size=face_crop_size(token_dim), token_dim=token_dim, hidden_dim=hidden_dim
    )
    return face, num_tokens


def face_crop_size(token_dim: int) -> int:
    """Side in pixels of the aligned face pictures that adapters with tokens of this width read."""
    return _CROP_SIZES.get(token_dim, _USUAL_CROP)


def _read_mlp(shapes: Shapes, _stated: Mapping[str, object]) -> AdapterSpec:
    return _spec(
        shapes,
        "full-face",
        projection=Projection.MLP,
        feature=Feature.HIDDEN_STATES,
        negative=Negative.ZERO_PIXELS,
        image_dim=matrix(shapes, "image_proj.proj.0.weight")[1],
        num_tokens=None,
    )


_PROJECTIONS: tuple[tuple[Signature, Callable[[Shapes, Mapping[str, object]], AdapterSpec]], ...] = (
    (
        Signature(
            "identity and face",
            (
                "image_proj.proj.0.weight",
                "image_proj.proj.2.weight",
                "image_proj.norm.weight",
                "image_proj.perceiver_resampler.proj_in.weight",
                "image_proj.perceiver_resampler.layers.0.0.to_q.weight",
                "image_proj.perceiver_resampler.layers.0.1.1.weight",
            ),
        ),
        _read_identity_and_face,
    ),
    (
        Signature(
            "identity",
            ("image_proj.proj.0.weight", "image_proj.proj.2.weight", "image_proj.norm.weight"),
            lacks=("image_proj.proj.3.weight",),
        ),
        _read_identity,
    ),
    (
        Signature(
            "Kolors plus",
            ("image_proj.layers.0.1.1.weight",),
            dims=(
                ("image_proj.latents", 2, 2048),
                ("image_proj.layers.0.0.to_q.weight", 0, 768),
                ("image_proj.proj_in.weight", 1, 1024),
            ),
        ),
        _read_kolors_plus,
    ),
    (
        Signature(
            "resampler",
            (
                "image_proj.latents",
                "image_proj.proj_in.weight",
                "image_proj.layers.0.0.to_q.weight",
                "image_proj.layers.0.1.1.weight",
            ),
        ),
        _read_resampler,
    ),
    (Signature("full", ("image_proj.proj.0.weight", "image_proj.proj.3.weight")), _read_mlp),
    (Signature("linear", ("image_proj.proj.weight", "image_proj.norm.weight")), _read_linear),
)


def _spec(
    shapes: Shapes,
    kind: str,
    *,
    projection: Projection,
    feature: Feature,
    negative: Negative,
    image_dim: int,
    num_tokens: int | None,
    resampler: ResamplerSpec | None = None,
) -> AdapterSpec:
    site_dims, dim = _sites(shapes)
    base = BASE_NAMES.get(dim, f"a base with {dim}-wide text tokens")
    return AdapterSpec(
        family=f"{base} {kind}",
        base=base,
        projection=projection,
        feature=feature,
        negative=negative,
        image_dim=image_dim,
        cross_attention_dim=dim,
        num_tokens=num_tokens,
        site_dims=site_dims,
        resampler=resampler,
    )


def _sites(shapes: Shapes) -> tuple[tuple[int, ...], int]:
    """Channels of each site in checkpoint order, and the common width of the image tokens."""
    found: dict[str, dict[int, tuple[int, ...]]] = {"k": {}, "v": {}}
    for name in shapes:
        if match := _SITE_KEY.fullmatch(name):
            found[match[2]][int(match[1])] = matrix(shapes, name)
    if not found["k"]:
        raise UnreadableFileError(
            "the file has image_proj but no ip_adapter.N.to_k_ip tensors (the well-known empty conversion of an "
            "accelerate state)",
            expected="image_proj and ip_adapter together",
            action="convert the training state again with a tool that keeps adapter_modules",
        )
    expected = set(range(1, 2 * len(found["k"]), 2))
    for numbers in (found["k"], found["v"]):
        if gap := expected.symmetric_difference(numbers):
            raise inconsistent(f"ip_adapter numbers do not run 1, 3, 5 …: {sorted(gap)[:4]} missing or extra")
    dims = {shape[1] for shape in (*found["k"].values(), *found["v"].values())}
    if len(dims) != 1:
        raise inconsistent(f"to_k_ip and to_v_ip expect image tokens of different widths: {sorted(dims)}")
    return tuple(found["k"][number][0] for number in sorted(expected)), dims.pop()


def _check_sizes(shapes: Shapes) -> None:
    for name, shape in shapes.items():
        if not all(0 < size <= _LARGEST_SIDE for size in shape):
            raise inconsistent(f"{name} has shape {list(shape)}")


def _unsupported(signature: Signature) -> UnsupportedFamilyError:
    others = " or ".join(other.name for other, _ in _TRANSFORMERS)
    return UnsupportedFamilyError(
        f"this is {signature.name}: not supported yet{f' ({signature.known})' if signature.known else ''}",
        expected=f"an SD1.5, SDXL or Kolors adapter (base, plus, plus-face, composition, full-face, FaceID), or {others}",
        action=signature.action or "choose such an adapter, or use the nodes made for this one",
    )


def _unknown(shapes: Shapes) -> UnknownCheckpointError:
    expected = "an IP-Adapter (tensors image_proj.* and ip_adapter.*)"
    for signature, action in FOREIGN:
        if signature.matches(shapes):
            return UnknownCheckpointError(
                f"this is {signature.name}, not an IP-Adapter", expected=expected, action=action
            )
    if any(mark in name.lower() for name in shapes for mark in _LORA_MARKS):
        return UnknownCheckpointError(
            "this is a LoRA, not an IP-Adapter", expected=expected, action="move it to models/loras"
        )
    names = ", ".join(sorted(shapes)[:5]) or "no tensors at all"
    return UnknownCheckpointError(
        f"an unknown file whose first tensors are {names}",
        expected=expected,
        action="check that this is the adapter's weight file; report it with this message if it is",
    )
