"""What `encoder.model` may name: a folder in transformers' layout or a single file, here or on the hub."""

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path

import transformers

from ipadapter_core.encoder.folder import (
    VisionFolder,
    file_pixel_format,
    load_siglip_file,
    load_vision_folder,
    read_pixel_format,
)
from ipadapter_core.encoder.known import (
    PE_CORE,
    WEIGHTS,
    EncoderSpec,
    read_encoder_file,
    read_encoder_folder,
    vision_config,
)
from ipadapter_core.encoder.pe import load_pe_file
from ipadapter_core.encoder.pixels import PixelFormat
from ipadapter_core.encoder.siglip import can_build_siglip
from ipadapter_core.errors import MismatchError
from ipadapter_core.file.container import ADAPTER_SUFFIXES, read_json

from ..hub import HubPlace, find_file, find_folder
from ..optimizer import MissingPackageError

_NEEDED_FILES = ["*.json", "model*.safetensors", "*.txt"]  # repositories hold the same weights for open_clip as well
_FORMS = (
    "a folder with config.json and safetensors, or a hub id such as laion/CLIP-ViT-H-14-laion2B-s32B-b79K or "
    "h94/IP-Adapter/models/image_encoder; of PE-Core and SigLIP a single file as well"
)


@dataclass(frozen=True)
class EncoderFiles:
    """Where an image encoder lies.

    Attributes:
        path: a folder with config.json, or a file of PE-Core or SigLIP.
        spec: what it is, by its config or the file's header.
    """

    path: Path
    spec: EncoderSpec

    def check_packages(self) -> None:
        """Raises MissingPackageError for PE-Core without timm."""
        if self.spec.kind == PE_CORE and importlib.util.find_spec("timm") is None:
            raise MissingPackageError(
                f"{self.path.name}, a PE-Core, without the package timm, which builds it",
                expected="timm",
                action="pip install timm, or set encoder.model to another encoder",
            )

    def load(self) -> VisionFolder:
        """Errors as `check_packages`, `load_vision_folder`, `load_siglip_file` and `load_pe_file`."""
        if self.path.is_dir():
            return load_vision_folder(self.path, transformers)
        if self.spec.kind != PE_CORE:
            return load_siglip_file(self.path, transformers)
        self.check_packages()
        import timm  # optional, and slow to import

        return load_pe_file(self.path, timm)

    def pixel_format(self) -> PixelFormat:
        """What its pictures look like, from a folder without its weights. Errors as `read_pixel_format`."""
        if not self.path.is_dir():
            return file_pixel_format(self.spec)
        values = dict(vision_config(self.path))
        settings = transformers.AutoConfig.for_model(str(values.pop("model_type")), **values)
        return read_pixel_format(self.path, settings)


def find_encoder(model: str, key: str) -> EncoderFiles:
    """What a setting names.

    Raises:
        ModelNotFoundError: nothing here, and nothing on the hub; names the setting.
        UnreadableFileError: a folder or file that is damaged, or none of an encoder.
        MismatchError: a single file of an encoder that is read from a folder alone.
    """
    place = HubPlace.of(model)
    if os.path.isfile(model) or (place is not None and Path(place.inside).suffix in ADAPTER_SUFFIXES):
        return _of_file(find_file(model, key, _FORMS), model, key)
    folder = resolve_folder(model, key)
    if _is_timms(folder):
        return _of_file(folder / WEIGHTS, model, key)
    return EncoderFiles(folder, read_encoder_folder(folder))


def resolve_folder(model: str, key: str) -> Path:
    """A local folder as it is, one of the hub by way of the hub's cache.

    Raises:
        ModelNotFoundError: neither; names the config key.
    """
    return find_folder(model, key, _NEEDED_FILES, _FORMS)


def _of_file(path: Path, model: str, key: str) -> EncoderFiles:
    spec = read_encoder_file(path, is_whole=True)
    if spec is None or not (spec.kind == PE_CORE or can_build_siglip(spec)):
        raise MismatchError(
            f"{key} = {model!r}, a single file of {'no encoder that is known' if spec is None else spec.name}",
            expected=_FORMS,
            action=f"name a folder that holds the file as {WEIGHTS} and the encoder's config.json beside it",
        )
    return EncoderFiles(path, spec)


def _is_timms(folder: Path) -> bool:
    """Whether a config names a model of timm, as its repositories on the hub do."""
    path = folder / "config.json"
    if not path.is_file():
        return False
    config = read_json(path, "encoder config")
    return isinstance(config, dict) and "architecture" in config and "model_type" not in config
