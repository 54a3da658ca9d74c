"""Errors a user can act on: each says what was found, what was expected and what to do."""


class IPAdapterError(ValueError):
    """Base of every error meant for the user.

    Args:
        found: what is wrong, as a full clause without a final stop.
        expected: what would have been right.
        action: what the user can do about it.
    """

    def __init__(self, found: str, *, expected: str, action: str) -> None:
        super().__init__(f"Found: {found}. Expected: {expected}. What to do: {action}.")
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
