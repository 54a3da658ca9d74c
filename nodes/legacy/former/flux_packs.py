"""The nodes of ComfyUI-IPAdapter-Flux (Shakker Labs) and of x-flux-comfyui (XLabs), under their own ids."""

import logging

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

from ... import paths
from ...loading import knows_encoder
from ...patching.application import ApplySettings
from ...sockets import LoadedAdapter
from .. import schema
from . import packs

logger = logging.getLogger(__name__)

SHAKKER, XLABS = "ComfyUI-IPAdapter-Flux", "x-flux-comfyui"
SHAKKER_FOLDER, XLABS_FOLDER = "ipadapter-flux", "xlabs_ipadapters"
ShakkerSocket = io.Custom("IP_ADAPTER_FLUX_INSTANTX")  # LoadedAdapter
XLabsSocket = io.Custom("IP_ADAPTER_FLUX")  # LoadedAdapter
_LOADERS = ("Load IPAdapter Flux Model", "Load Flux IPAdatpter")  # the second so spelt
_checked = packs.checked_for((ShakkerSocket, _LOADERS[0]), (XLabsSocket, _LOADERS[1]))


class IPAdapterFluxLoader(io.ComfyNode):
    """Load an InstantX adapter for FLUX."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema.legacy_schema(
            "IPAdapterFluxLoader",
            _LOADERS[0],
            "InstantXNodes",
            "Loads an adapter for FLUX.1, and the image encoder it needs.",
            native="Load IP-Adapter",
            saved_with=SHAKKER,
            inputs=[
                packs.adapter_input("ipadapter", SHAKKER_FOLDER),
                packs.siglip_input(),
                packs.provider_input("cuda", "cpu", "mps"),
            ],
            outputs=[ShakkerSocket.Output(display_name="ipadapterFlux", tooltip="The adapter with its encoder.")],
        )

    @classmethod
    def fingerprint_inputs(cls, ipadapter: str | None, clip_vision: str | None, provider: str | None) -> str:
        return packs.fingerprint(ipadapter, SHAKKER_FOLDER)

    @classmethod
    @_checked
    def execute(cls, ipadapter: str, clip_vision: str, provider: str) -> io.NodeOutput:
        return io.NodeOutput(packs.open_file(ipadapter, SHAKKER_FOLDER))


class ApplyIPAdapterFlux(io.ComfyNode):
    """Steer FLUX with a picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema.legacy_schema(
            "ApplyIPAdapterFlux",
            "Apply IPAdapter Flux Model",
            "InstantXNodes",
            "Steers FLUX.1 with a reference image.",
            native="Apply IP-Adapter from Image",
            saved_with=SHAKKER,
            inputs=[
                io.Model.Input("model", tooltip="The model to steer: FLUX.1 or Chroma."),
                ShakkerSocket.Input("ipadapter_flux", tooltip=f"The adapter, from {_LOADERS[0]}."),
                schema.image(),
                schema.weight(),
                *packs.start_end_percent(0.001),
            ],
            outputs=[schema.model_output()],
        )

    @classmethod
    @_checked
    def execute(
        cls,
        model: ModelPatcher,
        ipadapter_flux: LoadedAdapter,
        image: Tensor,
        weight: float,
        start_percent: float,
        end_percent: float,
    ) -> io.NodeOutput:
        settings = ApplySettings(weight, start_percent, end_percent)
        return io.NodeOutput(packs.apply_picture(model, ipadapter_flux, image, settings, crop=packs.STRETCH))


class LoadFluxIPAdapter(io.ComfyNode):
    """Load an XLabs adapter for FLUX."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema.legacy_schema(
            "LoadFluxIPAdapter",
            _LOADERS[1],
            "XLabsNodes",
            "Loads an adapter for FLUX.1, and its image encoder.",
            native="Load IP-Adapter",
            saved_with=XLABS,
            inputs=[
                packs.adapter_input("ipadatper", XLABS_FOLDER),
                io.Combo.Input(
                    "clip_vision",
                    options=paths.encoder_files(),
                    tooltip="A file of models/clip_vision with CLIP ViT-L/14; where it is not there, the encoder is found.",
                ),
                packs.provider_input("CPU", "GPU"),
            ],
            outputs=[XLabsSocket.Output(display_name="ipadapterFlux", tooltip="The adapter with its encoder.")],
        )

    @classmethod
    def validate_inputs(cls, clip_vision: str | None) -> bool:
        return True  # in place of ComfyUI's own check: a file that is not there any more is looked for

    @classmethod
    def fingerprint_inputs(cls, ipadatper: str | None, clip_vision: str | None, provider: str | None) -> str:
        return packs.fingerprint(ipadatper, XLABS_FOLDER)

    @classmethod
    @_checked
    def execute(cls, ipadatper: str, clip_vision: str, provider: str) -> io.NodeOutput:
        encoder = clip_vision if isinstance(clip_vision, str) and knows_encoder(clip_vision) else paths.AUTO
        if encoder != clip_vision:
            logger.warning("No %s in models/clip_vision: the image encoder that fits is taken.", clip_vision)
        return io.NodeOutput(packs.open_file(ipadatper, XLABS_FOLDER, encoder))


class ApplyFluxIPAdapter(io.ComfyNode):
    """Steer FLUX with a picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema.legacy_schema(
            "ApplyFluxIPAdapter",
            "Apply Flux IPAdapter",
            "XLabsNodes",
            "Steers FLUX.1 with a reference image.",
            native="Apply IP-Adapter from Image",
            saved_with=XLABS,
            inputs=[
                io.Model.Input("model", tooltip="The model to steer: FLUX.1 or Chroma."),
                XLabsSocket.Input("ip_adapter_flux", tooltip=f"The adapter, from {_LOADERS[1]}."),
                schema.image(),
                io.Float.Input(
                    "ip_scale",
                    default=0.93,
                    min=0.0,
                    max=1.0,
                    step=0.001,
                    tooltip="How strongly the image acts; no unit. Neutral: 0, the model is unchanged.",
                ),
            ],
            outputs=[schema.model_output()],
        )

    @classmethod
    @_checked
    def execute(
        cls, model: ModelPatcher, ip_adapter_flux: LoadedAdapter, image: Tensor, ip_scale: float
    ) -> io.NodeOutput:
        return io.NodeOutput(packs.apply_picture(model, ip_adapter_flux, image, ApplySettings(ip_scale)))


NODES: tuple[type[io.ComfyNode], ...] = (
    IPAdapterFluxLoader,
    ApplyIPAdapterFlux,
    LoadFluxIPAdapter,
    ApplyFluxIPAdapter,
)
