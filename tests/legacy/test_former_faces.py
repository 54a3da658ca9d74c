"""The dropped apply nodes with faces: what IPAdapter FaceID draws, with FaceID-Plus v2 where the widget says so."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from legacy.apply_fixtures import error, forward
from legacy.face_fixtures import ONE, WIDGETS, load, usual_face_model, write
from legacy.former_fixtures import ROUNDING, assert_same, noised
from legacy.running import clip_vision, outputs

pytestmark = pytest.mark.smoke_long
LAYOUT = "sd15"


@pytest.fixture(scope="module")
def face_model(base_directory: Path) -> Any:
    return usual_face_model(base_directory)


@pytest.fixture(scope="module")
def vision(base_directory: Path) -> Any:
    return clip_vision()


def test_a_faceid_adapter(base_directory: Path, face_model: Any, vision: Any, model: Callable) -> None:
    """In December 2023 the plain apply node took it, with the face model where the image encoder goes."""
    write(base_directory, LAYOUT, "faceid", "former-faceid.safetensors")
    inputs = {"model": model(LAYOUT), "ipadapter": load("former-faceid.safetensors"), "image": ONE}
    wanted, _ = outputs("IPAdapterFaceID", insightface=face_model, **inputs, **WIDGETS)
    for noise in (0.0, 0.5):  # it reads no picture that noise could be laid over
        former = {"weight": WIDGETS["weight"], "noise": noise, **inputs}
        (own,) = outputs("IPAdapterApplyFaceID", clip_vision=vision, insightface=face_model, **former)
        (first,) = outputs("IPAdapterApply", clip_vision=face_model, **former)
        for given in (own, first):
            assert_same(given, wanted, model(LAYOUT))


def test_the_widget_says_whether_it_is_v2(base_directory: Path, face_model: Any, vision: Any, model: Callable) -> None:
    """Not the name of the file, as today."""
    files = {is_v2: f"former-plus{'v2' if is_v2 else ''}.safetensors" for is_v2 in (False, True)}
    for name in files.values():
        write(base_directory, LAYOUT, "faceid plus", name)
    inputs = {"model": model(LAYOUT), "image": ONE, "clip_vision": vision, "insightface": face_model}
    drawn = {}
    for is_v2 in (False, True):
        wanted, _ = outputs("IPAdapterFaceID", ipadapter=load(files[is_v2]), **inputs, **WIDGETS)
        (given,) = outputs(
            "IPAdapterApplyFaceID",
            ipadapter=load(files[not is_v2]),
            weight=WIDGETS["weight"],
            faceid_v2=is_v2,
            weight_v2=WIDGETS["weight_faceidv2"],
            **inputs,
        )
        assert_same(given, wanted, model(LAYOUT))
        drawn[is_v2] = forward(given)
    assert error(drawn[True], drawn[False]) > ROUNDING


def test_noise_is_laid_over_the_cut_out_face(
    base_directory: Path, face_model: Any, vision: Any, model: Callable
) -> None:
    write(base_directory, LAYOUT, "faceid plus", "former-noise.safetensors")
    inputs = {"model": model(LAYOUT), "ipadapter": load("former-noise.safetensors"), "image": ONE}
    inputs |= {"clip_vision": vision, "insightface": face_model}
    without, face = outputs("IPAdapterFaceID", **inputs, **WIDGETS)
    wanted, _ = outputs("IPAdapterFaceID", image_negative=noised(face, 0.3), **inputs, **WIDGETS)
    (given,) = outputs("IPAdapterApplyFaceID", weight=WIDGETS["weight"], noise=0.3, **inputs)
    assert_same(given, wanted, model(LAYOUT))
    assert error(forward(without), forward(given)) > ROUNDING


def test_without_a_face_model_it_says_what_to_connect(base_directory: Path, vision: Any, model: Callable) -> None:
    write(base_directory, LAYOUT, "faceid", "former-no-model.safetensors")
    inputs = {"model": model(LAYOUT), "ipadapter": load("former-no-model.safetensors"), "image": ONE, "weight": 1.0}
    with pytest.raises(ValueError, match=r"without a face model.*IPAdapter InsightFace Loader"):
        outputs("IPAdapterApply", clip_vision=vision, **inputs)
