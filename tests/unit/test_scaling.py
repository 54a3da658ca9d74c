"""Embeds scalings fold a weight into K and V; frames and sides keep their own."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ipadapter_core.backbone.sites import Sites
from ipadapter_core.branch.kv import SiteKV, pack_sites, project_tokens
from ipadapter_core.branch.plan import PatchPlan, ResidentPlan
from ipadapter_core.branch.tokens import ImageTokens
from ipadapter_core.errors import BadInputError
from ipadapter_core.strength.scaling import SCALINGS, find_scaling
from ipadapter_core.strength.site import FrameStrength, SiteStrength

TOKENS, REFERENCES = 3, 2
EXACT = {"rtol": 0, "atol": 1e-10}


def site_kv(unet: Sites, rows: int = 2, references: int = REFERENCES) -> SiteKV:
    generator = torch.Generator().manual_seed(0)

    def random() -> tuple[Tensor, ...]:
        shape = (rows, references * TOKENS)
        return tuple(torch.randn(*shape, site.dim, dtype=torch.float64, generator=generator) for site in unet.sites)

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
    packed, active = pack_sites(kv, tiny.sites, dict.fromkeys(range(3), SiteStrength(weight)), SCALINGS[name])
    assert active == tiny.sites
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
    assert pack_sites(site_kv(tiny), tiny.sites, {0: SiteStrength(0.0)}, SCALINGS[name])[1] == ()
    kv, q = site_kv(tiny), torch.randn(1, 4, tiny.sites[0].dim, dtype=torch.float64)
    key, value = by_hand(kv.keys[0][0], kv.values[0][0], 0.0, name)
    assert attend(q, key[None], value[None]).abs().max() < 1e-10


def test_frames_have_their_own_weights_and_the_last_serves_the_rest(tiny: Sites) -> None:
    kv = site_kv(tiny, rows=2 * 3)
    packed, _ = pack_sites(kv, tiny.sites, {1: FrameStrength((0.5, 0.0)), 2: SiteStrength(2.0)})
    assert packed.frames == 3
    (_, first), (_, second) = packed.views(packed.data)
    for values, index, weights in ((first, 1, (0.5, 0.0, 0.0)), (second, 2, (2.0, 2.0, 2.0))):
        for row in range(6):
            given = values[row].transpose(0, 1).flatten(1)
            torch.testing.assert_close(given, kv.values[index][row] * weights[row % 3], **EXACT)


def test_a_weight_per_frame_repeats_a_single_picture(tiny: Sites) -> None:
    packed, _ = pack_sites(site_kv(tiny), tiny.sites, {0: FrameStrength((1.0, 2.0, 4.0), swap=True)})
    kv = site_kv(tiny)
    ((_, values),) = packed.views(packed.data)
    for frame, weight in enumerate((1.0, 2.0, 4.0)):
        torch.testing.assert_close(values[frame].transpose(0, 1).flatten(1), kv.values[0][1] * weight, **EXACT)
        assert not values[3 + frame].any()


@pytest.mark.parametrize("order", [(1, 0), (0, 1), (0,), (1, 1, 0)], ids=str)
@pytest.mark.parametrize("frames", [(0, 1, 2), (1, 2), (2, 0, 0), (7, 1)], ids=str)
def test_a_plan_of_frames_gives_each_latent_its_row(
    tiny: Sites, order: tuple[int, ...], frames: tuple[int, ...]
) -> None:
    packed, active = pack_sites(site_kv(tiny, rows=6), tiny.sites, dict.fromkeys(range(3), SiteStrength(1.0)))
    plan = PatchPlan(active, packed)
    assert plan.is_per_frame
    resident, q = ResidentPlan(plan), torch.zeros(1, dtype=torch.float64)
    for slot, whole in enumerate(packed.views(packed.data)):
        given = resident.kv(slot, order, q, frames)
        rows = [(0 if condition else 3) + min(frame, 2) for condition in order for frame in frames]
        assert all(torch.equal(x, y[rows]) for x, y in zip(given, whole, strict=True))
        again = resident.kv(slot, order, q, frames)
        assert all(x is y for x, y in zip(given, again, strict=True))


def test_all_frames_in_their_order_are_no_copy(tiny: Sites) -> None:
    packed, active = pack_sites(site_kv(tiny, rows=6), tiny.sites, dict.fromkeys(range(3), SiteStrength(1.0)))
    key, _ = ResidentPlan(PatchPlan(active, packed)).kv(0, (1, 0), torch.zeros(1, dtype=torch.float64), (0, 1, 2))
    assert key.untyped_storage().data_ptr() == packed.data.untyped_storage().data_ptr()


def test_tokens_of_frames_stay_apart() -> None:
    from ipadapter_core.network.adapter import build_adapter
    from support.bad_files import SITE_DIMS
    from support.published import random_tensors, tiny_adapter

    adapter = build_adapter(random_tensors(tiny_adapter("base", site_dims=SITE_DIMS)), {})
    tokens = ImageTokens(torch.randn(3, 4, 16), torch.randn(2, 4, 16), "a")
    kv = project_tokens(adapter, tokens, torch.device("cpu"), per_frame=True)
    assert kv.tokens == 4
    for index in range(len(SITE_DIMS)):
        weight = adapter.site(index).to_k_ip.weight
        rows = torch.cat((tokens.uncond[[0, 1, 1]], tokens.cond))
        torch.testing.assert_close(kv.keys[index], rows @ weight.T)
