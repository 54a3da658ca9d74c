"""Opening the frozen model: a folder in diffusers layout, a hub repository or a single file."""

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoModel,
    DiffusionPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    pipelines,
)
from diffusers.loaders.single_file_utils import SingleFileComponentError
from safetensors import SafetensorError

from ipadapter_core.errors import MismatchError
from ipadapter_core.file.container import read_header

from ..backbones.anima import AnimaBackbone
from ..backbones.backbone import PARTS, Backbone
from ..backbones.flux import FluxBackbone
from ..backbones.qwen_image import QwenImageBackbone
from ..backbones.sd3 import SD3Backbone
from ..backbones.unet import UNetBackbone
from ..backbones.z_image import ZImageBackbone
from ..config import BaseModelConfig, Config
from ..hub import HUB_ERRORS, HubPlace, ModelNotFoundError, find_folder
from ..quiet import quiet_libraries
from .base import DTYPES
from .float8 import narrow
from .modular import FILES, INDEX, is_modular, open_anima
from .outline import outline
from .quantized import WITHOUT, loading_arguments
from .single_file import DESCRIPTION, FORMS, KIND, described_by, single_file
from .transformer_file import PART, class_of, open_transformer

_SDXL_KEY = "conditioner.embedders.1.model.ln_final.weight"
_V_PREDICTION_KEY = "v_pred"  # an empty tensor that finetunes of SDXL carry
_BACKBONES: tuple[type[Backbone], ...] = (
    UNetBackbone,
    FluxBackbone,
    ZImageBackbone,
    QwenImageBackbone,
    SD3Backbone,
    AnimaBackbone,
)
_TEXT_PARTS = tuple(name for number in ("", "_2", "_3") for name in (f"text_encoder{number}", f"tokenizer{number}"))
_MODEL_PARTS = ("unet", "transformer")
_UNUSED_PARTS = ("safety_checker", "feature_extractor", "image_encoder")
_AROUND = frozenset({"text_model", "model", "language_model"})
_MODULES = ("diffusers", "transformers")
_LOADING_ERRORS = (
    *(OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, ArithmeticError, AssertionError),
    *(ImportError, MemoryError, SafetensorError, SingleFileComponentError),
)
_VAE_FILES = ("config.json", "diffusion_pytorch_model*.safetensors", "*.index.json")
_VAE_FORMS = "a folder with an autoencoder's config.json and weights, or a hub id such as madebyollin/sdxl-vae-fp16-fix"


def load_base(
    config: BaseModelConfig,
    device: torch.device,
    *,
    only: frozenset[str] = PARTS,
    waiting: frozenset[str] = frozenset(),
) -> Backbone:
    """Load the frozen parts of a model.

    Args:
        config: which model, its precision and prediction type.
        device: where its parts go.
        only: of `PARTS`; the others are not read. Of the model there are then its layers, without weights.
        waiting: of `PARTS`; these stay on the host until they are asked to the device. bitsandbytes puts a model there
            as it reads it.

    Raises:
        ModelNotFoundError: nothing usable at that path or name.
        MismatchError: a model of no kind that is trained.
    """
    quiet_libraries()
    dtype = DTYPES[config.precision]
    given: dict[str, Any] = dict.fromkeys(_UNUSED_PARTS)
    given |= {} if "model" in only else dict.fromkeys(_MODEL_PARTS)
    given |= {} if "vae" in only else {"vae": None}
    given |= {} if "text" in only else dict.fromkeys(_TEXT_PARTS)
    has_own_vae = config.vae is None and "vae" in only
    if config.vae is not None and "vae" in only:
        given["vae"] = _load_vae(config.vae, dtype)
    file = single_file(config, only if has_own_vae else only - {"vae"})
    quantizing = _quantizing(config, file, device) if "model" in only else None
    try:
        if file is None:
            pipeline = _open_folder(config, dtype, given, quantizing, only)
        else:
            pipeline = _open_file(file, config, dtype, given, only)
        family = _family(pipeline, config)
        if "model" not in only:
            setattr(pipeline, family.part, outline(config.model if file is None else str(config.config), family.part))
        if config.quantization == "fp8" and "model" in only:
            narrow(getattr(pipeline, family.part))
        if dtype is torch.float16 and has_own_vae:
            pipeline.vae.float()  # SDXL's own autoencoder overflows in float16
        places = {family.part: "model", "vae": "vae", **dict.fromkeys(family.text_parts, "text")}
        for name, kind in places.items():
            part = getattr(pipeline, name, None)
            if part is not None and kind in only:
                part.eval().requires_grad_(False)
                if kind not in waiting:
                    part.to(device)
    except (MismatchError, ModelNotFoundError):
        raise
    except _LOADING_ERRORS as error:
        described = "" if file is None else f" described by base.config = {config.config!r}"
        raise ModelNotFoundError(
            f"{config.model}{described} cannot be loaded as a text-to-image model ({_reason(error)})",
            expected=FORMS,
            action="check base.model" if file is None else "check base.model, and that base.config is of such a model",
        ) from error
    pipeline.set_progress_bar_config(disable=True)
    base = family.of(pipeline, config, device, dtype)
    if "text" in only:
        _check_texts(base, config)
    return base


def check_base(config: Config, base: Backbone) -> Backbone:
    """The base as a config trains it.

    Raises:
        MismatchError: the config asks what its family has not.
    """
    base.check(config)
    return base.with_terminal_snr() if config.objective.zero_terminal_snr else base


def _family(pipeline: Any, config: BaseModelConfig) -> type[Backbone]:
    for family in _BACKBONES:
        if isinstance(pipeline, family.pipelines):
            return family
    raise MismatchError(
        f"{config.model} is a {type(pipeline).__name__}",
        expected=" or ".join(family.bases for family in _BACKBONES),
        action="choose such a model as base.model",
    )


def _quantizing(config: BaseModelConfig, file: Path | None, device: torch.device) -> dict[str, Any] | None:
    """How the model is quantised as it is read; None if it is not.

    Raises:
        MismatchError: a single file, which diffusers takes for one that was quantised before.
    """
    if config.quantization in ("none", "fp8"):
        return None
    if file is not None:
        raise MismatchError(
            f'base.quantization = "{config.quantization}" with the single file {config.model}',
            expected="a folder in diffusers layout: diffusers quantises no single files",
            action="save it as such a folder (from_single_file and save_pretrained of diffusers) and name that, "
            f'or take "fp8", or {WITHOUT}',
        )
    return loading_arguments(config.quantization, device, DTYPES[config.precision])


def _open_file(
    path: Path, config: BaseModelConfig, dtype: torch.dtype, given: dict[str, Any], only: frozenset[str]
) -> Any:
    described = str(described_by(config))
    if (kind := class_of(Path(described))) is not None:
        if "model" in only:
            given = {**given, PART: open_transformer(path, kind, described, dtype)}
        return _open_folder(config.model_copy(update={"model": config.config}), dtype, given, None, only)
    _check_vae(given.get("vae"), UNetBackbone, config)
    header = read_header(path, KIND)
    is_sdxl = _SDXL_KEY in header
    pipeline_class = StableDiffusionXLPipeline if is_sdxl else StableDiffusionPipeline
    given = {name: part for name, part in given.items() if not (is_sdxl and name == "safety_checker")}
    given = {name: part for name, part in given.items() if is_sdxl or not name.endswith("_2")}
    pipeline = pipeline_class.from_single_file(str(path), config=described, torch_dtype=dtype, **given)
    if _V_PREDICTION_KEY in header:
        pipeline.scheduler.register_to_config(prediction_type="v_prediction")
    return pipeline


def _open_folder(
    config: BaseModelConfig,
    dtype: torch.dtype,
    given: dict[str, Any],
    quantizing: dict[str, Any] | None,
    only: frozenset[str],
) -> Any:
    folder = _fetch(config.model, given)
    if is_modular(folder):
        _check_vae(given.get("vae"), AnimaBackbone, config)
        return open_anima(folder, dtype, only, given.get("vae"), quantizing)
    parts = _parts_of(folder)
    known = frozenset(parts)
    named = DiffusionPipeline.load_config(folder).get("_class_name")
    for family in _BACKBONES:
        if named in (kind.__name__ for kind in family.pipelines):
            _check_vae(given.get("vae"), family, config)
    absent = dict.fromkeys(name for name in _TEXT_PARTS if name in known and parts[name] == [None, None])
    given = {name: part for name, part in given.items() if name in known} | absent
    variant = _variant(Path(folder))
    for name in _MODEL_PARTS:
        if quantizing is not None and name in known:
            model = AutoModel.from_pretrained(folder, subfolder=name, variant=variant, **quantizing)
            given = {**given, name: model}
    return DiffusionPipeline.from_pretrained(folder, torch_dtype=dtype, variant=variant, **given)


def _fetch(model: str, given: dict[str, Any]) -> str:
    """The folder of a model; of the hub, its copy in the hub's cache, without the parts that are given.

    Raises:
        ModelNotFoundError: the hub does not have it.
    """
    place = HubPlace.of(model)
    if place is None:
        return model
    try:
        if place.inside:  # diffusers downloads whole repositories only
            return str(place.snapshot((*DESCRIPTION, "*.safetensors")))
        # whose errors say what is wrong
        if is_modular(str(place.snapshot((DiffusionPipeline.config_name, INDEX)))):
            return str(place.snapshot(FILES))
        return str(DiffusionPipeline.download(place.repository, revision=place.revision, **given))
    except HUB_ERRORS as error:
        found, action = place.explain(error, "base.model")
        raise ModelNotFoundError(found, expected=FORMS, action=action) from error


def _variant(folder: Path) -> str | None:
    """fp16 if some part of a local folder has no other weights."""
    parts = (*_MODEL_PARTS, "vae", *_TEXT_PARTS)
    files = [path for part in parts for path in (folder / part).glob("*.safetensors")]
    halves = {path.parent for path in files if ".fp16" in path.name}
    return "fp16" if halves - {path.parent for path in files if ".fp16" not in path.name} else None


def _load_vae(model: str, dtype: torch.dtype) -> Any:
    if HubPlace.of(model) is not None:
        model = str(find_folder(model, "base.vae", _VAE_FILES, _VAE_FORMS))
    try:
        vae = AutoModel.from_pretrained(model, torch_dtype=dtype)
    except _LOADING_ERRORS as error:
        raise ModelNotFoundError(
            f"base.vae = {model!r} cannot be loaded ({_reason(error)})",
            expected=_VAE_FORMS,
            action="correct base.vae",
        ) from error
    if not isinstance(vae, tuple({kind for family in _BACKBONES for kind in family.vaes})):
        raise MismatchError(
            f"base.vae = {model!r} is a {type(vae).__name__}",
            expected="an AutoencoderKL or AutoencoderTiny",
            action="name the folder of the autoencoder itself",
        )
    return vae


def _check_vae(vae: Any, family: type[Backbone], config: BaseModelConfig) -> None:
    """Raises MismatchError where models of the family have another kind of autoencoder than the one of `base.vae`."""
    if vae is not None and not isinstance(vae, family.vaes):
        raise MismatchError(
            f"base.vae = {config.vae!r}, a {type(vae).__name__}, with {config.model}",
            expected=f"for {family.bases}: {' or '.join(kind.__name__ for kind in family.vaes)}",
            action="name such a one, or remove base.vae",
        )


def _check_texts(base: Backbone, config: BaseModelConfig) -> None:
    """transformers makes up what it does not find: tokenizers without a word, weights at random.

    Raises:
        ModelNotFoundError: it did.
    """
    for text in base.texts:
        tokenizer = text.part.replace("text_encoder", "tokenizer")
        if len(text.tokenizer) <= len(text.tokenizer.all_special_tokens):
            raise ModelNotFoundError(
                f"{config.config or config.model} without the files of {tokenizer}",
                expected=f"{tokenizer}/vocab.json and merges.txt, or tokenizer.json",
                action="complete the folder",
            )
        files = list(
            (Path(getattr(base.pipeline, "name_or_path", None) or config.model) / text.part).glob("*.safetensors")
        )
        stored = {_inner(key) for file in files for key in read_header(file, "text encoder")}
        tied: dict[int, list[str]] = {}  # names of one tensor, of which a file has one
        for key, tensor in text.model.state_dict().items():
            tied.setdefault(tensor.data_ptr(), []).append(key)
        missing = [keys[0] for keys in tied.values() if stored.isdisjoint(map(_inner, keys))]
        if files and missing:
            raise ModelNotFoundError(
                f"{config.model}, whose {text.part} lacks {missing[0]}",
                expected="all of its weights",
                action="download it again",
            )


def _inner(key: str) -> str:
    """A tensor's name without those of the models around models, which transformers writes and reads as it likes."""
    return ".".join(part for part in key.split(".") if part not in _AROUND)


def _parts_of(model: str) -> dict[str, Any]:
    """Its parts by name, each a module and a class of diffusers or transformers; two nulls where it was saved without.

    Raises:
        MismatchError: one of another module, which diffusers before 0.42 imports and thereby runs.
    """
    named = {name: part for name, part in DiffusionPipeline.load_config(model).items() if not name.startswith("_")}
    for name, part in named.items():
        module = part[0] if isinstance(part, list | tuple) and part else None
        if module is not None and module not in _MODULES and not hasattr(pipelines, str(module)):
            raise MismatchError(
                f"{model}, whose model_index.json takes its {name} from {module!r}",
                expected=f"parts of {' and '.join(_MODULES)} alone: importing another module runs it",
                action="choose another base.model, or a copy of it without code of its own",
            )
    return named


def _reason(error: BaseException) -> str:
    if isinstance(error, NotImplementedError):  # weights that were not there are left without values
        return "some of its weights are missing"
    return (str(error).strip().splitlines() or [type(error).__name__])[0].partition(". ")[0].rstrip(".")
