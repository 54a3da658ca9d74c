"""Record IP-Adapter Heat Map and IP-Adapter Heat Map: what is recorded is what the branch added, and nothing else changes."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from support import comfy_host, families, tiny_unet
from support.families import EACH, FAMILIES

UNET = "unet"
SIZE = (8, 8)
CLOSE = {"rtol": 2e-3, "atol": 1e-5}  # found: 3e-4, of differences that the test itself takes
ADDING = {
    "run": "add_image_attention",
    "sequence": "add_to_tokens",
    "joint": "add_to_tokens",
    "anima_blocks": "add_to_tokens",
}
HALF = torch.ones(1, 64, 64)
HALF[..., 32:] = 0


class World:
    """A model, its adapter, and how it is sampled."""

    def __init__(self, name: str, base: Path, model: Callable, make_adapter: Callable, make_tokens: Callable) -> None:
        self.name = name
        if name == UNET:
            file = make_adapter("base", "sdxl")
            self.model, self.adapter = model("sdxl"), file.loaded
            self.tokens = lambda count: make_tokens(file, count)
        else:
            self.model, self.adapter = families.model_of(name), families.adapter_of(name, base)
            self.tokens = lambda count: families.tokens_of(name, self.adapter, count)

    def apply(self, model: Any, tokens: Any, **settings: Any) -> Any:
        return families.apply(model, self.adapter, tokens, **settings)


@pytest.fixture(params=[UNET, *EACH])
def world(
    request: pytest.FixtureRequest,
    base_directory: Path,
    model: Callable,
    make_adapter: Callable,
    make_tokens: Callable,
) -> World:
    return World(request.param, base_directory, model, make_adapter, make_tokens)


@pytest.fixture
def unet_world(base_directory: Path, model: Callable, make_adapter: Callable, make_tokens: Callable) -> World:
    return World(UNET, base_directory, model, make_adapter, make_tokens)


@pytest.fixture
def draw(sample: Callable) -> Callable[..., Tensor]:
    def run(world: World, model: Any, **how: Any) -> Tensor:
        return sample(model, **how) if world.name == UNET else families.sample(world.name, model, **how)

    return run


@pytest.fixture
def recorded(draw: Callable) -> Callable[..., Any]:
    """The maps of a sampling of a model."""

    def run(world: World, patched: Any, **how: Any) -> Any:
        model, record = comfy_host.call("IPARecord", model=patched)
        draw(world, model, **how)
        assert record.maps is not None, record.fault
        return record.maps

    return run


@pytest.fixture
def lengths(monkeypatch: pytest.MonkeyPatch, base_directory: Path) -> list[Tensor]:
    """Filled while sampling: how long what was added to each token was, (B, L), one tensor for each site and adapter."""
    found: list[Tensor] = []

    def watched(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def add(out: Tensor, *inputs: Any, **named: Any) -> Tensor:
            before = out.clone()
            after = original(out, *inputs, **named)
            found.append((after.double() - before.double()).norm(dim=-1))
            return after

        return add

    for module, name in ADDING.items():
        holder = comfy_host.pack(f"nodes.patching.{module}")
        monkeypatch.setattr(holder, name, watched(getattr(holder, name)))
    return found


def per_step(world: World, lengths: list[Tensor], steps: int) -> Tensor:
    """(S, B): the mean over the picture's tokens, which come last but for their padding, summed over sites."""
    means = [each[:, picture_of(world.name, each.shape[1])].mean(dim=1) for each in lengths]
    calls = len(means) // steps
    return torch.stack([torch.stack(means[step * calls : (step + 1) * calls]).sum(dim=0) for step in range(steps)])


def picture_of(name: str, length: int) -> slice:
    """Where the picture lies in a sequence of this length."""
    if name == UNET:
        return slice(0, length)
    cells, multiple = SIZE[0] * SIZE[1] // 4, FAMILIES[name].padded_to
    first = length - -(-cells // multiple) * multiple
    return slice(first, first + cells)


@pytest.mark.parametrize(
    "settings",
    [{}, {"strength": -0.7, "mask": HALF, "end_percent": 0.5}, {"guard": {"orthogonal": 0.8, "rescale": 0.5}}],
    ids=["plain", "negative strength, mask and range", "guard"],
)
def test_the_maps_of_all_references_sum_to_what_was_added(
    world: World, recorded: Callable, lengths: list[Tensor], settings: dict[str, Any]
) -> None:
    if "guard" in settings:
        if world.name == "anima_lucifer_early":
            pytest.skip("no such guard for it")
        settings = {"guard": comfy_host.run("IPAGuard", **settings["guard"], noise=0.0)}
    patched = world.apply(world.model, world.tokens(2), **settings)
    maps = recorded(world, patched, steps=3, batch=2, cfg=1.0)
    (found,) = maps.maps
    wanted = per_step(world, lengths, 3).float()
    assert found.shape == (3, 2 + ("sd3" in world.name), 2, *SIZE)
    assert wanted[0].min() > 0
    torch.testing.assert_close(found.sum(dim=1).mean(dim=(-1, -2)), wanted, **CLOSE)
    if "mask" in settings:
        assert not found[2].any(), "past its end"
        assert not found[..., 6:].any(), "beyond the mask, and half a cell of the coarsest layer around it"


def test_it_changes_no_picture_and_only_the_prompt_s_side_counts(
    world: World, recorded: Callable, draw: Callable
) -> None:
    patched = world.apply(world.model, world.tokens(2))
    model, record = comfy_host.call("IPARecord", model=patched)
    assert torch.equal(draw(world, model), draw(world, patched))
    without_negative = recorded(world, patched, cfg=1.0)
    torch.testing.assert_close(record.maps.maps[0][0], without_negative.maps[0][0], rtol=1e-3, atol=1e-5)


def test_each_reference_has_its_own_map_in_whatever_order(world: World, recorded: Callable) -> None:
    tokens = world.tokens(3)
    turned = replace(tokens, cond=tokens.cond.roll(1, 0), uncond=tokens.uncond.roll(1, 0))
    one, other = (recorded(world, world.apply(world.model, each), cfg=1.0).maps[0] for each in (tokens, turned))
    assert (one[:, 0] - one[:, 1]).abs().max() > 1e-3 * one.max()
    torch.testing.assert_close(one[:, :3], other[:, [1, 2, 0]], rtol=1e-3, atol=float(1e-3 * one.max()))


def test_a_reference_that_says_nothing_has_an_empty_map(unet_world: World, recorded: Callable) -> None:
    world, tokens = unet_world, unet_world.tokens(2)
    silent = replace(tokens, cond=tokens.cond * torch.tensor([1.0, 0.0])[:, None, None])
    (maps,) = recorded(world, world.apply(world.model, silent)).maps
    assert maps[:, 0].min() > 0
    assert maps[:, 1].abs().max() < 1e-5 * maps[:, 0].max()


def test_adapters_are_apart_and_all_together_their_sum(world: World, recorded: Callable) -> None:
    first = world.apply(world.model, world.tokens(2), mask=HALF)
    maps = recorded(world, world.apply(first, world.tokens(1), mask=1 - HALF), size=(16, 16))
    left, right, both = (maps.pick(adapter=number) for number in (1, 2, 0))
    assert left[..., :7].min() > 0
    assert not left[..., 10:].any()
    assert right[..., 10:].min() > 0
    assert not right[..., :6].any()
    torch.testing.assert_close(left + right, both)
    near = {"rtol": 0.0, "atol": 0.01 * float(both.max())}  # of a step, what is against the whole is no less than 0
    torch.testing.assert_close(maps.pick(step=1) + maps.pick(step=2), both, **near)
    assert maps.references == (2, 1)


def test_every_latent_has_its_own_map(world: World, recorded: Callable) -> None:
    patched = world.apply(world.model, world.tokens(2), mask=torch.stack((HALF[0], 1 - HALF[0])))
    maps = recorded(world, patched, batch=2, size=(16, 16)).pick()
    assert maps.shape == (2, 16, 16)
    assert not maps[0, :, 10:].any()
    assert not maps[1, :, :6].any()
    assert maps[0, :, :6].min() > 0
    assert maps[1, :, 10:].min() > 0


@pytest.mark.parametrize("size", [(9, 6), (10, 14)])
def test_a_latent_of_any_size_has_a_map_of_its_size(world: World, recorded: Callable, size: tuple[int, int]) -> None:
    maps = recorded(world, world.apply(world.model, world.tokens(1)), size=size)
    assert maps.pick().shape == (1, *size)
    assert maps.pick().min() > 0


def test_a_prompt_for_an_area_is_recorded_there(recorded: Callable, base_directory: Path) -> None:
    name = "instantx_flux"
    model, adapter, tokens = families.setting_of(name, base_directory)
    prompts = families.prompts_of(name, area=(16, 8, 0, 8), strength=1.0)
    patched, record = comfy_host.call("IPARecord", model=families.apply(model, adapter, tokens))
    families.sample(name, patched, prompts=prompts, size=(16, 16), cfg=1.0)
    assert not record.maps.pick()[..., :8].any()
    assert record.maps.pick()[..., 8:].min() > 0


def test_a_sampler_that_asks_twice_in_a_step_has_as_many_steps(unet_world: World) -> None:
    import comfy.sample

    world = unet_world
    model, record = comfy_host.call("IPARecord", model=world.apply(world.model, world.tokens(1)))
    noise = torch.randn(1, 4, *SIZE, generator=torch.Generator().manual_seed(1))
    prompt = [[torch.zeros(1, 7, tiny_unet.CONTEXT_DIM), {"pooled_output": torch.zeros(1, tiny_unet.POOLED_DIM)}]]
    with torch.inference_mode():
        comfy.sample.sample(model, noise, 4, 1.0, "heun", "normal", prompt, prompt, noise * 0, disable_pbar=True)
    maps = record.maps.maps[0]
    assert maps.shape[0] == 4
    strengths = maps.mean(dim=(1, 2, 3, 4))
    assert strengths.min() > 0.3 * strengths.max(), "the mean of a step's calls"
