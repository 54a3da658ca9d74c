"""What is said of InvokeAI is what its own code was seen to do with files of these sizes."""

from dataclasses import replace
from typing import Any

import pytest

from ipadapter_core.file.detect import detect
from ipadapter_core.file.spec import AdapterSpec, Negative
from ipadapter_trainer.files.facts import Preprocess
from ipadapter_trainer.files.invokeai import invokeai_reasons
from support.published import PUBLISHED

CLIP = Preprocess(encoder_kind="CLIP", crop="center", size=224, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.2))
READS = (
    "sd15_base",
    "sd15_vit_g",
    "sd15_plus",
    "sd15_full_face",
    "sdxl_vit_h",
    "sdxl_big_g",
    "sdxl_plus",
    "xlabs_v1",
    "xlabs_v2",
)
REFUSES = {
    "faceid_sd15": "faces",
    "faceid_plusv2_sdxl": "faces",
    "portrait_sd15": "faces",
    "instantx_sd35": "this is InstantX SD3.5",
    "z_image": "this is Z-Image plus",
}


def published(name: str) -> AdapterSpec:
    return detect(PUBLISHED[name](), {})


@pytest.mark.parametrize("name", READS)
def test_published_sizes_are_read(name: str) -> None:
    spec = published(name)
    negative = Negative.BLACK_PICTURE if name.startswith("xlabs") else spec.negative
    assert invokeai_reasons(replace(spec, negative=negative), CLIP) == ()


@pytest.mark.parametrize("name", REFUSES)
def test_other_kinds_are_not(name: str) -> None:
    (reason,) = invokeai_reasons(published(name), CLIP)
    assert REFUSES[name] in reason


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("sd15_base", {"num_tokens": 16}, "it reads 4 image tokens, it has 16"),
        ("xlabs_v1", {"num_tokens": 7, "negative": Negative.BLACK_PICTURE}, None),
        ("sd15_plus", {"num_tokens": 32}, None),
        ("sd15_plus", {"cross_attention_dim": 1024}, "plus adapters for SD1.5 and SDXL"),
        ("sd15_plus", {"layer": -1}, "hidden state -2, it reads -1"),
        ("sd15_plus", {"negative": Negative.NOISE}, "its negative is zero pixels, it was trained with noise"),
        ("sd15_base", {"cross_attention_dim": 640}, "these are 640 wide"),
        ("sd15_base", {"image_dim": 1152}, "this reads features 1152 wide"),
        ("xlabs_v1", {"image_dim": 1024, "negative": Negative.BLACK_PICTURE}, "it offers CLIP ViT-L"),
    ],
)
def test_each_size(name: str, changes: dict[str, Any], reason: str | None) -> None:
    reasons = invokeai_reasons(replace(published(name), **changes), CLIP)
    assert len(reasons) == (reason is not None)
    assert reason is None or reason in reasons[0]


@pytest.mark.parametrize(
    ("changes", "is_read"),
    [({}, True), ({"depth": 2}, False), ({"num_heads": 10}, False), ({"dim": 640, "ff_dim": 2560}, True)],
)
def test_each_size_of_a_resampler(changes: dict[str, Any], is_read: bool) -> None:
    spec = published("sd15_plus")
    assert spec.resampler is not None
    reasons = invokeai_reasons(replace(spec, resampler=replace(spec.resampler, **changes)), CLIP)
    assert reasons == () if is_read else "a resampler of 4 layers with 12 heads of 64" in reasons[0]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"encoder_kind": "SigLIP"}, "CLIP encoders"), ({"crop": "pad"}, "crop 'pad'"), ({"size": 336}, "of 336")],
)
def test_how_references_are_prepared(changes: dict[str, Any], reason: str) -> None:
    (said,) = invokeai_reasons(published("sd15_base"), replace(CLIP, **changes))
    assert reason in said
    assert invokeai_reasons(published("sd15_base"), None) == ()
