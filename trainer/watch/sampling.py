"""Pictures from a base, an adapter and references, through diffusers' pipelines: what a person judges a run by."""

# B pictures, E feature width, S feature positions, T text length, D text width, P pooled width, N image tokens

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler
from PIL import Image
from torch import Tensor

from ipadapter_core.errors import BadInputError
from ipadapter_core.strength.presets import resolve_preset
from ipadapter_core.strength.site import SiteStrength

from ..backbones.unet_attention import KV, SiteKVs
from ..backbones.unet_sites import discover_sites
from ..config import Config
from ..draws import sample_generator
from ..models.base import Base
from ..models.image_encoder import ImageEncoder

_ZERO_SNR_RESCALE = 0.7  # arXiv 2305.08891, section 3.4
_NUM_TIMESTEPS = 1000


@dataclass(frozen=True, kw_only=True)
class SampleSettings:
    """How pictures are drawn.

    Attributes:
        strengths: of the image prompt; 0 is the base alone.
        blocks: layer preset of the core.
        count: pictures per reference and strength, each from its own noise.
        size: width and height in pixels.
        batch_size: pictures denoised together.
    """

    strengths: tuple[float, ...] = (0.0, 0.5, 1.0)
    steps: int = 30
    guidance: float = 7.5
    seed: int = 0
    size: tuple[int, int] = (512, 512)
    blocks: str = "all"
    count: int = 1
    batch_size: int = 4

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= _NUM_TIMESTEPS:
            raise BadInputError(f"{self.steps} sampling steps", expected="1 to 1000", action="30 is usual")
        if self.guidance < 1:
            raise BadInputError(f"guidance {self.guidance}", expected="1 (off) or more", action="7.5 is usual")
        if not self.strengths:
            raise BadInputError("no strength", expected="numbers such as 0,0.5,1", action="list at least one")
        if min(self.count, self.batch_size) < 1:
            raise BadInputError(f"{self.count} pictures per reference", expected="1 or more", action="raise the count")

    @classmethod
    def of(cls, config: Config) -> "SampleSettings":
        """What the validation section of a config says."""
        validation, side = config.validation, config.data.resolution
        return cls(
            strengths=validation.strengths,
            steps=validation.sampler_steps,
            guidance=validation.guidance,
            seed=config.train.seed,
            size=(side, side),
        )

    def rows_together(self, rows: int, share: "Share") -> int:
        """Denoised in one batch, so that every process has some."""
        return max(1, min(self.batch_size, -(-rows // share.size)))

    def total_steps(self, references: int) -> int:
        """What `sample_grid` reports as progress in all."""
        return references * self.count * len(self.strengths) * self.steps


@dataclass(frozen=True, eq=False)
class TextEmbeds:
    """A prompt for the UNet: tokens (1, T, D) and, for SDXL, pooled (1, P)."""

    tokens: Tensor
    pooled: Tensor | None


@dataclass(frozen=True, eq=False)
class Reference:
    """An image prompt with the text it is drawn with, encoded once.

    Attributes:
        name: of the picture, for files and labels.
        caption: what is said to be on it; may be "".
        prompt: text of what is drawn from it.
        features: (1, E) or (1, S, E).
    """

    name: str
    picture: Image.Image
    caption: str
    prompt: str
    features: Tensor
    text: TextEmbeds


@dataclass(frozen=True, eq=False)
class SampleGrid:
    """Drawn pictures: one row per reference and noise, one column per strength."""

    references: tuple[Reference, ...]
    strengths: tuple[float, ...]
    rows: tuple[tuple[Image.Image, ...], ...]

    @property
    def prompts(self) -> tuple[str, ...]:
        """All texts, if one picture is drawn with several; none to be told apart otherwise."""
        texts: dict[int, set[str]] = {}
        for reference in self.references:
            texts.setdefault(id(reference.picture), set()).add(reference.prompt)
        is_one = all(len(each) == 1 for each in texts.values())
        return () if is_one else tuple(dict.fromkeys(reference.prompt for reference in self.references))


@dataclass(frozen=True)
class Share:
    """Which part of the drawing is this process's.

    Attributes:
        gather: joins the lists of all processes; each must call it.
    """

    rank: int = 0
    size: int = 1
    gather: Callable[[list[Any]], list[Any]] = list


def text_label(prompt: str) -> str:
    return prompt or "no text"


def encode_prompt(base: Base, prompt: str) -> TextEmbeds:
    return TextEmbeds(*base.encode_text([prompt]))


def encode_reference(
    picture: Image.Image, name: str, *, base: Base, encoder: ImageEncoder, caption: str = "", prompt: str | None = ""
) -> Reference:
    """Encode a picture (RGB) and its prompt; prompt None is the picture's own caption."""
    pixels = torch.from_numpy(np.asarray(picture.convert("RGB"), dtype=np.float32) / 255)[None]
    features = encoder.features(encoder.format.pixels(pixels))
    text = caption if prompt is None else prompt
    return Reference(name, picture, caption, text, features, encode_prompt(base, text))


class Sampler:
    """DDIM over a base model. Draws nothing from the global generators and changes nothing of the base.

    Args:
        base: its UNet prepared by `processor.install`.
        negative: the negative prompt, encoded.

    Raises:
        BadInputError: a size the model cannot draw.
    """

    def __init__(self, base: Base, settings: SampleSettings, negative: TextEmbeds) -> None:
        if any(side < base.latent_factor or side % base.latent_factor for side in settings.size):
            raise BadInputError(
                f"a picture size of {settings.size[0]}x{settings.size[1]}",
                expected=f"sides that are multiples of {base.latent_factor}",
                action="choose such a size; 512 is usual, 1024 for SDXL",
            )
        self.base, self.settings, self.negative = base, settings, negative
        self._pipeline = _pipeline(base)
        self._sites, _ = discover_sites(base.unet)

    def noise(self, place: int, take: int) -> Tensor:
        """(1, C, h, w) for a reference picture by its place among them, on the CPU."""
        width, height = (side // self.base.latent_factor for side in self.settings.size)
        generator = sample_generator(self.settings.seed, place, f"picture {take}")
        return torch.randn(1, self.base.latent_channels, height, width, generator=generator)

    def site_strengths(self, strength: float) -> dict[int, SiteStrength]:
        return resolve_preset(self.settings.blocks, self._sites, strength)

    @torch.no_grad()
    def draw(
        self,
        noise: Tensor,
        texts: Sequence[TextEmbeds],
        kv: SiteKVs,
        progress: Callable[[int], object] = lambda pictures: None,
    ) -> list[Image.Image]:
        """Pictures (B) from noise (B, C, h, w), a prompt each, and K/V of 2B rows: uncond, then cond."""
        count, settings = len(texts), self.settings
        is_guided = settings.guidance > 1
        embeds = _embeds(texts, "")
        if is_guided:
            embeds |= _embeds([self.negative] * count, "negative_")
        else:
            kv = tuple(None if pair is None else (pair[0][count:], pair[1][count:]) for pair in kv)

        def after_step(pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            progress(count)
            return tensors

        latents = self._pipeline(
            **embeds,
            latents=noise.to(self.base.device, self.base.dtype),
            width=settings.size[0],
            height=settings.size[1],
            num_inference_steps=settings.steps,
            guidance_scale=settings.guidance,
            guidance_rescale=_ZERO_SNR_RESCALE if self.base.schedule.config.rescale_betas_zero_snr else 0.0,
            cross_attention_kwargs={"image_kv": kv},
            output_type="latent",
            callback_on_step_end=after_step,
        ).images
        return _pictures(self.base.decode(latents))


@torch.no_grad()
def sample_grid(
    sampler: Sampler,
    adapter: Callable[[Tensor], SiteKVs],
    no_image: Tensor,
    references: Sequence[Reference],
    progress: Callable[[int], object] = lambda pictures: None,
    share: Share = Share(),
) -> SampleGrid:
    """Draw every reference at every strength; the noise is the same at all strengths and for all texts of a picture, and
    follows from the seed and the picture's place.

    Processes that share the work all get all pictures.

    Args:
        adapter: features to the K/V of every site, a `TrainableAdapter`.
        no_image: features that stand for no image, for the uncond half.
        progress: called after each denoising step with the number of pictures in it.
    """
    settings, device = sampler.settings, sampler.base.device
    places: dict[int, int] = {}
    for reference in references:
        places.setdefault(id(reference.picture), len(places))
    jobs = [(place, take) for place in range(len(references)) for take in range(settings.count)]
    rows: list[list[Image.Image]] = [[] for _ in jobs]
    uncond = adapter(no_image.to(device))
    together = settings.rows_together(len(jobs), share)
    for start in range(0, len(jobs), together)[share.rank :: share.size]:
        chosen = slice(start, start + together)
        batch = [references[place] for place, _ in jobs[chosen]]
        takes = zip(batch, (take for _, take in jobs[chosen]), strict=True)
        noise = torch.cat([sampler.noise(places[id(reference.picture)], take) for reference, take in takes])
        cond = adapter(torch.cat([reference.features for reference in batch]).to(device))
        for strength in settings.strengths:
            kv = guided(uncond, cond, sampler.site_strengths(strength))
            pictures = sampler.draw(noise, [reference.text for reference in batch], kv, progress)
            for row, picture in zip(rows[chosen], pictures, strict=True):
                row.append(picture)
    drawn = dict(share.gather([(number, tuple(row)) for number, row in enumerate(rows) if row]))
    return SampleGrid(
        tuple(references[place] for place, _ in jobs),
        settings.strengths,
        tuple(drawn[number] for number in range(len(jobs))),
    )


def guided(uncond: SiteKVs, cond: SiteKVs, strengths: Mapping[int, SiteStrength]) -> tuple[KV | None, ...]:
    """K/V of both halves of a batch as a pipeline with guidance lays them, strengths folded into V.

    Args:
        uncond: of no image, one row.
        cond: of B references.
        strengths: by site; a site at 0 is left out.

    Returns:
        Of each site K and V of 2B rows: uncond, then cond.
    """
    return tuple(
        None
        if no_image is None or image is None or not strengths[site].value
        else _halves(no_image, image, strengths[site])
        for site, (no_image, image) in enumerate(zip(uncond, cond, strict=True))
    )


def _halves(no_image: KV, image: KV, strength: SiteStrength) -> KV:
    nothing = (torch.zeros_like(image[0]), torch.zeros_like(image[1]))
    first, second = (image, nothing) if strength.swap else (tuple(x.expand_as(image[0]) for x in no_image), image)
    return torch.cat((first[0], second[0])), torch.cat((first[1], second[1])) * strength.value


def _pipeline(base: Base) -> Any:
    """A pipeline of the base's kind with the schedule it is trained on; its own scheduler may be any."""
    schedule = base.schedule.config
    spacing = "trailing" if schedule.rescale_betas_zero_snr else schedule.timestep_spacing
    # clipping is for pixels, although a DDPM schedule has it by default
    scheduler = DDIMScheduler.from_config(schedule, clip_sample=False, set_alpha_to_one=False, timestep_spacing=spacing)
    # the UNet alone: text is encoded before, latents are decoded after, and a run may free both parts meanwhile
    parts = {**dict.fromkeys(base.pipeline.components), "unet": base.unet, "scheduler": scheduler}
    options = {} if base.is_sdxl else {"requires_safety_checker": False}
    pipeline = type(base.pipeline)(**parts, **options)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _embeds(texts: Sequence[TextEmbeds], prefix: str) -> dict[str, Tensor]:
    """Arguments of diffusers' pipelines."""
    named = {f"{prefix}prompt_embeds": torch.cat([text.tokens for text in texts])}
    pooled = [text.pooled for text in texts if text.pooled is not None]
    return {**named, f"{prefix}pooled_prompt_embeds": torch.cat(pooled)} if pooled else named


def _pictures(pixels: Tensor) -> list[Image.Image]:
    arrays = (pixels.permute(0, 2, 3, 1) * 255).round().to(torch.uint8).cpu().numpy()
    return [Image.fromarray(array) for array in arrays]
