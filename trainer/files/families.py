"""Which kinds of adapters the trainer works with: those that read pictures, for some kinds of base models."""

from ipadapter_core.errors import UnsupportedFamilyError
from ipadapter_core.file.spec import USUAL_BACKBONE, AdapterSpec

_TRAINED = (
    USUAL_BACKBONE,
    "SD3",
)


def check_family(spec: AdapterSpec) -> None:
    """Raises UnsupportedFamilyError for an adapter that reads faces, or of another kind of base model."""
    if spec.face is not None:
        raise UnsupportedFamilyError(
            f"this is {spec.family}, which reads faces: the nodes run it, the trainer does not",
            expected="an adapter that reads pictures",
            action="use it in ComfyUI with Load IP-Adapter and Encode Face for IP-Adapter",
        )
    if spec.backbone not in _TRAINED:
        raise UnsupportedFamilyError(
            f"this is {spec.family}, an adapter for {spec.base}: the nodes run it, the trainer does not",
            expected="an adapter for SD1.5, SD2.x, SDXL, Kolors or SD3.5",
            action="use it in ComfyUI with Load IP-Adapter",
        )
