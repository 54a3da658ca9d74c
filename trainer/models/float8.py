"""A frozen network whose linear layers are kept as float8 numbers and computed in a wider type, on any device.

diffusers' layerwise casting widens a layer's weights for its forward alone, but autograd holds the widened copies until the
backward pass has come by: at the end of a forward all of them are there at once. So a layer here keeps float8 for the
backward pass as well, and widens it in both.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

STORED = torch.float8_e4m3fn  # as the float8 copies of FLUX.1 that are published


class _Product(torch.autograd.Function):
    """x W^T, of which the narrow W alone is kept for backward; W gets no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return functional.linear(x, weight.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (weight,), (gradient,) = ctx.saved_tensors, gradients
        return gradient @ weight.to(gradient.dtype), None


class Float8Linear(nn.Linear):
    """A layer's weights in float8; its bias stays as it is."""

    def __init__(self, linear: nn.Linear) -> None:
        with torch.device("meta"):
            super().__init__(linear.in_features, linear.out_features, bias=False)
        self.weight = nn.Parameter(linear.weight.detach().to(STORED), requires_grad=False)
        self.bias = linear.bias

    def forward(self, input: Tensor) -> Tensor:
        product: Tensor = _Product.apply(input, self.weight)
        return product if self.bias is None else product + self.bias.to(product.dtype)


def repeated_blocks(model: Any) -> list[nn.Module]:
    """Of a diffusers model."""
    kinds = model._repeated_blocks or model._no_split_modules  # a few classes name their blocks in the latter alone
    return [module for module in model.modules() if type(module).__name__ in kinds]


def narrow(model: Any) -> None:
    """Keep the linear layers of a diffusers model's blocks in float8: nearly all there is of it. What leads into the
    blocks and out of them stays as it is."""
    for block in repeated_blocks(model):
        layers = [(name, each) for name, each in block.named_modules() if isinstance(each, nn.Linear)]
        for name, layer in layers:
            block.set_submodule(name, Float8Linear(layer))
