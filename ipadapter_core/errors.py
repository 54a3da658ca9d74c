"""Errors a user can act on: each says what was found, what was expected and what to do."""

from collections.abc import Mapping, Sequence
from typing import TypeVar, overload

Value = TypeVar("Value")
_SHOWN = 80  # characters
_SPOKEN_AS_VOWELS = (*"AEIOaeio", "SD", "XL")


class IPAdapterError(ValueError):
    """Base of every error meant for the user.

    Args:
        found: what is wrong, as a full clause without a final stop.
        expected: what would have been right.
        action: what the user can do about it.
        more: lines below, of what is copied rather than read: addresses, commands.
    """

    def __init__(self, found: str, *, expected: str, action: str, more: str = "") -> None:
        sentence = f"Found: {found}. Expected: {expected}. What to do: {action}."
        super().__init__(f"{sentence}\n{more}" if more else sentence)
        self.found = found


class UnreadableFileError(IPAdapterError):
    """The file is not a tensor file, is damaged, or may not be loaded safely."""


class UnknownCheckpointError(IPAdapterError):
    """The file holds tensors, but not those of any IP-Adapter this project knows."""


class UnsupportedFamilyError(IPAdapterError):
    """The file is recognised by name, but is of a kind that does not run here."""


class MismatchError(IPAdapterError):
    """Adapter, image encoder, tokens and model do not belong together."""


class BadInputError(IPAdapterError):
    """An image, mask, range or factor that cannot be used."""


def shown(text: str) -> str:
    """A text of strangers in a message: its beginning, with what cannot be printed spelled out."""
    beginning = text[:_SHOWN]
    return (beginning if beginning.isprintable() else repr(beginning)[1:-1]) + "…" * (len(text) > _SHOWN)


def with_article(name: str) -> str:
    """A name of a model or adapter with its "a" or "an", as it is spoken: an SDXL, an XLabs, an Anima, a FLUX."""
    return f"{'an' if name.startswith(_SPOKEN_AS_VOWELS) else 'a'} {name}"


@overload
def one_of(name: str, known: Mapping[str, Value], what: str) -> Value: ...
@overload
def one_of(name: str, known: Sequence[str], what: str) -> str: ...
def one_of(name: str, known: Mapping[str, object] | Sequence[str], what: str) -> object:
    """What a name stands for in a table; of a list of names, the name itself.

    Args:
        what: the name is of, for the message.

    Raises:
        BadInputError: an unknown name.
    """
    if name not in known:
        raise BadInputError(
            f"{what} '{shown(str(name))}'", expected=f"one of {', '.join(known)}", action="choose one of them"
        )
    return known[name] if isinstance(known, Mapping) else name
