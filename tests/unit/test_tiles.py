"""Where tiles lie, and how features of tiles become those of a picture."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ipadapter_core.errors import BadInputError
from ipadapter_core.legacy.enhance import blend, cut_tiles, join_tiles
from ipadapter_core.legacy.tiles import TILE, tile_picture

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
