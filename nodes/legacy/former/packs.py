"""What the nodes of packs for FLUX, SD3.5 and Anima share: where their files lie, and the one way from a picture to a model."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import folder_paths
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

from ....ipadapter_core.file.container import ADAPTER_SUFFIXES
from ... import paths
from ...arrivals import KINDS, Kind, checker
from ...encoding.pictures import choose, encode_image
from ...loading import open_adapter
from ...patching.application import ApplySettings, apply_adapter
from ...sockets import IPAAdapter, LoadedAdapter

# A pack's own folder of adapters, by the key it had in ComfyUI: where it is below ComfyUI's models.
FOLDERS = {"ipadapter-flux": ("ipadapter-flux",), "xlabs_ipadapters": ("xlabs", "ipadapters")}
SIGLIP = "google/siglip-so400m-patch14-384"
STRETCH = "stretch"  # how transformers' processor of SigLIP makes a square
UNREAD = ("clip_vision", "provider", "auto_download")  # the encoder is found, and ComfyUI says what runs where


def checked_for(*sockets: tuple[Any, str]) -> Callable[[Any], Any]:
    """The check of what arrives, for nodes with sockets of their own.

    Args:
        sockets: each carries a `LoadedAdapter`; behind it the title of the loader to connect.
    """
    read = KINDS[IPAAdapter.io_type].read
    kinds = {socket.io_type: Kind(read, "an adapter", f"connect {title}") for socket, title in sockets}
    return checker(KINDS | kinds, UNREAD)


def adapter_input(name: str, folder: str = paths.ADAPTERS) -> io.Input:
    """A file of the pack's own folder, or of models/ipadapter."""
    return io.Combo.Input(
        name,
        options=sorted({file for key in _folders(folder) for file in _files(key)}),
        tooltip="The adapter, in models/ipadapter or where the pack kept it. Its kind is read from its tensors.",
    )


def provider_input(*options: str, optional: bool = False) -> io.Input:
    """Of onnxruntime, which runs nothing here."""
    return _unread("provider", options, "ComfyUI decides what runs where", optional)


def siglip_input(*, optional: bool = False) -> io.Input:
    """The name of a repository."""
    return _unread("clip_vision", (SIGLIP,), "the encoder is found in models/clip_vision", optional)


def _unread(name: str, options: Sequence[str], why: str, optional: bool) -> io.Input:
    """A widget that has lost its meaning."""
    return io.Combo.Input(
        name,
        options=list(options),
        default=options[0],
        optional=optional,
        tooltip=f"Without effect: {why}. Neutral: any.",
    )


def open_file(name: str, folder: str = paths.ADAPTERS, encoder: str = paths.AUTO) -> LoadedAdapter:
    """An adapter of the pack's own folder if it lies there, else of models/ipadapter. Errors as `open_adapter`."""
    where = next(
        (key for key in _folders(folder) if folder_paths.get_full_path(key, paths.inside(name))), paths.ADAPTERS
    )
    return open_adapter(name, encoder, folder=where)


def fingerprint(name: str | None, folder: str = paths.ADAPTERS, encoder: str | None = paths.AUTO) -> str:
    """Changes when the adapter's file or the encoder's does."""
    files: list[Path] = []
    for key in _folders(folder):
        files += paths.model_candidates(key, _files(key) if name is None else [name])
    return paths.fingerprint([*files, *paths.encoder_candidates(encoder)])


def apply_picture(
    model: ModelPatcher,
    adapter: LoadedAdapter,
    image: Tensor,
    settings: ApplySettings,
    *,
    crop: str | None = None,
    negative_image: Tensor | None = None,
    size: int | None = None,
) -> ModelPatcher:
    """Encode a reference and apply it, as Apply IP-Adapter from Image does.

    Args:
        crop, negative_image: as `encode_image`.
        size: side in pixels of what the encoder reads; None is the loader's.
    """
    encoder = choose(adapter)
    encoder = encoder if size is None else encoder.at(size)
    tokens = encode_image(adapter, encoder, image, crop=crop, negative_image=negative_image)
    return apply_adapter(model, adapter, tokens, settings)


def _folders(folder: str) -> list[str]:
    """Folders to look in, the pack's own first; it is one without the pack, too."""
    if folder in FOLDERS and folder not in folder_paths.folder_names_and_paths:
        place = Path(folder_paths.models_dir, *FOLDERS[folder])
        if not place.is_dir():
            return [paths.ADAPTERS]
        folder_paths.add_model_folder_path(folder, str(place))
    return list(dict.fromkeys((folder, paths.ADAPTERS)))


def _files(key: str) -> list[str]:
    return [name for name in folder_paths.get_filename_list(key) if name.endswith(ADAPTER_SUFFIXES)]


def start_end_percent(step: float) -> list[io.Input]:
    """The part of the sampling in which the image acts."""
    return [
        io.Float.Input(
            name,
            default=default,
            min=0.0,
            max=1.0,
            step=step,
            tooltip=f"Where in the sampling the image {verb} to act, from 0 (start) to 1 (end). Neutral: {default:g}.",
        )
        for name, default, verb in (("start_percent", 0.0, "begins"), ("end_percent", 1.0, "ceases"))
    ]
