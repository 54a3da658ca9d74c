"""Kolors FaceID makes tokens as wide as Kolors' text encoder; the model itself narrows them for its attention."""

from dataclasses import replace

import torch
from comfy.model_patcher import ModelPatcher

from ...ipadapter_core.branch.tokens import ImageTokens
from ...ipadapter_core.errors import MismatchError
from ...ipadapter_core.file.spec import AdapterSpec

_LAYER = "encoder_hid_proj"  # diffusers' name, kept by Kolors loaders


def narrowed(model: ModelPatcher, spec: AdapterSpec, tokens: ImageTokens, weight: float = 1.0) -> ImageTokens:
    """Tokens as wide as the adapter's K/V projections read; those that are so already stay as they are.

    Args:
        weight: multiplies weight and bias of the model's layer; 1 is neutral.

    Raises:
        MismatchError: the model has no such layer.
    """
    wide, narrow = spec.token_dim, spec.cross_attention_dim
    if wide == narrow or tokens.cond.shape[-1] == narrow:
        return tokens
    layer = getattr(model.get_model_object("diffusion_model"), _LAYER, None)
    matrix = getattr(layer, "weight", None)
    if matrix is None or tuple(matrix.shape) != (narrow, wide):
        raise MismatchError(
            f"a model without Kolors' {_LAYER} ({wide} to {narrow})",
            expected=f"a Kolors model, for {spec.family}",
            action="load Kolors with a loader that keeps this layer, such as the Kolors MZ nodes",
        )
    matrix, bias = (
        None if part is None else weight * part.detach().float().cpu()
        for part in (matrix, getattr(layer, "bias", None))
    )
    assert matrix is not None
    cond, uncond = (torch.nn.functional.linear(side.float(), matrix, bias) for side in (tokens.cond, tokens.uncond))
    return replace(tokens, cond=cond, uncond=uncond)
