"""Z-Image: layers of attention over text and picture together."""

# B samples, C latent channels, h w latent size, L cells of the picture, S all tokens, H heads, D head dim

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import ZImagePipeline
from torch import Tensor

from ipadapter_core.backbone.z_image import Z_IMAGE

from .image_prompt import ImagePrompt
from .shown import ShowingBackbone, Shown
from .studio import TEXT_LENGTH, StudioBackbone, image_attention, joint_attention, lengths, rotated


class ZImageBackbone(ShowingBackbone, StudioBackbone):
    """The model counts time from noise, 0, to a clean picture, 1, and answers with the velocity turned round."""

    pipelines = (ZImagePipeline,)
    part = "transformer"
    word = "transformer"
    text_parts = ("text_encoder",)
    bases = "Z-Image"
    row = Z_IMAGE

    @classmethod
    def misfit(cls, model: Any) -> str | None:
        if model.config.siglip_feat_dim is not None:
            return "layers that read pictures (Z-Image-Omni)"
        return None if model.config.qk_norm else "attention without norms"

    @property
    def patch(self) -> int:
        return int(self.model.config.all_patch_size[0])

    @property
    def attentions(self) -> tuple[Any, ...]:
        return tuple(layer.attention for layer in self.model.layers)

    @property
    def usual_guidance(self) -> float:
        return 6.0  # diffusers' 5, which adds so often what others add once less

    def processor(self, site: int) -> "_ImageAttention":
        return _ImageAttention(site, self.shown)

    @torch.no_grad()
    def encode_text(self, captions: Sequence[str]) -> dict[str, Tensor]:
        rows, _ = self.pipeline.encode_prompt(
            list(captions),
            device=self.pipeline.text_encoder.device,
            do_classifier_free_guidance=False,
            max_sequence_length=TEXT_LENGTH,
        )
        return self.padded(rows)

    def predict(
        self, noisy: Tensor, times: Tensor, text: Mapping[str, Tensor], sizes: Tensor, image: ImagePrompt
    ) -> Tensor:
        captions = [row[:count] for row, count in zip(text["text"].to(self.dtype), lengths(text["mask"]), strict=True)]
        cells = noisy.shape[-2] * noisy.shape[-1] // self.patch**2
        with self.shown.showing(image, cells):
            answers = self.model(
                list(noisy.to(self.dtype)[:, :, None]), 1 - times, captions, patch_size=self.patch
            ).sample
        return -torch.stack(answers).squeeze(2)


class _ImageAttention:
    """Attention of a layer over text and picture, and of the picture's cells, which come first, over the image tokens."""

    def __init__(self, site: int, shown: Shown) -> None:
        self.site, self.shown = site, shown

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        freqs_cis: Tensor | None = None,
    ) -> Tensor:
        assert freqs_cis is not None
        query, key, value = (
            project(hidden_states).unflatten(-1, (attn.heads, -1)) for project in (attn.to_q, attn.to_k, attn.to_v)
        )
        query, positions = attn.norm_q(query), freqs_cis[:, :, None]
        out = joint_attention(rotated(query, positions), rotated(attn.norm_k(key), positions), value, attention_mask)
        kv = self.shown.kv(self.site)
        if kv is not None:
            cells = self.shown.cells
            out = torch.cat((out[:, :cells] + image_attention(query[:, :cells], kv), out[:, cells:]), dim=1)
        linear, dropout = attn.to_out
        projected: Tensor = dropout(linear(out))
        return projected
