"""Files under published names that fit the tiny models of `server_packs/tiny_models`: adapters, encoders, embeds."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from support.published import (
    Shapes,
    linear,
    lora,
    norm,
    random_tensors,
    resampler,
    sites,
    tiny_adapter,
    write_safetensors,
)

SD15_SITES = (32,) * 2 + (64,) * 2 + (128,) * 5 + (64,) * 3 + (32,) * 3 + (128,)
SDXL_SITES = (64,) * 2 + (128,) * 10 + (64,) * 3 + (128,) * 2
WIDTHS = {SD15_SITES: 768, SDXL_SITES: 2048}
KOLORS_TOKEN_DIM = 64
IDENTITY, RANK = 512, 4
ENCODERS = {  # hidden size, projection
    "CLIP-ViT-H-14-laion2B-s32B-b79K": (1280, 1024),
    "CLIP-ViT-bigG-14-laion2B-39B-b160k": (1664, 1280),
    "clip-vit-large-patch14-336": (1024, 768),
}
Dims = tuple[int, ...]


def base(dims: Dims, image: int) -> Shapes:
    return tiny_adapter("base", site_dims=dims, cross_attention_dim=WIDTHS[dims], image_dim=image)


def plus(dims: Dims) -> Shapes:
    width = WIDTHS[dims]
    return tiny_adapter(
        "plus", site_dims=dims, cross_attention_dim=width, image_dim=1280, num_tokens=16, head_dim=64, heads=1
    )


def full() -> Shapes:
    return tiny_adapter("full", site_dims=SD15_SITES, cross_attention_dim=768, image_dim=1280)


def kolors_plus() -> Shapes:
    """Told from others by these sizes."""
    return resampler(dim=2048, inner=768, image=1024, out=2048, depth=1) | sites(
        SDXL_SITES, 2048, prefix="adapter_modules"
    )


def face(
    dims: Dims, *, tokens: int = 4, image: int = 0, has_lora: bool = True, width: int = 0, prefix: str = "ip_adapter"
) -> Shapes:
    """An MLP over a face's embedding; with `image`, the width of picture features, a resampler as well."""
    text = WIDTHS[dims]
    width = width or text
    proj = linear("image_proj.proj.0", 2 * IDENTITY, IDENTITY)
    proj |= linear("image_proj.proj.2", tokens * width, 2 * IDENTITY) | norm("image_proj.norm", width)
    if image:
        part = "image_proj.perceiver_resampler"
        proj |= resampler(dim=width, inner=64, image=image, out=width, queries=0, depth=1, prefix=part)
    return proj | sites(dims, text, prefix=prefix) | (lora(dims, text, rank=RANK) if has_lora else {})


def unnorm() -> Shapes:
    return resampler(dim=64, inner=64, image=IDENTITY, out=2048, depth=1) | sites(SDXL_SITES, 2048)


ADAPTERS: dict[str, Callable[[], Shapes]] = {
    "ip-adapter_sd15.safetensors": lambda: base(SD15_SITES, 1024),
    "ip-adapter_sd15_light_v11.bin": lambda: base(SD15_SITES, 1024),
    "ip-adapter_sd15_vit-G.safetensors": lambda: base(SD15_SITES, 1280),
    "ip-adapter-plus_sd15.safetensors": lambda: plus(SD15_SITES),
    "ip-adapter-plus-face_sd15.safetensors": lambda: plus(SD15_SITES),
    "ip-adapter-full-face_sd15.safetensors": full,
    "ip-adapter_sdxl.safetensors": lambda: base(SDXL_SITES, 1280),
    "ip-adapter_sdxl_vit-h.safetensors": lambda: base(SDXL_SITES, 1024),
    "ip-adapter-plus_sdxl_vit-h.safetensors": lambda: plus(SDXL_SITES),
    "ip-adapter-plus-face_sdxl_vit-h.safetensors": lambda: plus(SDXL_SITES),
    "ip_plus_composition_sd15.safetensors": lambda: plus(SD15_SITES),
    "ip_plus_composition_sdxl.safetensors": lambda: plus(SDXL_SITES),
    "ip-adapter-faceid_sd15.bin": lambda: face(SD15_SITES),
    "ip-adapter-faceid-plus_sd15.bin": lambda: face(SD15_SITES, image=1280),
    "ip-adapter-faceid-plusv2_sd15.bin": lambda: face(SD15_SITES, image=1280),
    "ip-adapter-faceid-portrait-v11_sd15.bin": lambda: face(SD15_SITES, tokens=16, has_lora=False),
    "ip-adapter-faceid_sdxl.bin": lambda: face(SDXL_SITES),
    "ip-adapter-faceid-plusv2_sdxl.bin": lambda: face(SDXL_SITES, image=1280),
    "ip-adapter-faceid-portrait_sdxl.bin": lambda: face(SDXL_SITES, tokens=16, has_lora=False),
    "ip-adapter-faceid-portrait_sdxl_unnorm.bin": unnorm,
    "Kolors-IP-Adapter-Plus.bin": kolors_plus,
    "Kolors-IP-Adapter-FaceID-Plus.bin": lambda: face(
        SDXL_SITES, tokens=6, image=1024, has_lora=False, width=KOLORS_TOKEN_DIM, prefix="adapter_modules"
    ),
}


def write_adapters(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (name, shapes) in enumerate(ADAPTERS.items()):
        tensors = random_tensors(shapes(), seed, dtype=torch.float16, drawn=torch.float32)
        if name.endswith(".bin"):
            torch.save(_nested(tensors), folder / name)
        else:
            write_safetensors(folder / name, tensors)


def write_encoders(folder: Path) -> None:
    """In transformers layout: the sizes of a single file are fixed."""
    for name, (hidden, projection) in ENCODERS.items():
        torch.manual_seed(hidden)
        config = CLIPVisionConfig(
            hidden_size=hidden,
            intermediate_size=64,
            projection_dim=projection,
            num_hidden_layers=3,
            num_attention_heads=4,
            image_size=28,
            patch_size=14,
        )
        CLIPVisionModelWithProjection(config).half().save_pretrained(folder / name)


def write_embeds(path: Path) -> None:
    """As IPAdapter_plus saved them for a base adapter: two references, a pickled tensor."""
    torch.save(torch.randn(2, 1024, generator=torch.Generator().manual_seed(0)), path)


def _nested(tensors: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        parts.setdefault(part, {})[rest] = tensor
    return parts
