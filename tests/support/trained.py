"""Runs that end in something: a base that can be taught in seconds, and adapters trained by `train` and exported."""

from pathlib import Path

import torch
from diffusers import AutoencoderTiny, UNet2DConditionModel

from .tiny_base import write_base
from .tiny_unet import CONTEXT_DIM

COLORS = "colors"


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
    _colors().save_pretrained(folder / COLORS)
    return folder


@torch.no_grad()
def _colors() -> AutoencoderTiny:
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
