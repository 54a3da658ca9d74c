"""FLUX.1: dev, schnell and what is tuned from them."""

# B samples, C latent channels, h w latent size, T text length, D text width, P pooled width

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, cast

import torch
from diffusers import FluxPipeline
from torch import Tensor, nn

from ipadapter_core.backbone.flux import FLUX
from ipadapter_core.backbone.projections import CrossAttentionProjection
from ipadapter_core.backbone.sites import Site, Sites
from ipadapter_core.errors import MismatchError
from ipadapter_core.file.names import XLABS
from ipadapter_core.file.spec import Negative

from ..config import AdapterConfig, BaseModelConfig
from .flow import FlowBackbone
from .flux_attention import install
from .image_prompt import ImagePrompt

_KINDS = ("base", "plus")
_PATCH = 2  # cells of the latent on the side of a token, which diffusers folds into channels outside the model


@dataclass(frozen=True, eq=False)
class FluxBackbone(FlowBackbone):
    """Text is "text" (B, T, D) of T5 and "pooled" (B, P) of CLIP.

    Attributes:
        guidance: how much a model that knows guidance by itself is told there is.
    """

    pipelines = (FluxPipeline,)
    part = "transformer"
    word = "transformer"
    text_parts = ("text_encoder", "text_encoder_2")
    bases = "FLUX.1"
    layout = XLABS
    negatives: ClassVar[Mapping[str, Negative]] = {"base": Negative.BLACK_PICTURE}  # x-flux's, and diffusers'

    guidance: float

    @classmethod
    def of(cls, pipeline: Any, config: BaseModelConfig, device: torch.device, dtype: torch.dtype) -> "FluxBackbone":
        transformer = pipeline.transformer
        if transformer is not None and transformer.config.in_channels != transformer.out_channels:
            raise MismatchError(
                f"{config.model}, which reads {transformer.config.in_channels} channels and answers with "
                f"{transformer.out_channels}",
                expected="a FLUX.1 that reads a noisy picture alone: dev, schnell, or one tuned from them",
                action="choose such a model as base.model; Fill, Canny and Depth read another picture beside it",
            )
        return cls(config.model, pipeline, device, dtype, config.guidance)

    @property
    def patch(self) -> int:
        return _PATCH

    @cached_property
    def sites(self) -> Sites:
        """The double blocks, at which XLabs' adapters act."""
        config = self.model.config
        groups = {"double": config.num_layers, "single": config.num_single_layers}
        blocks = [(group, number) for group, count in groups.items() for number in range(count)]
        sites = tuple(
            Site(
                index=index,
                address=(group, number, 0),
                depth=index / len(blocks),
                heads=config.num_attention_heads,
                head_dim=config.attention_head_dim,
                context_dim=config.joint_attention_dim,
            )
            for index, (group, number) in enumerate(blocks)
        )
        return Sites(FLUX, sites, _PATCH).at_layout(self.layout)

    def text_kv(self, site: int) -> None:
        """Blocks read text that was made as narrow as they are, and what the image adds is not projected after."""

    def start(self, site: int, weights: nn.Module) -> None:
        """Values are zero, as XLabs' are: training begins with the model as it is."""
        for parameter in cast(CrossAttentionProjection, weights).to_v_ip.parameters():
            nn.init.zeros_(parameter)

    def install(self) -> None:
        install(self.model)

    @torch.no_grad()
    def encode_text(self, captions: Sequence[str]) -> dict[str, Tensor]:
        pooled, text = (each.model(each.tokens(captions)) for each in self.texts)
        return {"text": text.last_hidden_state, "pooled": pooled.pooler_output}

    def predict(
        self, noisy: Tensor, times: Tensor, text: Mapping[str, Tensor], sizes: Tensor, image: ImagePrompt
    ) -> Tensor:
        height, width = (side // _PATCH for side in noisy.shape[-2:])
        output: Tensor = self.model(
            self.packed(noisy.to(self.dtype)),
            text["text"].to(self.dtype),
            text["pooled"].to(self.dtype),
            times,
            img_ids=_places(height, width, noisy.device),
            txt_ids=torch.zeros(text["text"].shape[1], 3, device=noisy.device),
            guidance=None if self.has_uncond else torch.full_like(times, self.guidance),
            joint_attention_kwargs={"image_kv": image.kv},
        ).sample
        return self.unpacked(output, noisy)

    @property
    def has_uncond(self) -> bool:
        return not self.model.config.guidance_embeds

    @property
    def usual_guidance(self) -> float:
        """What dev is told; none for schnell and the like, which are made to draw without."""
        return 1.0 if self.has_uncond else 3.5

    def check_adapter(self, config: AdapterConfig) -> None:
        super().check_adapter(config)
        if config.kind not in _KINDS:
            raise MismatchError(
                f'adapter.kind = "{config.kind}" with {self.name}, a FLUX.1',
                expected=" or ".join(_KINDS),
                action='set adapter.kind = "plus": it reads all features of an encoder as well',
            )

    def told(self, guidance: float) -> "FluxBackbone":
        return replace(self, guidance=guidance)


def _places(height: int, width: int, device: torch.device) -> Tensor:
    """Row and column of each token (h·w, 3); the first number tells pictures apart, of which there is one."""
    rows, columns = torch.meshgrid(
        torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij"
    )
    return torch.stack((torch.zeros_like(rows), rows, columns), dim=-1).flatten(0, 1)
