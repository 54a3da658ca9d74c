"""A kind of base model that the pack does not know: a transformer of three blocks that ComfyUI samples.

`ROW` and `install` are all that "Add a base model" in CONTRIBUTING.md asks for.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from . import comfy_host
from .tiny_unet import CONTEXT_DIM

BLOCKS, HEADS, HEAD_DIM = 3, 2, 8
WIDTH = HEADS * HEAD_DIM
HOOK = "toy_attention_output"  # called with the attention of a block, its queries, and the options


class Block(nn.Module):
    """Cross-attention to the text and an MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.to_q, self.to_k, self.to_v, self.out = (
            nn.Linear(width, WIDTH) for width in (WIDTH, CONTEXT_DIM, CONTEXT_DIM, WIDTH)
        )
        self.mlp = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))

    def forward(self, x: Tensor, context: Tensor, options: dict[str, Any]) -> Tensor:
        q, k, v = self.to_q(x), self.to_k(context), self.to_v(context)
        attention = functional.scaled_dot_product_attention(*(split(part) for part in (q, k, v)))
        attention = attention.transpose(1, 2).flatten(2)
        for patch in options.get("patches", {}).get(HOOK, ()):
            attention = patch(attention, q, options)
        x = x + self.out(attention)
        return x + self.mlp(x)


class Toy(nn.Module):
    """A token for each cell of the latent."""

    def __init__(self, **_: Any) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.dtype = torch.float32
        self.into, self.time, self.back = nn.Linear(4, WIDTH), nn.Linear(1, WIDTH), nn.Linear(WIDTH, 4)
        self.toy_blocks = nn.ModuleList(Block() for _ in range(BLOCKS))
        self.requires_grad_(False)

    def forward(
        self, x: Tensor, timesteps: Tensor, context: Tensor, transformer_options: dict[str, Any], **_: Any
    ) -> Tensor:
        height, width = x.shape[-2:]
        tokens = self.into(x.flatten(2).transpose(1, 2)) + self.time(timesteps[:, None] / 1000)[:, None]
        for number, block in enumerate(self.toy_blocks):
            tokens = block(tokens, context, transformer_options | {"block_index": number, "grid": (height, width)})
        return self.back(tokens).transpose(1, 2).unflatten(2, (height, width))


def split(x: Tensor) -> Tensor:
    """(B, L, H·D) to (B, H, L, D)."""
    return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)


def comfy_model() -> Any:
    """A MODEL of ComfyUI."""
    import comfy.model_base
    import comfy.model_patcher
    import comfy.supported_models_base

    config = comfy.supported_models_base.BASE({})
    config.set_inference_dtype(torch.float32, None)
    cpu = torch.device("cpu")
    model = comfy.model_base.BaseModel(config, device="cpu", unet_model=Toy)
    return comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)


def row() -> Any:
    """The core's row: where its sites are and what they are known to carry."""
    sites, registry = (comfy_host.pack(f"ipadapter_core.backbone.{name}") for name in ("sites", "registry"))
    unet = comfy_host.pack("ipadapter_core.backbone.unet")

    def find(model: nn.Module) -> Sequence[Any]:
        blocks = getattr(model, "toy_blocks", ())
        return tuple(
            sites.Site(
                index=number,
                address=("block", number, 0),
                depth=number / len(blocks),
                heads=HEADS,
                head_dim=HEAD_DIM,
                context_dim=CONTEXT_DIM,
            )
            for number in range(len(blocks))
        )

    return registry.Backbone(
        name="Toy",
        find=find,
        groups=("block",),
        roles=lambda _blocks: {("block", 0): (sites.Role.COMPOSITION, 1.0), ("block", 2): (sites.Role.STYLE, 1.0)},
        site_projection=unet.CrossAttentionProjection,
        site_key=lambda index: str(2 * index + 1),
    )


def install(model: Any, _sites: Any, plan: Any, _networks: Any) -> None:
    """ComfyUI's half: one patch for all blocks, which adds what every applied adapter does there."""
    add_images = comfy_host.pack("nodes.patching.compiled").add_images
    patches = model.model_options["transformer_options"].setdefault("patches", {})
    if HOOK not in patches:
        model.set_model_patch(partial(_add, add_images), HOOK)


def _add(add_images: Any, attention: Tensor, q: Tensor, options: dict[str, Any]) -> Tensor:
    return add_images(options, attention, q, ("block", options["block_index"], 0), options["grid"])
