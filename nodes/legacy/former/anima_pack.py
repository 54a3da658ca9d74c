"""The nodes of ComfyUI-Anima_IP-Adapter (LuciferTC9527), under their own ids."""

import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

from ....ipadapter_core.errors import BadInputError
from ...patching.application import ApplySettings
from ...sockets import LoadedAdapter
from .. import schema
from . import packs

PACK = "ComfyUI-Anima_IP-Adapter"
Socket = io.Custom("ANIMA_IP_ADAPTER")  # LoadedAdapter
_LOADER = "Anima IP-Adapter Loader (SigLIP2)"
_LAST = -1  # of siglip_layer
_GRAY = 0.5
_checked = packs.checked_for((Socket, _LOADER))


class AnimaIPAdapterLoader(io.ComfyNode):
    """Load an adapter for Anima."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema.legacy_schema(
            "AnimaIPAdapterLoader",
            _LOADER,
            "Anima/IP-Adapter",
            "Loads an adapter for Anima, and the image encoder it needs.",
            native="Load IP-Adapter",
            saved_with=PACK,
            inputs=[
                packs.adapter_input("ip_adapter_name"),
                io.Boolean.Input(
                    "auto_download",
                    default=False,
                    tooltip="Without effect: nothing is fetched from the network. Neutral: any.",
                ),
            ],
            outputs=[Socket.Output(display_name="ip_adapter", tooltip="The adapter with its encoder.")],
        )

    @classmethod
    def fingerprint_inputs(cls, ip_adapter_name: str | None, auto_download: bool | None) -> str:
        return packs.fingerprint(ip_adapter_name)

    @classmethod
    @_checked
    def execute(cls, ip_adapter_name: str, auto_download: bool) -> io.NodeOutput:
        return io.NodeOutput(packs.open_file(ip_adapter_name))


class AnimaIPAdapterApply(io.ComfyNode):
    """Steer Anima with a picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema.legacy_schema(
            "AnimaIPAdapterApply",
            "Anima IP-Adapter Apply (SigLIP2)",
            "Anima/IP-Adapter",
            "Steers Anima with a reference image.",
            native="Apply IP-Adapter from Image",
            saved_with=PACK,
            inputs=[
                io.Model.Input("model", tooltip="The model to steer: Anima."),
                Socket.Input("ip_adapter", tooltip=f"The adapter, from {_LOADER}."),
                schema.image("ref_image"),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=2.0,
                    step=0.05,
                    tooltip="How strongly the image acts; no unit. Neutral: 0, the model is unchanged.",
                ),
                io.Int.Input(
                    "ref_image_size",
                    default=512,
                    min=224,
                    max=2048,
                    step=16,
                    tooltip="Side in pixels of the square the encoder reads. Neutral: 512, as trained.",
                ),
                io.Int.Input(
                    "siglip_layer",
                    default=_LAST,
                    min=_LAST,
                    max=24,
                    tooltip="Neutral: -1. The layer the adapter reads is known from its file; others are refused.",
                ),
                io.Float.Input(
                    "ip_cfg_scale",
                    default=4.0,
                    min=1.0,
                    max=10.0,
                    step=0.05,
                    tooltip="1: the negative side gets the image too. Above 1: it gets none, and the sampler's cfg counts.",
                ),
                io.Boolean.Input(
                    "ip_cfg_separate", default=False, tooltip="Neutral: off. A scale of its own is not here."
                ),
                io.Boolean.Input(
                    "gray_null",
                    default=False,
                    tooltip="On: a gray picture stands for no image. Neutral: off, what the file has for it.",
                ),
                io.Boolean.Input(
                    "use_lora", default=True, tooltip="Off: without the LoRA in the adapter's file. Neutral: on."
                ),
            ],
            outputs=[io.Model.Output(display_name="model", tooltip="The patched model.")],
        )

    @classmethod
    @_checked
    def execute(
        cls,
        model: ModelPatcher,
        ip_adapter: LoadedAdapter,
        ref_image: Tensor,
        strength: float,
        ref_image_size: int,
        siglip_layer: int,
        ip_cfg_scale: float,
        ip_cfg_separate: bool,
        gray_null: bool,
        use_lora: bool,
    ) -> io.NodeOutput:
        if siglip_layer != _LAST or ip_cfg_separate:
            raise BadInputError(
                f"ip_cfg_separate {'on' if ip_cfg_separate else 'off'} and siglip_layer {siglip_layer}",
                expected=f"ip_cfg_separate off and siglip_layer {_LAST}: the sampler's cfg scales text and image together, and the "
                "layer is read from the adapter's file",
                action="set them so",
            )
        negative = None
        if ip_cfg_scale == 1:
            negative = ref_image
        elif gray_null:
            negative = torch.full((1, ref_image_size, ref_image_size, 3), _GRAY)
        settings = ApplySettings(strength, with_lora=use_lora)
        return io.NodeOutput(
            packs.apply_picture(model, ip_adapter, ref_image, settings, negative_image=negative, size=ref_image_size)
        )


NODES: tuple[type[io.ComfyNode], ...] = (AnimaIPAdapterLoader, AnimaIPAdapterApply)
