"""A whole Anima at tiny sizes, in diffusers' modular layout: real classes, random weights, published names."""

from pathlib import Path
from typing import Any

import torch
from diffusers import AnimaTextConditioner, AutoencoderKLQwenImage, CosmosTransformer3DModel
from diffusers.loaders.single_file_utils import convert_cosmos_transformer_checkpoint_to_diffusers
from torch import Tensor

from .tiny_anima import BLOCKS, HEAD_DIM, HEADS, LATENT_CHANNELS, PATCH, TEXT_DIM

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
