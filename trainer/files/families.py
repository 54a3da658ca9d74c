"""Which kinds of adapters the trainer works with: those that it trains."""

from ipadapter_core.errors import UnsupportedFamilyError
from ipadapter_core.file.names import LUCIFER, PE, PE_GATED, USUAL_LAYOUT, XLABS
from ipadapter_core.file.sd3 import INSTANTX_SD3
from ipadapter_core.file.spec import USUAL_BACKBONE, AdapterSpec
from ipadapter_core.file.studio import STUDIO
from ipadapter_core.network.adapter import IPAdapter

_TRAINED = {  # kind of base model, and layout: in words
    (USUAL_BACKBONE, USUAL_LAYOUT): "SD1.5, SD2.x, SDXL or Kolors",
    ("FLUX", XLABS): "FLUX.1 (XLabs' kind)",
    ("SD3", INSTANTX_SD3): "SD3.5 (InstantX's kind)",
    ("Z-Image", STUDIO): "Z-Image",
    ("Qwen-Image", STUDIO): "Qwen-Image",
    ("Anima", PE): "Anima (anima_lora's kinds)",
    ("Anima", PE_GATED): "Anima (anima_lora's kinds)",
    ("Anima", LUCIFER): "Anima (LuciferTC's kind)",
}


def check_model_lora(name: str, adapter: IPAdapter) -> None:
    """Raises UnsupportedFamilyError for an adapter whose file changes the model as well: it would act without that."""
    if adapter.model_lora:
        raise UnsupportedFamilyError(
            f"{name}, {adapter.spec.family} with a LoRA for the model itself: the nodes run both, the trainer neither",
            expected="an adapter without one",
            action="use it in ComfyUI with Load IP-Adapter",
        )


def check_family(spec: AdapterSpec) -> None:
    """Raises UnsupportedFamilyError for a kind that it does not train, or of another kind of base model."""
    if spec.face is not None and (spec.face.hidden_dim is None or spec.face.token_dim != spec.cross_attention_dim):
        raise UnsupportedFamilyError(
            f"this is {spec.family}: the nodes run it, the trainer does not",
            expected="a FaceID, FaceID-Plus or portrait adapter for SD1.5 or SDXL",
            action="use it in ComfyUI with Load IP-Adapter and Encode Face for IP-Adapter",
        )
    if (spec.backbone, spec.layout) not in _TRAINED:
        raise UnsupportedFamilyError(
            f"this is {spec.family}, an adapter for {spec.base}: the nodes run it, the trainer does not",
            expected=f"an adapter for {' or '.join(dict.fromkeys(_TRAINED.values()))}",
            action="use it in ComfyUI with Load IP-Adapter",
        )
