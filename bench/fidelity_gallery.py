"""The emoji of the demo's world as the judge sees them: the held-out ones to find a reference among, the others to
teach what a style and a category look like."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from harness import ROOT  # noqa: F401  # puts the checkout on the path
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from demo.judge import Judge
from demo.world.pictures import Picture, read_list
from support.meaning import classify, halves, ridge_classifier

TAUGHT_SHARE = 3  # every third of the others is enough to learn styles and categories from
NEAR_SHARE = 10  # "near" is the nearest tenth of the emoji
CHUNK = 64  # pictures between two steps of the bar


@dataclass(frozen=True)
class Gallery:
    """The held-out pictures of a folder, G of them, both styles; the references are spread evenly over them.

    Attributes:
        judge: makes all features.
        pictures, images: one each.
    """

    folder: Path
    judge: Judge
    pictures: list[Picture]
    images: list[Image.Image] = field(repr=False)

    @classmethod
    def open(cls, folder: Path, judge: Judge) -> "Gallery":
        pictures = [picture for picture in read_list(folder) if picture.is_held_out]
        return cls(folder, judge, pictures, _read(folder, pictures))

    @cached_property
    def features(self) -> Tensor:
        """(G, D)."""
        return self.see(self.images, "gallery")

    @cached_property
    def halves(self) -> dict[str, Tensor]:
        """(G, D) of the left and of the right halves."""
        return {side: self.see(halves(self.images, side), f"{side} halves") for side in ("left", "right")}

    @cached_property
    def classifiers(self) -> dict[str, tuple[list[str], Tensor]]:
        """Of styles and of categories: their names and what `classify` needs."""
        others = [picture for picture in read_list(self.folder) if not picture.is_held_out][::TAUGHT_SHARE]
        features = self.see(_read(self.folder, others), "styles and categories")
        learned = {}
        for kind in ("style", "category"):
            names = sorted({getattr(picture, kind) for picture in others})
            labels = torch.tensor([names.index(getattr(picture, kind)) for picture in others])
            learned[kind] = (names, ridge_classifier(features, labels))
        return learned

    def choose(self, count: int) -> list[int]:
        """Indexes of `count` references, or of all there are."""
        return spread(range(len(self.pictures)), count)

    def own(self, references: Sequence[int], *, any_style: bool = False) -> Tensor:
        """(N, G): the reference itself, or the same emoji in either style."""
        codes = [picture.code for picture in self.pictures]
        rows = [
            [code == codes[reference] if any_style else index == reference for index, code in enumerate(codes)]
            for reference in references
        ]
        return torch.tensor(rows)

    def label(self, features: Tensor, kind: str) -> list[str]:
        """Style or category (N) that pictures seem to have."""
        names, classifier = self.classifiers[kind]
        return [names[label] for label in classify(features, classifier).tolist()]

    def accuracy(self, kind: str) -> float:
        """Of `label`, on the held-out pictures themselves."""
        found = self.label(self.features, kind)
        hits = [label == getattr(picture, kind) for label, picture in zip(found, self.pictures, strict=True)]
        return sum(hits) / len(hits)

    def near(self, features: Tensor, references: Sequence[int]) -> Tensor:
        """(N,): whether the reference's emoji, in either style, is among the nearest tenth of all emoji."""
        similarity = features @ self.features.T
        codes = sorted({picture.code for picture in self.pictures})
        owner = torch.tensor([codes.index(picture.code) for picture in self.pictures])
        emoji = torch.full((len(features), len(codes)), -2.0)
        emoji.scatter_reduce_(1, owner.expand(len(features), -1), similarity, "amax")
        own = emoji.gather(1, owner[torch.tensor(references)][:, None])
        return (emoji > own).sum(dim=1) < len(codes) // NEAR_SHARE

    def see(self, pictures: Sequence[Image.Image], what: str) -> Tensor:
        """Features of pictures, with a bar; a picture that occurs again, as the base's do, is judged once."""
        once = {id(picture): picture for picture in pictures}
        chunks = range(0, len(once), CHUNK)
        different = list(once.values())
        features = torch.cat(
            [self.judge.features(different[start : start + CHUNK]) for start in tqdm(chunks, desc=f"judge: {what}")]
        )
        place = {key: number for number, key in enumerate(once)}
        return features[[place[id(picture)] for picture in pictures]]


def spread(values: Sequence[int], count: int) -> list[int]:
    """`count` of some values, or all if they are fewer, evenly spread: a fixed step could meet one style only."""
    count = min(count, len(values))
    return [values[number * len(values) // count] for number in range(count)]


def _read(folder: Path, pictures: Sequence[Picture]) -> list[Image.Image]:
    return [Image.open(folder / picture.file).convert("RGB") for picture in pictures]
