"""Apply IP-Adapter from Image with several references: as its parts do it, each with its strength, old prompts as before."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from support import comfy_host, encoders, tiny_unet
from support.graphs import PLAIN
from support.published import random_tensors, tiny_adapter, write_safetensors

SHAPES = {"image": (1, 40, 30, 3), "image2": (1, 28, 28, 3), "image3": (2, 20, 50, 3)}


@pytest.fixture(scope="module")
def adapters(base_directory: Path, unet: Callable) -> Iterator[dict[str, Any]]:
    """Plus adapters with their encoder: one whose file says nothing of its crop, one that was trained with "pad"."""
    folder = base_directory / "models" / "clip_vision" / "several"
    encoders.write_folder("clip", folder)
    shapes = tiny_adapter(
        "plus", site_dims=tiny_unet.site_dims(unet("sd15")), image_dim=encoders.WIDTH, head_dim=64, heads=1
    )
    files = base_directory / "models" / "ipadapter"
    padded = {"ipadapter.spec": json.dumps({"encoder": {"crop": "pad"}})}
    for name, metadata in (("plain", {}), ("padded", padded)):
        write_safetensors(files / f"several-{name}.safetensors", random_tensors(shapes), metadata)
    yield {
        name: comfy_host.run("IPALoadAdapter", adapter_file=f"several-{name}.safetensors", image_encoder="auto")
        for name in ("plain", "padded")
    }
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def pictures() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.rand(*shape, generator=generator) for name, shape in SHAPES.items()}


@pytest.fixture
def draw(adapters: dict[str, Any], model: Callable, sample: Callable) -> Callable[..., Tensor]:
    def run(image: Tensor, adapter: str = "plain", **settings: Any) -> Tensor:
        given = {"model": model("sd15"), "adapter": adapters[adapter], "image": image} | PLAIN | settings
        return sample(comfy_host.run("IPAApplyImage", **given))

    return run


@pytest.fixture
def by_parts(adapters: dict[str, Any], model: Callable, sample: Callable) -> Callable[..., Tensor]:
    """The same with the three nodes that it stands for."""

    def run(pictures: dict[str, Tensor], weights: str, crop: str = "center", **settings: Any) -> Tensor:
        adapter = adapters["plain"]
        tokens = {
            name: comfy_host.run("IPAEncodeImage", adapter=adapter, image=picture, crop=crop)
            for name, picture in pictures.items()
        }
        combined = comfy_host.run("IPACombineTokens", tokens=tokens, method="concat", weights=weights)
        given = {"model": model("sd15"), "adapter": adapter, "tokens": combined} | PLAIN | settings
        return sample(comfy_host.run("IPAApply", **given))

    return run


OF_NODES: dict[str, tuple[str, dict[str, Any]]] = {
    "guard": ("IPAGuard", {"orthogonal": 0.7, "rescale": 0.5, "noise": 0.3}),
    "schedule": (
        "IPASchedule",
        {"over": "steps", "curve": "fade out", "low": 0.2, "high": 1.0}
        | {"points": "", "frames": 1, "fade_references": False},
    ),
    "layer_weights": (
        "IPALayerWeights",
        {"input": 0.3, "middle": 1.0, "output": 1.0, "style": 1.0, "composition": 1.0, "site_factors": ""},
    ),
}


@pytest.mark.parametrize("name", OF_NODES)
def test_what_other_nodes_give_acts_as_in_apply(
    draw: Callable, by_parts: Callable, pictures: dict[str, Tensor], name: str
) -> None:
    node_id, widgets = OF_NODES[name]
    given, one = {name: comfy_host.run(node_id, **widgets)}, {"image": pictures["image"]}
    drawn = draw(**one, **given)
    assert torch.equal(drawn, by_parts(one, "", **given))
    assert not torch.allclose(drawn, draw(**one), rtol=1e-3)


@pytest.mark.parametrize(("strengths", "weights"), [("", ""), ("1, 0.5, 2", "1, 0.5, 2"), ("0.5", "0.5, 1, 1")])
def test_it_draws_what_its_parts_draw(
    draw: Callable, by_parts: Callable, pictures: dict[str, Tensor], strengths: str, weights: str
) -> None:
    more = {name: pictures[name] for name in ("image2", "image3")}
    drawn = draw(pictures["image"], references=more, image_strengths=strengths)
    assert torch.equal(drawn, by_parts(pictures, weights))
    assert not torch.allclose(drawn, draw(pictures["image"]), atol=1e-3)


@pytest.mark.smoke
def test_without_them_all_is_as_before(draw: Callable, pictures: dict[str, Tensor]) -> None:
    plain = draw(pictures["image"])
    for references in (None, {}, {"image2": None}):
        assert torch.equal(plain, draw(pictures["image"], references=references, image_strengths="", crop="as trained"))
    assert torch.equal(plain, draw(pictures["image"], image_strengths="1"))


def test_one_of_strength_0_is_not_there(draw: Callable, pictures: dict[str, Tensor]) -> None:
    more = {"image2": pictures["image2"]}
    assert torch.equal(draw(pictures["image"], references=more, image_strengths="1, 0"), draw(pictures["image"]))
    assert torch.equal(draw(pictures["image"], references=more, image_strengths="0"), draw(pictures["image2"]))


def test_the_same_one_twice_draws_what_one_draws(draw: Callable, pictures: dict[str, Tensor]) -> None:
    twice = draw(pictures["image"], references={"image2": pictures["image"].clone()})
    torch.testing.assert_close(twice, draw(pictures["image"]), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("crop", ["center", "pad", "stretch"])
def test_a_crop_is_for_every_one(draw: Callable, by_parts: Callable, pictures: dict[str, Tensor], crop: str) -> None:
    more = {"image2": pictures["image3"]}
    drawn = draw(pictures["image"], references=more, crop=crop)
    assert torch.equal(drawn, by_parts({"image": pictures["image"]} | more, "", crop))


def test_as_trained_is_what_the_file_says(draw: Callable, pictures: dict[str, Tensor]) -> None:
    trained = draw(pictures["image"], adapter="padded")
    assert torch.equal(trained, draw(pictures["image"], crop="pad"))
    assert not torch.allclose(trained, draw(pictures["image"]), atol=1e-3)


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"image_strengths": "1, 0.5"}, "2 image strengths for 1 images"),
        ({"image_strengths": "0"}, "image strengths that are all 0"),
        ({"image_strengths": "much"}, "image strengths 'much'"),
        ({"crop": "fill"}, "crop 'fill'"),
        ({"references": {"image2": "cat.png"}}, "the text 'cat.png' (image2), for references of Apply IP-Adapter from"),
        ({"references": {"image2": torch.rand(1, 8, 8)}}, "a tensor of shape [1, 8, 8]"),
    ],
)
def test_mistakes(draw: Callable, pictures: dict[str, Tensor], settings: dict[str, Any], found: str) -> None:
    with pytest.raises(ValueError, match="Found: ") as caught:
        draw(pictures["image"], **settings)
    assert found in str(caught.value)
