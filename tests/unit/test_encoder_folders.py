"""A folder in transformers layout is recognised by its `config.json`, whole models and vision parts alike."""

import json
from pathlib import Path

import pytest
import torch

from ipadapter_core.encoder.choice import choose_encoder
from ipadapter_core.encoder.known import EncoderSpec, read_encoder_file, read_encoder_folder, vision_config
from ipadapter_core.errors import UnreadableFileError
from ipadapter_core.file.spec import AdapterSpec, Feature, Negative, Projection
from support.published import write_safetensors

SIZES = {"hidden_size": 64, "num_hidden_layers": 3, "patch_size": 16, "image_size": 96}
Config = dict[str, object]


def folder(path: Path, config: Config | str, *, weights: str | None = "model.safetensors") -> Path:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(config if isinstance(config, str) else json.dumps(config), encoding="utf-8")
    if weights is not None:
        write_safetensors(path / weights, {"x": torch.zeros(1)})
    return path


def spec(kind: str, *, embed_dim: int | None = 64, image_size: int | None = None) -> EncoderSpec:
    return EncoderSpec(kind=kind, width=64, num_layers=3, embed_dim=embed_dim, image_size=image_size)


CLIP = spec("CLIP", embed_dim=32, image_size=96)
SIGLIP = spec("SigLIP", image_size=96)
NAFLEX = {"hidden_size": 64, "num_hidden_layers": 3, "patch_size": 16, "num_patches": 256}
FOLDERS: dict[str, tuple[Config, EncoderSpec]] = {
    "clip_vision_model": ({"model_type": "clip_vision_model", "projection_dim": 32, **SIZES}, CLIP),
    "clip, projection at the top": (
        {"model_type": "clip", "projection_dim": 32, "vision_config": {"projection_dim": 512, **SIZES}},
        CLIP,
    ),
    "clip, projection in the part": ({"model_type": "clip", "vision_config": {"projection_dim": 32, **SIZES}}, CLIP),
    "siglip_vision_model": ({"model_type": "siglip_vision_model", **SIZES}, SIGLIP),
    "siglip without its pooling head": (
        {"model_type": "siglip_vision_model", "vision_use_head": False, **SIZES},
        spec("SigLIP", embed_dim=None, image_size=96),
    ),
    "siglip": (
        {"model_type": "siglip", "vision_config": {"model_type": "siglip_vision_model", **SIZES}, "text_config": {}},
        SIGLIP,
    ),
    "siglip2_vision_model": ({"model_type": "siglip2_vision_model", **NAFLEX}, spec("SigLIP 2 NaFlex")),
    "siglip2": ({"model_type": "siglip2", "vision_config": NAFLEX}, spec("SigLIP 2 NaFlex")),
    "dinov2": ({"model_type": "dinov2", **SIZES}, spec("DINOv2")),
    "dinov2_with_registers": ({"model_type": "dinov2_with_registers", **SIZES}, spec("DINOv2")),
    "dinov3_vit": ({"model_type": "dinov3_vit", **SIZES}, spec("DINOv3")),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_folder_is_recognised_by_its_config(tmp_path: Path, name: str) -> None:
    config, wanted = FOLDERS[name]
    assert read_encoder_folder(folder(tmp_path / "e", config)) == wanted


def test_sharded_weights_count(tmp_path: Path) -> None:
    config, wanted = FOLDERS["dinov2"]
    path = folder(tmp_path / "e", config, weights="model-00001-of-00002.safetensors")
    assert read_encoder_folder(path) == wanted


def test_the_vision_part_carries_its_own_model_type(tmp_path: Path) -> None:
    config = vision_config(folder(tmp_path / "e", {"model_type": "clip", "projection_dim": 32, "vision_config": SIZES}))
    assert config == {"model_type": "clip_vision_model", "projection_dim": 32, **SIZES}


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        (
            {"model_type": "siglip", "vision_config": {"model_type": "siglip_vision_model"}},
            EncoderSpec(kind="SigLIP", width=768, num_layers=12, embed_dim=768, image_size=224),
        ),
        (
            {"model_type": "siglip", "vision_config": {"model_type": "siglip_vision_model", "image_size": 256}},
            EncoderSpec(kind="SigLIP", width=768, num_layers=12, embed_dim=768, image_size=256),
        ),
        (
            {"model_type": "siglip2", "vision_config": {"hidden_size": 1152, "num_hidden_layers": 27}},
            EncoderSpec(kind="SigLIP 2 NaFlex", width=1152, num_layers=27, embed_dim=1152),
        ),
    ],
    ids=["siglip-base-patch16-224", "siglip-base-patch16-256", "siglip2-so400m-patch16-naflex"],
)
def test_a_config_may_leave_out_what_transformers_assumes(tmp_path: Path, config: Config, wanted: EncoderSpec) -> None:
    assert read_encoder_folder(folder(tmp_path / "e", config)) == wanted


@pytest.mark.parametrize(
    ("config", "phrase"),
    [
        ("{", "a config.json that cannot be read"),
        ("[1]", "a config.json of model_type None"),
        ({"model_type": "llama", **SIZES}, "a config.json of model_type 'llama'"),
        ({"model_type": "clip"}, "a config.json of model_type 'clip'"),
        ({"model_type": "dinov2", **SIZES, "hidden_size": "wide"}, "a config.json whose hidden_size is 'wide'"),
        ({"model_type": "dinov2", **SIZES, "num_hidden_layers": 0}, "a config.json whose num_hidden_layers is 0"),
    ],
)
def test_a_config_that_describes_no_encoder_is_refused(tmp_path: Path, config: Config | str, phrase: str) -> None:
    with pytest.raises(UnreadableFileError) as caught:
        read_encoder_folder(folder(tmp_path / "e", config))
    assert f"Found: e has {phrase}" in str(caught.value)
    assert "Expected: a transformers vision model: clip_vision_model, " in str(caught.value)


def test_a_folder_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnreadableFileError, match="that cannot be read"):
        read_encoder_folder(tmp_path)


def test_pickled_weights_are_not_loaded(tmp_path: Path) -> None:
    path = folder(tmp_path / "e", FOLDERS["dinov2"][0], weights=None)
    (path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UnreadableFileError, match="but no safetensors file"):
        read_encoder_folder(path)


@pytest.mark.parametrize("image_size", [96, 100])
@pytest.mark.parametrize("kind", ["CLIP", "SigLIP"])
def test_file_and_folder_of_one_encoder_do_not_compete(tmp_path: Path, kind: str, image_size: int) -> None:
    """Six patches of 16 pixels on a side, of 96 pixels or of 100 as in SigLIP's 27 patches of 14 of 384 pixels."""
    prefix, extra = "vision_model", {"CLIP": 1, "SigLIP": 0}[kind]
    shapes = {
        f"{prefix}.embeddings.patch_embedding.weight": (64, 3, 16, 16),
        f"{prefix}.embeddings.position_embedding.weight": (36 + extra, 64),
        f"{prefix}.encoder.layers.2.layer_norm1.weight": (64,),
    }
    if kind == "CLIP":
        shapes |= {f"{prefix}.embeddings.class_embedding": (64,), "visual_projection.weight": (32, 64)}
    tensors = {name: torch.zeros(shape) for name, shape in shapes.items()}
    config = FOLDERS["clip_vision_model" if kind == "CLIP" else "siglip_vision_model"][0] | {"image_size": image_size}
    found = {
        "file": read_encoder_file(write_safetensors(tmp_path / "e.safetensors", tensors)),
        "folder/": read_encoder_folder(folder(tmp_path / "e", config)),
    }
    adapter = AdapterSpec(
        family="any",
        base="any",
        projection=Projection.RESAMPLER,
        feature=Feature.HIDDEN_STATES,
        image_dim=64,
        cross_attention_dim=16,
        num_tokens=4,
        site_dims=(32,),
        negative=Negative.ZERO_PIXELS,
    )
    assert choose_encoder(adapter, found, []) == "file"
