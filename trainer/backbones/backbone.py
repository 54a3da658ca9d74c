"""`Backbone`: the frozen text-to-image model, and what training asks of it."""

# B samples, C latent channels, h w latent size, H W pixels

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import Tensor, nn

from ipadapter_core.backbone.sites import Sites
from ipadapter_core.errors import MismatchError
from ipadapter_core.file.names import USUAL_LAYOUT
from ipadapter_core.file.spec import AdapterSpec, Negative, Projection

from ..config import AdapterConfig, BaseModelConfig, Config, ObjectiveConfig
from ..models.base import brought, fingerprint
from .image_prompt import ImageAt, ImagePrompt
from .times import TimeShift

PARTS = frozenset({"model", "vae", "text"})
"""What `load_base` can be asked for: the diffusion model, its autoencoder, its text encoders with their tokenizers."""


@dataclass(frozen=True, eq=False)
class TextEncoder:
    """One text encoder and its tokenizer.

    Attributes:
        part: its name in the pipeline.
    """

    part: str
    tokenizer: Any
    model: Any

    def tokens(self, captions: Sequence[str], count: int | None = None) -> Tensor:
        """(B, T), where the encoder is; longer texts are cut.

        Args:
            count: T; as many as the tokenizer says if None.
        """
        read = self.tokenizer(
            list(captions),
            padding="max_length",
            truncation=True,
            max_length=self.tokenizer.model_max_length if count is None else count,
            return_tensors="pt",
        )
        tokens: Tensor = read.input_ids.to(self.model.device)
        return tokens


@dataclass(frozen=True, eq=False)
class Backbone(ABC):
    """A frozen model; only the parts asked for are there. A subclass for each family says what it does its own way.

    Times are 0 (a clean picture) to 1 (noise), float32. Text embeddings are named tensors with a row for each caption;
    a cache stores them under these names.

    Attributes:
        name: as configured.
        pipeline: diffusers' pipeline of the same parts.
        device: where a step is computed.
        dtype: of the frozen weights; the autoencoder's may differ.
    """

    pipelines: ClassVar[tuple[type, ...]]
    """diffusers' classes of pipelines with models of this family."""
    part: ClassVar[str]
    """Name of the diffusion model in them."""
    text_parts: ClassVar[tuple[str, ...]]
    """Names of text encoders in them, as far as a model has them; the tokenizer of text_encoder_2 is tokenizer_2."""
    word: ClassVar[str]
    """What the diffusion model is called in messages."""
    bases: ClassVar[str]
    """Names of its models, for messages."""
    is_timed: ClassVar[bool] = False
    """Whether what an adapter gives depends on the time."""
    vaes: ClassVar[tuple[type, ...]] = (AutoencoderKL, AutoencoderTiny)
    """diffusers' classes of autoencoders that fit."""
    layout: ClassVar[str] = USUAL_LAYOUT
    """Whose arithmetic and names of tensors its adapters have, as `AdapterSpec.layout`."""
    usual_tokens: ClassVar[Mapping[str, int]] = {}
    """Image tokens by kind, where they are others than a UNet's."""
    negatives: ClassVar[Mapping[str, Negative]] = {}
    """What stands for no image by kind of adapter, where it is not what that kind has for UNets."""
    projections: ClassVar[Mapping[str, Projection]] = {}
    """Networks over the features by kind of adapter, likewise."""
    has_head_dim: ClassVar[bool] = False
    """Whether the spec says how large the model's heads are, where no weight of the adapter is about them."""
    names_encoder_kind: ClassVar[bool] = False
    """Whether the spec says what kind its encoder is, since files of this layout are taken to read another."""

    name: str
    pipeline: Any
    device: torch.device
    dtype: torch.dtype

    @classmethod
    @abstractmethod
    def of(cls, pipeline: Any, config: BaseModelConfig, device: torch.device, dtype: torch.dtype) -> "Backbone":
        """The model in a pipeline of this family.

        Raises:
            MismatchError: it was trained in a way that this family is not trained in.
        """

    @property
    def model(self) -> Any:
        """The UNet or transformer."""
        return getattr(self.pipeline, self.part)

    @property
    def vae(self) -> Any:
        return self.pipeline.vae

    @property
    def texts(self) -> tuple[TextEncoder, ...]:
        parts = (part for part in self.text_parts if getattr(self.pipeline, part, None) is not None)
        named = ((part, part.replace("text_encoder", "tokenizer")) for part in parts)
        return tuple(
            TextEncoder(part, getattr(self.pipeline, tokenizer), getattr(self.pipeline, part))
            for part, tokenizer in named
        )

    @cached_property
    def vae_id(self) -> str:
        return fingerprint(self.vae)

    @cached_property
    def text_id(self) -> str:
        return "+".join(fingerprint(text.model) for text in self.texts)

    def bring(self, parts: frozenset[str]) -> None:
        """Parts that have waited on the host come to the device."""
        modules = {"model": (self.model,), "vae": (self.vae,), "text": tuple(text.model for text in self.texts)}
        for part in parts:
            for module in modules[part]:
                module.to(self.device)

    @contextmanager
    def encoding(self) -> Iterator[None]:
        """Inside, autoencoder and text encoders are on the device, and the model is not; bitsandbytes' stays there."""
        encoders = [module for module in (self.vae, *(text.model for text in self.texts)) if module is not None]
        homes = [module.device for module in encoders]
        if not getattr(self.model, "is_quantized", False):
            self.model.to("cpu")
        for module in encoders:
            module.to(self.device)
        try:
            yield
        finally:
            for module, home in zip(encoders, homes, strict=True):
                module.to(home)
            self.model.to(self.device)

    def release(self, parts: frozenset[str]) -> None:
        """Free what a step with a cache does not need: "text" for good, "vae" leaves the device until it is asked."""
        if "text" in parts:
            self.pipeline.register_modules(**{text.part: None for text in self.texts})
        if "vae" in parts:
            self.vae.to("cpu")

    # --- where the image acts

    @property
    @abstractmethod
    def sites(self) -> Sites:
        """The attention sites, in checkpoint order."""

    @abstractmethod
    def text_kv(self, site: int) -> tuple[Tensor, Tensor] | None:
        """The model's own K and V projections of text at a site, which the image's may start from; None: it has none."""

    @property
    def base_name(self) -> str:
        """What an adapter is for, in words."""
        return self.bases

    def family(self, kind: str) -> str:
        """What an adapter of a kind is called."""
        return f"{self.base_name} {kind}"

    def check_adapter(self, config: AdapterConfig) -> None:
        """Raises MismatchError if there is no such adapter for this family."""
        if config.gate != "none":
            raise MismatchError(
                f'adapter.gate = "{config.gate}" with {self.name}, which is no Anima',
                expected='"none": only adapters for Anima have gates',
                action='set adapter.gate = "none"',
            )

    def specified(self, spec: AdapterSpec, config: AdapterConfig) -> AdapterSpec:
        """What a new adapter is, given what all families have in common."""
        return spec

    def start(self, site: int, weights: nn.Module) -> None:
        """Give a site of a new adapter the values it starts from, other than those of `text_kv`, unless all are drawn."""
        return

    @property
    def token_dim(self) -> int:
        """Width of image tokens."""
        return self.sites.sites[0].context_dim

    @property
    def lora_layers(self) -> tuple[str, ...]:
        """Names of the attention layers that a LoRA beside the adapter may change, two of every site; empty: none may."""
        return ()

    @property
    def second_attentions(self) -> int:
        """As `AdapterSpec.second_attentions`."""
        return 0

    @abstractmethod
    def install(self) -> None:
        """Make `predict` heed its image; without one the model computes what it did before."""

    def enable_checkpointing(self) -> None:
        """Compute activations again in the backward pass; after `install`."""
        self.model.enable_gradient_checkpointing()

    # --- pictures and text

    @property
    def latent_channels(self) -> int:
        return int(self.vae.config.latent_channels)

    @property
    def latent_factor(self) -> int:
        """Pixels per latent cell and side."""
        return int(self.pipeline.vae_scale_factor)

    @property
    def side_step(self) -> int:
        """Sides of pictures are multiples of so many pixels."""
        return self.latent_factor

    @property
    def largest_side(self) -> int | None:
        """Of pictures, in pixels; None: any that memory holds."""
        return None

    @abstractmethod
    def encode_text(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """Captions to embeddings (B, …) by name; longer texts are cut."""

    @torch.no_grad()
    def encode_pixels(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures (B, 3, H, W), -1..1, to mean and deviation of their latents (B, C, h, w), float32, not scaled."""
        with brought(self.vae, self.device):
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
        with brought(self.vae, self.device):
            pixels: Tensor = self.vae.decode(latents.to(self.device, self.vae.dtype)).sample.float()
        return (pixels / 2 + 0.5).clamp(0, 1)

    # --- diffusion

    @property
    @abstractmethod
    def prediction(self) -> str:
        """What the model predicts: epsilon, v_prediction or flow."""

    @property
    @abstractmethod
    def time_shift(self) -> TimeShift | None:
        """How the times it is trained on depend on a picture's size; None: they are the 1,000 steps of a schedule."""

    @abstractmethod
    def signal(self, time: float) -> float:
        """Share of a picture's variance that is left at a time."""

    @abstractmethod
    def noisy(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """What the model sees of latents (B, C, h, w) at times (B,)."""

    @abstractmethod
    def target(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """What it should answer (B, C, h, w)."""

    @abstractmethod
    def weight(self, times: Tensor, objective: ObjectiveConfig) -> Tensor:
        """What the error of each sample weighs (B,), float32."""

    def adapter_times(self, times: Tensor) -> Tensor:
        """Times (B,) as an adapter reads them that gives other things at other times."""
        return times

    @abstractmethod
    def predict(
        self, noisy: Tensor, times: Tensor, text: Mapping[str, Tensor], sizes: Tensor, image: ImagePrompt
    ) -> Tensor:
        """What it answers (B, C, h, w); `install` must have been called.

        Args:
            text: of `encode_text`.
            sizes: original height, width, crop top, left, target height, width (B, 6).
        """

    @abstractmethod
    def check(self, config: Config) -> None:
        """Warn of what makes a poor adapter.

        Raises:
            MismatchError: the config asks what this family has not.
        """

    def with_terminal_snr(self) -> "Backbone":
        """The same model with its schedule rescaled to pure noise at the end (arXiv 2305.08891).

        Raises:
            MismatchError: the model has no such schedule, or predicts epsilon.
        """
        raise MismatchError(
            f"objective.zero_terminal_snr with {self.name}, a flow model",
            expected="a v_prediction model; a flow model begins with pure noise already",
            action="set objective.zero_terminal_snr = false",
        )

    # --- drawing

    @property
    def has_uncond(self) -> bool:
        """Whether guidance compares with what is drawn without the prompts; else the model is told how much it is."""
        return True

    @property
    @abstractmethod
    def usual_guidance(self) -> float:
        """That pictures are drawn with unless told: what diffusers' pipelines of the family have as their default."""

    @abstractmethod
    def denoise(
        self,
        noise: Tensor,
        text: Mapping[str, Tensor],
        negative: Mapping[str, Tensor] | None,
        image: ImageAt,
        *,
        steps: int,
        guidance: float,
        progress: Callable[[], object],
    ) -> Tensor:
        """Latents (B, C, h, w) from noise (B, C, h, w), as the model itself scales them.

        Args:
            text, negative: of B rows; no negative: without guidance.
            image: of 2B rows with a negative (uncond, then cond), else of B.
            progress: called after each step.
        """
