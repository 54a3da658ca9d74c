"""Z-Image: layers of attention over text and picture together, behind layers for each alone, which take no image.

The formula is that of `studio`, for `layers` in their order: `q_norm` of the layer's queries is the model's norm, and only
the cells of the picture that is drawn ask: no text, no padding, no reference latents. What is added goes through the
layer's `out`, its `attention_norm2` and its gate with the rest.
"""

from typing import Any, cast

from torch import nn

from .row import Backbone
from .sites import Site, blocks_in_a_row
from .studio import STUDIO, NormedProjection

_GROUP = "block"


def find_sites(diffusion_model: nn.Module) -> tuple[Site, ...]:
    """Every layer over text and picture; none where the model is another."""
    model = cast(Any, diffusion_model)
    layers = getattr(model, "layers", None)
    # by the layers for the picture alone ComfyUI tells where the picture lies
    if not layers or not getattr(model, "noise_refiner", None) or not hasattr(model, "cap_embedder"):
        return ()
    if not all(_is_of_z_image(layer) for layer in layers):
        return ()
    return blocks_in_a_row(_GROUP, ((layer.attention.n_local_heads, layer.attention.head_dim) for layer in layers))


def _is_of_z_image(layer: nn.Module) -> bool:
    """Lumina's layers put their modulation through SiLU first."""
    modulation = getattr(layer, "adaLN_modulation", None)
    return hasattr(layer, "attention") and isinstance(modulation, nn.Sequential) and len(modulation) == 1


Z_IMAGE = Backbone(
    name="Z-Image",
    find=find_sites,
    groups=(_GROUP,),
    roles=lambda _blocks: {},
    site_projection=NormedProjection,
    site_key=str,
    patch_size=lambda model: cast(int, model.patch_size),
    families={(0, 30): "Z-Image"},
    layouts=STUDIO,
)
