"""Prepare Reference for IP-Adapter: what is cut, and what of it the encoder sees."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from support import comfy_host, encoders, face_files
from support.face_files import RED, picture
from support.published import random_tensors, tiny_adapter, write_safetensors

PLAIN = {
    "cut": "none",
    "margin": 0.0,
    "fit": "center",
    "pad_colour": "grey",
    "resolution": 64,
    "sharpening": 0.0,
    "x": 0.25,
    "y": 0.25,
    "width": 0.5,
    "height": 0.5,
}


def prepare(image: Tensor, **changes: Any) -> Tensor:
    return comfy_host.run("IPAPrepareReference", image=image, **PLAIN | changes)


@pytest.fixture
def image(base_directory: Path) -> Tensor:
    return torch.rand(2, 48, 80, 3, generator=torch.Generator().manual_seed(0))


def test_a_box_and_the_mask_of_it_cut_the_same(image: Tensor) -> None:
    mask = torch.zeros(1, 48, 80)
    mask[:, 12:36, 20:60] = 1
    by_box = prepare(image, cut="box")
    assert by_box.shape == (2, 64, 64, 3)
    assert torch.equal(by_box, prepare(image, cut="mask", mask=mask))
    assert torch.equal(by_box, prepare(image[:, 12:36, 20:60]))
    half = torch.nn.functional.interpolate(mask[None], scale_factor=0.5)[0]
    assert torch.equal(by_box, prepare(image, cut="mask", mask=half)), "masks have any size"
    assert not torch.equal(by_box, prepare(image, cut="mask", mask=mask, margin=0.3))


def test_a_face_is_cut_out(base_directory: Path) -> None:
    folder = base_directory / "models" / "insightface" / "models" / "prepare_pack"
    face_files.write_pack(folder)
    model = comfy_host.run("IPALoadFaceModel", face_pack=folder.name, device="CPU")
    close = prepare(picture((RED, 200, 120, 40)), cut="face", face_model=model)
    assert (close[0, 16:48, 16:48, 0] > close[0, 16:48, 16:48, 1] + 0.2).float().mean() > 0.9
    with pytest.raises(ValueError, match="no face in image 1 of 1"):
        prepare(torch.zeros(1, 64, 64, 3), cut="face", face_model=model)
    shutil.rmtree(folder)


@pytest.mark.parametrize(("cut", "what"), [("mask", "a MASK"), ("face", "a face model")])
def test_a_cut_with_nothing_that_tells_it(image: Tensor, cut: str, what: str) -> None:
    with pytest.raises(ValueError, match=f"What to do: connect {what}"):
        prepare(image, cut=cut)


def test_masks_that_belong_to_other_pictures(image: Tensor) -> None:
    with pytest.raises(ValueError, match="3 masks for 2 images"):
        prepare(image, cut="mask", mask=torch.ones(3, 8, 8))


@pytest.fixture
def adapter(base_directory: Path) -> Iterator[Any]:
    folder = base_directory / "models" / "clip_vision" / "prepare_clip"
    encoders.write_folder("clip", folder)
    sizes = {"site_dims": (8, 16, 16), "cross_attention_dim": 8, "image_dim": encoders.EMBED_DIM}
    tensors = random_tensors(tiny_adapter("base", **sizes))
    write_safetensors(base_directory / "models" / "ipadapter" / "prepare.safetensors", tensors)
    yield comfy_host.run("IPALoadAdapter", adapter_file="prepare.safetensors", image_encoder=f"{folder.name}/")
    shutil.rmtree(folder)


def test_the_square_is_encoded_as_the_picture_is(adapter: Any, image: Tensor) -> None:
    size = adapter.encoder.pixel_format.size
    usual = {"adapter": adapter, "crop": "center"}
    square = prepare(image, resolution=size, adapter=adapter)
    whole, prepared = (comfy_host.run("IPAEncodeImage", image=each, **usual) for each in (image, square))
    torch.testing.assert_close(prepared.cond, whole.cond, rtol=1e-4, atol=1e-4)


def test_it_shows_what_the_encoder_will_see(adapter: Any, image: Tensor, base_directory: Path) -> None:
    from PIL import Image

    found = comfy_host.node("IPAPrepareReference")
    for given, side in ((None, 64), (adapter, adapter.encoder.pixel_format.size)):
        with torch.inference_mode():
            shown = found.EXECUTE_NORMALIZED(image=image, adapter=given, **PLAIN).ui.as_dict()["images"]
        assert len(shown) == 2
        with Image.open(base_directory / "temp" / shown[0]["subfolder"] / shown[0]["filename"]) as seen:
            assert seen.size == (side, side)


@pytest.mark.parametrize("crop", ["center", "pad"])
def test_encode_and_apply_show_what_the_encoder_sees(
    adapter: Any, image: Tensor, crop: str, base_directory: Path
) -> None:
    from PIL import Image

    pictures = comfy_host.pack("nodes.encoding.pictures")
    wanted = pictures.seen(adapter, adapter.encoder, image, crop)
    size = adapter.encoder.pixel_format.size
    assert wanted.shape == (2, size, size, 3)
    found = comfy_host.node("IPAEncodeImage")
    with torch.inference_mode():
        entries = found.EXECUTE_NORMALIZED(adapter=adapter, image=image, crop=crop).ui.as_dict()["images"]
    assert len(entries) == 2
    with Image.open(base_directory / "temp" / entries[1]["subfolder"] / entries[1]["filename"]) as shown:
        given = torch.tensor(list(shown.convert("RGB").getdata())).reshape(size, size, 3) / 255
    torch.testing.assert_close(given, wanted[1], rtol=0, atol=1 / 255)
    assert len(pictures.seen(adapter, adapter.encoder, image.repeat(20, 1, 1, 1))) == 8
