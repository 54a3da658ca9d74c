"""The unified loaders: a preset and a model in, the adapter and image encoder that belong to them out."""

import logging
from functools import lru_cache
from pathlib import Path
from typing import Any

import folder_paths
from comfy.model_base import SDXL, SDXLRefiner
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ...ipadapter_core.backbone.registry import discover_sites
from ...ipadapter_core.backbone.sites import Sites
from ...ipadapter_core.errors import IPAdapterError, MismatchError, UnreadableFileError, UnsupportedFamilyError, one_of
from ...ipadapter_core.file.container import FileIdentity, file_identity
from ...ipadapter_core.file.spec import AdapterSpec, Projection
from ...ipadapter_core.legacy.catalog import Wanted, choose_adapter
from ...ipadapter_core.network.adapter import read_spec
from ...ipadapter_core.network.fit import check_sites
from .. import paths
from ..loading import open_adapter
from .arrivals import checked
from .payload import make_pipeline
from .schema import IPAdapterSocket, ipadapter, legacy_schema

logger = logging.getLogger(__name__)

_LINEAR, _RESAMPLER, _MLP = Projection.LINEAR, Projection.RESAMPLER, Projection.MLP
SD15_NAME, SDXL_NAME = "SD1.5", "SDXL"
# What a preset means for each base.
PRESETS: dict[str, dict[str, Wanted]] = {
    "LIGHT - SD1.5 only (low strength)": {
        SD15_NAME: Wanted(_LINEAR, 1024, ("sd15.light.v11", "sd15.light"), "ip-adapter_sd15_light_v11.bin")
    },
    "STANDARD (medium strength)": {
        SD15_NAME: Wanted(_LINEAR, 1024, ("ip.adapter.sd15",), "ip-adapter_sd15.safetensors"),
        SDXL_NAME: Wanted(_LINEAR, 1024, ("ip.adapter.sdxl.vit.h",), "ip-adapter_sdxl_vit-h.safetensors"),
    },
    "VIT-G (medium strength)": {
        SD15_NAME: Wanted(_LINEAR, 1280, ("sd15.vit.g",), "ip-adapter_sd15_vit-G.safetensors"),
        SDXL_NAME: Wanted(_LINEAR, 1280, ("ip.adapter.sdxl",), "ip-adapter_sdxl.safetensors"),
    },
    "PLUS (high strength)": {
        SD15_NAME: Wanted(_RESAMPLER, 1280, ("ip.adapter.plus.sd15",), "ip-adapter-plus_sd15.safetensors"),
        SDXL_NAME: Wanted(_RESAMPLER, 1280, ("plus.sdxl.vit.h",), "ip-adapter-plus_sdxl_vit-h.safetensors"),
    },
    "PLUS FACE (portraits)": {
        SD15_NAME: Wanted(_RESAMPLER, 1280, ("plus.face.sd15",), "ip-adapter-plus-face_sd15.safetensors"),
        SDXL_NAME: Wanted(_RESAMPLER, 1280, ("plus.face.sdxl.vit.h",), "ip-adapter-plus-face_sdxl_vit-h.safetensors"),
    },
    "FULL FACE - SD1.5 only (portraits stronger)": {
        SD15_NAME: Wanted(_MLP, 1280, ("full.face.sd15",), "ip-adapter-full-face_sd15.safetensors")
    },
}
COMMUNITY_PRESETS: dict[str, dict[str, Wanted]] = {
    "Composition": {
        SD15_NAME: Wanted(_RESAMPLER, 1280, ("plus.composition.sd15",), "ip_plus_composition_sd15.safetensors"),
        SDXL_NAME: Wanted(_RESAMPLER, 1280, ("plus.composition.sdxl",), "ip_plus_composition_sdxl.safetensors"),
    },
    "Kolors": {
        SDXL_NAME: Wanted(
            _RESAMPLER,
            1024,
            ("ip_adapter_plus_general", "kolors.ip.adapter.plus"),
            "Kolors-IP-Adapter-Plus.bin",
        )
    },
}
_KNOWN = [kind for presets in (PRESETS, COMMUNITY_PRESETS) for bases in presets.values() for kind in bases.values()]


def find_adapter(model: ModelPatcher, preset: str, presets: dict[str, dict[str, Wanted]]) -> str:
    """The file of models/ipadapter that a preset means for this model.

    Raises:
        MismatchError: the preset is not for such a model, or there is no such file.
    """
    sites = discover_sites(model.get_model_object("diffusion_model"))
    wanted = one_of(preset, presets, "preset").get(base_of(model))
    if wanted is None:
        raise MismatchError(
            f"the preset {preset} with a model of the {sites.family} kind",
            expected=f"a model of the {' or '.join(presets[preset])} kind",
            action="choose another preset, or load such a model",
        )
    specs, found = found_adapters()
    fitting = {name: spec for name, spec in specs.items() if _was_made_for(spec, sites)}
    known = [*_KNOWN, *(kind for bases in presets.values() for kind in bases.values())]
    folder = folder_paths.get_folder_paths(paths.ADAPTERS)[0]
    return choose_adapter(wanted, fitting, known, preset=f"'{preset}'", found=found, folder=folder)


def base_of(model: ModelPatcher) -> str:
    """What IPAdapter_plus takes a model for: SDXL or, all else, SD1.5."""
    return SDXL_NAME if isinstance(model.model, SDXL | SDXLRefiner) else SD15_NAME


def found_adapters() -> tuple[dict[str, AdapterSpec], str]:
    """Every adapter of models/ipadapter by name, and all files there in words."""
    specs: dict[str, AdapterSpec] = {}
    words: list[str] = []
    for name in paths.adapter_files():
        try:
            path = paths.adapter_path(name)
            spec = _spec_of(path, file_identity(path))
        except UnreadableFileError as error:
            logger.warning("Adapter file %s is left out. %s", name, error)
            words.append(f"{name} (which cannot be read)")
            continue
        if spec is not None:
            specs[name] = spec
        words.append(f"{name} ({spec.family if spec else 'no adapter that runs here'})")
    return specs, "; ".join(words)


@lru_cache(maxsize=512)
def _spec_of(path: Path, _identity: FileIdentity) -> AdapterSpec | None:
    """The spec of a file; None if it is no adapter that runs here. Raises UnreadableFileError."""
    try:
        return read_spec(path)
    except UnreadableFileError:
        raise
    except IPAdapterError as error:
        logger.debug("%s is left out. %s", path, error)
        return None


def _was_made_for(spec: AdapterSpec, sites: Sites) -> bool:
    try:
        check_sites(spec, sites)
    except (MismatchError, UnsupportedFamilyError):  # the second: of a kind of base model that is not known here
        return False
    return True


def _schema(node_id: str, display_name: str, category: str, presets: dict[str, Any], description: str) -> io.Schema:
    return legacy_schema(
        node_id,
        display_name,
        category,
        description,
        native="Load IP-Adapter",
        inputs=[
            io.Model.Input("model", tooltip="The model the adapter is for; it goes out as it came in."),
            io.Combo.Input(
                "preset",
                options=list(presets),
                tooltip="The kind of adapter. Files are told apart by their tensors, by name only where those are alike.",
            ),
            ipadapter(optional=True),
        ],
        outputs=[
            io.Model.Output(display_name="model", tooltip="The model, unchanged."),
            IPAdapterSocket.Output(display_name="ipadapter", tooltip="The adapter with its image encoder."),
        ],
    )


def loader_fingerprint() -> str:
    """Changes when a file that could be chosen does."""
    return paths.fingerprint([*paths.adapter_candidates(None), *paths.encoder_candidates(paths.AUTO)])


class IPAdapterUnifiedLoader(io.ComfyNode):
    """Load the published adapter a preset names."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema(
            "IPAdapterUnifiedLoader",
            "IPAdapter Unified Loader",
            "ipadapter",
            PRESETS,
            "Loads the adapter a preset names, and the image encoder it needs.",
        )

    @classmethod
    def fingerprint_inputs(cls, **_inputs: Any) -> str:
        return loader_fingerprint()

    @classmethod
    @checked
    def execute(cls, model: ModelPatcher, preset: str, ipadapter: object | None = None) -> io.NodeOutput:
        name = find_adapter(model, preset, PRESETS)
        return io.NodeOutput(model, make_pipeline(open_adapter(name, paths.AUTO)))


class IPAdapterUnifiedLoaderCommunity(io.ComfyNode):
    """Load a well-known adapter of others."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema(
            "IPAdapterUnifiedLoaderCommunity",
            "IPAdapter Unified Loader Community",
            "ipadapter/loaders",
            COMMUNITY_PRESETS,
            "Loads the composition adapter or Kolors' adapter, and the image encoder it needs.",
        )

    @classmethod
    def fingerprint_inputs(cls, **_inputs: Any) -> str:
        return loader_fingerprint()

    @classmethod
    @checked
    def execute(cls, model: ModelPatcher, preset: str, ipadapter: object | None = None) -> io.NodeOutput:
        name = find_adapter(model, preset, COMMUNITY_PRESETS)
        return io.NodeOutput(model, make_pipeline(open_adapter(name, paths.AUTO)))


NODES: tuple[type[io.ComfyNode], ...] = (IPAdapterUnifiedLoader, IPAdapterUnifiedLoaderCommunity)
