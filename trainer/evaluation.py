"""What an adapter file is worth on pictures its training did not see: losses, pictures and their ratings."""

import json
import logging
from dataclasses import asdict
from pathlib import Path

from accelerate import PartialState
from tqdm import tqdm

from ipadapter_core.errors import BadInputError
from ipadapter_core.network.adapter import read_spec

from .config import Config
from .data.loader import held_out_batches
from .data.records import Records
from .data.sources import open_sources
from .files.adapter_file import open_adapter
from .models.base import with_terminal_snr
from .models.loading import load_base
from .objective import Objective
from .run import geometry
from .watch.contact_sheet import save_grid
from .watch.metrics import load_judge
from .watch.references import held_out_references
from .watch.sampling import Sampler, SampleSettings, encode_prompt, sample_grid
from .watch.validation import build_grid, validate
from .watch.verdict import verdict_of

logger = logging.getLogger(__name__)

RESULT_FILE = "eval.json"


def evaluate(config: Config, file: Path, folder: Path, *, images: int | None) -> dict[str, object]:
    """Validate, draw and rate with an adapter file; writes the pictures and `eval.json` into a folder.

    The held-out pictures are those of the config's training run.

    Args:
        images: references drawn; `validation.samples` if None.

    Raises:
        BadInputError: more references than there are held-out pictures.
        IPAdapterError: what config or file name is missing, broken or does not fit together.
    """
    held_out = held_out_pictures(config, images)
    read_spec(file)  # a wrong file is said before the models are loaded
    device = PartialState().device
    base = load_base(config.base, device)
    if config.objective.zero_terminal_snr:
        base = with_terminal_snr(base)
    opened = open_adapter(file, base, config.encoder.model, config.encoder.precision)
    encoder = opened.encoder
    judge = load_judge(config.validation, encoder, device)
    references = held_out_references(
        held_out,
        base,
        encoder,
        count=config.validation.samples if images is None else images,
        prompt=config.validation.prompt,
        seed=config.train.seed,
    )
    objective = Objective(config.objective, base, opened.no_image, encoder)
    batches = tqdm(
        held_out_batches(config, held_out, geometry(base, encoder)), "encoding", len(held_out), unit=" pictures"
    )
    grid = build_grid(batches, objective, timesteps=config.validation.timesteps, seed=config.train.seed)
    losses = validate(grid, opened.network, objective, batch_size=config.train.batch_size)
    settings = SampleSettings.of(config)
    with tqdm(total=settings.total_steps(len(references)), desc="drawing", unit=" steps") as bar:
        sampler = Sampler(base, settings, encode_prompt(base, ""))
        drawn = sample_grid(sampler, opened.network, opened.no_image, references, bar.update)
    sheet, *_ = save_grid(drawn, folder)
    result: dict[str, object] = {
        "adapter": str(file),
        "family": opened.network.spec.family,
        "held_out": len(grid.pictures),
        "losses": asdict(losses),
        "verdict": verdict_of(asdict(losses)),
        "references": len(references),
        **(judge.rate(drawn) if judge is not None else {}),
        "sheet": str(sheet),
    }
    (folder / RESULT_FILE).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result


def held_out_pictures(config: Config, images: int | None) -> Records:
    """Those that a run of this config validates on; warns if such a run would have trained on them.

    Raises:
        BadInputError: `images` of them are asked for, and there are fewer.
        DataError: as `open_sources`.
    """
    # held out whether or not the run validated: which ones follows from seed and names alone
    stated = config.validation
    if stated.every is None and stated.sample_every is None and stated.path is None:
        logger.warning(
            "a run of this config holds no pictures out: an adapter of it was trained on those measured here; "
            "--set validation.path=… names others"
        )
    _, held_out = open_sources(config, holds_out=True)
    if images is not None and images > len(held_out):
        raise BadInputError(
            f"{images} pictures to draw from, of {len(held_out)} that are held out",
            expected=f"at most {len(held_out)}",
            action="lower --images; validation.images in training decides how many are held out",
        )
    return held_out
