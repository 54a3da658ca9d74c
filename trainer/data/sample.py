"""One sample from one record: pictures and random parts, or what is cached of them."""

# C latent channels, h w latent size, H W pixels, S encoder input

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from .. import named
from ..backbones.times import TimeShift
from ..batch import Batch, Skipped
from ..config import AugmentConfig, Config
from ..draws import CACHED_NOISES, draw, sample_generator
from ..readers.reader import Preparation
from .buckets import Centered, Placement, place
from .digests import DigestMemo
from .identities import ready_identity
from .pictures import BrokenPictureError, Picture, Size, decode
from .prepare import (
    REFERENCE,
    TARGET,
    caption_digest,
    entry_key,
    latents_key,
    loss_mask,
    place_target,
    target_pixels,
    variant_generator,
)
from .records import DataError, Record


@dataclass(frozen=True)
class Geometry:
    """What the models need to be given.

    Attributes:
        latent_channels: C.
        latent_factor: pixels of a latent cell.
        reference: how a reference becomes its reader's input.
        shift: of the times of a flow model; None: a schedule's steps.
    """

    latent_channels: int
    latent_factor: int
    reference: Preparation
    shift: TimeShift | None = None


class Store(Protocol):
    """Cached entries of one kind; `ipadapter_trainer.cache.store.CacheStore` is one."""

    def get(self, key: str) -> Mapping[str, Tensor]:
        """Raises KeyError if there is no such entry."""


@dataclass(frozen=True, eq=False)
class Stores:
    """Which parts of a sample are cached; None where they are made from the pictures.

    Attributes:
        latents: mean and std (C, h, w) and sizes (6,) by `latents_key` of the target.
        features: named features by `entry_key` of the reference, as the reader gives them.
        text: named embeddings by `caption_digest`, as the model gives them.
        digests: of the pictures' bytes.
    """

    latents: Store | None = None
    features: Store | None = None
    text: Store | None = None
    digests: DigestMemo = field(default_factory=lambda: DigestMemo(None))

    @property
    def encoded(self) -> tuple[str, ...]:
        """The parts that are not cached, as `cache.parts` calls them."""
        stores = {"latents": self.latents, "text": self.text, "features": self.features}
        return tuple(part for part, store in stores.items() if store is None)


@dataclass(frozen=True)
class Candidate:
    """A record that may become a sample, with the reference it would have.

    Attributes:
        others: pictures that are read together with the reference.
    """

    record: Record
    reference: Picture
    others: tuple[Picture, ...] = ()


@dataclass(frozen=True, eq=False)
class Sample:
    """Parts of a `Batch`, under its names, without the batch dimension."""

    key: str
    caption: str
    position: int
    tensors: Mapping[str, Tensor | Mapping[str, Tensor]]


@dataclass(frozen=True, eq=False)
class SampleMaker:
    """Makes samples by record, position and size; sent to the data workers.

    Attributes:
        is_plain: samples to compare by: nothing is cropped or changed at random or dropped, the first caption and
            the first cached variant are taken. Noise and timestep are drawn as ever.
    """

    config: Config
    geometry: Geometry
    stores: Stores = field(default_factory=Stores)
    is_plain: bool = False

    def first_usable(
        self, candidates: Iterable[Candidate], position: int, bucket: Size
    ) -> tuple[Sample, tuple[Skipped, ...]]:
        """A sample of the first candidate whose pictures can be read, and those before it.

        Raises:
            DataError: none can.
        """
        skipped: list[Skipped] = []
        for candidate in candidates:
            try:
                return self.make(candidate, position, bucket), tuple(skipped)
            except BrokenPictureError as error:
                skipped.append(Skipped(candidate.record.key, error.name, error.reason))
        raise DataError(
            f"{len(skipped)} pictures in a row that cannot be used, the first {skipped[0].path} ({skipped[0].reason})",
            expected="pictures that can be read",
            action="correct data.path or data.image_root, or repair the pictures",
        )

    def make(self, candidate: Candidate, position: int, bucket: Size) -> Sample:
        """The sample number `position` of the run.

        Raises:
            BrokenPictureError: target, reference or mask cannot be read.
            DataError: the cache lacks a part.
        """
        config, record = self.config, candidate.record
        variant = self._variant(position)
        geometry = self.geometry
        opened: dict[str, Image.Image] = {}
        target = self._target(record, position, variant, bucket, opened)
        pixels_or_mean = target["pixels"] if "pixels" in target else target["latent_mean"]
        factor = geometry.latent_factor if "pixels" in target else 1
        height, width = (side // factor for side in pixels_or_mean.shape[-2:])
        shape = (geometry.latent_channels, height, width)
        draws = draw(config.train.seed, position, shape, config.objective, geometry.shift)
        tensors: dict[str, Tensor | Mapping[str, Tensor]] = {**target}
        tensors |= self._references(candidate, position, variant, opened)
        drop_text, drop_image = (drop and not self.is_plain for drop in (draws.drop_text, draws.drop_image))
        caption = "" if drop_text else self._caption(record, position)
        tensors |= self._text(caption)
        tensors |= {
            "latent_noise": draws.latent_noise,
            "noise": draws.noise,
            "times": torch.tensor(draws.time),
            "drop_image": torch.tensor(drop_image),
        }
        if draws.perturbation is not None:
            tensors["perturbation"] = draws.perturbation
        if config.adapter.negative == "noise" and not self.is_plain:
            tensors |= self._noise(position, drop_image)
        if config.objective.drop_identity and not self.is_plain:
            generator = sample_generator(config.train.seed, position, "identity")
            lost = torch.rand(config.data.references_together, generator=generator) < config.objective.drop_identity
            tensors["drop_identity"] = lost
        return Sample(record.key, caption, position, tensors)

    def _variant(self, position: int) -> int:
        if self.is_plain:
            return 0
        generator = sample_generator(self.config.train.seed, position, "variant")
        return int(torch.randint(self.config.cache.variants, (), generator=generator))

    def _caption(self, record: Record, position: int) -> str:
        if self.is_plain or not record.other_captions:
            return record.caption
        generator = sample_generator(self.config.train.seed, position, "caption")
        return record.captions[int(torch.randint(len(record.captions), (), generator=generator))]

    def _target(
        self, record: Record, position: int, variant: int, bucket: Size, opened: dict[str, Image.Image]
    ) -> dict[str, Tensor]:
        seed, data = self.config.train.seed, self.config.data
        if self.stores.latents is None:
            image = _open(record.image, opened)
            framing = Centered() if self.is_plain else data
            placement = place_target(image, framing, bucket, sample_generator(seed, position, TARGET))
            tensors = {"pixels": target_pixels(image, placement), "sizes": placement.sizes.float()}
        else:
            digest = self.stores.digests.digest(record.image)
            key = latents_key(digest, variant, bucket if data.more_resolutions else None)
            entry = self._cached(self.stores.latents, key, record.image)
            tensors = {"latent_mean": entry["mean"], "latent_std": entry["std"], "sizes": entry["sizes"].float()}
            placement = self._cached_placement(entry["sizes"], variant_generator(seed, digest, variant, TARGET))
        if self.config.objective.masked and record.mask is not None:
            tensors["loss_mask"] = loss_mask(record.mask, placement, self.geometry.latent_factor)
        return tensors

    def _cached_placement(self, sizes: Tensor, generator: torch.Generator) -> Placement:
        """The placement that made an entry; its generator draws the same again."""
        height, width, _, _, *target = (int(size) for size in sizes)
        return place((height, width), (target[0], target[1]), self.config.data, generator)

    def _references(
        self, candidate: Candidate, position: int, variant: int, opened: dict[str, Image.Image]
    ) -> dict[str, Mapping[str, Tensor]]:
        """Of several that are read together every tensor gets a dimension of them in front."""
        generator = sample_generator(self.config.train.seed, position, REFERENCE)
        together = (candidate.reference, *candidate.others)
        parts = [self._reference(picture, variant, generator, opened) for picture in together]
        name = "references" if self.stores.features is None else "features"
        return {name: parts[0] if len(parts) == 1 else _stacked(parts)}

    def _reference(
        self, picture: Picture, variant: int, generator: torch.Generator, opened: dict[str, Image.Image]
    ) -> Mapping[str, Tensor]:
        if self.stores.features is not None:
            key = entry_key(self.stores.digests.digest(picture), variant)
            return self._cached(self.stores.features, key, picture)
        changes = AugmentConfig() if self.is_plain else self.config.data.augment
        image, identity = _open(picture, opened), None
        if self.config.adapter.reads_faces and self.config.encoder.face_model is None:
            identity = ready_identity(picture)
        return self.geometry.reference.prepare(image, changes, generator, name=picture.name, identity=identity)

    def _noise(self, position: int, drop_image: bool) -> dict[str, Tensor | Mapping[str, Tensor]]:
        """What stands for a dropped reference: a picture of its own, or which of those that were encoded before."""
        generator = sample_generator(self.config.train.seed, position, "no image")
        if self.stores.features is not None:
            return {"noise_number": torch.randint(CACHED_NOISES, (), generator=generator)}
        if not drop_image:
            return {}
        return {
            "references": self.geometry.reference.noise(generator),
            "drop_image": torch.tensor(False),  # its place is taken
        }

    def _text(self, caption: str) -> dict[str, Mapping[str, Tensor]]:
        if self.stores.text is None:
            return {}
        try:
            return {"text": self.stores.text.get(caption_digest(caption))}
        except KeyError as error:
            raise _not_cached(f"the caption {caption!r}") from error

    def _cached(self, store: Store, key: str, picture: Picture) -> Mapping[str, Tensor]:
        try:
            return store.get(key)
        except KeyError as error:
            image = decode(picture)  # the cache leaves out what is broken
            if store is self.stores.features:  # and that in which there is nothing to read
                self.geometry.reference.prepare(image, AugmentConfig(), torch.Generator(), name=picture.name)
            raise _not_cached(picture.name) from error


def collate(samples: Sequence[Sample], skipped: tuple[Skipped, ...]) -> Batch:
    """A batch of samples of one size."""
    tensors: dict[str, Any] = {
        name: _stacked([sample.tensors[name] for sample in samples]) for name in samples[0].tensors
    }
    return Batch(
        positions=tuple(sample.position for sample in samples),
        keys=tuple(sample.key for sample in samples),
        captions=tuple(sample.caption for sample in samples),
        skipped=skipped,
        drop_image=tensors.pop("drop_image"),
        latent_noise=tensors.pop("latent_noise"),
        noise=tensors.pop("noise"),
        times=tensors.pop("times"),
        sizes=tensors.pop("sizes"),
        **tensors,
    )


def _stacked(parts: Sequence[Any]) -> Any:
    """Tensors, or mappings of tensors."""
    if isinstance(parts[0], Tensor):
        return torch.stack(list(parts))
    return named.stacked(parts)


def _open(picture: Picture, opened: dict[str, Image.Image]) -> Image.Image:
    """Decode once what is target and reference."""
    if picture.name not in opened:
        opened[picture.name] = decode(picture)
    return opened[picture.name]


def _not_cached(what: str) -> DataError:
    return DataError(
        f"{what} is not in the cache",
        expected="everything the run reads",
        action="run `ipadapter cache CONFIG` again, which adds what is missing",
    )
