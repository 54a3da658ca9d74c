"""Which image encoder an adapter needs, and which of those that are there fits it."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType

from ..errors import MismatchError
from ..file.spec import AdapterSpec, Feature
from .known import COMMON_NAMES, EncoderSpec

# The encoder published adapters were trained with, by what they read and how wide it is.
USUAL_ENCODERS: dict[tuple[Feature, int], str] = {
    (Feature.IMAGE_EMBEDS, 1024): COMMON_NAMES["CLIP", 1280, 32, None] + ", width 1280, 32 layers",
    (Feature.IMAGE_EMBEDS, 1280): COMMON_NAMES["CLIP", 1664, 48, None] + ", width 1664, 48 layers",
    (Feature.IMAGE_EMBEDS, 768): COMMON_NAMES["CLIP", 1024, 24, None] + ", width 1024, 24 layers",
    (Feature.HIDDEN_STATES, 1280): COMMON_NAMES["CLIP", 1280, 32, None] + ", width 1280, 32 layers",
    (Feature.HIDDEN_STATES, 1664): COMMON_NAMES["CLIP", 1664, 48, None] + ", width 1664, 48 layers",
    (Feature.HIDDEN_STATES, 1024): COMMON_NAMES["CLIP", 1024, 24, None] + ", width 1024, 24 layers",
    (Feature.HIDDEN_STATES, 1152): COMMON_NAMES["SigLIP", 1152, 27, None] + ", width 1152, 27 layers",
}
_BY_SIZE: dict[tuple[int, int | None], str] = {
    (width, size): name for (_, width, _, size), name in COMMON_NAMES.items() if size
}
_LARGEST_PATCH = 32  # pixels


def encoder_need(spec: AdapterSpec) -> str:
    """The encoder an adapter needs, in words."""
    if not spec.reads_pictures:
        return "no image encoder: it reads a face"
    what = "pooled image_embeds" if spec.feature is Feature.IMAGE_EMBEDS else f"hidden states (layer {spec.layer})"
    named = (
        spec.encoder.name
        or _BY_SIZE.get((spec.image_dim, spec.encoder.image_size))
        or USUAL_ENCODERS.get((spec.feature, spec.image_dim))
    )
    return f"{named or 'an image encoder'}: {spec.image_dim}-wide {what}"


def fits(encoder: EncoderSpec, spec: AdapterSpec) -> bool:
    """Whether the encoder gives features of the width the adapter reads."""
    return encoder.dim(spec.feature) == spec.image_dim


def check_encoder(encoder: EncoderSpec, spec: AdapterSpec) -> None:
    """Raises MismatchError, naming both, unless the encoder fits the adapter."""
    if not fits(encoder, spec):
        given, feature = encoder.dim(spec.feature), spec.feature.value.replace("_", " ")
        raise MismatchError(
            f"{encoder.name}, which gives {given or 'no'}{'-wide' if given else ''} {feature}",
            expected=f"for {spec.family}: {encoder_need(spec)}",
            action="choose or connect that encoder, or let it be found",
        )


def choose_encoder(
    spec: AdapterSpec,
    found: Mapping[str, EncoderSpec],
    folders: Iterable[str],
    left_out: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """The one encoder among those found that fits an adapter.

    Published adapters read CLIP unless their metadata says otherwise, so CLIP goes before other kinds. Copies of one
    encoder are equal; the first name is taken.

    Args:
        found: encoders by name, in the order to prefer.
        folders: where they were looked for; for the message.
        left_out: what else lies there, and why it was not looked at; for the message.

    Raises:
        MismatchError: none fits, or several different ones do.
    """
    hint = spec.encoder
    matching = [name for name in found if fits(found[name], spec)]
    for is_better in (
        lambda name: hint.name == name.rstrip("/"),
        lambda name: _covers(found[name], hint.image_size),
        lambda name: found[name].kind == "CLIP",
    ):
        matching = [name for name in matching if is_better(name)] or matching
    if not matching:
        have = [f"{name} is {encoder.name}" for name, encoder in found.items()]
        passed_over = [f"{name} was left out: {why}" for name, why in left_out.items()]
        raise MismatchError(
            "; ".join((*have, *passed_over)) or "no image encoder at all",
            expected=f"for {spec.family}: {encoder_need(spec)}",
            action=f"put that encoder (safetensors) into {' or '.join(folders)}"
            + (", or choose one that was left out by its name" if left_out else ""),
        )
    # a file and a folder of one encoder may differ in embed_dim alone: ComfyUI's SigLIP has no pooling head
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
