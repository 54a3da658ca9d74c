"""Keys and values are computed once per site; strengths are folded into the values."""

from functools import lru_cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ipadapter_core.backbone.sites import Site, Sites
from ipadapter_core.branch.kv import COND_ROW, UNCOND_ROW, PackedKV, SiteKV, active_sites, pack_sites, project_tokens
from ipadapter_core.branch.tokens import ImageTokens
from ipadapter_core.errors import BadInputError
from ipadapter_core.network.adapter import IPAdapter, build_adapter
from ipadapter_core.strength.site import SiteStrength
from support.bad_files import SITE_DIMS
from support.published import random_tensors, tiny_adapter

CPU = torch.device("cpu")
ON = SiteStrength(1.0)
EXACT = {"rtol": 0, "atol": 1e-12}


def adapter() -> IPAdapter:
    return build_adapter(random_tensors(tiny_adapter("base", site_dims=SITE_DIMS), dtype=torch.float64), {})


def tokens(references: int = 2, negatives: int = 1) -> ImageTokens:
    generator = torch.Generator().manual_seed(0)
    sides = (torch.randn(n, 4, 16, dtype=torch.float64, generator=generator) for n in (references, negatives))
    return ImageTokens(*sides, "a")


@lru_cache
def site_kv() -> SiteKV:
    return project_tokens(adapter(), tokens(), CPU)


def attend(q: Tensor, packed: PackedKV, slot: int, row: int) -> Tensor:
    k, v = packed.views(packed.data)[slot]
    return scaled_dot_product_attention(q, k[row], v[row])


def queries(site: Site) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randn(site.heads, 5, site.head_dim, dtype=torch.float64, generator=generator)


def test_every_site_projects_both_sides_of_the_tokens() -> None:
    network, given_tokens = adapter(), tokens()
    kv = project_tokens(network, given_tokens, CPU)
    uncond, cond = given_tokens.sequences()
    assert len(kv.keys) == len(kv.values) == len(SITE_DIMS)
    for index, dim in enumerate(SITE_DIMS):
        key, value = network.site(index).to_k_ip.weight, network.site(index).to_v_ip.weight
        assert kv.keys[index].shape == (2, len(cond), dim)
        for row, side in ((COND_ROW, cond), (UNCOND_ROW, uncond)):
            torch.testing.assert_close(kv.keys[index][row], side @ key.T, **EXACT)
            torch.testing.assert_close(kv.values[index][row], side @ value.T, **EXACT)
    assert not kv.keys[0].requires_grad
    assert kv.num_bytes == sum(2 * 2 * len(cond) * dim * 8 for dim in SITE_DIMS)


@pytest.mark.parametrize("name", ["to_k_ip", "to_v_ip"])
def test_damaged_site_weights_are_noticed(name: str) -> None:
    network = adapter()
    getattr(network.site(1), name).weight[3, 3] = float("nan")
    with pytest.raises(BadInputError, match="NaN or infinite keys or values"):
        project_tokens(network, tokens(), CPU)


def test_packed_sites_are_the_projected_ones_split_into_heads(tiny: Sites) -> None:
    kv = site_kv()
    packed = pack_sites(kv, tiny.sites, dict.fromkeys(range(3), ON))
    for site, (k, v) in zip(tiny.sites, packed.views(packed.data), strict=True):
        for view, whole in ((k, kv.keys[site.index]), (v, kv.values[site.index])):
            assert view.shape == (2, site.heads, whole.shape[1], site.head_dim)
            for head in range(site.heads):
                part = whole[..., head * site.head_dim : (head + 1) * site.head_dim]
                assert torch.equal(view[:, head], part)


@given(value=st.floats(-5, 5), row=st.sampled_from((UNCOND_ROW, COND_ROW)), index=st.integers(0, 2))
def test_a_folded_strength_equals_strength_times_attention(value: float, row: int, index: int) -> None:
    site = Site(
        index=index,
        address=("input", 1, 0),
        depth=0.0,
        heads=8,
        head_dim=SITE_DIMS[index] // 8,
        context_dim=16,
    )
    kv = site_kv()
    plain = pack_sites(kv, [site], {index: ON})
    folded = pack_sites(kv, [site], {index: SiteStrength(value)})
    torch.testing.assert_close(
        attend(queries(site), folded, 0, row), value * attend(queries(site), plain, 0, row), **EXACT
    )


def test_a_swapped_site_gives_the_image_to_the_uncond_side_only(tiny: Sites) -> None:
    kv, q = site_kv(), queries(tiny.sites[1])
    plain = pack_sites(kv, tiny.sites[1:2], {1: ON})
    swapped = pack_sites(kv, tiny.sites[1:2], {1: SiteStrength(0.5, swap=True)})
    torch.testing.assert_close(attend(q, swapped, 0, UNCOND_ROW), 0.5 * attend(q, plain, 0, COND_ROW), **EXACT)
    assert not attend(q, swapped, 0, COND_ROW).any()


@pytest.mark.parametrize(
    ("strengths", "indices"),
    [
        ({0: ON, 1: SiteStrength(0.0), 2: ON}, (0, 2)),
        ({1: ON}, (1,)),
        ({2: SiteStrength(0.0, swap=True)}, ()),
        ({}, ()),
    ],
)
def test_a_site_of_strength_0_is_left_out(
    tiny: Sites, strengths: dict[int, SiteStrength], indices: tuple[int, ...]
) -> None:
    active = active_sites(tiny.sites, strengths)
    packed = pack_sites(site_kv(), active, strengths)
    assert tuple(site.index for site in active) == indices
    assert len(packed.offsets) == len(packed.shapes) == len(packed.views(packed.data)) == len(indices)
    assert packed.data.shape == (2, sum(2 * tiny.sites[i].dim * 8 for i in indices))


def test_views_share_the_packed_memory(tiny: Sites) -> None:
    packed = pack_sites(site_kv(), tiny.sites, dict.fromkeys(range(3), ON))
    storage = packed.data.untyped_storage().data_ptr()
    assert {x.untyped_storage().data_ptr() for pair in packed.views(packed.data) for x in pair} == {storage}
    assert sum(x.numel() for pair in packed.views(packed.data) for x in pair) == packed.data.numel()


def test_packing_changes_no_key_and_no_value(tiny: Sites) -> None:
    kv = site_kv()
    before = [tensor.clone() for tensor in (*kv.keys.values(), *kv.values.values())]
    pack_sites(kv, tiny.sites, dict.fromkeys(range(3), SiteStrength(2.0, swap=True)))
    assert all(map(torch.equal, before, (*kv.keys.values(), *kv.values.values())))
