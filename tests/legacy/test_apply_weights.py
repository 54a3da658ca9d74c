"""Weight types, scalings, layer weights, ranges, masks: a whole UNet forward against the plain formula."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from legacy import plain
from legacy.apply_fixtures import LAYOUTS, SIGMA, adapter, assert_draws, bare, embeds, error, formula, forward
from legacy.facts import FACTS
from legacy.running import clip_vision, outputs, random_image

WEIGHT_TYPES = next(item.options for item in FACTS["IPAdapterAdvanced"].inputs if item.name == "weight_type")
SCALINGS = next(item.options for item in FACTS["IPAdapterAdvanced"].inputs if item.name == "embeds_scaling")
PLAIN_WIDGETS = {"weight": 1.0, "weight_type": "linear", "start_at": 0.0, "end_at": 1.0, "embeds_scaling": "V only"}


@pytest.fixture(params=LAYOUTS)
def layout(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def setting(base_directory: Path, model: Callable, layout: str) -> dict[str, Any]:
    """The inputs every IPAdapterEmbeds call has."""
    return {
        "model": model(layout),
        "ipadapter": adapter(base_directory, layout).payload,
        "pos_embed": embeds(1, seed=1),
        "neg_embed": embeds(1, seed=2),
    }


@pytest.fixture
def reference(base_directory: Path, layout: str) -> Callable[..., plain.Plain]:
    """The same adapter and embeds for the plain formula."""

    def make(positive: torch.Tensor | None = None, negative: torch.Tensor | None = None, **how: Any) -> plain.Plain:
        positive = embeds(1, seed=1) if positive is None else positive
        negative = embeds(1, seed=2) if negative is None else negative
        how.setdefault("weights", plain.weights("linear", layout, 1.0))
        return formula(base_directory, layout, positive, negative, **how)

    return make


@pytest.mark.parametrize("name", WEIGHT_TYPES)
def test_every_weight_type(setting: dict, reference: Callable, layout: str, name: str) -> None:
    given = outputs("IPAdapterEmbeds", **setting, **PLAIN_WIDGETS | {"weight_type": name, "weight": 0.7})[0]
    wanted = reference(weights=plain.weights(name, layout, 0.7), swapped=plain.swapped(name, layout))
    assert_draws(given, setting["model"], layout, [wanted])


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("weight", [0.6, -0.5, 2.5])
def test_every_scaling(setting: dict, reference: Callable, layout: str, scaling: str, weight: float) -> None:
    given = outputs("IPAdapterEmbeds", **setting, **PLAIN_WIDGETS | {"embeds_scaling": scaling, "weight": weight})[0]
    wanted = reference(weights=plain.weights("linear", layout, weight), scaling=scaling)
    assert_draws(given, setting["model"], layout, [wanted])


@pytest.mark.parametrize("scaling", SCALINGS)
def test_every_scaling_keeps_several_references_apart(
    setting: dict, reference: Callable, layout: str, scaling: str
) -> None:
    positive = embeds(3, seed=5)
    setting |= {"pos_embed": positive}
    given = outputs("IPAdapterEmbeds", **setting, **PLAIN_WIDGETS | {"embeds_scaling": scaling, "weight": 0.8})[0]
    wanted = reference(positive, weights=plain.weights("linear", layout, 0.8), scaling=scaling)
    assert_draws(given, setting["model"], layout, [wanted])


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("name", ["style transfer precise", "composition precise"])
def test_precise_types_with_every_scaling(
    setting: dict, reference: Callable, layout: str, scaling: str, name: str
) -> None:
    widgets = PLAIN_WIDGETS | {"embeds_scaling": scaling, "weight": 0.8, "weight_type": name}
    given = outputs("IPAdapterEmbeds", **setting, **widgets)[0]
    wanted = reference(weights=plain.weights(name, layout, 0.8), scaling=scaling, swapped=plain.swapped(name, layout))
    assert_draws(given, setting["model"], layout, [wanted])


@pytest.mark.parametrize("order", [(0,), (1,), (0, 1), (0, 0, 1), (1, 0, 1, 0)], ids=str)
def test_every_order_and_split(setting: dict, reference: Callable, layout: str, order: tuple[int, ...]) -> None:
    given = outputs("IPAdapterEmbeds", **setting, **PLAIN_WIDGETS)[0]
    assert_draws(given, setting["model"], layout, [reference()], order=order, latents=2)


@pytest.mark.parametrize("masks", [1, 2])
def test_masks(setting: dict, reference: Callable, layout: str, masks: int) -> None:
    mask = torch.rand(masks, 40, 40, generator=torch.Generator().manual_seed(4))
    given = outputs("IPAdapterEmbeds", **setting, **PLAIN_WIDGETS, attn_mask=mask)[0]
    assert_draws(given, setting["model"], layout, [reference(masks=mask)], latents=3)


def test_two_adapters_add_up(base_directory: Path, setting: dict, reference: Callable, layout: str) -> None:
    widgets = PLAIN_WIDGETS | {"weight": 0.5}
    first = outputs("IPAdapterEmbeds", **setting, **widgets)[0]
    both = outputs("IPAdapterEmbeds", **setting | {"model": first, "pos_embed": embeds(1, seed=9)}, **widgets)[0]
    half = plain.weights("linear", layout, 0.5)
    wanted = [reference(weights=half), reference(embeds(1, seed=9), weights=half)]
    assert_draws(both, setting["model"], layout, wanted)


@pytest.mark.parametrize(("start", "end"), [(0.0, 0.2), (0.2, 0.6), (0.6, 1.0)])
def test_ranges(setting: dict, reference: Callable, layout: str, start: float, end: float) -> None:
    """The forward's sigma lies in exactly one of them."""
    model = setting["model"]
    to_sigma = model.get_model_object("model_sampling").percent_to_sigma
    bounds = (to_sigma(start), to_sigma(end))
    given = outputs("IPAdapterEmbeds", **setting, **PLAIN_WIDGETS | {"start_at": start, "end_at": end})[0]
    wanted = forward(plain.install(model, layout, [reference(sigmas=bounds)]))
    assert error(forward(given), wanted) < 1e-4
    acts = bounds[1] <= SIGMA <= bounds[0]
    assert (error(bare(model), wanted) > 1e-3) == acts


def test_a_range_that_ends_before_it_starts_and_a_weight_of_0_do_nothing(setting: dict, layout: str) -> None:
    for change in ({"start_at": 0.8, "end_at": 0.2}, {"weight": 0.0}):
        assert outputs("IPAdapterEmbeds", **setting, **PLAIN_WIDGETS | change)[0] is setting["model"]


@pytest.mark.parametrize("name", ["linear", "ease in", "style transfer precise", "composition precise"])
def test_layer_weights_of_the_mad_scientist(
    base_directory: Path, model: Callable, reference: Callable, layout: str, name: str
) -> None:
    vision, image = clip_vision(), random_image(1, 40, 30)
    widgets = PLAIN_WIDGETS | {"weight": 0.5, "weight_type": name, "combine_embeds": "concat"}
    listed = {1: 0.5, 3: 2.0, 5: -1.0, 6: 1.0, plain.MIDDLE[layout]: 3.0, 40: 1.0}
    text = ",\n".join(f"{number}: {factor}" for number, factor in listed.items())
    given = outputs(
        "IPAdapterMS",
        model=model(layout),
        ipadapter=adapter(base_directory, layout).payload,
        image=image,
        weight_faceidv2=1.0,
        layer_weights=text,
        clip_vision=vision,
        **widgets,
    )[0]
    features = vision.encode_image(image).image_embeds
    wanted = reference(
        features,
        torch.zeros_like(features),
        weights={number: 0.5 * factor for number, factor in listed.items()},
        swapped=plain.swapped(name, layout),
    )
    assert_draws(given, model(layout), layout, [wanted])


def test_a_layer_weight_that_is_none_is_refused(base_directory: Path, setting: dict, layout: str) -> None:
    del setting["pos_embed"], setting["neg_embed"]
    setting |= {"image": random_image(1, 30, 30), "clip_vision": clip_vision(), "weight_faceidv2": 1.0}
    with pytest.raises(ValueError, match=r"layer weight '3=1'.*Expected: 'transformer: factor' pairs"):
        outputs("IPAdapterMS", **setting, **PLAIN_WIDGETS, combine_embeds="concat", layer_weights="3=1")
