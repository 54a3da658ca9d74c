"""`IPAdapterUnifiedLoaderFaceID`: adapter, image encoder, face model and LoRA of a preset."""

import logging
import re
from collections.abc import Mapping
from typing import Any

import comfy.sd
import folder_paths
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ...ipadapter_core.errors import MismatchError, UnreadableFileError
from ...ipadapter_core.file.container import read_tensors
from ...ipadapter_core.file.published import way_to
from ...ipadapter_core.file.spec import Projection
from ...ipadapter_core.legacy.catalog import Wanted
from .. import paths
from ..encoding.face_model import PROVIDERS, USUAL_PACKS, load_face_model, pack_fingerprint
from ..loading import open_adapter
from ..patching.face_lora import apply_face_lora
from ..sockets import LoadedAdapter
from .arrivals import checked
from .payload import make_pipeline
from .schema import IPAdapterSocket, ipadapter, legacy_schema
from .unified import SD15_NAME, SDXL_NAME, base_of, find_adapter, loader_fingerprint

_IDENTITY, _PLUS, _RESAMPLER = Projection.IDENTITY, Projection.IDENTITY_AND_FACE, Projection.RESAMPLER
_ARCFACE, _VIT_H = 512, 1280
_LORAS, _LORA_KIND = "loras", "LoRA"
logger = logging.getLogger(__name__)
_FILE_NAMES = {SD15_NAME: "sd15", SDXL_NAME: "sdxl"}
FACE_PRESETS: dict[str, dict[str, Wanted]] = {
    "FACEID": {
        SD15_NAME: Wanted(_IDENTITY, _ARCFACE, ("faceid.sd15",), "ip-adapter-faceid_sd15.bin", 4),
        SDXL_NAME: Wanted(_IDENTITY, _ARCFACE, ("faceid.sdxl",), "ip-adapter-faceid_sdxl.bin", 4),
    },
    "FACEID PLUS - SD1.5 only": {
        SD15_NAME: Wanted(_PLUS, _VIT_H, ("faceid.plus.sd15",), "ip-adapter-faceid-plus_sd15.bin"),
    },
    "FACEID PLUS V2": {
        SD15_NAME: Wanted(_PLUS, _VIT_H, ("faceid.plusv2.sd15",), "ip-adapter-faceid-plusv2_sd15.bin"),
        SDXL_NAME: Wanted(_PLUS, _VIT_H, ("faceid.plusv2.sdxl",), "ip-adapter-faceid-plusv2_sdxl.bin"),
    },
    "FACEID PORTRAIT (style transfer)": {
        SD15_NAME: Wanted(
            _IDENTITY,
            _ARCFACE,
            ("portrait.v11.sd15", "portrait.sd15"),
            "ip-adapter-faceid-portrait-v11_sd15.bin",
            16,
        ),
        SDXL_NAME: Wanted(_IDENTITY, _ARCFACE, ("portrait.sdxl",), "ip-adapter-faceid-portrait_sdxl.bin", 16),
    },
    "FACEID PORTRAIT UNNORM - SDXL only (strong)": {
        SDXL_NAME: Wanted(
            _RESAMPLER, _ARCFACE, ("portrait.sdxl.unnorm",), "ip-adapter-faceid-portrait_sdxl_unnorm.bin"
        ),
    },
}
# Presets trained with a LoRA, and what its file is called besides the base.
LORA_NAMES = {
    "FACEID": "faceid",
    "FACEID PLUS - SD1.5 only": "faceid.plus",
    "FACEID PLUS V2": "faceid.plusv2",
}


class IPAdapterUnifiedLoaderFaceID(io.ComfyNode):
    """Load the FaceID adapter a preset names, with all it needs."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return legacy_schema(
            "IPAdapterUnifiedLoaderFaceID",
            "IPAdapter Unified Loader FaceID",
            "ipadapter/faceid",
            "Loads the FaceID adapter a preset names, its image encoder and face model, and applies its LoRA.",
            native="Load IP-Adapter, Load Face Model for IP-Adapter and Apply FaceID LoRA",
            inputs=[
                io.Model.Input("model", tooltip="The model the adapter is for."),
                io.Combo.Input(
                    "preset",
                    options=list(FACE_PRESETS),
                    default="FACEID",
                    tooltip="The kind of adapter. Files are told apart by their tensors, by name only where those are "
                    "alike.",
                ),
                io.Float.Input(
                    "lora_strength",
                    default=0.6,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="How strongly the LoRA acts; no unit. Neutral: 0, none is applied. Portrait has none.",
                ),
                io.Combo.Input(
                    "provider",
                    options=list(PROVIDERS),
                    default="CPU",
                    tooltip="Where faces are recognised; CPU where the other is not there.",
                ),
                ipadapter(optional=True),
            ],
            outputs=[
                io.Model.Output(display_name="MODEL", tooltip="The model with the LoRA."),
                IPAdapterSocket.Output(display_name="ipadapter", tooltip="The adapter with encoder and face model."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, **_inputs: Any) -> str:
        return loader_fingerprint() + pack_fingerprint(USUAL_PACKS[0]) + _lora_fingerprint()

    @classmethod
    @checked
    def execute(
        cls, model: ModelPatcher, preset: str, lora_strength: float, provider: str, ipadapter: object | None = None
    ) -> io.NodeOutput:
        name = find_adapter(model, preset, FACE_PRESETS)
        face_model = _same_face_model(ipadapter, provider) or load_face_model(USUAL_PACKS[0], provider).analysis
        adapter = open_adapter(name, paths.AUTO)
        if preset in LORA_NAMES and lora_strength:
            model = _with_lora(model, adapter, preset, lora_strength)
        return io.NodeOutput(model, make_pipeline(adapter, face_model=face_model, provider=provider))


def _same_face_model(pipeline: object, provider: str) -> object | None:
    """That of a loader before this one, if it runs in the same place."""
    part = pipeline.get("insightface") if isinstance(pipeline, Mapping) else None
    return part.get("model") if isinstance(part, Mapping) and part.get("provider") == provider else None


def _with_lora(model: ModelPatcher, adapter: LoadedAdapter, preset: str, strength: float) -> ModelPatcher:
    """From its own file, else from the adapter's."""
    base = base_of(model)
    for name in _lora_files(rf"{LORA_NAMES[preset]}.{_FILE_NAMES[base]}"):
        try:
            path = paths.model_path(_LORAS, name, _LORA_KIND)
            lora = read_tensors(path, _LORA_KIND).tensors
        except UnreadableFileError as error:
            logger.warning("LoRA file %s is left out. %s", name, error)
            continue
        patched, _ = comfy.sd.load_lora_for_models(model, None, lora, strength, 0)
        return patched
    if adapter.network.lora:
        return apply_face_lora(model, adapter, strength)
    example = FACE_PRESETS[preset][base].example.replace(".bin", "_lora.safetensors")
    raise MismatchError(
        f"no LoRA for the preset '{preset}': none in {adapter.name} itself, and no {example}",
        expected=f"{example} in {folder_paths.get_folder_paths(_LORAS)[0]}, or the published .bin, which carries it",
        action="put one of them there, or set lora_strength to 0",
        more=way_to(example),
    )


def _lora_files(pattern: str) -> list[str]:
    """Files of models/loras whose name ends in this pattern and `lora.safetensors`."""
    whole = rf"{pattern}.lora\.safetensors$"
    return [name for name in folder_paths.get_filename_list(_LORAS) if re.search(whole, name, re.IGNORECASE)]


def _lora_fingerprint() -> str:
    """Changes when a LoRA that a preset may take does."""
    names = _lora_files(rf"({'|'.join(LORA_NAMES.values())}).({'|'.join(_FILE_NAMES.values())})")
    return paths.fingerprint(paths.model_candidates(_LORAS, names))


NODES: tuple[type[io.ComfyNode], ...] = (IPAdapterUnifiedLoaderFaceID,)
