"""`Base`: the frozen text-to-image model, and what training asks of it."""

# B samples, C latent channels, h w latent size, H W pixels, T text length, D text width, P pooled width

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from diffusers import (
    DDPMScheduler,
    StableDiffusionXLPipeline,
)
from torch import Tensor, nn

from ipadapter_core.errors import MismatchError

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
PARTS = frozenset({"unet", "vae", "text"})
TEXT_ENCODERS = ("text_encoder", "text_encoder_2")


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
        """Free what a step with a cache does not need: "text" for good, "vae" leaves the device until it is asked."""
        if "text" in parts:
            self.pipeline.register_modules(**{name: None for name in TEXT_ENCODERS if hasattr(self.pipeline, name)})
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


@contextmanager
def brought(module: Any, device: torch.device) -> Iterator[None]:
    """Inside, a frozen module is on the device; one that a cache has sent away goes back afterwards."""
    home = module.device
    if home.type == device.type:
        yield
        return
    module.to(device)
    try:
        yield
    finally:
        module.to(home)


def fingerprint(module: nn.Module) -> str:
    """A name for a module's weights, from the names, shapes and some values of all of them; the folder does not count."""
    digest = hashlib.blake2b(type(module).__name__.encode(), digest_size=8)
    for name, tensor in module.state_dict().items():
        flat = tensor.detach().flatten()
        some = flat[:: max(1, flat.numel() // 64)].cpu().double()
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(some.numpy().tobytes())
    return digest.hexdigest()
