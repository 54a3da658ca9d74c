"""Single files in the original names (CompVis, Stability): the inverse of diffusers' `convert_ldm_*`, for tiny models."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import save_file
from torch import Tensor

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_OPEN_CLIP = {
    "embeddings.position_embedding.weight": "positional_embedding",
    "embeddings.token_embedding": "token_embedding",
    "encoder.layers": "transformer.resblocks",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "fc1": "c_fc",
    "fc2": "c_proj",
    "self_attn": "attn",
    "final_layer_norm": "ln_final",
}


def write_single_file(folder: Path, path: Path, *, open_clip: bool = False) -> Path:
    """The model of a folder in diffusers layout as one file; `open_clip` names an SD1.5's text encoder as SD2.x does."""
    pipeline = DiffusionPipeline.from_pretrained(folder)
    tensors = _prefixed("model.diffusion_model.", unet_names(pipeline.unet))
    tensors |= _prefixed("first_stage_model.", vae_names(pipeline.vae))
    if isinstance(pipeline, StableDiffusionXLPipeline):
        tensors |= _prefixed("conditioner.embedders.0.transformer.", _clip_names(pipeline.text_encoder))
        tensors |= _prefixed("conditioner.embedders.1.model.", open_clip_names(pipeline.text_encoder_2))
    elif open_clip:
        tensors |= _prefixed("cond_stage_model.model.", open_clip_names(pipeline.text_encoder))
    else:
        tensors |= _prefixed("cond_stage_model.transformer.", _clip_names(pipeline.text_encoder))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path


def unet_names(unet: Any) -> dict[str, Tensor]:
    blocks = unet.config.layers_per_block + 1
    return {_unet_name(name, blocks, unet): tensor for name, tensor in unet.state_dict().items()}


def _unet_name(name: str, blocks: int, unet: Any) -> str:
    for ours, theirs in _UNET_ENDS.items():
        if name.startswith(f"{ours}."):
            return name.replace(ours, theirs, 1)
    side, _, rest = name.partition(".")
    if side == "mid_block":
        kind, number, rest = rest.split(".", 2)
        return f"middle_block.{1 if kind == 'attentions' else 2 * int(number)}.{_resnet(rest)}"
    block, kind, number, rest = rest.split(".", 3)
    if kind == "downsamplers":
        return f"input_blocks.{(int(block) + 1) * blocks}.0.{rest.replace('conv', 'op')}"
    if kind == "upsamplers":
        place = 2 if hasattr(unet.up_blocks[int(block)], "attentions") else 1
        return f"output_blocks.{(int(block) + 1) * blocks - 1}.{place}.{rest}"
    place = int(block) * blocks + int(number)
    address = f"input_blocks.{place + 1}" if side == "down_blocks" else f"output_blocks.{place}"
    return f"{address}.1.{rest}" if kind == "attentions" else f"{address}.0.{_resnet(rest)}"


def _resnet(name: str) -> str:
    first, _, rest = name.partition(".")
    return f"{_RESNET[first]}.{rest}" if first in _RESNET else name


def vae_names(vae: Any) -> dict[str, Tensor]:
    last = len(vae.config.up_block_types) - 1
    tensors = {}
    for name, tensor in vae.state_dict().items():
        theirs = re.sub(r"down_blocks\.(\d)", r"down.\1", name)
        theirs = re.sub(r"up_blocks\.(\d)", lambda found: f"up.{last - int(found[1])}", theirs)
        theirs = re.sub(r"mid_block\.resnets\.(\d)", lambda found: f"mid.block_{int(found[1]) + 1}", theirs)
        theirs = theirs.replace(".resnets.", ".block.").replace("conv_shortcut", "nin_shortcut")
        theirs = re.sub(r"(down|up)samplers\.0", r"\1sample", theirs).replace("conv_norm_out", "norm_out")
        if "mid_block.attentions.0" in theirs:
            theirs = _replaced(theirs.replace("mid_block.attentions.0", "mid.attn_1"), _VAE_ATTENTION)
            tensor = tensor[:, :, None, None] if tensor.ndim == 2 else tensor
        tensors[theirs] = tensor
    return tensors


def open_clip_names(encoder: Any) -> dict[str, Tensor]:
    state = {name.removeprefix("text_model."): tensor for name, tensor in encoder.state_dict().items()}
    projection = state.pop("text_projection.weight", torch.eye(encoder.config.hidden_size))
    tensors: dict[str, Tensor] = {"text_projection": projection.T}
    for name, tensor in state.items():
        if ".q_proj." in name:
            three = [state[name.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            theirs = _replaced(name, _OPEN_CLIP).replace("q_proj.", "in_proj_")
            tensors[theirs] = torch.cat(three)
        elif ".k_proj." not in name and ".v_proj." not in name:
            tensors[_replaced(name, _OPEN_CLIP)] = tensor
    return tensors


def _clip_names(encoder: Any) -> dict[str, Tensor]:
    """transformers has lost `text_model.`, which the files keep."""
    state = encoder.state_dict()
    return {f"text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in state.items()}


def _replaced(name: str, names: Mapping[str, str]) -> str:
    for ours, theirs in names.items():
        name = name.replace(ours, theirs)
    return name


def _prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}
