"""What InvokeAI reads of an adapter file, by its own code, in which files of every kind here were loaded.

That was its commit 8e71a8a (August 2026, Apache-2.0): tokens, keys and values of what it loads were those of the core, and
what is named here it refused, or no widget of it offers.
"""

from collections.abc import Iterator

from ipadapter_core.file.names import USUAL_LAYOUT, XLABS
from ipadapter_core.file.spec import PENULTIMATE, AdapterSpec, Negative, Projection, ResamplerSpec

from .facts import Preprocess

_TOKENS = 4  # it reads the number of a FLUX file alone
_TEXT = (768, 1024, 2048)  # widths by which it knows SD1.5, SD2.x and SDXL
_HEADS = {768: 12, 2048: 20}  # of the resampler of a plus adapter
_DEPTH, _HEAD_DIM, _FF_FACTOR = 4, 64, 4
_POOLED, _HIDDEN = {1024, 1280, 768}, {1280, 1664, 1024}  # widths of CLIP ViT-H, ViT-G and ViT-L, which it offers
_POOLED_L = 768  # the one for FLUX
_PIXELS = 224
_NEGATIVES = {
    (USUAL_LAYOUT, Projection.LINEAR): Negative.ZERO_FEATURES,
    (USUAL_LAYOUT, Projection.RESAMPLER): Negative.ZERO_PIXELS,
    (USUAL_LAYOUT, Projection.MLP): Negative.ZERO_PIXELS,
    (XLABS, Projection.LINEAR): Negative.BLACK_PICTURE,
}


def invokeai_reasons(spec: AdapterSpec, preprocess: Preprocess | None) -> tuple[str, ...]:
    """What keeps InvokeAI from giving the nodes' pictures; empty if nothing is known to.

    Args:
        preprocess: how references are prepared; None if nobody knows, then nothing is said about it.
    """
    if spec.face is not None:
        return ("it reads no adapters for faces",)
    if (spec.layout, spec.projection) not in _NEGATIVES:
        of_flux = " and base ones for FLUX.1" if spec.layout != USUAL_LAYOUT else ""
        return (f"it reads adapters for UNets{of_flux}, this is {spec.family}",)
    return (*_weights(spec), *_pictures(spec, preprocess))


def _weights(spec: AdapterSpec) -> Iterator[str]:
    if spec.layout == XLABS:
        return
    width = spec.cross_attention_dim
    if width not in _TEXT:
        yield f"it knows bases with text tokens {', '.join(map(str, _TEXT))} wide, these are {width} wide"
    elif spec.resampler is not None and width not in _HEADS:
        yield "it reads plus adapters for SD1.5 and SDXL"
    elif spec.resampler is not None:
        yield from _resampler(spec.resampler, _HEADS[width])
    if spec.projection is Projection.LINEAR and spec.num_tokens != _TOKENS:
        yield f"it reads {_TOKENS} image tokens, it has {spec.num_tokens}"


def _resampler(given: ResamplerSpec, heads: int) -> Iterator[str]:
    wanted = (_DEPTH, heads, _HEAD_DIM, _FF_FACTOR * given.dim)
    found = (given.depth, given.num_heads, given.head_dim, given.ff_dim)
    if found != wanted or given.max_positions is not None or given.num_mean_pooled:
        yield (
            f"it reads a resampler of {_DEPTH} layers with {heads} heads of {_HEAD_DIM}, it has {given.depth} with "
            f"{given.num_heads} of {given.head_dim}"
        )


def _pictures(spec: AdapterSpec, preprocess: Preprocess | None) -> Iterator[str]:
    pooled = {_POOLED_L} if spec.layout == XLABS else _POOLED
    is_linear = spec.projection is Projection.LINEAR
    if spec.image_dim not in (pooled if is_linear else _HIDDEN):
        offered = "CLIP ViT-L" if spec.layout == XLABS else "CLIP ViT-H, ViT-G and ViT-L"
        yield f"it offers {offered}, this reads features {spec.image_dim} wide"
    if not is_linear and spec.layer != PENULTIMATE:
        yield f"it gives it hidden state {PENULTIMATE}, it reads {spec.layer}"
    negative = _NEGATIVES[spec.layout, spec.projection]
    if spec.negative is not negative:
        yield f"its negative is {_words(negative)}, it was trained with {_words(spec.negative)}"
    if preprocess is None:
        return
    if preprocess.encoder_kind != "CLIP":
        yield f"it reads CLIP encoders, this was trained with {preprocess.encoder_kind}"
    if preprocess.crop != "center" or preprocess.size != _PIXELS:
        yield (
            f"it crops references to their center of {_PIXELS} pixels, it was trained with crop {preprocess.crop!r} of "
            f"{preprocess.size}"
        )


def _words(value: Negative) -> str:
    return value.value.replace("_", " ")
