"""Z-Image, Qwen-Image and Anima at full size on the meta device, with text of a length that is fixed here.

Transformers and Qwen-Image's autoencoder are diffusers' defaults, which are the published sizes; text encoders are
Qwen3-4B, Qwen2.5-VL-7B and Qwen3-0.6B as their authors describe them; Z-Image has FLUX.1's autoencoder, Anima Qwen-Image's
and a Cosmos-Predict2 of 2 billion weights.
"""

import functools
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import (
    AnimaAutoBlocks,
    AnimaTextConditioner,
    AutoencoderKLQwenImage,
    CosmosTransformer3DModel,
    FlowMatchEulerDiscreteScheduler,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from full_models import META, vae
from torch import Tensor, nn
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen3Config, Qwen3Model

from ipadapter_trainer.backbones.anima import AnimaBackbone
from ipadapter_trainer.backbones.backbone import Backbone
from ipadapter_trainer.backbones.qwen_image import QwenImageBackbone
from ipadapter_trainer.backbones.studio import TEXT_LENGTH, StudioBackbone
from ipadapter_trainer.backbones.z_image import ZImageBackbone

TEXT_TOKENS = 128  # of a caption, with what the pipelines write around it
_QWEN3_4B: dict[str, Any] = {
    "vocab_size": 151_936,
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
}
_QWEN3_06B: dict[str, Any] = {
    **_QWEN3_4B,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
}
_QWEN25_7B: dict[str, Any] = {
    "vocab_size": 152_064,
    "hidden_size": 3584,
    "intermediate_size": 18_944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
}


class _CountedText(StudioBackbone):
    """The meta device knows no text, nor how long it is: the text encoder runs on as many tokens as it would read."""

    read: int

    @torch.no_grad()
    def encode_text(self, captions: Sequence[str]) -> dict[str, Tensor]:
        ids = torch.zeros(len(captions), self.read, dtype=torch.long, device=META)
        # no mask: its values are asked for, and it changes no count
        states = self.pipeline.text_encoder(input_ids=ids, output_hidden_states=True).hidden_states[-1]
        text = states.new_zeros(len(captions), TEXT_LENGTH, states.shape[-1])
        mask = (torch.arange(TEXT_LENGTH) < TEXT_TOKENS).float().repeat(len(captions), 1)
        return {"text": text, "mask": mask}


class CountedZImage(_CountedText, ZImageBackbone):
    read = TEXT_LENGTH  # its pipeline fills every text up


class CountedQwenImage(_CountedText, QwenImageBackbone):
    read = TEXT_TOKENS


class CountedAnima(AnimaBackbone):
    @torch.no_grad()
    def encode_text(self, captions: Sequence[str]) -> dict[str, Tensor]:
        ids = torch.zeros(len(captions), TEXT_TOKENS, dtype=torch.long, device=META)
        states = self.pipeline.text_encoder(input_ids=ids).last_hidden_state
        return {"text": self.pipeline.text_conditioner(source_hidden_states=states, target_input_ids=ids)}


@functools.cache
def open_anima() -> Backbone:
    with META:
        pipeline = AnimaAutoBlocks().init_pipeline()
        parts = {
            "transformer": CosmosTransformer3DModel(
                num_attention_heads=16, rope_scale=(1.0, 4.0, 4.0), extra_pos_embed_type=None
            ),
            "vae": AutoencoderKLQwenImage(),
            "text_encoder": Qwen3Model(Qwen3Config(**_QWEN3_06B)),
            "text_conditioner": AnimaTextConditioner(),
        }
    for name, part in parts.items():
        setattr(pipeline, name, part.requires_grad_(False))
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    return _ready(CountedAnima("anima", pipeline, META, torch.float32))


@functools.cache
def open_z_image() -> Backbone:
    with META:
        pipeline = ZImagePipeline(
            transformer=ZImageTransformer2DModel(),
            vae=vae(16),
            text_encoder=Qwen3Model(Qwen3Config(**_QWEN3_4B)),
            tokenizer=None,
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        )
    return _ready(CountedZImage("z_image", _frozen(pipeline), META, torch.float32))


@functools.cache
def open_qwen_image() -> Backbone:
    config = Qwen2_5_VLConfig(text_config=_QWEN25_7B)
    with META:
        pipeline = QwenImagePipeline(
            transformer=QwenImageTransformer2DModel(),
            vae=AutoencoderKLQwenImage(),
            text_encoder=Qwen2_5_VLForConditionalGeneration(config),
            tokenizer=None,
            scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        )
    return _ready(CountedQwenImage("qwen_image", _frozen(pipeline), META, torch.float32))


def _frozen(pipeline: Any) -> Any:
    for part in pipeline.components.values():
        if isinstance(part, nn.Module):
            part.requires_grad_(False)
    return pipeline


def _ready(base: Backbone) -> Backbone:
    base.install()
    return base
