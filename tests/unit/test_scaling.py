"""Embeds scalings fold a weight into K and V."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ipadapter_core.backbone.sites import Sites
from ipadapter_core.branch.kv import SiteKV, active_sites, pack_sites
from ipadapter_core.errors import BadInputError
from ipadapter_core.strength.scaling import SCALINGS, find_scaling
from ipadapter_core.strength.site import SiteStrength

TOKENS, REFERENCES = 3, 2
EXACT = {"rtol": 0, "atol": 1e-10}


def site_kv(sites: Sites, rows: int = 2, references: int = REFERENCES) -> SiteKV:
    generator = torch.Generator().manual_seed(0)

    def random() -> dict[int, Tensor]:
        shape = (rows, references * TOKENS)
        return {
            site.index: torch.randn(*shape, site.dim, dtype=torch.float64, generator=generator) for site in sites.sites
        }

    return SiteKV(random(), random(), TOKENS)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return scaled_dot_product_attention(q, k, v)


def by_hand(key: Tensor, value: Tensor, weight: float, name: str) -> tuple[Tensor, Tensor]:
    """K and V (T, D) of one row."""
    if "penalty" in name:
        weight = weight * key.shape[-1] / 1280
    if name == "V only":
        return key, value * weight
    if "mean" not in name:
        return key * weight, value * weight
    parts = []
    for reference in value.split(TOKENS):
        mean = sum(reference) / TOKENS
        parts.append(reference - mean + weight * mean)
    return key * weight, torch.cat(parts)


@pytest.mark.parametrize("name", SCALINGS)
@pytest.mark.parametrize("weight", [0.5, -1.5, 1.0])
def test_every_scaling_equals_the_formula(tiny: Sites, name: str, weight: float) -> None:
    kv = site_kv(tiny)
    packed = pack_sites(kv, tiny.sites, dict.fromkeys(range(3), SiteStrength(weight)), SCALINGS[name])
    for site, (keys, values) in zip(tiny.sites, packed.views(packed.data), strict=True):
        for row in range(2):
            key, value = by_hand(kv.keys[site.index][row], kv.values[site.index][row], weight, name)
            for given, wanted in ((keys[row], key), (values[row], value)):
                torch.testing.assert_close(given.transpose(0, 1).flatten(1), wanted, **EXACT)


def test_an_unknown_scaling_is_refused() -> None:
    with pytest.raises(BadInputError, match="Expected: one of V only, K"):
        find_scaling("Q only")


@pytest.mark.parametrize("name", SCALINGS)
def test_a_strength_of_0_leaves_a_site_out_as_its_attention_is_0(tiny: Sites, name: str) -> None:
    assert active_sites(tiny.sites, {0: SiteStrength(0.0)}) == ()
    kv, q = site_kv(tiny), torch.randn(1, 4, tiny.sites[0].dim, dtype=torch.float64)
    key, value = by_hand(kv.keys[0][0], kv.values[0][0], 0.0, name)
    assert attend(q, key[None], value[None]).abs().max() < 1e-10
