"""Which image encoder an adapter needs, and which of those that are there fits it."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType

from ..errors import MismatchError
from ..file.published import way_to
from ..file.spec import AdapterSpec, EncoderHint, Feature
from .known import COMMON_NAMES, EncoderSpec

# The encoder published adapters were trained with, by what they read and how wide it is; a key of COMMON_NAMES.
_Key = tuple[str, int, int, int | None]  # of COMMON_NAMES
USUAL_ENCODERS: dict[tuple[Feature, int], _Key] = {
    (Feature.IMAGE_EMBEDS, 1024): ("CLIP", 1280, 32, None),
    (Feature.IMAGE_EMBEDS, 1280): ("CLIP", 1664, 48, None),
    (Feature.IMAGE_EMBEDS, 768): ("CLIP", 1024, 24, None),
    (Feature.IMAGE_EMBEDS, 1152): ("SigLIP", 1152, 27, None),
    (Feature.HIDDEN_STATES, 1280): ("CLIP", 1280, 32, None),
    (Feature.HIDDEN_STATES, 1664): ("CLIP", 1664, 48, None),
    (Feature.HIDDEN_STATES, 1024): ("CLIP", 1024, 24, None),
    (Feature.HIDDEN_STATES, 1152): ("SigLIP", 1152, 27, None),
    (Feature.LAST_HIDDEN_STATE, 768): ("SigLIP", 768, 12, 512),
    (Feature.LAST_HIDDEN_STATE, 1024): ("PE-Core", 1024, 24, None),
}
# Files of them, names of PUBLISHED; a pickle is not looked into, and has to be chosen by its name.
_FILES: dict[_Key, str] = {
    ("CLIP", 1280, 32, None): "CLIP-ViT-H-14-laion2B-s32B-b79K.safetensors",
    ("CLIP", 1664, 48, None): "CLIP-ViT-bigG-14-laion2B-39B-b160k.safetensors",
    ("CLIP", 1024, 24, None): "clip-vit-large-patch14.safetensors",
    ("CLIP", 1024, 24, 336): "clip-vit-large-patch14-336.bin",
    ("SigLIP", 1152, 27, None): "siglip-so400m-patch14-384.safetensors",
    ("SigLIP", 768, 12, 512): "siglip2-base-patch16-512.safetensors",
    ("PE-Core", 1024, 24, None): "PE-Core-L14-336.safetensors",
}
_LARGEST_PATCH = 32  # pixels


def encoder_need(spec: AdapterSpec) -> str:
    """The encoder an adapter needs, in words."""
    if not spec.reads_pictures:
        return "no image encoder: it reads a face"
    what = {
        Feature.IMAGE_EMBEDS: "pooled image_embeds",
        Feature.HIDDEN_STATES: f"hidden states (layer {spec.layer})",
        Feature.LAST_HIDDEN_STATE: "last hidden state",
    }[spec.feature]
    hint = spec.encoder
    of_size, usual = _key_by_size(hint, spec.image_dim), _usual_key(spec)
    named = hint.name or hint.kind or "an image encoder"
    if of_size and not hint.name:
        named = COMMON_NAMES[of_size]
    elif usual and not hint.name:
        named = f"{COMMON_NAMES[usual]}, width {usual[1]}, {usual[2]} layers"
    return f"{named}: {spec.image_dim}-wide {what}"


def way_to_encoder(spec: AdapterSpec) -> str:
    """Where the encoder that an adapter needs can be had; nothing where that is not known."""
    key = None if spec.encoder.name else _key_by_size(spec.encoder, spec.image_dim) or _usual_key(spec)
    return way_to(_FILES[key]) if key in _FILES else ""


def _key_by_size(hint: EncoderHint, image_dim: int) -> _Key | None:
    return next(
        (
            (kind, width, layers, size)
            for kind, width, layers, size in COMMON_NAMES
            if size and (width, size) == (image_dim, hint.image_size) and hint.kind in (None, kind)
        ),
        None,
    )


def _usual_key(spec: AdapterSpec) -> _Key | None:
    usual = USUAL_ENCODERS.get((spec.feature, spec.image_dim))
    return usual if usual and spec.encoder.kind in (None, usual[0]) else None


def fits(encoder: EncoderSpec, spec: AdapterSpec) -> bool:
    """Whether the encoder gives features of the width the adapter reads, and is of the kind it was trained with."""
    return encoder.dim(spec.feature) == spec.image_dim and spec.encoder.kind in (None, encoder.kind)


def check_encoder(encoder: EncoderSpec, spec: AdapterSpec) -> None:
    """Raises MismatchError, naming both, unless the encoder fits the adapter."""
    if not fits(encoder, spec):
        given, feature = encoder.dim(spec.feature), spec.feature.value.replace("_", " ")
        if _lacks_head(encoder, spec):
            raise MismatchError(
                f"{encoder.name} without its pooling head (vision_model.head.*), which makes its image embeds",
                expected=f"for {spec.family}: {encoder_need(spec)}, from a file or folder that has the head",
                action="choose such a file, or the folder as published; a CLIP_VISION never has the "
                "head: disconnect it",
            )
        raise MismatchError(
            f"{encoder.name}, which gives {given or 'no'}{'-wide' if given else ''} {feature}",
            expected=f"for {spec.family}: {encoder_need(spec)}",
            action="choose or connect that encoder, or let it be found",
        )


def _lacks_head(encoder: EncoderSpec, spec: AdapterSpec) -> bool:
    is_pooled = spec.feature is Feature.IMAGE_EMBEDS and encoder.width == spec.image_dim
    return is_pooled and encoder.kind == "SigLIP" and encoder.embed_dim is None


def choose_encoder(
    spec: AdapterSpec,
    found: Mapping[str, EncoderSpec],
    folders: Iterable[str],
    left_out: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """The one encoder among those found that fits an adapter.

    The kind that published adapters of this width read, mostly CLIP, goes before others. Copies of one
    encoder are equal; the first name is taken.

    Args:
        found: encoders by name, in the order to prefer.
        folders: where they were looked for; for the message.
        left_out: what else lies there, and why it was not looked at; for the message.

    Raises:
        MismatchError: none fits, or several different ones do.
    """
    hint = spec.encoder
    usual_kind, *_ = USUAL_ENCODERS.get((spec.feature, spec.image_dim), ("CLIP",))
    matching = [name for name in found if fits(found[name], spec)]
    for is_better in (
        lambda name: hint.name == name.rstrip("/"),
        lambda name: _covers(found[name], hint.image_size),
        lambda name: found[name].kind == usual_kind,
    ):
        matching = [name for name in matching if is_better(name)] or matching
    if not matching:
        have = [
            f"{name} is {encoder.name}" + (" without its pooling head" if _lacks_head(encoder, spec) else "")
            for name, encoder in found.items()
        ]
        passed_over = [f"{name} was left out: {why}" for name, why in left_out.items()]
        raise MismatchError(
            "; ".join((*have, *passed_over)) or "no image encoder at all",
            expected=f"for {spec.family}: {encoder_need(spec)}",
            action=f"put that encoder (safetensors) into {' or '.join(folders)}"
            + (", or choose one that was left out by its name" if left_out else ""),
            more=way_to_encoder(spec),
        )
    # a file and a folder of one encoder may differ in embed_dim alone: a file may lack SigLIP's pooling head
    different = {replace(found[name], embed_dim=None) for name in matching}
    if len(different) > 1:
        raise MismatchError(
            f"several image encoders fit {spec.family}: {', '.join(matching)}",
            expected="one",
            action="choose by its name the one the adapter was trained with",
        )
    return matching[0]


def _covers(encoder: EncoderSpec, image_size: int | None) -> bool:
    """Whether an input of this size gives these positions; the last pixels may not fill a patch."""
    if image_size is None or encoder.image_size is None:
        return False
    return 0 <= image_size - encoder.image_size < _LARGEST_PATCH
