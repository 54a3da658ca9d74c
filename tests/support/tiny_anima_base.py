"""A whole Anima at tiny sizes, in diffusers' modular layout: real classes, random weights, published names."""

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AnimaAutoBlocks,
    AnimaTextConditioner,
    AutoencoderKLQwenImage,
    CosmosTransformer3DModel,
    FlowMatchEulerDiscreteScheduler,
)
from diffusers.loaders.single_file_utils import convert_cosmos_transformer_checkpoint_to_diffusers
from torch import Tensor
from transformers import Qwen3Config, Qwen3Model, T5Tokenizer

from .tiny_anima import BLOCKS, HEAD_DIM, HEADS, LATENT_CHANNELS, PATCH, TEXT_DIM, WIDTH
from .tiny_sd3_base import LETTERS
from .tiny_studio_base import QWEN_TEXT, chat_tokenizer, silence

_LLM = "llm_adapter."
_TRANSFORMER: dict[str, Any] = {
    "in_channels": LATENT_CHANNELS,
    "out_channels": LATENT_CHANNELS,
    "num_attention_heads": HEADS,
    "attention_head_dim": HEAD_DIM,
    "num_layers": BLOCKS,
    "text_embed_dim": TEXT_DIM,
    "adaln_lora_dim": 8,
    "patch_size": (1, PATCH, PATCH),
    "rope_scale": (1.0, 4.0, 4.0),  # as ComfyUI has Anima
    "extra_pos_embed_type": None,
}


def diffusers_anima(seed: int = 0) -> Any:
    """diffusers' transformer with random weights."""
    torch.manual_seed(seed)
    model = CosmosTransformer3DModel(**_TRANSFORMER).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.copy_(0.2 * torch.randn(parameter.shape))
    return model


def of_comfy(network: Any) -> tuple[Any, Any]:
    """diffusers' transformer and text conditioner with the weights of ComfyUI's network, by diffusers' own conversion."""
    weights = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    transformer = CosmosTransformer3DModel(**_TRANSFORMER)
    body = {f"net.{name}": tensor for name, tensor in weights.items() if not name.startswith(_LLM)}
    transformer.load_state_dict(convert_cosmos_transformer_checkpoint_to_diffusers(body))
    sizes = {"source_dim": 8, "target_dim": 8, "model_dim": 8, "num_layers": 1, "num_attention_heads": 2}
    conditioner = AnimaTextConditioner(**sizes)
    conditioner.load_state_dict(
        {name.removeprefix(_LLM): tensor for name, tensor in weights.items() if name.startswith(_LLM)}
    )
    return transformer.eval().requires_grad_(False), conditioner.eval().requires_grad_(False)


def write_anima_base(folder: Path, seed: int = 0, transformer: Any = None) -> Path:
    """Write a model and return its folder."""
    torch.manual_seed(seed)
    words = T5Tokenizer(vocab=LETTERS, extra_ids=0)
    conditioner = AnimaTextConditioner(
        source_dim=TEXT_DIM,
        target_dim=TEXT_DIM,
        model_dim=TEXT_DIM,
        num_layers=1,
        num_attention_heads=2,
        target_vocab_size=len(words),
    )
    pipeline = AnimaAutoBlocks().init_pipeline()
    pipeline.update_components(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),  # as circlestone-labs/Anima has it
        tokenizer=chat_tokenizer(),
        t5_tokenizer=words,
        text_encoder=Qwen3Model(Qwen3Config(**QWEN_TEXT, head_dim=8)).eval(),
        text_conditioner=conditioner.eval(),
        vae=AutoencoderKLQwenImage(base_dim=8, z_dim=LATENT_CHANNELS, dim_mult=[1, 1, 1, 1], num_res_blocks=1).eval(),
        transformer=transformer or diffusers_anima(seed),
    )
    pipeline.save_pretrained(str(folder), overwrite_modular_index=True)
    return folder


def untouched(base: Any, noisy: Tensor, times: Tensor, text: dict[str, Tensor]) -> Tensor:
    """What a base's model answers through diffusers' own processors (B, C, h, w)."""
    sides = [8 * side for side in noisy.shape[-2:]]
    return base.model(noisy[:, :, None], times, text["text"], padding_mask=torch.zeros(1, 1, *sides)).sample[:, :, 0]


@torch.no_grad()
def write_teachable_anima(folder: Path, pictures: Tensor) -> Path:
    """The same model, with latents (of pictures (B, 3, H, W), -1..1) that have no noise and a deviation of 1, so that
    what a reference tells of a picture is worth much of the loss; and with gates that let attention through at all
    times, past layers that would drown it."""
    transformer = diffusers_anima()
    for name, parameter in transformer.named_parameters():
        if "norm" in name and name.endswith("linear_2.weight"):
            parameter.zero_()
        if name.endswith(("patch_embed.proj.weight", "attn1.to_out.0.weight", "ff.net.2.weight")):
            parameter.mul_(0.1)
    first, second = (getattr(transformer.time_embed.t_embedder, f"linear_{number}").weight for number in (1, 2))
    for weight in (first, second):
        weight.zero_()
    first[0, WIDTH // 2 - 1] = 5.0  # of the slowest cosine, which is 1 at all times
    second[2 * WIDTH :, 0] = 0.2
    write_anima_base(folder, transformer=transformer)
    vae = AutoencoderKLQwenImage.from_pretrained(folder / "vae")
    silence(vae.quant_conv)
    latents = vae.encode(pictures[:, :, None]).latent_dist.mean.transpose(0, 1).flatten(1)
    vae.register_to_config(latents_mean=latents.mean(1).tolist(), latents_std=latents.std(1).tolist())
    vae.save_pretrained(folder / "vae")
    return folder
