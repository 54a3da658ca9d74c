"""Anima, a Cosmos-Predict2 with a text adapter, through diffusers' modular pipeline, with adapters of three kinds.

Of image tokens t, K = to_k_ip t, V = to_v_ip t and a block's normed queries q of its cross-attention, with
A(K) = softmax(q K^T / sqrt(D)) V:

    none   (anima_lora)   to_out(attention(q, text) + A(rms(K) * the block's own norm_k))
    block  (anima_lora)   to_out(attention(q, text) + g A(K)),  a number g of each block
    time   (LuciferTC)    what the block gives + G(t_emb) A(K),  G = Linear(SiLU(.)) of the model's timestep embedding
"""

# B samples, L cells of the picture, T text length, W text width, H heads, D head dim

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any, ClassVar

import torch
from diffusers.modular_pipelines.anima.encoders import AnimaTextEncoderStep
from diffusers.modular_pipelines.anima.modular_pipeline import AnimaModularPipeline
from torch import Tensor, nn

from ipadapter_core.backbone.anima import ANIMA, GatedProjection
from ipadapter_core.backbone.row import Place
from ipadapter_core.backbone.sites import Sites, blocks_in_a_row
from ipadapter_core.errors import MismatchError
from ipadapter_core.file.names import LUCIFER, PE, PE_GATED
from ipadapter_core.file.spec import AdapterSpec, Feature, Negative, Projection, ResamplerSpec

from ..config import AdapterConfig, BaseModelConfig, Config
from ..models.quantized import full_weight
from .backbone import TextEncoder
from .first_frame import FirstFrame
from .flow import FlowBackbone
from .image_prompt import KV, ImagePrompt
from .shown import ShowingBackbone, Shown
from .studio import TEXT_LENGTH, image_attention, joint_attention

_KINDS = {"none": ("plus",), "block": ("plus",), "time": ("full", "plus")}  # by gate
_LAYOUTS = {"none": PE, "block": PE_GATED, "time": LUCIFER}
_FEATURE = Feature.LAST_HIDDEN_STATE
_COMPRESSOR_HEADS = 8  # of LuciferTC's
_FF_FACTOR = 4


class AnimaBackbone(FirstFrame, ShowingBackbone, FlowBackbone):
    """Text is "text" (B, 512, W), as the conditioner makes it of Qwen3's states and T5's tokens; what is over is zeros,
    which the model attends to."""

    pipelines = (AnimaModularPipeline,)
    part = "transformer"
    word = "transformer"
    text_parts = ("text_encoder", "text_conditioner")
    bases = "Anima"
    layout = PE
    projections: ClassVar[Mapping[str, Projection]] = {"plus": Projection.PERCEIVER}
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
        return _ImageAttention(site, self.shown, self._later)

    @cached_property
    def _later(self) -> dict[int, Tensor]:
        """By site, the image's attention (B, L, H·D) on its way from a block's cross-attention to its end."""
        return {}

    def install(self) -> None:
        super().install()
        _ = self._hooks

    @cached_property
    def _hooks(self) -> tuple[Any, ...]:
        return tuple(
            block.register_forward_hook(partial(_at_the_end, site, self.shown, self._later))
            for site, block in enumerate(self.model.transformer_blocks)
        )

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

    @torch.no_grad()
    def adapter_times(self, times: Tensor) -> Tensor:
        """The model's own embedding of them (B, H·D), float32."""
        embed = self.model.time_embed
        embedded: Tensor = embed.norm(embed.time_proj(times).to(self.dtype))
        return embedded.float()

    def predict(
        self, noisy: Tensor, times: Tensor, text: Mapping[str, Tensor], sizes: Tensor, image: ImagePrompt
    ) -> Tensor:
        padding = torch.zeros(1, 1, *noisy.shape[-2:], device=noisy.device, dtype=self.dtype)
        with self.shown.showing(image, noisy.shape[-2] * noisy.shape[-1] // self.patch**2):
            answer: Tensor = self.model(
                noisy.to(self.dtype)[:, :, None], times, text["text"].to(self.dtype), padding_mask=padding
            ).sample
        return answer.squeeze(2)

    def specified(self, spec: AdapterSpec, config: AdapterConfig) -> AdapterSpec:
        """With the layout that the gate asks for. LuciferTC's tokens are features, or what a resampler as wide makes of them.

        Raises:
            MismatchError: features that its resampler's heads do not divide.
        """
        spec = replace(spec, layout=_LAYOUTS[config.gate])
        if config.gate != "time":
            return spec
        width, resampler = spec.image_dim, None
        if config.kind == "plus":
            if width % _COMPRESSOR_HEADS:
                raise MismatchError(
                    f'features {width} wide for {_COMPRESSOR_HEADS} heads, with adapter.gate = "time"',
                    expected=f"an encoder whose width is a multiple of {_COMPRESSOR_HEADS}",
                    action='choose another encoder.model, or set adapter.kind = "full", which has no resampler',
                )
            assert spec.num_tokens is not None
            resampler = ResamplerSpec(
                dim=width,
                depth=config.resampler_depth,
                num_heads=_COMPRESSOR_HEADS,
                head_dim=width // _COMPRESSOR_HEADS,
                ff_dim=_FF_FACTOR * width,
                num_queries=spec.num_tokens,
            )
        return replace(
            spec,
            family=LUCIFER,
            projection=Projection.PATCHES,
            cross_attention_dim=width,
            negative=Negative.ZERO_FEATURES,
            resampler=resampler,
            encoder=replace(spec.encoder, padding="mean"),  # files of this layout are taken to be padded with black
            parts=() if resampler is None else ("siglip_compressor",),
        )

    def start(self, site: int, weights: nn.Module) -> None:
        """Gates by time are closed: training begins with the model as it is, as it does with a number of 0."""
        if isinstance(weights, GatedProjection):
            for parameter in weights.adaln_ip.parameters():
                nn.init.zeros_(parameter)

    def check_adapter(self, config: AdapterConfig) -> None:
        kinds = _KINDS[config.gate]
        if config.kind not in kinds:
            raise MismatchError(
                f'adapter.kind = "{config.kind}" with {self.name}, an Anima, and adapter.gate = "{config.gate}"',
                expected=" or ".join(f'"{kind}"' for kind in kinds),
                action=f'set adapter.kind = "{kinds[-1]}"',
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

    def __init__(self, site: int, shown: Shown, later: dict[int, Tensor]) -> None:
        self.site, self.shown, self.later = site, shown, later

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
        kv = self.shown.kv(self.site)
        if kv is not None:
            out = self._with_image(attn, query, kv, out)
        linear, dropout = attn.to_out
        projected: Tensor = dropout(linear(out))
        return projected

    def _with_image(self, attn: Any, query: Tensor, kv: KV, out: Tensor) -> Tensor:
        image = self.shown.image
        assert image is not None
        key, value = kv
        layout = ANIMA.layout(image.layout)
        if layout.key_weight is not None:
            key = key * attn.norm_k.weight.to(key).repeat(attn.heads)
        added = image_attention(query, (key, value))
        if layout.place is Place.ATTENTION:
            return out + added
        self.later[self.site] = added
        return out


def _at_the_end(
    site: int, shown: Shown, later: dict[int, Tensor], _block: nn.Module, _given: Any, out: Tensor
) -> Tensor:
    """Add what waits for the end of a block."""
    added = later.pop(site, None)
    if added is None:
        return out
    assert shown.image is not None
    gate = shown.image.gates[site]
    assert gate is not None
    return out + (gate[:, None] * added).to(out.dtype)
