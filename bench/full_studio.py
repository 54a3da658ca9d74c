"""Z-Image and Qwen-Image at full size on the meta device, with text of a length that is fixed here.

Transformers and Qwen-Image's autoencoder are diffusers' defaults, which are the published sizes; text encoders are
Qwen3-4B and Qwen2.5-VL-7B as their authors describe them; Z-Image has FLUX.1's autoencoder.
"""

import functools
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from full_models import META, vae
from torch import Tensor, nn
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen3Config, Qwen3Model

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


@functools.cache
def open_z_image() -> StudioBackbone:
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
def open_qwen_image() -> StudioBackbone:
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


def _ready(base: StudioBackbone) -> StudioBackbone:
    base.install()
    return base
