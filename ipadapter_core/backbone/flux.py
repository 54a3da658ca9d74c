"""FLUX.1 and what has its blocks (Chroma): double blocks for text and picture side by side, then single ones for both."""

from functools import partial
from typing import Any, cast

from torch import Tensor, nn
from torch.nn import functional

from .others import has_shared_modulation
from .projections import CrossAttentionProjection
from .row import Backbone, Place, SiteLayout, in_heads, plain_kv
from .sites import Site

_GROUPS = ("double", "single")
_EPSILON = 1e-5


def find_sites(diffusion_model: nn.Module) -> tuple[Site, ...]:
    """Every block, double ones first, as published files number them; none where the model is another."""
    doubles, singles = (getattr(diffusion_model, f"{group}_blocks", None) for group in _GROUPS)
    width = getattr(getattr(diffusion_model, "txt_in", None), "in_features", None)  # others refine their text there
    if doubles is None or singles is None or width is None or has_shared_modulation(diffusion_model):
        return ()
    blocks = [
        (group, number) for group, of in zip(_GROUPS, (doubles, singles), strict=True) for number in range(len(of))
    ]
    model = cast(Any, diffusion_model)
    return tuple(
        Site(
            index=index,
            address=(group, number, 0),
            depth=index / len(blocks),
            heads=model.num_heads,
            head_dim=model.hidden_size // model.num_heads,
            context_dim=width,
        )
        for index, (group, number) in enumerate(blocks)
    )


def _normed_kv(projection: nn.Module, tokens: Tensor, head_dim: int) -> tuple[Tensor, Tensor]:
    """Both have a root mean square of 1 over each head, without weights."""
    key, value = (
        functional.rms_norm(in_heads(part, head_dim), (head_dim,), eps=_EPSILON).flatten(-2)
        for part in plain_kv(projection, tokens, head_dim)
    )
    return key, value


FLUX = Backbone(
    name="FLUX",
    find=find_sites,
    groups=_GROUPS,
    roles=lambda _blocks: {},
    site_projection=CrossAttentionProjection,
    site_key=str,
    patch_size=lambda model: cast(int, model.patch_size),
    families={(4096, 57): "FLUX.1 or Chroma", (4096, 19): "FLUX.1 or Chroma"},
    unserved={(3584, 30): "LongCat-Image"},
    layouts={
        "XLabs FLUX": SiteLayout(
            site_projection=partial(CrossAttentionProjection, bias=True),
            site_key=str,
            acts_at=lambda site: site.group == "double",
            place=Place.BLOCK,
        ),
        "InstantX FLUX": SiteLayout(site_projection=CrossAttentionProjection, site_key=str, kv=_normed_kv),
    },
)
