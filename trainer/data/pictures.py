"""Pictures as files, tar members or table cells, and their decoding to 8-bit RGB whatever they are made of."""

import hashlib
import io
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

Size = tuple[int, int]
"""Height and width in pixels."""

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".jp2", ".ppm")
_WHITE = (255, 255, 255, 255)
_ORIENTATION = 0x0112
_SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap width and height
_16_TO_8_BITS = 1 / 257  # 65535 is 255
# A damaged picture fails wherever its bytes lead the decoder; running out of memory is what a forged size does.
_BROKEN = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    LookupError,
    TypeError,
    OverflowError,
    AttributeError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


class BrokenPictureError(Exception):
    """A picture that is skipped: missing, damaged or of no known kind.

    Attributes:
        name: of the picture.
        reason: what is wrong with it.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.name = name
        self.reason = reason


class Picture(Protocol):
    """Where the bytes of a picture are."""

    @property
    def name(self) -> str:
        """A path, or what stands for it; different pictures have different names."""

    @property
    def identity(self) -> str:
        """Changes, as far as can be told without reading, when the bytes do. Raises BrokenPictureError if missing."""

    def read(self) -> bytes:
        """All of it. Raises BrokenPictureError if it cannot be read."""

    def open(self) -> BinaryIO:
        """For reading the beginning only. Raises BrokenPictureError if it cannot be read."""


@dataclass(frozen=True)
class FilePicture:
    """A picture in a file of its own."""

    path: Path

    @property
    def name(self) -> str:
        return str(self.path)

    @property
    def identity(self) -> str:
        try:
            status = self.path.stat()
        except OSError as error:
            raise _unreadable(self.name, error) from error
        return f"{self.path.absolute()}|{status.st_size}|{status.st_mtime_ns}"

    def read(self) -> bytes:
        with self.open() as file:
            try:
                return file.read()
            except OSError as error:
                raise _unreadable(self.name, error) from error

    def open(self) -> BinaryIO:
        try:
            return self.path.open("rb")
        except OSError as error:
            raise _unreadable(self.name, error) from error


@dataclass(frozen=True)
class BytesPicture:
    """A picture that is in memory already, such as a member of a shard."""

    name: str
    data: bytes

    @property
    def identity(self) -> str:
        return f"{self.name}|{len(self.data)}|{zlib.crc32(self.data)}"

    def read(self) -> bytes:
        return self.data

    def open(self) -> BinaryIO:
        return io.BytesIO(self.data)


def picture_digest(data: bytes) -> str:
    """What cached entries of a picture are filed under."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def decode(picture: Picture) -> Image.Image:
    """The first frame as 8-bit RGB, upright, transparent parts over white.

    16-bit gray is scaled, not clipped; of 16-bit colours Pillow keeps the upper byte.

    Raises:
        BrokenPictureError: missing, truncated, damaged, larger than Pillow's decompression bomb limit, or of a kind
            without a defined range (floating point).
    """
    try:
        with Image.open(io.BytesIO(picture.read())) as image:
            ImageOps.exif_transpose(image, in_place=True)  # loads it, and makes no copy of what is upright
            return _to_rgb(image, picture.name)
    except _BROKEN as error:
        raise _damaged(picture.name, error) from error


def upright_size(picture: Picture) -> Size:
    """Height and width as seen, from the header alone.

    Raises:
        BrokenPictureError: missing, or the header is damaged.
    """
    try:
        with picture.open() as file, Image.open(file) as image:
            width, height = image.size
            return (width, height) if _orientation(image) in _SIDEWAYS else (height, width)
    except _BROKEN as error:
        raise _damaged(picture.name, error) from error


def as_tensor(image: Image.Image) -> Tensor:
    """(H, W, channels) uint8."""
    pixels = np.array(image)
    return torch.from_numpy(pixels[..., None] if pixels.ndim == 2 else pixels)


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode == "F":
        raise BrokenPictureError(name, "floating-point pixels, whose range nothing tells")
    if image.mode.startswith("I"):  # I;16, I;16B, and I, which is how Pillow gives some 16-bit files
        gray = np.asarray(image).astype(np.float64) * _16_TO_8_BITS
        return Image.fromarray(gray.round().clip(0, 255).astype(np.uint8)).convert("RGB")
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "La", "RGBa"):
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, _WHITE), image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _orientation(image: Image.Image) -> Any:
    if image.format == "TIFF":  # Pillow turns these itself
        return None
    exif = image.info.get("exif")  # PNG's getexif would decode the picture to look behind it
    if exif is None:
        return image.getexif().get(_ORIENTATION) if image.format != "PNG" else None
    found = Image.Exif()
    found.load(exif)
    return found.get(_ORIENTATION)


def _unreadable(name: str, error: OSError) -> BrokenPictureError:
    return BrokenPictureError(name, "no such file" if isinstance(error, FileNotFoundError) else str(error.strerror))


def _damaged(name: str, error: Exception) -> BrokenPictureError:
    if isinstance(error, UnidentifiedImageError):
        return BrokenPictureError(name, "not a picture of a kind Pillow knows")
    return BrokenPictureError(name, f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)
