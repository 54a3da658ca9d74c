"""Whole Z-Image and Qwen-Image models at tiny sizes, in diffusers layout: real classes, random weights, published names."""

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    QwenImagePipeline,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer, Qwen3Config, Qwen3Model

from .tiny_qwen_image import TEXT_DIM, diffusers_qwen_image
from .tiny_z_image import LATENT_CHANNELS, PATCH, diffusers_z_image
from .trained import COLORS, colors

STUDIO_FAMILIES = ("z_image", "qwen_image")
_BYTES = sorted(ByteLevel.alphabet())
_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_TOKENS = len(_BYTES) + len(_SPECIAL)
# as the published one lays out a message; also the empty thought that Z-Image asks to leave open
_CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)
QWEN_TEXT: dict[str, Any] = {
    "vocab_size": CHAT_TOKENS,
    "hidden_size": TEXT_DIM,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 2048,
    "bos_token_id": len(_BYTES),
    "eos_token_id": len(_BYTES),
}
_VISION: dict[str, Any] = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2}
# as Tongyi-MAI/Z-Image-Turbo and Qwen/Qwen-Image have them: one shift, and one that follows the picture's size
_SCHEDULES: dict[str, dict[str, Any]] = {
    "z_image": {"shift": 3.0, "use_dynamic_shifting": False},
    "qwen_image": {
        "use_dynamic_shifting": True,
        "base_shift": 0.5,
        "max_shift": 0.9,
        "base_image_seq_len": 256,
        "max_image_seq_len": 8192,
        "shift_terminal": 0.02,
        "time_shift_type": "exponential",
    },
}


def write_studio_base(folder: Path, family: str, seed: int = 0) -> Path:
    """Write a model of the "z_image" or "qwen_image" kind and return its folder."""
    torch.manual_seed(seed)
    scheduler = FlowMatchEulerDiscreteScheduler(**_SCHEDULES[family])
    given = {"scheduler": scheduler, "tokenizer": chat_tokenizer()}
    pipeline = _z_image(given, seed) if family == "z_image" else _qwen_image(given, seed)
    pipeline.save_pretrained(folder)
    return folder


def chat_tokenizer() -> Qwen2Tokenizer:
    """A token for each byte of a text, and the signs around messages."""
    tokenizer = Qwen2Tokenizer(vocab={sign: number for number, sign in enumerate(_BYTES + list(_SPECIAL))}, merges=[])
    tokenizer.chat_template = _CHAT
    return tokenizer


def _z_image(given: dict[str, Any], seed: int) -> ZImagePipeline:
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=16,
        scaling_factor=0.3611,
        shift_factor=0.1159,
        use_quant_conv=False,
        use_post_quant_conv=False,
    ).eval()
    text = Qwen3Model(Qwen3Config(**QWEN_TEXT, head_dim=8)).eval()
    return ZImagePipeline(vae=vae, text_encoder=text, transformer=loadable_z_image(seed), **given)


def loadable_z_image(seed: int = 0, channels: int = LATENT_CHANNELS) -> ZImageTransformer2DModel:
    """`diffusers_z_image`, as diffusers' own constructor makes it: units of the timestep's MLP beyond it are dead."""
    tiny = diffusers_z_image(seed, channels)
    model = ZImageTransformer2DModel.from_config(tiny.config)
    weights = {name: _padded(tensor, model.state_dict()[name]) for name, tensor in tiny.state_dict().items()}
    model.load_state_dict(weights, strict=True)
    return model.eval().requires_grad_(False)


def _padded(tensor: Tensor, like: Tensor) -> Tensor:
    padded = torch.zeros_like(like)
    padded[tuple(slice(size) for size in tensor.shape)] = tensor
    return padded


def _qwen_image(given: dict[str, Any], seed: int) -> QwenImagePipeline:
    vae = _video_vae()
    rope = {"rope_type": "default", "mrope_section": [2, 2, 2], "rope_theta": 10000.0}
    config = Qwen2_5_VLConfig(
        text_config={**QWEN_TEXT, "rope_parameters": rope},
        vision_config={**_VISION, "out_hidden_size": TEXT_DIM, "fullatt_block_indexes": [0]},
        bos_token_id=QWEN_TEXT["bos_token_id"],
        eos_token_id=QWEN_TEXT["eos_token_id"],
    )
    text = Qwen2_5_VLForConditionalGeneration(config).eval()
    return QwenImagePipeline(vae=vae, text_encoder=text, transformer=diffusers_qwen_image(seed), **given)


def _video_vae(**settings: Any) -> AutoencoderKLQwenImage:
    sizes: dict[str, Any] = {"z_dim": LATENT_CHANNELS, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}
    return AutoencoderKLQwenImage(base_dim=8, **sizes, **settings).eval()


@torch.no_grad()
def write_teachable_studio_base(folder: Path, family: str) -> Path:
    """A random, frozen model that sees colours, whose gates let attention through: to be used with the autoencoder in
    its folder `COLORS`."""
    write_studio_base(folder, family)
    if family == "z_image":
        z_image = loadable_z_image(channels=4)
        for layer in z_image.layers:
            layer.adaLN_modulation[0].bias.chunk(4)[1].fill_(2.0)
        z_image.save_pretrained(folder / "transformer")
        colors().save_pretrained(folder / COLORS)
    else:
        qwen_image = diffusers_qwen_image()
        for block in qwen_image.transformer_blocks:
            block.img_mod[1].bias.chunk(6)[2].fill_(1.0)
        said = torch.eye(LATENT_CHANNELS).repeat_interleave(PATCH**2, 0)  # else it is narrower than what it is to say
        qwen_image.proj_out.weight.zero_()[:, :LATENT_CHANNELS] = said
        qwen_image.save_pretrained(folder / "transformer")
        _video_colors().save_pretrained(folder / COLORS)
    return folder


def _video_colors() -> AutoencoderKLQwenImage:
    """Red, green and blue, over and over, of the corner of each cell, if they are full or none; no noise.

    Its last layers norm, and let negative numbers hardly pass; so there is each colour's opposite too.
    """
    vae = _video_vae(latents_mean=[0.0] * LATENT_CHANNELS, latents_std=[1.0] * LATENT_CHANNELS)
    encoder = vae.encoder
    for parameter in (*encoder.parameters(), *vae.quant_conv.parameters()):
        if parameter.dim() != 4 or parameter.shape[1:] != (1, 1, 1):  # of norms
            parameter.zero_()
    for color in range(3):
        encoder.conv_in.weight[(color, color + 3), color, -1, 1, 1] = torch.tensor([1.0, -1.0])
        encoder.conv_out.weight[color:LATENT_CHANNELS:3, (color, color + 3), -1, 1, 1] = torch.tensor([1.0, -1.0])
    for block in encoder.down_blocks:
        if hasattr(block, "resample"):
            torch.nn.init.dirac_(block.resample[1].weight)
    encoder.norm_out.gamma.fill_((6 / encoder.dim) ** 0.5)
    torch.nn.init.dirac_(vae.quant_conv.weight)
    vae.quant_conv.bias[LATENT_CHANNELS:] = -30  # the logarithm of the variance
    return vae


def silence(layer: torch.nn.Module) -> None:
    """Let the second half of its channels, which say the logarithm of the variance, be low."""
    half = len(layer.bias) // 2
    layer.weight[half:] = 0
    layer.bias[half:] = -30
