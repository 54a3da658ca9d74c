"""From a decoded picture to what the models take: sizes, crops, masks, references, digests."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ipadapter_core.encoder.pixels import encoder_pixels
from ipadapter_trainer.config import AugmentConfig, DataConfig
from ipadapter_trainer.data.buckets import bucket_sizes, nearest_bucket
from ipadapter_trainer.data.digests import DigestMemo
from ipadapter_trainer.data.pictures import BytesPicture, FilePicture, as_tensor, picture_digest
from ipadapter_trainer.data.prepare import (
    bucket_of,
    loss_mask,
    place_target,
    reference_pixels,
    target_pixels,
    variant_generator,
)
from support.pictures import REFERENCE_FORMAT, encoded, gradient


def data_of(**options: object) -> DataConfig:
    return DataConfig(path="data", **{"resolution": 64, "bucket_step": 8, **options})


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def prepared(image: Image.Image, data: DataConfig, seed: int = 0) -> tuple[Tensor, list[int]]:
    """Pixels of a target and its six sizes."""
    bucket = bucket_of(BytesPicture("x", encoded(image)), data)
    placement = place_target(image, data, bucket, generator(seed))
    return target_pixels(image, placement), [int(size) for size in placement.sizes]


@pytest.mark.parametrize("resolution", [512, 768, 1024])
def test_buckets_have_about_the_area_and_sides_that_are_multiples(resolution: int) -> None:
    sizes = bucket_sizes(DataConfig(path="data", resolution=resolution, buckets=True))
    assert len(sizes) > 5
    assert (resolution, resolution) in sizes
    for height, width in sizes:
        assert height % 64 == width % 64 == 0
        assert abs(height * width / resolution**2 - 1) < 0.1


@pytest.mark.parametrize("shape", [(100, 100), (300, 200), (200, 300), (90, 160), (500, 10)])
def test_the_nearest_bucket_keeps_most_of_a_picture(shape: tuple[int, int]) -> None:
    sizes = bucket_sizes(DataConfig(path="data", resolution=512, buckets=True))

    def distance(size: tuple[int, int]) -> float:
        return abs(np.log(size[0] / size[1]) - np.log(shape[0] / shape[1]))

    assert distance(nearest_bucket(shape, sizes)) == min(map(distance, sizes))


@pytest.mark.parametrize(
    ("shape", "options", "sizes"),
    [
        ((64, 64), {}, [64, 64, 0, 0, 64, 64]),
        ((200, 100), {}, [200, 100, 32, 0, 64, 64]),  # resized to 128x64
        ((32, 64), {}, [32, 64, 0, 32, 64, 64]),  # enlarged to 64x128
        ((100, 200), {"buckets": True}, [100, 200, 0, 4, 48, 88]),  # resized to 48x96
        ((1, 3000), {}, [1, 3000, 0, 95968, 64, 64]),  # a strip, of which only the middle is resized
    ],
)
def test_sizes_are_those_sdxl_is_told(shape: tuple[int, int], options: dict[str, bool], sizes: list[int]) -> None:
    pixels, found = prepared(gradient(*shape), data_of(**options))
    assert found == sizes
    assert list(pixels.shape) == [3, *sizes[4:]]


def test_pixels_are_those_of_the_place_the_sizes_name() -> None:
    image = gradient(64, 256)
    pixels, (_, _, _, left, _, _) = prepared(image, data_of())
    expected = as_tensor(image)[:, left : left + 64].movedim(-1, 0).float() / 127.5 - 1
    assert pixels.min() >= -1
    assert pixels.max() <= 1
    assert torch.equal(pixels, expected)


def test_random_crops_reach_everywhere_and_follow_from_the_generator() -> None:
    image, data = gradient(64, 68), data_of(crop="random")
    lefts = [prepared(image, data, seed)[1][3] for seed in range(60)]
    assert set(lefts) == set(range(5))
    assert lefts == [prepared(image, data, seed)[1][3] for seed in range(60)]


def test_a_flip_mirrors_the_picture_before_the_crop() -> None:
    image, data = gradient(64, 80), data_of(crop="random", flip=1.0)
    pixels, (_, _, _, left, _, _) = prepared(image, data)
    mirrored = as_tensor(image).flip(1)[:, left : left + 64].movedim(-1, 0).float() / 127.5 - 1
    assert torch.equal(pixels, mirrored)


def test_flips_are_as_frequent_as_asked() -> None:
    image, data = gradient(8, 8), data_of(flip=0.25)
    flips = [place_target(image, data, (8, 8), generator(seed)).flip for seed in range(2000)]
    assert 0.22 < np.mean(flips) < 0.28


def test_a_mask_is_cropped_and_mirrored_with_its_picture_whatever_its_own_size() -> None:
    image, data = gradient(64, 128), data_of(flip=1.0, crop="random")
    mask = Image.new("L", (64, 32))
    mask.paste(255, (0, 0, 32, 32))  # the left half counts
    placement = place_target(image, data, (64, 64), generator(3))
    found = loss_mask(BytesPicture("mask", encoded(mask)), placement, 8)
    border = (64 - placement.left) / 8  # mirrored, the right half counts
    expected = (torch.arange(8) + 0.5 > border).float().expand(1, 8, 8)
    assert found.shape == (1, 8, 8)
    assert (found - expected).abs().max() < 0.6
    assert (found - expected).abs().mean() < 0.05


def test_a_reference_without_changes_is_what_the_nodes_give_the_encoder() -> None:
    image = gradient(40, 60)
    pixels = reference_pixels(image, data_of().augment, REFERENCE_FORMAT, generator())
    expected = encoder_pixels(as_tensor(image)[None].float() / 255, REFERENCE_FORMAT.pixel_format, "center")
    assert torch.equal(pixels, expected[0])


CHANGES = {
    "crop_scale": 0.5, "flip": 1.0, "rotate": 45.0, "color": 0.8, "gray": 1.0, "blur": 1.0,
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_each_change_of_a_reference_follows_from_the_generator_and_leaves_the_rest_alone(name: str) -> None:
    image = gradient(40, 60)
    data = data_of(augment=AugmentConfig(**{name: CHANGES[name]}))
    plain = reference_pixels(image, data_of().augment, REFERENCE_FORMAT, generator())
    torch.manual_seed(0)
    before = torch.get_rng_state()
    changed = [reference_pixels(image, data.augment, REFERENCE_FORMAT, generator(seed)) for seed in (1, 1, 2)]
    assert torch.equal(torch.get_rng_state(), before)
    assert changed[0].shape == plain.shape
    assert (changed[0] - plain).abs().max() > 0.02
    assert torch.equal(changed[0], changed[1])
    if name in ("crop_scale", "rotate", "color"):
        assert not torch.equal(changed[0], changed[2])
    assert torch.equal(as_tensor(image), as_tensor(gradient(40, 60)))


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (3, 2), (600, 8)])
def test_all_changes_at_once_take_pictures_of_any_size(shape: tuple[int, int]) -> None:
    pixels = reference_pixels(gradient(*shape), AugmentConfig(**CHANGES), REFERENCE_FORMAT, generator())
    assert pixels.shape == (3, 8, 8)
    assert pixels.isfinite().all()


def test_variants_differ_by_seed_picture_and_number_but_not_by_run() -> None:
    seeds = {
        variant_generator(*key, "target").initial_seed() for key in ((0, "a", 0), (1, "a", 0), (0, "b", 0), (0, "a", 1))
    }
    assert len(seeds) == 4
    assert variant_generator(0, "a", 0, "target").initial_seed() in seeds


def test_digests_are_remembered_until_the_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, memo_path = tmp_path / "a.png", tmp_path / "cache" / "digests.sqlite"
    path.write_bytes(b"one")
    memo = DigestMemo(memo_path)
    assert memo.digest(FilePicture(path)) == picture_digest(b"one")
    memo.flush()
    again = DigestMemo(memo_path)
    with monkeypatch.context() as patched:
        patched.setattr(FilePicture, "read", lambda picture: pytest.fail("read again"))
        assert again.digest(FilePicture(path)) == picture_digest(b"one")
    path.write_bytes(b"other")
    assert again.digest(FilePicture(path)) == picture_digest(b"other")


def test_digests_wait_for_a_memo_that_is_just_being_made(tmp_path: Path) -> None:
    path, memo_path = tmp_path / "a.png", tmp_path / "digests.sqlite"
    path.write_bytes(b"one")
    memo_path.touch()  # SQLite makes the file first, and the table in it when the first write is done
    assert DigestMemo(memo_path).digest(FilePicture(path)) == picture_digest(b"one")
