"""`validation.references`: the user's own pictures that samples are drawn from."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from ..config import DataSetConfig
from .pictures import BrokenPictureError, Picture, decode
from .records import DataError, Records
from .tables import LISTS, load_folder, load_list

T = TypeVar("T")


def own_references(path: str, *, may_leave: bool, speaks: bool = False) -> Records:
    """The pictures of a folder in the order of their paths, or of a list in its order; a caption is "" if there is none.

    Args:
        may_leave: a list may name pictures outside its folder, as `data.allow_outside` says.
        speaks: say what of a folder is left out.

    Raises:
        DataError: there is no such place, or no picture in it.
    """
    place, data = Path(path), DataSetConfig(path=path, caption="", allow_outside=may_leave)
    found = f"validation.references = {path!r}"
    try:
        if place.is_dir():
            return load_folder(data, speaks=speaks)
        if place.is_file() and place.suffix.lower() in LISTS:
            return load_list(data, place, LISTS[place.suffix.lower()])
    except DataError as error:
        raise _wrong(f"{found}: {error.found}") from error
    raise _wrong(f"{found}, which is no folder and no list")


def check_references(path: str, *, may_leave: bool) -> int:
    """How many there are, all of which can be read to the last pixel.

    Raises:
        DataError: one cannot; or as `own_references`.
    """
    records = own_references(path, may_leave=may_leave, speaks=True)
    for number in range(len(records)):
        picture = records[number].image
        usable(picture, partial(decode, picture))
    return len(records)


def usable(picture: Picture, read: Callable[[], T]) -> T:
    """What is read of a picture to draw from: each was chosen, so none may be missing.

    Raises:
        DataError: it is a broken picture.
    """
    try:
        return read()
    except BrokenPictureError as error:
        raise DataError(
            f"validation.references: {error.name} cannot be used ({error.reason})",
            expected="pictures to draw from",
            action="repair it, or take it out",
        ) from error


def _wrong(found: str) -> DataError:
    return DataError(
        found,
        expected=f"a folder with pictures, or a list of them ({', '.join(LISTS)})",
        action="correct validation.references, or remove it to draw from held-out pictures",
    )
