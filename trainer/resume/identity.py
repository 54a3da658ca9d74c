"""`RunIdentity`: the facts that decide what a run trains, kept with every checkpoint.

Facts, not settings: weights by their values and not by their folder, pictures by their keys, the samples of a step and
not what they are a product of. Whatever is not here may change between two sessions of a run.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

from .weights import Weights

_CHUNK = 10_000  # keys hashed at once
_MODELS = ("UNet", "transformer")  # what a diffusion model may be called
_NOT_SAID = "not said"
_SHAPES = ("kind", "tokens", "resampler_dim", "resampler_depth", "resampler_head_dim")  # of [adapter]
GATE = "adapter.gate"
_BATCH = "train.batch_size x train.accumulate x processes"


@dataclass(frozen=True)
class Keys:
    """Which records, in which order.

    Attributes:
        what: they are, for messages: pictures or shards.
        version: commit of the hub's repository they come from; None if that is not known.
    """

    what: str
    count: int
    digest: str
    version: str | None = None

    @classmethod
    def of(cls, what: str, keys: Iterable[str], count: int, version: str | None = None) -> "Keys":
        digest = hashlib.blake2b(digest_size=16)
        rest = iter(keys)
        while chunk := list(islice(rest, _CHUNK)):
            digest.update("".join(f"{key}\n" for key in chunk).encode("utf-8", "surrogatepass"))
        return cls(what, count, digest.hexdigest(), version)

    def unlike(self, before: "Keys", use: str) -> str | None:
        """What differs, in words; None if nothing does."""
        if self.count != before.count:
            return f"{self.count} {self.what} {use}, not the {before.count} of before"
        if self.digest != before.digest:
            return f"other {self.what} {use}, though as many ({self.count}), or in another order"
        if self.version and before.version and self.version != before.version:
            return f"{self.what} {use} are those of commit {self.version} on the hub, not of {before.version}"
        return None


@dataclass(frozen=True)
class Difference:
    """What is not as it was, and how to set it back."""

    found: str
    remedy: str


@dataclass(frozen=True)
class RunIdentity:
    """What must be the same when a run goes on.

    Attributes:
        settings: values by the names of the settings they follow from; what the models say stands in for "auto".
        sites: numbers of the attention layers that are trained.
        weights: the frozen networks by what they are.
        data, held_out: what is trained on, and what is not.
        step_samples: samples of an optimiser step, of all processes.
        forward_samples: of a forward of all processes; None where the order does not depend on it.
        processes: None where their number decides nothing: for records, with the weights whole in each.
        readers: of a stream, in each process; None for records.
        launch: how the weights lie in the processes.
    """

    settings: Mapping[str, Any]
    sites: tuple[int, ...]
    weights: Mapping[str, Weights]
    data: Keys
    held_out: Keys
    step_samples: int
    forward_samples: int | None
    processes: int | None
    readers: int | None
    launch: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, stated: Mapping[str, Any]) -> "RunIdentity":
        """Raises KeyError, TypeError or AttributeError for what `to_json` did not give."""
        parts = {
            "settings": dict(stated["settings"]),
            "sites": tuple(stated["sites"]),
            "weights": {name: Weights(**one) for name, one in stated["weights"].items()},
            "data": Keys(**stated["data"]),
            "held_out": Keys(**stated["held_out"]),
        }
        return cls(**{**stated, **parts})

    def differences(self, before: "RunIdentity", defaults: Mapping[str, Any]) -> Iterator[Difference]:
        """All of them from an earlier session's.

        Args:
            defaults: of the settings, for those that one of the two does not know.
        """
        yield from self._weights(before)
        now, then = self.settings, before.settings
        if self._gate != before._gate:  # it decides much of an adapter's other settings, which were not changed then
            now, then = ({name: x for name, x in side.items() if not _is_of_adapter(name)} for side in (now, then))
        yield from changed_settings(now, then, defaults)
        if self.sites != before.sites and self.settings.get("adapter.kind") == before.settings.get("adapter.kind"):
            yield Difference("adapter.blocks trains other layers than before", "set adapter.blocks back")
        yield from self.other_data(before.data)
        yield from self._other_held_out(before.held_out)
        yield from self.other_step(before.step_samples)
        yield from self._other_launch(before)

    @property
    def _gate(self) -> object:
        return self.settings.get(GATE, "none")  # earlier versions had none

    def fits(self, before: "RunIdentity") -> bool:
        """Whether an adapter of that run can be begun with here, as far as kind, sizes and models tell."""
        names = ("encoder.feature", *(f"adapter.{name}" for name in _SHAPES))
        if self._gate != before._gate:
            return False
        if [part for part in _MODELS if part in self.weights] != [part for part in _MODELS if part in before.weights]:
            return False
        pairs = [(self.weights.get(part), before.weights.get(part)) for part in (*_MODELS, "image encoder")]
        return all(self.settings.get(name) == before.settings.get(name) for name in names) and all(
            now is None or then is None or now.form != then.form or now.layout == then.layout for now, then in pairs
        )

    def other_data(self, before: Keys) -> Iterator[Difference]:
        if found := self.data.unlike(before, "to train on"):
            yield Difference(
                found,
                "put what data.path names back as it was, and validation.images with it; pictures to be held out later "
                "are named by validation.path",
            )

    def other_step(self, before: int) -> Iterator[Difference]:
        if self.step_samples != before:
            yield Difference(
                f"a step has {self.step_samples} samples ({_BATCH}), not {before}",
                f"change one of these so that their product is {before}",
            )

    def _weights(self, before: "RunIdentity") -> Iterator[Difference]:
        others: dict[tuple[str, str, str], list[str]] = defaultdict(list)
        for part, now in self.weights.items():
            then = before.weights.get(part)
            if then is not None and now.form != then.form:
                continue  # a setting did that, which is named
            if then is None or not now.equals(then):
                others[now.setting, now.place, then.place if then else "none"].append(part)
        for (setting, place, place_before), parts in others.items():
            yield Difference(
                f"{setting} has another {' and '.join(parts)} than before ({place}, was {place_before})",
                f"let {setting} name what was trained with",
            )

    def _other_held_out(self, before: Keys) -> Iterator[Difference]:
        if not (before.count and self.held_out.count):  # to begin or to end it is free, if the data stays
            return
        if found := self.held_out.unlike(before, "held out"):
            yield Difference(found, "set validation.images and validation.path back")

    def _other_launch(self, before: "RunIdentity") -> Iterator[Difference]:
        if self.launch != before.launch:
            yield Difference(f"the weights lie {self.launch}, before {before.launch}", "launch it as before")
            return
        if self.processes != before.processes and self.step_samples == before.step_samples:
            yield Difference(f"{self.processes} processes, not {before.processes}", f"start {before.processes}")
        elif self.forward_samples != before.forward_samples and self.step_samples == before.step_samples:
            yield Difference(
                f"a forward has {self.forward_samples} samples, not {before.forward_samples}, which decides their order",
                "set train.batch_size and train.accumulate back",
            )
        if self.readers != before.readers:
            noun = "reader" if self.readers == 1 else "readers"
            yield Difference(
                f"the stream has {self.readers} {noun} in each process, not {before.readers}",
                f"set data.workers = {before.readers}",
            )


def _is_of_adapter(name: str) -> bool:
    return name.startswith("adapter.") and name != GATE


def changed_settings(
    now: Mapping[str, Any], before: Mapping[str, Any], defaults: Mapping[str, Any]
) -> Iterator[Difference]:
    """Settings whose values differ; one that a side does not know is at its default there."""
    for name in dict.fromkeys((*now, *before)):
        new, old = (side.get(name, defaults.get(name, _NOT_SAID)) for side in (now, before))
        if new != old:
            yield Difference(f"{name} is {new!r}, was {old!r}", f"set {name} back")
