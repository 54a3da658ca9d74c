"""`FlowBackbone`: what models have in common that are trained by flow matching (arXiv 2210.02747, 2403.03206)."""

# B samples, C latent channels, h w latent size

from abc import abstractmethod
from collections.abc import Callable, Mapping
from functools import cached_property

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from einops import rearrange
from torch import Tensor

from ipadapter_core.errors import MismatchError

from .. import named
from ..config import Config, ObjectiveConfig
from .backbone import Backbone
from .image_prompt import ImageAt
from .times import TimeShift


class FlowBackbone(Backbone):
    """A model that answers with the velocity, noise minus picture, of the straight line between them."""

    @property
    @abstractmethod
    def patch(self) -> int:
        """Cells of the latent on the side of one of the model's tokens."""

    @property
    def prediction(self) -> str:
        return "flow"

    @property
    def side_step(self) -> int:
        return self.latent_factor * self.patch

    @cached_property
    def time_shift(self) -> TimeShift:
        return TimeShift.of_scheduler(self.pipeline.scheduler.config, self.patch)

    def signal(self, time: float) -> float:
        return (1 - time) ** 2

    def noisy(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        share = times[:, None, None, None]
        return (1 - share) * latents + share * noise

    def target(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        return noise - latents

    def weight(self, times: Tensor, objective: ObjectiveConfig) -> Tensor:
        return torch.ones_like(times)

    def check(self, config: Config) -> None:
        objective = config.objective
        asked = {
            "objective.min_snr_gamma": objective.min_snr_gamma is not None,
            "objective.debiased": objective.debiased,
            "objective.zero_terminal_snr": objective.zero_terminal_snr,
            "base.prediction_type": config.base.prediction_type != "auto",
        }
        for name, is_asked in asked.items():
            if is_asked:
                raise MismatchError(
                    f"{name} with {self.name}, a flow model",
                    expected="a model with a schedule of noise levels; a flow model's loss has no such weights",
                    action=f"remove {name}",
                )
        data, step = config.data, self.side_step
        sides = {"data.resolution": data.resolutions, "data.bucket_step": (data.bucket_step,) if data.buckets else ()}
        for name, numbers in sides.items():
            if wrong := [number for number in numbers if number % step]:
                raise MismatchError(
                    f"{name} = {wrong[0]} with {self.name}",
                    expected=f"multiples of {step}, the side of one of its tokens in pixels",
                    action=f"set it to {max(1, round(wrong[0] / step)) * step}, for instance",
                )
        self.check_adapter(config.adapter)

    def packed(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) as tokens (B, L, C · patch²), each of its channel's cells in turn."""
        return rearrange(latents, "b c (h p) (w q) -> b (h w) (c p q)", p=self.patch, q=self.patch)

    def unpacked(self, tokens: Tensor, like: Tensor) -> Tensor:
        """Such tokens as latents of the size of others."""
        height = like.shape[-2] // self.patch
        return rearrange(tokens, "b (h w) (c p q) -> b c (h p) (w q)", h=height, p=self.patch, q=self.patch)

    @property
    def usual_guidance(self) -> float:
        return 4.0

    def told(self, guidance: float) -> "FlowBackbone":
        """The same model, which is told how much guidance there is where it can be told."""
        return self

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
        """Euler's method over the model's own schedule."""
        settings = dict(self.pipeline.scheduler.config)
        if steps == 1:
            settings["shift_terminal"] = None  # of one step alone diffusers would make NaN
        scheduler = FlowMatchEulerDiscreteScheduler.from_config(settings)
        mean = self.time_shift.mean(noise.shape[-2], noise.shape[-1]) if scheduler.config.use_dynamic_shifting else None
        scheduler.set_timesteps(sigmas=torch.linspace(1, 1 / steps, steps).tolist(), device=self.device, mu=mean)
        latents, count = noise.to(self.device, torch.float32), len(noise)
        if negative is not None:
            text = named.joined((negative, text))
        rows = count if negative is None else 2 * count
        sizes = torch.zeros(rows, 6, device=self.device)
        model = self.told(guidance)
        for timestep, sigma in zip(scheduler.timesteps, scheduler.sigmas, strict=False):
            times = sigma.to(self.device, torch.float32).expand(rows)
            seen = latents if negative is None else torch.cat((latents, latents))
            answer = model.predict(seen, times, text, sizes, image(times[:count])).float()
            if negative is not None:
                uncond, cond = answer.chunk(2)
                answer = uncond + guidance * (cond - uncond)
            latents = scheduler.step(answer, timestep, latents, return_dict=False)[0]
            progress()
        return latents
