"""`Run`: everything a training loop works with, opened from a config in one place."""

import functools
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import is_wandb_available
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from ipadapter_core.file.spec import Negative

from . import named
from .backbones.backbone import Backbone
from .batch import Batch
from .cache.fill import fill
from .cache.store import CacheError
from .cache.training import Stores as CacheStores
from .cache.training import open_stores
from .config import Config
from .data.loader import World, open_batches
from .data.records import Records
from .data.sample import Geometry, Stores
from .data.skips import SKIPPED, SkipLog
from .data.sources import Source, open_sources
from .draws import CACHED_NOISES, sample_generator
from .models.loading import check_base, load_base
from .models.network import TrainableAdapter, new_adapter
from .objective import Objective
from .optimizer import MissingPackageError, build_ema, build_optimizer, build_schedule
from .preflight import check_before_models
from .readers.opening import open_reader
from .readers.reader import ReferenceReader
from .resume.identify import identify
from .sharding import check_sharding, configure_deepspeed
from .state import Counters, State, check_last_checkpoint

logger = logging.getLogger(__name__)

Lacking = Literal["refuse", "fill", "encode"]


@dataclass(frozen=True, eq=False)
class Run:
    """A run that is ready to step.

    Attributes:
        network, adapter: the same network, bare and as accelerate prepared it.
        source, held_out: what is trained on, and the records that are not.
        stores: what of the data is cached.
        lists: folder of what is noted of the data: broken pictures, sizes of shards.
    """

    config: Config
    accelerator: Accelerator
    base: Backbone
    reader: ReferenceReader
    network: TrainableAdapter
    adapter: nn.Module
    objective: Objective
    optimizer: Any
    schedule: Any
    ema: EMAModel | None
    state: State
    source: Source
    held_out: Records
    stores: Stores
    skips: SkipLog
    lists: Path

    @property
    def geometry(self) -> Geometry:
        return geometry(self.base, self.reader)

    @property
    def samples_per_step(self) -> int:
        """Of all processes."""
        train = self.config.train
        processes: int = self.accelerator.num_processes
        return train.batch_size * train.accumulate * processes

    def batches(self, step: int) -> Iterator[Batch]:
        """Endless batches of this process, from an optimiser step on."""
        world = World(self.accelerator.process_index, self.accelerator.num_processes)
        return open_batches(self.config, self.source, world, self.geometry, step, self.stores, self.lists)

    def loss(self, batch: Batch) -> Tensor:
        """Of one forward, with a gradient."""
        return self.objective.loss(self.adapter, batch.to(self.accelerator.device))

    def step(self, batches: Iterator[Batch]) -> tuple[Tensor, ...]:
        """One optimiser step: `train.accumulate` batches taken, the weights moved, the run counted on.

        A step that float16's gradient scaler skips, for gradients beyond its range, moves schedule and moving average
        no more than it moves the weights.

        Returns:
            The loss of each forward, 0-dim, on the device.
        """
        losses, moved = [], False
        for _ in range(self.config.train.accumulate):
            batch = next(batches)
            self.skips.add(batch)
            with self.accelerator.accumulate(self.adapter):
                loss = self.loss(batch)
                self.accelerator.backward(loss)
                if self.accelerator.sync_gradients and self.config.optimizer.clip_norm is not None:
                    self.accelerator.clip_grad_norm_(self.network.trained_parameters(), self.config.optimizer.clip_norm)
                moved = self._move()
                self.optimizer.zero_grad(set_to_none=True)
            losses.append(loss.detach())
        if moved:
            self.schedule.step()
            if self.ema is not None:
                self.ema.step(self.network.trained_parameters())
        self.state.counters.step += 1
        self.state.counters.samples += self.samples_per_step
        return tuple(losses)

    def _move(self) -> bool:
        """Let the optimiser step; whether it did."""
        scaler = self.accelerator.scaler
        if scaler is None or not self.accelerator.sync_gradients:
            self.optimizer.step()
            return True
        # accelerate's own answer is wrong for fused optimisers, which are called and then skip on the device
        before = scaler.get_scale()
        self.optimizer.step()
        return bool(scaler.get_scale() >= before)

    def release_encoders(self) -> None:
        """Free what a step does not use because the cache has it."""
        self.base.release(
            frozenset({"text"} if self.stores.text else ()) | frozenset({"vae"} if self.stores.latents else ())
        )
        if self.stores.features:
            for model in self.reader.models.values():
                model.to("cpu")

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the network holds its moving average, if there is one."""
        if self.ema is None:
            yield
            return
        parameters = list(self.network.trained_parameters())
        self.ema.store(parameters)
        self.ema.copy_to(parameters)
        try:
            yield
        finally:
            self.ema.restore(parameters)


def geometry(base: Backbone, reader: ReferenceReader) -> Geometry:
    return Geometry(base.latent_channels, base.latent_factor, reader.preparation, base.time_shift)


def open_run(config: Config, *, lacking: Lacking = "refuse", lists: Path | None = None) -> Run:
    """Open models and data, build the network and its optimiser, and hand the trained part to accelerate.

    Args:
        lacking: what becomes of a cache that lacks something: an error, or it is filled, or left alone and everything
            is encoded in every step. Before it is filled, which may take hours, a folder with another run is refused.
        lists: folder of the lists of broken pictures and of shards; the run's if not given.

    Raises:
        IPAdapterError: what the config names is missing, broken or does not fit together.
    """
    if "wandb" in config.train.trackers and not is_wandb_available():  # accelerate would go on without it
        raise MissingPackageError(
            "train.trackers names wandb, which is not installed",
            expected="the package wandb",
            action='pip install wandb, or set train.trackers = ["tensorboard"]',
        )
    lists = config.run if lists is None else lists
    accelerator = Accelerator(
        gradient_accumulation_steps=config.train.accumulate,
        # only float16 needs accelerate's help (its gradient scaler); the network itself always computes in float32
        mixed_precision="fp16" if config.base.precision == "fp16" and torch.cuda.is_available() else "no",
        log_with=list(config.train.trackers) or None,
        project_dir=config.run,
    )
    if config.base.precision == "fp16" and accelerator.scaler is None:
        logger.warning(
            'base.precision = "fp16" on %s, whose gradients are not scaled: small gradients become 0; '
            '"bf16" has no such limit',
            accelerator.device,
        )
    check_sharding(accelerator.distributed_type, config, is_fsdp2=accelerator.is_fsdp2)
    torch.set_float32_matmul_precision("high")
    source, held_out = open_sources(config)
    check_before_models(config, source, held_out)
    base = check_base(config, load_base(config.base, accelerator.device, waiting=_waiting(config)))
    reader = open_reader(config, accelerator.device, base.sites.sites[0].context_dim)
    network = new_adapter(config.adapter, base, reader.encoder, config.train.seed).to(accelerator.device)
    base.install()
    if config.train.gradient_checkpointing:
        base.enable_checkpointing()
    if config.train.compile:
        base.model.compile()
    identity = functools.cache(lambda: identify(config, base, reader, network, (source, held_out), accelerator))
    if lacking == "fill":
        check_last_checkpoint(config, identity())
    stores = _stores(config, base, reader, (source, held_out), accelerator, lacking)
    encoded = {"text": stores.text is None, "vae": stores.latents is None}
    base.bring(frozenset({"model"} | {part for part, is_encoded in encoded.items() if is_encoded}))
    no_image, noises = reader.no_image(network.spec.negative), None
    if network.spec.negative is Negative.NOISE and stores.features is not None:
        noises = _noises(reader, config.train.seed)
    objective = Objective(config.objective, base, no_image, reader, noises)
    optimizer = build_optimizer(network.trained_parameters(), config.optimizer)
    ema = build_ema(network.trained_parameters(), config.optimizer)
    adapter, optimizer = _prepare(accelerator, network, optimizer, config)
    schedule = build_schedule(optimizer, config.optimizer, config.train.steps)
    counters = Counters(pairs=len(source) if isinstance(source, Records) else None)
    return Run(
        config=config,
        accelerator=accelerator,
        base=base,
        reader=reader,
        network=accelerator.unwrap_model(adapter),
        adapter=adapter,
        objective=objective,
        optimizer=optimizer,
        schedule=schedule,
        ema=ema,
        state=State(config, accelerator, adapter, optimizer, schedule, ema, counters, identity),
        source=source,
        held_out=held_out,
        stores=stores,
        skips=SkipLog(lists / SKIPPED, config.data.max_skipped, counters.pairs),
        lists=lists,
    )


def _noises(reader: ReferenceReader, seed: int) -> dict[str, Tensor]:
    """Features of those that stand for dropped references where features are cached, one row each."""
    generators = (sample_generator(seed, number, "cached noise") for number in range(CACHED_NOISES))
    prepared = (reader.preparation.noise(generator) for generator in generators)
    return named.joined([reader.read(named.stacked([each])) for each in prepared])


def _waiting(config: Config) -> frozenset[str]:
    """What comes to the device when it is known what the cache has: the model, and what encodes."""
    if config.cache.path is None:
        return frozenset()
    cached = {"text": "text", "latents": "vae"}
    return frozenset({cached[part] for part in config.cache.parts if part in cached} | {"model"})


def _stores(
    config: Config,
    base: Backbone,
    reader: ReferenceReader,
    sources: tuple[Source, ...],
    accelerator: Accelerator,
    lacking: Lacking,
) -> Stores:
    """The cache of a run."""
    if config.cache.path is None:
        return Stores()
    stores = open_stores(config, base, reader)
    if lacking != "refuse" and not _is_filled(stores, sources):
        if lacking == "encode":
            return Stores()
        with base.encoding():  # while the model waits on the host: what encodes needs its room
            fill(config, base, reader, sources, progress=accelerator.is_local_main_process)
        stores = open_stores(config, base, reader)
    _require(stores, sources)
    return stores


def _is_filled(stores: CacheStores, sources: tuple[Source, ...]) -> bool:
    try:
        _require(stores, sources)
    except CacheError:
        return False
    return all(store.nbytes for store in stores.all)  # a stream finds out only as it reads


def _require(stores: CacheStores, sources: tuple[Source, ...]) -> None:
    for records in sources:
        if isinstance(records, Records):
            stores.require(records)


def _prepare(
    accelerator: Accelerator, network: TrainableAdapter, optimizer: torch.optim.Optimizer, config: Config
) -> tuple[nn.Module, Any]:
    if accelerator.state.deepspeed_plugin is not None:
        configure_deepspeed(accelerator.state.deepspeed_plugin, config)
    adapter, prepared = accelerator.prepare(network, optimizer)
    return adapter, prepared
