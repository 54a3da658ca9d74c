"""Encoders at another resolution: positions as transformers interpolates them, sizes that no encoder reads."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ipadapter_core.encoder.known import EncoderSpec
from ipadapter_core.encoder.resolution import LARGEST_RESOLUTION, input_size, interpolated
from ipadapter_core.errors import BadInputError

BIG_G = EncoderSpec(kind="CLIP", width=1664, num_layers=48, embed_dim=1280, image_size=224, patch_size=14)
SIGLIP = EncoderSpec(kind="SigLIP", width=1152, num_layers=27, embed_dim=1152, image_size=378, patch_size=14)
DINO = EncoderSpec(kind="DINOv2", width=1024, num_layers=24, embed_dim=1024, patch_size=14)
PE = EncoderSpec(kind="PE-Core", width=1024, num_layers=24, embed_dim=None, image_size=336, patch_size=14)
UNKNOWN = EncoderSpec(kind="DINOv2", width=1024, num_layers=24, embed_dim=1024)


@pytest.mark.parametrize(
    ("encoder", "own", "wanted", "size"),
    [
        (BIG_G, 224, None, 224),
        (BIG_G, 224, 224, 224),
        (BIG_G, 224, 448, 448),
        (BIG_G, 224, 14, 14),
        (BIG_G, 224, 238, 238),
        (SIGLIP, 384, 384, 384),
        (SIGLIP, 384, 378, 384),
        (SIGLIP, 384, 392, 392),
        (DINO, 518, 224, 224),
        (PE, 336, 336, 336),
        (UNKNOWN, 224, 224, 224),
    ],
)
def test_the_size_that_an_encoder_reads(encoder: EncoderSpec, own: int, wanted: int | None, size: int) -> None:
    assert input_size(encoder, own, wanted) == size


@pytest.mark.parametrize(
    ("encoder", "wanted", "advice"),
    [(BIG_G, 450, 448), (BIG_G, 3, 14), (BIG_G, 4480, 1022), (DINO, 10**6, 1022), (PE, 448, 336), (UNKNOWN, 448, 224)],
)
def test_a_size_that_it_cannot_read_is_refused_with_one_that_it_can(
    encoder: EncoderSpec, wanted: int, advice: int
) -> None:
    own = encoder.image_size or 224
    with pytest.raises(BadInputError, match=f"resolution of {wanted} pixels for .* of the image encoder to {advice},"):
        input_size(encoder, own, wanted)
    assert input_size(encoder, own, advice) == advice


@given(st.integers(1, 5000), st.sampled_from([14, 16, 32]))
def test_every_advice_can_be_followed(wanted: int, patch: int) -> None:
    encoder = EncoderSpec(kind="CLIP", width=8, num_layers=1, embed_dim=8, image_size=7 * patch, patch_size=patch)
    try:
        input_size(encoder, 7 * patch, wanted)
    except BadInputError as error:
        advice = int(str(error).partition("resolution of the image encoder to ")[2].partition(",")[0])
        assert 0 < advice <= LARGEST_RESOLUTION
        assert input_size(encoder, 7 * patch, advice) == advice


@pytest.mark.parametrize("side", [1, 2, 5, 6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_positions_keep_what_is_not_of_a_patch(side: int, dtype: torch.dtype) -> None:
    table = torch.randn(1 + 9, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    positions = interpolated(table, side, 1)
    assert positions.shape == (1 + side**2, 4)
    assert positions.dtype == torch.float32
    assert torch.equal(positions[0], table[0].float())
    assert torch.equal(interpolated(table[1:], side, 0), positions[1:])


def test_positions_of_a_slope_stay_a_slope() -> None:
    """Rows and columns are not confused."""
    rows = torch.arange(8.0)[:, None].expand(8, 8)
    table = torch.stack((rows, rows.T), dim=-1).reshape(64, 2)
    grid = interpolated(table, 16, 0).reshape(16, 16, 2)
    inside = grid[4:-4, 4:-4]
    wanted = torch.arange(16.0)[4:-4] / 2 - 0.25
    torch.testing.assert_close(inside[..., 0], wanted[:, None].expand(8, 8), rtol=0, atol=0.05)
    torch.testing.assert_close(inside[..., 1], wanted.expand(8, 8), rtol=0, atol=0.05)
