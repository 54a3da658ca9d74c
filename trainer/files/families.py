"""Which kinds of adapters the trainer works with: those of UNets."""

from ipadapter_core.errors import UnsupportedFamilyError
from ipadapter_core.file.spec import USUAL_BACKBONE, AdapterSpec


def check_family(spec: AdapterSpec) -> None:
    """Raises UnsupportedFamilyError for a kind that it does not train, or of another kind of base model."""
    if spec.face is not None and (spec.face.hidden_dim is None or spec.face.token_dim != spec.cross_attention_dim):
        raise UnsupportedFamilyError(
            f"this is {spec.family}: the nodes run it, the trainer does not",
            expected="a FaceID, FaceID-Plus or portrait adapter for SD1.5 or SDXL",
            action="use it in ComfyUI with Load IP-Adapter and Encode Face for IP-Adapter",
        )
    if spec.backbone != USUAL_BACKBONE:
        raise UnsupportedFamilyError(
            f"this is {spec.family}, an adapter for {spec.base}: the nodes run it, the trainer does not",
            expected="an adapter for SD1.5, SD2.x, SDXL or Kolors",
            action="use it in ComfyUI with Load IP-Adapter",
        )
