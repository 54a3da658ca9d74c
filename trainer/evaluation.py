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
from .data.own_references import check_references
from .data.records import Records
from .data.sources import open_sources
from .files.adapter_file import open_adapter
from .files.families import check_family
from .models.loading import check_base, load_base
from .objective import Objective
from .preflight import check_pictures_folder
from .run import geometry
from .watch.contact_sheet import save_grid
from .watch.metrics import load_judge
from .watch.references import open_drawing
from .watch.sampling import sample_grid
from .watch.validation import build_grid, validate
from .watch.verdict import verdict_of

logger = logging.getLogger(__name__)

RESULT_FILE = "eval.json"


def evaluate(config: Config, file: Path, folder: Path, *, images: int | None) -> dict[str, object]:
    """Validate, draw and rate with an adapter file; writes the pictures and `eval.json` into a folder.

    The held-out pictures are those of the config's training run.

    Args:
        images: references drawn; those that a run draws if None.

    Raises:
        BadInputError: more references than there are held-out pictures, or own ones; or no such folder can be made.
        IPAdapterError: what config or file name is missing, broken or does not fit together.
    """
    check_pictures_folder(folder)
    held_out = held_out_pictures(config, images)
    check_family(read_spec(file))  # a wrong file is said before the models are loaded
    device = PartialState().device
    base = check_base(config, load_base(config.base, device))
    opened = open_adapter(
        file, base, config.encoder.model or None, config.encoder.precision, face_model=config.encoder.face_model
    )
    reader = opened.reader
    judge = load_judge(config.validation, reader, device)
    sampler, references = open_drawing(config, held_out, base, reader, count=images)
    objective = Objective(config.objective, base, opened.no_image, reader)
    batches = tqdm(
        held_out_batches(config, held_out, geometry(base, reader)), "encoding", len(held_out), unit=" pictures"
    )
    grid = build_grid(batches, objective, timesteps=config.validation.timesteps, seed=config.train.seed)
    losses = validate(grid, opened.network, objective, batch_size=config.train.batch_size)
    with tqdm(total=sampler.settings.total_steps(len(references)), desc="drawing", unit=" steps") as bar:
        drawn = sample_grid(sampler, opened.network, opened.no_image, references, bar.update)
    sheet, *_ = save_grid(drawn, folder)
    result: dict[str, object] = {
        "adapter": str(file),
        "family": opened.network.spec.family,
        "held_out": len(grid.pictures),
        "losses": asdict(losses),
        "verdict": verdict_of(asdict(losses)),
        "guidance": sampler.guidance,
        "references": len(references) // len(config.validation.texts),
        **({"texts": len(drawn.prompts)} if drawn.prompts else {}),
        **(judge.rate(drawn) if judge is not None else {}),
        "sheet": str(sheet),
    }
    (folder / RESULT_FILE).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result


def held_out_pictures(config: Config, images: int | None) -> Records:
    """Those that a run of this config validates on; warns if such a run would have trained on them.

    Raises:
        BadInputError: `images` are to be drawn from, and there are fewer, or fewer of `validation.references`.
        DataError: as `open_sources` and `own_references`.
    """
    # held out whether or not the run validated: which ones follows from seed and names alone
    stated = config.validation
    if stated.every is None and stated.sample_every is None and stated.path is None:
        logger.warning(
            "a run of this config holds no pictures out: an adapter of it was trained on those measured here; "
            "--set validation.path=… names others"
        )
    _, held_out = open_sources(config, holds_out=True)
    there, of = len(held_out), "that are held out"
    action = "lower --images; validation.images in training decides how many are held out"
    if stated.references is not None:
        there, of, action = (
            check_references(stated.references, may_leave=config.data.allow_outside),
            "of validation.references",
            "lower --images",
        )
    if images is not None and images > there:
        raise BadInputError(
            f"{images} pictures to draw from, of {there} {of}", expected=f"at most {there}", action=action
        )
    return held_out
