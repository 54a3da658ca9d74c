"""Layer presets and layer weights on every kind of base model beside UNets; texts name these models."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from support import comfy_host, families
from support.families import EACH, FAMILIES, apply, sample

pytestmark = [pytest.mark.smoke, pytest.mark.parametrize("name", EACH)]
GROUPS = ("input", "middle", "output", "style", "composition")
FOR_UNETS = ("style", "composition", "strong style", "precise composition", "weak input", "strong middle")
BY_BLOCKS = {"double blocks": "double", "single blocks": "single"}
DOCS = comfy_host.ROOT / "nodes" / "web" / "docs"


@pytest.fixture
def setting(name: str, base_directory: Path) -> families.Setting:
    return families.setting_of(name, base_directory)


def weights(text: str = "", **groups: float) -> Any:
    return comfy_host.run("IPALayerWeights", site_factors=text, **dict.fromkeys(GROUPS, 1.0) | groups)


def factors_of(name: str, factors: list[float]) -> Any:
    """Layer weights that name each block the adapter acts at."""
    sites = FAMILIES[name].sites
    return weights("\n".join(f"{site[0]}.{site[1]}: {factor}" for site, factor in zip(sites, factors, strict=True)))


def profiles(name: str) -> dict[str, list[float]]:
    """What each preset that acts by blocks or by depth multiplies the strength by, in the order the sites run."""
    sites = FAMILIES[name].sites
    count, groups = len(sites), {site[0] for site in sites}
    first = (count + 1) // 2
    by_blocks = {
        preset: [float(site[0] == group) for site in sites] for preset, group in BY_BLOCKS.items() if group in groups
    }
    return {
        **by_blocks,
        "first half": [1.0] * first + [0.0] * (count - first),
        "second half": [0.0] * first + [1.0] * (count - first),
        "linear rise": [number / (count - 1) for number in range(count)],
    }


def test_a_preset_draws_what_naming_the_blocks_draws(name: str, setting: tuple) -> None:
    for preset, factors in profiles(name).items():
        by_name = sample(name, apply(*setting, layer_weights=factors_of(name, factors)))
        given = sample(name, apply(*setting, layer_preset=preset))
        torch.testing.assert_close(given, by_name, rtol=1e-5, atol=1e-5, msg=preset)
        if set(factors) != {1.0}:
            assert not torch.equal(given, sample(name, apply(*setting))), preset


def test_a_sigmoid_rise_is_more_than_a_linear_one_at_the_end(name: str, setting: tuple) -> None:
    drawn = [sample(name, apply(*setting, layer_preset=preset)) for preset in ("sigmoid rise", "linear rise", "all")]
    assert not any(torch.equal(drawn[0], other) for other in drawn[1:])


def test_a_preset_that_means_nothing_is_refused_with_those_that_do(name: str, setting: tuple) -> None:
    refused = [*FOR_UNETS, *(preset for preset in BY_BLOCKS if preset not in profiles(name))]
    for preset in refused:
        with pytest.raises(ValueError, match=rf"layer preset '{preset}', which .*What to do") as caught:
            apply(*setting, layer_preset=preset)
        offered = str(caught.value).split("those that act here: ")[1].split(". What to do")[0].split(", ")
        assert set(profiles(name)) <= set(offered)
        assert not set(offered).intersection(refused)
        for other in offered:
            apply(*setting, layer_preset=other)


@pytest.mark.parametrize("group", GROUPS)
def test_a_group_of_unets_is_refused_with_the_blocks_there_are(name: str, setting: tuple, group: str) -> None:
    with pytest.raises(ValueError, match=f"layer weights for {group}, which .*factors for its blocks ") as caught:
        apply(*setting, layer_weights=weights(**{group: 0.5}))
    kinds = {site[0] for site in FAMILIES[name].sites}
    named = str(caught.value).split("its blocks ")[1].split(". What")[0]
    assert {part.split(".")[0] for part in named.replace(" to ", ", ").split(", ")} == kinds


def test_texts_name_the_base_model(name: str, setting: tuple) -> None:
    base = FAMILIES[name].base
    inputs = {item.id: item for item in comfy_host.schema("IPAApply").inputs}
    assert base in inputs["model"].tooltip
    for page in ("IPAApply", "IPAApplyImage", "IPALayerWeights"):
        assert base in (DOCS / f"{page}.md").read_text(encoding="utf-8"), page
    kinds = {site[0] for site in FAMILIES[name].sites}
    blocks = (DOCS / "IPALayerWeights.md").read_text(encoding="utf-8")
    assert [kind for kind in kinds if f"`{kind}." not in blocks] == []


def test_a_scaling_of_keys_acts_or_is_refused(name: str, setting: tuple) -> None:
    model, adapter, tokens = setting
    application, scaling = (
        comfy_host.pack("nodes.patching.application"),
        comfy_host.pack("ipadapter_core.strength.scaling"),
    )
    sites = application.fitting_sites(model, adapter)
    strength = comfy_host.pack("ipadapter_core.strength.site").SiteStrength(0.5)
    of_site = ({site.index: each for site in sites.sites} for each in (tokens, strength))

    with torch.inference_mode():
        patch = partial(application.patch_sites, model, sites, adapter, *of_site, application.Limits())
        plain = sample(name, patch())
        for label, keys in scaling.SCALINGS.items():
            try:
                drawn, refusal = sample(name, patch(scaling=keys)), None
            except ValueError as error:
                drawn, refusal = None, str(error)
            if drawn is None:
                assert label != "V only"
                assert f"embeds_scaling '{label}'" in refusal
                assert "set embeds_scaling to 'V only'" in refusal
            else:
                assert torch.equal(drawn, plain) == (label == "V only"), label
