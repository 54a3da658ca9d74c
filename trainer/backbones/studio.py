"""Transformers whose adapters have this project's own layout: what Z-Image and Qwen-Image have in common."""

# B samples, L cells of the picture, S all tokens, H heads, D head dim, N image tokens, T text length, W text width

from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from ipadapter_core.backbone.row import Backbone as Row
from ipadapter_core.backbone.sites import Sites, blocks_in_a_row
from ipadapter_core.backbone.studio import LAYOUT, NormedProjection
from ipadapter_core.errors import MismatchError

from ..config import AdapterConfig, BaseModelConfig
from .attend import attend
from .flow import FlowBackbone
from .image_prompt import KV

TEXT_LENGTH = 512
"""Longest text, in tokens: what the pipelines of both families take unless told otherwise."""
_TOKEN_DIM = 1280
_KIND = "plus"


class StudioBackbone(FlowBackbone):
    """Text is "text" (B, T, W), padded with 0 at the end, and "mask" (B, T), 1 where there is text."""

    layout = LAYOUT
    row: ClassVar[Row]
    """Of the core."""

    @property
    @abstractmethod
    def attentions(self) -> tuple[Any, ...]:
        """The modules of its sites."""

    @classmethod
    @abstractmethod
    def misfit(cls, model: Any) -> str | None:
        """What of a model's settings is of another model of these classes; None if nothing is."""

    @classmethod
    def of(cls, pipeline: Any, config: BaseModelConfig, device: torch.device, dtype: torch.dtype) -> "StudioBackbone":
        model = getattr(pipeline, cls.part)
        found = None if model is None else cls.misfit(model)
        if found is not None:
            raise MismatchError(
                f"{config.model} with {found}",
                expected=f"{cls.bases} as it was published",
                action="choose such a model as base.model",
            )
        return cls(config.model, pipeline, device, dtype)

    @cached_property
    def sites(self) -> Sites:
        return Sites(
            self.row,
            blocks_in_a_row(
                self.row.groups[0], ((each.heads, each.inner_dim // each.heads) for each in self.attentions)
            ),
            self.patch,
        )

    def text_kv(self, site: int) -> None:
        return None  # of text as it comes in, no block has projections

    @property
    def token_dim(self) -> int:
        return _TOKEN_DIM

    def start(self, site: int, weights: nn.Module) -> None:
        """Keys are normed as the block norms its own; values are zero: training begins with the model as it is."""
        projection = cast(NormedProjection, weights)
        projection.norm_ip_k.weight.copy_(self.attentions[site].norm_k.weight)
        nn.init.zeros_(projection.to_v_ip.weight)

    def check_adapter(self, config: AdapterConfig) -> None:
        super().check_adapter(config)
        if config.kind != _KIND:
            raise MismatchError(
                f'adapter.kind = "{config.kind}" with {self.name}, a {self.row.name} model',
                expected=f'"{_KIND}", the only kind there is for {self.row.name}',
                action=f'set adapter.kind = "{_KIND}"',
            )

    def padded(self, rows: Sequence[Tensor]) -> dict[str, Tensor]:
        """Embeddings (…, W) of B texts, each as long as its text is, to what `encode_text` gives."""
        text = rows[0].new_zeros(len(rows), TEXT_LENGTH, rows[0].shape[-1])
        for number, row in enumerate(rows):
            text[number, : len(row)].copy_(row)
        counts = torch.tensor([[len(row)] for row in rows])
        mask = (torch.arange(TEXT_LENGTH) < counts).to(text.device, torch.float32)
        return {"text": text, "mask": mask}


def lengths(mask: Tensor) -> list[int]:
    """Tokens of each text. Waits for the device, once in a forward: where a picture's cells lie depends on it."""
    counts: list[int] = mask.float().sum(dim=1).long().tolist()
    return counts


def joint_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Of the model's own (B, S, H, D), to (B, S, H·D).

    Args:
        mask: (B, S), true where there is something.
    """
    q, k, v = (part.transpose(1, 2) for part in (query, key, value))
    return attend(q, k, v, mask)


def image_attention(query: Tensor, kv: KV) -> Tensor:
    """From cells to image tokens.

    Args:
        query: (B, L, H, D), normed as the model norms it, without positions.

    Returns:
        (B, L, H·D).
    """
    k, v = (part.to(query.dtype).view(*part.shape[:-1], *query.shape[2:]) for part in kv)
    return joint_attention(query, k, v, None)


def rotated(x: Tensor, rotations: Tensor) -> Tensor:
    """(B, S, H, D) with positions, of which each is a complex number for two channels (1 or B, S, 1, D / 2)."""
    pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * rotations).flatten(3).to(x.dtype)
