"""`VisionEncoder`: an image encoder as the nodes use it, and the making of one from ComfyUI's CLIP_VISION."""

import hashlib
import uuid
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, cast

import comfy.clip_vision
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.utils
import torch
from torch import Tensor
from torch.func import functional_call

from ...ipadapter_core.encoder.known import FILE_KIND, EncoderSpec
from ...ipadapter_core.encoder.pixels import PixelFormat
from ...ipadapter_core.encoder.resolution import input_size, interpolated
from ...ipadapter_core.encoder.siglip import read_pooling_head
from ...ipadapter_core.errors import BadInputError, UnreadableFileError
from ...ipadapter_core.file.container import check_file, read_tensors
from ...ipadapter_core.file.spec import Feature
from ...ipadapter_core.file.strangers import strangers
from ..paths import fingerprint

_KINDS = {"clip_vision_model": "CLIP", "siglip_vision_model": "SigLIP", "dinov2": "DINOv2", "dinov3": "DINOv3"}
_LEARNED_POSITIONS = {
    "CLIP": "vision_model.embeddings.position_embedding.weight",
    "SigLIP": "vision_model.embeddings.position_embedding.weight",
    "DINOv2": "embeddings.position_embeddings",
}
_CLASS_TOKENS = {"CLIP": 1, "SigLIP": 0, "DINOv2": 1}
_HEAD = "pooling_head"  # what a SigLIP's pooling head is called among the parts of ComfyUI's model, which lacks it
# (width, layers) that comfy.clip_vision.load builds; another size would be built wrongly or not at all
_COMFY_SIZES = {
    "CLIP": ((1664, 48), (1280, 32), (1024, 24)),
    "SigLIP": ((1152, 27),),
    "DINOv2": ((1536, 40), (1024, 24)),
    "DINOv3": ((1280, 32),),
}
_COMFY_PIXELS = {"SigLIP": (27 * 14, 512)}  # that the patches of those it builds cover
# in what ComfyUI's models give
_PLACES = {Feature.LAST_HIDDEN_STATE: 0, Feature.HIDDEN_STATES: 1, Feature.IMAGE_EMBEDS: 2}


class Reading(Protocol):
    """What of an encoder is read; an adapter's spec says so."""

    @property
    def feature(self) -> Feature: ...

    @property
    def layer(self) -> int: ...


@dataclass(frozen=True, eq=False)
class VisionEncoder:
    """An image encoder under ComfyUI's memory management.

    Attributes:
        name: for messages.
        identity: changes when the weights may have changed; part of cache keys.
        pixel_format: what `encode` expects.
        run: normalised pixels (B, 3, S, S) on `patcher.load_device`, and what is read, to those features.
        clip_vision: ComfyUI's own object, where it is made of one.
        origin: the same encoder at its own resolution, where this is at another.
    """

    name: str
    identity: str
    spec: EncoderSpec
    pixel_format: PixelFormat
    patcher: comfy.model_patcher.ModelPatcher
    run: Callable[[Tensor, Reading], Tensor]
    clip_vision: comfy.clip_vision.ClipVisionModel | None = None
    origin: "VisionEncoder | None" = None

    def at(self, size: int | None) -> "VisionEncoder":
        """This encoder for square pictures of `size` pixels, of the same weights; None is its own size.

        Raises:
            BadInputError: a size it cannot read.
        """
        origin = self.origin or self
        size = input_size(origin.spec, origin.pixel_format.size, size)
        if size == origin.pixel_format.size:
            return origin
        return replace(origin, pixel_format=replace(origin.pixel_format, size=size), origin=origin)

    def encode(self, pixels: Tensor, adapter: Reading) -> Tensor:
        """Features that are read, (B, E) or (B, S, E), float32 on the CPU."""
        comfy.model_management.load_models_gpu([self.patcher])
        return self.run(pixels.to(self.patcher.load_device), adapter).float().cpu()


# Of loaded models; by object, as those are not told from which file they come.
_identities: "weakref.WeakKeyDictionary[Any, str]" = weakref.WeakKeyDictionary()
_WHOLE, _SAMPLES = 2**16, 2**12  # numbers of a tensor up to which all are read, and how many of a larger one are


def comfyui_loads(spec: EncoderSpec) -> bool:
    """Whether this ComfyUI's own loader knows an encoder of this kind and size as a single file."""
    known = {_KINDS.get(model_type) for model_type in comfy.clip_vision.IMAGE_ENCODERS}
    is_covered = spec.image_size in _COMFY_PIXELS.get(spec.kind, (spec.image_size,))
    return is_covered and spec.kind in known and (spec.width, spec.num_layers) in _COMFY_SIZES.get(spec.kind, ())


def identity_of(model: Any) -> str:
    """What `remember` was told of a model, else a name for this object that no later object gets."""
    return _identities.setdefault(model, uuid.uuid4().hex)


def remember(model: Any, identity: str) -> None:
    """Let a model have this identity for as long as it lives."""
    _identities[model] = identity


def from_clip_vision(
    clip_vision: comfy.clip_vision.ClipVisionModel, name: str = "clip_vision", identity: str | None = None
) -> VisionEncoder:
    """Wrap what ComfyUI's own loader gives.

    Args:
        identity: of the file it comes from; None where that is not known, and its weights tell it from others.

    Raises:
        BadInputError: a NaFlex encoder, whose ComfyUI form takes no square picture.
    """
    config = clip_vision.config
    kind = _KINDS.get(clip_vision.model_type)
    if kind is None:
        raise BadInputError(
            f"a {clip_vision.model_type} as single file",
            expected="CLIP, SigLIP, DINOv2 or DINOv3",
            action="use the encoder's transformers folder (config.json and safetensors) in Load IP-Adapter",
        )
    width, patch, head = config["hidden_size"], config["patch_size"], getattr(clip_vision.model, _HEAD, None)
    pooled = width if head is not None or kind.startswith("DINO") else None

    def run(pixels: Tensor, adapter: Reading) -> Tensor:
        positions = _positions(clip_vision.model, kind, pixels.shape[-1] // patch)
        arguments = {"pixel_values": pixels, "intermediate_output": adapter.layer}
        model = clip_vision.model
        out = functional_call(model, positions, (), arguments) if positions else model(**arguments)
        if head is not None and adapter.feature is Feature.IMAGE_EMBEDS:
            return cast(Tensor, head(out[0]))
        features: Tensor | None = out[_PLACES[adapter.feature]]
        if features is None:
            raise BadInputError(
                f"{name}, a {kind} of which ComfyUI gives the last hidden state alone",
                expected=f"hidden states (layer {adapter.layer})",
                action="use the encoder's transformers folder (config.json and safetensors) in Load IP-Adapter",
            )
        return features

    return VisionEncoder(
        name=name,
        identity=_identity(clip_vision, identity),
        spec=EncoderSpec(
            kind=kind,
            width=width,
            num_layers=config["num_hidden_layers"],
            embed_dim=config.get("projection_dim", pooled),
            image_size=clip_vision.image_size // patch * patch if kind in ("CLIP", "SigLIP") else None,
            patch_size=patch,
        ),
        pixel_format=PixelFormat.of(clip_vision.image_size, clip_vision.image_mean, clip_vision.image_std),
        patcher=clip_vision.patcher,
        run=run,
        clip_vision=clip_vision,
    )


def load_encoder_file(path: Path) -> VisionEncoder:
    """Load a single-file encoder with ComfyUI's own loader.

    Raises:
        UnreadableFileError: ComfyUI does not know it as an image encoder.
    """
    identity = fingerprint([path])  # before it is read: what replaces it meanwhile is another
    check_file(path, FILE_KIND)
    with strangers(lambda why: _unusable(path, why)):
        clip_vision = comfy.clip_vision.load(str(path))
    if clip_vision is None:
        raise UnreadableFileError(
            f"{path.name}, which ComfyUI does not recognise as an image encoder",
            expected="a CLIP vision, SigLIP or DINO file of a usual size",
            action="use its transformers folder (config.json and safetensors), or choose another encoder",
        )
    if clip_vision.model_type == "siglip_vision_model":
        with strangers(lambda why: _unusable(path, why)):
            _add_head(clip_vision, path)
    return from_clip_vision(clip_vision, path.name, identity)


def _add_head(clip_vision: comfy.clip_vision.ClipVisionModel, path: Path) -> None:
    """Make a file's pooling head a part of the model that ComfyUI made of the rest, so that it moves with it."""
    tensors = read_tensors(path, FILE_KIND, can_map=not comfy.utils.DISABLE_MMAP).tensors
    head = read_pooling_head(tensors, clip_vision.config["num_attention_heads"], comfy.ops.manual_cast)
    if head is not None:
        clip_vision.model.add_module(_HEAD, head)


def _positions(model: Any, kind: str, side: int) -> dict[str, Tensor]:
    """Learned positions for `side` x `side` patches in place of the model's own, which stay; none if they fit."""
    name = _LEARNED_POSITIONS.get(kind)
    if name is None:
        return {}
    table: Tensor = model.get_parameter(name)
    rows, num_extra = table.detach().flatten(0, -2), _CLASS_TOKENS[kind]
    if len(rows) == side**2 + num_extra:
        return {}
    return {name: interpolated(rows, side, num_extra).reshape(*table.shape[:-2], -1, table.shape[-1])}


def _unusable(path: Path, why: str) -> UnreadableFileError:
    return UnreadableFileError(
        f"{path.name} is no usable image encoder file: ComfyUI cannot load it ({why})",
        expected="a complete image encoder file",
        action="download it again and compare its size with the source, or choose another encoder",
    )


def _identity(clip_vision: comfy.clip_vision.ClipVisionModel, of_file: str | None) -> str:
    model, patcher = clip_vision.model, clip_vision.patcher
    if of_file is not None:
        remember(model, of_file)
    elif model not in _identities:
        remember(model, _content_identity(clip_vision))
    # a clone with weight patches has the same model
    return f"{identity_of(model)} {patcher.patches_uuid}" if patcher.patches else identity_of(model)


def _content_identity(clip_vision: comfy.clip_vision.ClipVisionModel) -> str:
    """Told from other encoders by its configuration and its weights: small tensors whole, samples of large ones.

    ComfyUI's loader does not say which file it read, and hashing a whole encoder takes longer than using it. Training
    and merging change every tensor, so that samples tell.
    """
    digest = hashlib.blake2b(repr(sorted(clip_vision.config.items())).encode(), digest_size=16)
    for name, tensor in clip_vision.model.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        numbers = tensor.detach().reshape(-1)
        if numbers.numel() > _WHOLE:
            numbers = numbers[:: numbers.numel() // _SAMPLES | 1]  # odd: not the same few columns of every row
        digest.update(numbers.cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
