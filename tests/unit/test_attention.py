"""The image branch equals a plain loop over latents and heads, for every order of cond and uncond and every batch."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ipadapter_core.backbone.sites import Site
from ipadapter_core.branch.attention import add_image_attention, image_attention
from ipadapter_core.branch.kv import SiteKV, pack_sites
from ipadapter_core.branch.plan import PatchPlan
from ipadapter_core.branch.resident import Resident
from ipadapter_core.branch.rows import COND
from ipadapter_core.strength.site import SiteStrength

from .test_resident import NOW, rows

ORDERS = ([0, 1], [1, 0], [0], [1], [0, 0, 1], [1, 0, 0])
EXACT = {"rtol": 0, "atol": 1e-12}


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def random(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def make_plan(sizes: Sequence[tuple[int, int]], tokens: int, strength: float = 1.0) -> tuple[PatchPlan, SiteKV]:
    """A plan for sites of these (heads, head size), and the keys and values it was made of."""
    sites = [
        Site(
            index=index,
            address=("input", index, 0),
            depth=0.0,
            heads=heads,
            head_dim=head_dim,
            context_dim=16,
        )
        for index, (heads, head_dim) in enumerate(sizes)
    ]
    keys, values = (tuple(random(10 * site.index + seed, 2, tokens, site.dim) for site in sites) for seed in (1, 2))
    kv = SiteKV(keys, values)
    packed = pack_sites(kv, sites, {site.index: SiteStrength(strength) for site in sites})
    return PatchPlan(tuple(sites), packed), kv


def site_kv(plan: PatchPlan, index: int, order: Sequence[int], q: Tensor) -> tuple[Tensor, Tensor]:
    """K and V of a site for a batch of this order."""
    sides = [COND if number == COND else 1 for number in order]
    return Resident(plan, q.device, q.dtype).kv(index, rows(sides, len(q) // len(order)), NOW)


def loop(q: Tensor, kv: SiteKV, index: int, heads: int, order: Sequence[int]) -> Tensor:
    """Every latent for itself, head by head."""
    per_group, head_dim = len(q) // len(order), q.shape[-1] // heads
    out = torch.empty_like(q)
    for group, condition in enumerate(order):
        row = 1 if condition == COND else 0
        for latent in range(group * per_group, (group + 1) * per_group):
            for start in range(0, heads * head_dim, head_dim):
                part = slice(start, start + head_dim)
                k, v = kv.keys[index][row, :, part], kv.values[index][row, :, part]
                out[latent, :, part] = (q[latent, :, part] @ k.T / head_dim**0.5).softmax(-1) @ v
    return out


@pytest.mark.parametrize("order", ORDERS, ids=str)
@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize("tokens", [1, 4, 16, 257])
def test_each_latent_sees_the_tokens_of_its_own_side(order: list[int], batch: int, tokens: int) -> None:
    plan, kv = make_plan([(3, 4), (2, 8)], tokens)
    for index, (heads, dim) in enumerate(((3, 12), (2, 16))):
        q = random(5, len(order) * batch, 6, dim)
        given_out = image_attention(q, *site_kv(plan, index, order, q), attend)
        torch.testing.assert_close(given_out, loop(q, kv, index, heads, order), **EXACT)


@given(
    order=st.lists(st.integers(0, 2), min_size=1, max_size=5),
    batch=st.integers(1, 4),
    length=st.integers(1, 9),
    sizes=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 8)), min_size=1, max_size=3),
    tokens=st.integers(1, 20),
)
@example(order=[0, 1, 0, 1], batch=2, length=1, sizes=[(1, 1)], tokens=1)
def test_any_order_batch_size_and_head_split(
    order: list[int], batch: int, length: int, sizes: list[tuple[int, int]], tokens: int
) -> None:
    plan, kv = make_plan(sizes, tokens)
    for index, (heads, head_dim) in enumerate(sizes):
        q = random(3, len(order) * batch, length, heads * head_dim)
        given_out = image_attention(q, *site_kv(plan, index, order, q), attend)
        assert given_out.shape == q.shape
        torch.testing.assert_close(given_out, loop(q, kv, index, heads, order), **EXACT)


@pytest.mark.parametrize("order", ORDERS, ids=str)
@pytest.mark.parametrize("strength", [-1.0, 0.3, 5.0])
def test_strength_multiplies_the_image_branch(order: list[int], strength: float) -> None:
    plan, kv = make_plan([(3, 4)], 4, strength)
    q = random(5, len(order) * 2, 6, 12)
    given_out = image_attention(q, *site_kv(plan, 0, order, q), attend)
    torch.testing.assert_close(given_out, strength * loop(q, kv, 0, 3, order), **EXACT)


@pytest.mark.parametrize("order", [[1, 0], [0, 1]], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_branch_has_the_dtype_of_the_queries(dtype: torch.dtype, order: list[int]) -> None:
    plan, kv = make_plan([(3, 4)], 4)
    q = random(5, 4, 6, 12, dtype=dtype)
    k, v = site_kv(plan, 0, order, q)
    assert (k.dtype, v.dtype) == (dtype, dtype)
    given_out = add_image_attention(torch.ones_like(q), image_attention(q, k, v, attend))
    assert given_out.dtype == dtype
    wanted = 1 + loop(q.double(), kv, 0, 3, order)
    torch.testing.assert_close(given_out.double(), wanted, rtol=0, atol=16 * torch.finfo(dtype).eps)


def test_the_branch_is_added_to_the_text_branch() -> None:
    out, image = random(1, 2, 6, 4), random(2, 2, 6, 4)
    assert torch.equal(add_image_attention(out, image), out + image)


@pytest.mark.parametrize("masks", [1, 2])
@pytest.mark.parametrize("open_gate", [True, False])
def test_mask_and_gate_multiply(masks: int, open_gate: bool) -> None:
    out, image = random(1, 2, 6, 4), random(2, 2, 6, 4)
    mask = torch.rand(masks, 6, 1, dtype=torch.float64)
    gate = torch.tensor(float(open_gate), dtype=torch.float64)
    for given_mask, given_gate in ((mask, None), (None, gate), (mask, gate)):
        weight = (1 if given_mask is None else given_mask) * (1 if given_gate is None else given_gate)
        torch.testing.assert_close(
            add_image_attention(out, image, given_mask, given_gate), out + weight * image, **EXACT
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_closed_gate_and_an_empty_mask_change_no_bit(dtype: torch.dtype) -> None:
    out, image = random(1, 2, 6, 4, dtype=dtype), random(2, 2, 6, 4, dtype=dtype)
    mask, gate = torch.zeros(1, 6, 1, dtype=dtype), torch.zeros((), dtype=dtype)
    for given_mask, given_gate in ((mask, None), (None, gate), (mask, gate), (mask + 1, gate), (mask, gate + 1)):
        assert torch.equal(add_image_attention(out, image, given_mask, given_gate), out)
    assert torch.equal(add_image_attention(out, image, mask + 1, gate + 1), out + image)
