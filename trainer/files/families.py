"""Which kinds of adapters the trainer works with: those that read pictures."""

from ipadapter_core.errors import UnsupportedFamilyError
from ipadapter_core.file.spec import AdapterSpec


def check_family(spec: AdapterSpec) -> None:
    """Raises UnsupportedFamilyError for an adapter that reads faces."""
    if spec.face is not None:
        raise UnsupportedFamilyError(
            f"this is {spec.family}, which reads faces: the nodes run it, the trainer does not",
            expected="an adapter that reads pictures",
            action="use it in ComfyUI with Load IP-Adapter and Encode Face for IP-Adapter",
        )
