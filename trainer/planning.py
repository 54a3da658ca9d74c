"""What a run will be, found out by a few real steps that nothing is kept of: `ipadapter plan`."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from .batch import Batch
from .cache.estimate import estimate_bytes
from .config import Config
from .data.loader import portions_of
from .data.order import times_in_epoch
from .data.records import Records
from .meter import peak_bytes, wait_for
from .run import Run, open_run
from .state import CheckpointError, check_last_checkpoint, find_checkpoints
from .watch.pace import sample_pace
from .watch.references import open_drawing

MEASURED_STEPS = 3
_attention: Callable[..., int] = sdpa_flop_count
_attention_backward: Callable[..., int] = sdpa_backward_flop_count
_CPU_ATTENTION = {  # torch counts it on other devices only
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: _attention(q, k, v),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda grad, q, k, v, *_, **__: _attention_backward(grad, q, k, v)
    ),
}


@dataclass(frozen=True)
class Plan:
    """Counts, bytes and measurements, as `to_json` names them.

    Attributes:
        measured: of steps with this batch size on this machine; `is_cached` says whether what `cache.parts` names was
            read, `encoded` what was encoded in each step.
        host: what the data workers hold in the computer's memory, and how many processes do; None if they hold nothing.
        refused: why `train` would not go on with the run that lies in `train.output`; None if it would, or none does.
        samples: pictures that are drawn, and how long that takes; None if none are.
    """

    trained: dict[str, object]
    data: dict[str, object]
    memory: dict[str, int]
    measured: dict[str, object]
    cache: dict[str, object]
    samples: dict[str, object] | None
    host: dict[str, int] | None
    refused: str | None

    def to_json(self) -> dict[str, object]:
        return {name: value for name, value in vars(self).items() if value is not None}


def make_plan(config: Config) -> Plan:
    """Open everything a run opens, take three steps, and put the weights back to nothing: no file is written.

    Raises:
        IPAdapterError: as `train`.
    """
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        run = open_run(config, lacking="encode", lists=Path(folder))  # a plan may well come before the cache is filled
        encoded, refused = list(run.stores.encoded), _refused(run)
        batches = run.batches(0)
        cache = _cache(run)  # while the encoders are there
        drawing = None
        if config.validation.sample_every is not None:
            drawing = open_drawing(config, run.held_out, run.base, run.reader)
        run.release_encoders()
        memory, flops = _count(run, next(batches))
        is_cached = not set(encoded).intersection(config.cache.parts)
        measured = {"is_cached": is_cached, "encoded": encoded, **_measure(run, batches), **flops}
        samples = None
        if drawing is not None:
            processes = run.accelerator.num_processes
            samples = sample_pace(config, *drawing, run.network, run.objective.no_image, processes)
        return Plan(_trained(run), _data(run), memory, measured, cache, samples, _host(run), refused)


def _trained(run: Run) -> dict[str, object]:
    spec = run.network.spec
    others = ", the others frozen" if run.network.frozen_sites else ""
    return {
        "adapter": spec.family,
        "tokens": spec.num_tokens,
        **run.reader.words,
        "negative": spec.negative.value,
        "prediction_type": run.base.prediction,
        "sites": f"{len(run.network.trained_sites)} of {spec.num_sites} ({run.config.adapter.blocks}){others}",
        "parameters": sum(parameter.numel() for parameter in run.network.trained_parameters()),
        "frozen_parameters": run.base.model.num_parameters(),
    }


def _data(run: Run) -> dict[str, object]:
    steps, per_step = run.config.train.steps, run.samples_per_step
    samples = steps * per_step
    data: dict[str, object] = {"steps": steps, "samples_per_step": per_step, "samples": samples}
    if isinstance(run.source, Records):
        sets = portions_of(run.source, run.config.data)
        counts = [len(one.numbers) for one in sets]
        often = times_in_epoch(sets, counts)
        rounds = samples / sum(count * float(times) for count, times in zip(counts, often, strict=True))
        seen = [round(rounds * float(times), 2) for count, times in zip(counts, often, strict=True) if count]
        epochs = round(rounds / len(run.config.data.resolutions), 2)
        data |= {"pictures": len(run.source), "epochs": epochs, "times_seen": seen}
    return data | {"held_out": len(run.held_out)}


def _refused(run: Run) -> str | None:
    try:
        if find_checkpoints(run.config.run):
            check_last_checkpoint(run.config, run.state.identity())
    except CheckpointError as error:
        return str(error)
    return None


def _host(run: Run) -> dict[str, int] | None:
    """Of this machine's training processes: each has data workers of its own, or reads pictures itself."""
    if "features" not in run.stores.encoded or not run.reader.host_bytes:
        return None
    processes = max(1, run.config.data.workers) * run.accelerator.num_processes
    return {"face_networks": run.reader.host_bytes, "processes": processes}


def _count(run: Run, batch: Batch) -> tuple[dict[str, int], dict[str, int]]:
    """Bytes on the device at the end of a forward, when most is held (buffers of single operations come on top), and
    floating-point operations of an image, two for each multiplication and addition."""
    with _saved_for_backward(run) as saved, flop_counter() as forward:
        loss = run.loss(batch)
    with flop_counter() as backward:
        run.accelerator.backward(loss)
    run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)
    trained = sum(parameter.nbytes for parameter in run.network.trained_parameters())
    memory = {
        "frozen_model": _bytes(run.base.model),
        "frozen_encoders": sum(map(_bytes, _encoders(run))),
        "adapter": _bytes(run.network),
        "gradients": trained,
        "optimizer": sum(x.nbytes for x in _tensors(run.optimizer.state_dict())),
        "moving_average": trained if run.ema is not None else 0,
        "activations": sum(saved.values()),
    }
    images = len(batch.positions)
    flops = {"forward": forward.get_total_flops() // images, "backward": backward.get_total_flops() // images}
    return memory | {"total": sum(memory.values())}, {f"flops_{name}": count for name, count in flops.items()}


def _encoders(run: Run) -> Iterator[nn.Module]:
    """Those of what is encoded in each step."""
    encoded = run.stores.encoded
    if "latents" in encoded:
        yield run.base.vae
    if "text" in encoded:
        yield from (text.model for text in run.base.texts)
    if "features" in encoded:
        yield from run.reader.models.values()


def flop_counter() -> FlopCounterMode:
    """Counts floating-point operations inside, two for each multiplication with addition."""
    return FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION)


def _measure(run: Run, batches: Iterator[Batch]) -> dict[str, object]:
    device = run.accelerator.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    wait_for(device)
    start = time.perf_counter()
    for _ in range(MEASURED_STEPS):
        run.step(batches)
    wait_for(device)
    seconds = time.perf_counter() - start
    images = MEASURED_STEPS * run.config.train.batch_size * run.config.train.accumulate
    total = run.config.train.steps * run.config.train.batch_size * run.config.train.accumulate
    measured: dict[str, object] = {
        "device": str(device),
        "images_per_second": images / seconds,
        "hours": total * seconds / images / 3600,
    }
    if (peak := peak_bytes(device)) is not None:
        measured["peak_bytes"] = peak
    return measured


def _cache(run: Run) -> dict[str, object]:
    records = run.source
    if not isinstance(records, Records):
        return {"note": "a stream does not say how many pictures it has"}
    pictures = len(records) + len(run.held_out)
    captions = len({text for record in (*records, *run.held_out) for text in record.captions})
    estimated = estimate_bytes(
        run.config, run.base, run.reader, pictures=pictures, references=pictures, captions=captions
    )
    return {f"{kind}_bytes": count for kind, count in estimated.items()}


@contextmanager
def _saved_for_backward(run: Run) -> Iterator[Counter[int]]:
    """Bytes that autograd keeps, by storage; weights are counted elsewhere."""
    weights = {
        parameter.untyped_storage().data_ptr()
        for parameter in (*run.base.model.parameters(), *run.network.parameters())
    }
    saved: Counter[int] = Counter()

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        yield saved


def _bytes(module: nn.Module) -> int:
    """Also of the scales of quantised layers, which only the state has; what is held once is counted once."""
    tensors = (*module.parameters(), *module.buffers(), *module.state_dict().values())
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())


def _tensors(state: Any) -> Iterator[Tensor]:
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, dict | list | tuple):
        for value in state.values() if isinstance(state, dict) else state:
            yield from _tensors(value)
