"""FaceID nodes against the formula: InsightFace's first face, the projections written out, a whole UNet forward."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from legacy import plain
from legacy.apply_fixtures import LAYOUTS, assert_draws, error, forward
from legacy.face_fixtures import (
    HEAD_DIM,
    NOBODY,
    ONE,
    OTHER,
    TWO,
    UNNORM,
    WIDGETS,
    first_face,
    identity_tokens,
    load,
    perceive,
    plus_tokens,
    seen,
    steered,
    usual_face_model,
    write,
)
from legacy.running import clip_vision, outputs, random_image
from support import tiny_unet
from support.encoders import IMAGE_SIZE, WIDTH
from support.published import nested, random_tensors, tiny_adapter, write_safetensors


@pytest.fixture(scope="module")
def face_model(base_directory: Path) -> Any:
    return usual_face_model(base_directory)


@pytest.fixture(params=LAYOUTS)
def layout(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize("kind", ["faceid", "portrait"])
def test_faceid_and_portrait(base_directory: Path, face_model: Any, model: Callable, layout: str, kind: str) -> None:
    name = f"face-{kind}-{layout}.safetensors"
    tensors = write(base_directory, layout, kind, name, num_tokens=16 if kind == "portrait" else 4)
    given, shown = outputs(
        "IPAdapterFaceID", model=model(layout), ipadapter=load(name), image=ONE, insightface=face_model, **WIDGETS
    )
    identity, _, crop = first_face(face_model, ONE)
    wanted = steered(tensors, layout, identity_tokens(tensors, identity), identity_tokens(tensors, NOBODY))
    assert_draws(given, model(layout), layout, [wanted])
    assert shown.shape == (1, 224, 224, 3)
    assert (shown - crop).abs().max() < 5 / 255


def test_a_face_is_found_and_cut_out_of_bytes_that_are_cut_off(
    base_directory: Path, face_model: Any, model: Callable
) -> None:
    write(base_directory, "sd15", "portrait", "face-bytes.safetensors")
    image = (ONE * 254 + 0.7) / 255  # rounded, nearly all would be one more
    inputs = {"model": model("sd15"), "ipadapter": load("face-bytes.safetensors"), "insightface": face_model}
    _, shown = outputs("IPAdapterFaceID", image=image, **inputs, **WIDGETS)
    assert (shown - first_face(face_model, image)[2]).mean().abs() < 0.1 / 255


@pytest.mark.parametrize(("name", "scale"), [("plus", None), ("plusv2", 0.6)])
def test_faceid_plus_is_v2_where_its_name_says_so(
    base_directory: Path, face_model: Any, model: Callable, layout: str, name: str, scale: float | None
) -> None:
    file, vision = f"face-{name}-{layout}.safetensors", clip_vision()
    tensors = write(base_directory, layout, "faceid plus", file)
    given, shown = outputs(
        "IPAdapterFaceID",
        model=model(layout),
        ipadapter=load(file),
        image=ONE,
        clip_vision=vision,
        insightface=face_model,
        **WIDGETS,
    )
    identity, _, _ = first_face(face_model, ONE)
    black = torch.zeros(1, IMAGE_SIZE, IMAGE_SIZE, 3)
    cond = plus_tokens(tensors, identity, seen(vision, shown), scale)
    uncond = plus_tokens(tensors, NOBODY, seen(vision, black), scale)
    assert_draws(given, model(layout), layout, [steered(tensors, layout, cond, uncond)])


def test_portrait_unnorm_reads_the_raw_embedding(base_directory: Path, face_model: Any, model: Callable) -> None:
    name = "face-portrait-unnorm.safetensors"
    tensors = write(base_directory, "sdxl", "unnorm", name, UNNORM)
    given, _ = outputs(
        "IPAdapterFaceID", model=model("sdxl"), ipadapter=load(name), image=ONE, insightface=face_model, **WIDGETS
    )
    _, raw, _ = first_face(face_model, ONE)
    cond, uncond = (
        perceive(tensors, tensors["image_proj.latents"], each[:, None], "", 16 // HEAD_DIM) for each in (raw, NOBODY)
    )
    assert_draws(given, model("sdxl"), "sdxl", [steered(tensors, "sdxl", cond, uncond)])


def test_the_first_face_counts_not_the_largest(base_directory: Path, face_model: Any, model: Callable) -> None:
    write(base_directory, "sd15", "portrait", "face-first.safetensors")
    inputs = {"model": model("sd15"), "ipadapter": load("face-first.safetensors"), "insightface": face_model}
    _, shown = outputs("IPAdapterFaceID", image=TWO, **inputs, **WIDGETS)
    assert (shown - first_face(face_model, TWO)[2]).abs().max() < 5 / 255
    assert shown[0, 112, 112, 0] > shown[0, 112, 112, 1] + 0.5  # the small red one, of the better score


def test_several_faces_are_combined_as_embeddings(base_directory: Path, face_model: Any, model: Callable) -> None:
    tensors = write(base_directory, "sd15", "portrait", "face-combined.safetensors")
    inputs = {"model": model("sd15"), "ipadapter": load("face-combined.safetensors"), "insightface": face_model}
    both = torch.cat([first_face(face_model, image)[0] for image in (ONE, OTHER)])
    for method, identities in (("concat", both), ("average", both.mean(0, keepdim=True))):
        widgets = WIDGETS | {"combine_embeds": method}
        given, shown = outputs("IPAdapterFaceID", image=torch.cat((ONE, OTHER)), **inputs, **widgets)
        assert len(shown) == 2
        wanted = steered(tensors, "sd15", identity_tokens(tensors, identities), identity_tokens(tensors, NOBODY))
        # a shorter uncond side attends to the same keys as a repeated one
        assert_draws(given, model("sd15"), "sd15", [wanted])


def test_batch_gives_each_latent_its_face(base_directory: Path, face_model: Any, model: Callable, layout: str) -> None:
    name = f"face-batch-{layout}.safetensors"
    tensors = write(base_directory, layout, "faceid", name)
    inputs = {"model": model(layout), "ipadapter": load(name), "insightface": face_model}
    widgets = WIDGETS | {"combine_embeds": "average"}
    given, _ = outputs("IPAAdapterFaceIDBatch", image=torch.cat((ONE, OTHER)), **inputs, **widgets)
    both = torch.cat([first_face(face_model, image)[0] for image in (ONE, OTHER)])
    cond, uncond = identity_tokens(tensors, both), identity_tokens(tensors, NOBODY)
    assert_draws(given, model(layout), layout, [steered(tensors, layout, cond, uncond, per_frame=True)], latents=3)


def test_kolors_narrows_the_tokens_with_the_models_own_layer(base_directory: Path, face_model: Any) -> None:
    tensors, vision = write(base_directory, "sdxl", "kolors", "face-kolors.safetensors"), clip_vision()
    kolors = tiny_unet.comfy_model("sdxl", tiny_unet.diffusers_unet("sdxl"))
    inputs = {
        "ipadapter": load("face-kolors.safetensors"),
        "image": ONE,
        "clip_vision": vision,
        "insightface": face_model,
        **WIDGETS,
        "weight_kolors": 0.5,
    }
    with pytest.raises(ValueError, match="encoder_hid_proj"):
        outputs("IPAdapterFaceIDKolors", model=kolors, **inputs)
    wide = 2 * tiny_unet.CONTEXT_DIM
    layer = kolors.model.diffusion_model.encoder_hid_proj = torch.nn.Linear(wide, tiny_unet.CONTEXT_DIM)
    given, shown = outputs("IPAdapterFaceIDKolors", model=kolors, **inputs)
    assert shown.shape == (1, 336, 336, 3)
    identity, _, _ = first_face(face_model, ONE)
    black = torch.zeros(1, IMAGE_SIZE, IMAGE_SIZE, 3)
    sides = [
        plus_tokens(tensors, who, seen(vision, look), WIDGETS["weight_faceidv2"])
        for who, look in ((identity, shown), (NOBODY, black))
    ]
    with torch.no_grad():
        cond, uncond = (functional.linear(side, 0.5 * layer.weight, 0.5 * layer.bias) for side in sides)
    assert_draws(given, kolors, "sdxl", [steered(tensors, "sdxl", cond, uncond)])


def test_other_apply_nodes_take_twice_the_weight_for_the_faces_picture(
    base_directory: Path, face_model: Any, model: Callable
) -> None:
    vision = clip_vision()
    tensors = write(base_directory, "sd15", "faceid plus", "face-plusv2-advanced.safetensors")
    pipeline = {
        "clipvision": {"file": None, "model": vision},
        "ipadapter": {"file": None, "model": load("face-plusv2-advanced.safetensors")},
        "insightface": {"provider": "CPU", "model": face_model},
    }
    widgets = {name: value for name, value in WIDGETS.items() if name != "weight_faceidv2"}
    given = outputs("IPAdapterAdvanced", model=model("sd15"), ipadapter=pipeline, image=ONE, **widgets)[0]
    identity, _, _ = first_face(face_model, ONE)
    crop = outputs("IPAdapterFaceID", model=model("sd15"), ipadapter=pipeline, image=ONE, **WIDGETS)[1]
    black = torch.zeros(1, IMAGE_SIZE, IMAGE_SIZE, 3)
    cond = plus_tokens(tensors, identity, seen(vision, crop), 2 * WIDGETS["weight"])
    uncond = plus_tokens(tensors, NOBODY, seen(vision, black), 2 * WIDGETS["weight"])
    assert_draws(given, model("sd15"), "sd15", [steered(tensors, "sd15", cond, uncond)])


def test_a_raw_adapter_of_another_pack(base_directory: Path, face_model: Any, model: Callable) -> None:
    tensors = write(base_directory, "sd15", "faceid", "face-raw.safetensors")
    raw = {**nested(tensors), "faceidplusv2": False, "portraitunnorm": False}
    inputs = {"model": model("sd15"), "image": ONE, "insightface": face_model, **WIDGETS}
    given = outputs("IPAdapterFaceID", ipadapter=raw, **inputs)[0]
    ours = load("face-raw.safetensors")
    assert "0.to_q_lora.down.weight" in ours["ip_adapter"]  # by which other packs know a FaceID
    assert error(forward(given), forward(outputs("IPAdapterFaceID", ipadapter=ours, **inputs)[0])) < 1e-5


def test_mad_scientist_takes_faces(base_directory: Path, face_model: Any, model: Callable) -> None:
    tensors = write(base_directory, "sd15", "faceid", "face-ms.safetensors")
    inputs = {"model": model("sd15"), "ipadapter": load("face-ms.safetensors"), "insightface": face_model}
    given = outputs("IPAdapterMS", image=ONE, layer_weights="3: 0.5, 9: 1", **inputs, **WIDGETS)[0]
    identity, _, _ = first_face(face_model, ONE)
    cond, uncond = identity_tokens(tensors, identity), identity_tokens(tensors, NOBODY)
    weights = {3: 0.5 * WIDGETS["weight"], 9: WIDGETS["weight"]}
    wanted = plain.Plain(tensors, cond, uncond, weights=weights, middle=plain.MIDDLE["sd15"])
    assert_draws(given, model("sd15"), "sd15", [wanted])


def test_a_plain_adapter_in_the_faceid_node_acts_as_in_advanced(base_directory: Path, model: Callable) -> None:
    dims = tiny_unet.layout_dims("sd15")
    shapes = tiny_adapter("plus", site_dims=dims, image_dim=WIDTH, head_dim=64, heads=1)
    write_safetensors(base_directory / "models" / "ipadapter" / "no-face.safetensors", random_tensors(shapes))
    image = random_image(1, 40, 40)
    inputs = {
        "model": model("sd15"),
        "ipadapter": load("no-face.safetensors"),
        "image": image,
        "clip_vision": clip_vision(),
    }
    plain_widgets = {name: value for name, value in WIDGETS.items() if name != "weight_faceidv2"}
    given = outputs("IPAdapterFaceID", **inputs, **WIDGETS)[0]
    assert error(forward(given), forward(outputs("IPAdapterAdvanced", **inputs, **plain_widgets)[0])) < 1e-5


def test_without_a_face_model_the_error_says_where_to_get_one(base_directory: Path, model: Callable) -> None:
    write(base_directory, "sd15", "faceid", "face-alone.safetensors")
    with pytest.raises(ValueError, match=r"without a face model.*IPAdapter InsightFace Loader.*non-commercial"):
        outputs("IPAdapterFaceID", model=model("sd15"), ipadapter=load("face-alone.safetensors"), image=ONE, **WIDGETS)


def test_another_thing_on_the_face_models_socket_is_refused(base_directory: Path, model: Callable) -> None:
    write(base_directory, "sd15", "faceid", "face-other.safetensors")
    inputs = {"model": model("sd15"), "ipadapter": load("face-other.safetensors"), "image": ONE, **WIDGETS}
    with pytest.raises(ValueError, match="a dictionary of model, for insightface of IPAdapter FaceID"):
        outputs("IPAdapterFaceID", insightface={"model": None}, **inputs)


def test_without_insightface_the_socket_carries_what_speaks_its_language(
    face_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "insightface", None)
    ours = outputs("IPAdapterInsightFaceLoader", provider="CPU", model_name="buffalo_l")[0]
    assert type(ours) is not type(face_model)
    ours.prepare(ctx_id=0, det_size=(640, 640))
    (found,), (theirs,) = (each.get((ONE[0].numpy()[..., ::-1] * 255).astype(np.uint8)) for each in (ours, face_model))
    np.testing.assert_allclose(found["kps"], theirs["kps"], atol=0.05)
    np.testing.assert_allclose(found.normed_embedding, theirs.normed_embedding, atol=0.01)
