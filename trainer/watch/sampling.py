"""Pictures from a base, an adapter and references, through diffusers' pipelines: what a person judges a run by."""

# B pictures, C latent channels, h w latent size

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ipadapter_core.errors import BadInputError
from ipadapter_core.strength.presets import resolve_preset
from ipadapter_core.strength.site import SiteStrength

from .. import named
from ..backbones.backbone import Backbone
from ..backbones.image_prompt import KV, ImageAt, ImagePrompt, LayerLora
from ..config import AugmentConfig, Config
from ..draws import sample_generator
from ..readers.reader import ReferenceReader

_NUM_TIMESTEPS = 1000


@dataclass(frozen=True, kw_only=True)
class SampleSettings:
    """How pictures are drawn.

    Attributes:
        strengths: of the image prompt; 0 is the base alone.
        guidance: 1 is off; None is what is usual for the model.
        blocks: layer preset of the core.
        count: pictures per reference and strength, each from its own noise.
        size: width and height in pixels.
        batch_size: pictures denoised together.
    """

    strengths: tuple[float, ...] = (0.0, 0.5, 1.0)
    steps: int = 30
    guidance: float | None = None
    seed: int = 0
    size: tuple[int, int] = (512, 512)
    blocks: str = "all"
    count: int = 1
    batch_size: int = 4

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= _NUM_TIMESTEPS:
            raise BadInputError(f"{self.steps} sampling steps", expected="1 to 1000", action="30 is usual")
        if self.guidance is not None and self.guidance < 1:
            raise BadInputError(
                f"guidance {self.guidance}", expected="1 (off) or more", action="leave it out for what is usual"
            )
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


Text = Mapping[str, Tensor]  # a prompt as `Backbone.encode_text` gives it, one row


@dataclass(frozen=True, eq=False)
class Reference:
    """An image prompt with the text it is drawn with, encoded once.

    Attributes:
        name: of the picture, for files and labels.
        caption: what is said to be on it; may be "".
        prompt: text of what is drawn from it.
        features: by name, one row each.
    """

    name: str
    picture: Image.Image
    caption: str
    prompt: str
    features: Mapping[str, Tensor]
    text: Text


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


def encode_prompt(base: Backbone, prompt: str) -> Text:
    """On the device, where text encoders need not be any more."""
    return named.each(base.encode_text([prompt]), lambda tensor: tensor.to(base.device))


def encode_reference(
    picture: Image.Image,
    name: str,
    *,
    base: Backbone,
    reader: ReferenceReader,
    caption: str = "",
    prompt: str | None = "",
    identity: Tensor | None = None,
) -> Reference:
    """Encode a picture (RGB) and its prompt.

    Args:
        prompt: None is the picture's own caption.
        identity: the ready embedding of its face.

    Raises:
        BrokenPictureError: nothing to read is in it, such as a face.
    """
    prepared = reader.preparation.prepare(
        picture.convert("RGB"), AugmentConfig(), torch.Generator(), name=name, identity=identity
    )
    features = reader.read(named.stacked([prepared]))
    text = caption if prompt is None else prompt
    return Reference(name, picture, caption, text, features, encode_prompt(base, text))


class Sampler:
    """Draws with a base model. Draws nothing from the global generators and changes nothing of the base.

    Args:
        base: prepared by `install`.
        negative: the negative prompt, encoded.

    Raises:
        BadInputError: a size the model cannot draw.
    """

    def __init__(self, base: Backbone, settings: SampleSettings, negative: Text) -> None:
        if any(side < base.side_step or side % base.side_step for side in settings.size):
            raise BadInputError(
                f"a picture size of {settings.size[0]}x{settings.size[1]}",
                expected=f"sides that are multiples of {base.side_step}",
                action="choose such a size; 512 is usual, 1024 for SDXL",
            )
        if base.largest_side is not None and max(settings.size) > base.largest_side:
            raise BadInputError(
                f"a picture size of {settings.size[0]}x{settings.size[1]} with {base.name}",
                expected=f"at most {base.largest_side} on a side, for so many it has places",
                action="choose a smaller size",
            )
        self.base, self.settings, self.negative = base, settings, negative
        self.guidance = base.usual_guidance if settings.guidance is None else settings.guidance

    @property
    def is_guided(self) -> bool:
        """Whether pictures are drawn without the prompts as well, and the difference enlarged."""
        return self.guidance > 1 and self.base.has_uncond

    def noise(self, place: int, take: int) -> Tensor:
        """(1, C, h, w) for a reference picture by its place among them, on the CPU."""
        width, height = (side // self.base.latent_factor for side in self.settings.size)
        generator = sample_generator(self.settings.seed, place, f"picture {take}")
        return torch.randn(1, self.base.latent_channels, height, width, generator=generator)

    def site_strengths(self, strength: float) -> dict[int, SiteStrength]:
        return resolve_preset(self.settings.blocks, self.base.sites, strength)

    @torch.no_grad()
    def draw(
        self,
        noise: Tensor,
        texts: Sequence[Text],
        image: ImageAt,
        progress: Callable[[int], object] = lambda pictures: None,
    ) -> list[Image.Image]:
        """Pictures (B) from noise (B, C, h, w), a prompt each, and their image prompts.

        Args:
            image: of 2B rows, uncond, then cond, where it `is_guided`; else of B.
        """
        count, settings = len(texts), self.settings
        latents = self.base.denoise(
            noise,
            named.joined(texts),
            named.joined([self.negative] * count) if self.is_guided else None,
            image,
            steps=settings.steps,
            guidance=self.guidance,
            progress=lambda: progress(count),
        )
        return _pictures(self.base.decode(latents))


@torch.no_grad()
def sample_grid(
    sampler: Sampler,
    adapter: Callable[..., ImagePrompt],
    no_image: Mapping[str, Tensor],
    references: Sequence[Reference],
    progress: Callable[[int], object] = lambda pictures: None,
    share: Share = Share(),
) -> SampleGrid:
    """Draw every reference at every strength; the noise is the same at all strengths and for all texts of a picture, and
    follows from the seed and the picture's place.

    Processes that share the work all get all pictures.

    Args:
        adapter: features (and times) to what acts at every site, a `TrainableAdapter`.
        no_image: features that stand for no image, for the uncond half.
        progress: called after each denoising step with the number of pictures in it.
    """
    settings = sampler.settings
    places: dict[int, int] = {}
    for reference in references:
        places.setdefault(id(reference.picture), len(places))
    jobs = [(place, take) for place in range(len(references)) for take in range(settings.count)]
    rows: list[list[Image.Image]] = [[] for _ in jobs]
    uncond = _at(sampler.base, adapter, no_image)
    together = settings.rows_together(len(jobs), share)
    for start in range(0, len(jobs), together)[share.rank :: share.size]:
        chosen = slice(start, start + together)
        batch = [references[place] for place, _ in jobs[chosen]]
        takes = zip(batch, (take for _, take in jobs[chosen]), strict=True)
        noise = torch.cat([sampler.noise(places[id(reference.picture)], take) for reference, take in takes])
        cond = _at(sampler.base, adapter, named.joined([reference.features for reference in batch]))
        for strength in settings.strengths:
            image = _strengthened(uncond, cond, sampler.site_strengths(strength), is_guided=sampler.is_guided)
            pictures = sampler.draw(noise, [reference.text for reference in batch], image, progress)
            for row, picture in zip(rows[chosen], pictures, strict=True):
                row.append(picture)
    drawn = dict(share.gather([(number, tuple(row)) for number, row in enumerate(rows) if row]))
    return SampleGrid(
        tuple(references[place] for place, _ in jobs),
        settings.strengths,
        tuple(drawn[number] for number in range(len(jobs))),
    )


def _at(base: Backbone, adapter: Callable[..., ImagePrompt], features: Mapping[str, Tensor]) -> ImageAt:
    """What an adapter gives for features at any time; computed once where it is the same at all."""
    features = named.each(features, lambda tensor: tensor.to(base.device))
    always = None if base.is_timed else adapter(features, base.adapter_times(torch.zeros(1, device=base.device)))
    if always is not None and not always.gates:
        return lambda times: always
    return lambda times: adapter(features, base.adapter_times(times))


def _strengthened(uncond: ImageAt, cond: ImageAt, strengths: Mapping[int, SiteStrength], *, is_guided: bool) -> ImageAt:
    if is_guided:
        return lambda times: guided(uncond(times[:1]), cond(times), strengths)
    return lambda times: _second_half(guided(uncond(times[:1]), cond(times), strengths))


def guided(uncond: ImagePrompt, cond: ImagePrompt, strengths: Mapping[int, SiteStrength]) -> ImagePrompt:
    """Of both halves of a batch as guidance lays them, strengths folded into V.

    Args:
        uncond: of no image, one row.
        cond: of B references.
        strengths: by site; a site at 0 is left out. A LoRA is as strong as the site of its block.

    Returns:
        Of 2B rows: uncond, then cond.
    """
    given = _of_scaled_tokens(cond, strengths) if cond.idle else cond.kv
    pairs = tuple(
        None
        if no_image is None or image is None or not strengths[site].value
        else _halves(no_image, image, swap=strengths[site].swap)
        for site, (no_image, image) in enumerate(zip(uncond.kv, given, strict=True))
    )
    if cond.norms:  # values of the picture itself are among those that are attended to
        factors = tuple(None if kv is None else _factors(kv, strengths[site]) for site, kv in enumerate(pairs))
        return ImagePrompt(pairs, cond.norms, factors)
    if not cond.idle:
        pairs = tuple(None if kv is None else (kv[0], kv[1] * strengths[site].value) for site, kv in enumerate(pairs))
    gates = tuple(None if gate is None else gate[:1] for gate in cond.gates)  # all rows are at one time
    return cond._replace(kv=pairs, lora=_scaled(cond.lora, strengths), gates=gates)


def _of_scaled_tokens(image: ImagePrompt, strengths: Mapping[int, SiteStrength]) -> tuple[KV | None, ...]:
    """K and V where strengths multiply tokens. Of K all are moved alike by the layer's bias, which attention does not see."""
    return tuple(
        None if kv is None else (kv[0] * strengths[site].value, torch.lerp(idle, kv[1], strengths[site].value))
        for site, (kv, idle) in enumerate(zip(image.kv, image.idle, strict=True))
    )


def _scaled(lora: tuple[LayerLora, ...] | None, strengths: Mapping[int, SiteStrength]) -> tuple[LayerLora, ...] | None:
    if lora is None:
        return None
    values = [strengths[layer // 2].value for layer in range(len(lora))]
    return tuple(
        {part: (down, up * value) for part, (down, up) in each.items()} if value else {}
        for each, value in zip(lora, values, strict=True)
    )


def _halves(no_image: KV, image: KV, *, swap: bool) -> KV:
    nothing = (torch.zeros_like(image[0]), torch.zeros_like(image[1]))
    first, second = (image, nothing) if swap else (tuple(x.expand_as(image[0]) for x in no_image), image)
    return torch.cat((first[0], second[0])), torch.cat((first[1], second[1]))


def _factors(kv: KV, strength: SiteStrength) -> Tensor:
    """(2B, 1, 1)."""
    value, half = strength.value, len(kv[0]) // 2
    rows = [value] * half + [0.0 if strength.swap else value] * half
    return torch.tensor(rows, dtype=kv[0].dtype, device=kv[0].device)[:, None, None]


def _second_half(image: ImagePrompt) -> ImagePrompt:
    return image._replace(
        kv=tuple(None if kv is None else (kv[0].chunk(2)[1], kv[1].chunk(2)[1]) for kv in image.kv),
        strengths=tuple(None if factors is None else factors.chunk(2)[1] for factors in image.strengths),
    )


def _pictures(pixels: Tensor) -> list[Image.Image]:
    arrays = (pixels.permute(0, 2, 3, 1) * 255).round().to(torch.uint8).cpu().numpy()
    return [Image.fromarray(array) for array in arrays]
