"""What a training may read and where it writes: names from the page, places below ComfyUI's folders."""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import folder_paths

from ...ipadapter_core.errors import BadInputError, shown
from ...ipadapter_core.file.container import SAFETENSORS_SUFFIXES, read_header
from .. import paths
from ..paths import ADAPTERS, AUTO, NONE, files_below, is_within

RUNS = "ipadapter_runs"  # below the output folder; not in a folder of adapters, or its checkpoints would be listed
ALLOWED = "IPADAPTER_TRAIN_FOLDERS"  # environment variable of the server's owner
SUGGESTED = "suggested.toml"
SUFFIX = ".safetensors"
_NAME = re.compile(r"\w[\w -]{0,63}")
_RESERVED = re.compile(r"con|prn|aux|nul|(com|lpt)\d", re.IGNORECASE)  # Windows'
_DEPTH = 3  # folders of pictures below each other that are offered
_MODEL_INDEX = "model_index.json"
_SDXL_KEY = "conditioner.embedders.1.model.ln_final.weight"
_KINDS = {
    False: ("SD1.5", "stable-diffusion-v1-5/stable-diffusion-v1-5"),
    True: ("SDXL", "stabilityai/stable-diffusion-xl-base-1.0"),
}


@dataclass(frozen=True)
class Place:
    """Where a training lies.

    Attributes:
        name: of the run and of the adapter's file.
        folder: of everything that belongs to it.
    """

    name: str
    folder: Path

    @property
    def run(self) -> Path:
        """The trainer's own folder."""
        return self.folder / "run"

    @property
    def config(self) -> Path:
        """What the page says; it stands on `suggested`."""
        return self.folder / "train.toml"

    @property
    def suggested(self) -> Path:
        return self.folder / SUGGESTED

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    @property
    def pictures(self) -> Path:
        """Those of a batch."""
        return self.folder / "pictures"

    @property
    def log(self) -> Path:
        return self.folder / "log.txt"

    @property
    def exported(self) -> Path:
        return self.run / f"adapter{SUFFIX}"

    @property
    def adapter(self) -> Path:
        """Where Load IP-Adapter finds the finished file."""
        return Path(folder_paths.get_output_directory()) / ADAPTERS / f"{self.name}{SUFFIX}"


def place_of(name: str) -> Place:
    """Where a training of a name lies.

    Raises:
        BadInputError: a name that could lead elsewhere, be taken for an option or not be that of a file, or one of
            which Load IP-Adapter would show another file.
    """
    if not _NAME.fullmatch(name) or name != name.strip() or _RESERVED.fullmatch(name):
        raise BadInputError(
            f"the name '{shown(name)}'",
            expected="letters, digits, spaces, '_' and '-', at most 64, with a letter or digit first",
            action="choose such a name",
        )
    output = folder_paths.get_output_directory()
    place = Place(name, Path(output) / RUNS / name)
    for path in (place.run, place.adapter):
        if not is_within(output, str(path)):
            raise BadInputError(
                f"'{name}', which a link leads out of ComfyUI's output folder",
                expected=f"a name below {output}, with all links followed",
                action="choose another name",
            )
    for base in folder_paths.get_folder_paths(ADAPTERS):
        other = Path(base) / place.adapter.name
        if other != place.adapter and os.path.lexists(other):
            raise BadInputError(
                f"an adapter called {place.adapter.name} in {base}",
                expected="a name that Load IP-Adapter does not list yet",
                action="choose another name",
            )
    return place


def picture_folders() -> list[str]:
    """Folders below the input folder, by name, and those the server's owner allows besides, by their whole path."""
    base = folder_paths.get_input_directory()
    inside = [Path(found).relative_to(base).as_posix() for found in _folders(base, base, _DEPTH)]
    return [*sorted(inside), *_allowed()]


def picture_folder(name: str) -> Path:
    """A folder of pictures.

    Raises:
        BadInputError: none, or one that may not be read, or a link in it that leads out of what may be.
    """
    base = folder_paths.get_input_directory()
    path = os.path.abspath(os.path.join(base, paths.check_name(name, "pictures")))
    root = next((root for root in (base, *_allowed()) if is_within(root, path)), None)
    if root is None:
        raise BadInputError(
            f"the folder '{shown(name)}', which does not lie in ComfyUI's input folder",
            expected=f"a folder below {base}, or below one that the server's owner names in {ALLOWED}",
            action="copy the pictures there, press R and choose the folder",
        )
    if not os.path.isdir(path) or os.path.samefile(path, base):
        raise BadInputError(
            f"the folder '{shown(name)}', which is {'all of the' if os.path.isdir(path) else 'not in the'} input folder",
            expected="a folder of pictures in it",
            action="put the pictures into a folder of their own, press R and choose it",
        )
    for link in _links(path):
        if not is_within(root, link):
            raise BadInputError(
                f"a link in that folder, {shown(os.path.relpath(link, path))}, which leads out of {root}",
                expected="pictures that lie in the folder",
                action="copy what it leads to there",
            )
    return Path(path)


def picture_files(name: str) -> list[Path]:
    """All files of a folder of pictures; none where it may not be read."""
    try:
        folder = picture_folder(name)
    except BadInputError:
        return []
    return [here / file for here, files in files_below(folder) for file in files]


def base_models() -> list[str]:
    """Folders in diffusers layout, whose names end with a slash, and single files."""
    files = folder_paths.get_filename_list("checkpoints")
    return [*diffusers_folders(), *(name for name in files if name.endswith(SAFETENSORS_SUFFIXES))]


def diffusers_folders() -> dict[str, Path]:
    """Of models/diffusers, by name with a trailing slash."""
    found: dict[str, Path] = {}
    for base in map(Path, folder_paths.get_folder_paths("diffusers")):
        for folder, files in files_below(base):
            if _MODEL_INDEX in files and folder != base:
                found.setdefault(f"{folder.relative_to(base).as_posix()}/", folder)
    return dict(sorted(found.items()))


def base_model(name: str, described_by: str) -> tuple[Path, Path | None]:
    """A base model, and for a single file the folder whose configs and tokenizer describe it.

    Raises:
        BadInputError, UnreadableFileError: it is not there, or nothing describes it.
    """
    folders = diffusers_folders()
    if name in folders:
        return folders[name], None
    if name.endswith("/"):
        raise _unknown("base_model", name, base_models())
    file = paths.model_path("checkpoints", name, "base model")
    is_sdxl = _SDXL_KEY in read_header(file, "base model")
    if described_by == AUTO:
        fitting = [folder for folder in folders.values() if _is_sdxl(folder) == is_sdxl]
        if not fitting:
            kind, source = _KINDS[is_sdxl]
            raise BadInputError(
                f"the single file {name}, and no folder in models/diffusers that describes an {kind} model",
                expected="a folder in diffusers layout; its configs and tokenizer are enough",
                action=f"in models/diffusers run hf download {source} --include '*.json' '*.txt' --local-dir {kind}",
            )
        return file, fitting[0]
    if described_by not in folders:
        raise _unknown("base_config", described_by, [AUTO, *folders])
    return file, folders[described_by]


def encoders() -> list[str]:
    """Folders in transformers layout: what the trainer reads."""
    return list(paths.encoder_folders())


def encoder(name: str) -> Path:
    """Raises BadInputError: there is none of that name."""
    found = paths.encoder_folders()
    if name not in found:
        raise _unknown("image_encoder", name, list(found))
    return found[name]


def start_file(name: str) -> str:
    """What `adapter.pretrained` is for a choice. Raises UnreadableFileError: no such file."""
    return NONE if name == NONE else str(paths.adapter_path(name))


def _unknown(where: str, name: str, known: list[str]) -> BadInputError:
    return BadInputError(
        f"'{shown(name)}' for {where}",
        expected=f"one of {shown(', '.join(known))}" if known else "a model, but there is none here",
        action="choose one of the list; press R after copying models",
    )


def _is_sdxl(folder: Path) -> bool:
    try:
        parts = json.loads((folder / _MODEL_INDEX).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(parts, dict) and "text_encoder_2" in parts


def _allowed() -> list[str]:
    return [os.path.abspath(part) for part in os.environ.get(ALLOWED, "").split(os.pathsep) if part.strip()]


def _folders(root: str, folder: str, depth: int) -> Iterator[str]:
    """Those below a folder that may be chosen."""
    try:
        with os.scandir(folder) as entries:
            below = [entry.path for entry in entries if not entry.name.startswith(".") and entry.is_dir()]
    except OSError:
        return
    for path in below:
        if is_within(root, path):
            yield path
            if depth > 1:
                yield from _folders(root, path, depth - 1)


def _links(folder: str) -> Iterator[str]:
    for here, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = os.path.join(here, name)
            if os.path.islink(path):
                yield path
