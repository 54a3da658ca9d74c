"""UNets: SD1.5, SD2.x, SDXL and what derives from them."""

# B samples, C latent channels, h w latent size, T text length, D text width, P pooled width

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from diffusers import DDIMScheduler, DDPMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.training_utils import compute_snr
from torch import Tensor

from ipadapter_core.backbone.sites import Sites
from ipadapter_core.backbone.unet import UNET
from ipadapter_core.errors import MismatchError
from ipadapter_core.file.detect import BASE_NAMES

from ..config import BaseModelConfig, Config, ObjectiveConfig
from ..models.quantized import full_weight
from .backbone import Backbone
from .image_prompt import ImageAt, ImagePrompt
from .unet_attention import install
from .unet_sites import attention_layers, discover_sites

_USUAL: dict[str, tuple[object, ...]] = {  # of a scheduler's settings; None is a setting it does not have
    "prediction_type": ("epsilon", "v_prediction", None),
    "timestep_type": ("discrete", None),
    "use_flow_sigmas": (False, None),
}
logger = logging.getLogger(__name__)

_SDXL_SIDE = 768  # pixels
_ZERO_SNR_RESCALE = 0.7  # arXiv 2305.08891, section 3.4


@dataclass(frozen=True, eq=False)
class UNetBackbone(Backbone):
    """Text is "text" (B, T, D) and, for SDXL, "pooled" (B, P).

    Attributes:
        schedule: noise schedule of training; `schedule.config.prediction_type` is epsilon or v_prediction.
    """

    pipelines = (StableDiffusionPipeline, StableDiffusionXLPipeline)
    part = "unet"
    word = "UNet"
    text_parts = ("text_encoder", "text_encoder_2")
    bases = "SD1.5, SD2.x or SDXL"

    schedule: DDPMScheduler

    @classmethod
    def of(cls, pipeline: Any, config: BaseModelConfig, device: torch.device, dtype: torch.dtype) -> "UNetBackbone":
        return cls(config.model, pipeline, device, dtype, _schedule(pipeline, config))

    @property
    def is_sdxl(self) -> bool:
        """Whether the model is told sizes and a pooled text embedding."""
        return isinstance(self.pipeline, StableDiffusionXLPipeline)

    @cached_property
    def _found(self) -> tuple[Sites, tuple[Any, ...]]:
        return discover_sites(self.model)

    @property
    def sites(self) -> Sites:
        return self._found[0]

    @property
    def base_name(self) -> str:
        dim = self.token_dim
        name = UNET.families.get((dim, len(self.sites.sites))) or BASE_NAMES.get(dim)
        return name or f"a base with {dim}-wide text tokens"

    def text_kv(self, site: int) -> tuple[Tensor, Tensor]:
        attention = self._found[1][site]
        return full_weight(attention.to_k), full_weight(attention.to_v)

    def install(self) -> None:
        install(self.model)

    @property
    def lora_layers(self) -> tuple[str, ...]:
        return tuple(name for name, _ in attention_layers(self.model))

    @torch.no_grad()
    def encode_text(self, captions: Sequence[str]) -> dict[str, Tensor]:
        outputs = [text.model(text.tokens(captions), output_hidden_states=True) for text in self.texts]
        if not self.is_sdxl:
            return {"text": outputs[0].last_hidden_state}
        text = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
        return {"text": text, "pooled": outputs[1].text_embeds}

    @property
    def prediction(self) -> str:
        return str(self.schedule.config.prediction_type)

    @property
    def time_shift(self) -> None:
        return None

    def signal(self, time: float) -> float:
        alphas = self.schedule.alphas_cumprod
        return float(alphas[min(round(time * len(alphas)), len(alphas) - 1)])

    def noisy(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        noisy: Tensor = self.schedule.add_noise(latents, noise, self.steps(times))
        return noisy

    def target(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        if self.prediction != "v_prediction":
            return noise
        velocity: Tensor = self.schedule.get_velocity(latents, noise, self.steps(times))
        return velocity

    def weight(self, times: Tensor, objective: ObjectiveConfig) -> Tensor:
        """What the error of the clean latents weighs, over SNR for noise and over SNR + 1 for v.

        That is min(SNR, gamma) (arXiv 2303.09556, section 3.4) or sqrt(SNR): 1 / sqrt(SNR) for noise, as in arXiv
        2310.08442, which says nothing of v.
        """
        gamma = objective.min_snr_gamma
        if gamma is None and not objective.debiased:
            return torch.ones_like(times)
        snr: Tensor = compute_snr(self.schedule, self.steps(times))
        is_v = self.prediction == "v_prediction"
        weights: Tensor = (snr.sqrt() if gamma is None else snr.clamp_max(gamma)) / (snr + 1 if is_v else snr)
        return weights

    def predict(
        self, noisy: Tensor, times: Tensor, text: Mapping[str, Tensor], sizes: Tensor, image: ImagePrompt
    ) -> Tensor:
        added = None
        if self.is_sdxl:
            # sizes stay as they are: in bfloat16 1333 pixels would be 1336
            added = {"text_embeds": text["pooled"].to(self.dtype), "time_ids": sizes.float()}
        output: Tensor = self.model(
            noisy.to(self.dtype),
            self.steps(times),
            text["text"].to(self.dtype),
            added_cond_kwargs=added,
            cross_attention_kwargs=_told(image),
        ).sample
        return output

    def steps(self, times: Tensor) -> Tensor:
        """Times as numbers of the schedule's steps."""
        numbers: Tensor = (times * self.schedule.config.num_train_timesteps).round().long()
        return numbers

    def check(self, config: Config) -> None:
        if self.is_sdxl and config.data.resolution < _SDXL_SIDE:
            logger.warning(
                "data.resolution is %d: SDXL was made for 1024, and is a poor model below %d",
                config.data.resolution,
                _SDXL_SIDE,
            )

    def with_terminal_snr(self) -> "UNetBackbone":
        if self.prediction != "v_prediction":
            raise MismatchError(
                f"objective.zero_terminal_snr with {self.name}, which predicts epsilon",
                expected="a v_prediction model: at zero signal epsilon is the input itself, and teaches nothing",
                action="set objective.zero_terminal_snr = false, or choose a v_prediction model",
            )
        return replace(self, schedule=DDPMScheduler.from_config(self.schedule.config, rescale_betas_zero_snr=True))

    @property
    def usual_guidance(self) -> float:
        return 7.5

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
        """DDIM. Draws nothing from the global generators and changes nothing of the base."""

        def after_step(pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            progress()
            return tensors

        height, width = (side * self.latent_factor for side in noise.shape[-2:])
        latents: Tensor = self._drawing(
            **_arguments(text, ""),
            **({} if negative is None else _arguments(negative, "negative_")),
            latents=noise.to(self.device, self.dtype),
            width=width,
            height=height,
            num_inference_steps=steps,
            guidance_scale=guidance,
            guidance_rescale=_ZERO_SNR_RESCALE if self.schedule.config.rescale_betas_zero_snr else 0.0,
            cross_attention_kwargs=_told(image(torch.ones(len(noise)))),
            output_type="latent",
            callback_on_step_end=after_step,
        ).images
        return latents

    @cached_property
    def _drawing(self) -> Any:
        """A pipeline of the base's kind with the schedule it is trained on; its own scheduler may be any."""
        schedule = self.schedule.config
        spacing = "trailing" if schedule.rescale_betas_zero_snr else schedule.timestep_spacing
        # clipping is for pixels, although a DDPM schedule has it by default
        scheduler = DDIMScheduler.from_config(
            schedule, clip_sample=False, set_alpha_to_one=False, timestep_spacing=spacing
        )
        # the UNet alone: text is encoded before, latents are decoded after, and a run may free both parts meanwhile
        parts = {**dict.fromkeys(self.pipeline.components), "unet": self.model, "scheduler": scheduler}
        options = {} if self.is_sdxl else {"requires_safety_checker": False}
        pipeline = type(self.pipeline)(**parts, **options)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline


def _told(image: ImagePrompt) -> dict[str, Any]:
    """What the processors of `unet_attention` are handed."""
    return {"image_kv": image.kv} if image.lora is None else {"image_kv": image.kv, "image_lora": image.lora}


def _arguments(text: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Of diffusers' pipelines."""
    names = {"text": "prompt_embeds", "pooled": "pooled_prompt_embeds"}
    return {prefix + names[name]: tensor for name, tensor in text.items()}


def _schedule(pipeline: Any, config: BaseModelConfig) -> DDPMScheduler:
    """The base's own; what it predicts as configured, else as the scheduler's config says.

    Raises:
        MismatchError: it adds noise in a way that betas do not describe; diffusers would take its own instead.
    """
    given = {} if config.prediction_type == "auto" else {"prediction_type": config.prediction_type}
    settings = {**pipeline.scheduler.config, **given}
    odd = [f"{name} = {settings[name]!r}" for name, usual in _USUAL.items() if settings.get(name) not in usual]
    if "beta_schedule" not in settings or odd:
        raise MismatchError(
            f"{config.model} with a {type(pipeline.scheduler).__name__}{f', {odd[0]}' if odd else ''}",
            expected="a model trained on a schedule of betas that predicts epsilon or v_prediction",
            action="choose another base.model; if that is how it was trained after all, "
            "give it the scheduler/scheduler_config.json of the model it was made from",
        )
    return DDPMScheduler.from_config(pipeline.scheduler.config, **given)
