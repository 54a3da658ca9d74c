"""The nodes of ComfyUI-InstantX-IPAdapter-SD3 (Slickytail), under their own ids.

Until December 2024 the loader had the name of an encoder, and the picture went into the apply node; later it was encoded by
ComfyUI's own node. Both forms are here.
"""

import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

from ....ipadapter_core.errors import BadInputError, MismatchError
from ....ipadapter_core.file.spec import Feature
from ...patching.application import ApplySettings, apply_adapter, fitting_sites
from ...sockets import LoadedAdapter
from .. import schema
from . import packs

PACK = "ComfyUI-InstantX-IPAdapter-SD3"
Socket = io.Custom("IP_ADAPTER_SD3_INSTANTX")  # LoadedAdapter
_LOADER = "Load IPAdapter SD3 Model"
_checked = packs.checked_for((Socket, _LOADER))


class IPAdapterSD3Loader(io.ComfyNode):
    """Load an InstantX adapter for SD3.5-Large."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema.legacy_schema(
            "IPAdapterSD3Loader",
            _LOADER,
            "InstantXNodes",
            "Loads an adapter for SD3.5-Large, and the image encoder it needs.",
            native="Load IP-Adapter",
            saved_with=PACK,
            inputs=[
                packs.adapter_input("ipadapter"),
                packs.siglip_input(optional=True),
                packs.provider_input("cuda", "cpu", "mps", optional=True),
            ],
            outputs=[Socket.Output(display_name="ipadapter", tooltip="The adapter with its encoder.")],
        )

    @classmethod
    def validate_inputs(cls, clip_vision: str | None = None, provider: str | None = None) -> bool:
        return True  # in place of ComfyUI's own check: in later files the second value is the provider

    @classmethod
    def fingerprint_inputs(
        cls, ipadapter: str | None, clip_vision: str | None = None, provider: str | None = None
    ) -> str:
        return packs.fingerprint(ipadapter)

    @classmethod
    @_checked
    def execute(cls, ipadapter: str, clip_vision: str | None = None, provider: str | None = None) -> io.NodeOutput:
        return io.NodeOutput(packs.open_file(ipadapter))


class ApplyIPAdapterSD3(io.ComfyNode):
    """Steer SD3.5-Large with a picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema.legacy_schema(
            "ApplyIPAdapterSD3",
            "Apply IPAdapter SD3 Model",
            "InstantXNodes",
            "Steers SD3.5-Large with a reference image.",
            native="Apply IP-Adapter from Image",
            saved_with=PACK,
            inputs=[
                io.Model.Input("model", tooltip="The model to steer: SD3.5-Large."),
                Socket.Input("ipadapter", tooltip=f"The adapter, from {_LOADER}."),
                schema.weight(),
                *packs.start_end_percent(0.01),
                io.Image.Input(
                    "image", optional=True, tooltip="Reference image; unconnected where image_embed is connected."
                ),
                io.ClipVisionOutput.Input(
                    "image_embed",
                    optional=True,
                    tooltip="The reference, encoded by CLIP Vision Encode; unconnected where image is connected.",
                ),
            ],
            outputs=[schema.model_output()],
        )

    @classmethod
    @_checked
    def execute(
        cls,
        model: ModelPatcher,
        ipadapter: LoadedAdapter,
        weight: float,
        start_percent: float,
        end_percent: float,
        image: Tensor | None = None,
        image_embed: object | None = None,
    ) -> io.NodeOutput:
        settings = ApplySettings(weight, start_percent, end_percent)
        if image_embed is None and image is not None:
            return io.NodeOutput(packs.apply_picture(model, ipadapter, image, settings, crop=packs.STRETCH))
        fitting_sites(model, ipadapter)
        if ipadapter.spec.feature is not Feature.HIDDEN_STATES:
            raise MismatchError(
                f"{ipadapter.name}, which reads another output of its encoder than image_embed has",
                expected="an adapter for SD3.5, where image_embed is connected",
                action="connect the picture to image",
            )
        features = getattr(image_embed, "penultimate_hidden_states", None)
        width = ipadapter.spec.image_dim
        if not isinstance(features, Tensor) or features.ndim != 3 or features.shape[-1] != width:
            raise BadInputError(
                "no reference" if image_embed is None else "a reference encoded by another image encoder",
                expected=f"hidden states that are {width} wide, of SigLIP so400m-384",
                action="connect the picture to image, or CLIP Vision Encode with that encoder to image_embed",
            )
        tokens = ipadapter.project(features, torch.zeros_like(features[:1]))
        return io.NodeOutput(apply_adapter(model, ipadapter, tokens, settings))


NODES: tuple[type[io.ComfyNode], ...] = (IPAdapterSD3Loader, ApplyIPAdapterSD3)
