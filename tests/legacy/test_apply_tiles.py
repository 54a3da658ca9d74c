"""Tiled nodes and the clip-vision enhancer, against their geometry written out."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from torchvision.transforms import functional as pictures

from legacy import plain
from legacy.apply_fixtures import adapter, assert_draws
from legacy.running import clip_vision, outputs, random_image
from support import comfy_host
from support.encoders import IMAGE_SIZE, PATCH

RANGE = {"start_at": 0.0, "end_at": 1.0}
WIDGETS = {"weight": 0.6, "weight_type": "linear", "embeds_scaling": "V only"} | RANGE
SIDE = 256  # of a tile
GRID = IMAGE_SIZE // PATCH


@pytest.fixture(scope="module")
def vision(base_directory: Path) -> Any:
    return clip_vision()


@pytest.fixture
def setting(base_directory: Path, model: Callable, vision: Any) -> Callable[..., dict[str, Any]]:
    def make(kind: str = "base") -> dict[str, Any]:
        loaded = adapter(base_directory, "sdxl", kind).payload
        return {"model": model("sdxl"), "ipadapter": loaded, "clip_vision": vision}

    return make


@pytest.fixture
def reference(base_directory: Path) -> Callable[..., plain.Plain]:
    def make(positive: Tensor, negative: Tensor, kind: str = "base", **how: Any) -> plain.Plain:
        made = adapter(base_directory, "sdxl", kind)
        how = {"weights": plain.weights("linear", "sdxl", 0.6), "middle": plain.MIDDLE["sdxl"]} | how
        with torch.inference_mode():
            if kind == "base":
                tokens = [plain.linear_projection(made.tensors, side) for side in (positive, negative)]
            else:
                tokens = [made.payload.loaded.network.project(side) for side in (positive, negative)]
        return plain.Plain(made.tensors, *tokens, **how)

    return make


# (height, width) of the picture; of what is cut into tiles; corners of the tiles
GEOMETRY = [
    ((300, 300), (512, 512), [(0, 0), (0, 256), (256, 0), (256, 256)]),
    ((300, 390), (512, 512), [(0, 0), (0, 256), (256, 0), (256, 256)]),
    ((390, 301), (512, 512), [(0, 0), (0, 256), (256, 0), (256, 256)]),
    ((600, 300), (512, 256), [(0, 0), (256, 0)]),
    ((200, 300), (256, 384), [(0, 0), (0, 128)]),
    ((100, 250), (256, 640), [(0, 0), (0, 192), (0, 384)]),
    ((901, 100), (1024, 256), [(0, 0), (256, 0), (512, 0), (768, 0)]),
    ((60, 500), (256, 1024), [(0, 0), (0, 256), (0, 512), (0, 768)]),
]
each_geometry = pytest.mark.parametrize(("picture", "size", "corners"), GEOMETRY, ids=str)


def laid_out(x: Any, height: int, width: int, resize: Callable[[Any, int, int], Any]) -> Any:
    """A picture or mask of this size, as it is cut into tiles. An over-long one is cropped after it is resized."""
    if 0.75 < height / width < 1.33:
        return resize(pictures.center_crop(x, [min(height, width)]), 512, 512)
    if height > width:
        return pictures.center_crop(
            resize(x, int(SIDE * height / width), SIDE), [min(SIDE * height // width, 1024), SIDE]
        )
    return pictures.center_crop(resize(x, SIDE, int(SIDE * width / height)), [SIDE, min(SIDE * width // height, 1024)])


def bicubic(mask: Tensor, height: int, width: int) -> Tensor:
    return functional.interpolate(mask, size=(height, width), mode="bicubic", antialias=True)


def whole(image: Tensor, sharpening: float) -> Tensor:
    """What is cut into tiles, (H, W, 3), of (1, H, W, 3). All that was resized is sharpened."""

    def resize(pixels: Image.Image, height: int, width: int) -> Tensor:
        resized = torch.from_numpy(np.array(pixels.resize((width, height), Image.Resampling.LANCZOS))).float() / 255
        return (cas(resized, sharpening) if sharpening else resized).movedim(-1, 0)

    pixels = pictures.to_pil_image(image[0].movedim(-1, 0))  # bytes cut off, not rounded
    return laid_out(pixels, *image.shape[1:3], resize).movedim(0, -1)


def cas(picture: Tensor, amount: float) -> Tensor:
    """Contrast-adaptive sharpening of (H, W, 3), black beyond its edge."""
    wide = functional.pad(picture, (0, 0, 1, 1, 1, 1))
    height, width = picture.shape[:2]
    n, w, e, s = (wide[y : y + height, x : x + width] for y, x in ((0, 1), (1, 0), (1, 2), (2, 1)))
    diagonal = torch.stack([wide[y : y + height, x : x + width] for y in (0, 2) for x in (0, 2)])
    cross = torch.stack([n, w, picture, e, s])
    low, high = cross.amin(0) + diagonal.amin(0), cross.amax(0) + diagonal.amax(0)
    strength = -(torch.minimum(low, 2 - high) / high).clamp(0, 1).sqrt() * (amount * (1 / 5 - 1 / 8) + 1 / 8)
    return ((strength * (n + w + e + s) + picture) / (1 + 4 * strength)).nan_to_num(nan=0.0).clamp(0, 1)


@each_geometry
@pytest.mark.parametrize("sharpening", [0.0, 0.5])
def test_tiles(setting: Callable, picture: tuple, size: tuple, corners: list, sharpening: float) -> None:
    """Byte for byte: of numbers between two bytes the lower one; sharpened before they are cut."""
    image = random_image(1, *picture)
    inputs = setting() | WIDGETS | {"image": image, "combine_embeds": "concat", "sharpening": sharpening}
    _, tiles, masks = outputs("IPAdapterTiled", **inputs)
    wanted = whole(image, sharpening)
    assert wanted.shape == (*size, 3)
    assert len(tiles) == len(masks) == len(corners)
    for tile, mask, (top, left) in zip(tiles, masks, corners, strict=True):
        torch.testing.assert_close(tile, wanted[top : top + SIDE, left : left + SIDE], rtol=0, atol=1e-6)
        square = torch.zeros(size)
        square[top : top + SIDE, left : left + SIDE] = 1
        assert torch.equal(mask, square)


@each_geometry
@pytest.mark.parametrize("mask_size", [(70, 90), (1500, 900)])
def test_a_mask_goes_the_way_of_the_picture(
    setting: Callable, picture: tuple, size: tuple, corners: list, mask_size: tuple
) -> None:
    """Brought to the picture's size first, then where the picture goes; both times with antialiasing."""
    mask = random_image(1, *mask_size)[..., 0]
    inputs = setting() | WIDGETS | {"image": random_image(1, *picture), "combine_embeds": "concat", "sharpening": 0.0}
    masks = outputs("IPAdapterTiled", **inputs, attn_mask=mask)[2]
    wanted = laid_out(bicubic(mask[:, None], *picture), *picture, bicubic)[0, 0]
    for part, (top, left) in zip(masks, corners, strict=True):
        there = (slice(top, top + SIDE), slice(left, left + SIDE))
        torch.testing.assert_close(part[there], wanted[there], rtol=0, atol=1e-5)
        assert part.count_nonzero() == part[there].count_nonzero()
        assert part.shape == size


@pytest.mark.parametrize("batch", ["", "Batch"])
def test_every_tile_acts_on_its_part(setting: Callable, reference: Callable, vision: Any, batch: str) -> None:
    images = random_image(2, 200, 300)
    inputs = setting() | WIDGETS | {"image": images, "sharpening": 0.0, "attn_mask": torch.ones(1, 50, 75) / 2}
    inputs |= {"encode_batch_size": 0} if batch else {"combine_embeds": "average"}
    given, tiles, masks = outputs(f"IPAdapterTiled{batch}", **inputs)
    assert tiles.shape == (4, SIDE, SIDE, 3)
    adapters = []
    for number in range(2):
        features = vision.encode_image(tiles[2 * number : 2 * number + 2]).image_embeds
        positive = features if batch else features.mean(dim=0, keepdim=True)
        mask = torch.zeros(1, 256, 384)
        mask[..., 128 * number : 128 * number + SIDE] = 0.5
        torch.testing.assert_close(masks[number : number + 1], mask, rtol=0, atol=1e-5)
        adapters.append(reference(positive, torch.zeros_like(positive), masks=mask, per_frame=bool(batch)))
    assert_draws(given, inputs["model"], "sdxl", adapters, latents=2)


def shrink(grids: list[Tensor], per_side: int, side: int) -> Tensor:
    """Features (side·side, E) of tiles laid out as one picture and averaged to one tile's size."""
    width = grids[0].shape[-1]
    squares = [grid.reshape(side, side, width) for grid in grids]
    rows = [torch.cat(squares[per_side * row : per_side * (row + 1)], dim=1) for row in range(per_side)]
    large = torch.cat(rows).movedim(-1, 0)[None]
    return functional.adaptive_avg_pool2d(large, (side, side))[0].movedim(0, -1).reshape(side * side, width)


def tiles_of(image: Tensor, per_side: int) -> list[Tensor]:
    height, width = image.shape[1] // per_side, image.shape[2] // per_side
    return [
        image[:, row * height : (row + 1) * height, column * width : (column + 1) * width]
        for row in range(per_side)
        for column in range(per_side)
    ]


def enhanced(vision: Any, image: Tensor, per_side: int) -> Tensor:
    """Penultimate hidden states (1, S, E) put together from those of the tiles."""
    hidden = [vision.encode_image(tile).penultimate_hidden_states[0] for tile in tiles_of(image, per_side)]
    cls = sum(state[0] for state in hidden) / len(hidden)
    return torch.cat((cls[None], shrink([state[1:] for state in hidden], per_side, GRID)))[None]


@pytest.mark.parametrize("per_side", [2, 3])
@pytest.mark.parametrize("count", [1, 2])
def test_the_enhancer(setting: Callable, reference: Callable, vision: Any, per_side: int, count: int) -> None:
    images = random_image(count, 61, 64)
    inputs = setting("plus") | WIDGETS | {"image": images, "enhance_tiles": per_side, "enhance_ratio": 0.3}
    given = outputs("IPAdapterClipVisionEnhancer", **inputs, combine_embeds="concat")[0]
    with torch.inference_mode():
        whole = vision.encode_image(images).penultimate_hidden_states
        tiles = torch.cat([enhanced(vision, images[n : n + 1], per_side) for n in range(count)])
        positive = torch.cat((whole * 0.3, tiles)) if count == 1 else whole * 0.3 + tiles * 0.7
        negative = vision.encode_image(torch.zeros(1, 28, 28, 3)).penultimate_hidden_states
    assert_draws(given, inputs["model"], "sdxl", [reference(positive, negative, "plus")])


def test_the_enhancer_per_latent(setting: Callable, reference: Callable, vision: Any) -> None:
    images = random_image(2, 64, 64)
    inputs = setting("plus") | WIDGETS | {"image": images, "enhance_tiles": 2, "enhance_ratio": 0.5}
    given = outputs("IPAdapterClipVisionEnhancerBatch", **inputs, encode_batch_size=1)[0]
    with torch.inference_mode():
        whole = vision.encode_image(images).penultimate_hidden_states
        positive = (whole + torch.cat([enhanced(vision, images[n : n + 1], 2) for n in range(2)])) / 2
        negative = vision.encode_image(torch.zeros(1, 28, 28, 3)).penultimate_hidden_states
    assert_draws(given, inputs["model"], "sdxl", [reference(positive, negative, "plus", per_frame=True)], latents=3)


def test_one_tile_is_the_picture(setting: Callable, reference: Callable, vision: Any) -> None:
    image = random_image(1, 64, 64)
    inputs = setting() | WIDGETS | {"image": image, "enhance_tiles": 1, "enhance_ratio": 0.3}
    given = outputs("IPAdapterClipVisionEnhancer", **inputs, combine_embeds="concat")[0]
    features = vision.encode_image(image).image_embeds
    assert_draws(given, inputs["model"], "sdxl", [reference(features, torch.zeros_like(features))])


def test_more_tiles_than_16_per_side_are_16(setting: Callable, reference: Callable, vision: Any) -> None:
    """A linked number is not held to the widget's range."""
    images = random_image(2, 64, 64)
    inputs = setting("plus") | WIDGETS | {"image": images, "enhance_tiles": 20, "enhance_ratio": 0.3}
    given = outputs("IPAdapterClipVisionEnhancer", **inputs, combine_embeds="concat")[0]
    with torch.inference_mode():
        tiles = torch.cat([enhanced(vision, images[n : n + 1], 16) for n in range(2)])
        positive = vision.encode_image(images).penultimate_hidden_states * 0.3 + tiles * 0.7
        negative = vision.encode_image(torch.zeros(1, 28, 28, 3)).penultimate_hidden_states
    assert_draws(given, inputs["model"], "sdxl", [reference(positive, negative, "plus")])


def test_pooled_embeds_are_treated_as_a_square_picture() -> None:
    join = comfy_host.pack("ipadapter_core.legacy.enhance").join_tiles
    embeds = torch.randn(4, 1024, generator=torch.Generator().manual_seed(0))
    wanted = shrink([embed[:, None] for embed in embeds], 2, 32)[:, 0]
    torch.testing.assert_close(join(embeds), wanted[None])


def test_pooled_embeds_that_are_no_square_are_refused(setting: Callable) -> None:
    assert math.isqrt(20) ** 2 != 20
    inputs = setting() | WIDGETS | {"image": random_image(1, 64, 64), "enhance_tiles": 2, "enhance_ratio": 0.3}
    with pytest.raises(ValueError, match="image features of 20 numbers or positions, which make up no square"):
        outputs("IPAdapterClipVisionEnhancer", **inputs, combine_embeds="concat")
