"""Contrast-adaptive sharpening of pictures (AMD FidelityFX CAS, gpuopen.com/fidelityfx-cas)."""

import torch
from torch import Tensor
from torch.nn import functional

_WEAKEST, _STRONGEST = 1 / 8, 1 / 5  # of the ring's weight, at amount 0 and 1
_CROSS, _DIAGONAL = (1, 3, 4, 5, 7), (0, 2, 6, 8)  # places in a 3 x 3 window, row by row
_RING, _CENTRE = (1, 3, 5, 7), 4


def sharpen(pictures: Tensor, amount: float) -> Tensor:
    """Sharpen where the neighbourhood has little contrast.

    Args:
        pictures: (B, C, H, W), 0..1.
        amount: 0..1; 0 is the weakest sharpening, not none.

    Returns:
        The same shape, 0..1. Beyond the edge counts as black, so edge pixels stay as they are.
    """
    height, width = pictures.shape[-2:]
    padded = functional.pad(pictures, (1, 1, 1, 1))
    window = [padded[..., row : row + height, column : column + width] for row in range(3) for column in range(3)]
    cross, diagonal = (torch.stack([window[place] for place in places]) for places in (_CROSS, _DIAGONAL))
    low = cross.amin(0) + diagonal.amin(0)  # both are sums of two, so that 2 is white
    high = cross.amax(0) + diagonal.amax(0)
    amplitude = (torch.minimum(low, 2 - high) / high).clamp(0, 1).sqrt()
    weight = -amplitude * (amount * (_STRONGEST - _WEAKEST) + _WEAKEST)
    ring = torch.stack([window[place] for place in _RING]).sum(0)
    sharpened = (weight * ring + window[_CENTRE]) / (1 + 4 * weight)
    return sharpened.nan_to_num(nan=0.0).clamp(0, 1)  # black on black divides 0 by 0
