"""Pipelines with a new adapter for `plain_flow_loop.py`: diffusers' own IP-Adapter for FLUX.1 and SD3.5; for Z-Image and
Qwen-Image, for which it has none, its attention processors with an image beside."""

# B samples, L cells of the picture, S all tokens, H heads, D head dim, N image tokens, C their width

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import FluxPipeline, QwenImagePipeline, StableDiffusion3Pipeline, ZImagePipeline
from diffusers.models.attention_processor import SD3IPAdapterJointAttnProcessor2_0
from diffusers.models.embeddings import (
    ImageProjection,
    IPAdapterPlusImageProjection,
    IPAdapterTimeImageProjection,
    MultiIPAdapterImageProjection,
)
from diffusers.models.transformers.transformer_flux import FluxIPAdapterAttnProcessor
from diffusers.models.transformers.transformer_qwenimage import apply_rotary_emb_qwen
from official_loop import AdapterSize
from torch import Tensor, nn
from torch.nn import functional

TOKEN_WIDTH = 1280  # of our own layout
GUIDANCE = 3.5
_LAYER = -2  # of the image encoder


class PlainModel(ABC):
    """A frozen pipeline in float32 whose transformer has adapter layers that learn.

    Args:
        base: folder in diffusers layout.
        vision: config of the image encoder.
    """

    pipeline_class: ClassVar[Any]
    reads_embeds: ClassVar[bool] = False

    def __init__(self, base: Path, vision: Any, size: AdapterSize, device: torch.device) -> None:
        self.size = size
        self.pipeline = self.pipeline_class.from_pretrained(base, torch_dtype=torch.float32)
        for part in self.pipeline.components.values():
            if isinstance(part, nn.Module):
                part.requires_grad_(False)
        self.transformer = self.pipeline.transformer
        self.add_adapter(vision)
        self.pipeline.to(device)

    @abstractmethod
    def add_adapter(self, vision: Any) -> None: ...

    @abstractmethod
    def text(self, captions: list[str]) -> Any: ...

    @abstractmethod
    def velocity(self, transformer: Any, noisy: Tensor, times: Tensor, text: Any, features: Tensor) -> Tensor: ...

    def features(self, seen: Any) -> Tensor:
        """What of the image encoder's output is read, (B, E) or (B, S, E)."""
        read: Tensor = seen.image_embeds if self.reads_embeds else seen.hidden_states[_LAYER]
        return read

    def latents(self, pixels: Tensor) -> Tensor:
        vae = self.pipeline.vae
        latents: Tensor = vae.encode(pixels).latent_dist.sample()
        return (latents - vae.config.shift_factor) * vae.config.scaling_factor


class PlainFlux(PlainModel):
    pipeline_class = FluxPipeline
    reads_embeds = True

    def add_adapter(self, vision: Any) -> None:
        model, tokens = self.transformer, self.size.tokens
        context = model.config.joint_attention_dim
        for block in model.transformer_blocks:
            block.attn.set_processor(FluxIPAdapterAttnProcessor(model.inner_dim, context, (tokens,)))
        projection = ImageProjection(vision.projection_dim, context, tokens)
        model.encoder_hid_proj = MultiIPAdapterImageProjection([projection])

    def text(self, captions: list[str]) -> Any:
        most = self.pipeline.tokenizer_2.model_max_length
        return self.pipeline.encode_prompt(prompt=captions, prompt_2=None, max_sequence_length=most)

    def velocity(self, transformer: Any, noisy: Tensor, times: Tensor, text: Any, features: Tensor) -> Tensor:
        embeds, pooled, text_ids = text
        height, width = noisy.shape[-2:]
        places = self.pipeline._prepare_latent_image_ids(len(noisy), height // 2, width // 2, noisy.device, noisy.dtype)
        answer = transformer(
            hidden_states=self.pipeline._pack_latents(noisy, *noisy.shape),
            timestep=times,
            guidance=torch.full_like(times, GUIDANCE),
            pooled_projections=pooled,
            encoder_hidden_states=embeds,
            txt_ids=text_ids,
            img_ids=places,
            joint_attention_kwargs={"ip_adapter_image_embeds": [features[:, None]]},
        ).sample
        factor = self.pipeline.vae_scale_factor
        whole: Tensor = self.pipeline._unpack_latents(answer, height * factor, width * factor, factor)
        return whole


class PlainSD3(PlainModel):
    pipeline_class = StableDiffusion3Pipeline

    def add_adapter(self, vision: Any) -> None:
        model, size = self.transformer, self.size
        for block in model.transformer_blocks:
            block.attn.set_processor(
                SD3IPAdapterJointAttnProcessor2_0(
                    model.inner_dim, model.inner_dim, model.config.attention_head_dim, size.width, scale=1.0
                )
            )
        model.image_proj = IPAdapterTimeImageProjection(
            vision.hidden_size,
            model.inner_dim,
            size.width,
            size.depth,
            size.head_dim,
            size.width // size.head_dim,
            size.tokens,
        )

    def text(self, captions: list[str]) -> Any:
        embeds, _, pooled, _ = self.pipeline.encode_prompt(
            captions, captions, captions, do_classifier_free_guidance=False
        )
        return embeds, pooled

    def velocity(self, transformer: Any, noisy: Tensor, times: Tensor, text: Any, features: Tensor) -> Tensor:
        embeds, pooled = text
        answer: Tensor = transformer(
            hidden_states=noisy,
            timestep=times * 1000,
            encoder_hidden_states=embeds,
            pooled_projections=pooled,
            joint_attention_kwargs={"ip_adapter_image_embeds": features},
        ).sample
        return answer


class ImageLayers(nn.Module):
    """What an attention layer learns: keys and values of image tokens, and a norm of the keys."""

    def __init__(self, attn: Any) -> None:
        super().__init__()
        width, head_dim = attn.inner_dim, attn.inner_dim // attn.heads
        self.to_k_ip = nn.Linear(TOKEN_WIDTH, width, bias=False)
        self.to_v_ip = nn.Linear(TOKEN_WIDTH, width, bias=False)
        self.norm_ip_k = nn.RMSNorm(head_dim, eps=1e-6)

    def image(self, query: Tensor, tokens: Tensor) -> Tensor:
        """(B, L, H, D) and (B, N, C) to (B, L, H·D)."""
        key, value = (layer(tokens).unflatten(-1, query.shape[2:]) for layer in (self.to_k_ip, self.to_v_ip))
        return attention(query, self.norm_ip_k(key), value)


class PlainZImage(PlainModel):
    pipeline_class = ZImagePipeline

    def add_adapter(self, vision: Any) -> None:
        self.transformer.image_proj = resampler(vision.hidden_size, self.size)
        for layer in self.transformer.layers:
            layer.attention.set_processor(ZImageProcessor(layer.attention))

    def text(self, captions: list[str]) -> Any:
        return self.pipeline.encode_prompt(captions, do_classifier_free_guidance=False)[0]

    def velocity(self, transformer: Any, noisy: Tensor, times: Tensor, text: Any, features: Tensor) -> Tensor:
        tokens = self.transformer.image_proj(features)
        cells = noisy.shape[-2] * noisy.shape[-1] // 4
        for layer in self.transformer.layers:
            layer.attention.processor.tokens, layer.attention.processor.cells = tokens, cells
        answers = transformer(list(noisy[:, :, None]), 1 - times, text).sample
        return -torch.stack(answers)[:, :, 0]


class ZImageProcessor(ImageLayers):
    """diffusers' `ZSingleStreamAttnProcessor` with an image; the layers hand no arguments on, so it holds the tokens."""

    tokens: Tensor
    cells: int

    def __call__(  # not `forward`: diffusers looks here for what it may pass
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        freqs_cis: Tensor | None = None,
    ) -> Tensor:
        assert freqs_cis is not None
        query, key, value = (
            layer(hidden_states).unflatten(-1, (attn.heads, -1)) for layer in (attn.to_q, attn.to_k, attn.to_v)
        )
        query, key = attn.norm_q(query), attn.norm_k(key)
        mask = None if attention_mask is None else attention_mask[:, None, None]
        out = attention(turned(query, freqs_cis), turned(key, freqs_cis), value, mask)
        image = self.image(query[:, : self.cells], self.tokens)
        rest = image.new_zeros(len(out), out.shape[1] - self.cells, out.shape[2])
        linear, dropout = attn.to_out
        result: Tensor = dropout(linear(out + torch.cat([image, rest], dim=1)))
        return result


class PlainQwenImage(PlainModel):
    pipeline_class = QwenImagePipeline

    def add_adapter(self, vision: Any) -> None:
        self.transformer.image_proj = resampler(vision.hidden_size, self.size)
        for block in self.transformer.transformer_blocks:
            block.attn.set_processor(QwenImageProcessor(block.attn))

    def text(self, captions: list[str]) -> Any:
        return self.pipeline.encode_prompt(captions)

    def latents(self, pixels: Tensor) -> Tensor:
        return first_frame(self.pipeline.vae, pixels)

    def velocity(self, transformer: Any, noisy: Tensor, times: Tensor, text: Any, features: Tensor) -> Tensor:
        embeds, mask = text
        height, width = noisy.shape[-2:]
        answer = transformer(
            hidden_states=self.pipeline._pack_latents(noisy, *noisy.shape),
            encoder_hidden_states=embeds,
            encoder_hidden_states_mask=None if mask is None else mask.bool(),
            timestep=times,
            img_shapes=[[(1, height // 2, width // 2)]] * len(noisy),
            attention_kwargs={"tokens": self.transformer.image_proj(features)},
        ).sample
        factor = self.pipeline.vae_scale_factor
        whole: Tensor = self.pipeline._unpack_latents(answer, height * factor, width * factor, factor)
        return whole[:, :, 0]


class QwenImageProcessor(ImageLayers):
    """diffusers' `QwenDoubleStreamAttnProcessor2_0` with an image."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        encoder_hidden_states_mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Any = None,
        tokens: Any = None,
    ) -> tuple[Tensor, Tensor]:
        query, key, value = (
            layer(hidden_states).unflatten(-1, (attn.heads, -1)) for layer in (attn.to_q, attn.to_k, attn.to_v)
        )
        query, key = attn.norm_q(query), attn.norm_k(key)
        text_query, text_key, text_value = (
            layer(encoder_hidden_states).unflatten(-1, (attn.heads, -1))
            for layer in (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
        )
        places, text_places = image_rotary_emb
        joint_query, joint_key = (
            torch.cat(
                [apply_rotary_emb_qwen(norm(text), text_places, False), apply_rotary_emb_qwen(own, places, False)], 1
            )
            for norm, text, own in ((attn.norm_added_q, text_query, query), (attn.norm_added_k, text_key, key))
        )
        mask = encoder_hidden_states_mask
        if mask is not None:
            mask = torch.cat([mask, mask.new_ones(hidden_states.shape[:2])], dim=1)[:, None, None]
        out = attention(joint_query, joint_key, torch.cat([text_value, value], dim=1), mask)
        length = encoder_hidden_states.shape[1]
        linear, dropout = attn.to_out
        picture = dropout(linear(out[:, length:] + self.image(query, tokens)))
        return picture, attn.to_add_out(out[:, :length])


def first_frame(vae: Any, pixels: Tensor) -> Tensor:
    """Latents by Qwen-Image's autoencoder, which is one for videos."""
    latents: Tensor = vae.encode(pixels[:, :, None]).latent_dist.sample()[:, :, 0]
    scale = vae.config.latents_mean, vae.config.latents_std
    mean, std = (torch.tensor(values).to(latents).view(1, -1, 1, 1) for values in scale)
    return (latents - mean) / std


def resampler(image_dim: int, size: AdapterSize) -> IPAdapterPlusImageProjection:
    heads = size.width // size.head_dim
    return IPAdapterPlusImageProjection(
        image_dim, TOKEN_WIDTH, size.width, size.depth, size.head_dim, heads, size.tokens
    )


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """(B, S, H, D) each to (B, S, H·D)."""
    q, k, v = (each.transpose(1, 2) for each in (query, key, value))
    return functional.scaled_dot_product_attention(q, k.to(q.dtype), v.to(q.dtype), mask).transpose(1, 2).flatten(2)


def turned(x: Tensor, places: Tensor) -> Tensor:
    """(B, S, H, D) with positions, of which each is a complex number for two channels (1 or B, S, D / 2)."""
    pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * places[:, :, None]).flatten(3).type_as(x)
