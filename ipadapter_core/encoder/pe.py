"""PE-Core (Perception Encoder of Meta) from a single file, by timm; with Meta's names or timm's own.

Adapters read its last hidden state: every token, the class token first where there is one, after the last norm.
"""

from pathlib import Path
from types import ModuleType

import torch

from ..errors import UnreadableFileError
from ..file.container import read_tensors
from ..file.strangers import strangers
from .folder import VisionFolder, file_pixel_format
from .known import FILE_KIND, PICKLED_PREFIX, encoder_from_shapes

# timm's names, by width and layers
TIMM_NAMES = {
    (768, 12): "vit_pe_core_base_patch16_224",
    (1024, 24): "vit_pe_core_large_patch14_336",
    (1536, 50): "vit_pe_core_gigantic_patch14_448",
}


def load_pe_file(path: Path, timm: ModuleType) -> VisionFolder:
    """Load a PE-Core vision model, from a file of it or of the whole CLIP.

    Args:
        timm: the library.

    Raises:
        UnreadableFileError: tensors that are not those of a published size, or a timm that does not know it.
    """
    tensors = {
        name.removeprefix(PICKLED_PREFIX): tensor for name, tensor in read_tensors(path, FILE_KIND).tensors.items()
    }
    spec = encoder_from_shapes({name: tuple(tensor.shape) for name, tensor in tensors.items()})
    assert spec is not None  # it was recognised by these shapes
    name = TIMM_NAMES.get((spec.width, spec.num_layers))
    if name is None or spec.image_size is None:
        raise _bad_weights(path, f"a {spec.name}, none of {', '.join(TIMM_NAMES.values())}")
    if not timm.is_model(name):
        raise UnreadableFileError(
            f"{path.name}, which timm {timm.__version__} does not know",
            expected=f"a timm that has {name}",
            action="update it with 'pip install -U timm', and restart",
        )
    with strangers(lambda why: _bad_weights(path, why)):
        model: torch.nn.Module = timm.create_model(name, pretrained=False)
        state_dict = timm.models.eva.checkpoint_filter_fn(tensors, model)
        missing, _ = model.load_state_dict(state_dict, strict=False, assign=True)
    if missing:
        raise _bad_weights(path, f"missing {', '.join(sorted(missing)[:3])}")
    return VisionFolder(model.eval().requires_grad_(False), spec, file_pixel_format(spec))


def _bad_weights(path: Path, why: str) -> UnreadableFileError:
    return UnreadableFileError(
        f"{path.name}, whose weights timm cannot load ({why})",
        expected="a complete PE-Core model",
        action="download it again, or choose another encoder",
    )
