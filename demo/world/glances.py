"""Where attention looks: measured so that a short training can say where it should.

Left to itself attention finds out slowly, in some layers never, that what a place needs lies at that place.
"""

# B samples, L queries, K keys, H heads, C = H * head width

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


class Outputs:
    """The last outputs of modules, heard until `close`."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self._last: list[Tensor | None] = [None] * len(modules)
        self._hooks = [
            module.register_forward_hook(lambda _module, _inputs, output, number=number: self._hear(number, output))
            for number, module in enumerate(modules)
        ]

    def __call__(self) -> list[Tensor]:
        return [output for output in self._last if output is not None]

    def _hear(self, number: int, output: Tensor) -> None:
        self._last[number] = output

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()


def glance_error(query: Tensor, key: Tensor, own: Tensor, heads: int, guided: int) -> Tensor:
    """Cross entropy (B, L) between where attention looks and where it should, mean over the guided heads.

    Args:
        query: (B, L, C), as projected.
        key: (B, K, C), as projected.
        own: (L,) or (guided, L), number of each query's key, for all heads or each head's own.
        guided: of the heads; the others look where they like.
    """
    q, k = (x.unflatten(-1, (heads, -1))[..., :guided, :] for x in (query, key))
    scores = torch.einsum("blhd,bkhd->bkhl", q, k) * q.shape[-1] ** -0.5
    target = own.expand(len(q), guided, -1)
    return functional.cross_entropy(scores, target, reduction="none").mean(dim=1)
