"""What a file says about itself: how references are prepared, how it was trained, and the header metadata of both."""

import json
import platform
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from importlib import metadata
from typing import Any

from ipadapter_core.backbone.registry import find_backbone
from ipadapter_core.encoder.known import EncoderSpec
from ipadapter_core.encoder.pixels import PixelFormat
from ipadapter_core.errors import UnreadableFileError
from ipadapter_core.file.anima import published_metadata
from ipadapter_core.file.header import HASH_KEY
from ipadapter_core.file.json_text import parse_json
from ipadapter_core.file.names import LUCIFER, PE, PE_GATED, USUAL_LAYOUT, XLABS
from ipadapter_core.file.sd3 import INSTANTX_SD3
from ipadapter_core.file.spec import USUAL_BACKBONE, AdapterSpec

from ..config import AdapterConfig, Config
from ..hub import HubPlace

PREPROCESS_KEY, TRAINING_KEY, PORTABILITY_KEY = "ipadapter.preprocess", "ipadapter.training", "ipadapter.portability"
_MODEL_SPEC_VERSION = "1.0.0"  # github.com/Stability-AI/ModelSpec
_IMPLEMENTATIONS = {  # by layout: whose tensor names these are
    USUAL_LAYOUT: "https://github.com/tencent-ailab/IP-Adapter",
    XLABS: "https://github.com/XLabs-AI/x-flux",
    INSTANTX_SD3: "https://huggingface.co/InstantX/SD3.5-Large-IP-Adapter",
    PE: "https://github.com/sorryhyun/anima_lora",
    PE_GATED: "https://github.com/sorryhyun/anima_lora",
    LUCIFER: "https://huggingface.co/LuciferTC/Anima-IP-Adapter",
}
_ARCHITECTURES = {
    "SD1.5": "stable-diffusion-v1",
    "SDXL": "stable-diffusion-xl-v1-base",
    "FLUX.1": "flux-1-dev",
}
_SD2 = {"epsilon": "stable-diffusion-v2-512", "v_prediction": "stable-diffusion-v2-768-v"}
# of a config; what else has a slash is a place
_TEXTS = frozenset({"caption", "prompt", "prompts", "title", "author", "license"})
_HERE = frozenset({"output", "cache", "image_root", "reference_folder"})  # settings of places that no hub has
_ALL_BLOCKS = AdapterConfig().blocks
_PREDICTION_TYPES = {"epsilon": "epsilon", "v_prediction": "v"}


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """How a reference becomes the image encoder's input.

    Attributes:
        encoder_kind: "CLIP", "SigLIP", "DINOv2" …, as `EncoderSpec.kind`.
        crop: `center`, `pad` or `stretch`, as `ipadapter_core.encoder.pixels` means them.
        size: side in pixels.
        mean, std: per channel.
    """

    encoder_kind: str
    crop: str
    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @classmethod
    def of(cls, encoder: EncoderSpec, pixel_format: PixelFormat, crop: str) -> "Preprocess":
        return cls(
            encoder_kind=encoder.kind, crop=crop, size=pixel_format.size, mean=pixel_format.mean, std=pixel_format.std
        )


@dataclass(frozen=True, kw_only=True)
class ExportFacts:
    """What only whoever made an adapter knows about it.

    Attributes:
        title: name shown to people.
        preprocess: None where nobody knows (files converted from elsewhere).
        training: recipe, counts and versions; anything JSON holds.
        resolution: side of the training pictures in pixels.
        prediction_type: "epsilon", "v_prediction" or "flow".
        date: when the weights were made, as ISO 8601 says it.
    """

    title: str
    preprocess: Preprocess | None
    training: Mapping[str, object]
    author: str | None = None
    license: str | None = None
    description: str | None = None
    resolution: int | None = None
    prediction_type: str | None = None
    date: str | None = None


@dataclass(frozen=True, kw_only=True)
class RunCounts:
    """How far a run was, and what it had seen.

    Attributes:
        samples: training samples seen by all processes.
        pairs: picture and caption pairs in the data set; None for streams, whose length nobody knows.
        skipped: unreadable pictures.
        uses_ema: the weights are the moving average.
    """

    step: int
    samples: int
    uses_ema: bool
    pairs: int | None = None
    skipped: int = 0


def run_facts(
    config: Config,
    preprocess: Preprocess | None,
    counts: RunCounts,
    *,
    prediction_type: str | None = None,
    written: datetime | None = None,
) -> ExportFacts:
    """The facts of a training run: its whole config as recipe, its counts, the versions it ran with, and when it wrote
    the weights."""
    training = {
        **asdict(counts),
        "base_model": config.base.model,
        "prediction_type": prediction_type,
        "encoder": config.encoder.model,
        "trained_blocks": config.adapter.blocks,
        **({} if config.adapter.blocks == _ALL_BLOCKS else {"other_blocks": config.adapter.other_blocks}),
        "seed": config.train.seed,
        "recipe": config.model_dump(mode="json", exclude_none=True),
        "versions": versions(),
    }
    return ExportFacts(
        title=config.export.title or config.run.resolve().name,
        preprocess=preprocess,
        training=without_folders(training),
        author=config.export.author,
        license=config.export.license,
        resolution=config.data.resolution,
        prediction_type=prediction_type,
        date=None if written is None else written.replace(microsecond=0).isoformat(),
    )


def without_folders(training: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe to be given away: models and files by their names, not by where they lie on this machine."""
    return {key: _without_folders(value, is_here=key in _HERE, key=key) for key, value in training.items()}


def _without_folders(value: Any, *, is_here: bool, key: str) -> Any:
    if isinstance(value, Mapping):
        return {
            name: _without_folders(inner, is_here=is_here or name in _HERE, key=name) for name, inner in value.items()
        }
    if isinstance(value, list | tuple):
        return [_without_folders(inner, is_here=is_here, key=key) for inner in value]
    if not isinstance(value, str) or key in _TEXTS:
        return value
    return public_name(value, is_here=is_here)


def public_name(place: str, *, is_here: bool = False) -> str:
    """The last part of a path; a place on the hub as it is.

    Args:
        is_here: it is none on the hub, however it looks.
    """
    if not is_here and HubPlace.of(place) is not None:
        return place
    return re.split(r"[/\\]", place.rstrip("/\\"))[-1] or place


def versions() -> dict[str, str]:
    """Of the libraries that decide what is computed."""
    names = ("ipadapter-studio", "torch", "diffusers", "transformers", "accelerate", "safetensors")
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in names}}


def header(
    spec: AdapterSpec, facts: ExportFacts, tensor_hash: str, portability: Mapping[str, object]
) -> dict[str, str]:
    """All metadata of an exported file. Nothing of the moment of the export is in it, so another one gives the same."""
    resolution = None if facts.resolution is None else f"{facts.resolution}x{facts.resolution}"
    stated: dict[str, str | None] = {
        "modelspec.sai_model_spec": _MODEL_SPEC_VERSION,
        "modelspec.architecture": f"{_architecture(spec, facts.prediction_type)}/ip-adapter",
        "modelspec.implementation": _IMPLEMENTATIONS.get(spec.layout, spec.layout),
        "modelspec.title": facts.title,
        "modelspec.description": facts.description or f"IP-Adapter: {spec.family}",
        "modelspec.author": facts.author,
        "modelspec.license": facts.license,
        "modelspec.date": facts.date,
        "modelspec.resolution": resolution,
        "modelspec.prediction_type": _PREDICTION_TYPES.get(facts.prediction_type or ""),
        HASH_KEY: f"0x{tensor_hash}",
        PREPROCESS_KEY: None if facts.preprocess is None else json.dumps(asdict(facts.preprocess)),
        TRAINING_KEY: json.dumps(facts.training, default=str),
        PORTABILITY_KEY: json.dumps(portability),
        **published_metadata(spec),
        **spec.to_metadata(),
    }
    return {name: value for name, value in stated.items() if value is not None}


def read_preprocess(stated: Mapping[str, str]) -> Preprocess | None:
    """What a file's metadata says about preparing references; None if it says nothing.

    Raises:
        UnreadableFileError: it says something else than `header` writes.
    """
    text = stated.get(PREPROCESS_KEY)
    if text is None:
        return None
    try:
        values: Any = parse_json(text)
        pixel_format = PixelFormat.of(values["size"], values["mean"], values["std"])
        return Preprocess(
            encoder_kind=str(values["encoder_kind"]),
            crop=str(values["crop"]),
            size=pixel_format.size,
            mean=pixel_format.mean,
            std=pixel_format.std,
        )
    except (ValueError, TypeError, KeyError) as error:
        raise UnreadableFileError(
            f"metadata {PREPROCESS_KEY} that cannot be read ({error})",
            expected="a JSON object with encoder_kind, crop, size, mean and std",
            action="export the adapter again, or remove the metadata entry",
        ) from error


def _architecture(spec: AdapterSpec, prediction_type: str | None) -> str:
    base = spec.base
    if spec.backbone == USUAL_BACKBONE:  # whose words say less than its numbers
        base = find_backbone(spec.backbone).families.get((spec.cross_attention_dim, spec.num_sites), "unknown")
    if base == "SD2.x":
        return _SD2[prediction_type or "epsilon"]
    return _ARCHITECTURES.get(base) or base.lower().replace(" ", "-")
