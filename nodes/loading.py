"""Opening adapter files, and finding the image encoder each was trained with."""

import hashlib
import logging
import weakref
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from ..ipadapter_core.encoder.known import (
    EncoderSpec,
    check_encoder,
    choose_encoder,
    encoder_need,
    read_encoder_file,
    read_encoder_folder,
)
from ..ipadapter_core.errors import IPAdapterError, MismatchError, UnreadableFileError
from ..ipadapter_core.file.container import SAFETENSORS_SUFFIXES
from ..ipadapter_core.file.spec import AdapterSpec
from ..ipadapter_core.network.adapter import load_adapter
from . import paths
from .encoding.encoder import VisionEncoder, comfyui_loads, load_encoder_file
from .encoding.encoder_folder import load_encoder_folder
from .sockets import WEIGHT_OPERATIONS, LoadedAdapter

logger = logging.getLogger(__name__)


def open_adapter(adapter_file: str, image_encoder: str) -> LoadedAdapter:
    """Load a file of models/ipadapter, and an encoder: by its name, the one that fits (`auto`), or `none`.

    Raises:
        IPAdapterError: a file that is no adapter we know, or no encoder that fits it.
    """
    path = paths.adapter_path(adapter_file)
    network = load_adapter(path, WEIGHT_OPERATIONS)
    wants_encoder = image_encoder != paths.NONE and network.spec.reads_pictures
    encoder = _load_encoder(network.spec, image_encoder) if wants_encoder else None
    identity = hashlib.blake2b(repr(paths.file_identity(path)).encode(), digest_size=8).hexdigest()
    return LoadedAdapter(name=adapter_file, adapter_id=identity, network=network, encoder=encoder)


def describe(adapter: LoadedAdapter) -> str:
    """What a file is, for the node's face: kind, tokens, layers, encoder."""
    spec = adapter.spec
    tokens = "one token per image patch" if spec.num_tokens is None else f"{spec.num_tokens} tokens"
    encoder = f"{adapter.encoder.name}: {adapter.encoder.spec.name}" if adapter.encoder else "none loaded"
    lora = "\nLoRA: in the file, for IPAApplyFaceLora" if adapter.network.lora else ""
    return (
        f"{spec.family}\n{tokens}, {spec.num_sites} attention layers of {spec.base}\n"
        f"encoder needed: {encoder_need(spec)}\nencoder: {encoder}{lora}"
    )


def _load_encoder(spec: AdapterSpec, choice: str) -> VisionEncoder:
    folders = paths.encoder_folders()
    name = choose_encoder(spec, _found_encoders(folders), paths.encoder_roots()) if choice == paths.AUTO else choice
    if name in folders:
        check_encoder(read_encoder_folder(folders[name]), spec)
        return _shared(folders[name], load_encoder_folder)
    path = paths.encoder_file_path(name)
    if path.suffix in SAFETENSORS_SUFFIXES and (found := _file_spec(*paths.file_identity(path))):
        check_encoder(found, spec)
        if not comfyui_loads(found):
            raise MismatchError(
                f"{name} is {found.name}, a size that ComfyUI's single-file loader does not know",
                expected="a usual CLIP, SigLIP or DINO encoder, or a transformers folder",
                action="put its config.json beside the safetensors file in a folder of models/clip_vision",
            )
    encoder = _shared(path, load_encoder_file)
    check_encoder(encoder.spec, spec)
    return encoder


# Two adapters that need one encoder share it, and with it the cached features; nobody keeps it alive but they.
_in_use: "weakref.WeakValueDictionary[object, VisionEncoder]" = weakref.WeakValueDictionary()


def _shared(path: Path, load: Callable[[Path], VisionEncoder]) -> VisionEncoder:
    key = tuple(paths.file_identity(file) for file in paths.weight_files(path))
    encoder = _in_use.get(key)
    if encoder is None:
        encoder = _in_use[key] = load(path)
    return encoder


def _found_encoders(folders: dict[str, Path]) -> dict[str, EncoderSpec]:
    """Every encoder `auto` may take, files first; broken or foreign files among them are left out with a warning."""
    found: dict[str, EncoderSpec] = {}
    for name in paths.encoder_files():
        path = paths.encoder_file_path(name)
        if path.suffix not in SAFETENSORS_SUFFIXES or f"{Path(name).parent.as_posix()}/" in folders:
            continue
        try:
            spec = _file_spec(*paths.file_identity(path))
        except UnreadableFileError as error:
            logger.warning("Image encoder %s is left out. %s", name, error)
            continue
        if spec is not None and comfyui_loads(spec):
            found[name] = spec
    for name, folder in folders.items():
        try:
            found[name] = read_encoder_folder(folder)
        except IPAdapterError as error:
            logger.warning("Image encoder folder %s is left out. %s", name, error)
    return found


@lru_cache(maxsize=512)
def _file_spec(path: str, _size: int, _changed: int) -> EncoderSpec | None:
    return read_encoder_file(Path(path))
