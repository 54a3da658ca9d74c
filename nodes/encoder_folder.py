"""Image encoders from a folder in transformers layout: CLIP, SigLIP, SigLIP 2, DINOv2 and DINOv3 of any size."""

import json
import math
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.model_patcher
import torch
from torch import Tensor

from ..ipadapter_core.encoders import read_encoder_folder, vision_config
from ..ipadapter_core.errors import UnreadableFileError
from ..ipadapter_core.preprocess import PixelFormat
from ..ipadapter_core.spec import AdapterSpec, Feature
from .encoder import VisionEncoder, identity_of, triple


def load_encoder_folder(folder: Path) -> VisionEncoder:
    """Load a vision model in transformers layout, from local files only, running no code from the folder.

    Raises:
        UnreadableFileError: not such a folder, or weights that do not fit its config.
    """
    spec = read_encoder_folder(folder)
    model = _transformers_model(folder)
    # Plain transformers layers cannot cast weights on use, so ComfyUI moves the model as a whole.
    # They also own a read-only `device`, which a ModelPatcher sets: hence the module around the model.
    patcher = comfy.model_patcher.ModelPatcher(
        torch.nn.ModuleDict({"vision": model}),
        load_device=comfy.model_management.text_encoder_device(),
        offload_device=comfy.model_management.text_encoder_offload_device(),
    )
    is_naflex = spec.kind == "SigLIP 2 NaFlex"

    def run(pixels: Tensor, adapter: AdapterSpec) -> Tensor:
        pixels = pixels.to(model.dtype)
        inputs = _naflex_inputs(pixels, model.config.patch_size) if is_naflex else {"pixel_values": pixels}
        if adapter.feature is Feature.IMAGE_EMBEDS:
            out = model(**inputs)
            return out.image_embeds if spec.kind == "CLIP" else out.pooler_output
        return model(**inputs, output_hidden_states=True).hidden_states[adapter.layer]

    return VisionEncoder(
        name=f"{folder.name}/",
        identity=identity_of(model),
        spec=spec,
        pixel_format=read_pixel_format(folder, model.config),
        patcher=patcher,
        run=run,
    )


def read_pixel_format(folder: Path, config: Any) -> PixelFormat:
    """Input size by the model's config, mean and deviation by `preprocessor_config.json` or the model's kind."""
    preprocessor: dict[str, Any] = {}
    if (folder / "preprocessor_config.json").is_file():
        preprocessor = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
    mean, std = _DEFAULT_STATISTICS[config.model_type.partition("_")[0]]
    size = math.isqrt(config.num_patches) * config.patch_size if hasattr(config, "num_patches") else config.image_size
    if config.model_type.startswith("dino"):  # positions are interpolated, so the processor decides
        crop = preprocessor.get("crop_size") or preprocessor.get("size") or {}
        size = crop.get("height", _DINO_SIZE) if isinstance(crop, dict) else crop
    mean, std = preprocessor.get("image_mean", mean), preprocessor.get("image_std", std)
    return PixelFormat(int(size), triple(mean), triple(std))


_DINO_SIZE = 224
_CLIP_STATISTICS = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
_HALF_STATISTICS = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_IMAGENET_STATISTICS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_DEFAULT_STATISTICS = {
    "clip": _CLIP_STATISTICS,
    "siglip": _HALF_STATISTICS,
    "siglip2": _HALF_STATISTICS,
    "dinov2": _IMAGENET_STATISTICS,
    "dinov3": _IMAGENET_STATISTICS,
}


_CLASSES = {
    "clip_vision_model": "CLIPVisionModelWithProjection",
    "siglip_vision_model": "SiglipVisionModel",
    "siglip2_vision_model": "Siglip2VisionModel",
    "dinov2": "Dinov2Model",
    "dinov2_with_registers": "Dinov2WithRegistersModel",
    "dinov3_vit": "DINOv3ViTModel",
}


def _transformers_model(folder: Path) -> Any:
    import transformers  # slow to import, and needed for folders only

    config = dict(vision_config(folder))
    # looked up by name: an older transformers lacks the newer ones
    model_class = getattr(transformers, _CLASSES[str(config["model_type"])], None)
    if model_class is None:
        raise _bad_weights(folder, f"transformers {transformers.__version__} does not know {config['model_type']}")
    try:
        model, report = model_class.from_pretrained(
            folder,
            config=model_class.config_class.from_dict(config),
            local_files_only=True,
            use_safetensors=True,
            torch_dtype="auto",
            output_loading_info=True,
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise _bad_weights(folder, str(error)) from error
    if report["missing_keys"]:
        raise _bad_weights(folder, f"missing {', '.join(sorted(report['missing_keys'])[:3])}")
    return model.eval().requires_grad_(False)


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


def _bad_weights(folder: Path, why: str) -> UnreadableFileError:
    return UnreadableFileError(
        f"{folder.name}, whose weights transformers cannot load ({why})",
        expected="config.json and the safetensors saved with it",
        action="copy the folder again, or choose another encoder",
    )
