"""Pictures, lists, shards and configs that a stranger sends: one message or a skipped picture, whatever is in them."""

import io
import json
import random
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch
from PIL import Image, features

from ipadapter_trainer.batch import Skipped
from ipadapter_trainer.config import DataConfig
from ipadapter_trainer.config_file import read_config
from ipadapter_trainer.data.buckets import Centered
from ipadapter_trainer.data.digests import DigestMemo
from ipadapter_trainer.data.pictures import BrokenPictureError, FilePicture, decode, upright_size
from ipadapter_trainer.data.prepare import caption_digest, place_target, reference_pixels, target_pixels
from ipadapter_trainer.data.records import Record, key_hash
from ipadapter_trainer.data.shards import Shards
from ipadapter_trainer.data.sources import open_source
from support.fuzzing import fuzz
from support.mutations import BYTES, DIGITS, odd_value
from support.pictures import REFERENCE_FORMAT, encoded, gradient

KINDS = (
    "PNG",
    "JPEG",
    "WEBP",
    "GIF",
    "TIFF",
    "BMP",
    "PPM",
    "JPEG2000",
    "DDS",
    "ICO",
    "TGA",
    "MPO",
    *("AVIF",) * features.check("avif"),
)
MODES = ("RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "I;16")
SUFFIXES = ("png", "jpg", "webp", "gif", "avif", "tif", "bmp", "jp2", "ppm", "dds", "png.exe", "")


def picture(chance: random.Random) -> bytes:
    """A whole one, of any kind, mode and form."""
    kind = chance.choice(KINDS)
    size = chance.choice(((16, 16), (1, 400), (400, 1), (1, 1), (33, 20)))
    options: dict[str, Any] = {}
    if kind in ("GIF", "WEBP", "PNG", "TIFF") and chance.random() < 0.3:
        options = {"save_all": True, "append_images": [gradient(*size, number) for number in range(3)]}
    if kind in ("PNG", "JPEG", "WEBP", "TIFF", "AVIF"):
        if chance.random() < 0.3:
            options["icc_profile"] = chance.randbytes(200)
        if chance.random() < 0.3:
            exif = Image.Exif()
            exif[0x0112] = chance.choice((1, 3, 6, 8, 99, 2**15))
            options["exif"] = chance.choice((exif.tobytes(), b"Exif\0\0" + chance.randbytes(60)))
    if kind == "TIFF":
        options["compression"] = chance.choice((None, "tiff_lzw", "tiff_adobe_deflate", "jpeg", "group4"))
    for mode in chance.sample(MODES, len(MODES)):
        try:
            return encoded(gradient(*size, chance.randrange(9)).convert(mode), kind, **options)
        except (OSError, ValueError, KeyError, RuntimeError, TypeError, SyntaxError):  # no such mode in this kind
            continue
    return encoded(gradient(*size), "PNG")


def make_picture(chance: random.Random, folder: Path) -> str:
    data, names = picture(chance), []
    for _ in range(chance.choice((1, 1, 2, 3))):
        mutation = chance.choice(BYTES)
        data = mutation(chance, data)
        names.append(mutation.__name__)
    (folder / f"picture.{chance.choice(SUFFIXES)}").write_bytes(data)
    return "+".join(names)


def read_picture(folder: Path) -> None:
    """As a data worker and the cache do; a broken one is a skip, which is no failure."""
    (path,) = folder.iterdir()
    try:
        upright_size(FilePicture(path))
        image = decode(FilePicture(path))
    except BrokenPictureError:
        return
    assert image.mode == "RGB"
    generator = torch.Generator()
    placement = place_target(image, Centered(), (16, 16), generator)
    assert target_pixels(image, placement).shape == (3, 16, 16)
    reference_pixels(image, DataConfig(path="x").augment, REFERENCE_FORMAT, generator)


def read_set(folder: Path, **options: object) -> None:
    """Open a data set and look at all that a run looks at."""
    (path,) = (path for path in folder.iterdir() if path.name.startswith("set"))
    source = open_source(DataConfig(path=str(path), **options))
    memo = DigestMemo(None)
    for record in source.read() if isinstance(source, Shards) else source:
        if isinstance(record, Skipped):
            json.dumps(vars(record))
            continue
        look_at(record, memo)
    memo.flush()


def look_at(record: Record, memo: DigestMemo) -> None:
    key_hash(record.key, 0)
    for caption in record.captions:
        caption_digest(caption)
    for one in (record.image, record.reference):
        try:
            memo.digest(one)
            decode(one)
        except BrokenPictureError:
            pass


def make_list(chance: random.Random, folder: Path) -> str:
    (folder / "0.png").write_bytes(encoded(gradient(8, 8)))
    rows: list[Any] = [{"image": "0.png", "text": "a cat", "size": 3} for _ in range(4)]
    suffix, kind = (
        chance.choice(("json", "jsonl", "csv")),
        chance.choice(("value", "key", "row", "bytes", "digits", "deep")),
    )
    row = chance.randrange(len(rows))
    if kind == "value":
        rows[row][chance.choice(("image", "text", "size"))] = odd_value(chance)
    elif kind == "key":
        rows[row] = {str(odd_value(chance)): "x", **rows[row]}
    elif kind == "row":
        rows[row] = odd_value(chance)
    text = table(rows, suffix)
    if kind == "digits":
        text = text.replace(
            "3", chance.choice(("9" * DIGITS, "-" + "1" * 4300, "1e99999", "NaN", "0." + "1" * 9000)), 1
        )
    if kind == "deep":
        text = text.replace('"a cat"', chance.choice(("[", '{"a":')) * 10_000, 1)
    data = text.encode(errors="surrogatepass")
    if kind == "bytes":
        data = chance.choice(BYTES)(chance, data)
    (folder / f"set.{suffix}").write_bytes(chance.choice((b"", b"", b"", b"\xef\xbb\xbf", b"\xff\xfe")) + data)
    return f"{suffix} {kind}"


def table(rows: list[Any], suffix: str) -> str:
    if suffix == "json":
        return json.dumps(rows)
    if suffix == "jsonl":
        return "\n".join(map(json.dumps, rows))
    lines = ["image,text,size"]
    for row in rows:
        cells = row.values() if isinstance(row, dict) else [row]
        lines.append(",".join(json.dumps(str(cell)[:200_000]).encode().decode("unicode_escape") for cell in cells))
    return "\n".join(lines)


def make_shard(chance: random.Random, folder: Path) -> str:
    buffer, kind = (
        io.BytesIO(),
        chance.choice(("whole", "name", "link", "json", "pax", "size", "bytes", "bytes", "sum")),
    )
    with tarfile.open(
        fileobj=buffer, mode=chance.choice(("w", "w", "w:gz", "w:bz2", "w:xz")), format=chance.choice((0, 1, 2))
    ) as tar:
        for number in range(4):
            for suffix, data in (("png", picture(chance)), ("txt", b"a cat"), ("json", b'{"text": "a dog"}')):
                entry = tarfile.TarInfo(f"{number}.{suffix}")
                if kind == "name":
                    entry.name = chance.choice(
                        (
                            "../../x.png",
                            "/etc/x.png",
                            "\x1b[31m.png",
                            "\udcff.png",
                            ".png",
                            "a" * 90,
                            "__a__.txt",
                            "0.PNG",
                            "",
                            "x/.",
                        )
                    )
                if kind == "link" and chance.random() < 0.5:
                    entry.type = chance.choice(
                        (
                            tarfile.SYMTYPE,
                            tarfile.LNKTYPE,
                            tarfile.FIFOTYPE,
                            tarfile.CHRTYPE,
                            tarfile.GNUTYPE_SPARSE,
                            b"Z",
                        )
                    )
                    entry.linkname, data = "/etc/hostname", b""
                if kind == "json" and suffix == "json":
                    data = chance.choice(
                        (b"[" * 10_000, b"9" * DIGITS, json.dumps({"text": odd_value(chance)}).encode(), b"\xff", b"")
                    )
                if kind == "json" and suffix == "txt":
                    continue
                if kind == "pax" and tar.format == tarfile.PAX_FORMAT:
                    entry.pax_headers = {
                        chance.choice(
                            ("size", "path", "mtime", "GNU.sparse.major", "GNU.sparse.map", "x")
                        ): chance.choice(("x", "-1", "9" * DIGITS, "\ud800", "1e9", "0"))
                    }
                entry.size = len(data)
                try:
                    tar.addfile(entry, io.BytesIO(data))
                except (ValueError, OSError):  # of which this format has none
                    continue
    data = buffer.getvalue()
    if kind == "size":
        data = resized(chance, data)
    if kind == "bytes":
        data = chance.choice(BYTES)(chance, data)
    if kind == "sum":
        data = resealed(overwritten_header(chance, data))
    (folder / "set.tar").write_bytes(data)
    return kind


def overwritten_header(chance: random.Random, data: bytes) -> bytes:
    """Fields of one header, at a block's beginning."""
    blocks = [start for start in range(0, len(data), 512) if data[start + 257 : start + 262] == b"ustar"]
    if not blocks:
        return data
    start = chance.choice(blocks)
    place, width = chance.choice(
        ((0, 100), (100, 8), (124, 12), (136, 12), (156, 1), (157, 100), (345, 155), (386, 24), (482, 1))
    )
    return data[: start + place] + chance.randbytes(width) + data[start + place + width :]


def resized(chance: random.Random, data: bytes) -> bytes:
    blocks = [start for start in range(0, len(data), 512) if data[start + 257 : start + 262] == b"ustar"]
    if not blocks:
        return data
    start = chance.choice(blocks) + 124
    size = chance.choice((b"77777777777\0", b"\x80" + b"\xff" * 11, b"\xff" * 12, b"-0000000001\0", b"00000000000\0"))
    return resealed(data[:start] + size + data[start + 12 :])


def resealed(data: bytes) -> bytes:
    """With the sums of all headers as they have to be, so that what they say is believed."""
    changed = bytearray(data)
    for start in range(0, len(data) - 511, 512):
        if data[start + 257 : start + 262] == b"ustar":
            changed[start + 148 : start + 156] = b" " * 8
            changed[start + 148 : start + 156] = b"%06o\0 " % sum(changed[start : start + 512])
    return bytes(changed)


CONFIG = {
    "base": {"model": "base"},
    "encoder": {"model": "encoder"},
    "data": {"path": "set", "resolution": 16, "more": [{"path": "x", "repeats": 2.0}]},
    "train": {"output": "run", "steps": 10},
    "validation": {"prompts": ["a"], "every": 5},
}


def make_config(chance: random.Random, folder: Path) -> str:
    values, kind = (
        json.loads(json.dumps(CONFIG)),
        chance.choice(("value", "value", "section", "key", "bytes", "deep", "digits", "extends")),
    )
    section = chance.choice(list(values))
    value = odd_value(chance)
    if kind == "value":
        values[section][chance.choice(list(values[section]))] = value
    elif kind == "section":
        values[section] = value
    elif kind == "key":
        values[section][str(value)] = "x"
    elif kind == "extends":
        values["extends"] = chance.choice(
            (value, "config.toml", ".", "/dev/null", "/dev/zero", "pipe", "a\0b", "x" * 5000)
        )
    data = tomli_w.dumps(without_null(values)).encode(errors="surrogatepass")
    if kind == "deep":
        data += (
            b"\n[x]\ny = "
            + chance.choice((b"[" * 10_000, b"{a=" * 10_000, b"[" * 400 + b"]" * 400))
            + b"\n"
            + b"["
            + b"a." * 3000
            + b"a]\n"
        )
    if kind == "digits":
        data = data.replace(b"10", b"1" * DIGITS, 1)
    if kind == "bytes":
        data = chance.choice(BYTES)(chance, data)
    (folder / "config.toml").write_bytes(data)
    return kind


def without_null(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: without_null(one) for name, one in value.items() if one is not None}
    return [without_null(one) for one in value if one is not None] if isinstance(value, list) else value


ENTRIES = {
    "pictures": (read_picture, make_picture),
    "lists": (read_set, make_list),
    "shards": (read_set, make_shard),
    "configs": (lambda folder: read_config(folder / "config.toml"), make_config),
}


@pytest.mark.parametrize("name", ENTRIES)
def test_whatever_is_sent_is_read_or_is_one_message(name: str, numbers: range, seed: int) -> None:
    entry, make = ENTRIES[name]
    tally = fuzz(entry, make, numbers, seed)
    sys.stdout.write(f"{name}: {tally}\n")
    assert not tally.failures, str(tally)
