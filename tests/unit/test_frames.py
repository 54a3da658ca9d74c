"""Keys and values that differ from frame to frame: right for any window, and no larger than it."""

import pytest
import torch
from torch import Tensor

from ipadapter_core.backbone.sites import Sites
from ipadapter_core.branch.frames import FrameKV
from ipadapter_core.branch.kv import SiteKV, active_sites, pack_sites
from ipadapter_core.branch.plan import PatchPlan
from ipadapter_core.branch.resident import Resident
from ipadapter_core.branch.tokens import ImageTokens
from ipadapter_core.network.adapter import IPAdapter, build_adapter
from ipadapter_core.strength.site import FrameStrength, SiteStrength
from support.bad_files import SITE_DIMS
from support.published import random_tensors, tiny_adapter

from .test_resident import At, rows

CPU = torch.device("cpu")
WINDOWS = [(0, 1, 2), (1, 2), (2, 0, 0), (7, 1)]
TOKENS = 4


@pytest.fixture(scope="module")
def adapter() -> IPAdapter:
    return build_adapter(random_tensors(tiny_adapter("base", site_dims=SITE_DIMS)), {})


@pytest.fixture(scope="module")
def tokens() -> ImageTokens:
    generator = torch.Generator().manual_seed(0)
    return ImageTokens(*(torch.randn(count, TOKENS, 16, generator=generator) for count in (3, 2)), "a")


def split(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


@pytest.mark.parametrize("order", [[1, 0], [0, 1], [0], [1, 1, 0]], ids=str)
@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_each_latent_has_the_keys_of_its_frame(
    tiny: Sites, adapter: IPAdapter, tokens: ImageTokens, order: list[int], window: tuple[int, ...]
) -> None:
    strengths = {0: SiteStrength(0.5), 1: FrameStrength((1.0, 0.0, 3.0)), 2: SiteStrength(2.0, swap=True)}
    source = FrameKV(tiny.sites, strengths, adapter, dict.fromkeys(range(3), tokens))
    resident = Resident(PatchPlan(tiny.sites, source), CPU, torch.float32)
    for slot, site in enumerate(tiny.sites):
        key, value = resident.kv(slot, rows(order, len(window)), At(window))
        wanted_keys, wanted_values = [], []
        for side in order:
            for frame in window:
                strength = strengths[site.index]
                weight = strength.factors[min(frame, len(strength.factors) - 1)]
                sees = tokens.cond[min(frame, 2)] if side == 0 else tokens.uncond[min(frame, 1)]
                if strength.swap:
                    sees = torch.zeros_like(sees) if side == 0 else tokens.cond[min(frame, 2)]
                projection = adapter.site(site.index)
                wanted_keys.append(sees @ projection.to_k_ip.weight.T)
                wanted_values.append(sees @ projection.to_v_ip.weight.T * weight)
        torch.testing.assert_close(key, split(torch.stack(wanted_keys), site.heads))
        torch.testing.assert_close(value, split(torch.stack(wanted_values), site.heads))


@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_a_weight_per_frame_repeats_shared_keys(tiny: Sites, adapter: IPAdapter, window: tuple[int, ...]) -> None:
    kv = SiteKV(*({site.index: torch.randn(2, 8, site.dim) for site in tiny.sites} for _ in range(2)), TOKENS)
    factors = (1.0, 2.0, 4.0)
    strengths = {1: FrameStrength(factors, swap=True), 2: FrameStrength(factors)}
    active = active_sites(tiny.sites, strengths)
    packed = FrameKV(active, strengths, adapter, {}, kv).at(At(window), device=CPU, dtype=torch.float32)
    plain = pack_sites(kv, active, {1: SiteStrength(1.0, swap=True), 2: SiteStrength(1.0)})
    frames = len(window)
    for given, wanted in zip(packed.views(packed.data), plain.views(plain.data), strict=True):
        for position, frame in enumerate(window):
            for side in range(2):
                row = side * frames + position
                torch.testing.assert_close(given[0][row], wanted[0][side])
                torch.testing.assert_close(given[1][row], wanted[1][side] * factors[min(frame, 2)])


def test_tokens_that_sites_share_are_picked_and_moved_once(
    tiny: Sites, adapter: IPAdapter, tokens: ImageTokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ipadapter_core.branch import frames

    picked: list[ImageTokens] = []
    original = frames._sides

    def counted(given: ImageTokens, window: tuple[int, ...]) -> Tensor:
        picked.append(given)
        return original(given, window)

    monkeypatch.setattr(frames, "_sides", counted)
    other = ImageTokens(tokens.cond + 1, tokens.uncond, "a")
    strengths = dict.fromkeys(range(3), SiteStrength(1.0))
    FrameKV(tiny.sites, strengths, adapter, {0: tokens, 1: other, 2: tokens}).at(
        At((0, 2)), device=CPU, dtype=torch.float32
    )
    assert len(picked) == 2


def test_a_site_that_is_off_in_this_window_keeps_its_slot(tiny: Sites, adapter: IPAdapter, tokens: ImageTokens) -> None:
    strengths = {0: SiteStrength(1.0), 1: FrameStrength((0.0, 0.0, 1.0)), 2: SiteStrength(1.0)}
    source = FrameKV(tiny.sites, strengths, adapter, dict.fromkeys(range(3), tokens))
    views = [(packed := source.at(At((0, 1)), device=CPU, dtype=torch.float32)).views(packed.data)][0]
    assert len(views) == 3
    assert not views[1][1].any()


def test_what_is_kept_follows_the_window_and_is_what_was_foretold(
    tiny: Sites, adapter: IPAdapter, tokens: ImageTokens
) -> None:
    source = FrameKV(tiny.sites, dict.fromkeys(range(3), SiteStrength(1.0)), adapter, dict.fromkeys(range(3), tokens))
    resident = Resident(PatchPlan(tiny.sites, source), CPU, torch.bfloat16)
    for start in range(20):
        first = resident.kv(0, rows([1, 0], 4), At(tuple(range(start, start + 4))))
        assert resident.kv(0, rows([1, 0], 4), At(tuple(range(start, start + 4)))) is first
        resident.kv(0, rows([0], 4), At(tuple(range(start, start + 4))))
        assert resident.num_bytes == source.num_bytes(4, 2) == 2 * 4 * 2 * 2 * TOKENS * sum(SITE_DIMS)
