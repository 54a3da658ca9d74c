"""`Base`: the frozen text-to-image model, from a folder in diffusers layout, a hub repository or a single file."""

# B samples, C latent channels, h w latent size, H W pixels, T text length, D text width, P pooled width

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    AutoModel,
    DDPMScheduler,
    DiffusionPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from diffusers.loaders.single_file_utils import SingleFileComponentError
from safetensors import SafetensorError
from torch import Tensor, nn

from ipadapter_core.errors import IPAdapterError, MismatchError, UnreadableFileError
from ipadapter_core.files import SAFETENSORS_SUFFIXES, read_header

from ..config import BaseModelConfig
from ..quiet import quiet_libraries

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
PARTS = frozenset({"unet", "vae", "text"})
_SDXL_KEY = "conditioner.embedders.1.model.ln_final.weight"
_TEXT_ENCODERS = ("text_encoder", "text_encoder_2")
_TEXT_PARTS = (*_TEXT_ENCODERS, "tokenizer", "tokenizer_2")
_UNUSED_PARTS = ("safety_checker", "feature_extractor", "image_encoder")
_PICKLED = (".ckpt", ".pt", ".pth", ".bin")
_FILE_PARTS = {  # what a single file has, and how the names of it start
    "unet": ("a UNet", ("model.diffusion_model.",)),
    "vae": ("an autoencoder", ("first_stage_model.", "vae.")),
    "text": ("a text encoder", ("cond_stage_model.", "conditioner.embedders.")),
}
_LOADING_ERRORS = (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError, SingleFileComponentError)
_FORMS = "a folder in diffusers layout (model_index.json), a single .safetensors file, or a hub repository"


class ModelNotFoundError(IPAdapterError):
    """A model folder, file or hub repository that cannot be opened."""


@dataclass(frozen=True, eq=False)
class TextEncoder:
    """One text encoder and its tokenizer."""

    tokenizer: Any
    model: Any

    def hidden_states(self, captions: Sequence[str]) -> Any:
        tokens = self.tokenizer(
            list(captions),
            padding="max_length",
            truncation=True,
            max_length=self.tokenizer.model_max_length,
            return_tensors="pt",
        )
        return self.model(tokens.input_ids.to(self.model.device), output_hidden_states=True)


@dataclass(frozen=True, eq=False)
class Base:
    """A frozen model; only the parts asked for are there.

    Attributes:
        name: as configured.
        pipeline: diffusers' pipeline of the same parts, for drawing.
        schedule: noise schedule of training; `schedule.config.prediction_type` is epsilon or v_prediction.
        dtype: of the frozen weights; the autoencoder's may differ.
    """

    name: str
    pipeline: Any
    schedule: DDPMScheduler
    device: torch.device
    dtype: torch.dtype

    @property
    def unet(self) -> Any:
        return self.pipeline.unet

    @property
    def vae(self) -> Any:
        return self.pipeline.vae

    @property
    def is_sdxl(self) -> bool:
        """Whether the model is told sizes and a pooled text embedding."""
        return isinstance(self.pipeline, StableDiffusionXLPipeline)

    @property
    def texts(self) -> tuple[TextEncoder, ...]:
        pairs = [(self.pipeline.tokenizer, self.pipeline.text_encoder)]
        if self.is_sdxl:
            pairs.append((self.pipeline.tokenizer_2, self.pipeline.text_encoder_2))
        return tuple(TextEncoder(*pair) for pair in pairs)

    @property
    def latent_channels(self) -> int:
        return int(self.vae.config.latent_channels)

    @property
    def latent_factor(self) -> int:
        """Pixels per latent cell and side."""
        return int(self.pipeline.vae_scale_factor)

    @cached_property
    def vae_id(self) -> str:
        return fingerprint(self.vae)

    @cached_property
    def text_id(self) -> str:
        return "+".join(fingerprint(text.model) for text in self.texts)

    def release(self, parts: frozenset[str]) -> None:
        """Free what a run with a cache does not need: "text" for good, "vae" leaves the device."""
        if "text" in parts:
            self.pipeline.register_modules(**{name: None for name in _TEXT_ENCODERS if hasattr(self.pipeline, name)})
        if "vae" in parts:
            self.vae.to("cpu")

    @torch.no_grad()
    def encode_text(self, captions: Sequence[str]) -> tuple[Tensor, Tensor | None]:
        """Captions to text embeddings (B, T, D) and, for SDXL, the pooled one (B, P); longer texts are cut."""
        outputs = [text.hidden_states(captions) for text in self.texts]
        if not self.is_sdxl:
            return outputs[0].last_hidden_state, None
        return torch.cat([output.hidden_states[-2] for output in outputs], dim=-1), outputs[1].text_embeds

    @torch.no_grad()
    def encode_pixels(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures (B, 3, H, W), -1..1, to mean and deviation of their latents (B, C, h, w), float32, not scaled."""
        encoded = self.vae.encode(pixels.to(self.device, self.vae.dtype))
        if hasattr(encoded, "latent_dist"):
            return encoded.latent_dist.mean.float(), encoded.latent_dist.std.float()
        return encoded.latents.float(), torch.zeros_like(encoded.latents, dtype=torch.float32)  # AutoencoderTiny

    def scale_latents(self, latents: Tensor) -> Tensor:
        """Latents as the autoencoder gives them, as the diffusion model sees them."""
        scaled: Tensor = (latents - (self.vae.config.get("shift_factor") or 0.0)) * self.vae.config.scaling_factor
        return scaled

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents of the diffusion model (B, C, h, w) to pictures (B, 3, H, W), 0..1, float32."""
        latents = latents / self.vae.config.scaling_factor + (self.vae.config.get("shift_factor") or 0.0)
        pixels: Tensor = self.vae.decode(latents.to(self.device, self.vae.dtype)).sample.float()
        return (pixels / 2 + 0.5).clamp(0, 1)


def load_base(config: BaseModelConfig, device: torch.device, *, only: frozenset[str] = PARTS) -> Base:
    """Load the frozen parts of a model.

    Args:
        config: which model, its precision and prediction type.
        device: where its parts go.
        only: of "unet", "vae" and "text"; the others are not read.

    Raises:
        ModelNotFoundError: nothing usable at that path or name.
        MismatchError: not a model of the SD1.5, SD2.x or SDXL kind.
    """
    quiet_libraries()
    dtype = DTYPES[config.precision]
    given: dict[str, Any] = dict.fromkeys(_UNUSED_PARTS)
    given |= {name: None for name in ("unet", "vae") if name not in only}
    given |= {} if "text" in only else dict.fromkeys(_TEXT_PARTS)
    has_own_vae = config.vae is None and "vae" in only
    if config.vae is not None and "vae" in only:
        given["vae"] = _load_vae(config.vae, dtype)
    file = _single_file(config, only if has_own_vae else only - {"vae"})
    try:
        pipeline = _open_folder(config, dtype, given) if file is None else _open_file(file, config, dtype, given)
        if not isinstance(pipeline, StableDiffusionPipeline | StableDiffusionXLPipeline):
            raise MismatchError(
                f"{config.model} is a {type(pipeline).__name__}",
                expected="SD1.5, SD2.x or SDXL",
                action="choose such a model as base.model",
            )
        if dtype is torch.float16 and has_own_vae:
            pipeline.vae.float()  # SDXL's own autoencoder overflows in float16
        for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder, getattr(pipeline, "text_encoder_2", None)):
            if part is not None:
                part.to(device).eval().requires_grad_(False)
    except MismatchError:
        raise
    except _LOADING_ERRORS as error:
        described = "" if file is None else f" described by base.config = {config.config!r}"
        raise ModelNotFoundError(
            f"{config.model}{described} cannot be loaded as a text-to-image model ({_reason(error)})",
            expected=_FORMS,
            action="check base.model" if file is None else "check base.model, and that base.config is of such a model",
        ) from error
    pipeline.set_progress_bar_config(disable=True)
    base = Base(config.model, pipeline, _schedule(pipeline, config), device, dtype)
    if "text" in only:
        _check_texts(base, config)
    return base


def with_terminal_snr(base: Base) -> Base:
    """The same model with its schedule rescaled to pure noise at the end (arXiv 2305.08891).

    Raises:
        MismatchError: the model predicts epsilon, which pure noise says nothing about.
    """
    if base.schedule.config.prediction_type != "v_prediction":
        raise MismatchError(
            f"objective.zero_terminal_snr with {base.name}, which predicts epsilon",
            expected="a v_prediction model: at zero signal epsilon is the input itself, and teaches nothing",
            action="set objective.zero_terminal_snr = false, or choose a v_prediction model",
        )
    return replace(base, schedule=DDPMScheduler.from_config(base.schedule.config, rescale_betas_zero_snr=True))


def fingerprint(module: nn.Module) -> str:
    """A name for a module's weights, from the names, shapes and some values of all of them; the folder does not count."""
    digest = hashlib.blake2b(type(module).__name__.encode(), digest_size=8)
    for name, tensor in module.state_dict().items():
        flat = tensor.detach().flatten()
        some = flat[:: max(1, flat.numel() // 64)].double().cpu()
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(some.numpy().tobytes())
    return digest.hexdigest()


def _single_file(config: BaseModelConfig, parts: frozenset[str]) -> Path | None:
    """The file that base.model names, known by its header to hold the parts; None if it names no file.

    Raises:
        ModelNotFoundError: it does not.
    """
    path = Path(config.model)
    if path.is_dir() or not (path.is_file() or path.suffix in (*SAFETENSORS_SUFFIXES, *_PICKLED)):
        return None
    if not path.is_file():
        raise ModelNotFoundError(
            f"base.model = {config.model!r}, which does not exist", expected=_FORMS, action="correct base.model"
        )
    if path.suffix not in SAFETENSORS_SUFFIXES:
        raise ModelNotFoundError(
            f"base.model = {config.model!r}, which is no safetensors file",
            expected="safetensors; a pickled checkpoint may run code and is not opened",
            action="use a copy in safetensors, or convert it where you trust it",
        )
    if config.config is None:
        raise ModelNotFoundError(
            f"the single file {config.model} without base.config",
            expected="base.config: a folder in diffusers layout or a hub id whose configs and tokenizer describe it",
            action="set it, for instance to stable-diffusion-v1-5/stable-diffusion-v1-5 or "
            "stabilityai/stable-diffusion-xl-base-1.0",
        )
    try:
        names = tuple(read_header(path))
    except UnreadableFileError as error:
        raise ModelNotFoundError(
            f"{config.model} is damaged, or no safetensors file in spite of its name",
            expected="a complete safetensors file",
            action="download it again and compare its size with the source",
        ) from error
    for part, (what, starts) in _FILE_PARTS.items():
        if part in parts and not any(name.startswith(starts) for name in names):
            raise ModelNotFoundError(
                f"{config.model} without {what} (no tensor is called {starts[0]}…)",
                expected="a whole checkpoint in its original names: UNet, autoencoder and text encoder",
                action="choose such a file; base.vae may name another autoencoder",
            )
    return path


def _open_file(path: Path, config: BaseModelConfig, dtype: torch.dtype, given: dict[str, Any]) -> Any:
    is_sdxl = _SDXL_KEY in read_header(path)
    pipeline_class = StableDiffusionXLPipeline if is_sdxl else StableDiffusionPipeline
    given = {name: part for name, part in given.items() if not (is_sdxl and name == "safety_checker")}
    given = {name: part for name, part in given.items() if is_sdxl or not name.endswith("_2")}
    return pipeline_class.from_single_file(str(path), config=config.config, torch_dtype=dtype, **given)


def _open_folder(config: BaseModelConfig, dtype: torch.dtype, given: dict[str, Any]) -> Any:
    known = _parts_of(config.model)
    given = {name: part for name, part in given.items() if name in known}
    return DiffusionPipeline.from_pretrained(
        config.model, torch_dtype=dtype, variant=_variant(Path(config.model)), **given
    )


def _variant(folder: Path) -> str | None:
    """fp16 if some part of a local folder has no other weights."""
    files = [path for part in ("unet", "vae", *_TEXT_ENCODERS) for path in (folder / part).glob("*.safetensors")]
    halves = {path.parent for path in files if ".fp16" in path.name}
    return "fp16" if halves - {path.parent for path in files if ".fp16" not in path.name} else None


def _load_vae(model: str, dtype: torch.dtype) -> Any:
    try:
        vae = AutoModel.from_pretrained(model, torch_dtype=dtype)
    except _LOADING_ERRORS as error:
        raise ModelNotFoundError(
            f"base.vae = {model!r} cannot be loaded ({_reason(error)})",
            expected="a folder with an autoencoder's config.json and weights, or a hub id such as "
            "madebyollin/sdxl-vae-fp16-fix",
            action="correct base.vae",
        ) from error
    if not isinstance(vae, AutoencoderKL | AutoencoderTiny):
        raise MismatchError(
            f"base.vae = {model!r} is a {type(vae).__name__}",
            expected="an AutoencoderKL or AutoencoderTiny",
            action="name the folder of the autoencoder itself",
        )
    return vae


def _check_texts(base: Base, config: BaseModelConfig) -> None:
    """transformers makes up what it does not find: tokenizers without a word, weights at random.

    Raises:
        ModelNotFoundError: it did.
    """
    for name, text in zip(_TEXT_ENCODERS, base.texts, strict=False):
        tokenizer = name.replace("text_encoder", "tokenizer")
        if len(text.tokenizer) <= len(text.tokenizer.all_special_tokens):
            raise ModelNotFoundError(
                f"{config.config or config.model} without the files of {tokenizer}",
                expected=f"{tokenizer}/vocab.json and merges.txt, or tokenizer.json",
                action="complete the folder",
            )
        files = list((Path(config.model) / name).glob("*.safetensors"))
        stored = {key.removeprefix("text_model.") for file in files for key in read_header(file)}
        missing = [key for key in text.model.state_dict() if key.removeprefix("text_model.") not in stored]
        if files and missing:
            raise ModelNotFoundError(
                f"{config.model}, whose {name} lacks {missing[0]}",
                expected="all of its weights",
                action="download it again",
            )


def _parts_of(model: str) -> frozenset[str]:
    return frozenset(name for name in DiffusionPipeline.load_config(model) if not name.startswith("_"))


def _schedule(pipeline: Any, config: BaseModelConfig) -> DDPMScheduler:
    given = {} if config.prediction_type == "auto" else {"prediction_type": config.prediction_type}
    return DDPMScheduler.from_config(pipeline.scheduler.config, **given)


def _reason(error: BaseException) -> str:
    if isinstance(error, NotImplementedError):  # weights that were not there are left without values
        return "some of its weights are missing"
    return (str(error).strip().splitlines() or [type(error).__name__])[0].partition(". ")[0].rstrip(".")
