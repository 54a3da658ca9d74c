"""Encoder, Combine, Save and Load Embeds, against ComfyUI's own CLIP vision and the formulas written out."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from legacy.running import clip_vision, outputs, random_image
from support import comfy_host, encoders
from support.published import random_tensors, tiny_adapter, write_safetensors
from support.unreadable import UNREADABLE, no_waiting  # noqa: F401 - a fixture

FEATURE = {"base": "image_embeds", "plus": "penultimate_hidden_states"}
WIDTH = {"base": encoders.EMBED_DIM, "plus": encoders.WIDTH}
SIZE = encoders.IMAGE_SIZE

each_kind = pytest.mark.parametrize("kind", FEATURE)


@pytest.fixture(scope="session")
def adapter(base_directory: Path) -> Callable[[str], dict[str, Any]]:
    """A loaded adapter that reads pooled embeddings (base) or hidden states (plus) of the tiny encoder."""

    def load(kind: str) -> dict[str, Any]:
        name = f"embeds-{kind}.safetensors"
        shapes = tiny_adapter(kind, site_dims=(32,), image_dim=WIDTH[kind], head_dim=64, heads=1)
        write_safetensors(base_directory / "models" / "ipadapter" / name, random_tensors(shapes))
        return outputs("IPAdapterModelLoader", ipadapter_file=name)[0]

    return load


@pytest.fixture(scope="session")
def vision(base_directory: Path) -> Any:
    return clip_vision()


def encoded(vision: Any, image: Tensor, kind: str) -> Tensor:
    with torch.inference_mode():
        return vision.encode_image(image)[FEATURE[kind]]


@each_kind
def test_encoder_gives_what_comfyui_encodes(adapter: Callable, vision: Any, kind: str) -> None:
    image = random_image(2, 40, 60)
    positive, negative = outputs(
        "IPAdapterEncoder", ipadapter=adapter(kind), image=image, weight=0.75, clip_vision=vision
    )
    torch.testing.assert_close(positive, 0.75 * encoded(vision, image, kind), rtol=1e-4, atol=1e-5)
    if kind == "base":
        assert torch.equal(negative, torch.zeros_like(positive))
    else:
        torch.testing.assert_close(negative, encoded(vision, torch.zeros(1, 9, 9, 3), kind), rtol=1e-4, atol=1e-5)


def test_encoder_takes_the_image_encoder_of_a_pipeline(adapter: Callable, vision: Any) -> None:
    image = random_image(1, SIZE, SIZE)
    pipeline = {
        "clipvision": {"file": "a", "model": vision},
        "ipadapter": {"file": "b", "model": adapter("base")},
        "insightface": {"provider": None, "model": None},
    }
    positive, _ = outputs("IPAdapterEncoder", ipadapter=pipeline, image=image, weight=1.0)
    torch.testing.assert_close(positive, encoded(vision, image, "base"), rtol=1e-4, atol=1e-5)
    other = clip_vision(seed=1)
    overridden, _ = outputs("IPAdapterEncoder", ipadapter=pipeline, image=image, weight=1.0, clip_vision=other)
    torch.testing.assert_close(overridden, encoded(other, image, "base"), rtol=1e-4, atol=1e-5)


def test_mask_multiplies_the_normalised_pixels(adapter: Callable, vision: Any) -> None:
    """Of two pictures with one mask each; the mask's own middle square counts."""
    import comfy.clip_model

    image, mask = random_image(3, SIZE, SIZE), torch.zeros(2, 40, 90)
    mask[0, :, :45], mask[1, 20:] = 1, 1
    square = functional.interpolate(mask[:, None, :, 25:65], size=(SIZE, SIZE), mode="bicubic", antialias=True)
    mean, std = vision.image_mean, vision.image_std
    pixels = comfy.clip_model.clip_preprocess(image, size=SIZE, mean=mean, std=std, crop=True).float()
    with torch.inference_mode():
        expected = vision.model(pixel_values=pixels * square[[0, 1, 1]], intermediate_output=-2)[1]
    positive, _ = outputs(
        "IPAdapterEncoder", ipadapter=adapter("plus"), image=image, weight=1.0, mask=mask, clip_vision=vision
    )
    torch.testing.assert_close(positive, expected, rtol=1e-4, atol=1e-5)


def test_encoder_without_an_image_encoder_says_what_to_connect(adapter: Callable) -> None:
    with pytest.raises(ValueError, match=r"without an image encoder.*clip_vision"):
        outputs("IPAdapterEncoder", ipadapter=adapter("base"), image=random_image(1, 8, 8), weight=1.0)


FIRST, SECOND = torch.tensor([[3.0, 1.0]]), torch.tensor([[4.0, -1.0], [0.0, 2.0]])


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("concat", [[3.0, 1.0], [4.0, -1.0], [0.0, 2.0]]),
        ("add", [[7.0, 2.0]]),
        ("subtract", [[1.0, 0.5]]),  # 3 - (4 + 0) / 2, 1 - (-1 + 2) / 2
        ("average", [[7 / 3, 2 / 3]]),
        ("norm average", [[7 / 5 / 3, 2 / 6**0.5 / 3]]),  # lengths 5 and √6
        ("max", [[4.0, 2.0]]),
        ("min", [[0.0, -1.0]]),
    ],
)
def test_combine_embeds(base_directory: Path, method: str, expected: list[list[float]]) -> None:
    (combined,) = outputs("IPAdapterCombineEmbeds", embed1=FIRST, method=method, embed4=SECOND)
    torch.testing.assert_close(combined, torch.tensor(expected))


def test_embeds_that_do_not_belong_together_are_named(base_directory: Path) -> None:
    with pytest.raises(ValueError, match=r"shapes \[1, 2\], \[1, 3, 2\]"):
        outputs("IPAdapterCombineEmbeds", embed1=FIRST, method="add", embed2=torch.zeros(1, 3, 2))


def test_what_is_saved_can_be_loaded(base_directory: Path) -> None:
    import folder_paths

    saved = [
        comfy_host.node("IPAdapterSaveEmbeds")().save(embeds=embeds, filename_prefix="faces/mine")
        for embeds in (FIRST, SECOND)
    ]
    files = [entry for output in saved for entry in output["ui"]["embeds"]]
    assert [entry["filename"] for entry in files] == ["mine_00001_.safetensors", "mine_00002_.safetensors"]
    assert {(entry["subfolder"], entry["type"]) for entry in files} == {("faces", "output")}
    assert {output["result"] for output in saved} == {()}

    source = Path(folder_paths.get_input_directory()) / "embeds"
    source.mkdir(parents=True)
    made = Path(folder_paths.get_output_directory()) / "faces" / "mine_00002_.safetensors"
    made.rename(source / "mine.safetensors")
    torch.save(FIRST, source / "old.ipadpt")
    (source / "notes.txt").touch()
    info = comfy_host.node("IPAdapterLoadEmbeds").INPUT_TYPES()["required"]["embeds"]
    ours = [name for name in info[0] if name.startswith("embeds/")]  # other tests put files beside the folder
    assert ours == ["embeds/mine.safetensors", "embeds/old.ipadpt"]
    assert torch.equal(outputs("IPAdapterLoadEmbeds", embeds="embeds/mine.safetensors")[0], SECOND)
    assert torch.equal(outputs("IPAdapterLoadEmbeds", embeds="embeds/old.ipadpt")[0], FIRST)

    fingerprint = partial(comfy_host.fingerprint, "IPAdapterLoadEmbeds")
    before = fingerprint(embeds="embeds/old.ipadpt")
    torch.save(SECOND, source / "old.ipadpt")
    assert fingerprint(embeds="embeds/old.ipadpt") != before
    assert fingerprint(embeds="gone.ipadpt") == ""


@pytest.mark.usefixtures("no_waiting")
@pytest.mark.parametrize("suffix", [".safetensors", ".ipadpt"])
@pytest.mark.parametrize("kind", UNREADABLE)
def test_what_cannot_be_read_is_not_listed(base_directory: Path, kind: str, suffix: str) -> None:
    import folder_paths

    source = Path(folder_paths.get_input_directory()) / "strange"
    source.mkdir(parents=True)
    (source / "round").symlink_to(".")
    path = UNREADABLE[kind][0](source / f"a{suffix}")
    node = comfy_host.node("IPAdapterLoadEmbeds")
    try:
        options = node.INPUT_TYPES()["required"]["embeds"][0]
        assert not [name for name in options if "strange" in name]
        node.IS_CHANGED(embeds=None)
        leads_out = kind in ("link through a file", "read error")
        with pytest.raises(ValueError, match="does not lie in" if leads_out else UNREADABLE[kind][1]):
            outputs("IPAdapterLoadEmbeds", embeds=f"strange/a{suffix}")
    finally:
        path.rmdir() if kind == "folder" else path.unlink()
        (source / "round").unlink()
        source.rmdir()
