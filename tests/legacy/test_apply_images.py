"""The apply nodes that take pictures: what is encoded, how references are combined, which side and layer gets which."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from legacy import plain
from legacy.apply_fixtures import LAYOUTS, adapter, assert_draws, error, forward
from legacy.facts import FACTS
from legacy.running import clip_vision, outputs, random_image
from support import comfy_host

METHODS = next(item.options for item in FACTS["IPAdapterAdvanced"].inputs if item.name == "combine_embeds")
RANGE = {"start_at": 0.0, "end_at": 1.0}
WIDGETS = {"weight": 0.8, "weight_type": "linear", "embeds_scaling": "V only", "combine_embeds": "concat"} | RANGE


def combined(embeds: Tensor, method: str) -> Tensor:
    """What IPAdapterCombineEmbeds makes of several references."""
    if method == "add":
        return sum(embeds)[None]
    if method == "subtract":
        return (embeds[0] - sum(embeds[1:]) / (len(embeds) - 1))[None]
    if method == "average":
        return (sum(embeds) / len(embeds))[None]
    if method == "norm average":
        return (sum(embeds / sum(embeds**2) ** 0.5) / len(embeds))[None]
    return embeds


@pytest.fixture(scope="module")
def vision(base_directory: Path) -> Any:
    return clip_vision()


@pytest.fixture
def setting(base_directory: Path, model: Callable, vision: Any) -> Callable[..., dict[str, Any]]:
    def make(layout: str = "sdxl", kind: str = "base") -> dict[str, Any]:
        loaded = adapter(base_directory, layout, kind).payload
        return {"model": model(layout), "ipadapter": loaded, "clip_vision": vision}

    return make


@pytest.fixture
def reference(base_directory: Path, vision: Any) -> Callable[..., plain.Plain]:
    """Of pictures, encoded by ComfyUI's own `encode_image` and combined as told."""

    def make(
        image: Tensor,
        layout: str = "sdxl",
        kind: str = "base",
        method: str = "concat",
        negative: Tensor | None = None,
        **how: Any,
    ) -> plain.Plain:
        how = {"weights": plain.weights("linear", layout, 0.8), "middle": plain.MIDDLE[layout]} | how
        positive = features(vision, kind, image)
        if negative is not None:
            other = features(vision, kind, negative)
        else:
            other = torch.zeros_like(positive) if kind == "base" else features(vision, kind, torch.zeros(1, 28, 28, 3))
        if method != "concat":
            positive, other = combined(positive, method), other[:1]
        return plain.Plain(
            adapter(base_directory, layout, kind).tensors, *sides(base_directory, layout, kind, positive, other), **how
        )

    return make


@torch.inference_mode()
def features(vision: Any, kind: str, image: Tensor) -> Tensor:
    out = vision.encode_image(image)
    return out.image_embeds if kind == "base" else out.penultimate_hidden_states


@torch.inference_mode()
def sides(folder: Path, layout: str, kind: str, *embeds: Tensor) -> list[Tensor]:
    """Image tokens; the resampler and the MLP are those of the pack, which tests/parity holds against diffusers."""
    made = adapter(folder, layout, kind)
    if kind == "base":
        return [plain.linear_projection(made.tensors, embed) for embed in embeds]
    return [made.payload.loaded.network.project(embed) for embed in embeds]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["base", "plus", "full"])
def test_every_kind_of_adapter(setting: Callable, reference: Callable, layout: str, kind: str) -> None:
    """Pictures that are no squares are cut; the negative is zeros for base and a black picture for the others."""
    image = random_image(1, 50, 70)
    given = outputs("IPAdapterAdvanced", image=image, **setting(layout, kind), **WIDGETS)[0]
    assert_draws(given, setting(layout)["model"], layout, [reference(image, layout, kind)])


@pytest.mark.parametrize("kind", ["base", "plus"])
@pytest.mark.parametrize("method", METHODS)
def test_every_combination(setting: Callable, reference: Callable, kind: str, method: str) -> None:
    image = random_image(3, 30, 30)
    given = outputs("IPAdapterAdvanced", image=image, **setting("sdxl", kind), **WIDGETS | {"combine_embeds": method})[
        0
    ]
    assert_draws(given, setting()["model"], "sdxl", [reference(image, kind=kind, method=method)])


@pytest.mark.parametrize("kind", ["base", "plus"])
@pytest.mark.parametrize("method", ["concat", "average"])
def test_a_negative_picture(setting: Callable, reference: Callable, kind: str, method: str) -> None:
    image, negative = random_image(2, 30, 30), random_image(2, 30, 30, seed=7)
    widgets = WIDGETS | {"combine_embeds": method, "image_negative": negative}
    given = outputs("IPAdapterAdvanced", image=image, **setting("sdxl", kind), **widgets)[0]
    assert_draws(given, setting()["model"], "sdxl", [reference(image, kind=kind, method=method, negative=negative)])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("name", "plain_name"),
    [("standard", "linear"), ("prompt is more important", "ease out"), ("style transfer", "style transfer")],
)
def test_the_simple_node(
    setting: Callable, reference: Callable, vision: Any, layout: str, name: str, plain_name: str
) -> None:
    given, image = setting(layout), random_image(1, 30, 30)
    pipeline = {
        "clipvision": {"file": "x", "model": given.pop("clip_vision")},
        "ipadapter": {"file": "y", "model": given["ipadapter"]},
        "insightface": {"provider": None, "model": None},
    }
    simple = given | {"ipadapter": pipeline, "image": image, "weight": 0.8, "weight_type": name} | RANGE
    wanted = reference(image, layout, weights=plain.weights(plain_name, layout, 0.8))
    assert_draws(outputs("IPAdapter", **simple)[0], given["model"], layout, [wanted])
    with pytest.raises(ValueError, match="Expected: the output of IPAdapter Unified Loader"):
        outputs("IPAdapter", **simple | {"ipadapter": given["ipadapter"]})


@pytest.mark.parametrize("expand", [False, True])
@pytest.mark.parametrize("per_frame", [False, True])
def test_style_and_composition(setting: Callable, reference: Callable, expand: bool, per_frame: bool) -> None:
    style, composition = random_image(2, 30, 30), random_image(3, 30, 30, seed=3)
    method = "concat" if per_frame else "average"
    node = "IPAdapterStyleCompositionBatch" if per_frame else "IPAdapterStyleComposition"
    given = outputs(
        node,
        **setting(),
        image_style=style,
        image_composition=composition,
        weight_style=0.7,
        weight_composition=1.2,
        expand_style=expand,
        embeds_scaling="K+V",
        **RANGE | ({} if per_frame else {"combine_embeds": method}),
    )[0]
    name = "strong style and composition" if expand else "style and composition"
    wanted = reference(
        style,
        method=method,
        weights=plain.weights(name, "sdxl", 0.7, composition=1.2),
        cond_alt={3: reference(composition, method=method).cond},
        scaling="K+V",
        per_frame=per_frame,
    )
    assert_draws(given, setting()["model"], "sdxl", [wanted], latents=3)


def test_style_and_composition_are_for_sdxl(setting: Callable) -> None:
    image = random_image(1, 30, 30)
    widgets = {"weight_style": 1.0, "weight_composition": 1.0, "expand_style": False, "embeds_scaling": "V only"}
    pictures = {"image_style": image, "image_composition": image, "combine_embeds": "average"}
    with pytest.raises(ValueError, match="Expected: an SDXL model"):
        outputs("IPAdapterStyleComposition", **setting("sd15"), **pictures, **widgets, **RANGE)


PRECISE = {
    "IPAdapterPreciseStyleTransfer": ("style transfer precise", "style_boost"),
    "IPAdapterPreciseComposition": ("composition precise", "composition_boost"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("batch", ["", "Batch"])
@pytest.mark.parametrize("node", PRECISE)
def test_precise_nodes(setting: Callable, reference: Callable, layout: str, node: str, batch: str) -> None:
    image, (name, boost) = random_image(2, 30, 30), PRECISE[node]
    widgets = {"weight": 0.8, boost: -1.5, "combine_embeds": "average", "embeds_scaling": "V only"} | RANGE
    given = outputs(f"{node}{batch}", image=image, **setting(layout), **widgets)[0]
    wanted = reference(
        image,
        layout,
        method="concat" if batch else "average",
        weights=plain.weights(name, layout, 0.8, boost=-1.5),
        swapped=plain.swapped(name, layout),
        per_frame=bool(batch),
    )
    assert_draws(given, setting(layout)["model"], layout, [wanted], latents=2)


def test_from_params_applies_one_adapter_per_region(setting: Callable, reference: Callable) -> None:
    first, second = random_image(2, 30, 30), random_image(1, 30, 30, seed=4)
    mask = torch.rand(1, 20, 20)
    params = {
        "image": [first, None, second],
        "attn_mask": [mask, None, None],
        "weight": [0.5, 1.0, 0.9],
        "weight_type": ["linear", "linear", "ease in"],
        "start_at": [0.0, 0.0, 0.0],
        "end_at": [1.0, 1.0, 1.0],
    }
    widgets = {"combine_embeds": "add", "embeds_scaling": "K+V w/ C penalty"}
    given = outputs("IPAdapterFromParams", **setting(), ipadapter_params=params, **widgets)[0]
    wanted = [
        reference(
            first,
            method="add",
            weights=plain.weights("linear", "sdxl", 0.5),
            masks=mask,
            scaling=widgets["embeds_scaling"],
        ),
        reference(second, weights=plain.weights("ease in", "sdxl", 0.9), scaling=widgets["embeds_scaling"]),
    ]
    applied = comfy_host.pack("nodes.patching.applied").applied_to(given.model_options["transformer_options"])
    assert len(applied.plans) == 2
    wanted_picture = forward(plain.install(setting()["model"], "sdxl", wanted))
    assert error(forward(given), wanted_picture) < 1e-4
    only = forward(plain.install(setting()["model"], "sdxl", wanted[1:]))
    assert error(only, wanted_picture) > 1e-4, "the first region does nothing here"


def test_embeds_without_a_negative(setting: Callable, reference: Callable, vision: Any) -> None:
    image = random_image(1, 30, 30)
    for kind in ("base", "plus"):
        given = setting("sdxl", kind)
        widgets = {name: value for name, value in WIDGETS.items() if name != "combine_embeds"}
        patched = outputs("IPAdapterEmbeds", pos_embed=features(vision, kind, image), **given, **widgets)[0]
        assert_draws(patched, given["model"], "sdxl", [reference(image, kind=kind)])
        del given["clip_vision"]
        with pytest.raises(ValueError, match="neither neg_embed nor clip_vision"):
            outputs("IPAdapterEmbeds", pos_embed=features(vision, kind, image), **given, **widgets)


def test_embeds_of_another_encoder_are_refused(setting: Callable) -> None:
    widgets = {name: value for name, value in WIDGETS.items() if name != "combine_embeds"}
    for wrong in (torch.zeros(1, 21), torch.zeros(1, 5, 20)):
        with pytest.raises(ValueError, match=r"embeds of shape .*Expected: \[references, 20\]"):
            outputs("IPAdapterEmbeds", pos_embed=wrong, neg_embed=wrong, **setting(), **widgets)


def test_an_adapter_for_another_model_is_refused_before_anything_is_encoded(setting: Callable) -> None:
    wrong = setting("sd15") | {"model": setting("sdxl")["model"], "clip_vision": None}
    with pytest.raises(ValueError, match="Expected: an adapter and a model of the same base"):
        outputs("IPAdapterAdvanced", image=random_image(1, 30, 30), **wrong, **WIDGETS)
