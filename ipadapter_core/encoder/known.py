"""Image encoders as facts: recognised by safetensors header or `config.json`."""

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import UnreadableFileError
from ..file.container import ADAPTER_SUFFIXES, SAFETENSORS_SUFFIXES, read_header, read_json, read_tensors
from ..file.signatures import Shapes
from ..file.spec import Feature
from ..numbers import is_whole


@dataclass(frozen=True, kw_only=True)
class EncoderSpec:
    """An image encoder in numbers.

    Attributes:
        kind: "CLIP", "SigLIP", "SigLIP 2 NaFlex", "DINOv2", "DINOv3" or "PE-Core".
        width: channels of its hidden states.
        num_layers: transformer layers.
        embed_dim: width of its pooled `image_embeds`; None if it has none.
        patch_size: side of a patch in pixels; None where its tensors do not tell.
        image_size: side of the square its patches cover in pixels, where learned positions fix it.
    """

    kind: str
    width: int
    num_layers: int
    embed_dim: int | None
    image_size: int | None = None
    patch_size: int | None = field(default=None, compare=False)  # copies are equal where one does not tell

    @property
    def name(self) -> str:
        return COMMON_NAMES.get((self.kind, self.width, self.num_layers, self.image_size)) or COMMON_NAMES.get(
            (self.kind, self.width, self.num_layers, None),
            f"{self.kind} of width {self.width}, {self.num_layers} layers",
        )

    def dim(self, feature: Feature) -> int | None:
        """Width of what the encoder gives for a feature; None if it does not give it."""
        if feature is Feature.IDENTITY or (self.kind == PE_CORE and feature is not Feature.LAST_HIDDEN_STATE):
            return None
        return self.embed_dim if feature is Feature.IMAGE_EMBEDS else self.width


PE_CORE = "PE-Core"
COMMON_NAMES: dict[tuple[str, int, int, int | None], str] = {
    ("CLIP", 1280, 32, None): "CLIP ViT-H/14 (CLIP-ViT-H-14-laion2B-s32B-b79K)",
    ("CLIP", 1664, 48, None): "CLIP ViT-bigG/14 (CLIP-ViT-bigG-14-laion2B-39B-b160k)",
    ("CLIP", 1024, 24, None): "CLIP ViT-L/14 (openai/clip-vit-large-patch14)",
    ("CLIP", 1024, 24, 336): "CLIP ViT-L/14-336 (openai/clip-vit-large-patch14-336)",
    ("CLIP", 768, 12, None): "CLIP ViT-B",
    ("SigLIP", 1152, 27, None): "SigLIP so400m (siglip-so400m-patch14-384)",
    ("SigLIP", 768, 12, None): "SigLIP base",
    ("SigLIP", 768, 12, 512): "SigLIP 2 base (siglip2-base-patch16-512)",
    ("DINOv2", 1024, 24, None): "DINOv2 large",
    ("DINOv2", 1536, 40, None): "DINOv2 giant",
    ("DINOv3", 1280, 32, None): "DINOv3 ViT-H",
    ("PE-Core", 1024, 24, None): "PE-Core L (PE-Core-L14-336)",
}
# model_type of a transformers config.json, or of its vision_config
MODEL_TYPES = {
    "clip_vision_model": "CLIP",
    "siglip_vision_model": "SigLIP",
    "siglip2_vision_model": "SigLIP 2 NaFlex",
    "dinov2": "DINOv2",
    "dinov2_with_registers": "DINOv2",
    "dinov3_vit": "DINOv3",
}
_PROGRAMS = ("auto_map", "quantization_config")  # of a config.json: code of the folder; packages that quantise
# How it is computed and what a call gives: not the folder's business.
_IGNORED = (
    *("attn_implementation", "_attn_implementation", "_attn_implementation_internal", "attn_implementation_internal"),
    *("return_dict", "use_return_dict", "torchscript", "output_attentions", "output_hidden_states", "pruned_heads"),
)
FILE_KIND = "image encoder"  # in messages
WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"  # of a folder; of one with shards
PICKLED_PREFIX = "state_dict."
_LARGEST_NUMBER = 2**17  # of a config: no encoder is as wide, deep or sharp
# of Meta's PE-Core, whole and its vision alone, and of timm's: what no other has, positions and their rank, patches, class
# token, layers
_PE_NAMES = (
    *(
        (
            {f"{part}attn_pool.probe"},
            f"{part}positional_embedding",
            2,
            f"{part}conv1.weight",
            f"{part}class_embedding",
            rf"{part}transformer\.resblocks",
        )
        for part in ("visual.", "")
    ),
    ({"attn_pool.latent", "norm_pre.weight"}, "pos_embed", 3, "patch_embed.proj.weight", "cls_token", "blocks"),
)
_DINOV2_PATCH, _DINOV3_PATCH = "embeddings.patch_embeddings.projection.weight", "embeddings.patch_embeddings.weight"
_FLAT_PATCHES, _SQUARE_PATCHES = 2, 4  # rank of a patch embedding's weight
# What transformers assumes for what a config leaves out; published SigLIP folders leave out nearly everything.
_SMALL = {"hidden_size": 768, "num_hidden_layers": 12, "image_size": 224, "patch_size": 16}
CONFIG_DEFAULTS: dict[str, dict[str, int]] = {
    "clip_vision_model": {**_SMALL, "patch_size": 32, "projection_dim": 512},
    "siglip_vision_model": _SMALL,
    "siglip2_vision_model": _SMALL,
    "dinov2": _SMALL,
    "dinov2_with_registers": _SMALL,
    "dinov3_vit": {**_SMALL, "hidden_size": 384},
}
_VISION_PARTS = {
    "clip": "clip_vision_model",
    "siglip": "siglip_vision_model",
    "siglip2": "siglip2_vision_model",
}


def read_encoder_file(path: Path, *, is_whole: bool = False) -> EncoderSpec | None:
    """What encoder a file holds, of safetensors from the header alone; None if it holds none that is known.

    Args:
        is_whole: the data must be there as well, as far as the file's size tells.

    Raises:
        UnreadableFileError: it cannot be read, or is damaged.
    """
    if path.suffix in SAFETENSORS_SUFFIXES:
        entries = read_header(path, FILE_KIND, is_whole=is_whole)
        sizes = {name: entry.get("shape") for name, entry in entries.items()}
        return encoder_from_shapes(
            {name: tuple(int(size) for size in shape) for name, shape in sizes.items() if isinstance(shape, list)}
        )
    if path.suffix not in ADAPTER_SUFFIXES:
        return None
    tensors = read_tensors(path, FILE_KIND).tensors
    return encoder_from_shapes({name.removeprefix(PICKLED_PREFIX): tuple(x.shape) for name, x in tensors.items()})


def encoder_from_shapes(shapes: Shapes) -> EncoderSpec | None:
    """What encoder these tensors are (transformers, open_clip and DINO names)."""
    if "vision_model.embeddings.position_embedding.weight" in shapes:
        positions, width = _sizes(shapes, "vision_model.embeddings.position_embedding.weight", 2)
        patch = shapes.get("vision_model.embeddings.patch_embedding.weight", ())
        is_clip = "vision_model.embeddings.class_embedding" in shapes
        # of CLIP's projection, or of what SigLIP's pooling head makes
        pooled = shapes.get("visual_projection.weight") or shapes.get("vision_model.head.mlp.fc2.weight")
        return EncoderSpec(
            kind="CLIP" if is_clip else "SigLIP 2 NaFlex" if len(patch) == _FLAT_PATCHES else "SigLIP",
            width=width,
            num_layers=_num_layers(shapes, r"vision_model\.encoder\.layers\.(\d+)\."),
            embed_dim=pooled[0] if pooled else None,
            image_size=_image_size(positions - is_clip, patch),
            patch_size=_patch_size(patch),
        )
    for marks, name, rank, patches, class_token, layers in _PE_NAMES:
        if shapes.keys() >= {*marks, name}:
            positions, width = _sizes(shapes, name, rank)[-2:]
            patch = shapes.get(patches, ())
            return EncoderSpec(
                kind=PE_CORE,
                width=width,
                num_layers=_num_layers(shapes, rf"{layers}\.(\d+)\."),
                embed_dim=None,
                image_size=_image_size(positions - (class_token in shapes), patch),
                patch_size=_patch_size(patch),
            )
    if "visual.positional_embedding" in shapes and "visual.transformer.resblocks.0.attn.in_proj_weight" in shapes:
        positions, width = _sizes(shapes, "visual.positional_embedding", 2)
        return EncoderSpec(
            kind="CLIP",
            width=width,
            num_layers=_num_layers(shapes, r"visual\.transformer\.resblocks\.(\d+)\."),
            embed_dim=_sizes(shapes, "visual.proj", 2)[1] if "visual.proj" in shapes else None,
            image_size=_image_size(positions - 1, shapes.get("visual.conv1.weight", ())),
            patch_size=_patch_size(shapes.get("visual.conv1.weight", ())),
        )
    for kind, pattern, mark, patches in (
        ("DINOv2", r"encoder\.layer\.(\d+)\.", "encoder.layer.0.layer_scale1.lambda1", _DINOV2_PATCH),
        ("DINOv3", r"(?:model\.)?layer\.(\d+)\.", "layer.0.norm1.weight", _DINOV3_PATCH),
        ("DINOv3", r"(?:model\.)?layer\.(\d+)\.", "model.layer.0.norm1.weight", _DINOV3_PATCH),
    ):
        if mark in shapes:
            (width,) = _sizes(shapes, mark, 1)
            return EncoderSpec(
                kind=kind,
                width=width,
                num_layers=_num_layers(shapes, pattern),
                embed_dim=width,
                patch_size=_patch_size(shapes.get(patches, ())),
            )
    return None


def read_encoder_folder(folder: Path) -> EncoderSpec:
    """What encoder a folder in transformers layout holds, from `config.json`.

    Raises:
        UnreadableFileError: no readable config, no vision model in it, or no usable safetensors beside it.
    """
    encoder = describe_encoder_folder(folder)
    weights = folder_weights(folder)
    if not weights:
        raise UnreadableFileError(
            f"{folder.name} has a config.json but no safetensors file",
            expected=f"config.json and {WEIGHTS}",
            action="put the weights beside the config (pickled weights are not loaded)",
        )
    for file in weights:
        read_header(file, FILE_KIND, is_whole=True)
    return encoder


def folder_weights(folder: Path) -> list[Path]:
    """The safetensors files of a folder that transformers reads: one file, or the shards of its index."""
    if os.path.lexists(folder / WEIGHTS):
        return [folder / WEIGHTS]
    if not os.path.lexists(folder / WEIGHTS_INDEX):
        return sorted(folder.glob("*.safetensors"))
    index = read_json(folder / WEIGHTS_INDEX, FILE_KIND)
    places = index.get("weight_map") if isinstance(index, dict) else None
    names = list(places.values()) if isinstance(places, dict) else []
    wrong = [repr(name)[:80] for name in names if not _is_beside(name)]
    if not names or wrong:
        raise UnreadableFileError(
            f"{folder.name} has a {WEIGHTS_INDEX} that names {wrong[0] if wrong else 'no files'}",
            expected="the names of safetensors files in this folder",
            action="copy the folder again, or choose another encoder",
        )
    return [folder / name for name in sorted(set(names))]


def _is_beside(name: object) -> bool:
    """Whether an index names a file of its own folder, and nothing elsewhere."""
    return isinstance(name, str) and name.endswith(".safetensors") and not set(name) & set("/\\:\0")


def describe_encoder_folder(folder: Path) -> EncoderSpec:
    """What encoder the `config.json` of a folder describes, whatever lies beside it.

    Raises:
        UnreadableFileError: no readable config, or no vision model in it.
    """
    config = vision_config(folder)
    kind = MODEL_TYPES[str(config["model_type"])]
    width, patch = _integer(config, "hidden_size", folder), _integer(config, "patch_size", folder)
    has_fixed_size = kind in ("CLIP", "SigLIP")
    pooled = None if config.get("vision_use_head") is False else width  # said of SigLIP alone
    return EncoderSpec(
        kind=kind,
        width=width,
        num_layers=_integer(config, "num_hidden_layers", folder),
        embed_dim=_integer(config, "projection_dim", folder) if kind == "CLIP" else pooled,
        image_size=_integer(config, "image_size", folder) // patch * patch if has_fixed_size else None,
        patch_size=patch,
    )


def vision_config(folder: Path) -> dict[str, object]:
    """The vision part of a folder's `config.json`, with its `model_type` and what transformers assumes.

    Errors as `describe_encoder_folder`.
    """
    try:
        config = read_json(folder / "config.json", "config")
    except UnreadableFileError as error:
        raise _bad_folder(folder, f"a config.json that cannot be read ({error.found})") from error
    whole: dict[str, object] = config if isinstance(config, dict) else {}
    model_type, part = whole.get("model_type"), whole.get("vision_config")
    if isinstance(model_type, str) and model_type in _VISION_PARTS and isinstance(part, dict):
        # a whole CLIP states its projection_dim at the top; the vision part may carry a wrong default
        stated = {"projection_dim": whole["projection_dim"]} if "projection_dim" in whole else {}
        vision_type = _VISION_PARTS[model_type]
        return _plain(folder, {**CONFIG_DEFAULTS[vision_type], **part, **stated, "model_type": vision_type}, whole)
    if not isinstance(model_type, str) or model_type not in MODEL_TYPES:
        raise _bad_folder(folder, f"a config.json of model_type {repr(model_type)[:80]}")
    return _plain(folder, {**CONFIG_DEFAULTS[model_type], **whole}, whole)


def _plain(folder: Path, config: dict[str, object], whole: Mapping[str, object]) -> dict[str, object]:
    """What describes the network alone."""
    for name in _PROGRAMS:
        if config.get(name) or whole.get(name):
            raise _bad_folder(folder, f"a config.json with {name}, which asks for a program beside the weights")
    return {name: value for name, value in config.items() if name not in _IGNORED}


def _sizes(shapes: Shapes, name: str, rank: int) -> tuple[int, ...]:
    shape = shapes[name]
    if len(shape) != rank or 0 in shape:
        raise UnreadableFileError(
            f"an image encoder whose {name} has the shape {list(shape)}",
            expected=f"{rank} sizes" if rank > 1 else "one size",
            action="download it again, or choose another encoder",
        )
    return shape


def _image_size(num_patches: int, patch_shape: tuple[int, ...]) -> int | None:
    side = math.isqrt(max(num_patches, 0))
    return side * patch_shape[-1] if side * side == num_patches and len(patch_shape) == _SQUARE_PATCHES else None


def _patch_size(patch_shape: tuple[int, ...]) -> int | None:
    return patch_shape[-1] if len(patch_shape) == _SQUARE_PATCHES else None


def _num_layers(shapes: Shapes, pattern: str) -> int:
    return 1 + max((int(match[1]) for name in shapes if (match := re.match(pattern, name))), default=-1)


def _integer(config: Mapping[str, object], name: str, folder: Path) -> int:
    value = config.get(name)
    if not is_whole(value) or not 1 <= value <= _LARGEST_NUMBER:
        raise _bad_folder(folder, f"a config.json whose {name} is {repr(value)[:80]}")
    return value


def _bad_folder(folder: Path, what: str) -> UnreadableFileError:
    return UnreadableFileError(
        f"{folder.name} has {what}",
        expected=f"a transformers vision model: {', '.join(MODEL_TYPES)}",
        action="choose another encoder, or copy the folder again",
    )
