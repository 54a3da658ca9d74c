"""What samples are drawn from: held-out records with their references, or the user's own pictures, each with each text."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import islice

from ..backbones.backbone import Backbone
from ..config import Config
from ..data.identities import ready_identity
from ..data.own_references import own_references, usable
from ..data.pictures import BrokenPictureError, Picture, decode
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

    def encoded(source: Picture, name: str, caption: str) -> Reference:
        picture, prompt = decode(source), validation.texts[0]
        ready = ready_identity(source)
        return encode_reference(picture, name, base=base, reader=reader, caption=caption, prompt=prompt, identity=ready)

    if validation.references is not None:
        own = _own(own_references(validation.references, may_leave=config.data.allow_outside))
        drawn = [
            usable(source, partial(encoded, source, name, caption)) for source, name, caption in islice(own, count)
        ]
    else:
        wanted = validation.samples if count is None else count
        drawn = list(islice(_that_can_be_read(_held_out(held_out, config.train.seed), encoded), wanted))
    references = [each for reference in drawn for each in with_texts(reference, validation.prompts, base)]
    return Sampler(base, SampleSettings.of(config), encode_prompt(base, "")), references


def with_texts(reference: Reference, prompts: tuple[str, ...], base: Backbone) -> list[Reference]:
    """A reference with each of several texts; as it is if there are none."""
    others = (replace(reference, prompt=prompt, text=encode_prompt(base, prompt)) for prompt in prompts[1:])
    return [reference, *others]


def _own(records: Records) -> Iterator[tuple[Picture, str, str]]:
    for record in (records[index] for index in range(len(records))):
        yield record.image, record.key, record.caption


def _held_out(records: Records, seed: int) -> Iterator[tuple[Picture, str, str]]:
    """Reference, name, caption."""
    for index in range(len(records)):
        record = records[index]
        yield records.reference(index, sample_generator(seed, index, "group")), record.key, record.caption


def _that_can_be_read(
    pictures: Iterable[tuple[Picture, str, str]], encoded: Callable[[Picture, str, str], Reference]
) -> Iterator[Reference]:
    for source, name, caption in pictures:
        with suppress(BrokenPictureError):
            yield encoded(source, name, caption)
