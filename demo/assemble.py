"""The models folder of the demo, put together from `demo/assets`: files as ComfyUI, and a folder as diffusers reads it.

    python -m demo.assemble FOLDER

What is not shipped is drawn here: the frozen text encoder (`demo/world/text.py`).
"""

import os
import shutil
import sys
from pathlib import Path

import torch
from diffusers import AutoencoderTiny, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPTextModel

from demo.models import BASE_ADAPTER, CHECKPOINT, DIFFUSERS, ENCODER, PLUS_ADAPTER
from demo.tiny_base import COMFY_UNET, import_comfyui
from demo.world.base import SCHEDULE, UNET
from demo.world.pack import unpack
from demo.world.text import build_text_encoder, load_tokenizer
from ipadapter_core.file.container import write_safetensors

ASSETS = Path(__file__).with_name("assets")
UNET_FILE, AUTOENCODER_FILE, ENCODER_FOLDER = "unet.safetensors", "autoencoder.safetensors", "image_encoder"
ADAPTERS = (PLUS_ADAPTER, BASE_ADAPTER)
LATENT_SCALE = 0.18215  # ComfyUI divides SD1.5 latents by it before the autoencoder, whose own latents have deviation 1


def assemble(folder: Path, assets: Path = ASSETS) -> None:
    """Write checkpoint, diffusers folder, image encoder and adapters below a models folder."""
    assemble_base(folder, assets)
    for name in ADAPTERS:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(assets / path.name, path)


def assemble_base(folder: Path, assets: Path = ASSETS) -> None:
    """The same without the adapters, which are trained on what this writes."""
    unet, autoencoder = unpack(load_file(assets / UNET_FILE)), load_file(assets / AUTOENCODER_FILE)
    text = build_text_encoder().half()
    write_checkpoint(folder / CHECKPOINT, unet, autoencoder, text)
    write_diffusers(folder / DIFFUSERS, unet, autoencoder, text)
    shutil.copytree(assets / ENCODER_FOLDER, folder / ENCODER, dirs_exist_ok=True)


def write_checkpoint(path: Path, unet: dict[str, Tensor], autoencoder: dict[str, Tensor], text: CLIPTextModel) -> None:
    """One file in SD1.5's names, float16.

    Args:
        unet, autoencoder: in the names of diffusers.
    """
    names = import_comfyui("comfy.utils").unet_to_diffusers(COMFY_UNET)
    tensors = {f"model.diffusion_model.{names[name]}": value for name, value in unet.items()}
    tensors |= {f"first_stage_model.{_taesd_name(name)}": value for name, value in autoencoder.items()}
    tensors["first_stage_model.vae_scale"] = torch.tensor(LATENT_SCALE)
    tensors["first_stage_model.vae_shift"] = torch.tensor(0.0)
    for name, value in text.state_dict().items():
        tensors[f"cond_stage_model.transformer.text_model.{name.removeprefix('text_model.')}"] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    write_safetensors(path, tensors, {})


def write_diffusers(folder: Path, unet: dict[str, Tensor], autoencoder: dict[str, Tensor], text: CLIPTextModel) -> None:
    """The same as a folder of diffusers' StableDiffusionPipeline."""
    with torch.device("meta"):
        models = UNet2DConditionModel(**UNET), AutoencoderTiny()
    for model, tensors in zip(models, (unet, autoencoder), strict=True):
        model.load_state_dict(tensors, assign=True)
    pipeline = StableDiffusionPipeline(
        vae=models[1],
        text_encoder=text,
        tokenizer=load_tokenizer(Path(os.environ["COMFYUI_PATH"])),
        unet=models[0],
        scheduler=DDPMScheduler(**SCHEDULE),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)


def _taesd_name(name: str) -> str:
    """TAESD counts its decoder from a clamp, for which diffusers has no layer."""
    side, _, number, rest = name.split(".", 3)
    return f"taesd_{side}.{int(number) + (side == 'decoder')}.{rest}"


if __name__ == "__main__":
    assemble(Path(sys.argv[1]))
