"""Image encoders that transformers and timm build, under ComfyUI's memory management."""

import importlib.util
from pathlib import Path

import comfy.model_management
import comfy.model_patcher
import comfy.utils
import torch
from torch import Tensor

from ...ipadapter_core.encoder.folder import VisionFolder, load_siglip_file, load_vision_folder
from ...ipadapter_core.encoder.pe import load_pe_file
from ...ipadapter_core.errors import IPAdapterError
from ..paths import fingerprint, weight_files
from .encoder import Reading, VisionEncoder


class EncoderMissingError(IPAdapterError):
    """An image encoder needs a library that is not installed."""


def load_encoder_folder(folder: Path) -> VisionEncoder:
    """Load a vision model in transformers layout. Errors as `load_vision_folder`."""
    identity = fingerprint(weight_files(folder))  # before they are read: what replaces them meanwhile is another
    import transformers  # slow to import, and needed for folders only

    return _managed(load_vision_folder(folder, transformers), f"{folder.name}/", identity)


def load_siglip_encoder(path: Path) -> VisionEncoder:
    """Load a single SigLIP file of a size that ComfyUI does not know. Errors as `load_siglip_file`."""
    identity = fingerprint([path])
    import transformers

    return _managed(load_siglip_file(path, transformers), path.name, identity)


def load_pe_encoder(path: Path) -> VisionEncoder:
    """Load a single PE-Core file.

    Raises:
        EncoderMissingError: timm is not installed.
        UnreadableFileError: as `load_pe_file`.
    """
    if importlib.util.find_spec("timm") is None:
        raise EncoderMissingError(
            f"{path.name} is PE-Core, and timm, which builds it, is not installed",
            expected="timm",
            action="install it in ComfyUI's Python with 'pip install timm', and restart",
        )
    identity = fingerprint([path])
    import timm

    return _managed(load_pe_file(path, timm), path.name, identity)


def _managed(vision: VisionFolder, name: str, identity: str) -> VisionEncoder:
    if comfy.utils.DISABLE_MMAP:  # transformers leaves the weights in the file, mapped into memory
        for tensor in (*vision.model.parameters(), *vision.model.buffers()):
            tensor.data = tensor.data.clone()
    device = comfy.model_management.text_encoder_device()
    if not comfy.model_management.should_use_fp16(device):
        vision.model.float()
    # Plain transformers layers cannot cast weights on use, so ComfyUI moves the model as a whole.
    # They also own a read-only `device`, which a ModelPatcher sets: hence the module around the model.
    patcher = comfy.model_patcher.ModelPatcher(
        torch.nn.ModuleDict({"vision": vision.model}),
        load_device=device,
        offload_device=comfy.model_management.text_encoder_offload_device(),
    )

    def run(pixels: Tensor, adapter: Reading) -> Tensor:
        return vision.features(pixels, adapter.feature, adapter.layer)

    return VisionEncoder(
        name=name,
        identity=identity,
        spec=vision.spec,
        pixel_format=vision.pixel_format,
        patcher=patcher,
        run=run,
    )
