"""Nodes that IPAdapter_plus dropped: what they offer is what was saved, and they draw what today's nodes draw."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from legacy.apply_fixtures import LAYOUTS, adapter, bare, error, forward
from legacy.fact_records import Input
from legacy.former_facts import FORMER, GONE, SCALINGS
from legacy.former_fixtures import ROUNDING, assert_same, noised
from legacy.running import clip_vision, outputs, random_image
from support import comfy_host

DOCS = comfy_host.ROOT / "nodes" / "web" / "docs"
BOTH = {"base": "image_embeds", "plus": "penultimate_hidden_states"}

each_node = pytest.mark.parametrize("node_id", FORMER)
each_kind = pytest.mark.parametrize("kind", BOTH)
pytestmark = pytest.mark.smoke_long


@pytest.fixture(scope="module")
def vision(base_directory: Path) -> Any:
    return clip_vision()


@pytest.fixture(params=LAYOUTS)
def layout(request: pytest.FixtureRequest) -> str:
    return request.param


def advanced(model: Any, payload: Any, image: Tensor, vision: Any, **widgets: Any) -> Any:
    usual = {"weight": 0.7, "weight_type": "linear", "combine_embeds": "concat", "start_at": 0.0, "end_at": 1.0}
    usual |= {"embeds_scaling": "V only", "clip_vision": vision}
    return outputs("IPAdapterAdvanced", model=model, ipadapter=payload, image=image, **(usual | widgets))[0]


def described(item: Input) -> tuple[Any, ...]:
    return item.type, item.default, item.min, item.max, item.step, item.options


def announced(entry: tuple[Any, ...]) -> tuple[Any, ...]:
    kind, detail = entry[0], entry[1] if len(entry) > 1 else {}
    options = kind if isinstance(kind, list) else detail.get("options")
    is_combo = options is not None
    numbers = (detail.get(name) for name in ("default", "min", "max", "step"))
    return "COMBO" if is_combo else kind, *numbers, tuple(options) if is_combo else None


@each_node
def test_inputs_and_outputs_are_those_that_were_saved(base_directory: Path, node_id: str) -> None:
    node, facts = comfy_host.node(node_id), FORMER[node_id]
    groups = node.INPUT_TYPES()
    given = [
        (name, announced(entry)) for group in ("required", "optional") for name, entry in groups.get(group, {}).items()
    ]
    assert given == [(item.name, described(item)) for item in facts.inputs]
    assert list(groups.get("optional", {})) == [item.name for item in facts.inputs if item.optional]
    assert tuple(zip(node.RETURN_TYPES, node.RETURN_NAMES or node.RETURN_TYPES, strict=True)) == facts.outputs
    import nodes

    assert nodes.NODE_DISPLAY_NAME_MAPPINGS[node_id] == facts.display_name


@each_node
def test_texts_and_help_page(base_directory: Path, node_id: str) -> None:
    node, facts = comfy_host.node(node_id), FORMER[node_id]
    assert node.DEPRECATED
    assert "in new ones use " in node.DESCRIPTION
    details = {name: entry[1] for group in node.INPUT_TYPES().values() for name, entry in group.items()}
    assert [name for name, detail in details.items() if len(detail.get("tooltip", "")) < 10] == []
    page = (DOCS / f"{node_id}.md").read_text(encoding="utf-8")
    assert page.startswith(f"# {facts.display_name}\n")
    for heading in ("## What it did", "## Inputs", "## Native way", "## What differs"):
        assert heading in page
    assert ("saved with it run" in page) == (node_id not in GONE)
    rows = " ".join(line.split("|")[1] for line in page.splitlines() if line.startswith("| `"))
    assert [item.name for item in facts.inputs if f"`{item.name}`" not in rows] == []


@pytest.mark.parametrize("weight_type", SCALINGS)
def test_weight_types_are_scalings(
    base_directory: Path, model: Callable, vision: Any, layout: str, weight_type: str
) -> None:
    payload, image, mask = (
        adapter(base_directory, layout, "plus").payload,
        random_image(2, 40, 60),
        torch.zeros(1, 8, 8),
    )
    mask[:, :, :5] = 1
    inputs = {"ipadapter": payload, "clip_vision": vision, "image": image, "model": model(layout), "attn_mask": mask}
    (given,) = outputs("IPAdapterApply", weight=0.7, weight_type=weight_type, **inputs)
    scaling = SCALINGS[weight_type]
    wanted = advanced(model(layout), payload, image, vision, embeds_scaling=scaling, attn_mask=mask)
    assert_same(given, wanted, model(layout))
    others = [name for name in SCALINGS if name != weight_type]
    for other in others:
        (differs,) = outputs("IPAdapterApply", weight=0.7, weight_type=other, **inputs)
        assert error(forward(differs), forward(wanted)) > ROUNDING


@each_kind
def test_noise_makes_the_negative_image(
    base_directory: Path, model: Callable, vision: Any, layout: str, kind: str
) -> None:
    payload, image = adapter(base_directory, layout, kind).payload, random_image(2, 50, 40)
    inputs = {"ipadapter": payload, "clip_vision": vision, "image": image, "model": model(layout), "weight": 0.7}
    for noise in (0.01, 0.33, 1.0):
        (given,) = outputs("IPAdapterApply", noise=noise, **inputs)
        wanted = advanced(model(layout), payload, image, vision, image_negative=noised(image, noise))
        assert_same(given, wanted, model(layout))
        (without,) = outputs("IPAdapterApply", noise=0.0, **inputs)
        assert error(forward(without), forward(given)) > ROUNDING


def test_the_range_holds_and_unfolded_references_are_frames(
    base_directory: Path, model: Callable, vision: Any, layout: str
) -> None:
    payload, image = adapter(base_directory, layout, "base").payload, random_image(2, 30, 30)
    inputs = {"ipadapter": payload, "clip_vision": vision, "image": image, "model": model(layout), "weight": 0.7}
    (given,) = outputs("IPAdapterApply", unfold_batch=True, **inputs)
    widgets = {"weight": 0.7, "weight_type": "linear", "start_at": 0.0, "end_at": 1.0, "embeds_scaling": "V only"}
    wanted = {"model": model(layout), "ipadapter": payload, "image": image, "clip_vision": vision, **widgets}
    frames, _ = outputs("IPAdapterBatch", encode_batch_size=0, **wanted)
    assert_same(given, frames, model(layout), latents=2)
    (together,) = outputs("IPAdapterApply", **inputs)
    assert error(forward(together, latents=2), forward(given, latents=2)) > ROUNDING
    (late,) = outputs("IPAdapterApply", start_at=0.999, **inputs)
    assert torch.equal(forward(late), bare(model(layout)))


@each_kind
def test_encoded_references_act_as_the_references_themselves(
    base_directory: Path, model: Callable, vision: Any, layout: str, kind: str
) -> None:
    payload, (one, two) = (
        adapter(base_directory, layout, kind).payload,
        (random_image(1, 40, 40, seed=n) for n in (1, 2)),
    )
    widgets = {"ipadapter_plus": kind == "plus", **{f"weight_{number}": 1.0 for number in range(1, 5)}}
    for noise in (0.0, 0.3):
        (embeds,) = outputs(
            "IPAdapterEncoder2023", clip_vision=vision, image_1=one, image_3=two, noise=noise, **widgets
        )
        (given,) = outputs("IPAdapterApplyEncoded", ipadapter=payload, embeds=embeds, model=model(layout), weight=0.7)
        negative = {"image_negative": noised(torch.cat((one, two)), noise)} if noise else {}
        wanted = advanced(model(layout), payload, torch.cat((one, two)), vision, **negative)
        assert_same(given, wanted, model(layout))


def test_each_slot_has_its_weight(base_directory: Path, model: Callable, vision: Any) -> None:
    payload, pictures = (
        adapter(base_directory, "sdxl", "plus").payload,
        [random_image(1, 40, 40, seed=n) for n in (1, 2)],
    )
    weights = {"weight_1": 0.9, "weight_2": 5.0, "weight_3": 5.0, "weight_4": 0.4}
    widgets = {"ipadapter_plus": True, "noise": 0.0, **weights}
    (embeds,) = outputs("IPAdapterEncoder2023", clip_vision=vision, image_1=pictures[0], image_4=pictures[1], **widgets)
    sides = [
        outputs("IPAdapterEncoder", ipadapter=payload, image=picture, weight=weight, clip_vision=vision)
        for picture, weight in zip(pictures, (0.9, 0.4), strict=True)
    ]
    (positive,) = outputs("IPAdapterCombineEmbeds", embed1=sides[0][0], embed2=sides[1][0], method="concat")
    torch.testing.assert_close(embeds[0], positive, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(embeds[1], sides[0][1].expand_as(positive), rtol=1e-4, atol=1e-5)


@each_kind
def test_embeds_are_joined_saved_and_loaded(base_directory: Path, vision: Any, kind: str) -> None:
    widgets = {"ipadapter_plus": kind == "plus", "noise": 0.0, **{f"weight_{number}": 1.0 for number in range(1, 5)}}
    pictures = [random_image(1, 40, 40, seed=n) for n in (1, 2)]
    parts = [outputs("IPAdapterEncoder2023", clip_vision=vision, image_1=each, **widgets)[0] for each in pictures]
    (both,) = outputs("IPAdapterBatchEmbeds", embed1=parts[0], embed2=parts[1])
    (at_once,) = outputs(
        "IPAdapterEncoder2023", clip_vision=vision, image_1=pictures[0], image_2=pictures[1], **widgets
    )
    torch.testing.assert_close(both, at_once, rtol=1e-4, atol=1e-5)
    folder = base_directory / "input"
    folder.mkdir(exist_ok=True)
    torch.save(both.clone(), folder / f"former-{kind}.ipadpt")  # as it was saved then
    assert torch.equal(outputs("IPAdapterLoadEmbeds", embeds=f"former-{kind}.ipadpt")[0], both)
    outputs("IPAdapterSaveEmbeds", embeds=both, filename_prefix=f"former-{kind}")
    (saved,) = (base_directory / "output").glob(f"former-{kind}_*.safetensors")
    saved.rename(folder / saved.name)
    assert torch.equal(outputs("IPAdapterLoadEmbeds", embeds=saved.name)[0], both)


def test_embeds_of_the_other_kind_say_which_node_to_use(base_directory: Path, model: Callable, vision: Any) -> None:
    payload = adapter(base_directory, "sdxl", "plus").payload
    today, _ = outputs(
        "IPAdapterEncoder", ipadapter=payload, image=random_image(2, 9, 9), weight=1.0, clip_vision=vision
    )
    pooled = vision.encode_image(random_image(2, 9, 9)).image_embeds
    for wrong in (today, torch.stack((pooled, pooled))):
        with pytest.raises(ValueError, match=r"\[2, references, positions, .*ipadapter_plus on.*IPAdapter Embeds"):
            outputs("IPAdapterApplyEncoded", ipadapter=payload, embeds=wrong, model=model("sdxl"), weight=1.0)
    for nothing in (None, [pooled, pooled]):
        with pytest.raises(ValueError, match=r"for embeds of Apply IPAdapter from Encoded\..*Encode IPAdapter Image"):
            outputs("IPAdapterApplyEncoded", ipadapter=payload, embeds=nothing, model=model("sdxl"), weight=1.0)
    with pytest.raises(ValueError, match=r"Found: nothing \(None\), for embed1 of IPAdapter Batch Embeds"):
        outputs("IPAdapterBatchEmbeds", embed1=None, embed2=pooled)
    for wrong in (pooled, today[:1].expand(3, -1, -1)):
        with pytest.raises(ValueError, match=r"Expected: .*\[2, references, width\].*IPAdapter Combine Embeds"):
            outputs("IPAdapterBatchEmbeds", embed1=wrong, embed2=wrong)
    widgets = {"weight": 1.0, "weight_type": "linear", "start_at": 0.0, "end_at": 1.0, "embeds_scaling": "V only"}
    for kind, former in (("base", torch.stack((pooled, pooled))), ("plus", torch.stack((today, today)))):
        inputs = {"model": model("sdxl"), "ipadapter": adapter(base_directory, "sdxl", kind).payload, **widgets}
        with pytest.raises(ValueError, match=r"before March 2024 .*Apply IPAdapter from Encoded"):
            outputs("IPAdapterEmbeds", pos_embed=former, neg_embed=former, **inputs)
    with pytest.raises(ValueError, match=r"shapes .*set both Encode IPAdapter Image nodes alike"):
        outputs("IPAdapterBatchEmbeds", embed1=torch.stack((pooled, pooled)), embed2=torch.stack((today, today)))


def test_a_picture_is_prepared_for_a_face_model(base_directory: Path) -> None:
    picture = torch.zeros(1, 100, 200, 3)
    picture[:, :, :100, 0], picture[:, :, 100:, 1] = 1, 1  # red on the left, green on the right
    inputs = {"image": picture, "sharpening": 0.0}
    (left,) = outputs("PrepImageForInsightFace", crop_position="left", pad_around=False, **inputs)
    assert left.shape == (1, 640, 640, 3)
    assert torch.equal(left, torch.tensor([1.0, 0, 0]).expand_as(left))
    (padded,) = outputs("PrepImageForInsightFace", crop_position="right", pad_around=True, **inputs)
    assert padded.shape == (1, 640, 640, 3)
    assert (padded[:, (0, -1)] == 1).all()
    assert (padded[:, :, (0, -1)] == 1).all()
    assert padded[0, 320, 320].tolist() == [0, 1, 0]


def test_sliders_write_layer_weights(base_directory: Path, model: Callable, vision: Any) -> None:
    payload, image = adapter(base_directory, "sdxl", "base").payload, random_image(1, 30, 30)
    widgets = {"weight": 0.7, "weight_faceidv2": 1.0, "weight_type": "linear", "combine_embeds": "concat"}
    widgets |= {"start_at": 0.0, "end_at": 1.0, "embeds_scaling": "V only"}
    inputs = {"model": model("sdxl"), "ipadapter": payload, "image": image, "clip_vision": vision, **widgets}
    layers = {f"layer{number}": 0.0 for number in range(12)}
    (text,) = outputs("IPAdapterLayerWeightsSlider", **(layers | {"layer3": 0.5, "layer6": -1.0, "layer11": 1.0}))
    given, _ = outputs("IPAdapterMS", layer_weights=text, **inputs)
    wanted, _ = outputs("IPAdapterMS", layer_weights="3:0.5, 6:-1", **inputs)  # SDXL has no layer 11
    assert_same(given, wanted, model("sdxl"))
    (none,) = outputs("IPAdapterLayerWeightsSlider", **layers)
    nothing, _ = outputs("IPAdapterMS", layer_weights=none, **inputs)
    assert torch.equal(forward(nothing), bare(model("sdxl")))


@pytest.mark.parametrize("node_id", GONE)
def test_what_cannot_be_done_says_what_to_use(base_directory: Path, node_id: str) -> None:
    with pytest.raises(ValueError, match=r"Found: .* Expected: (IPAdapter [AT]\w+).*What to do: put \1") as caught:
        outputs(node_id, weight=1.0)
    titles = {comfy_host.node(name).GET_SCHEMA().display_name for name in ("IPAdapterAdvanced", "IPAdapterTiled")}
    assert any(title in str(caught.value) for title in titles)
