"""Tiny stand-ins for the models and data sets that the shipped recipes name: same classes, same formats."""

import json
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset, Image
from diffusers import UNet2DConditionModel

from ipadapter_core.file.container import write_safetensors
from ipadapter_trainer.config import Config
from ipadapter_trainer.config_file import read_config
from ipadapter_trainer.models.image_encoder import load_image_encoder
from ipadapter_trainer.models.loading import load_base
from ipadapter_trainer.models.network import new_adapter

from .encoders import EMBED_DIM, IMAGE_SIZE, LAYERS, PATCH, WIDTH, write_folder
from .face_files import write_pack
from .faces import write_people
from .tiny_anima_base import write_anima_base
from .tiny_base import VOCABULARY, write_base, write_tokenizer
from .tiny_flux_base import write_flux_base
from .tiny_pe import write_pe_folder
from .tiny_sd3_base import write_sd3_base
from .tiny_studio_base import STUDIO_FAMILIES, write_studio_base
from .tiny_unet import LAYOUTS
from .training import write_pictures

BASES = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "sd15",
    "stabilityai/stable-diffusion-xl-base-1.0": "sdxl",
    "out/world/models/diffusers/demo_world": "sd15",
    "Tongyi-MAI/Z-Image": "z_image",
    "Qwen/Qwen-Image": "qwen_image",
    "stabilityai/stable-diffusion-3.5-large": "sd3",
    "black-forest-labs/FLUX.1-dev": "flux",
    "circlestone-labs/Anima-Base-v1.0-Diffusers": "anima",
}
ENCODERS = {
    "laion/CLIP-ViT-H-14-laion2B-s32B-b79K": "clip",
    "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k": "clip",
    "openai/clip-vit-large-patch14": "judge",
    "facebook/dinov2-base": "dinov2",
    "facebook/dinov2-large": "dinov2",
    "facebook/dinov2-giant": "dinov2_giant",
    "google/siglip-so400m-patch14-384": "siglip",
    "google/siglip2-base-patch16-512": "siglip",
    "timm/vit_pe_core_large_patch14_336.fb": "pe_core",
    "out/world/models/clip_vision/demo_encoder": "clip",
}
SIZE = 64
_CLIP_SIZES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
_PICTURES = 8
_SMALLER: dict[str, dict[str, Any]] = {
    "sd15": {
        "block_out_channels": (32, 32),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    },
    "sdxl": {
        "block_out_channels": (32, 32),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": (1, 1),
        "transformer_layers_per_block": (0, 1),
    },
}
# Of what is only large: every other value stays the recipe's. Two heads are left of a resampler's.
_SIZES = {
    "data.resolution": SIZE,
    "data.workers": 0,
    "data.shuffle_buffer": _PICTURES,
    "validation.images": 2,
    "validation.samples": 1,
    "validation.sampler_steps": 1,
    "train.steps": 2,
    "base.precision": "fp32",
    "encoder.precision": "fp32",
}


@dataclass(frozen=True)
class TinyWorld:
    """Everything the recipes name, in one folder."""

    root: Path

    def config(self, recipe: Path) -> Config:
        """A recipe with paths, sizes, steps and precision of this world."""
        asked = read_config(recipe)
        values = {**_SIZES, **self._paths(asked)}
        if asked.data.buckets:
            values["data.bucket_step"] = SIZE // 4
        if asked.adapter.kind == "plus":
            values["adapter.resampler_dim"] = 2 * asked.adapter.resampler_head_dim
        config = read_config(recipe, [f"{name}={value}" for name, value in values.items()])
        if config.adapter.pretrained is None:
            return config
        pretrained = self._made(f"pretrained/{recipe.stem}", lambda folder: _write_adapter(config, folder))
        return _changed(config, "adapter", pretrained=str(pretrained / "adapter.safetensors"))

    def _paths(self, asked: Config) -> dict[str, object]:
        base = self._made(f"base/{BASES[asked.base.model]}", write_small_base)
        data = "list" if asked.data.reference == "column" else asked.data.format
        paths: dict[str, object] = {
            "base.model": base,
            "data.path": self._made(f"data/{data}", _WRITERS[data]) / _INSIDE.get(data, ""),
            "train.output": self.root / asked.train.output,
        }
        if asked.encoder.model:
            paths["encoder.model"] = self._encoder(asked.encoder.model)
        if asked.encoder.face_model is not None:
            paths["encoder.face_model"] = self._made("face_pack", write_pack)
            paths["data.path"] = self._made("people", partial(write_people, count=4, each=2))
        if asked.cache.path is not None:
            paths["cache.path"] = self.root / "cache"
        if asked.base.vae is not None:
            paths["base.vae"] = base / "vae"
        if asked.data.reference_folder is not None:
            paths["data.reference_folder"] = self._made("crops", write_pictures)
        if asked.validation.clip_model is not None:
            paths["validation.clip_model"] = self._encoder(asked.validation.clip_model)
        return paths

    def _encoder(self, model: str) -> Path:
        kind = ENCODERS[model]
        return self._made(f"encoder/{kind}", _ENCODER_WRITERS.get(kind, partial(write_folder, kind)))

    def _made(self, name: str, write: Callable[[Path], object]) -> Path:
        folder = self.root / name
        if not folder.exists():
            folder.mkdir(parents=True)
            write(folder)
        return folder


def write_small_base(folder: Path, prediction_type: str = "epsilon") -> None:
    """A model of the folder's layout with fewer attention layers than `tiny_unet` has: a recipe takes 21 forwards."""
    layout = folder.name
    if layout in _TRANSFORMERS:
        _TRANSFORMERS[layout](folder)
        return
    write_base(folder, layout, prediction_type=prediction_type)
    torch.manual_seed(0)
    sizes = {**LAYOUTS[layout].diffusers, **_SMALLER[layout]}
    UNet2DConditionModel(sample_size=16, layers_per_block=1, **sizes).save_pretrained(folder / "unet")


def _write_giant(folder: Path) -> None:
    """A DINOv2 with the gated layers that only the giant one has."""
    torch.manual_seed(0)
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "image_size": IMAGE_SIZE, "patch_size": PATCH}
    config = transformers.Dinov2Config(**sizes, num_attention_heads=2, use_swiglu_ffn=True)
    transformers.Dinov2Model(config).save_pretrained(folder)


def write_judge(folder: Path) -> None:
    """A whole CLIP, with what turns pictures and text into its input."""
    torch.manual_seed(0)
    vision = {**_CLIP_SIZES, "image_size": IMAGE_SIZE, "patch_size": PATCH}
    text = {**_CLIP_SIZES, "vocab_size": len(VOCABULARY) + 2, "bos_token_id": 0, "eos_token_id": len(VOCABULARY) + 1}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=EMBED_DIM)
    transformers.CLIPModel(config).save_pretrained(folder)
    images = transformers.CLIPImageProcessor(size={"shortest_edge": IMAGE_SIZE}, crop_size=IMAGE_SIZE)
    transformers.CLIPProcessor(images, write_tokenizer(folder / "tokenizer")).save_pretrained(folder)


def _write_adapter(config: Config, folder: Path) -> None:
    """A file as the recipe expects to start from."""
    cpu = torch.device("cpu")
    base = load_base(config.base, cpu, only=frozenset({"model"}))
    encoder = load_image_encoder(config.encoder, config.adapter.kind, cpu)
    adapter = new_adapter(config.adapter, base, encoder, is_fresh=True).adapter
    write_safetensors(folder / "adapter.safetensors", adapter.state_dict(), adapter.spec.to_metadata())


def _write_dataset(folder: Path) -> None:
    pictures = write_pictures(folder / "pictures", _PICTURES)
    images = sorted(map(str, pictures.glob("*.png")))
    captions = [Path(image).with_suffix(".txt").read_text() for image in images]
    table = Dataset.from_dict({"image": images, "text": captions}).cast_column("image", Image())
    table.save_to_disk(folder / _INSIDE["hf"])


def _write_list(folder: Path) -> None:
    """Every picture with the next one as its reference."""
    images = sorted(write_pictures(folder / "pictures", _PICTURES).glob("*.png"))
    rows = (
        {"image_file": str(image), "reference": str(images[number - 1]), "text": image.with_suffix(".txt").read_text()}
        for number, image in enumerate(images)
    )
    (folder / _INSIDE["list"]).write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")


def _write_shards(folder: Path) -> None:
    pictures = write_pictures(folder / "pictures", _PICTURES)
    with tarfile.open(folder / _INSIDE["webdataset"], "w") as shard:
        for path in sorted(pictures.iterdir()):
            shard.add(path, path.name)


def _changed(config: Config, section: str, **values: Any) -> Config:
    return config.model_copy(update={section: getattr(config, section).model_copy(update=values)})


_TRANSFORMERS: dict[str, Callable[[Path], object]] = {
    "flux": write_flux_base,
    "sd3": write_sd3_base,
    "anima": write_anima_base,
    **{family: partial(write_studio_base, family=family) for family in STUDIO_FAMILIES},
}
_ENCODER_WRITERS: dict[str, Callable[[Path], object]] = {
    "dinov2_giant": _write_giant,
    "judge": write_judge,
    "pe_core": write_pe_folder,
}
_INSIDE = {"hf": "dataset", "list": "pairs.jsonl", "webdataset": "0.tar"}
_WRITERS: dict[str, Callable[[Path], object]] = {
    "auto": write_pictures,
    "folder": write_pictures,
    "hf": _write_dataset,
    "list": _write_list,
    "webdataset": _write_shards,
}
