"""Opening adapter files, and finding the image encoder each was trained with."""

import hashlib
import logging
import re
import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import comfy.utils

from ..ipadapter_core.encoder.choice import check_encoder, choose_encoder, encoder_need
from ..ipadapter_core.encoder.known import (
    FILE_KIND,
    PE_CORE,
    WEIGHTS,
    EncoderSpec,
    describe_encoder_folder,
    read_encoder_file,
    read_encoder_folder,
)
from ..ipadapter_core.encoder.siglip import can_build_siglip
from ..ipadapter_core.errors import IPAdapterError, MismatchError, UnreadableFileError
from ..ipadapter_core.file.container import SAFETENSORS_SUFFIXES, FileIdentity, file_identity
from ..ipadapter_core.file.published import USUAL_ADAPTER, way_to
from ..ipadapter_core.file.spec import AdapterSpec
from ..ipadapter_core.network.adapter import load_adapter, read_spec
from . import paths
from .encoding.encoder import VisionEncoder, comfyui_loads, load_encoder_file
from .encoding.encoder_folder import load_encoder_folder, load_pe_encoder, load_siglip_encoder
from .sockets import WEIGHT_OPERATIONS, LoadedAdapter

logger = logging.getLogger(__name__)

_SHARD = re.compile(r"-\d{5}-of-\d{5}\.")  # in the name of a part of a file


def open_adapter(
    adapter_file: str, image_encoder: str, encoder_resolution: int = 0, folder: str = paths.ADAPTERS
) -> LoadedAdapter:
    """Load a file of models/ipadapter, and an encoder: by its name, the one that fits (`auto`), or `none`.

    Args:
        encoder_resolution: side of what the encoder reads in pixels; 0 is what the adapter states, or the encoder's
            own.
        folder: the file lies in, as ComfyUI knows it.

    Raises:
        IPAdapterError: a file that is no adapter we know, or no encoder that fits it.
    """
    path = paths.adapter_path(adapter_file, folder)
    identity = hashlib.blake2b(repr(file_identity(path)).encode(), digest_size=8).hexdigest()
    network = load_adapter(path, WEIGHT_OPERATIONS, can_map=not comfy.utils.DISABLE_MMAP)
    if encoder_resolution:
        hint = replace(network.spec.encoder, image_size=encoder_resolution)
        network.spec = replace(network.spec, encoder=hint)
    wants_encoder = image_encoder != paths.NONE and network.spec.reads_pictures
    encoder = _load_encoder(network.spec, image_encoder).at(network.spec.encoder.image_size) if wants_encoder else None
    return LoadedAdapter(name=adapter_file, adapter_id=identity, network=network, encoder=encoder)


def describe(adapter: LoadedAdapter) -> str:
    """What a file is, for the node's face: kind, tokens, layers, encoder."""
    spec = adapter.spec
    tokens = "one token per image patch" if spec.num_tokens is None else f"{spec.num_tokens} tokens"
    encoder = "none loaded"
    if adapter.encoder:
        at = f", at {adapter.encoder.pixel_format.size} pixels" if adapter.encoder.origin else ""
        encoder = f"{adapter.encoder.name}: {adapter.encoder.spec.name}{at}"
    lora = "\nLoRA: in the file, for Apply FaceID LoRA" if adapter.network.lora else ""
    return (
        f"{spec.family}\n{tokens}, {spec.num_sites} attention layers of {spec.base}\n"
        f"encoder needed: {encoder_need(spec)}\nencoder: {encoder}{lora}"
    )


def encoder_choices() -> list[str]:
    """What may be chosen as image encoder. A file of a transformers folder is, if ComfyUI loads it alone as well."""
    folders = paths.encoder_folders()
    files = [name for name in paths.encoder_files() if not _folder_for(name, folders)]
    return [paths.AUTO, paths.NONE, *folders, *files]


def knows_encoder(choice: str) -> bool:
    """Whether a choice of image encoder can be understood, offered or not."""
    return choice in (paths.AUTO, paths.NONE, *paths.encoder_folders(), *paths.encoder_files())


def check_files(adapter_file: str | None, image_encoder: str | None) -> None:
    """What can be said of the files before anything is loaded: they are there, and a safetensors adapter is one.

    Args:
        adapter_file, image_encoder: None if not known yet, as with a linked input.

    Raises:
        IPAdapterError: one that cannot be used, as `open_adapter` has it.
    """
    if adapter_file is not None:
        if not paths.adapter_files():
            raise UnreadableFileError(
                f"no adapter at all in {' or '.join(paths.adapter_roots())}",
                expected="the file of an IP-Adapter made for the model",
                action=f"put one there, such as {USUAL_ADAPTER} for SD1.5, then press R and choose it",
                more=way_to(USUAL_ADAPTER),
            )
        path = paths.adapter_path(adapter_file)
        if path.suffix.lower() in SAFETENSORS_SUFFIXES:
            spec_of_header(path, file_identity(path))
    if image_encoder is not None and not knows_encoder(image_encoder):
        paths.encoder_file_path(image_encoder)


@lru_cache(maxsize=512)
def spec_of_header(path: Path, _identity: FileIdentity) -> AdapterSpec:
    """As `read_spec`, once for a file as it is now."""
    return read_spec(path)


def _load_encoder(spec: AdapterSpec, choice: str) -> VisionEncoder:
    paths.check_name(choice, f"models/{paths.ENCODERS}")
    folders = paths.encoder_folders()
    if choice == paths.AUTO:
        found, left_out = _found_encoders(folders)
        choice = choose_encoder(spec, found, paths.encoder_roots(), left_out)
    name = choice if choice in folders else _folder_for(choice, folders) or choice
    if name in folders:
        check_encoder(read_encoder_folder(folders[name]), spec)
        return _shared(folders[name], load_encoder_folder)
    path = paths.encoder_file_path(name)
    load: Callable[[Path], VisionEncoder] = load_encoder_file
    if found_spec := _file_spec(path, file_identity(path, FILE_KIND)):
        check_encoder(found_spec, spec)
        loader = _file_loader(found_spec)
        if loader is None:
            raise MismatchError(
                f"{name} is {found_spec.name}, a size that ComfyUI's single-file loader does not know",
                expected="a usual CLIP, SigLIP or DINO encoder, or a transformers folder",
                action=f"make a folder in models/clip_vision with this file as {WEIGHTS} and the encoder's config.json, "
                "and choose that folder",
            )
        load = loader
    encoder = _shared(path, load)
    check_encoder(encoder.spec, spec)
    return encoder


def _file_loader(spec: EncoderSpec) -> Callable[[Path], VisionEncoder] | None:
    """What loads a single file of an encoder: ComfyUI, else transformers or timm; None if it needs a folder."""
    if comfyui_loads(spec):
        return load_encoder_file
    if spec.kind == PE_CORE:
        return load_pe_encoder
    return load_siglip_encoder if can_build_siglip(spec) else None


def _folder_for(name: str, folders: Mapping[str, Path]) -> str | None:
    """The folder to take in place of a file inside it that ComfyUI cannot load alone, such as a shard."""
    inside = [folder for folder in folders if Path(name).is_relative_to(folder)]
    if not inside or name not in paths.encoder_files():
        return None
    folder = max(inside, key=len)
    try:
        if Path(name).suffix.lower() in SAFETENSORS_SUFFIXES:
            path = paths.encoder_file_path(name)
            spec = _file_spec(path, file_identity(path, FILE_KIND))
        else:  # a pickle, which is not read for this
            spec = None if _SHARD.search(name) else describe_encoder_folder(folders[folder])
    except UnreadableFileError:
        spec = None
    return None if spec is not None and _file_loader(spec) else folder


# Two adapters that need one encoder share it, and with it the cached features; nobody keeps it alive but they.
_in_use: "weakref.WeakValueDictionary[object, VisionEncoder]" = weakref.WeakValueDictionary()


def _shared(path: Path, load: Callable[[Path], VisionEncoder]) -> VisionEncoder:
    key = paths.fingerprint(paths.weight_files(path))
    encoder = _in_use.get(key)
    if encoder is None:
        encoder = _in_use[key] = load(path)
    return encoder


def _found_encoders(folders: Mapping[str, Path]) -> tuple[dict[str, EncoderSpec], dict[str, str]]:
    """Every encoder `auto` may take, files first; and what else lies there, with the reason why it does not.

    What is broken or cannot be read is left out with a warning; a folder stands for the files in it.
    """
    by_folder: dict[str, EncoderSpec] = {}
    left_out: dict[str, str] = {}
    for name, folder in folders.items():
        try:
            by_folder[name] = read_encoder_folder(folder)
        except IPAdapterError as error:
            logger.warning("Image encoder folder %s is left out. %s", name, error)
            left_out[name] = error.found
    by_file: dict[str, EncoderSpec] = {}
    for name in paths.encoder_files():
        if any(Path(name).is_relative_to(folder) for folder in by_folder):
            continue
        try:
            path = paths.encoder_file_path(name)
            is_pickle = path.suffix.lower() not in SAFETENSORS_SUFFIXES
            spec = None if is_pickle else _file_spec(path, file_identity(path, FILE_KIND))
        except UnreadableFileError as error:
            logger.warning("Image encoder %s is left out. %s", name, error)
            left_out[name] = error.found
            continue
        if spec is not None and _file_loader(spec):
            by_file[name] = spec
        elif is_pickle:
            left_out[name] = f"a pickle, which '{paths.AUTO}' does not open"
        elif spec is not None:
            left_out[name] = f"{spec.name}, which does not load from a single file"
    return by_file | by_folder, left_out


@lru_cache(maxsize=512)
def _file_spec(path: Path, _identity: FileIdentity) -> EncoderSpec | None:
    """As `read_encoder_file`. The path itself, as what it links to may have no suffix."""
    return read_encoder_file(path, is_whole=True)
