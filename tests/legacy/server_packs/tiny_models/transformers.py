"""`TinyTransformer`, `TinyPrompt` and `TinyDecode`: stand for the loaders, text encoders and VAEs of FLUX.1, Chroma, SD3.5 and
Anima, which ComfyUI builds at full size only. The model itself is ComfyUI's own class.
"""

import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from comfy_api.latest import io
from torch import Tensor
from torch.nn import functional

sys.path.append(str(Path(__file__).resolve().parents[3]))

from support import tiny_anima, tiny_flux, tiny_sd3

_PIXELS = 8  # of a cell of a latent

# kind: what makes the MODEL, width of its text, width of its pooled text
KINDS: dict[str, tuple[Callable[[], Any], int, int]] = {
    "FLUX": (
        lambda: tiny_flux.comfy_flux(tiny_flux.diffusers_flux()),
        tiny_flux.TEXT_DIM,
        tiny_flux.POOLED_DIM,
    ),
    "Chroma": (tiny_flux.comfy_chroma, tiny_flux.TEXT_DIM, tiny_flux.POOLED_DIM),
    "SD3.5": (lambda: tiny_sd3.comfy_sd3(tiny_sd3.diffusers_sd3()), tiny_sd3.TEXT_DIM, tiny_sd3.POOLED_DIM),
    "Anima": (tiny_anima.comfy_anima, tiny_anima.TEXT_DIM, 1),
}


@lru_cache
def _model(kind: str) -> Any:
    try:
        with torch.inference_mode(False), torch.no_grad():
            return KINDS[kind][0]()
    except pytest.skip.Exception as reason:  # which is no Exception, and would end the thread that runs all prompts
        raise RuntimeError(f"not with this server: {reason}") from reason


class TinyTransformer(io.ComfyNode):
    """A MODEL of a kind."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TinyTransformer",
            category="test",
            inputs=[io.Combo.Input("kind", options=list(KINDS))],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, kind: str) -> io.NodeOutput:
        return io.NodeOutput(_model(kind))


class TinyPrompt(io.ComfyNode):
    """A conditioning as wide as a kind's: numbers that the text decides."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TinyPrompt",
            category="test",
            inputs=[io.String.Input("text"), io.Combo.Input("kind", options=list(KINDS))],
            outputs=[io.Conditioning.Output()],
        )

    @classmethod
    def execute(cls, text: str, kind: str) -> io.NodeOutput:
        generator = torch.Generator().manual_seed(sum(text.encode()))
        _, width, pooled = KINDS[kind]
        tokens = torch.randn(1, 7, width, generator=generator)
        return io.NodeOutput([[tokens, {"pooled_output": torch.randn(1, pooled, generator=generator)}]])


class TinyDecode(io.ComfyNode):
    """A latent as a picture: three of its channels."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TinyDecode",
            category="test",
            inputs=[io.Latent.Input("samples")],
            outputs=[io.Image.Output()],
        )

    @classmethod
    def execute(cls, samples: dict[str, Tensor]) -> io.NodeOutput:
        latent = samples["samples"]
        latent = latent[:, :, 0] if latent.ndim == 5 else latent
        picture = functional.interpolate(latent[:, :3].sigmoid(), scale_factor=_PIXELS)
        return io.NodeOutput(picture.movedim(1, -1))
