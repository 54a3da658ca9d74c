"""Small image encoders: transformers folders of every kind, and single files of the sizes ComfyUI knows."""

import json
import math
import struct
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file

WIDTH, LAYERS, HEADS, EMBED_DIM = 24, 3, 2, 20
IMAGE_SIZE, PATCH = 28, 14
_TEXT = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 9,
}


def _small(**more: Any) -> dict[str, Any]:
    return {
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "image_size": IMAGE_SIZE,
        "patch_size": PATCH,
        **more,
    }


def _clip() -> Any:
    return transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**_small(projection_dim=EMBED_DIM)))


def _whole_clip() -> Any:
    config = transformers.CLIPConfig(text_config=_TEXT, vision_config=_small(), projection_dim=EMBED_DIM)
    return transformers.CLIPModel(config)


def _siglip() -> Any:
    return transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**_small()))


def _whole_siglip() -> Any:
    config = transformers.SiglipConfig(text_config=_TEXT, vision_config=_small())
    return transformers.SiglipModel(config)


def _siglip2() -> Any:
    options = _small(num_patches=4)
    del options["image_size"]
    return transformers.Siglip2VisionModel(transformers.Siglip2VisionConfig(**options))


def _dinov2() -> Any:
    return transformers.Dinov2Model(transformers.Dinov2Config(**_small()))


def _dinov3() -> Any:
    return transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**_small()))


FOLDERS = {
    "clip": _clip,
    "whole_clip": _whole_clip,
    "siglip": _siglip,
    "whole_siglip": _whole_siglip,
    "siglip2": _siglip2,
    "dinov2": _dinov2,
    "dinov3": _dinov3,
}


def write_folder(kind: str, folder: Path, seed: int = 0) -> Any:
    """Write an encoder folder and return the transformers model in it."""
    torch.manual_seed(seed)
    model = FOLDERS[kind]().eval()
    with torch.no_grad():
        for parameter in model.parameters():  # some kinds start with zeros, which would hide mistakes
            parameter.copy_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder)
    return model


def write_siglip_folder(folder: Path, patch: int) -> Any:
    """A SigLIP folder with patches of so many pixels."""
    torch.manual_seed(0)
    config = transformers.SiglipVisionConfig(**_small(image_size=2 * patch) | {"patch_size": patch})
    model = transformers.SiglipVisionModel(config).eval()
    model.save_pretrained(folder)
    return model


def write_single_file(
    path: Path, width: int, layers: int, embed_dim: int, patch: int = 14, image_size: int = 224
) -> None:
    """A header with the names and shapes of a CLIP vision file; its data is a hole in the file, read as zeros."""
    with torch.device("meta"):
        config = transformers.CLIPVisionConfig(
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=16,
            image_size=image_size,
            patch_size=patch,
            projection_dim=embed_dim,
        )
        model = transformers.CLIPVisionModelWithProjection(config)
    write_sparse(path, {name: tuple(value.shape) for name, value in published_names(model).items()})


def published_names(model: Any) -> dict[str, torch.Tensor]:
    """State under the names the published files have (`vision_model.` in front)."""
    state = model.state_dict()
    names = (name if name.startswith(("vision_model.", "visual_")) else f"vision_model.{name}" for name in state)
    return dict(zip(names, state.values(), strict=True))


def write_sparse(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """A float16 safetensors file of any size that takes no room on disk."""
    header, offset = {}, 0
    for name, shape in shapes.items():
        size = 2 * math.prod(shape)
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + offset)


def write_comfy_clip_l(path: Path) -> Any:
    """A whole CLIP ViT-L/14 with random weights, as ComfyUI loads it from one file; returns the transformers one."""
    config = transformers.CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=224,
        patch_size=14,
        projection_dim=768,
        hidden_act="quick_gelu",
    )
    with torch.device("meta"):
        model = transformers.CLIPVisionModelWithProjection(config).eval()
    _fill(model.to_empty(device="cpu"))
    save_file({name: value.half().contiguous() for name, value in published_names(model).items()}, path)
    return model


@torch.no_grad()
def _fill(model: torch.nn.Module) -> None:
    """Random weights for a large model: one draw, turned on for each of them, as drawing 300 million takes seconds."""
    drawn = torch.randn(1_000_003, generator=torch.Generator().manual_seed(0))
    for number, (name, parameter) in enumerate(model.named_parameters()):
        if parameter.ndim == 1:
            parameter.fill_(float("norm" in name and name.endswith("weight")))
            continue
        repeated = drawn.roll(number * 7919).repeat(-(-parameter.numel() // len(drawn)))
        parameter.copy_(0.02 * repeated[: parameter.numel()].view(parameter.shape))
    for name, buffer in model.named_buffers():
        assert name.endswith("position_ids")
        buffer.copy_(torch.arange(buffer.shape[-1]))


COMFY_KINDS = {"clip": "clip_vision_model", "siglip": "siglip_vision_model", "dinov2": "dinov2"}
_COMFY_EPSILON = 1e-5  # of ComfyUI's SigLIP, whose published ones have 1e-6; but not of its pooling head


def comfy_pair(kind: str, path: Path) -> tuple[Any, Any]:
    """A tiny encoder as ComfyUI's own class, as if loaded from a file, and as transformers'; the file has all of it."""
    from comfy.clip_vision import ClipVisionModel

    torch.manual_seed(0)
    if kind == "dinov2":  # older versions of ComfyUI's take no other size
        reference: Any = transformers.Dinov2Model(transformers.Dinov2Config(**_small(image_size=518)))
    else:
        reference = FOLDERS[kind]()
    reference.eval().requires_grad_(False)
    for parameter in reference.parameters():
        parameter.copy_((torch.randn_like(parameter) * 0.2).half())  # ComfyUI may keep them in 16 bits
    for name, module in reference.named_modules():
        if isinstance(module, torch.nn.LayerNorm) and kind == "siglip" and "head" not in name:
            module.eps = _COMFY_EPSILON
    tensors = published_names(reference)
    if kind == "dinov2":  # which transformers calls otherwise by now, but saves as published
        reference.save_pretrained(path.parent / kind)
        tensors = load_file(path.parent / kind / "model.safetensors")
    save_file({name: value.contiguous() for name, value in tensors.items()}, path)
    config = reference.config.to_dict() | {"model_type": COMFY_KINDS[kind]}
    if kind == "siglip":
        config |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    place = path.with_suffix(".json")  # older versions read a file
    place.write_text(json.dumps(config))
    comfy = ClipVisionModel(str(place))
    missing, _ = comfy.load_sd(dict(tensors))
    assert not missing, missing
    return comfy, reference


def write_siglip_file(path: Path, width: int = 128, side: int = 2, with_head: bool = True) -> Any:
    """A whole SigLIP vision model as a single file; returns the transformers one."""
    torch.manual_seed(0)
    settings = _small(hidden_size=width, intermediate_size=2 * width, num_attention_heads=width // 64)
    config = transformers.SiglipVisionConfig(**settings | {"image_size": side * PATCH, "vision_use_head": with_head})
    model = transformers.SiglipVisionModel(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.copy_(torch.randn_like(parameter) * 0.1)
    save_file({name: value.contiguous() for name, value in published_names(model).items()}, path)
    return model


def write_comfy_siglip(path: Path) -> Any:
    """A whole SigLIP so400m-384 with random weights, as ComfyUI loads it from one file; returns the transformers one."""
    torch.manual_seed(0)
    config = transformers.SiglipVisionConfig(
        hidden_size=1152,
        intermediate_size=4304,
        num_hidden_layers=27,
        num_attention_heads=16,
        image_size=384,
        patch_size=14,
    )
    model = transformers.SiglipVisionModel(config).half().float().eval()
    save_file({name: value.half().contiguous() for name, value in published_names(model).items()}, path)
    return model
