"""Presets give every site the number that the weight type of the same effect gives it in shared workflows."""

from collections.abc import Callable

import pytest

from ipadapter_core.backbone.sites import Role, Sites
from ipadapter_core.errors import BadInputError
from ipadapter_core.strength.presets import ONE_STRENGTH_PRESETS, PRESETS, meaningful_presets, resolve_preset
from ipadapter_core.strength.site import SiteStrength

from .hand_made_sites import SD15, SDXL, flux_sites, make_sites, transformer_of

W, SECOND = 0.7, 1.3
# One number per transformer in execution order, or the number and True where the image goes to the uncond side.
Table = list[float | tuple[float, bool]]

# SD1.5: 0-5 input 1, 2, 4, 5, 7, 8; 6 middle; 7-15 output 3..11. SDXL: 0-3 input 4, 5, 7, 8; 4 middle; 5-10 output 0..5
SD15_STYLE = (0, 1, 2, 3, *range(9, 16))
SD15_BLOCKS = {"input": range(6), "middle": range(6, 7), "output": range(7, 16)}
SDXL_BLOCKS = {"input": range(4), "middle": range(4, 5), "output": range(5, 11)}


def selected(
    length: int, numbers: dict[int, float | tuple[float, bool]], rest: float | tuple[float, bool] = 0
) -> Table:
    return [numbers.get(t, rest) for t in range(length)]


def blocks(layout: dict[str, range], factors: dict[str, float]) -> Table:
    return [W * factors.get(name, 1) for name, transformers in layout.items() for _ in transformers]


def profile(function: Callable[[float, int], float]) -> tuple[Table, Table]:
    return [W * function(t, 16) for t in range(16)], [W * function(t, 11) for t in range(11)]


def both(**factors: float) -> tuple[Table, Table]:
    return blocks(SD15_BLOCKS, factors), blocks(SDXL_BLOCKS, factors)


# weight type: our preset, numbers on SD1.5, numbers on SDXL
WEIGHT_TYPES: dict[str, tuple[str, tuple[Table, Table]]] = {
    "linear": ("all", ([W] * 16, [W] * 11)),
    "ease in": ("ease in", profile(lambda t, n: 0.05 + 0.95 * (1 - t / n))),
    "ease out": ("ease out", profile(lambda t, n: 0.05 + 0.95 * (t / n))),
    "ease in-out": ("ease in-out", profile(lambda t, n: 0.05 + 0.95 * (1 - abs(t - n / 2) / (n / 2)))),
    "reverse in-out": ("reverse in-out", profile(lambda t, n: 0.05 + 0.95 * (abs(t - n / 2) / (n / 2)))),
    "weak input": ("weak input", both(input=0.2)),
    "weak middle": ("weak middle", both(middle=0.2)),
    "weak output": ("weak output", both(output=0.2)),
    "strong middle": ("strong middle", both(input=0.2, output=0.2)),
    "style transfer": ("style", (selected(16, dict.fromkeys(SD15_STYLE, W)), selected(11, {6: W}))),
    "composition": ("composition", (selected(16, {4: 0.25 * W, 5: W}), selected(11, {3: W}))),
    "strong style transfer": ("strong style", (selected(16, {4: 0, 5: 0}, W), selected(11, {3: 0}, W))),
    "style and composition": (
        "style and composition",
        (
            selected(16, {**dict.fromkeys(SD15_STYLE, W), 4: 0.25 * SECOND, 5: SECOND}),
            selected(11, {3: SECOND, 6: W}),
        ),
    ),
    "strong style and composition": (
        "strong style and composition",
        (selected(16, {4: SECOND, 5: SECOND}, W), selected(11, {3: SECOND}, W)),
    ),
    "style transfer precise": (
        "precise style",
        (
            selected(16, {**dict.fromkeys(SD15_STYLE, W), 4: (0.25 * SECOND, True), 5: (SECOND, True)}),
            selected(11, {3: (SECOND, True), 6: W}),
        ),
    ),
    "composition precise": (
        "precise composition",
        (
            selected(
                16,
                {4: 0.25 * W, 5: W, **dict.fromkeys((6, 7, 8), (0.1 * SECOND, True))},
                (SECOND, True),
            ),
            selected(11, {3: W, 6: (SECOND, True)}, (0.1 * SECOND, True)),
        ),
    ),
}

LATER = ("double blocks", "single blocks", "first half", "second half", "linear rise", "sigmoid rise")
ON_UNETS = [name for name in PRESETS if name not in LATER[:2]]
EVERYWHERE = ("all", "ease in", "ease out", "ease in-out", "reverse in-out")
BLOCKS = ("double blocks", "single blocks")
BY_DEPTH = ("first half", "second half", "linear rise", "sigmoid rise")


def check(sites: Sites, resolved: dict[int, SiteStrength], table: Table) -> None:
    assert set(resolved) == {site.index for site in sites.sites}
    for site in sites.sites:
        given, wanted = resolved[site.index], table[transformer_of(site, sites)]
        value, swap = wanted if isinstance(wanted, tuple) else (wanted, False)
        assert given.value == pytest.approx(value, abs=1e-12), (site, given)
        assert not value or given.swap == swap, (site, given)


@pytest.mark.parametrize("weight_type", WEIGHT_TYPES)
def test_weight_type_on_sd15(sd15: Sites, weight_type: str) -> None:
    assert (len(sd15.sites), len(sd15.blocks)) == (16, 16)
    preset, tables = WEIGHT_TYPES[weight_type]
    check(sd15, resolve_preset(preset, sd15, W, SECOND), tables[0])


@pytest.mark.parametrize("weight_type", WEIGHT_TYPES)
def test_weight_type_on_sdxl(sdxl: Sites, weight_type: str) -> None:
    assert (len(sdxl.sites), len(sdxl.blocks)) == (70, 11)
    preset, tables = WEIGHT_TYPES[weight_type]
    check(sdxl, resolve_preset(preset, sdxl, W, SECOND), tables[1])


def test_every_weight_type_is_a_preset_and_later_ones_stand_behind() -> None:
    """Pages list choices in this order."""
    first = [preset for preset, _ in WEIGHT_TYPES.values()]
    assert set(list(PRESETS)[: len(first)]) == set(first)
    assert tuple(PRESETS)[len(first) :] == LATER


@pytest.mark.parametrize("name", ON_UNETS)
def test_without_a_second_strength_the_first_serves_both(sdxl: Sites, name: str) -> None:
    assert resolve_preset(name, sdxl, W) == resolve_preset(name, sdxl, W, W)


def test_presets_that_one_strength_can_tell_apart(sd15: Sites, sdxl: Sites) -> None:
    assert set(PRESETS).difference(ONE_STRENGTH_PRESETS) == {"strong style and composition"}
    for sites in (sd15, sdxl):
        named = [name for name in ONE_STRENGTH_PRESETS if name in ON_UNETS]
        resolved = [tuple(resolve_preset(name, sites, W).items()) for name in named]
        assert len(set(resolved)) == len(resolved)


def test_style_and_composition_are_instantstyle_s_blocks_on_sdxl(sdxl: Sites) -> None:
    """`up_blocks.0.attentions.1` is keys 69 to 87 of a file, `down_blocks.2.attentions.1` keys 29 to 47."""

    def keys(name: str) -> list[int]:
        return [2 * index + 1 for index, strength in resolve_preset(name, sdxl, 1.0).items() if strength.value]

    assert keys("style") == list(range(69, 88, 2))
    assert keys("composition") == list(range(29, 48, 2))
    assert sorted(keys("style and composition")) == [*range(29, 48, 2), *range(69, 88, 2)]


@pytest.mark.parametrize("name", ON_UNETS)
@pytest.mark.parametrize("strength", [-1.0, 0.0, 5.0])
def test_strength_scales_every_site(sdxl: Sites, name: str, strength: float) -> None:
    for index, site in resolve_preset(name, sdxl, strength).items():
        assert site.value == pytest.approx(strength * resolve_preset(name, sdxl, 1.0)[index].value)


def test_roles_of_a_distilled_model_are_the_counterparts_of_sdxl_s() -> None:
    layout = (("input", 3, 2, 64), ("input", 5, 6, 64), *(("output", block_id, 2, 64) for block_id in range(4)))
    koala = make_sites(layout)
    assert koala.roles == {("input", 5): (Role.COMPOSITION, 1.0), ("output", 1): (Role.STYLE, 1.0)}


def test_roles_of_a_tiny_model(tiny: Sites) -> None:
    assert tiny.roles == {("input", 1): (Role.COMPOSITION, 1.0), ("output", 0): (Role.STYLE, 1.0)}


def test_a_preset_that_selects_nothing_says_so() -> None:
    middle_only = make_sites((("middle", 0, 1, 64),))
    with pytest.raises(BadInputError, match="layer preset 'style', which is about layers of style and composition"):
        resolve_preset("style", middle_only, 1.0)
    assert resolve_preset("style", middle_only, 0.0) == {0: SiteStrength(0.0)}


def test_an_unknown_preset_is_refused(sd15: Sites) -> None:
    with pytest.raises(BadInputError, match=r"layer preset 'linear'\. Expected: one of all, style, composition"):
        resolve_preset("linear", sd15, 1.0)


def values(sites: Sites, name: str) -> list[float]:
    """As the model runs."""
    resolved = resolve_preset(name, sites, W)
    return [resolved[site.index].value for site in sorted(sites.sites, key=lambda site: site.depth)]


def by_layout(layout: str) -> Sites:
    """Those of FLUX.1 that a kind of adapter acts at."""
    return flux_sites().at_layout(layout)


def test_presets_of_double_and_single_blocks() -> None:
    flux = by_layout("InstantX FLUX")
    assert values(flux, "double blocks") == [W] * 19 + [0] * 38
    assert values(flux, "single blocks") == [0] * 19 + [W] * 38
    assert values(by_layout("XLabs FLUX"), "double blocks") == [W] * 19


def every(*layouts: str) -> list[Sites]:
    return [*map(by_layout, layouts), make_sites(SD15), make_sites(SDXL)]


def test_halves_are_of_the_blocks_that_take_the_image() -> None:
    for sites, first, number in zip(
        every("InstantX FLUX", "XLabs FLUX"), (29, 10, 8, 44), (57, 19, 16, 70), strict=True
    ):
        assert values(sites, "first half") == [W] * first + [0] * (number - first)
        assert values(sites, "second half") == [0] * first + [W] * (number - first)


def test_rises_go_from_nothing_to_the_whole_strength() -> None:
    for sites in every("InstantX FLUX", "XLabs FLUX"):
        linear, sigmoid = values(sites, "linear rise"), values(sites, "sigmoid rise")
        blocks = len({site.depth for site in sites.sites})
        assert (linear[0], linear[-1]) == (0, pytest.approx(W))
        assert linear == sorted(linear)
        assert sorted(set(linear)) == pytest.approx([W * number / (blocks - 1) for number in range(blocks)])
        assert sigmoid == sorted(sigmoid)
        assert len({round(value, 9) for value in sigmoid}) == blocks
        assert 0 < sigmoid[0] < 0.01 * W
        assert 0.99 * W < sigmoid[-1] < W
        assert sigmoid[0] + sigmoid[-1] == pytest.approx(W)  # as much above the middle as below
        middle = len(sites.sites) // 2
        assert sigmoid[middle // 2] < linear[middle // 2]
        assert sigmoid[-middle // 2] > linear[-middle // 2]
    assert values(make_sites((("middle", 0, 1, 64),)), "linear rise") == [W]


@pytest.mark.parametrize(
    ("sites", "meaningful"),
    [
        (by_layout("InstantX FLUX"), (*EVERYWHERE, *BLOCKS, *BY_DEPTH)),
        (by_layout("XLabs FLUX"), (*EVERYWHERE, "double blocks", *BY_DEPTH)),
        (make_sites(SDXL), tuple(name for name in ON_UNETS if name in ONE_STRENGTH_PRESETS)),
    ],
    ids=["FLUX", "XLabs", "SDXL"],
)
def test_a_preset_that_means_nothing_here_lists_those_that_do(sites: Sites, meaningful: tuple[str, ...]) -> None:
    assert meaningful_presets(sites) == meaningful
    others = [name for name in PRESETS if name not in meaningful and name in ONE_STRENGTH_PRESETS]
    assert others
    for name in others:
        with pytest.raises(BadInputError) as caught:
            resolve_preset(name, sites, 1.0)
        assert f"layer preset {name!r}, which " in str(caught.value)
        assert f"Expected: one of those that act here: {', '.join(meaningful)}. What" in str(caught.value)
    for name in meaningful:
        assert any(strength.value for strength in resolve_preset(name, sites, 1.0).values())
