"""Qwen-Image: blocks for text and picture side by side, whose attention runs over both together."""

# B samples, C latent channels, h w latent size, H W pixels, L cells of the picture, T text length, H heads, D head dim

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import QwenImagePipeline
from torch import Tensor

from ipadapter_core.backbone.qwen_image import QWEN_IMAGE

from .first_frame import FirstFrame
from .image_prompt import ImagePrompt, SiteKVs
from .studio import TEXT_LENGTH, StudioBackbone, image_attention, joint_attention, lengths, rotated

_OTHERS = {  # settings of models that are told more than a text
    "guidance_embeds": "an input for guidance",
    "use_additional_t_cond": "layers (Qwen-Image-Layered)",
    "use_layer3d_rope": "layers (Qwen-Image-Layered)",
    "zero_cond_t": "reference pictures (Qwen-Image-Edit)",
}


class QwenImageBackbone(FirstFrame, StudioBackbone):
    """Blocks of diffusers' own classes; their attention is replaced."""

    pipelines = (QwenImagePipeline,)
    part = "transformer"
    word = "transformer"
    text_parts = ("text_encoder",)
    bases = "Qwen-Image"
    row = QWEN_IMAGE

    @classmethod
    def misfit(cls, model: Any) -> str | None:
        return next((what for setting, what in _OTHERS.items() if model.config.get(setting)), None)

    @property
    def patch(self) -> int:
        return int(self.model.config.patch_size)

    @property
    def attentions(self) -> tuple[Any, ...]:
        return tuple(block.attn for block in self.model.transformer_blocks)

    def install(self) -> None:
        for site, attention in enumerate(self.attentions):
            attention.set_processor(_ImageAttention(site))

    @torch.no_grad()
    def encode_text(self, captions: Sequence[str]) -> dict[str, Tensor]:
        text, mask = self.pipeline.encode_prompt(
            list(captions), device=self.pipeline.text_encoder.device, max_sequence_length=TEXT_LENGTH
        )
        counts = [text.shape[1]] * len(text) if mask is None else lengths(mask)
        return self.padded([row[:count] for row, count in zip(text, counts, strict=True)])

    def predict(
        self, noisy: Tensor, times: Tensor, text: Mapping[str, Tensor], sizes: Tensor, image: ImagePrompt
    ) -> Tensor:
        counts = lengths(text["mask"])
        longest = max(counts)
        height, width = (side // self.patch for side in noisy.shape[-2:])
        answer = self.model(
            self.packed(noisy.to(self.dtype)),
            encoder_hidden_states=text["text"][:, :longest].to(self.dtype),
            encoder_hidden_states_mask=None if min(counts) == longest else text["mask"][:, :longest].bool(),
            timestep=times,
            img_shapes=[[(1, height, width)]] * len(noisy),
            attention_kwargs={"image_kv": image.kv},
        ).sample
        return self.unpacked(answer, noisy)


class _ImageAttention:
    """Attention of a block over text and picture, and of the picture over the image tokens."""

    def __init__(self, site: int) -> None:
        self.site = site

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        encoder_hidden_states_mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
        image_kv: SiteKVs | None = None,
    ) -> tuple[Tensor, Tensor]:
        assert image_rotary_emb is not None
        projections = ((attn.to_q, attn.to_k, attn.to_v), (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj))
        (query, key, value), (text_query, text_key, text_value) = (
            [project(x).unflatten(-1, (attn.heads, -1)) for project in each]
            for x, each in zip((hidden_states, encoder_hidden_states), projections, strict=True)
        )
        query = attn.norm_q(query)
        at, text_at = (positions[:, None] for positions in image_rotary_emb)
        queries = (rotated(attn.norm_added_q(text_query), text_at), rotated(query, at))
        keys = (rotated(attn.norm_added_k(text_key), text_at), rotated(attn.norm_k(key), at))
        mask = encoder_hidden_states_mask
        if mask is not None:
            mask = torch.cat((mask, mask.new_ones(hidden_states.shape[:2])), dim=1)
        joint = joint_attention(torch.cat(queries, 1), torch.cat(keys, 1), torch.cat((text_value, value), 1), mask)
        length = text_query.shape[1]
        text_out, out = joint[:, :length], joint[:, length:]
        kv = None if image_kv is None else image_kv[self.site]
        if kv is not None:
            out = out + image_attention(query, kv)
        linear, dropout = attn.to_out
        return dropout(linear(out)), attn.to_add_out(text_out)
