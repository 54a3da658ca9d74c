"""The pictures that samples are drawn from: held-out records, each with its own reference."""

from collections.abc import Iterator
from contextlib import suppress
from itertools import islice

from ..data.pictures import BrokenPictureError, decode
from ..data.records import Records
from ..draws import sample_generator
from ..models.base import Base
from ..models.image_encoder import ImageEncoder
from .sampling import Reference, encode_reference


def held_out_references(
    records: Records, base: Base, encoder: ImageEncoder, *, count: int, prompt: str | None, seed: int
) -> list[Reference]:
    """The first `count` records that can be read; prompt None is each one's own caption."""

    def readable() -> Iterator[Reference]:
        for index in range(len(records)):
            record = records[index]
            with suppress(BrokenPictureError):
                picture = decode(records.reference(index, sample_generator(seed, index, "group")))
                yield encode_reference(
                    picture, record.key, base=base, encoder=encoder, caption=record.caption, prompt=prompt
                )

    return list(islice(readable(), count))
