"""An image encoder is recognised by its tensors, whatever its size and whoever saved it."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ipadapter_core.encoder.known import EncoderSpec, encoder_from_shapes, read_encoder_file
from ipadapter_core.encoder.siglip import can_build_siglip, siglip_config
from ipadapter_core.errors import UnreadableFileError
from support.bad_files import empty_safetensors, html_page, long_header
from support.published import OTHER_FILES, PUBLISHED, Shapes, write_safetensors

H = EncoderSpec(kind="CLIP", width=1280, num_layers=32, embed_dim=1024, image_size=224)
BIG_G = EncoderSpec(kind="CLIP", width=1664, num_layers=48, embed_dim=1280, image_size=224)
L = EncoderSpec(kind="CLIP", width=1024, num_layers=24, embed_dim=768, image_size=224)
L_336 = EncoderSpec(kind="CLIP", width=1024, num_layers=24, embed_dim=768, image_size=336)
DINO = EncoderSpec(kind="DINOv2", width=1024, num_layers=24, embed_dim=1024)


def clip(width: int, layers: int, positions: int, embed_dim: int | None, *, patch: int = 14) -> Shapes:
    prefix = "vision_model"
    shapes: Shapes = {
        f"{prefix}.embeddings.class_embedding": (width,),
        f"{prefix}.embeddings.patch_embedding.weight": (width, 3, patch, patch),
        f"{prefix}.embeddings.position_embedding.weight": (positions, width),
        **{f"{prefix}.encoder.layers.{n}.layer_norm1.weight": (width,) for n in range(layers)},
    }
    return shapes | ({} if embed_dim is None else {"visual_projection.weight": (embed_dim, width)})


def siglip(width: int, layers: int, positions: int, *, patch_shape: tuple[int, ...]) -> Shapes:
    prefix = "vision_model"
    return {
        f"{prefix}.embeddings.patch_embedding.weight": (width, *patch_shape),
        f"{prefix}.embeddings.position_embedding.weight": (positions, width),
        **{f"{prefix}.encoder.layers.{n}.layer_norm1.weight": (width,) for n in range(layers)},
    }


def open_clip(width: int, layers: int, positions: int, embed_dim: int) -> Shapes:
    return {
        "visual.conv1.weight": (width, 3, 14, 14),
        "visual.positional_embedding": (positions, width),
        "visual.proj": (width, embed_dim),
        **{f"visual.transformer.resblocks.{n}.attn.in_proj_weight": (3 * width, width) for n in range(layers)},
    }


def dino(width: int, layers: int, name: str) -> Shapes:
    return {name.format(n): (width,) for n in range(layers)}


def pe(width: int, layers: int, positions: int, *, names: str) -> Shapes:
    head = {"probe": (1, 1, width)} if names != "timm" else {"latent": (1, 1, width)}
    if names == "timm":
        trunk: Shapes = {
            "pos_embed": (1, positions, width),
            "patch_embed.proj.weight": (width, 3, 14, 14),
            "cls_token": (1, 1, width),
            "norm_pre.weight": (width,),
            **{f"blocks.{n}.norm1.weight": (width,) for n in range(layers)},
        }
        return trunk | {f"attn_pool.{name}": shape for name, shape in head.items()}
    trunk = open_clip(width, layers, positions, width) | {"visual.class_embedding": (width,)}
    trunk |= {f"visual.attn_pool.{name}": shape for name, shape in head.items()}
    text = {"positional_embedding": (32, width), "transformer.resblocks.40.ln_1.weight": (width,)}
    if names == "whole":
        return text | trunk
    return {name.removeprefix("visual."): shape for name, shape in trunk.items()}


def without(shapes: Shapes, name: str) -> Shapes:
    return {other: shape for other, shape in shapes.items() if other != name}


PE = EncoderSpec(kind="PE-Core", width=1024, num_layers=24, embed_dim=None, image_size=336)
ENCODERS: dict[str, tuple[Shapes, EncoderSpec, str]] = {
    "ViT-H": (clip(1280, 32, 257, 1024), H, "CLIP ViT-H/14 (CLIP-ViT-H-14-laion2B-s32B-b79K)"),
    "ViT-bigG": (clip(1664, 48, 257, 1280), BIG_G, "CLIP ViT-bigG/14 (CLIP-ViT-bigG-14-laion2B-39B-b160k)"),
    "ViT-L": (clip(1024, 24, 257, 768), L, "CLIP ViT-L/14 (openai/clip-vit-large-patch14)"),
    "ViT-L-336": (clip(1024, 24, 577, 768), L_336, "CLIP ViT-L/14-336 (openai/clip-vit-large-patch14-336)"),
    "CLIP without projection": (
        clip(64, 2, 5, None, patch=16),
        EncoderSpec(kind="CLIP", width=64, num_layers=2, embed_dim=None, image_size=32),
        "CLIP of width 64, 2 layers",
    ),
    "open_clip ViT-H": (open_clip(1280, 32, 257, 1024), H, "CLIP ViT-H/14 (CLIP-ViT-H-14-laion2B-s32B-b79K)"),
    "SigLIP": (
        siglip(1152, 27, 729, patch_shape=(3, 14, 14)),
        EncoderSpec(kind="SigLIP", width=1152, num_layers=27, embed_dim=None, image_size=378),
        "SigLIP so400m (siglip-so400m-patch14-384)",
    ),
    "SigLIP with its pooling head": (
        siglip(1152, 27, 729, patch_shape=(3, 14, 14)) | {"vision_model.head.mlp.fc2.weight": (1152, 4304)},
        EncoderSpec(kind="SigLIP", width=1152, num_layers=27, embed_dim=1152, image_size=378),
        "SigLIP so400m (siglip-so400m-patch14-384)",
    ),
    "SigLIP 2 base-512": (
        siglip(768, 12, 1024, patch_shape=(3, 16, 16)),
        EncoderSpec(kind="SigLIP", width=768, num_layers=12, embed_dim=None, image_size=512),
        "SigLIP 2 base (siglip2-base-patch16-512)",
    ),
    "whole PE-Core": (pe(1024, 24, 577, names="whole"), PE, "PE-Core L (PE-Core-L14-336)"),
    "PE-Core": (pe(1024, 24, 577, names="vision"), PE, "PE-Core L (PE-Core-L14-336)"),
    "PE-Core of timm": (pe(1024, 24, 577, names="timm"), PE, "PE-Core L (PE-Core-L14-336)"),
    "SigLIP 2 NaFlex": (
        siglip(768, 12, 256, patch_shape=(768,)),
        EncoderSpec(kind="SigLIP 2 NaFlex", width=768, num_layers=12, embed_dim=None),
        "SigLIP 2 NaFlex of width 768, 12 layers",
    ),
    "DINOv2": (dino(1024, 24, "encoder.layer.{}.layer_scale1.lambda1"), DINO, "DINOv2 large"),
    "DINOv3": (
        dino(1280, 32, "layer.{}.norm1.weight"),
        EncoderSpec(kind="DINOv3", width=1280, num_layers=32, embed_dim=1280),
        "DINOv3 ViT-H",
    ),
    "DINOv3 with prefix": (
        dino(384, 12, "model.layer.{}.norm1.weight"),
        EncoderSpec(kind="DINOv3", width=384, num_layers=12, embed_dim=384),
        "DINOv3 of width 384, 12 layers",
    ),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_encoder_is_recognised_by_its_shapes(name: str) -> None:
    shapes, spec, common_name = ENCODERS[name]
    assert encoder_from_shapes(shapes) == spec
    assert spec.name == common_name


@pytest.mark.parametrize(
    ("name", "patch_size"),
    [("ViT-bigG", 14), ("open_clip ViT-H", 14), ("CLIP without projection", 16), ("SigLIP 2 base-512", 16)],
)
def test_the_patch_is_read(name: str, patch_size: int) -> None:
    encoder = encoder_from_shapes(ENCODERS[name][0])
    assert encoder is not None
    assert encoder.patch_size == patch_size


@pytest.mark.parametrize(("width", "heads"), [(768, 12), (1024, 16), (1152, 16), (1536, 16)])
def test_a_siglip_file_is_built_with_the_heads_of_the_published_one(width: int, heads: int) -> None:
    shapes = siglip(width, 2, 256, patch_shape=(3, 16, 16)) | {
        "vision_model.encoder.layers.0.mlp.fc1.weight": (4 * width - 8, width)
    }
    encoder = encoder_from_shapes(shapes)
    assert encoder is not None
    assert can_build_siglip(encoder)
    config = siglip_config(encoder, shapes)
    assert (config["num_attention_heads"], config["intermediate_size"]) == (heads, 4 * width - 8)
    assert (config["image_size"], config["patch_size"], config["vision_use_head"]) == (256, 16, False)


@pytest.mark.parametrize("name", ["SigLIP 2 NaFlex", "ViT-H", "DINOv2", "PE-Core"])
def test_other_files_are_not_built_as_siglip(name: str) -> None:
    assert not can_build_siglip(ENCODERS[name][1])


@given(st.integers(1, 64), st.integers(1, 40), st.integers(1, 9), st.integers(1, 64), st.integers(1, 20))
def test_any_size_is_read(width: int, layers: int, side: int, embed_dim: int, patch: int) -> None:
    spec = EncoderSpec(kind="CLIP", width=width, num_layers=layers, embed_dim=embed_dim, image_size=side * patch)
    assert encoder_from_shapes(clip(width, layers, side**2 + 1, embed_dim, patch=patch)) == spec


@pytest.mark.parametrize("name", [name for name in OTHER_FILES if name not in ("clip_vision", "open_clip_visual")])
def test_other_files_are_no_encoders(name: str) -> None:
    assert encoder_from_shapes(OTHER_FILES[name]) is None


def test_another_vision_model_of_timm_is_no_pe_core() -> None:
    """Its SigLIP has a pooling head as well."""
    assert encoder_from_shapes(without(pe(1024, 24, 577, names="timm"), "norm_pre.weight")) is None
    assert encoder_from_shapes(without(pe(1024, 24, 577, names="timm"), "attn_pool.latent")) is None


def test_adapters_are_no_encoders() -> None:
    assert not [name for name, shapes in PUBLISHED.items() if encoder_from_shapes(shapes()) is not None]


def test_a_file_is_recognised_by_its_header(tmp_path: Path) -> None:
    shapes = clip(64, 3, 17, 32, patch=2)
    path = write_safetensors(tmp_path / "e.safetensors", {name: torch.zeros(shape) for name, shape in shapes.items()})
    length = int.from_bytes(path.read_bytes()[:8], "little")
    path.write_bytes(path.read_bytes()[: 8 + length])
    assert read_encoder_file(path) == EncoderSpec(kind="CLIP", width=64, num_layers=3, embed_dim=32, image_size=8)


@pytest.mark.parametrize("write", [empty_safetensors, html_page, long_header])
def test_a_broken_file_is_refused(tmp_path: Path, write: object) -> None:
    with pytest.raises(UnreadableFileError):
        read_encoder_file(write(tmp_path))
