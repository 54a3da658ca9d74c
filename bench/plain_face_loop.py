"""The official loop as tencent-ailab's `tutorial_train_faceid.py` has it, written from a description: embeddings of faces
that are ready, and a LoRA on query, key, value and output of every attention layer beside the image's keys and values."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from official_loop import TOKENS, AdapterSize, OfficialLoop, Pictures, Settings, attention, heads_of
from PIL import Image
from torch import Tensor, nn

IDENTITY_DIM = 512


class Faces(Pictures):
    """With the embedding NAME.npy beside each picture."""

    def reference(self, _image: Image.Image, path: Path) -> Tensor:
        return torch.from_numpy(np.load(path.with_suffix(".npy")))


class FaceProjection(nn.Module):
    """An embedding (B, 512) to tokens (B, N, C), under the published names."""

    def __init__(self, context_dim: int) -> None:
        super().__init__()
        self.proj = nn.Sequential(
            nn.Linear(IDENTITY_DIM, 2 * IDENTITY_DIM),
            nn.GELU(),
            nn.Linear(2 * IDENTITY_DIM, TOKENS * context_dim),
        )
        self.norm = nn.LayerNorm(context_dim)

    def forward(self, embeds: Tensor) -> Tensor:
        tokens: Tensor = self.norm(self.proj(embeds).unflatten(-1, (TOKENS, -1)))
        return tokens


class Lora(nn.Module):
    """Up times down, which begins as nothing."""

    def __init__(self, layer: nn.Linear, rank: int) -> None:
        super().__init__()
        self.down = nn.Linear(layer.in_features, rank, bias=False)
        self.up = nn.Linear(rank, layer.out_features, bias=False)
        nn.init.normal_(self.down.weight, std=1 / rank)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        raised: Tensor = self.up(self.down(x))
        return raised


class LoraProcessor(nn.Module):
    """Attention with a LoRA; in cross-attention the context ends with image tokens."""

    def __init__(self, attn: Any, rank: int, *, reads_image: bool) -> None:
        super().__init__()
        self.to_q_lora, self.to_k_lora, self.to_v_lora = (Lora(x, rank) for x in (attn.to_q, attn.to_k, attn.to_v))
        self.to_out_lora = Lora(attn.to_out[0], rank)
        self.reads_image = reads_image
        if reads_image:
            context_dim, width = attn.to_k.in_features, attn.to_k.out_features
            self.to_k_ip = nn.Linear(context_dim, width, bias=False)
            self.to_v_ip = nn.Linear(context_dim, width, bias=False)
            self.to_k_ip.load_state_dict(attn.to_k.state_dict())
            self.to_v_ip.load_state_dict(attn.to_v.state_dict())

    def forward(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **_: Any
    ) -> Tensor:
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        text, image = (context[:, :-TOKENS], context[:, -TOKENS:]) if self.reads_image else (context, None)
        query = heads_of(attn.to_q(hidden_states) + self.to_q_lora(hidden_states), attn.heads)
        key, value = attn.to_k(text) + self.to_k_lora(text), attn.to_v(text) + self.to_v_lora(text)
        out = attention(query, key, value, attn.heads)
        if image is not None:
            out = out + attention(query, self.to_k_ip(image), self.to_v_ip(image), attn.heads)
        linear, dropout = attn.to_out
        result: Tensor = dropout(linear(out) + self.to_out_lora(out))
        return result


class FaceLoop(OfficialLoop):
    """The official loop with faces and a LoRA."""

    def __init__(self, settings: Settings, size: AdapterSize) -> None:
        self.rank = size.rank
        super().__init__(settings)

    def open_references(self, settings: Settings, context_dim: int) -> tuple[nn.Module, Pictures]:
        return FaceProjection(context_dim), Faces(settings.data, self.tokenizer, None, settings.resolution)

    def set_processors(self, unet: Any) -> None:
        modules = dict(unet.named_modules())
        unet.set_attn_processor(
            {
                name: LoraProcessor(modules[name.removesuffix(".processor")], self.rank, reads_image="attn2" in name)
                for name in unet.attn_processors
            }
        )

    @torch.no_grad()
    def encode_references(self, embeds: Tensor, dropped: Sequence[int] | Tensor) -> Tensor:
        """Zeros where dropped, sample by sample."""
        given = embeds.to(self.accelerator.device, self.dtype)
        return torch.stack(
            [torch.zeros_like(embed) if drop else embed for embed, drop in zip(given, dropped, strict=True)]
        )
