"""Anima, a Cosmos-Predict2 with a text adapter, through diffusers' modular pipeline; its adapters are those of anima_lora.

    out = to_out(attention(q, text) + softmax(q K^T / sqrt(D)) V),  K = rms(to_k_ip t) * (the block's own norm_k)

in the cross-attention of every block, of image tokens t and the block's normed queries q.
"""

# B samples, C latent channels, h w latent size, L cells of the picture, T text length, W text width, N image tokens, H heads

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch
from diffusers.modular_pipelines.anima.encoders import AnimaTextEncoderStep
from diffusers.modular_pipelines.anima.modular_pipeline import AnimaModularPipeline
from torch import Tensor

from ipadapter_core.backbone.anima import ANIMA
from ipadapter_core.backbone.sites import Sites, blocks_in_a_row
from ipadapter_core.errors import MismatchError
from ipadapter_core.file.names import PE
from ipadapter_core.file.spec import Feature, Projection

from ..config import AdapterConfig, BaseModelConfig, Config
from ..models.quantized import full_weight
from .backbone import TextEncoder
from .first_frame import FirstFrame
from .flow import FlowBackbone
from .image_prompt import ImagePrompt
from .shown import ShowingBackbone, Shown
from .studio import TEXT_LENGTH, image_attention, joint_attention

_KIND = "plus"
_FEATURE = Feature.LAST_HIDDEN_STATE


class AnimaBackbone(FirstFrame, ShowingBackbone, FlowBackbone):
    """Text is "text" (B, 512, W), as the conditioner makes it of Qwen3's states and T5's tokens; what is over is zeros,
    which the model attends to."""

    pipelines = (AnimaModularPipeline,)
    part = "transformer"
    word = "transformer"
    text_parts = ("text_encoder", "text_conditioner")
    bases = "Anima"
    layout = PE
    projections: ClassVar[Mapping[str, Projection]] = {_KIND: Projection.PERCEIVER}
    has_head_dim = True
    names_encoder_kind = True

    @classmethod
    def of(cls, pipeline: Any, config: BaseModelConfig, device: torch.device, dtype: torch.dtype) -> "AnimaBackbone":
        if dtype is torch.float16:
            raise MismatchError(
                f'base.precision = "fp16" with {config.model}, an Anima',
                expected='"bf16" or "fp32": what its blocks hand on leaves the range of fp16',
                action='set base.precision = "bf16"',
            )
        return cls(config.model, pipeline, device, dtype)

    @property
    def texts(self) -> tuple[TextEncoder, ...]:
        tokenizers = dict(zip(self.text_parts, ("tokenizer", "t5_tokenizer"), strict=True))
        models = {part: getattr(self.pipeline, part) for part in self.text_parts}
        return tuple(
            TextEncoder(part, getattr(self.pipeline, tokenizers[part]), model)
            for part, model in models.items()
            if model is not None
        )

    def release(self, parts: frozenset[str]) -> None:
        super().release(parts - {"text"})
        if "text" in parts:
            for text in self.texts:
                setattr(self.pipeline, text.part, None)

    @property
    def patch(self) -> int:
        _, patch, _ = self.model.config.patch_size
        return int(patch)

    @property
    def attentions(self) -> tuple[Any, ...]:
        """The cross-attention of every block."""
        return tuple(block.attn2 for block in self.model.transformer_blocks)

    @cached_property
    def sites(self) -> Sites:
        return Sites(
            ANIMA,
            blocks_in_a_row(ANIMA.groups[0], ((each.heads, each.inner_dim // each.heads) for each in self.attentions)),
            self.patch,
        )

    @property
    def token_dim(self) -> int:
        return int(self.model.config.text_embed_dim)

    def text_kv(self, site: int) -> tuple[Tensor, Tensor]:
        attention = self.attentions[site]
        return full_weight(attention.to_k), full_weight(attention.to_v)

    def processor(self, site: int) -> "_ImageAttention":
        return _ImageAttention(site, self.shown)

    @torch.no_grad()
    def encode_text(self, captions: Sequence[str]) -> dict[str, Tensor]:
        read = AnimaTextEncoderStep.encode_prompt(
            self.pipeline,
            list(captions),
            prepare_unconditional_embeds=False,
            max_sequence_length=TEXT_LENGTH,
            device=self.pipeline.text_encoder.device,
            dtype=self.pipeline.text_conditioner.dtype,
        )
        text: Tensor = self.pipeline.text_conditioner(
            source_hidden_states=read["qwen_prompt_embeds"],
            target_input_ids=read["t5_input_ids"],
            target_attention_mask=read["t5_attention_mask"],
            source_attention_mask=read["qwen_attention_mask"],
        )
        return {"text": text}

    def predict(
        self, noisy: Tensor, times: Tensor, text: Mapping[str, Tensor], sizes: Tensor, image: ImagePrompt
    ) -> Tensor:
        padding = torch.zeros(1, 1, *noisy.shape[-2:], device=noisy.device, dtype=self.dtype)
        with self.shown.showing(image.kv, noisy.shape[-2] * noisy.shape[-1] // self.patch**2):
            answer: Tensor = self.model(
                noisy.to(self.dtype)[:, :, None], times, text["text"].to(self.dtype), padding_mask=padding
            ).sample
        return answer.squeeze(2)

    def check_adapter(self, config: AdapterConfig) -> None:
        if config.kind != _KIND:
            raise MismatchError(
                f'adapter.kind = "{config.kind}" with {self.name}, an Anima',
                expected=f'"{_KIND}", the only kind that is trained for Anima (that of anima_lora)',
                action=f'set adapter.kind = "{_KIND}"',
            )

    def check(self, config: Config) -> None:
        super().check(config)
        if config.encoder.feature != _FEATURE.value:
            raise MismatchError(
                f'encoder.feature = "{config.encoder.feature}" with {self.name}, an Anima',
                expected=f'"{_FEATURE.value}", which adapters of this kind read',
                action=f'set encoder.feature = "{_FEATURE.value}"',
            )


class _ImageAttention:
    """Attention of a block to the text, and to the image tokens."""

    def __init__(self, site: int, shown: Shown) -> None:
        self.site, self.shown = site, shown

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        query = attn.norm_q(attn.to_q(hidden_states).unflatten(-1, (attn.heads, -1)))
        key, value = (
            project(encoder_hidden_states).unflatten(-1, (attn.heads, -1)) for project in (attn.to_k, attn.to_v)
        )
        out = joint_attention(query, attn.norm_k(key), value, attention_mask)
        kv = None if self.shown.kv is None else self.shown.kv[self.site]
        if kv is not None:
            image_key, image_value = kv
            weight = attn.norm_k.weight.to(image_key).repeat(attn.heads)
            out = out + image_attention(query, (image_key * weight, image_value))
        linear, dropout = attn.to_out
        projected: Tensor = dropout(linear(out))
        return projected
