"""SigLIP from a single file: its pooling head, and the config that its shapes tell."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..file.signatures import Shapes
from ..operations import Operations
from .known import PICKLED_PREFIX, EncoderSpec

_VISION, _HEAD = "vision_model.", "vision_model.head."
_MLP = "vision_model.encoder.layers.0.mlp.fc1.weight"
_HEAD_DIMS = {1152: 72, 1536: 96}  # of the published widths; all others have heads of 64
_USUAL_HEAD_DIM = 64
_EPSILON = 1e-6  # of every published one


class PoolingHead(nn.Module):
    """What makes SigLIP's pooled output of its last hidden state: one learned query that attends to it, and an MLP.

    As `SiglipMultiheadAttentionPoolingHead` of transformers; queries, keys and values are one layer here, so that
    ComfyUI can cast it.
    """

    def __init__(self, width: int, mlp_width: int, num_heads: int, ops: Operations) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.probe = nn.Parameter(torch.empty(1, 1, width))
        self.in_proj = ops.Linear(width, 3 * width)
        self.out_proj = ops.Linear(width, width)
        self.layernorm = ops.LayerNorm(width, eps=_EPSILON)
        self.fc1 = ops.Linear(width, mlp_width)
        self.fc2 = ops.Linear(mlp_width, width)

    def forward(self, hidden_state: Tensor) -> Tensor:
        """The last hidden state (B, S, E), after its norm, to (B, E)."""
        width = hidden_state.shape[-1]
        probe = self.probe.to(hidden_state).expand(len(hidden_state), -1, -1)
        query = self.in_proj(probe)[..., :width]
        key, value = self.in_proj(hidden_state)[..., width:].chunk(2, dim=-1)
        heads = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in (query, key, value))
        pooled: Tensor = self.out_proj(functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))
        mlp: Tensor = self.fc2(functional.gelu(self.fc1(self.layernorm(pooled)), approximate="tanh"))
        return (pooled + mlp)[:, 0]


def read_pooling_head(tensors: Mapping[str, Tensor], num_heads: int, ops: Operations) -> PoolingHead | None:
    """The pooling head among a file's tensors, without copying one; None if there is none.

    Raises:
        RuntimeError, KeyError: a part of it is missing, or of another shape.
    """
    plain = vision_tensors(tensors)
    given = {name.removeprefix(_HEAD): tensor for name, tensor in plain.items() if name.startswith(_HEAD)}
    if not given:
        return None
    names = (name.removeprefix("attention.").removeprefix("mlp.").replace("in_proj_", "in_proj.") for name in given)
    state_dict = dict(zip(names, given.values(), strict=True))
    mlp_width, width = state_dict["fc1.weight"].shape
    with torch.device("meta"):
        head = PoolingHead(width, mlp_width, num_heads, ops)
    head.load_state_dict(state_dict, assign=True)
    return head.eval().requires_grad_(False)


def vision_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What of a file is SigLIP's vision model, under its published names."""
    plain = {name.removeprefix(PICKLED_PREFIX): tensor for name, tensor in tensors.items()}
    return {name: tensor for name, tensor in plain.items() if name.startswith(_VISION)}


def can_build_siglip(spec: EncoderSpec) -> bool:
    """Whether `siglip_config` describes such an encoder: one of a fixed size, with heads as the published ones have."""
    is_square = spec.image_size is not None and spec.patch_size is not None
    return spec.kind == "SigLIP" and is_square and spec.width % _head_dim(spec.width) == 0


def siglip_config(spec: EncoderSpec, shapes: Shapes) -> dict[str, object]:
    """The config of a `siglip_vision_model` of transformers."""
    return {
        "model_type": "siglip_vision_model",
        "hidden_size": spec.width,
        "intermediate_size": shapes[_MLP][0],
        "num_hidden_layers": spec.num_layers,
        "num_attention_heads": spec.width // _head_dim(spec.width),
        "image_size": spec.image_size,
        "patch_size": spec.patch_size,
        "vision_use_head": spec.embed_dim is not None,
    }


def _head_dim(width: int) -> int:
    return _HEAD_DIMS.get(width, _USUAL_HEAD_DIM)
