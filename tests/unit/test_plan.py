"""A plan's tensors are made once per order, device and dtype, without copies where none is needed."""

import pytest
import torch
from torch import Tensor

from ipadapter_core.backbone.sites import Sites
from ipadapter_core.branch.kv import COND_ROW, UNCOND_ROW, PackedKV, SiteKV, pack_sites
from ipadapter_core.branch.masks import mask_to_tokens
from ipadapter_core.branch.plan import PatchPlan, ResidentPlan
from ipadapter_core.branch.schedule import SigmaRange
from ipadapter_core.errors import MismatchError
from ipadapter_core.strength.site import SiteStrength

Q = torch.zeros(2, 4, 8)


@pytest.fixture
def packed(tiny: Sites) -> PackedKV:
    kv = SiteKV(*(tuple(torch.randn(2, 4, site.dim) for site in tiny.sites) for _ in range(2)))
    return pack_sites(kv, tiny.sites, dict.fromkeys(range(3), SiteStrength(1.0)))[0]


@pytest.fixture
def resident(tiny: Sites, packed: PackedKV) -> ResidentPlan:
    return ResidentPlan(PatchPlan(tiny.sites, packed))


def storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


@pytest.mark.parametrize(
    ("order", "rows"), [([1, 0], [UNCOND_ROW, COND_ROW]), ([0], [COND_ROW]), ([1], [UNCOND_ROW])], ids=str
)
def test_the_usual_orders_are_views_of_the_packed_tensor(
    resident: ResidentPlan, packed: PackedKV, order: list[int], rows: list[int]
) -> None:
    for slot, whole in enumerate(packed.views(packed.data)):
        for given, wanted in zip(resident.kv(slot, order, Q), whole, strict=True):
            assert storage(given) == storage(packed.data)
            assert torch.equal(given, wanted[rows])


def test_the_usual_orders_share_one_copy_of_another_dtype(resident: ResidentPlan) -> None:
    half = Q.half()
    given = [tensor for order in ([1, 0], [0], [1]) for slot in range(3) for tensor in resident.kv(slot, order, half)]
    assert {tensor.dtype for tensor in given} == {torch.float16}
    assert len({storage(tensor) for tensor in given}) == 1


@pytest.mark.parametrize("order", [[0, 1], [0, 0, 1], [1, 0, 0], [1, 1], [0, 2]], ids=str)
def test_every_other_order_has_its_rows(resident: ResidentPlan, packed: PackedKV, order: list[int]) -> None:
    rows = [COND_ROW if condition == 0 else UNCOND_ROW for condition in order]
    for slot, (key, value) in enumerate(packed.views(packed.data)):
        given_key, given_value = resident.kv(slot, order, Q)
        assert torch.equal(given_key, key[rows])
        assert torch.equal(given_value, value[rows])


@pytest.mark.parametrize("order", [[1, 0], [0, 1], [0, 0, 1]], ids=str)
def test_a_step_makes_nothing_again(resident: ResidentPlan, order: list[int]) -> None:
    first = [resident.kv(slot, order, Q) for slot in range(3)]
    again = [resident.kv(slot, order, Q) for slot in range(3)]
    assert all(a is b for pair, same in zip(first, again, strict=True) for a, b in zip(pair, same, strict=True))


def test_dtypes_are_kept_apart(resident: ResidentPlan) -> None:
    resident.kv(0, [0, 1], Q)
    assert resident.kv(0, [0, 1], Q.bfloat16())[0].dtype == torch.bfloat16
    assert resident.kv(0, [0, 1], Q)[0].dtype == torch.float32


def test_ever_new_orders_do_not_pile_up(resident: ResidentPlan) -> None:
    for length in range(1, 40):
        resident.kv(0, [0, 1] * length, Q)
    assert len(resident._kv) <= 4


def test_release_frees_everything_and_the_next_use_makes_it_again(tiny: Sites, packed: PackedKV) -> None:
    plan = PatchPlan(tiny.sites, packed, SigmaRange(10, 1), torch.ones(1, 8, 8) / 2)
    resident = ResidentPlan(plan)
    sigmas = torch.tensor([5.0])

    def use() -> list[Tensor]:
        pairs = [resident.kv(1, order, Q.half()) for order in ([0, 1], [1, 0])]
        return [*pairs[0], *pairs[1], resident.gate(sigmas, Q), resident.mask((1, 4, 2, 2), Q, 2)]

    first = use()
    resident.release()
    fresh = ResidentPlan(plan)
    assert (resident._kv, resident._whole, resident._masks, resident._gate) == (
        fresh._kv,
        fresh._whole,
        fresh._masks,
        fresh._gate,
    )
    again = use()
    assert all(map(torch.equal, first, again))
    assert not any(a is b for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize(("sigma", "acts"), [(11, 0), (10, 1), (5, 1), (1, 1), (0.9, 0), (0, 0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_gate_is_1_inside_the_range_and_0_outside(
    tiny: Sites, packed: PackedKV, sigma: float, acts: int, dtype: torch.dtype
) -> None:
    resident = ResidentPlan(PatchPlan(tiny.sites, packed, SigmaRange(10, 1)))
    gate = resident.gate(torch.tensor([sigma, sigma]), Q.to(dtype))
    assert (gate.shape, gate.dtype, gate.item()) == ((), dtype, acts)


def test_the_gate_is_decided_once_per_step(tiny: Sites, packed: PackedKV) -> None:
    resident = ResidentPlan(PatchPlan(tiny.sites, packed, SigmaRange(10, 1)))
    sigmas, later = torch.tensor([5.0]), torch.tensor([0.5])
    first = resident.gate(sigmas, Q)
    assert resident.gate(sigmas, Q) is first
    assert resident.gate(later, Q).item() == 0
    assert resident.gate(torch.tensor([5.0]), Q).item() == 1


def test_without_range_or_sampler_there_is_no_gate(resident: ResidentPlan, tiny: Sites, packed: PackedKV) -> None:
    assert resident.gate(torch.tensor([5.0]), Q) is None
    assert ResidentPlan(PatchPlan(tiny.sites, packed, SigmaRange(10, 1))).gate(None, Q) is None


def test_without_mask_there_is_none(resident: ResidentPlan) -> None:
    assert resident.mask((2, 4, 3, 5), torch.zeros(2, 15, 8), 2) is None


@pytest.mark.parametrize("masks", [1, 2, 3])
def test_the_mask_follows_the_feature_map_and_is_made_once(tiny: Sites, packed: PackedKV, masks: int) -> None:
    mask = torch.rand(masks, 16, 24)
    resident = ResidentPlan(PatchPlan(tiny.sites, packed, mask=mask))
    for height, width in ((4, 6), (6, 4), (1, 24)):
        image = torch.zeros(2 * 3, height * width, 8, dtype=torch.bfloat16)
        given = resident.mask((6, 320, height, width), image, 2)
        wanted = mask_to_tokens(mask, height, width).bfloat16()
        rows = [0] if masks == 1 else [min(latent, masks - 1) for latent in range(3)] * 2
        assert given.dtype == torch.bfloat16
        assert torch.equal(given, wanted[rows])
        assert resident.mask((6, 320, height, width), image, 2) is given


def test_a_mask_on_merged_tokens_is_refused(tiny: Sites, packed: PackedKV) -> None:
    resident = ResidentPlan(PatchPlan(tiny.sites, packed, mask=torch.ones(1, 8, 8)))
    with pytest.raises(MismatchError, match="15 tokens in an attention layer whose feature map is 4 x 4"):
        resident.mask((2, 320, 4, 4), torch.zeros(2, 15, 8), 2)
