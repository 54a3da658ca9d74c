"""InstantX's SD3.5 adapter: its network and one attention equal diffusers'.

diffusers takes the mean square and the softmax in float32 whatever it is given, so the network is as near as that, and for
the attention a norm in float64 stands in its classes.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import pytest
import torch
from diffusers import SD3Transformer2DModel
from diffusers.models.attention_processor import Attention, SD3IPAdapterJointAttnProcessor2_0
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention, silu

from ipadapter_core.backbone.sites import Site
from ipadapter_core.branch.attention import add_to_tokens
from ipadapter_core.branch.plan import PatchPlan
from ipadapter_core.branch.resident import Resident
from ipadapter_core.branch.rows import COND, UNCOND, Group, Rows
from ipadapter_core.branch.timed import TimedKV, joint_attention
from ipadapter_core.branch.tokens import COMBINATIONS, ImageTokens, combine, features_as_tokens
from ipadapter_core.network.adapter import IPAdapter, build_adapter
from ipadapter_core.strength.site import AnyStrength, FrameStrength, SiteStrength
from parity.oracle import attend
from support.published import instantx_sd35, nested, random_tensors

HEADS, HEAD_DIM, IMAGE, POSITIONS, TOKENS, CELLS, TEXT = 2, 64, 24, 7, 5, 12, 4
WIDTH = HEADS * HEAD_DIM
DOUBLE, CPU = torch.float64, torch.device("cpu")
SHAPES = instantx_sd35(blocks=1, width=WIDTH, image=IMAGE, tokens=TOKENS, dim=32, inner=128, time=16)
SITE = Site(index=0, address=("joint", 0, 0), depth=0.0, heads=HEADS, head_dim=HEAD_DIM, context_dim=0)


@dataclass(frozen=True)
class Moment:
    """An evaluation at a timestep, for these frames."""

    timestep: Tensor
    frames: tuple[int, ...] = (0,)
    evaluation: Hashable = 0

    def kept(self, _key: Hashable, make: Callable[[], Tensor]) -> Tensor:
        return make()


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 2e-5)])
@pytest.mark.parametrize("timestep", [0.0, 31.7, 500.0, 999.5, 1000.0])
@torch.no_grad()
def test_tokens_equal_diffusers(dtype: torch.dtype, tolerance: float, timestep: float) -> None:
    tensors = random_tensors(SHAPES)
    convert = SD3Transformer2DModel._convert_ip_adapter_image_proj_to_diffusers
    holder = SD3Transformer2DModel(num_layers=1, attention_head_dim=HEAD_DIM, num_attention_heads=1, sample_size=4)
    theirs = convert(holder, nested(tensors)["image_proj"], low_cpu_mem_usage=False).eval().to(dtype)
    features = draw(2, POSITIONS, IMAGE).to(dtype)
    expected, time = theirs(features, torch.full((2,), timestep))
    ours = build_adapter(tensors, {}).to(dtype)
    tokens, our_time = ours.timed_tokens(features, torch.tensor([timestep]))
    assert expected.abs().mean() > 0.1
    torch.testing.assert_close(tokens, expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(our_time.expand(2, -1), time, rtol=tolerance, atol=tolerance)


class Block:
    """The attention of a joint block in diffusers, and what it is called with; rows are uncond, then cond.

    Args:
        qk_norm: whether the block norms its queries and keys, as SD3.5 does.
    """

    def __init__(self, latents: int = 1, *, qk_norm: bool = True) -> None:
        torch.manual_seed(0)
        self.attention = Attention(
            WIDTH, added_kv_proj_dim=WIDTH, dim_head=HEAD_DIM, heads=HEADS, context_pre_only=False, bias=True
        ).double()
        if qk_norm:
            for name in ("norm_q", "norm_k", "norm_added_q", "norm_added_k"):
                setattr(self.attention, name, HeadNorm(torch.rand(HEAD_DIM, dtype=DOUBLE) + 0.5))
        self.picture = draw(2 * latents, CELLS, WIDTH, seed=3)
        self.text = draw(2 * latents, TEXT, WIDTH, seed=4)

    def diffusers(self, adapter: IPAdapter, tokens: Tensor, time: Tensor, scale: float) -> Tensor:
        processor = SD3IPAdapterJointAttnProcessor2_0(
            hidden_size=WIDTH, ip_hidden_states_dim=WIDTH, head_dim=HEAD_DIM, timesteps_emb_dim=32, scale=scale
        ).double()
        processor.load_state_dict(adapter.site(0).state_dict(), strict=True)
        for name in ("norm_q", "norm_k", "norm_ip_k"):
            setattr(processor, name, HeadNorm(getattr(processor, name).weight))
        rows = len(self.picture)
        return processor(self.attention, self.picture, self.text, ip_hidden_states=tokens, temb=time.expand(rows, -1))[
            0
        ]

    def core(self, plan: PatchPlan, moment: Moment, sides: Sequence[int] = (UNCOND, COND)) -> Tensor:
        attention, network = self.attention, nn.Module()
        network.joint_blocks = nn.ModuleList([nn.Module()])
        network.joint_blocks[0].x_block = nn.Module()
        own = network.joint_blocks[0].x_block.attn = nn.Module()
        own.ln_q, own.ln_k = (norm or nn.Identity() for norm in (attention.norm_q, attention.norm_k))
        q, k, v = (
            layer(self.picture).unflatten(-1, (HEADS, -1)) for layer in (attention.to_q, attention.to_k, attention.to_v)
        )
        q, k = own.ln_q(q), own.ln_k(k)
        text = [
            layer(self.text).unflatten(-1, (HEADS, -1))
            for layer in (attention.add_q_proj, attention.add_k_proj, attention.add_v_proj)
        ]
        if attention.norm_added_q is not None:
            text[:2] = attention.norm_added_q(text[0]), attention.norm_added_k(text[1])
        out = attend(*(torch.cat((a, b), dim=1).transpose(1, 2) for a, b in zip(text, (q, k, v), strict=True)))
        resident = Resident(plan, CPU, DOUBLE)
        rows = Rows(tuple(Group(side, side) for side in sides), len(q) // len(sides))
        of_query, of_key = resident.exchanges(0, network)
        image = joint_attention(
            of_query(q), (of_key(k), v), resident.kv(0, rows, moment, each_row=True), scaled_dot_product_attention
        )
        strength, of_rows = resident.strength(0, rows, moment.frames)
        out = add_to_tokens(out, image, TEXT, None, of_rows, strength)
        return attention.to_out[0](out[:, TEXT:])


class HeadNorm(nn.Module):
    """diffusers' `RMSNorm`, with the mean square in float64; torch's gives another memory order, which it cannot view."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach())

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


def an_adapter() -> IPAdapter:
    return build_adapter(random_tensors(SHAPES, dtype=DOUBLE), {})


def a_plan(adapter: IPAdapter, tokens: ImageTokens, strength: AnyStrength, *, per_frame: bool = False) -> PatchPlan:
    source = TimedKV((SITE,), {0: strength}, adapter, {0: tokens}, per_frame)
    return PatchPlan((SITE,), source, strengths=(strength,))


@pytest.mark.parametrize("qk_norm", [True, False])
@pytest.mark.parametrize("references", [1, 3])
@pytest.mark.parametrize("latents", [1, 2])
@torch.no_grad()
def test_attention_equals_diffusers(qk_norm: bool, references: int, latents: int) -> None:
    adapter, moment = an_adapter(), Moment(torch.tensor([620.0]), tuple(range(latents)))
    cond, none = draw(references, POSITIONS, IMAGE, seed=1), torch.zeros(1, POSITIONS, IMAGE, dtype=DOUBLE)
    sides = []
    for side in (none.expand(references, -1, -1), cond):
        tokens, time = adapter.timed_tokens(side, moment.timestep)
        sides += [tokens.flatten(0, 1)] * latents
    block = Block(latents, qk_norm=qk_norm)
    expected = block.diffusers(adapter, torch.stack(sides), time, 0.6)
    actual = block.core(a_plan(adapter, ImageTokens(cond, none, "a"), SiteStrength(0.6)), moment)
    without = block.diffusers(adapter, torch.stack(sides), time, 0.0)
    assert (expected - without).abs().max() > 0.01
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


@torch.no_grad()
def test_every_frame_has_its_reference_and_its_strength() -> None:
    adapter, frames = an_adapter(), (2, 0, 4)
    moment = Moment(torch.tensor([77.0]), frames)
    cond, none = draw(3, POSITIONS, IMAGE, seed=1), torch.zeros(1, POSITIONS, IMAGE, dtype=DOUBLE)
    factors = (0.2, 0.4, 0.8)
    plan = a_plan(adapter, ImageTokens(cond, none, "a"), FrameStrength(factors), per_frame=True)
    block, alone = Block(3), Block(1)
    whole = block.core(plan, moment)
    for row, frame in enumerate((2, 0, 2)):  # the last serves all further frames
        alone.picture, alone.text = block.picture[[row, 3 + row]], block.text[[row, 3 + row]]
        sides = torch.cat((none, cond[frame : frame + 1]))
        tokens, time = adapter.timed_tokens(sides, moment.timestep)
        expected = alone.diffusers(adapter, tokens, time, factors[frame])
        torch.testing.assert_close(whole[[row, 3 + row]], expected, rtol=0, atol=1e-12)


@torch.no_grad()
def test_a_swapped_site_gives_the_image_to_the_other_side_alone() -> None:
    adapter, moment = an_adapter(), Moment(torch.tensor([400.0]))
    cond, none = draw(1, POSITIONS, IMAGE, seed=1), torch.zeros(1, POSITIONS, IMAGE, dtype=DOUBLE)
    block = Block()
    swapped = block.core(a_plan(adapter, ImageTokens(cond, none, "a"), SiteStrength(0.6, swap=True)), moment)
    tokens, time = adapter.timed_tokens(cond, moment.timestep)
    on, off = (block.diffusers(adapter, tokens.expand(2, -1, -1), time, scale) for scale in (0.6, 0.0))
    torch.testing.assert_close(swapped[0], on[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(swapped[1], off[1], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("method", "factors"), [("concat", [1.0, 1.0]), ("average", [1.0, 1.0]), ("average", [1.4, 0.8])]
)
@torch.no_grad()
def test_combined_features_give_what_combined_tokens_give(method: str, factors: list[float]) -> None:
    """Also of what was combined before, and with other negatives."""
    adapter, moment = an_adapter(), Moment(torch.tensor([400.0]))
    conds = [draw(count, POSITIONS, IMAGE, seed=seed) for seed, count in enumerate((1, 2, 2))]
    unconds = [draw(1, POSITIONS, IMAGE, seed=9)] * 2 + [torch.zeros(1, POSITIONS, IMAGE, dtype=DOUBLE)]
    features = [features_as_tokens(cond, uncond, "a") for cond, uncond in zip(conds, unconds, strict=True)]
    tokens = [
        ImageTokens(*(adapter.timed_tokens(side, moment.timestep)[0] for side in sides), "a")
        for sides in zip(conds, unconds, strict=True)
    ]
    later, now = (
        combine([combine(parts[:2], "average", [1.0, 1.0]), parts[2]], method, factors) for parts in (features, tokens)
    )
    uncond, cond = now.sequences()
    _, time = adapter.timed_tokens(conds[0], moment.timestep)
    expected = torch.stack([torch.stack(adapter.timed_kv(0, side[None], silu(time)))[:, 0] for side in (uncond, cond)])
    torch.testing.assert_close(keys_and_values(adapter, later, moment), expected, rtol=0, atol=1e-10)


def keys_and_values(adapter: IPAdapter, tokens: ImageTokens, moment: Moment) -> Tensor:
    """(2 sides, 2, T, H, D)."""
    packed = TimedKV((SITE,), {0: SiteStrength(1.0)}, adapter, {0: tokens}).at(moment, CPU, DOUBLE)
    return packed.data.view(2, 2, -1, HEADS, HEAD_DIM)


@torch.no_grad()
def test_a_factor_is_the_values_alone_as_keys_are_normed() -> None:
    adapter, moment = an_adapter(), Moment(torch.tensor([400.0]))
    parts = [
        features_as_tokens(draw(1, POSITIONS, IMAGE, seed=seed), torch.zeros(1, POSITIONS, IMAGE, dtype=DOUBLE), "a")
        for seed in (1, 2)
    ]
    plain, first, both, mean = (
        keys_and_values(adapter, combine(parts, method, factors), moment)
        for method, factors in (("concat", [1, 1]), ("concat", [0.5, 1]), ("average", [3, 1]), ("average", [1.5, 0.5]))
    )
    expected = plain.clone()
    expected[1, 1, :TOKENS] /= 2
    close = {"rtol": 0, "atol": 1e-4}  # the epsilon of a norm counts for more in shorter tokens
    torch.testing.assert_close(first, expected, **close)
    mean[1, 1] *= 2
    torch.testing.assert_close(both, mean, **close)


@pytest.mark.parametrize("method", [name for name, one in COMBINATIONS.items() if not one.is_linear])
def test_what_needs_the_tokens_is_refused_before_there_are_any(method: str) -> None:
    one = features_as_tokens(torch.ones(1, POSITIONS, IMAGE), torch.zeros(1, POSITIONS, IMAGE), "a")
    with pytest.raises(ValueError, match=f"method '{method}'.*Expected: one of concat, average, add, subtract"):
        combine([one, one], method, [1.0, 1.0])
