"""Checkpoints that were written before runs had an identity: what can be told of them all the same."""

from collections.abc import Iterator, Mapping
from typing import Any

from ..config import Config
from .identify import deciding_settings, plain
from .identity import Difference, Keys, RunIdentity, changed_settings

# Where nobody noted what was there, the same name has to stand for it.
_NAMES = {
    "base": ("model", "vae", "config", "prediction_type"),
    "encoder": ("model", "feature", "layer", "crop"),
    "adapter": (
        *("kind", "tokens", "resampler_dim", "resampler_depth", "resampler_head_dim", "blocks", "other_blocks"),
        "negative",
    ),
    "data": ("path", "format", "image_root", "reference_folder"),
}


def differences_by_name(
    now: RunIdentity, config: Config, before: Config, counters: Mapping[str, Any]
) -> Iterator[Difference]:
    """What differs, as far as the settings and counters of the checkpoint tell."""
    is_stream = now.readers is not None
    yield from changed_settings(_named(config), _named(before), {})
    ours, theirs = (plain(deciding_settings(one, is_stream=is_stream)) for one in (config, before))
    yield from changed_settings(ours, theirs, {})
    if (pairs := counters.get("pairs")) is not None:
        yield from now.other_data(Keys(now.data.what, pairs, now.data.digest))
    if counters["step"]:
        yield from now.other_step(counters["samples"] // counters["step"])
    if is_stream and config.data.workers != before.data.workers:
        yield Difference(
            f"data.workers is {config.data.workers}, was {before.data.workers}, which decides a stream's order",
            "set data.workers back",
        )


def _named(config: Config) -> dict[str, Any]:
    sections = config.model_dump()
    return {f"{section}.{name}": sections[section][name] for section, names in _NAMES.items() for name in names}
