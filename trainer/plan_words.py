"""A plan as a person wants to hear it: how long, how much of the GPU, how often each picture, and what to change."""

from collections.abc import Iterator, Mapping
from typing import Any

from .config import Config
from .words import count, duration, size, times

_FROM_NOTHING = 2_000  # pictures below which an adapter learns little from nothing
_TOO_OFTEN, _TOO_SELDOM = 400, 1  # times that each picture is seen
_FULL = 0.95  # of a GPU's memory
_PARTS = {
    "frozen_model": "frozen model", "frozen_encoders": "encoders", "adapter": "adapter", "gradients": "gradients",
    "optimizer": "optimiser", "moving_average": "moving average", "activations": "activations",
}  # fmt: skip


def plan_in_words(plan: Mapping[str, Any], config: Config, *, memory: int | None, file: str) -> dict[str, object]:
    """Lines by what they are about.

    Args:
        plan: `Plan.to_json()`.
        memory: bytes of the GPU that was measured on; None without one.
        file: the config as a command line names it, with its changes.
    """
    return {
        "trains": _trained(plan["trained"]),
        "time": _time(plan),
        **({"samples": _samples(plan["samples"])} if "samples" in plan else {}),
        "memory": _memory(plan, memory),
        "pictures": _pictures(plan["data"]),
        "cache": _cache(plan["cache"], config),
        "advice": list(_advice(plan, config, memory)),
        "next": f"ipadapter train {file}",
    }


def _trained(trained: Mapping[str, Any]) -> str:
    tokens = f"{trained['tokens']} image tokens" if trained["tokens"] else "one image token per feature"
    return (
        f"{trained['adapter']}: {count(trained['parameters'])} parameters, {tokens}, reads "
        f"{trained['reads'].replace('_', ' ')} of {trained['encoder']}, layers {trained['sites']}"
    )


def _time(plan: Mapping[str, Any]) -> str:
    measured, data = plan["measured"], plan["data"]
    encoded = measured["encoded"] if measured["is_cached"] else ()
    encoding = "from the cache" if measured["is_cached"] else "encoding included"
    if encoded:
        encoding += f", {' and '.join(encoded)} encoded in each step"
    return (
        f"about {duration(measured['hours'] * 3600)} for {data['steps']:,} steps of {data['samples_per_step']} pictures "
        f"({measured['images_per_second']:.1f} pictures a second on {measured['device']}, {encoding}; "
        f"{'validation comes' if 'samples' in plan else 'validation and samples come'} on top)"
    )


def _samples(samples: Mapping[str, Any]) -> str:
    parts = ((samples[name], name) for name in ("references", "texts", "strengths"))
    product = ", ".join(f"{number} {name.removesuffix('s') if number == 1 else name}" for number, name in parts)
    return (
        f"{samples['pictures']:,} pictures ({product}) {times(samples['times'])}, about "
        f"{duration(samples['hours'] * 3600)} in all"
    )


def _memory(plan: Mapping[str, Any], memory: int | None) -> str:
    parts = ", ".join(f"{name} {size(plan['memory'][key])}" for key, name in _PARTS.items() if plan["memory"][key])
    of_yours = "" if memory is None else f" of your {size(memory)}"
    return f"{size(_peak(plan))}{of_yours} ({parts}){_host(plan)}"


def _host(plan: Mapping[str, Any]) -> str:
    if "host" not in plan:
        return ""
    networks, processes = size(plan["host"]["face_networks"]), plan["host"]["processes"]
    each = f"each of {processes} data workers" if processes > 1 else "one process"
    return f"; face networks of {networks} in the computer's memory for {each}"


def _peak(plan: Mapping[str, Any]) -> int:
    return int(plan["measured"].get("peak_bytes", plan["memory"]["total"]))


def _pictures(data: Mapping[str, Any]) -> str:
    if "pictures" not in data:
        return "a stream, which does not say how many it has"
    held_out = f"; {data['held_out']} more are held out" if data["held_out"] else "; none is held out"
    return f"{data['pictures']:,}, each seen {_seen(data)}{held_out}"


def _seen(data: Mapping[str, Any]) -> str:
    """By data set, where they differ."""
    rarest, most = min(data["times_seen"]), max(data["times_seen"])
    return times(most) if rarest == most else f"{times(rarest)} to {times(most)}, by data set"


def _cache(cache: Mapping[str, Any], config: Config) -> str:
    if "total_bytes" not in cache:
        return str(cache["note"])
    return f"{size(cache['total_bytes'])} on the disk{'' if config.cache.path else ', if you set cache.path'}"


def _advice(plan: Mapping[str, Any], config: Config, memory: int | None) -> Iterator[str]:
    data, measured = plan["data"], plan["measured"]
    pictures, seen = data.get("pictures"), data.get("times_seen")
    if "refused" in plan:
        yield f"train refuses this as it is. {plan['refused']}"
    if pictures is not None and pictures < _FROM_NOTHING and config.adapter.pretrained is None:
        yield f"with {pictures:,} pictures start from a published adapter: adapter.pretrained"
    if seen is not None and max(seen) > _TOO_OFTEN:
        yield f"each picture {times(max(seen))} is often: fewer train.steps, or watch for a validation loss that rises"
    if seen is not None and min(seen) < _TOO_SELDOM:
        yield "not every picture is seen: more train.steps"
    if memory is not None and _peak(plan) > _FULL * memory:
        yield "nearly all memory is used: lower train.batch_size and raise train.accumulate by as much"
    if not measured["is_cached"] and config.cache.path is not None:
        yield "the cache is not filled yet: train fills it first, and is faster afterwards than measured here"
    if config.validation.every is None:
        yield "nothing is validated: validation.every shows whether the reference is used"
    if not str(measured["device"]).startswith("cuda"):
        yield f"this was measured on {measured['device']}, not on a GPU"
