"""A file that the trainer trained for Z-Image or Qwen-Image does the same in ComfyUI as in the trainer."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ipadapter_trainer.backbones.image_prompt import ImagePrompt
from ipadapter_trainer.config import BaseModelConfig
from ipadapter_trainer.files.adapter_file import open_adapter
from ipadapter_trainer.files.checkpoint_export import export_checkpoint
from ipadapter_trainer.loop import train
from ipadapter_trainer.models.loading import load_base
from support import comfy_host, encoders, tiny_qwen_image, tiny_z_image
from support.graphs import PLAIN
from support.tiny_studio_base import write_studio_base
from support.trained import reference_picture
from support.training import make_config, write_pictures

CPU = torch.device("cpu")
SIZE, WORDS, TIME, STRENGTH = (8, 12), 7, 0.6, 0.8
RELATIVE, EFFECT = 1e-4, 0.02
FAMILIES = {
    "z_image": lambda: tiny_z_image.comfy_z_image(tiny_z_image.diffusers_z_image()),
    "qwen_image": lambda: tiny_qwen_image.comfy_qwen_image(tiny_qwen_image.diffusers_qwen_image()),
}


@pytest.fixture(scope="module")
def encoder(base_directory: Path) -> Iterator[Path]:
    folder = base_directory / "models" / "clip_vision" / "studio encoder"
    encoders.write_folder("clip", folder)
    yield folder
    shutil.rmtree(folder)


def picture() -> Tensor:
    """The reference as ComfyUI's IMAGE."""
    return torch.frombuffer(bytearray(reference_picture().tobytes()), dtype=torch.uint8).reshape(
        1, *reference_picture().size[::-1], 3
    ) / torch.tensor(255.0)


def inputs() -> tuple[Tensor, Tensor]:
    """Latents and text of an uncond and a cond row."""
    generator = torch.Generator().manual_seed(11)
    return torch.randn(2, 16, *SIZE, generator=generator), torch.randn(2, WORDS, 24, generator=generator)


def in_comfyui(model: Any, family: str) -> Tensor:
    latents, text = inputs()
    options = model.model_options["transformer_options"] | {"cond_or_uncond": [1, 0], "sigmas": torch.ones(1)}
    times, network = torch.full((2,), TIME), model.model.diffusion_model
    with torch.inference_mode():
        if family == "z_image":
            return network(latents, times, text, WORDS, transformer_options=options)
        return network(latents[:, :, None], times, text, transformer_options=options)[:, :, 0]


@torch.no_grad()
def in_trainer(file: Path, base_folder: Path, encoder: Path) -> Tensor:
    """As training computes it, with the K/V of one forward of the network."""
    base = load_base(BaseModelConfig(model=str(base_folder), precision="fp32"), CPU)
    opened = open_adapter(file, base, str(encoder), "fp32")
    features = opened.reader.read({"pixels": opened.reader.encoder.format.pixels(picture())})["features"]
    both = torch.cat((opened.no_image["features"], features))
    image = ImagePrompt(tuple((k, v * STRENGTH) for k, v in opened.network({"features": both}).kv))
    latents, text = inputs()
    told = {"text": text, "mask": torch.ones(2, WORDS)}
    return base.predict(latents, torch.full((2,), TIME), told, torch.zeros(2, 6), image)


def difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("family", FAMILIES)
def test_nodes_equal_the_trainer(family: str, encoder: Path, base_directory: Path, tmp_path: Path) -> None:
    base = write_studio_base(tmp_path / "base", family)
    config = make_config(
        base,
        encoder,
        write_pictures(tmp_path / "pictures", 4),
        tmp_path / "run",
        adapter={"kind": "plus", "resampler_dim": 64, "tokens": 4},
        train={"steps": 2},
        optimizer={"learning_rate": 0.05},  # so that the adapter shows
    )
    train(config)
    exported = export_checkpoint(config.run, None).path
    name = f"trained-{family}.safetensors"
    (base_directory / "models" / "ipadapter").mkdir(exist_ok=True)
    shutil.copy(exported, base_directory / "models" / "ipadapter" / name)
    adapter = comfy_host.run("IPALoadAdapter", adapter_file=name, image_encoder="auto")
    tokens = comfy_host.run("IPAEncodeImage", adapter=adapter, image=picture(), crop="center")
    model = FAMILIES[family]()
    patched = comfy_host.run("IPAApply", model=model, adapter=adapter, tokens=tokens, **PLAIN | {"strength": STRENGTH})
    expected = in_trainer(exported, base, encoder)
    assert difference(in_comfyui(patched, family), expected) < RELATIVE
    assert difference(in_comfyui(model, family), expected) > EFFECT, "it does nothing"
