"""The LoRA that an adapter's file carries for the model, as weight patches of the model that the adapter is applied to."""

import comfy.lora
from comfy.model_patcher import ModelPatcher

from ...ipadapter_core.backbone.registry import original
from ...ipadapter_core.errors import MismatchError
from ...ipadapter_core.file.model_lora import lora_layers
from ..sockets import LoadedAdapter


def check_model_lora(model: ModelPatcher, adapter: LoadedAdapter) -> None:
    """Raises MismatchError if the model lacks a layer that the adapter's own LoRA changes, or has another size there."""
    modules = dict(original(model.get_model_object("diffusion_model")).named_modules())
    for layer, pair in lora_layers(adapter.network.model_lora).items():
        module, shape = modules.get(layer), (len(pair["up"]), pair["down"].shape[1])
        # a layer's own numbers: quantised weights have another shape
        if (getattr(module, "out_features", None), getattr(module, "in_features", None)) != shape:
            raise MismatchError(
                f"{adapter.name}, whose LoRA changes {layer}, {shape[0]} x {shape[1]}, which this model does not have so",
                expected="a LoRA and a model of the same base",
                action="load the model the adapter was made for",
            )


def add_model_lora(model: ModelPatcher, adapter: LoadedAdapter) -> None:
    """Patch the weights of a model, a clone made for the adapter: without it, ComfyUI takes them back."""
    layers = lora_layers(adapter.network.model_lora)
    if not layers:
        return
    tensors = {f"{layer}.lora_{side}.weight": tensor for layer, pair in layers.items() for side, tensor in pair.items()}
    names = {layer: f"diffusion_model.{layer}.weight" for layer in layers}
    model.add_patches(comfy.lora.load_lora(tensors, names))
