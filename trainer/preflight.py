"""What can be known to fail before a model is loaded, which takes minutes: said at once."""

from pathlib import Path

import torch

from ipadapter_core.errors import BadInputError, IPAdapterError
from ipadapter_core.network.adapter import read_spec

from .cache.store import CacheError
from .config import AugmentConfig, Config
from .data.identities import ready_identity
from .data.own_references import check_references
from .data.pictures import BrokenPictureError, Picture, decode, upright_size
from .data.records import DataError, Records
from .data.sources import Source
from .draws import sample_generator
from .models.encoder_files import resolve_folder
from .models.face_network import face_read
from .models.image_encoder import check_encoder
from .models.wanted import pretrained_file
from .readers.faces import FacePreparation, find_pack
from .state import CheckpointError

_LOOKED_AT = 64  # pictures and references, spread evenly
_FACES_LOOKED_AT = 8
_LEAST_HELD_OUT = 2


def check_before_models(config: Config, source: Source, held_out: Records) -> None:
    """Look at a choice of the pictures, at what is held out, at the run folder and at the file to start from.

    Raises:
        DataError: more pictures cannot be read than `data.max_skipped` lets through, too few are held out, or one of
            `validation.references` cannot be drawn from.
        CheckpointError, CacheError: the run folder, or that of the cache, cannot be one.
        ModelNotFoundError: no such encoder, one that rates pictures among them, or the hub does not have adapter.pretrained.
        UnreadableFileError, UnknownCheckpointError, UnsupportedFamilyError: as `read_spec`, of adapter.pretrained.
    """
    _check_folder(config.run, f"train.output = {str(config.run)!r}", "train.output", CheckpointError)
    if config.cache.path is not None:
        _check_folder(Path(config.cache.path), f"cache.path = {config.cache.path!r}", "cache.path", CacheError)
    if config.adapter.pretrained is not None:
        read_spec(pretrained_file(config.adapter.pretrained))
    if config.validation.every is not None and len(held_out) < _LEAST_HELD_OUT:
        raise DataError(
            f"{len(held_out)} validation pictures",
            expected=f"at least {_LEAST_HELD_OUT}: the reference of another one is the control",
            action="raise validation.images, or add pictures to validation.path",
        )
    if config.validation.references is not None:
        check_references(config.validation.references, may_leave=config.data.allow_outside)
    for records in (source, held_out):
        if isinstance(records, Records):  # a stream finds out as it reads
            _check_pictures(records, config)
    _find_small_models(config)
    if config.adapter.reads_faces and isinstance(source, Records):
        _check_faces(source, config)


def _find_small_models(config: Config) -> None:
    """Those that are loaded after the base, which takes longer than to look for them."""
    if config.adapter.reads_pictures:
        check_encoder(config.encoder, config.adapter.kind)
    if config.encoder.face_model is not None:
        find_pack(config.encoder.face_model)
    if config.validation.sample_every is not None:  # else they are not asked
        for name in ("clip_model", "dino_model"):
            if model := getattr(config.validation, name):
                resolve_folder(model, f"validation.{name}")


def _check_pictures(records: Records, config: Config) -> None:
    chosen = range(0, len(records), max(1, len(records) // _LOOKED_AT))
    broken = [error for index in chosen for error in _broken(records, index, config.train.seed)]
    if broken and len(broken) > config.data.max_skipped * len(chosen) + 1:  # of so few, one more may be chance
        raise DataError(
            f"{len(broken)} of {len(chosen)} pictures looked at cannot be used, the first {broken[0].name} "
            f"({broken[0].reason})",
            expected=f"at most {config.data.max_skipped:.0%} (data.max_skipped)",
            action="repair or remove them, or correct data.path, data.image_root and the reference settings",
        )


def _broken(records: Records, index: int, seed: int) -> list[BrokenPictureError]:
    record = records[index]
    pictures: tuple[Picture, ...] = (record.image, records.reference(index, sample_generator(seed, index, "group")))
    for picture in pictures:
        try:
            upright_size(picture)
        except BrokenPictureError as error:
            return [error]
    return []


def _check_faces(records: Records, config: Config) -> None:
    """A few: where none has a face, a thousand would be looked at before anything is said."""
    pack = None if config.encoder.face_model is None else find_pack(config.encoder.face_model)
    preparation = FacePreparation(pack, face_read(0), None)
    reasons = []
    chosen = range(0, len(records), max(1, len(records) // _FACES_LOOKED_AT))
    for index in chosen:
        picture = records.reference(index, sample_generator(config.train.seed, index, "group"))
        try:
            identity = ready_identity(picture) if pack is None else None
            preparation.prepare(
                decode(picture), AugmentConfig(), torch.Generator(), name=picture.name, identity=identity
            )
        except BrokenPictureError as error:
            reasons.append(f"{error.name} ({error.reason})")
        else:
            return
    raise DataError(
        f"none of {len(chosen)} references looked at can be read as a face, the first {reasons[0]}",
        expected="pictures of faces, or their embeddings ready: data.identity_column, or NAME.npy beside each",
        action="correct data.path and the reference settings, or set encoder.face_model",
    )


def check_pictures_folder(folder: Path) -> None:
    """Where pictures go that take minutes to draw. Raises BadInputError if no folder can be made there."""
    _check_folder(folder, f"--output {folder}", "--output", BadInputError)


def _check_folder(folder: Path, named: str, setting: str, kind: type[IPAdapterError]) -> None:
    """Raises `kind` where a file is in the way. Nothing is made yet: a mistake leaves nothing behind."""
    place = next((parent for parent in (folder, *folder.parents) if parent.exists()), folder)
    if place.exists() and not place.is_dir():
        raise kind(
            f"{named}, but {place} is a file",
            expected="a folder, or a place where one can be made",
            action=f"choose another {setting}",
        )
