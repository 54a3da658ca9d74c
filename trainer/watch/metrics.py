"""How like their references, and how true to their text, drawn pictures are: CLIP-I, CLIP-T and DINO similarity.

By encoders other than the one the adapter reads: that one is what the adapter learnt to please.
"""

# B pictures or texts, D embedding width

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from ipadapter_core.errors import MismatchError

from ..config import ValidationConfig
from ..hub import ModelNotFoundError
from ..models.encoder_files import resolve_folder
from ..readers.reader import ReferenceReader
from .sampling import SampleGrid, text_label

CLIPSCORE_FACTOR = 2.5  # arXiv 2104.08718, section 3
_CLIP_CLASSES = ("CLIPModel", "SiglipModel", "Siglip2Model")
_DINO_CLASSES = ("Dinov2Model", "Dinov2WithRegistersModel", "DINOv3ViTModel")
_FILES_ALONE = {"local_files_only": True, "trust_remote_code": False}  # else transformers asks whether to run code
_BATCH = 16
_ROUNDING, _TINY = 0.02, 1e-4  # relative and absolute difference of one set of weights in two precisions


@dataclass(frozen=True, eq=False)
class Evaluator:
    """An encoder of transformers with its own preprocessing; `embed` is what it does to pixels."""

    model: Any
    processor: Any
    embed: Callable[..., Any]
    device: torch.device

    @torch.no_grad()
    def images(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Unit embeddings (B, D): CLIP's projected ones, DINO's class token."""
        parts = []
        for start in range(0, len(pictures), _BATCH):
            pixels = self.processor(images=list(pictures[start : start + _BATCH]), return_tensors="pt").pixel_values
            parts.append(_unit(self.embed(pixel_values=pixels.to(self.device, self.model.dtype))))
        return torch.cat(parts)

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Unit embeddings (B, D) of a CLIP; longer texts are cut."""
        length = self.model.config.text_config.max_position_embeddings
        tokens = self.processor(
            text=list(texts), padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        )
        return _unit(self.model.get_text_features(**tokens.to(self.device)))


@dataclass(frozen=True, eq=False)
class Judge:
    """Rates sample grids; what has no encoder is left out."""

    clip: Evaluator | None
    dino: Evaluator | None

    def rate(self, grid: SampleGrid) -> dict[str, Any]:
        """`{"strengths": {"0.5": {name: mean over the rows}}}`, as a "samples" record of metrics.jsonl has it; where
        pictures are drawn with several texts, also `"prompts"` with the same for the rows of each.

        Names: clip_i and dino, cosines of pictures and their references; clip_t, cosine with the prompt, or with the
        reference's caption where that is empty (as in arXiv 2308.06721, section 4.2), and clip_t_scaled, CLIPScore;
        clip_i_uplift and dino_uplift, what a strength adds to strength 0.
        """
        columns = [list(pictures) for pictures in zip(*grid.rows, strict=True)]
        measured: list[dict[str, Tensor]] = [{} for _ in columns]  # of each row
        references = [reference.picture for reference in grid.references]
        texts = [reference.prompt or reference.caption for reference in grid.references]
        has_text = torch.tensor([bool(text) for text in texts])
        for name, evaluator in (("clip_i", self.clip), ("dino", self.dino)):
            if evaluator is None:
                continue
            wanted = evaluator.images(references)
            described = evaluator.texts(texts) if name == "clip_i" and has_text.any() else None
            for values, pictures in zip(measured, columns, strict=True):
                given = evaluator.images(pictures)
                values[name] = _cosines(given, wanted)
                if described is not None:
                    values["clip_t"] = _cosines(given, described)
        everyone = torch.ones_like(has_text)
        rated: dict[str, Any] = {"strengths": _means(measured, grid.strengths, everyone, has_text)}
        if grid.prompts:
            prompts = [reference.prompt for reference in grid.references]
            rated["prompts"] = {
                text_label(prompt): _means(
                    measured, grid.strengths, torch.tensor([each == prompt for each in prompts]), has_text
                )
                for prompt in grid.prompts
            }
        return rated


def load_judge(config: ValidationConfig, training: ReferenceReader, device: torch.device) -> Judge | None:
    """The evaluation encoders of a config; None if it names none.

    Raises:
        ModelNotFoundError: no such folder or hub repository.
        MismatchError: not a CLIP or SigLIP with its text half, not a DINO, or the encoder the adapter reads.
    """
    clip, dino = (
        None if model is None else _load(model, key, classes, training, device)
        for model, key, classes in (
            (config.clip_model, "validation.clip_model", _CLIP_CLASSES),
            (config.dino_model, "validation.dino_model", _DINO_CLASSES),
        )
    )
    return Judge(clip, dino) if clip or dino else None


def _load(model: str, key: str, classes: tuple[str, ...], training: ReferenceReader, device: torch.device) -> Evaluator:
    folder = resolve_folder(model, key)
    is_dino = classes is _DINO_CLASSES
    network, processor = _open(folder, key, is_dino=is_dino)
    if type(network).__name__ not in classes:
        raise MismatchError(
            f"{key} = {model!r}, which is a {type(network).__name__}",
            expected=f"one of {', '.join(classes)}",
            action=f"set {key} to such a model, or remove it",
        )
    if any(holds_weights_of(network, model) for model in training.models.values()):
        raise MismatchError(
            f"{key} = {model!r}, which is the encoder the adapter reads",
            expected="another encoder: to its own one an adapter looks better than it is",
            action=f"set {key} to one of another size or training, or remove it",
        )
    network.to(device).eval().requires_grad_(False)
    return Evaluator(network, processor, network if is_dino else network.get_image_features, device)


def _open(folder: Path, key: str, *, is_dino: bool) -> tuple[Any, Any]:
    processor_class = transformers.AutoImageProcessor if is_dino else transformers.AutoProcessor
    try:
        network = transformers.AutoModel.from_pretrained(folder, **_FILES_ALONE, use_safetensors=True)
        return network, processor_class.from_pretrained(folder, **_FILES_ALONE)
    except (OSError, ValueError, KeyError) as error:
        raise ModelNotFoundError(
            f"{key}: transformers cannot load {folder} ({(str(error).splitlines() or [''])[0].rstrip('.')})",
            expected="a folder with config.json, safetensors, preprocessor_config.json and, for CLIP, the tokenizer",
            action="copy the folder again, or choose another model",
        ) from error


def holds_weights_of(network: nn.Module, encoder: nn.Module) -> bool:
    """Whether the vision half of a network has the weights of an encoder, in whatever precision and folder."""
    ours, theirs = (
        {name.removeprefix("vision_model."): tensor for name, tensor in module.state_dict().items()}
        for module in (network, encoder)
    )
    shared = [name for name in theirs if name in ours and ours[name].shape == theirs[name].shape]
    return any("patch_embedding" in name for name in shared) and all(
        torch.allclose(_some(ours[name]), _some(theirs[name]), rtol=_ROUNDING, atol=_TINY) for name in shared
    )


def _some(tensor: Tensor) -> Tensor:
    return tensor.flatten()[:64].float().cpu()


def _means(
    measured: Sequence[dict[str, Tensor]], strengths: Sequence[float], chosen: Tensor, has_text: Tensor
) -> dict[str, dict[str, float]]:
    """Of the chosen rows at each strength; clip_t of those that have a text, if one does."""
    rated: list[dict[str, float]] = []
    for values in measured:
        rows = {name: cosines[chosen & has_text if name == "clip_t" else chosen] for name, cosines in values.items()}
        means = {name: float(cosines.mean()) for name, cosines in rows.items() if len(cosines)}
        if "clip_t" in means:
            means["clip_t_scaled"] = CLIPSCORE_FACTOR * max(0.0, means["clip_t"])
        rated.append(means)
    _add_uplift(rated, strengths)
    return {f"{strength:g}": means for strength, means in zip(strengths, rated, strict=True)}


def _add_uplift(rated: Sequence[dict[str, float]], strengths: Sequence[float]) -> None:
    if 0 not in strengths:
        return
    ground = dict(rated[list(strengths).index(0)])
    for values, strength in zip(rated, strengths, strict=True):
        if strength:
            values |= {f"{name}_uplift": values[name] - ground[name] for name in ("clip_i", "dino") if name in ground}


def _unit(output: Any) -> Tensor:
    """transformers 5 wraps what 4 gave bare."""
    return functional.normalize((output if isinstance(output, Tensor) else output.pooler_output).float(), dim=-1)


def _cosines(one: Tensor, other: Tensor) -> Tensor:
    """Of pairs of unit vectors (B, D): (B,), on the CPU."""
    return (one * other).sum(dim=-1).cpu()
