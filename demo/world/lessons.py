"""What the base model is taught: pictures, noise levels, captions, and image prompts beside them."""

# B samples; W words of an image prompt

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .image_prompts import CELLS, WordsOf
from .pictures import OTHER_STYLE, Picture

HALVES = "two halves"  # caption of a picture whose halves have nothing to do with each other
LATE = 0.5  # half of a batch is drawn from the noisier half of the timesteps, where prompts decide


@dataclass(frozen=True)
class Lesson:
    """What a caption says, how often, and what is shown beside it.

    Attributes:
        caption: key of `captions_of`; with HALVES the picture is two unrelated halves with one of them shown.
        shown: by image prompt; else by caption alone.
        other_style: the prompt shows the emoji in its other style, and the caption names the style to be drawn.
    """

    caption: str
    share: float
    shown: bool = True
    other_style: bool = False


LESSONS = (
    Lesson("empty", 0.28),
    Lesson("style", 0.14, other_style=True),
    Lesson("style_category", 0.08),
    Lesson("category", 0.06),
    Lesson(HALVES, 0.14),
    Lesson(HALVES, 0.05, shown=False),
    Lesson("full", 0.10, shown=False),
    Lesson("style_category", 0.05, shown=False),
    Lesson("category", 0.03, shown=False),
    Lesson("style", 0.03, shown=False),
    Lesson("empty", 0.04, shown=False),
)


def captions_of(picture: Picture) -> dict[str, str]:
    """By the captions of LESSONS."""
    return {
        "full": picture.caption,
        "style_category": f"{picture.style} emoji, {picture.category}",
        "category": picture.category,
        "style": f"{picture.style} emoji",
        "empty": "",
        HALVES: HALVES,
    }


@dataclass(frozen=True)
class Batch:
    """Attributes:
    x: latents to be drawn (B, 4, 8, 8).
    t: timesteps (B,).
    context: captions (B, 77, 768).
    reference: latents that the image prompts tell of (B, 4, 8, 8).
    words: image prompts (B, W, 768).
    shown: (B, 8, 8), where the image prompt holds.
    """

    x: Tensor
    t: Tensor
    context: Tensor
    reference: Tensor
    words: Tensor
    shown: Tensor


class Lessons:
    """Draws batches.

    Args:
        latents: (N, 4, 8, 8), of the pictures.
        text: caption to (77, 768): every caption of every picture.
    """

    def __init__(self, pictures: Sequence[Picture], latents: Tensor, text: Mapping[str, Tensor]) -> None:
        self.latents, self.text = latents, text
        self.captions = [captions_of(picture) for picture in pictures]
        self.taught = torch.tensor([number for number, picture in enumerate(pictures) if not picture.is_held_out])
        self.other_style = _in_other_style(pictures)
        self._lessons, self._sides = (torch.tensor([*odds]) for odds in ((x.share for x in LESSONS), CELLS.values()))
        self._words_of = [WordsOf(side) for side in CELLS]

    def draw(self, size: int, timesteps: int, generator: torch.Generator) -> Batch:
        """A batch of `size` samples, at timesteps below `timesteps`."""

        def below(count: int, least: int = 0) -> Tensor:
            return torch.randint(least, count, (size,), generator=generator)

        drawn = [LESSONS[number] for number in torch.multinomial(self._lessons, size, True, generator=generator)]
        has_prompt = torch.tensor([lesson.shown for lesson in drawn])
        halved = torch.tensor([lesson.caption == HALVES for lesson in drawn])
        target = torch.where(has_prompt, self.taught[below(len(self.taught))], below(len(self.captions)))
        beside = below(len(self.captions))
        others = torch.tensor([lesson.other_style for lesson in drawn])
        reference = self.latents[torch.where(others, self.other_style[target], target)]
        width = self.latents.shape[-1]
        right_half = torch.arange(width) >= width // 2
        keeps = (right_half == (below(2) == 1)[:, None]) | ~halved[:, None]  # (B, columns)
        keeps = keeps[:, None].expand(-1, width, -1)
        words_of = self._words_of[int(torch.multinomial(self._sides, 1, generator=generator))]
        said = [self.captions[number][lesson.caption] for lesson, number in zip(drawn, target.tolist(), strict=True)]
        late = torch.rand(size, generator=generator) < LATE
        return Batch(
            x=torch.where(keeps[:, None], self.latents[target], self.latents[beside]),
            t=torch.where(late, below(timesteps, timesteps // 2), below(timesteps)),
            context=torch.stack([self.text[caption] for caption in said]).float(),
            reference=reference,
            words=words_of(reference),
            shown=keeps & has_prompt[:, None, None],
        )


def _in_other_style(pictures: Sequence[Picture]) -> Tensor:
    """(N,): number of the same emoji's picture in the other style, or its own where there is none."""
    numbers = {(picture.code, picture.style): number for number, picture in enumerate(pictures)}
    return torch.tensor(
        [numbers.get((picture.code, OTHER_STYLE[picture.style]), number) for number, picture in enumerate(pictures)]
    )
