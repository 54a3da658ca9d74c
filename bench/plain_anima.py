"""Anima with a new adapter for `plain_flow_loop.py`, written with diffusers and torch alone: a Perceiver, and diffusers'
attention of Cosmos with an image beside."""

# B samples, L cells of the picture, H heads, D head dim, N image tokens, C their width

from pathlib import Path
from typing import Any

import torch
from diffusers import ModularPipeline
from diffusers.modular_pipelines.anima.encoders import AnimaTextEncoderStep
from diffusers.modular_pipelines.anima.modular_pipeline import AnimaModularPipeline
from official_loop import AdapterSize
from plain_flow_models import PlainModel, attention, first_frame
from torch import Tensor, nn

_TEXT_TOKENS = 512


class _Pipeline:
    """`from_pretrained` as pipelines of the usual layout have it."""

    @staticmethod
    def from_pretrained(base: Path, torch_dtype: torch.dtype) -> AnimaModularPipeline:
        pipeline = ModularPipeline.from_pretrained(str(base))
        pipeline.load_components(torch_dtype=torch_dtype)
        return pipeline


class PlainAnima(PlainModel):
    pipeline_class = _Pipeline

    def add_adapter(self, vision: Any) -> None:
        model = self.transformer
        self.transformer.image_proj = PlainPerceiver(vision.hidden_size, model.config.text_embed_dim, self.size)
        for block in model.transformer_blocks:
            block.attn2.set_processor(AnimaProcessor(block.attn2, model.config.text_embed_dim))

    def features(self, seen: Any) -> Tensor:
        last: Tensor = seen.last_hidden_state
        return last

    def text(self, captions: list[str]) -> Any:
        read = AnimaTextEncoderStep.encode_prompt(
            self.pipeline,
            captions,
            prepare_unconditional_embeds=False,
            max_sequence_length=_TEXT_TOKENS,
            device=self.pipeline.text_encoder.device,
            dtype=self.pipeline.text_conditioner.dtype,
        )
        return self.pipeline.text_conditioner(
            source_hidden_states=read["qwen_prompt_embeds"],
            target_input_ids=read["t5_input_ids"],
            target_attention_mask=read["t5_attention_mask"],
            source_attention_mask=read["qwen_attention_mask"],
        )

    def latents(self, pixels: Tensor) -> Tensor:
        return first_frame(self.pipeline.vae, pixels)

    def velocity(self, transformer: Any, noisy: Tensor, times: Tensor, text: Any, features: Tensor) -> Tensor:
        tokens = self.transformer.image_proj(features)
        for block in self.transformer.transformer_blocks:
            block.attn2.processor.tokens = tokens
        padding = noisy.new_zeros(1, 1, *noisy.shape[-2:])
        answer: Tensor = transformer(noisy[:, :, None], times, text, padding_mask=padding).sample
        return answer[:, :, 0]


class PlainPerceiver(nn.Module):
    """Learned queries that read features, then each other."""

    def __init__(self, image_dim: int, token_dim: int, size: AdapterSize) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(1, size.tokens, size.width) / size.width**0.5)
        self.kv_proj = nn.Linear(image_dim, size.width)
        heads = size.width // size.head_dim
        self.blocks = nn.ModuleList(_PerceiverBlock(size.width, heads) for _ in range(size.depth))
        self.out_norm, self.out = nn.LayerNorm(size.width), nn.Linear(size.width, token_dim)

    def forward(self, features: Tensor) -> Tensor:
        """(B, S, E) to (B, N, C)."""
        read, queries = self.kv_proj(features), self.queries.expand(len(features), -1, -1)
        for block in self.blocks:
            queries = block(queries, read)
        tokens: Tensor = self.out(self.out_norm(queries))
        return tokens


class _PerceiverBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.q_norm_x, self.kv_norm_x, self.norm_s, self.norm_f = (nn.LayerNorm(width) for _ in range(4))
        self.xattn, self.sattn = (nn.MultiheadAttention(width, heads, batch_first=True) for _ in range(2))
        self.ffn = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, queries: Tensor, read: Tensor) -> Tensor:
        read = self.kv_norm_x(read)
        queries = queries + self.xattn(self.q_norm_x(queries), read, read, need_weights=False)[0]
        asking = self.norm_s(queries)
        queries = queries + self.sattn(asking, asking, asking, need_weights=False)[0]
        answer: Tensor = queries + self.ffn(self.norm_f(queries))
        return answer


class AnimaProcessor(nn.Module):
    """diffusers' `CosmosAttnProcessor2_0` of a cross-attention with an image; the blocks hand no arguments on, so it holds
    the tokens."""

    tokens: Tensor

    def __init__(self, attn: Any, token_dim: int) -> None:
        super().__init__()
        self.to_k_ip, self.to_v_ip = (nn.Linear(token_dim, attn.inner_dim, bias=False) for _ in range(2))

    def __call__(  # not `forward`: diffusers looks here for what it may pass
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Any = None,
    ) -> Tensor:
        def heads(x: Tensor) -> Tensor:
            return x.unflatten(-1, (attn.heads, -1))

        query = attn.norm_q(heads(attn.to_q(hidden_states)))
        key, value = heads(attn.to_k(encoder_hidden_states)), heads(attn.to_v(encoder_hidden_states))
        out = attention(query, attn.norm_k(key), value, attention_mask)
        image = attention(query, attn.norm_k(heads(self.to_k_ip(self.tokens))), heads(self.to_v_ip(self.tokens)))
        linear, dropout = attn.to_out
        result: Tensor = dropout(linear(out + image))
        return result
