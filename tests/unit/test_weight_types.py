"""Weight types are layer presets under their old names; layers can be listed; the middle block gets nothing."""

import pytest

from ipadapter_core.backbone.sites import Sites
from ipadapter_core.errors import BadInputError
from ipadapter_core.legacy.weight_types import (
    OFFERED_WEIGHT_TYPES,
    WEIGHT_TYPES,
    parse_layer_weights,
    resolve_frames,
    resolve_layer_weights,
    resolve_weight_type,
)
from ipadapter_core.strength.presets import resolve_preset
from ipadapter_core.strength.site import FrameStrength, SiteStrength

from .hand_made_sites import flux_sites, transformer_of


def by_transformer(sites: Sites, strengths: dict[int, SiteStrength]) -> dict[int, float]:
    return {
        transformer_of(site, sites): round(strengths[site.index].value, 6)
        for site in sites.sites
        if site.index in strengths
    }


@pytest.mark.parametrize("name", WEIGHT_TYPES)
def test_every_type_is_its_preset_without_the_middle(sd15: Sites, sdxl: Sites, name: str) -> None:
    for sites in (sd15, sdxl):
        weight_type = WEIGHT_TYPES[name]
        whole = resolve_preset(weight_type.preset, sites, 0.7, weight_type.second)
        given = resolve_weight_type(name, sites, 0.7)
        middle = {site.index for site in sites.sites if site.group == "middle"}
        assert middle
        assert given == {index: strength for index, strength in whole.items() if index not in middle}


def test_fifteen_are_offered() -> None:
    assert len(OFFERED_WEIGHT_TYPES) == 15
    assert set(WEIGHT_TYPES) - set(OFFERED_WEIGHT_TYPES) == {"strong style and composition"}


def test_composition_stays_at_1_unless_told(sdxl: Sites) -> None:
    assert by_transformer(sdxl, resolve_weight_type("style and composition", sdxl, 0.3))[3] == 1.0
    assert by_transformer(sdxl, resolve_weight_type("style and composition", sdxl, 0.3, 0.0))[3] == 0.0


@pytest.mark.parametrize("text", ["3: 0.5, 6:1", "3:0.5\n6 : 1.0", " 3: .5 ; 6: +1 ,", "6: 7, 3: 0.5, 6: 1"])
def test_layer_weights_are_read(text: str) -> None:
    assert parse_layer_weights(text) == {3: 0.5, 6: 1.0}


@pytest.mark.parametrize("text", ["3", "3=1", "a: 1", "3: x", "3: 1: 2", "-1: 2", "1-3: 2"])
def test_other_entries_are_refused(text: str) -> None:
    with pytest.raises(BadInputError, match="'transformer: factor' pairs"):
        parse_layer_weights(text)


def test_listed_layers_get_theirs_and_all_others_nothing(sdxl: Sites) -> None:
    strengths = resolve_layer_weights({3: 2.0, 4: 9.0, 6: 0.5, 99: 1.0}, "ease in", sdxl, 0.5)
    wanted = dict.fromkeys((0, 1, 2, 5, 7, 8, 9, 10), 0.0) | {3: 1.0, 6: 0.25}
    assert by_transformer(sdxl, strengths) == wanted
    assert not any(strength.swap for strength in strengths.values())


@pytest.mark.parametrize(("name", "swapped"), [("style transfer precise", {3}), ("composition precise", {0, 6})])
def test_precise_types_keep_their_sides(sdxl: Sites, name: str, swapped: set[int]) -> None:
    strengths = resolve_layer_weights({0: 1.0, 3: 1.0, 6: 1.0}, name, sdxl, 1.0)
    found = {
        transformer_of(site, sdxl) for site in sdxl.sites if site.index in strengths and strengths[site.index].swap
    }
    assert found & {0, 3, 6} == swapped


def test_weights_per_frame(sdxl: Sites) -> None:
    """Transformer 3 is that of composition, 6 that of style; the shorter list goes on with its last number."""
    numbers = {transformer_of(site, sdxl): site.index for site in sdxl.sites}
    strengths = resolve_frames("style and composition", sdxl, [0.1, 0.2, 0.3], [0.5, 0.25], {})
    assert strengths[numbers[6]] == FrameStrength((0.1, 0.2, 0.3))
    assert strengths[numbers[3]].factors == pytest.approx((0.5, 0.25, 0.25))
    own = resolve_frames("style and composition", sdxl, [0.1, 0.2], [], {})
    assert own[numbers[3]].factors == (1.0, 1.0)
    assert resolve_frames("composition precise", sdxl, [0.1, 0.2], [], {})[numbers[6]].swap


def test_listed_layers_per_frame(sdxl: Sites) -> None:
    numbers = {transformer_of(site, sdxl): site.index for site in sdxl.sites}
    strengths = resolve_frames("linear", sdxl, [1.0, 0.5], [9.0], {3: 2.0})
    assert strengths[numbers[3]].factors == (2.0, 1.0)
    assert strengths[numbers[6]].factors == (0.0, 0.0)


def test_one_weight_is_that_of_no_frame(sdxl: Sites) -> None:
    assert resolve_frames("ease in", sdxl, [0.7], [], {}) == resolve_weight_type("ease in", sdxl, 0.7)


def test_an_unknown_type_is_refused(sdxl: Sites) -> None:
    with pytest.raises(BadInputError, match="weight type 'strong'"):
        resolve_weight_type("strong", sdxl, 1.0)


@pytest.mark.parametrize("layout", ["XLabs FLUX", "InstantX FLUX"])
def test_a_type_that_means_nothing_on_a_dit_lists_those_that_do(layout: str) -> None:
    sites, eases = flux_sites().at_layout(layout), ("ease in", "ease out", "ease in-out", "reverse in-out")
    assert set(resolve_weight_type("linear", sites, 0.5)) == set(range(len(sites.sites)))
    for name in set(OFFERED_WEIGHT_TYPES) - {"linear", *eases}:
        with pytest.raises(BadInputError) as caught:
            resolve_weight_type(name, sites, 1.0)
        assert f"weight type {name!r}, which is about " in str(caught.value)
        assert f"those that act here: linear, {', '.join(eases)}. What" in str(caught.value)
