"""A plan's tensors are made once per order, window and feature map, without copies where none is needed."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from ipadapter_core.backbone.sites import Sites
from ipadapter_core.branch.kv import COND_ROW, UNCOND_ROW, PackedKV, SiteKV, pack_sites
from ipadapter_core.branch.masks import mask_to_tokens
from ipadapter_core.branch.plan import PatchPlan
from ipadapter_core.branch.resident import Resident
from ipadapter_core.branch.rows import COND, Group, Place, Rows
from ipadapter_core.errors import MismatchError
from ipadapter_core.strength.site import SiteStrength

CPU = torch.device("cpu")


@dataclass(frozen=True)
class At:
    """A moment with these frames."""

    frames: tuple[int, ...] = (0,)


NOW = At()


def rows(sides: list[int], latents: int = 1, places: list[Place | None] | None = None) -> Rows:
    return Rows(
        tuple(Group(side, side, place) for side, place in zip(sides, places or [None] * len(sides), strict=True)),
        latents,
    )


@pytest.fixture
def packed(tiny: Sites) -> PackedKV:
    kv = SiteKV(*({site.index: torch.randn(2, 4, site.dim) for site in tiny.sites} for _ in range(2)))
    return pack_sites(kv, tiny.sites, dict.fromkeys(range(3), SiteStrength(1.0)))


@pytest.fixture
def resident(tiny: Sites, packed: PackedKV) -> Resident:
    return Resident(PatchPlan(tiny.sites, packed), CPU, torch.float32)


def storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


@pytest.mark.parametrize(
    ("order", "wanted_rows"), [([1, 0], [UNCOND_ROW, COND_ROW]), ([0], [COND_ROW]), ([1], [UNCOND_ROW])], ids=str
)
def test_the_usual_orders_are_views_of_the_packed_tensor(
    resident: Resident, packed: PackedKV, order: list[int], wanted_rows: list[int]
) -> None:
    for slot, whole in enumerate(packed.views(packed.data)):
        for given, wanted in zip(resident.kv(slot, rows(order), NOW), whole, strict=True):
            assert storage(given) == storage(packed.data)
            assert torch.equal(given, wanted[wanted_rows])


def test_the_usual_orders_share_one_copy_of_another_dtype(tiny: Sites, packed: PackedKV) -> None:
    resident = Resident(PatchPlan(tiny.sites, packed), CPU, torch.float16)
    given = [x for order in ([1, 0], [0], [1]) for slot in range(3) for x in resident.kv(slot, rows(order), NOW)]
    assert {tensor.dtype for tensor in given} == {torch.float16}
    assert len({storage(tensor) for tensor in given}) == 1
    assert resident.num_bytes == packed.data.numel() * 2


@pytest.mark.parametrize("side", [0, 1])
def test_of_one_side_alone_only_that_is_on_the_device(tiny: Sites, packed: PackedKV, side: int) -> None:
    resident = Resident(PatchPlan(tiny.sites, packed), CPU, torch.float16)
    resident.kv(0, rows([side]), NOW)
    assert resident.num_bytes == packed.data[0].numel() * 2
    resident.kv(0, rows([1, 0]), NOW)
    assert resident.num_bytes == packed.data.numel() * 2


@pytest.mark.parametrize("order", [[0], [1, 0], [0, 1], [0, 0]], ids=str)
def test_rows_of_their_own_take_memory_only_where_they_differ(
    resident: Resident, packed: PackedKV, order: list[int]
) -> None:
    latents = 3
    numbers = [COND_ROW if side == COND else UNCOND_ROW for side in order for _ in range(latents)]
    for slot, whole in enumerate(packed.views(packed.data)):
        for given, wanted in zip(resident.kv(slot, rows(order, latents), NOW, each_row=True), whole, strict=True):
            assert torch.equal(given, wanted[numbers])
            assert (storage(given) == storage(packed.data)) == (len(set(order)) == 1)


@pytest.mark.parametrize("order", [[0, 1], [0, 0, 1], [1, 0, 0], [1, 1], [0, 1, 0, 1]], ids=str)
def test_every_other_order_has_its_rows(resident: Resident, packed: PackedKV, order: list[int]) -> None:
    numbers = [COND_ROW if side == COND else UNCOND_ROW for side in order]
    for slot, (key, value) in enumerate(packed.views(packed.data)):
        given_key, given_value = resident.kv(slot, rows(order), NOW)
        assert torch.equal(given_key, key[numbers])
        assert torch.equal(given_value, value[numbers])


@pytest.mark.parametrize("order", [[1, 0], [0, 1], [0, 0, 1]], ids=str)
def test_a_step_makes_nothing_again(resident: Resident, order: list[int]) -> None:
    first = [resident.kv(slot, rows(order), NOW) for slot in range(3)]
    again = [resident.kv(slot, rows(order), NOW) for slot in range(3)]
    assert all(a is b for pair, same in zip(first, again, strict=True) for a, b in zip(pair, same, strict=True))


def test_ever_new_orders_do_not_pile_up(resident: Resident, packed: PackedKV) -> None:
    for length in range(1, 40):
        resident.kv(0, rows([0, 1] * length), NOW)
    assert resident.num_bytes <= 4 * 40 * packed.data[:2].nbytes


def test_without_mask_there_is_none(resident: Resident) -> None:
    assert resident.mask((2, 4, 3, 5), 15, rows([1, 0]), (0,)) is None


@pytest.mark.parametrize("masks", [1, 2, 3])
def test_the_mask_follows_the_feature_map_and_is_made_once(tiny: Sites, packed: PackedKV, masks: int) -> None:
    mask = torch.rand(masks, 16, 24)
    resident = Resident(PatchPlan(tiny.sites, packed, mask=mask), CPU, torch.bfloat16)
    batch = rows([1, 0], latents=3)
    for height, width in ((4, 6), (6, 4), (1, 24)):
        given = resident.mask((6, 320, height, width), height * width, batch, (0, 1, 2))
        wanted = mask_to_tokens(mask, height, width).bfloat16()
        picked = [0] if masks == 1 else [min(latent, masks - 1) for latent in range(3)] * 2
        assert given is not None
        assert given.dtype == torch.bfloat16
        assert torch.equal(given, wanted[picked])
        assert resident.mask((6, 320, height, width), height * width, batch, (0, 1, 2)) is given


@pytest.mark.parametrize(
    ("masks", "latents", "groups", "picked"),
    [
        (1, 3, 2, [0]),
        (2, 2, 2, [0, 1, 0, 1]),
        (2, 4, 1, [0, 1, 1, 1]),
        (3, 2, 3, [0, 1, 0, 1, 0, 1]),
        (3, 5, 2, [0, 1, 2, 2, 2, 0, 1, 2, 2, 2]),
        (4, 1, 2, [0, 0]),
    ],
)
def test_latent_i_takes_mask_i_and_later_ones_the_last(
    tiny: Sites, packed: PackedKV, masks: int, latents: int, groups: int, picked: list[int]
) -> None:
    mask = torch.rand(masks, 4, 3)
    resident = Resident(PatchPlan(tiny.sites, packed, mask=mask), CPU, torch.float32)
    given = resident.mask((1, 1, 4, 3), 12, rows([0] * groups, latents), tuple(range(latents)))
    assert given is not None
    assert torch.equal(given, mask.flatten(1)[picked][..., None])


def test_masks_of_a_shifting_window_are_resized_once_and_picked(
    tiny: Sites, packed: PackedKV, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ipadapter_core.branch import resident as module

    calls: list[tuple[int, int]] = []

    def counted(mask: Tensor, height: int, width: int, *more: object) -> Tensor:
        calls.append((height, width))
        return mask_to_tokens(mask, height, width, *more)

    monkeypatch.setattr(module, "mask_to_tokens", counted)
    mask = torch.rand(40, 8, 8)
    resident = Resident(PatchPlan(tiny.sites, packed, mask=mask), CPU, torch.float32)
    cells, most = mask_to_tokens(mask, 2, 2), 0
    for start in range(37):
        frames = tuple(range(start, start + 4))
        given = resident.mask((8, 320, 2, 2), 4, rows([1, 0], latents=4), frames)
        assert given is not None
        assert torch.equal(given, cells[[*frames, *frames]])
        most = max(most, resident.num_bytes)
    assert calls == [(2, 2)]
    assert most <= cells.nbytes + 8 * 8 * 4 * 4


def test_each_block_has_the_part_of_the_mask_where_it_lies(tiny: Sites, packed: PackedKV) -> None:
    mask = torch.rand(2, 16, 16)
    resident = Resident(PatchPlan(tiny.sites, packed, mask=mask), CPU, torch.float32)
    left, right = (Place(0, start, 16, 8, (16, 16)) for start in (0, 8))
    given = resident.mask((6, 320, 8, 4), 32, rows([1, 0, 0], 2, [None, left, right]), (0, 1))
    half = mask.unfold(1, 2, 2).unfold(2, 2, 2).mean((-1, -2))  # (2, 8, 8)
    squeezed = mask.unfold(1, 2, 2).unfold(2, 4, 4).mean((-1, -2))
    wanted = torch.cat((squeezed, half[:, :, :4], half[:, :, 4:])).flatten(1)[..., None]
    torch.testing.assert_close(given, wanted)


def test_a_mask_on_merged_tokens_is_refused(tiny: Sites, packed: PackedKV) -> None:
    resident = Resident(PatchPlan(tiny.sites, packed, mask=torch.ones(1, 8, 8)), CPU, torch.float32)
    with pytest.raises(MismatchError, match="15 tokens in an attention layer whose feature map is 4 x 4"):
        resident.mask((2, 320, 4, 4), 15, rows([1, 0]), (0,))
