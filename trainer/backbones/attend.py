"""PyTorch's attention, with heads laid as the families hold them."""

# B samples, L S queries and keys, H heads, D head dim

from torch import Tensor
from torch.nn import functional


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """(B, H, L or S, D) each, to (B, L, H·D).

    Args:
        mask: (B, S), true where there is something; None: everywhere.
    """
    attended = functional.scaled_dot_product_attention(q, k, v, None if mask is None else mask[:, None, None])
    return attended.transpose(1, 2).flatten(2)
