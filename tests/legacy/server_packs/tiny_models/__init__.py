"""A custom node pack of the test's server: ComfyUI's own model classes at tiny sizes, random.

`TinyCheckpoint` stands for CheckpointLoaderSimple, `TinyCLIPVision` for CLIPVisionLoader and `TinyControlNet` for
ControlNetLoader, which build what they load at full size only. What stands for the loaders of transformers is in `transformers.py`.
"""

import copy
import gc
import json
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfy.cldm.cldm
import comfy.clip_vision
import comfy.controlnet
import comfy.model_patcher
import comfy.sd
import comfy.sd1_clip
import comfy.sdxl_clip
import comfy.supported_models
import comfy.taesd.taesd
import torch
from comfy_api.latest import ComfyExtension, io

from .transformers import TinyDecode, TinyPrompt, TinyTransformer

gc.freeze()  # ComfyUI collects between prompts: what was imported stays, and need not be looked through each time

_UNET = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 32,
    "use_spatial_transformer": True,
    "use_temporal_attention": False,
    "legacy": False,
}
_SD15 = {
    **_UNET,
    "context_dim": 768,
    "adm_in_channels": None,
    "channel_mult": [1, 2, 4, 4],
    "num_res_blocks": [2, 2, 2, 2],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "transformer_depth_middle": 1,
    "num_heads": 8,
    "num_head_channels": -1,
    "use_linear_in_transformer": False,
}
_SDXL = {
    **_UNET,
    "context_dim": 2048,
    "adm_in_channels": 2816,
    "num_classes": "sequential",
    "channel_mult": [1, 2, 4],
    "num_res_blocks": [2, 2, 2],
    "transformer_depth": [0, 0, 1, 1, 2, 2],
    "transformer_depth_output": [0, 0, 0, 1, 1, 1, 2, 2, 2],
    "transformer_depth_middle": 2,
    "num_heads": -1,
    "num_head_channels": 64,
    "use_linear_in_transformer": True,
}
KOLORS_TOKEN_DIM = 64  # 4096 in Kolors
_DRAWN_ROWS = 4096
_SMALL_TEXT = {"num_hidden_layers": 3, "intermediate_size": 64}


@dataclass(frozen=True)
class _Base:
    """A kind of checkpoint: class of `comfy.supported_models`, its UNet, text model and tokenizer."""

    config: str
    unet: dict[str, Any]
    text_model: type
    tokenizer: type
    is_kolors: bool = False


_XL = (_SDXL, comfy.sdxl_clip.SDXLClipModel, comfy.sdxl_clip.SDXLTokenizer)
CHECKPOINTS = {
    "v1-5-pruned-emaonly-fp16.safetensors": _Base(
        "SD15", _SD15, comfy.sd1_clip.SD1ClipModel, comfy.sd1_clip.SD1Tokenizer
    ),
    "sd_xl_base_1.0.safetensors": _Base("SDXL", *_XL),
    "kolors_unet.safetensors": _Base("SDXL", *_XL, is_kolors=True),
}
_VISION = {
    "model_type": "clip_vision_model",
    "hidden_act": "gelu",
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_channels": 3,
    "image_size": 28,
    "patch_size": 14,
}
ENCODERS = {
    "CLIP-ViT-H-14-laion2B-s32B-b79K.safetensors": {"hidden_size": 1280, "projection_dim": 1024},
    "CLIP-ViT-bigG-14-laion2B-39B-b160k.safetensors": {"hidden_size": 1664, "projection_dim": 1280},
    "clip-vit-large-patch14-336.safetensors": {"hidden_size": 1024, "projection_dim": 768},
}


@torch.no_grad()
def _randomise(module: torch.nn.Module, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        if parameter.ndim > 1:
            fan_in = parameter[0].numel()
            drawn = torch.randn(min(len(parameter), _DRAWN_ROWS), *parameter.shape[1:], generator=generator)
            repeated = torch.arange(len(parameter)) % len(drawn)  # the words of CLIP are 50,000 rows
            parameter.copy_(drawn[repeated] / fan_in**0.5)
        else:
            parameter.fill_(float(name.endswith("weight")))


def _model(base: _Base) -> comfy.model_patcher.ModelPatcher:
    config = getattr(comfy.supported_models, base.config)(dict(base.unet))
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, "", device="cpu").eval()
    _randomise(model.diffusion_model)
    if base.is_kolors:  # as a Kolors loader of another pack leaves it
        model.diffusion_model.encoder_hid_proj = torch.nn.Linear(KOLORS_TOKEN_DIM, base.unet["context_dim"])
        _randomise(model.diffusion_model.encoder_hid_proj)
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)


def _clip(base: _Base) -> comfy.sd.CLIP:
    target = SimpleNamespace(params={}, clip=base.text_model, tokenizer=base.tokenizer)
    options = {f"clip_{part}_model_config": dict(_SMALL_TEXT) for part in "lg"}
    clip = comfy.sd.CLIP(target, model_options={**options, "dtype": torch.float32})
    _randomise(clip.cond_stage_model)
    return clip


def _vae() -> comfy.sd.VAE:
    autoencoder = comfy.taesd.taesd.TAESD(latent_channels=4)
    for part in (autoencoder.taesd_encoder, autoencoder.taesd_decoder):
        _randomise(part)
    return comfy.sd.VAE(sd=autoencoder.state_dict())


@lru_cache  # graph after graph loads the same few
def _checkpoint(name: str) -> tuple[comfy.model_patcher.ModelPatcher, comfy.sd.CLIP, comfy.sd.VAE]:
    base = CHECKPOINTS[name]
    with torch.inference_mode(False):
        return _model(base), _clip(base), _vae()


@lru_cache
def _encoder(name: str) -> comfy.clip_vision.ClipVisionModel:
    with torch.inference_mode(False), tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.json"  # the older versions take no dictionary
        config.write_text(json.dumps({**_VISION, **ENCODERS[name]}), encoding="utf-8")
        clip_vision = comfy.clip_vision.ClipVisionModel(str(config))
        _randomise(clip_vision.model)
    return clip_vision


class TinyCheckpoint(io.ComfyNode):
    """MODEL, CLIP and VAE of a kind of checkpoint."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TinyCheckpoint",
            category="test",
            inputs=[io.Combo.Input("ckpt_name", options=list(CHECKPOINTS))],
            outputs=[io.Model.Output(), io.Clip.Output(), io.Vae.Output()],
        )

    @classmethod
    def execute(cls, ckpt_name: str) -> io.NodeOutput:
        return io.NodeOutput(*_checkpoint(ckpt_name))


class TinyCLIPVision(io.ComfyNode):
    """A CLIP_VISION of the widths a published encoder has."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TinyCLIPVision",
            category="test",
            inputs=[io.Combo.Input("clip_name", options=list(ENCODERS))],
            outputs=[io.ClipVision.Output()],
        )

    @classmethod
    def execute(cls, clip_name: str) -> io.NodeOutput:
        return io.NodeOutput(_encoder(clip_name))


class TinyControlNet(io.ComfyNode):
    """A CONTROL_NET for the tiny SD1.5."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TinyControlNet",
            category="test",
            inputs=[io.String.Input("control_net_name")],
            outputs=[io.ControlNet.Output()],
        )

    @classmethod
    def execute(cls, control_net_name: str) -> io.NodeOutput:
        with torch.inference_mode(False):
            network = comfy.cldm.cldm.ControlNet(hint_channels=3, **copy.deepcopy(_SD15)).eval()
            _randomise(network)
        return io.NodeOutput(comfy.controlnet.ControlNet(network, load_device=torch.device("cpu")))


class TinyModels(ComfyExtension):
    """The pack."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [TinyCheckpoint, TinyCLIPVision, TinyControlNet, TinyTransformer, TinyPrompt, TinyDecode]


async def comfy_entrypoint() -> TinyModels:
    """What ComfyUI calls after importing the pack."""
    return TinyModels()
