"""Qwen-Image: blocks for text and picture side by side, whose attention runs over both together.

The formula is that of `studio`, for `transformer_blocks` in their order: `norm_q` of the picture's queries is the model's
norm, and only the tokens of the picture that is drawn ask: no text, no reference latents. What is added goes through the
block's `to_out` with the rest.
"""

from typing import Any, cast

from torch import nn

from .row import Backbone
from .sites import Site, blocks_in_a_row
from .studio import STUDIO, NormedProjection

_GROUP = "block"


def find_sites(diffusion_model: nn.Module) -> tuple[Site, ...]:
    """Every block; none where the model is another."""
    model = cast(Any, diffusion_model)
    blocks = getattr(model, "transformer_blocks", None)
    if not blocks or not all(hasattr(model, part) for part in ("txt_norm", "txt_in", "img_in", "time_text_embed")):
        return ()
    if getattr(model, "patch_size", 1) == 1:  # Mage-Flow, which is made of these blocks
        return ()
    if not all(hasattr(block, "img_mod") and hasattr(block, "attn") for block in blocks):
        return ()
    heads = ((block.attn.heads, block.attn.inner_dim // block.attn.heads) for block in blocks)
    return blocks_in_a_row(_GROUP, heads)


QWEN_IMAGE = Backbone(
    name="Qwen-Image",
    find=find_sites,
    groups=(_GROUP,),
    roles=lambda _blocks: {},
    site_projection=NormedProjection,
    site_key=str,
    patch_size=lambda model: cast(int, model.patch_size),
    families={(0, 60): "Qwen-Image"},
    layouts=STUDIO,
)
