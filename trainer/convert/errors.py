"""What can be wrong with a file that is to be converted."""

from ipadapter_core.errors import IPAdapterError


class ConvertError(IPAdapterError):
    """A file that holds no adapter, or not all of it."""
