"""Whatever a picture is made of, it becomes the RGB a viewer shows, or is broken with a reason."""

import io
import os
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ipadapter_trainer.data.pictures import BrokenPictureError, BytesPicture, FilePicture, decode, upright_size
from support.pictures import encoded, gradient

RED, HALF_GRAY = (255, 0, 0), (128, 128, 128)


def shown(data: bytes) -> np.ndarray:
    image = decode(BytesPicture("picture", data))
    assert image.mode == "RGB"
    return np.asarray(image)


def one_color(data: bytes) -> tuple[int, ...]:
    pixels = shown(data).reshape(-1, 3)
    assert (pixels == pixels[0]).all()
    return tuple(int(value) for value in pixels[0])


def filled(mode: str, color: object, size: tuple[int, int] = (4, 3)) -> Image.Image:
    return Image.new(mode, size, color)


def chunk(kind: bytes, data: bytes) -> bytes:
    """Of a PNG file."""
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def png_16_bit(*channels: int, transparent: tuple[int, ...] = ()) -> bytes:
    """Gray or colour, which Pillow does not write with 16 bits or with a transparent value."""
    header = (2).to_bytes(4, "big") * 2 + bytes((16, 2 if len(channels) == 3 else 0, 0, 0, 0))
    rows = (b"\0" + b"".join(value.to_bytes(2, "big") for value in channels) * 2) * 2
    key = chunk(b"tRNS", b"".join(value.to_bytes(2, "big") for value in transparent)) if transparent else b""
    parts = chunk(b"IHDR", header) + key + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def with_chunk(png: bytes, kind: bytes, data: bytes, before: bytes) -> bytes:
    """A PNG with one more chunk, before the first of another kind."""
    place = png.index(before) - 4
    return png[:place] + chunk(kind, data) + png[place:]


def transparent_palette() -> bytes:
    image = filled("P", 0)
    image.putpalette([255, 0, 0, 0, 0, 255])
    return encoded(image, transparency=0)


def gray_16_bit(kind: str) -> bytes:
    return encoded(Image.fromarray(np.full((3, 4), 128 * 257, np.uint16)), kind)


@pytest.mark.parametrize(
    ("data", "color"),
    [
        (encoded(filled("RGB", RED)), RED),
        (encoded(filled("L", 128)), HALF_GRAY),
        (encoded(filled("1", 1)), (255, 255, 255)),
        (encoded(filled("P", RED)), RED),
        (transparent_palette(), (255, 255, 255)),
        (encoded(filled("RGB", RED), transparency=RED), (255, 255, 255)),
        (encoded(filled("RGBA", (*RED, 255))), RED),
        (encoded(filled("RGBA", (0, 0, 0, 0))), (255, 255, 255)),
        (encoded(filled("RGBA", (255, 0, 0, 127))), (255, 128, 128)),
        (encoded(filled("LA", (0, 127))), HALF_GRAY),
        (encoded(filled("CMYK", (0, 255, 255, 0)), "TIFF"), RED),
        (encoded(filled("YCbCr", (128, 128, 128)), "JPEG"), HALF_GRAY),
        (gray_16_bit("PNG"), HALF_GRAY),
        (gray_16_bit("TIFF"), HALF_GRAY),
        (png_16_bit(*[128 * 257] * 3), HALF_GRAY),
        (png_16_bit(0x1234, transparent=(0x1234,)), (255, 255, 255)),
        (png_16_bit(128 * 257, transparent=(0x1234,)), HALF_GRAY),
        (png_16_bit(0x1234, 0x5678, 0x9ABC, transparent=(0x1234, 0x5678, 0x9ABC)), (255, 255, 255)),
        (png_16_bit(0x0011, 0x0022, 0x0033, transparent=(0x0011, 0x0022, 0x0033)), (255, 255, 255)),
        (png_16_bit(*[128 * 257] * 3, transparent=(0x1234, 0x5678, 0x9ABC)), HALF_GRAY),
        (encoded(filled("RGB", RED), "GIF", save_all=True, append_images=[filled("RGB", (0, 0, 255))]), RED),
    ],
    ids=[
        "rgb", "gray", "bilevel", "palette", "transparent-palette", "transparent-color", "opaque", "transparent",
        "half-transparent", "gray-alpha", "cmyk", "ycbcr", "gray-16-png", "gray-16-tiff", "rgb-16",
        "gray-16-transparent", "gray-16-other-transparent", "rgb-16-transparent", "rgb-16-dark-transparent",
        "rgb-16-other-transparent", "animated",
    ],
)  # fmt: skip
def test_every_mode_becomes_the_color_it_shows(data: bytes, color: tuple[int, ...]) -> None:
    assert one_color(data) == color


def test_a_cmyk_jpeg_is_not_inverted() -> None:
    red, green, blue = shown(encoded(filled("CMYK", (0, 255, 255, 0), (16, 16)), "JPEG", quality=95)).mean(axis=(0, 1))
    assert red > 250
    assert green < 5
    assert blue < 5


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_turns_the_picture_and_its_size(kind: str, orientation: int) -> None:
    upright = gradient(24, 16)
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }  # fmt: skip
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = BytesPicture("picture", encoded(stored, kind, exif=exif, quality=100))
    assert upright_size(picture) == (24, 16)
    difference = np.asarray(decode(picture), np.int16) - np.asarray(upright, np.int16)
    assert np.abs(difference).max() < 40  # JPEG and WebP lose some


XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
XMP_CHUNK = b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP
EXIF = Image.Exif()
EXIF[0x0112] = 6
EXIF_CHUNK = b"eXIf", EXIF.tobytes().removeprefix(b"Exif\0\0")
RAW_CHUNK = b"tEXt", b"Raw profile type exif\0\nexif\n%8d\n" % len(EXIF.tobytes()) + EXIF.tobytes().hex().encode()
LANDSCAPE = gradient(16, 24)


@pytest.mark.parametrize("chunk_of", [EXIF_CHUNK, XMP_CHUNK, RAW_CHUNK], ids=["exif", "xmp", "raw"])
@pytest.mark.parametrize("before", [b"IDAT", b"IEND"])
def test_an_orientation_may_stand_behind_the_pixels(chunk_of: tuple[bytes, bytes], before: bytes) -> None:
    picture = BytesPicture("picture", with_chunk(encoded(LANDSCAPE), *chunk_of, before))
    assert decode(picture).size == (16, 24)
    assert upright_size(picture) == (24, 16)


def test_other_texts_behind_the_pixels_do_not_make_the_size_cost_a_decoding() -> None:
    whole = encoded(LANDSCAPE)
    place = whole.index(b"IDAT") + 4
    broken_pixels = whole[:place] + b"\0" * 8 + whole[place + 8 :]
    picture = BytesPicture("picture", with_chunk(broken_pixels, b"tEXt", b"date:create\0today", b"IEND"))
    assert upright_size(picture) == (16, 24)
    with pytest.raises(BrokenPictureError):
        decode(picture)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_an_orientation_may_stand_in_xmp_alone(kind: str) -> None:
    picture = BytesPicture("picture", encoded(LANDSCAPE, kind, xmp=XMP))
    assert decode(picture).size == (16, 24)
    assert upright_size(picture) == (24, 16)


@pytest.mark.parametrize("kind", ["EPS", "TGA", "PCX"])
def test_kinds_that_are_not_read_are_said(kind: str) -> None:
    for look in (decode, upright_size):
        with pytest.raises(BrokenPictureError, match=r"not a picture of a kind that is read \(.*JPEG.*PNG.*\)"):
            look(BytesPicture("picture.png", encoded(LANDSCAPE, kind)))


PNG = encoded(gradient(32, 32))
JPEG = encoded(gradient(64, 64), "JPEG")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not a picture"),
        (b"<html>404</html>", "not a picture"),
        (PNG[:60], "(?i)truncated"),
        (JPEG[: len(JPEG) // 2], "(?i)truncated"),
        (PNG[:50] + b"\0" * 20 + PNG[70:], "."),
        (encoded(filled("F", 0.5), "TIFF"), "floating-point"),
    ],
    ids=["empty", "html", "cut-png", "cut-jpeg", "damaged", "float"],
)
def test_what_cannot_be_decoded_is_broken_with_its_name_and_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(BrokenPictureError, match=reason) as caught:
        decode(BytesPicture("some.png", data))
    assert caught.value.name == "some.png"


def test_a_picture_that_would_fill_the_memory_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for look in (decode, upright_size):
        with pytest.raises(BrokenPictureError, match="DecompressionBomb"):
            look(BytesPicture("bomb", PNG))


def test_a_missing_file_is_a_broken_picture(tmp_path) -> None:
    picture = FilePicture(tmp_path / "none.png")
    for look in (decode, upright_size, FilePicture.read):
        with pytest.raises(BrokenPictureError, match="no such file"):
            look(picture)
    with pytest.raises(BrokenPictureError, match="no such file"):
        _ = picture.identity


def test_the_size_is_read_from_the_header_alone() -> None:
    read = io.BytesIO(PNG[:64])

    class Header(BytesPicture):
        def open(self) -> io.BytesIO:
            return read

    assert upright_size(Header("header", b"")) == (32, 32)


@pytest.mark.parametrize("name", ["a\0b.png", "a\ud800b.png", "a" * 300])
def test_a_name_that_no_file_can_have_is_a_broken_picture(name: str) -> None:
    picture = FilePicture(Path(name))
    for look in (decode, upright_size, lambda picture: picture.identity):
        with pytest.raises(BrokenPictureError):
            look(picture)


def test_a_pipe_is_a_broken_picture_and_no_wait(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    for look in (decode, upright_size):
        with pytest.raises(BrokenPictureError, match="a pipe"):
            look(FilePicture(tmp_path / "a.png"))
