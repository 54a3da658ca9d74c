"""A config for pictures and a machine, as a TOML file that says why it is so.

Sizes of memory are estimates, from what the parts hold; `ipadapter plan` measures.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import tomli_w

from .survey import Machine, Models, Pictures

_GIB = 2**30
_FEW, _MANY = (
    2_000,
    100_000,
)  # pictures: below the first each is seen often, from the second on learning from nothing pays
_OFTEN = 100  # times each of few pictures is seen
_CUT = 0.1  # a larger share of a picture is not cut away
_CACHE_ENTRY, _MOST_CACHE = 800_000, 50 * _GIB  # bytes of a picture with the features of a plus adapter; of all
_VARIANTS = 4
_LEAST_TO_VALIDATE = 8  # pictures
PUBLISHED = {
    False: "models/ip-adapter-plus_sd15.safetensors",
    True: "sdxl_models/ip-adapter-plus_sdxl_vit-h.safetensors",
}


@dataclass(frozen=True)
class _Size:
    """What a base takes: pixels, and bytes with a plus adapter and AdamW, and for each picture of a batch."""

    usual: int
    least: int
    fixed: float
    picture: float


# of a picture: what is kept for the backward pass, counted (0.8 and 5.8 GB), and room for single operations
_SIZES = {False: _Size(512, 384, 3.5 * _GIB, 1.0 * _GIB), True: _Size(1024, 768, 14 * _GIB, 6.5 * _GIB)}
_NONE = "none"
_CHECKPOINTED = 0.35  # of a picture's bytes that gradient checkpointing leaves
_USABLE = 0.9  # of a GPU's memory


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What the user has decided already; None is left to the suggestion.

    Attributes:
        start_from: an adapter file, or "none" to begin at 0.
    """

    kind: str | None = None
    steps: int | None = None
    start_from: str | None = None


_NOTHING = Wanted()


@dataclass
class Suggestion:
    """Sections of a config, a reason for some of the keys, and what the user should know."""

    config: dict[str, dict[str, Any]]
    reasons: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def set(self, name: str, value: object, reason: str = "") -> None:
        section, _, key = name.rpartition(".")
        self.config.setdefault(section, {})[key] = value
        if reason:
            self.reasons[name] = reason


def suggest(
    path: str, name: str, pictures: Pictures, models: Models, machine: Machine, wanted: Wanted = _NOTHING
) -> Suggestion:
    """What fits, and what is wanted.

    Args:
        path: of the data, as it goes into the config.
        name: of the run.
    """
    made = Suggestion({})
    _models(made, pictures, models, machine, wanted)
    _data(made, path, pictures, models, machine)
    _train(made, name, pictures, models, machine, wanted)
    _validation(made, pictures)
    return made


def to_toml(made: Suggestion, header: str) -> str:
    lines = [f"# {line}".rstrip() for line in header.splitlines()]
    for section, values in made.config.items():
        lines += ["", f"[{section}]"]
        for key, value in values.items():
            line, reason = tomli_w.dumps({key: value}).strip(), made.reasons.get(f"{section}.{key}")
            lines.append(f"{line}   # {reason}" if reason else line)
    return "\n".join(lines) + "\n"


def _models(made: Suggestion, pictures: Pictures, models: Models, machine: Machine, wanted: Wanted) -> None:
    precision, reason = "bf16", ""
    if machine.memory is None:
        precision, reason = "fp32", "no GPU was found; bf16 on one"
    elif not machine.has_bf16:
        precision, reason = "fp16", "this GPU has no bf16"
    made.set("base.model", models.base)
    if models.is_sdxl and precision != "fp32":
        made.set("base.vae", "madebyollin/sdxl-vae-fp16-fix", "SDXL's own overflows in 16 bits")
    made.set("base.precision", precision, reason)
    made.set("encoder.model", models.encoder)
    if precision != "bf16":
        made.set("encoder.precision", precision)
    kind = wanted.kind or ("plus" if pictures.count < _MANY else "base")
    made.set("adapter.kind", kind)
    if wanted.start_from not in (None, _NONE):
        made.set("adapter.pretrained", wanted.start_from)
        return
    if pictures.count >= _MANY:
        return
    if models.fits_published and kind == "plus" and wanted.start_from is None:
        made.set(
            "adapter.pretrained", PUBLISHED[models.is_sdxl], f"{pictures.count:,} pictures are too few to begin at 0"
        )
    else:
        made.notes.append(
            f"{'this adapter' if models.fits_published else 'no published adapter fits these models, so this one'} "
            f"begins at 0: {pictures.count:,} pictures are few for that; adapter.pretrained names a file to start from"
        )


def _data(made: Suggestion, path: str, pictures: Pictures, models: Models, machine: Machine) -> None:
    size = _SIZES[models.is_sdxl]
    resolution = min(size.usual, max(size.least, pictures.side // 64 * 64))
    made.set("data.path", path)
    if pictures.captioned < pictures.count:
        made.set("data.caption", "", f"{pictures.count - pictures.captioned:,} pictures have no .txt beside them")
        made.notes.append("captions that say what a picture shows make the adapter listen to prompts")
    if pictures.groups:
        made.set("data.reference", "group", f"another picture of the same of your {pictures.groups} sub-folders")
    is_small = pictures.side < resolution
    reason = "they are enlarged" if is_small else "it is the model's, or the most they have"
    made.set("data.resolution", resolution, f"three in four pictures have {pictures.side} pixels or more; {reason}")
    if pictures.cut > _CUT:
        made.set("data.buckets", True, f"a square would cut off {pictures.cut:.0%} of a picture")
    made.set("data.workers", min(4, machine.cores))
    if not pictures.groups:
        for key, value in {"crop_scale": 0.4, "flip": 0.5, "rotate": 10.0, "color": 0.1}.items():
            reason = "references are changed, so that they are not copied" if key == "crop_scale" else ""
            made.set(f"data.augment.{key}", value, reason)
    variants = _VARIANTS if pictures.count < _FEW else 1
    if pictures.count * variants * _CACHE_ENTRY < _MOST_CACHE:
        made.set("cache.path", "cache")
        made.set("cache.variants", variants, "of each picture and reference" if variants > 1 else "")


def _train(made: Suggestion, name: str, pictures: Pictures, models: Models, machine: Machine, wanted: Wanted) -> None:
    size = _SIZES[models.is_sdxl]
    batch, checkpointing = _batch(size, machine)
    is_tight = machine.memory is not None and machine.memory * _USABLE < size.fixed + size.picture * _CHECKPOINTED
    at_once = 4 if pictures.count < _FEW else 32
    batch = min(batch, at_once)
    accumulate = max(1, at_once // batch)
    starts = "pretrained" in made.config["adapter"]
    steps = round(_OFTEN * pictures.count / (batch * accumulate))
    steps = min(10_000, max(300, steps)) if starts else min(100_000, max(1_000, steps))
    steps = wanted.steps or steps
    made.set("train.output", f"runs/{name}")
    made.set(
        "train.steps", steps, f"each picture about {max(1, round(steps * batch * accumulate / pictures.count))} times"
    )
    memory = "" if machine.memory is None else f"for {machine.memory / _GIB:.0f} GiB; an estimate: plan measures"
    made.set("train.batch_size", batch, memory)
    if accumulate > 1:
        made.set("train.accumulate", accumulate, f"steps of {batch * accumulate} pictures")
    if checkpointing:
        made.set("train.gradient_checkpointing", True, "less memory, more time")
    if is_tight:
        made.set("optimizer.name", "adafactor", "keeps almost nothing beside the weights")
        made.notes.append("this GPU may have too little memory: ipadapter plan says what is needed")
    made.set(
        "optimizer.learning_rate", 2e-5 if starts else 1e-4, "small, as it starts from a good one" if starts else ""
    )
    made.set("optimizer.warmup_steps", min(500, steps // 10))
    if not is_tight:
        made.set("optimizer.ema_decay", 0.995 if steps <= 10_000 else 0.9999)
    made.set("checkpoint.every", max(50, steps // 60 * 10))
    if machine.memory is None:
        made.notes.append("no GPU was found: training will take days; this config is for testing")


def _batch(size: _Size, machine: Machine) -> tuple[int, bool]:
    """Pictures at once, a power of two, and whether that needs gradient checkpointing."""
    if machine.memory is None:
        return 1, False
    room = machine.memory * _USABLE - size.fixed
    for bytes_of_picture, checkpointing in ((size.picture, False), (size.picture * _CHECKPOINTED, True)):
        fitting = int(room / bytes_of_picture)
        if fitting >= (1 if checkpointing else 2):
            return 1 << (fitting.bit_length() - 1), checkpointing
    return 1, True


def _validation(made: Suggestion, pictures: Pictures) -> None:
    if pictures.count < _LEAST_TO_VALIDATE:
        made.notes.append(f"{pictures.count} pictures are too few to hold some out: nothing says whether it learns")
        return
    every = int(made.config["checkpoint"]["every"])
    made.set("validation.every", every)
    made.set("validation.images", min(16, max(2, pictures.count // 4)), "kept out of training")
    made.set("validation.sample_every", 2 * every)
    made.set("validation.samples", 2)


def describe(pictures: Pictures) -> Mapping[str, object]:
    """The pictures in words."""
    return {
        "pictures": pictures.count,
        "with a caption": pictures.captioned,
        "size": f"about {pictures.side} x {pictures.side} pixels",
        **({"cannot be read": pictures.broken} if pictures.broken else {}),
        **({"sub-folders": pictures.groups} if pictures.groups else {}),
    }
