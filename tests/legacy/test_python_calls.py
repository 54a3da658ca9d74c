"""Calls that other packs make on the classes, as ComfyUI-Easy-Use does: the picture is that of the node in a graph.

The adapter is a plain dictionary, as such packs make it themselves, with nothing of ours in it.
"""

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from legacy.apply_fixtures import adapter, embeds
from legacy.face_fixtures import ONE, load, usual_face_model, write
from legacy.running import clip_vision, outputs, random_image
from support import comfy_host
from support.published import nested

LAYOUT = "sdxl"
RANGE = {"start_at": 0.0, "end_at": 0.8}
LATENTS = 2
PLUS_V2_FILE = "called-plusv2-sdxl.safetensors"

pytestmark = pytest.mark.smoke


@pytest.fixture(scope="module")
def encoder() -> Any:
    return clip_vision()


@pytest.fixture(scope="module")
def draw(model: Callable, sample: Callable) -> Callable[[Any], Tensor]:
    """What a MODEL draws, which is not what it draws without an adapter."""
    plain = sample(model(LAYOUT), batch=LATENTS)

    def run(patched: Any) -> Tensor:
        drawn = sample(patched, batch=LATENTS)
        assert not torch.equal(drawn, plain)
        return drawn

    return run


def called(node_id: str, method: str, *args: Any, **kwargs: Any) -> Any:
    """As another pack calls it."""
    cls = comfy_host.node(node_id)
    with torch.inference_mode():
        return getattr(cls(), method)(*args, **kwargs)


def pipeline(tensors: dict[str, Tensor], encoder: Any, face_model: Any = None, **markers: bool) -> dict[str, Any]:
    """An IPADAPTER as another pack puts it together."""
    return {
        "clipvision": {"file": "an encoder", "model": encoder},
        "ipadapter": {"file": "an adapter", "model": {**nested(tensors), **markers}},
        "insightface": {"provider": "CPU", "model": face_model},
    }


@pytest.fixture
def given(base_directory: Path, model: Callable, encoder: Any) -> dict[str, Any]:
    """MODEL and IPADAPTER of a call, and those of the node in a graph."""
    made = adapter(base_directory, LAYOUT, "plus")
    return {
        "call": (model(LAYOUT), pipeline(made.tensors, None)),
        "full": (model(LAYOUT), pipeline(made.tensors, encoder)),
        "node": {"model": model(LAYOUT), "ipadapter": made.payload},
    }


def everything(**changes: Any) -> dict[str, Any]:
    """What Easy-Use passes to the general apply nodes, by name."""
    return {
        **RANGE,
        "weight": 0.8,
        "weight_type": "linear",
        "combine_embeds": "average",
        "weight_faceidv2": None,
        "image": None,
        "image_negative": None,
        "weight_style": 1.0,
        "weight_composition": 1.0,
        "image_style": None,
        "image_composition": None,
        "expand_style": False,
        "clip_vision": None,
        "attn_mask": None,
        "insightface": None,
        "embeds_scaling": "V only",
        "layer_weights": None,
        "weight_kolors": 1.0,
    } | changes


SHOWN = {"weight": 0.8, "weight_type": "linear", "combine_embeds": "average", "embeds_scaling": "V only", **RANGE}
STYLE = {"image_style": random_image(2, 40, 60, seed=1), "image_composition": random_image(1, 60, 40, seed=2)}
STYLE |= {"weight_style": 0.9, "weight_composition": 0.6, "expand_style": True}
PICTURES = random_image(2, 40, 60)
AS_NODES: dict[str, tuple[str, dict[str, Any], str, dict[str, Any]]] = {
    # who is called, with what, the node that draws the same, and what it shows
    "Advanced": ("IPAdapterAdvanced", {"image": PICTURES}, "IPAdapterAdvanced", {"image": PICTURES}),
    "Advanced, negative and mask": (
        "IPAdapterAdvanced",
        {"image": PICTURES, "image_negative": PICTURES.flip(0), "attn_mask": torch.eye(8)[None]},
        "IPAdapterAdvanced",
        {"image": PICTURES, "image_negative": PICTURES.flip(0), "attn_mask": torch.eye(8)[None]},
    ),
    "Advanced, layers": (
        "IPAdapterAdvanced",
        {"image": PICTURES, "layer_weights": "3: 0.5, 6: 1"},
        "IPAdapterMS",
        {"image": PICTURES, "layer_weights": "3: 0.5, 6: 1", "weight_faceidv2": 1.0},
    ),
    "Advanced, style and composition": ("IPAdapterAdvanced", STYLE, "IPAdapterStyleComposition", STYLE),
    "Batch": ("IPAdapterBatch", {"image": PICTURES}, "IPAdapterBatch", {"image": PICTURES, "encode_batch_size": 0}),
    "Batch, style and composition": ("IPAdapterBatch", STYLE, "IPAdapterStyleCompositionBatch", STYLE),
}


@pytest.mark.parametrize("case", AS_NODES)
def test_the_general_nodes(given: dict, encoder: Any, draw: Callable, case: str) -> None:
    node_id, changes, shown_by, widgets = AS_NODES[case]
    patched, pictures = called(node_id, "apply_ipadapter", *given["call"], **everything(clip_vision=encoder, **changes))
    assert pictures is changes.get("image", changes.get("image_style"))
    known = {item.id for item in comfy_host.schema(shown_by).inputs}
    inputs = {name: value for name, value in (SHOWN | widgets).items() if name in known}
    own = outputs(shown_by, **given["node"], **inputs, clip_vision=encoder)[0]
    assert torch.equal(draw(patched), draw(own))


def test_the_simple_node_by_position(given: dict, encoder: Any, draw: Callable) -> None:
    patched, pictures = called(
        "IPAdapter", "apply_ipadapter", *given["full"], PICTURES, 0.7, 0.0, 0.8, "prompt is more important", None
    )
    assert pictures is PICTURES
    widgets = {"weight": 0.7, "start_at": 0.0, "end_at": 0.8, "weight_type": "prompt is more important"}
    own = outputs("IPAdapter", model=given["full"][0], ipadapter=given["full"][1], image=PICTURES, **widgets)[0]
    assert torch.equal(draw(patched), draw(own))
    usual, _ = called("IPAdapter", "apply_ipadapter", *given["full"], PICTURES, 0.7, 0.0, 0.8)
    widgets["weight_type"] = "standard"
    own = outputs("IPAdapter", model=given["full"][0], ipadapter=given["full"][1], image=PICTURES, **widgets)[0]
    assert torch.equal(draw(usual), draw(own))


@pytest.mark.parametrize("node_id", ["IPAdapterTiled", "IPAdapterTiledBatch"])
def test_the_tiled_nodes(given: dict, encoder: Any, draw: Callable, node_id: str) -> None:
    how = {"sharpening": 0.5, "clip_vision": encoder, "embeds_scaling": "K+V"}
    patched, tiles, masks = called(
        node_id,
        "apply_tiled",
        *(*given["call"], PICTURES, 0.8, "ease in", 0.0, 0.9),
        **how,
        combine_embeds="concat",
        image_negative=None,
        attn_mask=None,
    )
    widgets = {"weight": 0.8, "weight_type": "ease in", "start_at": 0.0, "end_at": 0.9}
    own = outputs(node_id, **given["node"], image=PICTURES, **widgets, **how)
    assert len(own) == 3
    assert torch.equal(draw(patched), draw(own[0]))
    assert torch.equal(tiles, own[1])
    assert torch.equal(masks, own[2])


def test_encode_and_apply_embeds(given: dict, encoder: Any, draw: Callable) -> None:
    mask = torch.eye(8)[None]
    positive, negative = called(
        "IPAdapterEncoder", "encode", given["call"][1], PICTURES, 0.9, mask, clip_vision=encoder
    )
    how = {"neg_embed": negative, "embeds_scaling": "V only"}
    patched, pictures = called(
        "IPAdapterEmbeds",
        "apply_ipadapter",
        *(*given["call"], positive, 0.8, "linear", 0.0, 1.0),
        **how,
        attn_mask=None,
        clip_vision=None,
    )
    assert pictures is None
    given_to_both = {"image": PICTURES, "weight": 0.9, "mask": mask, "clip_vision": encoder}
    encoded = outputs("IPAdapterEncoder", ipadapter=given["node"]["ipadapter"], **given_to_both)
    assert torch.equal(positive, encoded[0])
    assert torch.equal(negative, encoded[1])
    widgets = {"weight": 0.8, "weight_type": "linear", "start_at": 0.0, "end_at": 1.0, "embeds_scaling": "V only"}
    own = outputs("IPAdapterEmbeds", **given["node"], pos_embed=encoded[0], neg_embed=encoded[1], **widgets)[0]
    assert torch.equal(draw(patched), draw(own))


def test_regions(given: dict, encoder: Any, draw: Callable) -> None:
    text: list[Any] = [[torch.zeros(1, 7, 16), {}]]
    region = {"mask": torch.eye(8)[None], "positive": text, "negative": text}
    params, positive, negative = called(
        "IPAdapterRegionalConditioning", "conditioning", PICTURES, 0.8, 1.5, "linear", 0.0, 1.0, **region
    )
    assert [entry[0][1]["mask_strength"] for entry in (positive, negative)] == [1.5, 1.5]
    how = {"combine_embeds": "average", "embeds_scaling": "K+V"}
    patched, pictures = called(
        "IPAdapterFromParams",
        "apply_ipadapter",
        *given["full"],
        clip_vision=None,
        **how,
        image_negative=None,
        ipadapter_params=params,
    )
    assert pictures is None
    own = outputs("IPAdapterFromParams", **given["node"], ipadapter_params=params, **how, clip_vision=encoder)[0]
    assert torch.equal(draw(patched), draw(own))


@pytest.mark.parametrize("socket", ["insightface", "pipeline"])
@pytest.mark.parametrize("kind", ["faceid", "faceid plus"])
def test_faces_through_the_general_node(
    base_directory: Path, model: Callable, encoder: Any, draw: Callable, kind: str, socket: str
) -> None:
    tensors = write(base_directory, LAYOUT, kind, PLUS_V2_FILE)
    face_model, raw = usual_face_model(base_directory), load(PLUS_V2_FILE)
    payload = pipeline(tensors, encoder, face_model if socket == "pipeline" else None, faceidplusv2=True)
    if kind == "faceid plus":  # at this size no file tells its heads without metadata, which a dictionary lacks
        payload["ipadapter"]["model"] = raw
    changes = {"insightface": face_model} if socket == "insightface" else {}
    patched, faces = called(
        "IPAdapterAdvanced",
        "apply_ipadapter",
        model(LAYOUT),
        payload,
        **everything(image=ONE, weight_faceidv2=1.3, **changes),
    )
    own, shown = outputs(
        "IPAdapterFaceID",
        model=model(LAYOUT),
        ipadapter=raw,
        image=ONE,
        **SHOWN,
        weight_faceidv2=1.3,
        clip_vision=encoder,
        insightface=face_model,
    )
    assert torch.equal(faces, shown)
    assert torch.equal(draw(patched), draw(own))


def test_without_a_picture_it_says_so(given: dict, encoder: Any) -> None:
    for node_id in ("IPAdapterAdvanced", "IPAdapterStyleComposition"):
        with pytest.raises(ValueError, match=r"Found: no image\b.*\bimage_style\b"):
            called(node_id, "apply_ipadapter", *given["full"], **everything())


@pytest.mark.parametrize("strange", [None, [torch.zeros(1, 20)]], ids=["none", "list"])
def test_embeds_that_are_none_say_so(given: dict, encoder: Any, strange: Any) -> None:
    usual = torch.zeros(1, 1, 1)
    for positive, negative in ((strange, usual), (usual, strange or [])):
        with pytest.raises(
            ValueError, match=r"(nothing|a list of [01]) .*, for (pos|neg)_embed of IPAdapter Embeds\. Expected: embeds"
        ):
            called("IPAdapterEmbeds", "apply_ipadapter", *given["full"], positive, 1.0, "linear", 0, 1, negative)


@pytest.mark.parametrize("node_id", ["IPAdapter", "IPAdapterTiled", "IPAdapterEncoder"])
def test_every_node_says_that_it_has_no_picture(given: dict, node_id: str) -> None:
    """Such as image_2 of IPAdapter Weights, of which a full batch makes none."""
    model, payload = given["full"]
    models = {} if node_id == "IPAdapterEncoder" else {"model": model}
    with pytest.raises(ValueError, match=r"Found: nothing \(None\), for image of IPAdapter"):
        called(node_id, comfy_host.node(node_id).FUNCTION, **models, ipadapter=payload, image=None)


def test_weights_per_frame(given: dict, encoder: Any, draw: Callable) -> None:
    """A list, as animations pass it."""
    weights = [0.2, 1.0]
    patched, _ = called(
        "IPAdapterBatch", "apply_ipadapter", *given["full"], **everything(image=PICTURES, weight=weights)
    )
    by_tensor, _ = called(
        "IPAdapterBatch", "apply_ipadapter", *given["full"], **everything(image=PICTURES, weight=torch.tensor(weights))
    )
    constant, _ = called("IPAdapterBatch", "apply_ipadapter", *given["full"], **everything(image=PICTURES, weight=0.2))
    assert torch.equal(draw(patched), draw(by_tensor))
    assert torch.equal(draw(patched)[0], draw(constant)[0])
    assert not torch.equal(draw(patched)[1], draw(constant)[1])


@pytest.mark.parametrize("weight", [np.float32(0.5), np.int64(1), np.array(0.5), np.array([0.5, 0.5], np.float32)])
def test_a_weight_may_be_a_number_of_numpy(given: dict, encoder: Any, draw: Callable, weight: Any) -> None:
    """As packs that schedule weights hand them on."""
    patched, _ = called(
        "IPAdapterBatch", "apply_ipadapter", *given["full"], **everything(image=PICTURES, weight=weight)
    )
    plain = np.ravel(weight).tolist()[0]
    usual, _ = called("IPAdapterBatch", "apply_ipadapter", *given["full"], **everything(image=PICTURES, weight=plain))
    assert torch.equal(draw(patched), draw(usual))
    assert outputs("IPAdapterCombineWeights", weights_1=weight, weights_2=0.2)[0] == [*np.ravel(weight).tolist(), 0.2]


def test_an_adapter_is_told_by_both_of_its_parts(given: dict) -> None:
    """A pack may join the attention layers of one file and the projection of another."""
    read, (_, payload) = comfy_host.pack("nodes.legacy.payload").read_payload, given["full"]
    raw = payload["ipadapter"]["model"]
    other = {**raw, "image_proj": {name: 2 * tensor for name, tensor in raw["image_proj"].items()}}
    first, second = (read(each).adapter for each in (raw, other))
    assert first.adapter_id != second.adapter_id
    stated = (dict(each.network.state_dict())["image_proj.latents"] for each in (first, second))
    torch.testing.assert_close(*(factor * latents for factor, latents in zip((2, 1), stated, strict=True)))
    assert read(raw).adapter.adapter_id == first.adapter_id


def test_regions_that_lack_a_list_are_named(given: dict) -> None:
    params = {"image": [PICTURES], "weight": [1.0], "weight_type": ["linear"], "start_at": [0.0], "end_at": [1.0]}
    with pytest.raises(ValueError, match="Found: IPADAPTER_PARAMS without attn_mask"):
        called("IPAdapterFromParams", "apply_ipadapter", *given["full"], ipadapter_params=params)


def test_embeds_of_a_base_adapter_need_no_negative(base_directory: Path, model: Callable, draw: Callable) -> None:
    made = adapter(base_directory, LAYOUT)
    arguments = (
        model(LAYOUT),
        {"ipadapter": {"model": nested(made.tensors)}},
        embeds(1, seed=3),
        1.0,
        "linear",
        0.0,
        1.0,
    )
    patched, _ = called("IPAdapterEmbeds", "apply_ipadapter", *arguments, clip_vision=clip_vision())
    draw(patched)


def test_an_adapter_of_another_pack_is_let_go_with_the_models(given: dict) -> None:
    """Kept from one queue to the next, so that nothing is projected again, until ComfyUI frees models."""
    import comfy.model_management

    foreign, read = given["full"][1], comfy_host.pack("nodes.legacy.payload").read_payload
    adapter_id = read(foreign).adapter.adapter_id
    assert read(foreign).adapter.adapter_id == adapter_id
    gone = weakref.ref(read(foreign).adapter.network)
    comfy.model_management.unload_all_models()
    gc.collect()
    assert gone() is None
