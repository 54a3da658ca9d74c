"""Names and shapes of the tensors in every published adapter file, of other files that lie beside them, and writers.

The tables follow the loader code of tencent-ailab/IP-Adapter, InstantX, XLabs, Kwai-Kolors and Wenaka2004 (Anima).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor

from .published_transformers import (
    anima,
    anima_lucifer,
    anima_modulation,
    anima_pe,
    anima_qwen,
    hunyuan_dit,
    infinite_you,
    instant_character,
    instantx_flux,
    instantx_sd35,
    studio,
    xlabs_flux,
)
from .tensor_shapes import Shapes, id_proj, linear, lora, norm, resampler, sites

T = TypeVar("T")

# Channels of the cross-attention layers in checkpoint order: down, up, middle.
SD15_SITES = (320,) * 2 + (640,) * 2 + (1280,) * 5 + (640,) * 3 + (320,) * 3 + (1280,)
SDXL_SITES = (640,) * 4 + (1280,) * 50 + (640,) * 6 + (1280,) * 10
SD15_DIM, SDXL_DIM = 768, 2048
TINY_RESAMPLER_DIM = 20  # equal to no other default of `tiny_adapter`, so a mixed-up dimension shows


def _linear_proj(width: int, image: int, tokens: int = 4) -> Shapes:
    return linear("image_proj.proj", tokens * width, image) | norm("image_proj.norm", width)


def _full_proj(width: int, image: int) -> Shapes:
    proj = "image_proj.proj"
    return linear(f"{proj}.0", image, image) | linear(f"{proj}.2", width, image) | norm(f"{proj}.3", width)


_SD15, _SDXL = sites(SD15_SITES, SD15_DIM), sites(SDXL_SITES, SDXL_DIM)
_KOLORS = sites(SDXL_SITES, SDXL_DIM, prefix="adapter_modules")
_SD15_LORA, _SDXL_LORA = lora(SD15_SITES, SD15_DIM), lora(SDXL_SITES, SDXL_DIM)
_SD15_PLUS = resampler(dim=768, inner=768, image=1280, out=SD15_DIM) | _SD15
_SDXL_PLUS = resampler(dim=1280, inner=1280, image=1280, out=SDXL_DIM) | _SDXL
PUBLISHED: dict[str, Callable[[], Shapes]] = {
    "sd15_base": lambda: _linear_proj(SD15_DIM, 1024) | _SD15,
    "sd15_light": lambda: _linear_proj(SD15_DIM, 1024) | _SD15,
    "sd15_vit_g": lambda: _linear_proj(SD15_DIM, 1280) | _SD15,
    **dict.fromkeys(("sd15_plus", "sd15_plus_face", "sd15_composition"), _SD15_PLUS.copy),
    "sd15_full_face": lambda: _full_proj(SD15_DIM, 1280) | _SD15,
    "sdxl_vit_h": lambda: _linear_proj(SDXL_DIM, 1024) | _SDXL,
    "sdxl_big_g": lambda: _linear_proj(SDXL_DIM, 1280) | _SDXL,
    **dict.fromkeys(("sdxl_plus", "sdxl_plus_face", "sdxl_composition"), _SDXL_PLUS.copy),
    "faceid_sd15": lambda: id_proj(SD15_DIM) | _SD15 | _SD15_LORA,
    "faceid_sdxl": lambda: id_proj(SDXL_DIM) | _SDXL | _SDXL_LORA,
    "faceid_plus_sd15": lambda: id_proj(SD15_DIM, face=1280) | _SD15 | _SD15_LORA,
    "faceid_plusv2_sd15": lambda: id_proj(SD15_DIM, face=1280) | _SD15 | _SD15_LORA,
    "faceid_plusv2_sdxl": lambda: id_proj(SDXL_DIM, face=1280) | _SDXL | _SDXL_LORA,
    "portrait_sd15": lambda: id_proj(SD15_DIM, 16) | _SD15,
    "portrait_sdxl": lambda: id_proj(SDXL_DIM, 16) | _SDXL,
    "portrait_unnorm_sdxl": lambda: resampler(dim=1280, inner=1280, image=512, out=SDXL_DIM) | _SDXL,
    "kolors_plus": lambda: resampler(dim=2048, inner=12 * 64, image=1024, out=SDXL_DIM) | _KOLORS,
    "kolors_faceid": lambda: id_proj(4096, 6, face=1024) | _KOLORS,
    "instantx_sd35": instantx_sd35,
    "instantx_flux": instantx_flux,
    "xlabs_v1": lambda: xlabs_flux(4),
    "xlabs_v2": lambda: xlabs_flux(16),
    "anima_lucifer": lambda: anima_lucifer(rank=32),
    "anima_pe": anima_pe,
    "anima_pe_gated": lambda: anima_pe(gated=True),
    "z_image": lambda: studio(blocks=30, width=3840),
    "qwen_image": lambda: studio(blocks=60, width=3072),
    "anima": anima,
    "anima_intermediate": lambda: anima(intermediate=True),
    "anima_qwen": anima_qwen,
    "anima_modulation": anima_modulation,
    "instant_character": instant_character,
    "hunyuan_dit": hunyuan_dit,
    "infinite_you": infinite_you,
}

EXPECTED_PARAMETERS: dict[str, int] = {
    **dict.fromkeys(("sd15_base", "sd15_light"), 22_319_616),
    "sd15_vit_g": 23_106_048,
    **dict.fromkeys(("sd15_plus", "sd15_plus_face", "sd15_composition"), 49_087_488),
    "sd15_full_face": 21_794_304,
    "sdxl_big_g": 351_285_248,
    "sdxl_vit_h": 349_188_096,
    **dict.fromkeys(("sdxl_plus", "sdxl_plus_face", "sdxl_composition"), 423_748_864),
    "faceid_sd15": 48_354_816,
    **dict.fromkeys(("faceid_plus_sd15", "faceid_plusv2_sd15"), 78_260_736),
    "faceid_sdxl": 535_507_968,
    "faceid_plusv2_sdxl": 743_707_648,
    "portrait_sd15": 32_291_328,
    "kolors_plus": 506_552_320,
    "instantx_sd35": 797_925_888,
}


def _part(*tensors: str) -> Shapes:
    """Each text is `name size size …`."""
    return {name: tuple(map(int, sizes)) for name, *sizes in (text.split() for text in tensors)}


_BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0"
_ATTN2, _PROCESSOR = f"unet.{_BLOCK}.attn2", f"unet.{_BLOCK}.attn2.processor"
_KOHYA = f"lora_unet_{_BLOCK.replace('.', '_')}_attn2_to_k"
_ENDS = ("conv_in.weight 320 4 3 3", "conv_norm_out.weight 320", "conv_out.weight 4 320 3 3")
_BLOCKS = (f"{_BLOCK}.attn2.to_k.weight 320 768", "up_blocks.1.attentions.0.proj_in.weight 1280 1280 1 1")
_UNET = _part(*_ENDS, *_BLOCKS, "mid_block.resnets.0.conv1.weight 1280 1280 3 3", "time_embedding.linear_1.bias 1280")
_LDM_ATTN2 = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight 320 1024"
_FLUX = _part("img_in.weight 3072 64", "double_blocks.0.img_attn.qkv.weight 9216 3072")
_STATE: Shapes = {
    **{f"unet.{name}": shape for name, shape in _UNET.items()},
    **_part(f"{_PROCESSOR}.to_k_ip.weight 320 768", f"{_PROCESSOR}.to_v_ip.weight 320 768"),
    **linear("image_proj_model.proj", 3072, 1024),
    **norm("image_proj_model.norm", 768),
}
# No IP-Adapters: a telling part of each file.
OTHER_FILES: dict[str, Shapes] = {
    "lora_kohya": _part(f"{_KOHYA}.lora_down.weight 8 768", f"{_KOHYA}.lora_up.weight 320 8", f"{_KOHYA}.alpha"),
    "lora_kohya_no_alpha": _part(f"{_KOHYA}.lora_down.weight 128 768", f"{_KOHYA}.lora_up.weight 320 128"),
    "lora_peft": _part(f"{_ATTN2}.to_k.lora_A.weight 8 768", f"{_ATTN2}.to_k.lora_B.weight 320 8"),
    "lora_diffusers": _part(f"{_PROCESSOR}.to_k_lora.down.weight 4 768", f"{_PROCESSOR}.to_k_lora.up.weight 320 4"),
    "lora_flux_xlabs": _part("double_blocks.0.processor.qkv_lora1.down.weight 16 3072"),
    "uno_lora": _part(
        *(
            f"double_blocks.{n}.processor.{part}_lora{side}.up.weight 9216 512"
            for n in (0, 18)
            for side in (1, 2)
            for part in ("qkv", "proj")
        ),
        *(f"single_blocks.{n}.processor.{part}_lora.up.weight 9216 512" for n in (0, 37) for part in ("qkv", "proj")),
    ),
    "lora_flux_bfl_layout": _part(
        "double_blocks.0.img_attn.qkv.lora_A.weight 16 3072", "single_blocks.0.linear1.lora_A.weight 16 3072"
    ),
    "uso_projector": _part("feature_embedder.mid_layer_norm.bias 1152", "feature_embedder.up_layer.weight 3072 1152"),
    "lora_loha": _part(f"{_KOHYA}.hada_w1_a 320 8", f"{_KOHYA}.hada_w1_b 8 768", f"{_KOHYA}.alpha"),
    "controlnet": _part("control_model.input_hint_block.0.weight 16 3 3 3", "control_model.zero_convs.0.0.bias 320"),
    "controlnet_diffusers": _part(
        "controlnet_cond_embedding.conv_in.bias 16", "controlnet_mid_block.bias 1280", _BLOCKS[0]
    ),
    "controlnet_flux_xlabs": _FLUX | _part("controlnet_blocks.0.bias 3072", "input_hint_block.0.weight 16 3 3 3"),
    "t2i_adapter": _part("body.0.block1.weight 320 320 3 3", "conv_in.weight 320 192 3 3"),
    "t2i_adapter_diffusers": _part("adapter.body.0.resnets.0.block1.bias 320", "adapter.conv_in.weight 320 192 3 3"),
    "style_model": _part("style_embedding 1 8 1024", "proj 1024 768", "ln_post.weight 1024"),
    "redux": _part("redux_up.weight 12288 1152", "redux_down.weight 4096 12288"),
    "checkpoint": _part(_LDM_ATTN2, "first_stage_model.quant_conv.bias 8", "cond_stage_model.model.ln_final.bias 1024"),
    "unet_diffusers": _UNET,
    "transformer_flux": _FLUX | _part("single_blocks.0.linear1.weight 21504 3072"),
    "vae": _part("encoder.conv_in.weight 128 3 3 3", "decoder.up.0.block.0.conv1.weight 128 256 3 3"),
    "vae_diffusers": _part("encoder.conv_in.weight 128 3 3 3", "decoder.up_blocks.0.resnets.0.norm1.weight 512"),
    "clip_vision": _part("vision_model.embeddings.class_embedding 1280", "visual_projection.weight 1024 1280"),
    "open_clip_visual": _part("visual.transformer.resblocks.0.attn.in_proj_weight 3840 1280", "visual.proj 1280 1024"),
    "textual_inversion": _part("emb_params 4 768"),
    "textual_inversion_bin": _part("string_to_param.* 4 768"),
    "pulid_flux": _part("pulid_encoder.latents 1 32 1024", "pulid_ca.0.to_kv.weight 4096 2048"),
    "pulid_sdxl_of_its_nodes": _part(
        "image_proj.body.0.weight 1024 1280",
        "image_proj.mapping_patch_0.0.weight 1024 1024",
        "ip_adapter.1.id_to_k.weight 640 2048",
    ),
    "infinite_you_controlnet": _part(
        "controlnet_blocks.0.bias 3072", "transformer_blocks.0.attn.to_q.weight 3072 3072"
    ),
    "pulid_sdxl": _part("id_adapter.latents 1 32 1024", "id_adapter_attn_layers.1.id_to_k.weight 640 2048"),
    "accelerate_state": _STATE | sites(SD15_SITES, SD15_DIM, prefix="adapter_modules"),
    "accelerate_state_deduplicated": _STATE,  # accelerate's safetensors drop the shared `adapter_modules`
    "empty": {},
    "unknown": _part("layer.0.weight 8 8", "head.bias 8"),
}


def tiny_adapter(
    kind: Literal["base", "plus", "full"],
    *,
    site_dims: Sequence[int],
    cross_attention_dim: int = 16,
    image_dim: int = 24,
    num_tokens: int = 4,
    depth: int = 2,
    head_dim: int = 8,
    heads: int = 3,
) -> Shapes:
    """A small adapter under the published names; `depth`, `head_dim` and `heads` are the resampler's ("plus")."""
    if kind == "plus":
        dim, inner, out = TINY_RESAMPLER_DIM, heads * head_dim, cross_attention_dim
        proj = resampler(dim=dim, inner=inner, image=image_dim, out=out, queries=num_tokens, depth=depth)
    elif kind == "full":
        proj = _full_proj(cross_attention_dim, image_dim)
    else:
        proj = _linear_proj(cross_attention_dim, image_dim, num_tokens)
    return proj | sites(site_dims, cross_attention_dim)


def tiny_face_adapter(
    kind: Literal["faceid", "faceid plus", "portrait", "unnorm", "kolors"],
    *,
    site_dims: Sequence[int],
    cross_attention_dim: int = 16,
    identity: int = 10,
    face: int = 24,
    num_tokens: int = 4,
    lora_rank: int = 3,
) -> Shapes:
    """A small adapter for faces under the published names. "unnorm" must state `feature` identity and its head size.

    Args:
        face: width of the features of a face picture.
        lora_rank: 0 is none; portrait, unnorm and kolors never have one.
    """
    width = 2 * cross_attention_dim if kind == "kolors" else cross_attention_dim
    if kind == "unnorm":
        proj = resampler(dim=TINY_RESAMPLER_DIM, inner=16, image=identity, out=width, queries=num_tokens, depth=2)
    else:
        has_face = kind in ("faceid plus", "kolors")
        proj = id_proj(width, num_tokens, identity=identity, face=face if has_face else 0)
    has_lora = kind.startswith("faceid") and lora_rank
    return (
        proj
        | sites(site_dims, cross_attention_dim)
        | (lora(site_dims, cross_attention_dim, rank=lora_rank) if has_lora else {})
    )


def parameter_count(shapes: Mapping[str, Sequence[int]]) -> int:
    return sum(math.prod(shape) for shape in shapes.values())


def meta_tensors(shapes: Mapping[str, Sequence[int]], *, dtype: torch.dtype = torch.float16) -> dict[str, Tensor]:
    return {name: torch.empty(tuple(shape), dtype=dtype, device="meta") for name, shape in shapes.items()}


def random_tensors(
    shapes: Mapping[str, Sequence[int]],
    seed: int = 0,
    *,
    dtype: torch.dtype = torch.float32,
    scale: float = 0.3,
    drawn: torch.dtype = torch.float64,
) -> dict[str, Tensor]:
    """Normal values times `scale`, the same up to rounding for every dtype; norm weights lie around 1.

    Args:
        drawn: the dtype they are drawn in; float32 is three times as fast, and gives others.
    """
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        values = torch.randn(tuple(shape), generator=generator, dtype=drawn) * scale
        is_norm_weight = len(shape) == 1 and name.endswith(".weight")
        tensors[name] = (values + 1.0 if is_norm_weight else values).to(dtype)
    return tensors


def nested(flat: Mapping[str, T]) -> dict[str, dict[str, T]]:
    """The layout of published `.bin` files: `{"image_proj": {...}, "ip_adapter": {...}}` (or `adapter_modules`)."""
    content: dict[str, dict[str, T]] = {}
    for name, value in flat.items():
        part, _, rest = name.partition(".")
        content.setdefault(part, {})[rest] = value
    return content


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> Path:
    save_file(dict(tensors), path, metadata=None if metadata is None else dict(metadata))
    return path


def write_bin(path: Path, content: Mapping[str, Mapping[str, Tensor]]) -> Path:
    torch.save({part: dict(tensors) for part, tensors in content.items()}, path)
    return path
