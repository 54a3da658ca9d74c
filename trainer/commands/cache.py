"""`ipadapter cache`."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from ..words import visible
from .options import AsJson, ConfigPath, Overrides
from .output import emit

if TYPE_CHECKING:
    from ..cache.fill import FillReport
    from ..cache.training import Stores


def cache(
    config: ConfigPath,
    overrides: Overrides = [],  # noqa: B006 - typer's way
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures or captions encoded at once.")] = 8,
    check: Annotated[
        bool, typer.Option("--check", help="First read every file again and delete the damaged ones.")
    ] = False,
    prune: Annotated[
        bool, typer.Option("--prune", help="Delete at the end what was made with other settings or models.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Encode pictures, references and captions once, into the folder cache.path, so that training does not.

    With cache.parts only some of them; --prune then leaves the others' entries alone.

    What is there is reused; what changed is made again. It may be killed and started again at any time, and started
    several times at once, on one machine or on many that share the folder: the processes share the work. Broken
    pictures are listed in `skipped.jsonl` in that folder.

    Example: `ipadapter cache my.toml --set cache.path=cache`; on all GPUs: `accelerate launch -m ipadapter_trainer cache my.toml`
    """
    from ..config_file import read_config

    settings = read_config(config, overrides)  # before the libraries, which take their time: a mistake shows at once

    from accelerate import Accelerator

    from ..cache.fill import fill
    from ..cache.store import prune as delete
    from ..cache.training import check_path, open_stores
    from ..data.sources import open_sources
    from ..models.loading import check_base, load_base
    from ..models.wanted import wanted_adapter
    from ..preflight import check_before_models
    from ..readers.opening import open_reader

    check_path(settings)
    sources = open_sources(settings)
    check_before_models(settings, *sources)
    process = Accelerator()
    needed = {"latents": "vae", "text": "text"}
    only = frozenset(needed[kind] for kind in settings.cache.parts if kind in needed)
    base = load_base(settings.base, process.device, only=only)
    check_base(settings, base)
    reader = open_reader(settings, process.device, base.sites.sites[0].context_dim)
    wanted_adapter(settings.adapter, base, reader.encoder)
    stores = open_stores(settings, base, reader)
    damaged = _check(stores, show=process.is_main_process) if check and process.is_main_process else None
    report = fill(settings, base, reader, sources, batch_size=batch_size, progress=process.is_local_main_process)
    if not process.is_main_process:
        return
    stale = [folder for store in stores.all for folder in store.stale()]
    freed = delete(stale) if prune else None
    result = _result(report) | ({} if damaged is None else {"damaged": damaged})
    result |= {"freed_bytes": freed} if prune else {"unused_bytes": sum(folder.nbytes for folder in stale)}
    emit(result, as_json)
    if stale and not prune:
        typer.echo("Some of the cache was made with other settings or models: --prune deletes it.", err=True)


def _check(stores: "Stores", *, show: bool) -> list[str]:
    """Delete what is damaged; what it was."""
    from tqdm import tqdm

    damaged = []
    for store in stores.all:
        for path, problem in tqdm(store.check(), f"checking {store.kind}", unit=" files", disable=not show):
            if problem is not None:
                typer.echo(visible(f"{path}: {problem}"), err=True)
                store.remove([path])
                damaged.append(str(path))
    return damaged


def _result(report: "FillReport") -> dict[str, object]:
    kinds: Mapping[str, object] = {
        kind: {**vars(share), "bytes": report.nbytes[kind]} for kind, share in report.shares.items()
    }
    return {"folder": str(report.folder), **kinds, "skipped": report.skipped, "seconds": round(report.seconds, 1)}
