"""The LoRA that a FaceID file carries, as weight patches on a model."""

import comfy.lora
from comfy.model_patcher import ModelPatcher

from ...ipadapter_core.backbone.registry import discover_sites, original
from ...ipadapter_core.backbone.unet_lora import lora_weights
from ...ipadapter_core.errors import MismatchError, with_article
from ...ipadapter_core.network.fit import base_of, check_sites
from ..sockets import LoadedAdapter

_SIDES = ("up", "down")


def apply_face_lora(model: ModelPatcher, adapter: LoadedAdapter, strength: float) -> ModelPatcher:
    """A clone of the model with the adapter's own LoRA; the model itself at strength 0.

    Raises:
        MismatchError: the adapter has no LoRA, or was made for another base.
    """
    lora = adapter.network.lora
    if not lora:
        raise MismatchError(
            f"{adapter.name}, {with_article(adapter.spec.family)} adapter without a LoRA in its file",
            expected="a FaceID file that carries its LoRA, as the published .bin files do",
            action="remove this node: an adapter that reads pictures needs no LoRA"
            if adapter.spec.face is None
            else "load the LoRA's own file with Load LoRA; portrait and Kolors have none and need none",
        )
    diffusion_model = original(model.get_model_object("diffusion_model"))
    sites = discover_sites(diffusion_model, base_of(adapter.spec))
    check_sites(adapter.spec, sites)
    if strength == 0:
        return model
    changes = lora_weights(lora, diffusion_model, sites)
    tensors = {
        f"{name}.lora_{side}.weight": getattr(change, side) for name, change in changes.items() for side in _SIDES
    }
    patches = comfy.lora.load_lora(tensors, {name: f"diffusion_model.{name}" for name in changes})
    clone = model.clone()
    clone.add_patches(patches, strength)
    return clone
