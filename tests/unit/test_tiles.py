"""Where tiles lie and what they hold, and how features of tiles become those of a picture."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from ipadapter_core.encoder.sharpen import sharpen
from ipadapter_core.errors import BadInputError
from ipadapter_core.legacy.enhance import blend, cut_tiles, enhance, join_tiles
from ipadapter_core.legacy.tiles import TILE, cut_pictures, tile_masks, tile_picture

SIDES = st.integers(1, 4000)


@given(height=SIDES, width=SIDES)
def test_tiles_cover_the_picture_and_no_more(height: int, width: int) -> None:
    tiling = tile_picture(height, width)
    assert 1 <= tiling.crop[0] <= height
    assert 1 <= tiling.crop[1] <= width
    covered = torch.zeros(tiling.height, tiling.width, dtype=torch.bool)
    for top, left in tiling.corners:
        tile = covered[top : top + TILE, left : left + TILE]
        assert tile.shape == (TILE, TILE)
        tile[:] = True
    assert covered.all()
    assert len(tiling.corners) <= 4


@pytest.mark.parametrize(("height", "width"), [(0, 5), (5, 0)])
def test_an_empty_picture_has_no_tiles(height: int, width: int) -> None:
    with pytest.raises(BadInputError, match="Expected: a picture"):
        tile_picture(height, width)


def test_tiles_are_cut_row_by_row_and_the_rest_dropped() -> None:
    picture = torch.arange(5 * 7 * 3).reshape(1, 5, 7, 3)
    tiles = cut_tiles(picture, 2)
    assert tiles.shape == (4, 2, 3, 3)
    assert torch.equal(tiles[1], picture[0, 0:2, 3:6])
    assert torch.equal(tiles[2], picture[0, 2:4, 0:3])


def test_more_tiles_than_pixels_are_refused() -> None:
    with pytest.raises(BadInputError, match="7 x 5 pixels cut into 6 x 6 tiles"):
        cut_tiles(torch.zeros(1, 5, 7, 3), 6)


def test_tiles_that_see_the_same_make_the_same() -> None:
    features = torch.randn(1, 1 + 16, 6).expand(9, -1, -1).clone()
    features[:, 1:] = features[0, 1]  # every patch alike, too
    torch.testing.assert_close(join_tiles(features), features[:1])


def test_patches_keep_their_place() -> None:
    """2 x 2 tiles of 2 x 2 patches: each patch of the result is one tile's mean."""
    tiles = torch.zeros(4, 1 + 4, 1)
    tiles[:, 1:] = torch.tensor([1.0, 2.0, 3.0, 4.0])[:, None, None]
    tiles[:, 0] = torch.tensor([0.0, 0.0, 4.0, 8.0])[:, None]
    assert join_tiles(tiles).flatten().tolist() == [3.0, 1.0, 2.0, 3.0, 4.0]


def test_one_picture_is_laid_beside_its_tiles_and_several_are_mixed() -> None:
    whole, tiles = torch.ones(1, 4), torch.full((1, 4), 3.0)
    assert torch.equal(blend(whole, tiles, 0.25), torch.tensor([[0.25] * 4, [3.0] * 4]))
    assert torch.equal(blend(whole.repeat(2, 1), tiles.repeat(2, 1), 0.25), torch.full((2, 4), 2.5))


def shrunk(pictures: Tensor, width: int, height: int) -> Tensor:
    return functional.interpolate(pictures, size=(height, width), mode="nearest")


def test_every_picture_is_cut_where_the_tiling_says() -> None:
    images = torch.rand(2, 300, 390, 3, generator=torch.Generator().manual_seed(0))
    whole = shrunk(images[:, :, 45:345].movedim(-1, 1), 512, 512)
    corners = [(0, 0), (0, 256), (256, 0), (256, 256)]
    for amount, expected in ((0.0, whole), (0.5, sharpen(whole, 0.5))):
        tiles = cut_pictures(images, tile_picture(300, 390), amount, shrunk)
        for tile, (top, left) in zip(tiles, corners, strict=True):
            assert torch.equal(tile, expected[..., top : top + TILE, left : left + TILE].movedim(1, -1))


@pytest.mark.parametrize("is_tall", [True, False])
def test_of_a_strip_no_more_is_resized_than_memory_bears(is_tall: bool) -> None:
    """The middle of what is resized is the middle of the strip."""
    strip = torch.linspace(0, 1, 200_001)[None, :, None, None].expand(1, -1, 1, 3)
    image = strip if is_tall else strip.transpose(1, 2)
    sizes: list[tuple[int, int]] = []

    def resize(pictures: Tensor, width: int, height: int) -> Tensor:
        sizes.append((height, width))
        return shrunk(pictures, width, height)

    tiles = cut_pictures(image, tile_picture(*image.shape[1:3]), 0.0, resize)
    assert sizes == [(8192, 256) if is_tall else (256, 8192)]
    assert abs(torch.cat(tiles).mean().item() - 0.5) < 1e-4


def test_a_mask_is_brought_to_the_picture_and_cut_as_it_is() -> None:
    """A strip of 4 tiles; the mask is 1 in the picture's lower half, and laid out at half the picture's size."""
    tiling = tile_picture(1024, 256)
    mask = torch.zeros(2, 512, 128)
    mask[:, 256:] = 1
    masks = tile_masks(mask, (1024, 256), tiling)
    assert [part.shape for part in masks] == [(2, 1024, 256)] * 4
    assert not masks[0].any()
    torch.testing.assert_close(masks[3][:, 768:], torch.ones(2, 256, 256))
    assert not masks[3][:, :768].any()
    torch.testing.assert_close(sum(masks).sum(), torch.tensor(2 * 512 * 256.0), rtol=1e-3, atol=0)


def test_without_a_mask_every_tile_is_whole() -> None:
    masks = torch.cat(tile_masks(None, (100, 250), tile_picture(100, 250)))
    assert [mask.sum().item() for mask in masks] == [TILE * TILE] * 3
    assert masks.any(dim=0).all()


def test_tiles_are_encoded_for_each_picture_and_one_tile_is_none() -> None:
    """An encoder whose class token is a picture's mean and whose 4 patches are its quarters' means."""
    encoded: list[int] = []

    def encode(pictures: Tensor) -> Tensor:
        encoded.append(len(pictures))
        quarters = functional.adaptive_avg_pool2d(pictures.movedim(-1, 1), 2).flatten(2).movedim(1, -1)
        return torch.cat((quarters.mean(dim=1, keepdim=True), quarters), dim=1)

    pictures = torch.rand(3, 16, 16, 3, generator=torch.Generator().manual_seed(0))
    whole = encode(pictures)
    torch.testing.assert_close(enhance(pictures, 2, 0.25, encode), whole)  # tiles see the same here, averaged
    assert encoded == [3, 3, 4, 4, 4]
    for count in (1, 0, -2):  # a linked number knows no least
        assert torch.equal(enhance(pictures, count, 0.25, encode), whole)
    assert encoded[5:] == [3, 3, 3]
    torch.testing.assert_close(enhance(pictures[:1], 2, 0.25, encode), torch.cat((whole[:1] * 0.25, whole[:1])))
