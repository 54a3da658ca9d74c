"""SD3 and SD3.5 as frozen models, through diffusers."""

# B samples, T text tokens, P pooled width

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, cast

import torch
from diffusers import StableDiffusion3Pipeline
from torch import Tensor, nn

from ipadapter_core.backbone.sd3 import SD3, JointProjection
from ipadapter_core.backbone.sites import Sites, blocks_in_a_row
from ipadapter_core.errors import MismatchError
from ipadapter_core.file.sd3 import INSTANTX_SD3, base_of_blocks
from ipadapter_core.file.spec import Negative

from ..config import AdapterConfig, BaseModelConfig, Config
from .backbone import TextEncoder
from .flow import FlowBackbone
from .image_prompt import ImagePrompt
from .sd3_attention import JointAttention

logger = logging.getLogger(__name__)

_CLIP_TOKENS, _T5_TOKENS = 77, 256  # as diffusers' pipeline has them
_KIND = "plus"  # here a resampler that reads the time as well
_TIMES = 1000  # the model is told of a time as one of so many


@dataclass(frozen=True, eq=False)
class SD3Backbone(FlowBackbone):
    """Text is "text" (B, 77 + 256, D), of both CLIPs and of T5, and "pooled" (B, P), of both CLIPs.

    What a model lacks of its three text encoders is zeros, as in diffusers where T5 is not there.
    """

    pipelines = (StableDiffusion3Pipeline,)
    part = "transformer"
    word = "transformer"
    text_parts = ("text_encoder", "text_encoder_2", "text_encoder_3")
    bases = "SD3 or SD3.5"
    layout = INSTANTX_SD3
    usual_tokens: ClassVar[Mapping[str, int]] = {_KIND: 64}  # as InstantX's
    negatives: ClassVar[Mapping[str, Negative]] = {_KIND: Negative.ZERO_FEATURES}
    is_timed = True

    @classmethod
    def of(cls, pipeline: Any, config: BaseModelConfig, device: torch.device, dtype: torch.dtype) -> "SD3Backbone":
        return cls(config.model, pipeline, device, dtype)

    @property
    def _blocks(self) -> Sequence[Any]:
        blocks: Sequence[Any] = self.model.transformer_blocks
        return blocks

    @cached_property
    def sites(self) -> Sites:
        """Every joint block.

        Raises:
            MismatchError: its queries and keys go through layer norms, which the nodes cannot undo.
        """
        layers = [block.attn for block in self._blocks]
        if any(isinstance(layer.norm_q, nn.LayerNorm) for layer in layers):
            raise MismatchError(
                f"{self.name}, whose queries and keys go through layer norms",
                expected="an SD3 or SD3.5, which has root mean square norms there or none",
                action="choose such a model as base.model",
            )
        return Sites(
            SD3,
            blocks_in_a_row(SD3.groups[0], ((layer.heads, self.model.config.attention_head_dim) for layer in layers)),
        )

    def text_kv(self, site: int) -> None:
        """None: each block's projections read what its own text stream has become, and no token starts there."""

    @property
    def base_name(self) -> str:
        return base_of_blocks(tuple(site.dim for site in self.sites.sites), self.second_attentions)

    @property
    def second_attentions(self) -> int:
        return sum(block.attn2 is not None for block in self._blocks)

    def family(self, kind: str) -> str:
        return INSTANTX_SD3

    @property
    def token_dim(self) -> int:
        return self.sites.sites[0].dim

    def start(self, site: int, weights: nn.Module) -> None:
        """Queries and keys of the picture are normed as the block norms them, and keys of the image like those."""
        attention, given = self._blocks[site].attn, cast(JointProjection, weights)
        if attention.norm_q is not None:
            given.norm_q.weight.copy_(attention.norm_q.weight)
            for norm in (given.norm_k, given.norm_ip_k):
                norm.weight.copy_(attention.norm_k.weight)

    def install(self) -> None:
        timed = SD3.layout(INSTANTX_SD3).timed
        assert timed is not None
        for number, block in enumerate(self._blocks):
            block.attn.set_processor(JointAttention(number, timed.epsilon))
            if block.attn2 is not None:  # SD3.5-Medium
                block.attn2.set_processor(JointAttention(None, timed.epsilon))

    @property
    def patch(self) -> int:
        return int(self.model.config["patch_size"])

    @torch.no_grad()
    def encode_text(self, captions: Sequence[str]) -> dict[str, Tensor]:
        found = {text.part: text for text in self.texts}
        first, second, third = (found.get(part) for part in self.text_parts)
        rows, width = len(captions), self.model.config["joint_attention_dim"]
        place = self.texts[0].model.device if self.texts else self.device  # with a cache they stay on the host
        read = [None if text is None else _clip(text, captions) for text in (first, second)]
        left = self.model.config["pooled_projection_dim"] - sum(pooled.shape[-1] for _, pooled in filter(None, read))
        pairs = []
        for pair in read:
            missing = self._zeros(place, rows, _CLIP_TOKENS, left), self._zeros(place, rows, left)
            pairs.append(missing if pair is None else pair)
            left = 0 if pair is None else left
        text, pooled = (
            torch.cat([part.to(self.dtype) for part in parts], dim=-1) for parts in zip(*pairs, strict=True)
        )
        text = nn.functional.pad(text, (0, width - text.shape[-1]))
        longer = self._zeros(place, rows, _T5_TOKENS, width) if third is None else _t5(third, captions).to(self.dtype)
        return {"text": torch.cat((text, longer), dim=1), "pooled": pooled}

    def _zeros(self, place: torch.device, *shape: int) -> Tensor:
        return torch.zeros(shape, device=place, dtype=self.dtype)

    def predict(
        self, noisy: Tensor, times: Tensor, text: Mapping[str, Tensor], sizes: Tensor, image: ImagePrompt
    ) -> Tensor:
        output: Tensor = self.model(
            noisy.to(self.dtype),
            encoder_hidden_states=text["text"].to(self.dtype),
            pooled_projections=text["pooled"].to(self.dtype),
            timestep=times * _TIMES,
            joint_attention_kwargs={"image": image},
        ).sample
        return output

    @property
    def usual_guidance(self) -> float:
        return 7.0

    def check_adapter(self, config: AdapterConfig) -> None:
        super().check_adapter(config)
        if config.kind != _KIND:
            raise MismatchError(
                f'adapter.kind = "{config.kind}" with {self.name}, a model of the SD3 kind',
                expected=f'adapter.kind = "{_KIND}", here a resampler that reads the time as well (the kind of InstantX)',
                action=f'set adapter.kind = "{_KIND}"',
            )
        if config.blocks != "all" and config.other_blocks == "zero":
            raise MismatchError(
                f'adapter.blocks = "{config.blocks}" with {self.name}, where a layer without an image changes pictures too',
                expected='adapter.blocks = "all": what is added is an attention to the picture itself as well, which no '
                "weights turn off",
                action='set adapter.blocks = "all", or adapter.other_blocks = "frozen" with adapter.pretrained',
            )

    @property
    def largest_side(self) -> int:
        return int(self.model.config["pos_embed_max_size"] * self.side_step)

    def check(self, config: Config) -> None:
        super().check(config)
        if self.second_attentions:
            logger.warning(
                "%s has blocks with a second attention, which diffusers takes for blocks: what is trained is for our nodes "
                "only",
                self.name,
            )
        most, largest = self.largest_side, max(config.data.resolutions)
        if largest > most:
            raise MismatchError(
                f"pictures of {largest} pixels with {self.name}, which has places for {most}",
                expected=f"at most {most} on a side",
                action="lower data.resolution and data.more_resolutions",
            )


def _clip(text: TextEncoder, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
    """(B, 77, D) of its last layer but one, and (B, P)."""
    output = text.model(text.tokens(captions, _CLIP_TOKENS), output_hidden_states=True)
    return output.hidden_states[-2], output.text_embeds


def _t5(text: TextEncoder, captions: Sequence[str]) -> Tensor:
    output: Tensor = text.model(text.tokens(captions, _T5_TOKENS)).last_hidden_state
    return output
