"""The user's own factors are read from text, multiply the preset's, and never name a site in vain."""

import re

import pytest

from ipadapter_core.backbone.sites import Sites
from ipadapter_core.errors import BadInputError
from ipadapter_core.strength.layer_weights import GROUPS, LayerWeights, SiteFactor, parse_site_factors
from ipadapter_core.strength.presets import resolve_preset
from ipadapter_core.strength.site import SiteStrength

from .hand_made_sites import flux_sites


def apply(sites: Sites, text: str = "", **groups: float) -> dict[int, float]:
    """Factors that differ from 1, by site index."""
    weights = LayerWeights(groups, parse_site_factors(text))
    resolved = weights.apply(resolve_preset("all", sites, 1.0), sites)
    assert set(resolved) == {site.index for site in sites.sites}
    return {index: strength.value for index, strength in resolved.items() if strength.value != 1}


@pytest.mark.parametrize(
    ("text", "factors"),
    [
        ("", ()),
        (" \n , ;\n", ()),
        ("3: 0.5", (SiteFactor(0.5, indices=range(3, 4)),)),
        ("4-9:0", (SiteFactor(0.0, indices=range(4, 10)),)),
        ("7-7: -1.5", (SiteFactor(-1.5, indices=range(7, 8)),)),
        ("input.8: 1.2", (SiteFactor(1.2, block=("input", 8)),)),
        ("output.1.3 : +.5", (SiteFactor(0.5, block=("output", 1), layer=3),)),
        ("middle.0: 2.", (SiteFactor(2.0, block=("middle", 0)),)),
        ("0: 1, 1: 2\n2: 3; 3: 4", tuple(SiteFactor(n + 1.0, indices=range(n, n + 1)) for n in range(4))),
    ],
)
def test_text_is_read_as_the_user_means_it(text: str, factors: tuple[SiteFactor, ...]) -> None:
    assert parse_site_factors(text) == factors


@pytest.mark.parametrize(
    "entry",
    [
        "3",
        "3: ",
        ": 1",
        "9-4: 0",
        "a: 1",
        "3: x",
        "input: 1",
        "input.8.1.2: 1",
        "-1: 1",
        "3=0.5",
        "7 - 7: 1",
    ],
)
def test_an_entry_of_another_form_is_named(entry: str) -> None:
    with pytest.raises(BadInputError, match=re.escape(f"layer weight {entry.strip()!r}. Expected: 'layer: factor'")):
        parse_site_factors(f"0: 1, {entry}")


def test_site_numbers_are_those_of_the_file(sd15: Sites) -> None:
    assert apply(sd15, "0: 0.5, 15: 0, 6-8: 2") == {0: 0.5, 15: 0, 6: 2, 7: 2, 8: 2}
    assert (sd15.sites[15].group, sd15.sites[6].group) == ("middle", "output")


def test_a_block_address_means_all_its_layers_and_a_depth_one(sdxl: Sites) -> None:
    assert apply(sdxl, "output.1: 0.5") == dict.fromkeys(range(34, 44), 0.5)
    assert apply(sdxl, "output.1.3: 0.5") == {37: 0.5}
    assert apply(sdxl, "middle.0: 0.5") == dict.fromkeys(range(60, 70), 0.5)


@pytest.mark.parametrize(
    ("group", "indices"),
    [
        ("input", range(24)),
        ("middle", range(60, 70)),
        ("output", range(24, 60)),
        ("style", range(34, 44)),
        ("composition", range(14, 24)),
    ],
)
def test_groups_mean_the_sites_of_their_name(sdxl: Sites, group: str, indices: range) -> None:
    assert group in GROUPS
    assert apply(sdxl, **{group: 0.5}) == dict.fromkeys(indices, 0.5)


def test_factors_multiply_each_other_and_the_preset(sdxl: Sites) -> None:
    weights = LayerWeights({"output": 0.5, "style": 3.0}, parse_site_factors("34: 2, output.1: 5, 30-40: 7"))
    strengths = resolve_preset("precise style", sdxl, 0.5)
    resolved = weights.apply(strengths, sdxl)
    assert resolved[34].value == pytest.approx(0.5 * 0.5 * 3 * 2 * 5 * 7)
    assert resolved[43].value == pytest.approx(0.5 * 0.5 * 3 * 5)
    assert resolved[30].value == 0
    assert {index: site.swap for index, site in resolved.items()} == {i: s.swap for i, s in strengths.items()}


def test_neutral_weights_change_nothing_and_a_site_without_strength_gets_none(sd15: Sites) -> None:
    strengths = resolve_preset("ease in", sd15, 0.7)
    assert LayerWeights().apply(strengths, sd15) == strengths
    assert LayerWeights(dict.fromkeys(GROUPS, 1.0)).apply(strengths, sd15) == strengths
    assert LayerWeights({"input": 2.0}).apply({3: SiteStrength(0.5)}, sd15) == {3: SiteStrength(1.0)}


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("16: 1", "16-16"),
        ("3-100: 1", "3-100"),
        ("input.3: 1", "input.3"),
        ("input.1.1: 1", "input.1.1"),
        ("down.1: 1", "down.1"),
    ],
)
def test_an_entry_that_names_no_site_of_the_model_is_refused(sd15: Sites, text: str, named: str) -> None:
    with pytest.raises(BadInputError) as caught:
        apply(sd15, text)
    assert f"layer weight for {named}, which this model does not have" in str(caught.value)
    blocks = "layers 0 to 15, or its blocks input.1, input.2, input.4, input.5, input.7, input.8, middle.0, output.3 to output.11. "
    assert blocks in str(caught.value)


@pytest.mark.parametrize("layout", ["XLabs FLUX", "InstantX FLUX"])
def test_blocks_of_a_dit_are_named(layout: str) -> None:
    sites = flux_sites().at_layout(layout)
    assert apply(sites, "double.3: 0.5, double.18: 0") == {3: 0.5, 18: 0}
    with pytest.raises(BadInputError) as caught:
        apply(sites, "single.38: 0" if layout == "InstantX FLUX" else "single.0: 0")
    last, singles = (56, ", single.0 to single.37") if layout == "InstantX FLUX" else (18, "")
    assert f"layers 0 to {last}, or its blocks double.0 to double.18{singles}. What" in str(caught.value)


@pytest.mark.parametrize("group", GROUPS)
def test_a_group_that_a_dit_does_not_have_is_refused_with_what_can_be_named(group: str) -> None:
    sites = flux_sites()
    assert apply(sites, "single.0: 0", **dict.fromkeys(GROUPS, 1.0)) == {19: 0}
    with pytest.raises(BadInputError) as caught:
        apply(sites, **{group: 0.5})
    assert f"layer weights for {group}, which this kind of model does not have" in str(caught.value)
    assert "factors for its blocks double.0 to double.18, single.0 to single.37. What" in str(caught.value)
    assert f"set {group} to 1" in str(caught.value)
