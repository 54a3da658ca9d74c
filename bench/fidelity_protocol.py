"""The measurements of `fidelity.py` on one adapter: what is drawn, and what is asked of the pictures."""

# R references, S noises, N = R * S pictures (reference by reference), D feature width

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from fidelity_gallery import Gallery, spread
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from demo import scenes
from demo.world.lessons import HALVES
from demo.world.pictures import OTHER_STYLE
from support.meaning import half_mask, halves, leakage, ranks
from support.studio import NOISES, Studio, to_tensor

STRENGTHS = scenes.STRENGTHS
OTHER_CATEGORY = "food"
SIDES = ("left", "right")


@dataclass(frozen=True)
class Counts:
    """References of each measurement, drawn from `NOISES` noises each; one of 0 is left out."""

    retrieval: int = 200
    strength: int = 25
    text: int = 12
    mask: int = 10
    regions: int = 20
    diffusers: int = 2


@dataclass(frozen=True)
class Protocol:
    """Measures adapters loaded into a studio; what `measure` gives goes into the JSON as it is."""

    studio: Studio
    gallery: Gallery
    counts: Counts
    _plain: dict[str, list[Image.Image]] = field(default_factory=dict)

    @cached_property
    def references(self) -> list[int]:
        """Of retrieval, as indexes of the gallery."""
        return self.gallery.choose(self.counts.retrieval)

    def measure(self, name: str, adapter: Any, drawn: Sequence[Image.Image]) -> dict[str, Any]:
        """Everything about an adapter.

        Args:
            drawn: by `draw`, of `references`.
        """
        features = self.gallery.see(drawn, f"{name}: retrieval")
        parts = (self.text, self.mask, self.regions)
        return {
            **retrieval(self.gallery, features, self.references),
            "similarity_by_strength": self.similarity(name, adapter, features),
            **{part.__name__: part(name, adapter) for part in parts if getattr(self.counts, part.__name__)},
        }

    def base_pictures(self, prompt: str) -> list[Image.Image]:
        """Without adapter: the same for every reference, so drawn once."""
        if prompt not in self._plain:
            self._plain[prompt] = self.studio.draw(self.studio.model, prompt)
        return self._plain[prompt]

    def draw(
        self, adapter: Any, references: Sequence[int], what: str, strength: float = 1.0, prompts: Sequence[str] = ()
    ) -> list[Image.Image]:
        """N pictures; `prompts` are one for each reference, or none."""
        drawn = []
        for number, reference in enumerate(tqdm(references, desc=what)):
            prompt = prompts[number] if prompts else ""
            if strength == 0:
                drawn += self.base_pictures(prompt)
            else:
                model = self.studio.apply(adapter, self.gallery.images[reference], strength)
                drawn += self.studio.draw(model, prompt)
        return drawn

    def similarity(self, name: str, adapter: Any, features: Tensor) -> dict[str, float]:
        """Mean cosine to the reference by strength, of some of the references.

        Args:
            features: of what was drawn at strength 1.
        """
        rows = spread(range(len(self.references)), self.counts.strength)
        some = [self.references[row] for row in rows]
        own = self.gallery.features[torch.tensor(repeated(some))]
        by_strength = {}
        for strength in STRENGTHS:
            label = f"{name}: strength {strength:g}"
            if strength == 1:
                seen = features.unflatten(0, (-1, NOISES))[rows].flatten(0, 1)
            else:
                seen = self.gallery.see(self.draw(adapter, some, label, strength), label)
            by_strength[f"{strength:g}"] = mean((seen * own).sum(dim=1))
        return by_strength

    def text(self, name: str, adapter: Any) -> dict[str, Any]:
        """Shares of pictures by strength in which the caption's side shows, the reference's, and both.

        Category: references that are no food, caption "food". Style: caption "3d emoji" with a flat reference, and the
        reverse. The caption shows if the classifier says so; the reference if its emoji, in either style, is among the
        nearest tenth (chance: 0.1).
        """
        pictures = self.gallery.pictures
        no_food = [index for index, picture in enumerate(pictures) if picture.category != OTHER_CATEGORY]
        for_category, for_style = spread(no_food, self.counts.text), self.gallery.choose(self.counts.text)
        other_styles = [OTHER_STYLE[pictures[index].style] for index in for_style]
        food = [OTHER_CATEGORY] * len(for_category)
        cases = {
            "category": (for_category, food, food),
            "style": (for_style, [f"{style} emoji" for style in other_styles], other_styles),
        }
        result: dict[str, Any] = {}
        for kind, (references, prompts, wanted) in cases.items():
            shares: dict[str, dict[str, float]] = {}
            for strength in STRENGTHS:
                label = f"{name}: {kind} at strength {strength:g}"
                features = self.gallery.see(self.draw(adapter, references, label, strength, prompts), label)
                found = self.gallery.label(features, kind)
                caption = torch.tensor([a == b for a, b in zip(found, repeated(wanted), strict=True)])
                reference = self.gallery.near(features, repeated(references))
                sides = {"caption": caption, "reference": reference, "both": caption & reference}
                shares[f"{strength:g}"] = {side: mean(holds) for side, holds in sides.items()}
            result[kind] = {"classifier_accuracy": round(self.gallery.accuracy(kind), 4), "by_strength": shares}
        return result

    def mask(self, name: str, adapter: Any) -> dict[str, float]:
        """Change outside the left or right half over change inside, by prompt: where the base takes the halves for
        unrelated, and where it draws one thing, whose other half then follows by the base's own doing."""
        references = self.gallery.choose(self.counts.mask)
        result = {}
        for prompt in (HALVES, ""):
            plain = to_tensor(self.base_pictures(prompt))
            values = []
            for number, reference in enumerate(tqdm(references, desc=f"{name}: mask, prompt {prompt!r}")):
                mask = half_mask(SIDES[number % 2], scenes.SIZE)
                model = self.studio.apply(adapter, self.gallery.images[reference], mask=mask)
                values.append(leakage(to_tensor(self.studio.draw(model, prompt)), plain, mask))
            result[prompt] = round(sum(values) / len(values), 4)
        return result

    def regions(self, name: str, adapter: Any) -> dict[str, float]:
        """Two references, left and right: shares of halves that are nearer to their own reference's half than to the
        other's, and nearest to it among the same halves of all held-out pictures."""
        references = self.gallery.choose(self.counts.regions)
        offset = len(references) // 2
        pairs = list(zip(references, references[offset:] + references[:offset], strict=True))
        drawn = []
        for left, right in tqdm(pairs, desc=f"{name}: two regions"):
            model = None
            for side, reference in zip(SIDES, (left, right), strict=True):
                mask = half_mask(side, scenes.SIZE)
                model = self.studio.apply(adapter, self.gallery.images[reference], mask=mask, onto=model)
            drawn += self.studio.draw(model, HALVES)
        own, first = [], []
        for side, here, there in (("left", 0, 1), ("right", 1, 0)):
            similarity = self.gallery.see(halves(drawn, side), f"{name}: {side} halves") @ self.gallery.halves[side].T
            mine, other = (torch.tensor(repeated([pair[which] for pair in pairs])) for which in (here, there))
            rows = torch.arange(len(similarity))
            own.append(similarity[rows, mine] > similarity[rows, other])
            first.append(similarity.argmax(dim=1) == mine)
        return {"own_of_two": mean(torch.cat(own)), "top1_of_halves": mean(torch.cat(first))}


def retrieval(gallery: Gallery, features: Tensor, references: Sequence[int]) -> dict[str, Any]:
    """top1, top5, and top1 where the same emoji in the other style counts; `top1_error` is the standard error over
    references.

    Args:
        features: (N, D), equally many for each reference.
    """
    each = len(features) // len(references)
    itself = ranks(features, gallery.features, gallery.own(references).repeat_interleave(each, dim=0))
    any_style = gallery.own(references, any_style=True).repeat_interleave(each, dim=0)
    hits = (itself == 0).float().unflatten(0, (-1, each)).mean(dim=1)
    return {
        "top1": mean(itself == 0),
        "top5": mean(itself < 5),
        "top1_any_style": mean(ranks(features, gallery.features, any_style) == 0),
        "top1_error": mean(hits.std() / len(hits) ** 0.5),
    }


def repeated(values: Sequence[Any]) -> list[Any]:
    """Each value for every noise."""
    return [value for value in values for _ in range(NOISES)]


def mean(values: Tensor) -> float:
    return round(float(values.float().mean()), 4)
