"""Runs that end in something: a base that can be taught in seconds, and adapters trained by `train` and exported."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderTiny, DiffusionPipeline, UNet2DConditionModel
from PIL import Image
from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

from ipadapter_trainer.config import Config
from ipadapter_trainer.files.checkpoint_export import export_checkpoint
from ipadapter_trainer.loop import train

from .encoders import IMAGE_SIZE
from .tiny_base import write_base
from .tiny_flux_base import write_flux_base
from .tiny_unet import CONTEXT_DIM
from .training import make_config, write_pictures

COLORS = "colors"
KINDS = {"base": {"kind": "base"}, "plus": {"kind": "plus", "resampler_dim": 64}}


@dataclass(frozen=True)
class Trained:
    """An exported adapter and what it was trained with."""

    config: Config
    base: Path
    encoder: Path
    file: Path


def train_adapter(folder: Path, layout: str, kind: str, encoder: Path) -> Trained:
    """Two steps of `train`, long ones so that the adapter shows, and the export of the last checkpoint."""
    base = write_base(folder / "base", layout)
    config = make_config(
        base,
        encoder,
        write_pictures(folder / "pictures", 4),
        folder / "run",
        adapter=KINDS[kind],
        train={"steps": 2},
        optimizer={"learning_rate": 0.05},
    )
    train(config)
    return Trained(config, base, encoder, export_checkpoint(config.run, None).path)


def reference_picture() -> Image.Image:
    """Of the encoder's own size, so that no program has to resize it."""
    pixels = np.random.default_rng(5).integers(0, 256, (IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def diffusers_pipeline(trained: Trained) -> Any:
    """diffusers' pipeline with the exported file loaded by its own `load_ip_adapter`, as its users call it."""
    pipeline = DiffusionPipeline.from_pretrained(
        trained.base,
        image_encoder=CLIPVisionModelWithProjection.from_pretrained(trained.encoder),
        feature_extractor=CLIPImageProcessor(size=IMAGE_SIZE, crop_size=IMAGE_SIZE),
    )
    pipeline.load_ip_adapter(
        str(trained.file.parent), subfolder="", weight_name=trained.file.name, image_encoder_folder=None
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def write_teachable_base(folder: Path) -> Path:
    """A random, frozen v-prediction model; the autoencoder to use with it is in its folder `COLORS`.

    Latents are the colours of every eighth pixel. Near full noise v is minus the picture, so that what a reference
    tells is worth most of the loss, although the frozen part knows nothing.
    """
    write_base(folder, prediction_type="v_prediction")
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=4,
        block_out_channels=(32,),
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        layers_per_block=1,
        attention_head_dim=2,
        cross_attention_dim=CONTEXT_DIM,
        norm_num_groups=4,  # groups of one channel, as 32 would be, let no mean pass
    )
    unet.save_pretrained(folder / "unet")
    colors().save_pretrained(folder / COLORS)
    return folder


def write_teachable_flux(folder: Path) -> Path:
    """A random, frozen FLUX.1 with the same autoencoder: a velocity is the noise, which the frozen part hardly knows,
    less the picture, which the reference tells."""
    write_flux_base(folder)
    colors().save_pretrained(folder / COLORS)
    return folder


@torch.no_grad()
def colors() -> AutoencoderTiny:
    """Red, green, blue, 0 of the pixel at each cell's corner; its decoder is no inverse."""
    widths, blocks = (4, 4, 4, 4), (1, 1, 1, 1)
    vae = AutoencoderTiny(
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        num_encoder_blocks=blocks,
        num_decoder_blocks=blocks,
        scaling_factor=1.0,
    )
    for parameter in vae.encoder.parameters():
        parameter.zero_()
    outer = [layer for layer in vae.encoder.layers if isinstance(layer, torch.nn.Conv2d)]
    for layer in outer:
        torch.nn.init.dirac_(layer.weight)
    outer[-1].weight *= 2  # from 0..1, as TAESD takes pictures, to -1..1
    outer[-1].bias[:3] = -1
    return vae
