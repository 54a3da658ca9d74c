"""What samples are drawn from: held-out records with their references, or the user's own pictures, each with each text."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import islice

from PIL import Image

from ..backbones.backbone import Backbone
from ..config import Config
from ..data.own_references import opened, own_references
from ..data.pictures import BrokenPictureError, decode
from ..data.records import Records
from ..draws import sample_generator
from ..readers.reader import ReferenceReader
from .sampling import Reference, Sampler, SampleSettings, encode_prompt, encode_reference


def open_drawing(
    config: Config, held_out: Records, base: Backbone, reader: ReferenceReader, *, count: int | None = None
) -> tuple[Sampler, list[Reference]]:
    """What draws as the validation section of a config says, and what is drawn: texts of one picture side by side.

    Args:
        count: pictures drawn from; all of `validation.references` or `validation.samples` held-out ones if None.

    Raises:
        DataError: one of `validation.references` cannot be read.
    """
    validation = config.validation
    if validation.references is not None:
        pictures = islice(_own(own_references(validation.references, may_leave=config.data.allow_outside)), count)
    else:
        pictures = islice(_held_out(held_out, config.train.seed), validation.samples if count is None else count)
    encoded = (
        encode_reference(picture, name, base=base, reader=reader, caption=caption, prompt=validation.texts[0])
        for picture, name, caption in pictures
    )
    references = [each for reference in encoded for each in with_texts(reference, validation.prompts, base)]
    return Sampler(base, SampleSettings.of(config), encode_prompt(base, "")), references


def with_texts(reference: Reference, prompts: tuple[str, ...], base: Backbone) -> list[Reference]:
    """A reference with each of several texts; as it is if there are none."""
    others = (replace(reference, prompt=prompt, text=encode_prompt(base, prompt)) for prompt in prompts[1:])
    return [reference, *others]


def _own(records: Records) -> Iterator[tuple[Image.Image, str, str]]:
    for record in (records[index] for index in range(len(records))):
        yield opened(record.image), record.key, record.caption


def _held_out(records: Records, seed: int) -> Iterator[tuple[Image.Image, str, str]]:
    """Those that can be read: reference, name, caption."""
    for index in range(len(records)):
        record = records[index]
        with suppress(BrokenPictureError):
            yield decode(records.reference(index, sample_generator(seed, index, "group"))), record.key, record.caption
