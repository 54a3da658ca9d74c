"""Finding out what a run is, from what it has opened."""

from collections.abc import Mapping
from pathlib import Path
from tarfile import BLOCKSIZE
from typing import Any

from accelerate import Accelerator
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from ..backbones.backbone import Backbone
from ..config import AdapterConfig, BaseModelConfig, Config, DataConfig, ObjectiveConfig
from ..data.loader import World, stream_workers
from ..data.records import Records
from ..data.shards import Shards
from ..data.sources import Source
from ..draws import STEPS
from ..models.network import TrainableAdapter
from ..models.wanted import gate_of
from ..readers.reader import ReferenceReader
from ..sharding import SHARDED
from .identity import GATE, Keys, RunIdentity
from .weights import Weights

# What of [data] says where and how to read, and not what: where it leads to is compared by its keys.
_PLACES = frozenset(
    {
        "path",
        "format",
        "image_root",
        "reference_folder",
        "allow_pipe",
        "allow_outside",
        "workers",
        "max_skipped",
        "shuffle_buffer",
    }
)
_SCHEDULE_STEPS = (0, 250, 500, 750, 999)
_DIGITS = 5
_BACKSLASH = "\\"
_OTHER_BLOCKS = "adapter.other_blocks"


def identify(
    config: Config,
    base: Backbone,
    reader: ReferenceReader,
    network: TrainableAdapter,
    sources: tuple[Source, Records],
    accelerator: Accelerator,
) -> RunIdentity:
    """What is trained here. `base` must have all its parts."""
    source, held_out = sources
    train, processes = config.train, int(accelerator.num_processes)
    is_stream, is_sharded = isinstance(source, Shards), accelerator.distributed_type in SHARDED
    forward = train.batch_size * processes
    world = World(accelerator.process_index, processes)
    return RunIdentity(
        settings=plain(deciding_settings(config, is_stream=is_stream) | _of_models(base, reader, network)),
        sites=tuple(sorted(network.trained_sites)),
        weights=_weights(config, base, reader),
        data=_keys(source),
        held_out=_keys(held_out),
        step_samples=forward * train.accumulate,
        forward_samples=forward if is_stream or config.data.buckets or config.data.more_resolutions else None,
        processes=processes if is_stream or is_sharded else None,
        readers=max(1, stream_workers(source, world, config.data.workers)) if isinstance(source, Shards) else None,
        launch=f"in parts ({accelerator.distributed_type.value})" if is_sharded else "whole in each process",
    )


def deciding_settings(config: Config, *, is_stream: bool) -> dict[str, Any]:
    """Settings that decide a run by themselves, whatever the models are."""
    data = _without_places(config.data.model_dump())
    if is_stream:
        data["shuffle_buffer"] = config.data.shuffle_buffer
    if not config.data.buckets:
        del data["bucket_step"]
    flat = {f"objective.{name}": value for name, value in config.objective.model_dump().items()}
    flat |= {f"data.{name}": value for name, value in data.items()}
    flat |= {"base.quantization": config.base.quantization, "base.guidance": config.base.guidance}
    return flat | {"train.seed": config.train.seed, "optimizer.name": config.optimizer.name}


def _without_places(data: Mapping[str, Any]) -> dict[str, Any]:
    """Of a data set, and of those inside it."""
    return {
        name: [_without_places(inner) if isinstance(inner, Mapping) else inner for inner in value]
        if isinstance(value, tuple | list)
        else value
        for name, value in data.items()
        if name not in _PLACES
    }


def default_settings() -> dict[str, Any]:
    """What settings are that a checkpoint of another version does not know."""
    sections: Mapping[str, type[BaseModel]] = {
        "objective": ObjectiveConfig,
        "data": DataConfig,
        "base": BaseModelConfig,
    }
    adapter = AdapterConfig()
    others = {_OTHER_BLOCKS: adapter.other_blocks, GATE: adapter.gate}
    return others | plain(
        {
            f"{section}.{name}": _default(field)
            for section, model in sections.items()
            for name, field in model.model_fields.items()
            if not field.is_required()
        }
    )


def plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON gives them back: lists for tuples, mappings for sections."""
    return {name: _plain(value) for name, value in settings.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        value = value.model_dump()
    if isinstance(value, Mapping):
        return plain(value)
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value


def _default(field: FieldInfo) -> Any:
    return field.get_default(call_default_factory=True)


def _of_models(base: Backbone, reader: ReferenceReader, network: TrainableAdapter) -> dict[str, Any]:
    spec = network.spec
    resampler = spec.resampler
    return {
        "base.prediction_type": base.prediction,
        "the noise schedule of base.model": [round(base.signal(step / STEPS), _DIGITS) for step in _SCHEDULE_STEPS],
        **reader.settings,
        "adapter.kind": spec.projection.value,
        "adapter.tokens": spec.num_tokens,
        GATE: gate_of(spec),
        _OTHER_BLOCKS: "frozen" if network.frozen_sites else "zero",
        "adapter.negative": spec.negative.value,
        "adapter.resampler_dim": resampler and resampler.dim,
        "adapter.resampler_depth": resampler and resampler.depth,
        "adapter.resampler_head_dim": resampler and resampler.head_dim,
        **({} if network.lora is None else {"adapter.lora_rank": network.lora.rank}),
        **({} if spec.face is None else {"what adapter.kind adds to the identity": spec.face.has_shortcut}),
    }


def _weights(config: Config, base: Backbone, reader: ReferenceReader) -> dict[str, Weights]:
    model, vae = config.base.model, config.base.vae
    found = {
        base.word: Weights.of(base.model, "base.model", model, config.base.quantization),
        "autoencoder": Weights.of(base.vae, "base.vae" if vae else "base.model", vae or model),
    }
    for name, module in reader.models.items():
        found[name] = Weights.of(module, "encoder.model", config.encoder.model)
    for text in base.texts:
        found[text.part.replace("_", " ")] = Weights.of(text.model, "base.model", model)
    return found


def _keys(source: Source) -> Keys:
    if isinstance(source, Shards):
        names = [f"{url.replace(_BACKSLASH, '/').rpartition('/')[2]}{_start(url)}" for url in source.urls]
        return Keys.of("shards", names, len(names))
    return Keys.of("pictures", map(source.key, range(len(source))), len(source), source.version)


def _start(url: str) -> str:
    """Size and first header of a shard that lies here: all data sets call theirs alike."""
    place = Path(url)
    if not place.is_file():
        return ""
    with place.open("rb") as file:
        return f" {place.stat().st_size} {file.read(BLOCKSIZE).hex()}"
