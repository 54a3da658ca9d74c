"""Image encoders by transformers: CLIP, SigLIP, SigLIP 2, DINOv2 and DINOv3 of any size from a folder in its layout,
SigLIP from a single file too.

Nodes and trainer read features through this file, so that an adapter sees the same in use as in training. transformers
itself is handed in by the caller: this package stands without it.
"""

# B pictures, S input size or feature positions, E feature width

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import torch
from torch import Tensor

from ..errors import UnreadableFileError
from ..file.container import read_json, read_tensors
from ..file.spec import Feature
from ..file.strangers import strangers
from .known import (
    FILE_KIND,
    PE_CORE,
    EncoderSpec,
    encoder_from_shapes,
    folder_weights,
    read_encoder_folder,
    vision_config,
)
from .pixels import PixelFormat
from .siglip import siglip_config, vision_tensors

_NAFLEX = "siglip2_vision_model"
_CLASSES = {
    "clip_vision_model": "CLIPVisionModelWithProjection",
    "siglip_vision_model": "SiglipVisionModel",
    _NAFLEX: "Siglip2VisionModel",
    "dinov2": "Dinov2Model",
    "dinov2_with_registers": "Dinov2WithRegistersModel",
    "dinov3_vit": "DINOv3ViTModel",
}
_INTERPOLATING = ("CLIP", "SigLIP")  # if told to; the others do it by themselves
_DINO_SIZE = 224  # pixels
CLIP_STATISTICS = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
_HALF_STATISTICS = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_IMAGENET_STATISTICS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_DEFAULT_STATISTICS = {
    "clip": CLIP_STATISTICS,
    "siglip": _HALF_STATISTICS,
    "siglip2": _HALF_STATISTICS,
    "dinov2": _IMAGENET_STATISTICS,
    "dinov3": _IMAGENET_STATISTICS,
}


@dataclass(frozen=True, eq=False)
class VisionFolder:
    """A vision model of transformers, or PE-Core of timm, with what an adapter needs to know about it.

    Attributes:
        pixel_format: what `features` expects.
    """

    model: Any
    spec: EncoderSpec
    pixel_format: PixelFormat

    def features(self, pixels: Tensor, feature: Feature, layer: int) -> Tensor:
        """Normalised pixels (B, 3, S, S) on the model's device to pooled embeds (B, E) or a hidden state (B, S, E)."""
        pixels = pixels.to(next(self.model.parameters()).dtype)
        if self.spec.kind == PE_CORE:  # one of timm
            return cast(Tensor, self.model.forward_features(pixels))
        is_naflex = self.spec.kind == "SigLIP 2 NaFlex"
        inputs: dict[str, Any] = {"pixel_values": pixels}
        if is_naflex:
            inputs = _naflex_inputs(pixels, self.model.config.patch_size)
        elif self.spec.kind in _INTERPOLATING and pixels.shape[-1] != self.pixel_format.size:
            inputs["interpolate_pos_encoding"] = True
        if feature is Feature.IMAGE_EMBEDS:
            out = self.model(**inputs)
            return cast(Tensor, out.image_embeds if self.spec.kind == "CLIP" else out.pooler_output)
        if feature is Feature.LAST_HIDDEN_STATE:
            return cast(Tensor, self.model(**inputs).last_hidden_state)
        return cast(Tensor, self.model(**inputs, output_hidden_states=True).hidden_states[layer])


def load_vision_folder(folder: Path, transformers: ModuleType) -> VisionFolder:
    """Load a vision model in transformers layout, from local files only, running no code from the folder.

    Args:
        folder: config.json, safetensors and perhaps preprocessor_config.json.
        transformers: the library.

    Raises:
        UnreadableFileError: not such a folder, or weights that do not fit its config.
    """
    spec = read_encoder_folder(folder)
    config = dict(vision_config(folder))
    # looked up by name: an older transformers lacks the newer ones
    model_class = getattr(transformers, _CLASSES[str(config["model_type"])], None)
    if model_class is None:
        raise _bad_weights(folder, f"transformers {transformers.__version__} does not know {config['model_type']}")
    tensors = _folder_tensors(folder)
    with strangers(lambda why: _bad_weights(folder, why)):
        settings = model_class.config_class.from_dict(config)
    pixel_format = read_pixel_format(folder, settings)
    return VisionFolder(_build(folder, model_class, settings, tensors, pixel_format.size), spec, pixel_format)


def load_siglip_file(path: Path, transformers: ModuleType) -> VisionFolder:
    """Load a SigLIP vision model from a single file, whose shapes `can_build_siglip`.

    Raises:
        UnreadableFileError: tensors that are not those of such a model.
    """
    tensors = vision_tensors(read_tensors(path, FILE_KIND).tensors)
    with strangers(lambda why: _bad_weights(path, why)):
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        spec = encoder_from_shapes(shapes)
        assert spec is not None  # it was recognised by these shapes
        model_class = transformers.SiglipVisionModel
        settings = model_class.config_class.from_dict(siglip_config(spec, shapes))
        pixel_format = file_pixel_format(spec)
    return VisionFolder(_build(path, model_class, settings, tensors, pixel_format.size), spec, pixel_format)


def _build(path: Path, model_class: Any, settings: Any, tensors: Mapping[str, Tensor], size: int) -> Any:
    """The model of these weights, for pictures of a size, in the form it was saved in."""
    with strangers(lambda why: _bad_weights(path, why)):
        _check_fit(path, model_class, settings, tensors, size)
        # handed over, not looked for: a folder may lead transformers to other files, folders and packages
        model, report = model_class.from_pretrained(
            None,
            config=settings,
            state_dict=tensors,
            local_files_only=True,
            trust_remote_code=False,
            torch_dtype="auto",
            output_loading_info=True,
        )
        model = model.eval().requires_grad_(False)
    if report["missing_keys"]:
        raise _bad_weights(path, f"missing {', '.join(sorted(report['missing_keys'])[:3])}")
    return model


def _folder_tensors(folder: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for file in folder_weights(folder):
        part = read_tensors(file, FILE_KIND).tensors
        twice = next((name for name in part if name in tensors), None)
        if twice is not None:
            raise _bad_weights(folder, f"{twice} is in several files")
        tensors |= part
    return tensors


def _check_fit(path: Path, model_class: Any, settings: Any, tensors: Mapping[str, Tensor], size: int) -> None:
    """Make sure that the files fill all that is built, as what they lack would be made up, of any size; and that it
    reads a picture, as far as shapes tell."""
    if settings.num_hidden_layers > len(tensors):
        raise _bad_weights(path, f"{settings.num_hidden_layers} layers in the config, {len(tensors)} tensors")
    with torch.device("meta"), torch.no_grad():
        model = model_class(settings)
        wanted, held = (sum(map(Tensor.numel, part)) for part in (model.parameters(), tensors.values()))
        if wanted > held:
            raise _bad_weights(path, f"the config describes {wanted} numbers, the files hold {held}")
        if settings.model_type != _NAFLEX:  # which reads how many patches there are, so it needs numbers
            model.eval()(pixel_values=torch.empty(1, 3, size, size))


def read_pixel_format(folder: Path, config: Any) -> PixelFormat:
    """Input size by the model's config, mean and deviation by `preprocessor_config.json` or the model's kind.

    Raises:
        UnreadableFileError: a `preprocessor_config.json` that cannot be read.
    """
    preprocessor = _preprocessor(folder)
    with strangers(lambda why: _bad_preprocessor(folder, f"values that cannot be used ({why})")):
        return _pixel_format(preprocessor, config)


def _pixel_format(preprocessor: Mapping[str, Any], config: Any) -> PixelFormat:
    mean, std = _DEFAULT_STATISTICS[config.model_type.partition("_")[0]]
    size = math.isqrt(config.num_patches) * config.patch_size if hasattr(config, "num_patches") else config.image_size
    if config.model_type.startswith("dino"):  # positions are interpolated, so the processor decides
        crop = preprocessor.get("crop_size") or preprocessor.get("size") or {}
        size = crop.get("height", _DINO_SIZE) if isinstance(crop, dict) else crop
    return PixelFormat.of(size, preprocessor.get("image_mean", mean), preprocessor.get("image_std", std))


def file_pixel_format(spec: EncoderSpec) -> PixelFormat:
    """Of a single file of SigLIP or PE-Core, which has the statistics of all published ones.

    Raises:
        ValueError: a size of no encoder, or none.
    """
    return PixelFormat.of(spec.image_size or 0, *_HALF_STATISTICS)


def _preprocessor(folder: Path) -> dict[str, Any]:
    path = folder / "preprocessor_config.json"
    if not os.path.lexists(path):
        return {}
    try:
        preprocessor = read_json(path, "preprocessor")
    except UnreadableFileError as error:
        raise _bad_preprocessor(folder, f"text that is not JSON ({error.found})") from error
    if not isinstance(preprocessor, dict):
        raise _bad_preprocessor(folder, f"a {type(preprocessor).__name__}")
    return preprocessor


def _naflex_inputs(pixels: Tensor, patch: int) -> dict[str, Tensor]:
    """A square picture as the patch sequence of SigLIP 2 NaFlex."""
    batch, channels, height, width = pixels.shape
    rows, columns = height // patch, width // patch
    patches = pixels.reshape(batch, channels, rows, patch, columns, patch).permute(0, 2, 4, 3, 5, 1)
    return {
        "pixel_values": patches.reshape(batch, rows * columns, patch * patch * channels),
        "pixel_attention_mask": torch.ones(batch, rows * columns, dtype=torch.long, device=pixels.device),
        "spatial_shapes": torch.tensor([[rows, columns]] * batch, device=pixels.device),
    }


def _bad_weights(path: Path, why: str) -> UnreadableFileError:
    """Of a folder, or of a file that was saved without a config."""
    is_alone = path.is_file()
    return UnreadableFileError(
        f"{path.name}, whose weights transformers cannot load ({why})",
        expected="a complete SigLIP vision model" if is_alone else "config.json and the safetensors saved with it",
        action=f"{'download the file' if is_alone else 'copy the folder'} again, or choose another encoder",
    )


def _bad_preprocessor(folder: Path, what: str) -> UnreadableFileError:
    return UnreadableFileError(
        f"{folder.name} with a preprocessor_config.json that holds {what}",
        expected="a JSON object with image_mean, image_std and size",
        action="copy the folder again, or remove that file: the model's usual values are used then",
    )
