"""One training step held against another way to compute it."""

import torch
from torch import Tensor

from ipadapter_trainer.models.network import TrainableAdapter


def difference(one: Tensor, other: Tensor) -> float:
    """In parts of the other."""
    return float((one - other).norm() / other.norm())


def loss_and_gradients(answer: Tensor, network: TrainableAdapter) -> tuple[float, dict[str, Tensor]]:
    """Of a model's answer, against the same noise each time; gradients by the names of the adapter's weights."""
    noise = torch.randn(answer.shape, generator=torch.Generator().manual_seed(5))
    loss = (answer - noise).square().mean()
    names, parameters = zip(*network.named_parameters(), strict=True)
    return loss.item(), dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))
