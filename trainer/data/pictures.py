"""Pictures as files, tar members or table cells, and their decoding to 8-bit RGB whatever they are made of."""

import hashlib
import io
import os
import stat
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

KINDS = {
    "JPEG": (".jpg", ".jpeg", ".jfif", ".jpe", ".mpo"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "DIB": (".dib",),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "AVIF": (".avif",),
    "JPEG2000": (".jp2", ".j2k", ".jpx"),
    "PPM": (".ppm", ".pnm"),
}
"""Suffixes by Pillow's names of what is read. Others Pillow knows start a program (EPS) or are seldom tried."""
SUFFIXES = tuple(suffix for suffixes in KINDS.values() for suffix in suffixes)
_WHITE = (255, 255, 255, 255)
_ORIENTATION = 0x0112
_SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap width and height
_16_TO_8_BITS = 1 / 257  # 65535 is 255
_PNG_START, _PNG_DEPTH = 8, 24  # bytes before its first chunk; where the bits per channel stand
_PNG_ORIENTATIONS = (b"XML:com.adobe.xmp\0", b"Raw profile type exif\0")
_CHUNK_HEAD = 8  # length and kind
_BAND_PIXELS = 1 << 22  # that are laid over white at once
BROKEN = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    LookupError,
    TypeError,
    OverflowError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    RuntimeError,
    SystemError,
    BufferError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)
"""A damaged file fails wherever its bytes lead the decoder; running out of memory is what a forged size does."""


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
        except (OSError, ValueError) as error:  # a NUL in the name
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
            if stat.S_ISFIFO(self.path.stat().st_mode):  # would wait for a writer
                raise BrokenPictureError(self.name, "a pipe, no file")
            return self.path.open("rb")
        except (OSError, ValueError) as error:
            raise _unreadable(self.name, error) from error


@dataclass(frozen=True)
class NoPicture:
    """What is none, as is known before it is read."""

    name: str
    reason: str

    @property
    def identity(self) -> str:
        raise BrokenPictureError(self.name, self.reason)

    def read(self) -> bytes:
        raise BrokenPictureError(self.name, self.reason)

    def open(self) -> BinaryIO:
        raise BrokenPictureError(self.name, self.reason)


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


def is_inside(root: Path, path: Path) -> bool:
    """Whether a path as it is written leads into a folder; what is there may be a link, as in the hub's cache."""
    return os.path.join(os.path.abspath(path), "").startswith(os.path.join(os.path.abspath(root), ""))


def picture_digest(data: bytes) -> str:
    """What cached entries of a picture are filed under."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def decode(picture: Picture) -> Image.Image:
    """The first frame as 8-bit RGB, upright, transparent parts over white.

    16-bit gray is scaled, not clipped; of 16-bit colours Pillow keeps the upper byte, also of the transparent one.

    Raises:
        BrokenPictureError: missing, truncated, damaged, larger than Pillow's decompression bomb limit, or of a kind
            without a defined range (floating point). Whatever a decoder raises becomes this.
    """
    try:
        data = picture.read()
        with Image.open(io.BytesIO(data), formats=list(KINDS)) as image:
            ImageOps.exif_transpose(image, in_place=True)  # loads it, and makes no copy of what is upright
            if image.format == "PNG" and data[_PNG_DEPTH] == 16 and isinstance(image.info.get("transparency"), tuple):
                image.info["transparency"] = tuple(value >> 8 for value in image.info["transparency"])
            return _to_rgb(image, picture.name)
    except BROKEN as error:
        raise _damaged(picture.name, error) from error


def upright_size(picture: Picture) -> Size:
    """Height and width as seen, from the header alone.

    Raises:
        BrokenPictureError: missing, or the header is damaged.
    """
    try:
        with picture.open() as file, Image.open(file, formats=list(KINDS)) as image:
            width, height = image.size
            return (width, height) if _orientation(image, file) in _SIDEWAYS else (height, width)
    except BROKEN as error:
        raise _damaged(picture.name, error) from error


def as_tensor(image: Image.Image) -> Tensor:
    """(H, W, channels) uint8."""
    pixels = np.array(image)
    return torch.from_numpy(pixels[..., None] if pixels.ndim == 2 else pixels)


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode == "F":
        raise BrokenPictureError(name, "floating-point pixels, whose range nothing tells")
    if image.mode.startswith("I"):  # I;16, I;16B, and I, which is how Pillow gives some 16-bit files
        return Image.fromarray(_eight_bits(np.asarray(image), image.info.get("transparency"))).convert("RGB")
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "La", "RGBa"):
        return _over_white(image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _eight_bits(values: Any, transparent: Any) -> Any:
    """16-bit gray (H, W), scaled, in bands as below; white where it is transparent."""
    scaled = np.empty(values.shape, np.uint8)
    rows = max(1, _BAND_PIXELS // values.shape[1])
    for top in range(0, len(values), rows):
        band = values[top : top + rows]
        gray = band * _16_TO_8_BITS
        if transparent is not None:
            gray[band == transparent] = 255
        scaled[top : top + rows] = gray.round().clip(0, 255)
    return scaled


def _over_white(image: Image.Image) -> Image.Image:
    """In bands, so that a large picture is not in memory three times."""
    width, height = image.size
    rows = max(1, _BAND_PIXELS // width)
    whole = Image.new("RGB", image.size)
    for top in range(0, height, rows):
        band = image.crop((0, top, width, min(top + rows, height))).convert("RGBA")
        whole.paste(Image.alpha_composite(Image.new("RGBA", band.size, _WHITE), band).convert("RGB"), (0, top))
    return whole


def _orientation(image: Image.Image, file: BinaryIO) -> Any:
    if image.format == "TIFF":  # Pillow turns these itself
        return None
    if image.format == "PNG" and _has_orientation_behind_pixels(file):
        image.load()
    return Image.Image.getexif(image).get(_ORIENTATION)  # PNG's own would always decode the picture to look behind it


def _has_orientation_behind_pixels(png: BinaryIO) -> bool:
    """Whether chunks after the pixels may say how the picture is turned; the pixels are passed over."""
    place = png.tell()
    png.seek(_PNG_START)
    has_pixels = found = False
    while not found and len(head := png.read(_CHUNK_HEAD)) == _CHUNK_HEAD:
        end = png.tell() + int.from_bytes(head[:4], "big") + 4
        kind = head[4:]
        has_pixels |= kind == b"IDAT"
        if has_pixels and kind in (b"iTXt", b"tEXt", b"zTXt"):
            found = png.read(max(map(len, _PNG_ORIENTATIONS))).startswith(_PNG_ORIENTATIONS)
        found |= has_pixels and kind == b"eXIf"
        png.seek(end)
    png.seek(place)
    return found


def _unreadable(name: str, error: OSError | ValueError) -> BrokenPictureError:
    if isinstance(error, FileNotFoundError):
        return BrokenPictureError(name, "no such file")
    return BrokenPictureError(name, str(error.strerror if isinstance(error, OSError) else error))


def _damaged(name: str, error: Exception) -> BrokenPictureError:
    if isinstance(error, UnidentifiedImageError):
        return BrokenPictureError(name, f"not a picture of a kind that is read ({', '.join(KINDS)})")
    return BrokenPictureError(name, f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)
