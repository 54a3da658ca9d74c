"""Where model files lie: `models/ipadapter`, and encoders in `models/clip_vision`, with `extra_model_paths.yaml`."""

import hashlib
import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import folder_paths
from safetensors import SafetensorError

from ..ipadapter_core.branch.token_file import holds_tokens
from ..ipadapter_core.encoder.known import FILE_KIND
from ..ipadapter_core.errors import BadInputError, UnreadableFileError, shown
from ..ipadapter_core.file.container import ADAPTER, ADAPTER_SUFFIXES, file_status
from ..ipadapter_core.file.published import way_to

ADAPTERS = "ipadapter"
ENCODERS = "clip_vision"
TOKENS = "ipadapter_tokens"  # below models, and below output, where they are saved: as ComfyUI has it for checkpoints
AUTO = "auto"  # choices of image encoder beside those found
NONE = "none"

_LONGEST_NAME = 1024  # characters
_NOWHERE = "?"  # no file system has it

logger = logging.getLogger(__name__)


def register_folders() -> None:
    """Add `models/ipadapter` to ComfyUI's folders; paths from `extra_model_paths.yaml` or another pack stay first."""
    folder = Path(folder_paths.models_dir) / ADAPTERS
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:  # a link to a disk that is not there, or a place nobody may write to
        logger.warning("%s cannot be made (%s): no adapter is found there.", folder, error)
    folder_paths.add_model_folder_path(ADAPTERS, str(folder))
    paths, extensions = folder_paths.folder_names_and_paths[ADAPTERS]
    # A folder known from extra_model_paths.yaml alone admits every suffix.
    folder_paths.folder_names_and_paths[ADAPTERS] = (paths, set(extensions) | set(ADAPTER_SUFFIXES))
    # where Train IP-Adapter puts what is finished
    folder_paths.add_model_folder_path(ADAPTERS, os.path.join(folder_paths.get_output_directory(), ADAPTERS))
    for base in (folder_paths.models_dir, folder_paths.get_output_directory()):
        folder_paths.add_model_folder_path(TOKENS, os.path.join(base, TOKENS))


def adapter_files() -> list[str]:
    return [name for name in folder_paths.get_filename_list(ADAPTERS) if name.endswith(ADAPTER_SUFFIXES)]


def adapter_path(name: str, folder: str = ADAPTERS) -> Path:
    """Errors as `model_path`."""
    return model_path(folder, name, ADAPTER)


def adapter_candidates(name: str | None) -> list[Path]:
    """The file of a name, there or not; all there are where the name is not known yet, as with a linked input."""
    return model_candidates(ADAPTERS, adapter_files() if name is None else [name])


def token_files() -> list[str]:
    """Files of image tokens, by what their headers say."""
    return [name for name in folder_paths.get_filename_list(TOKENS) if holds_tokens(_place(TOKENS, name))]


def encoder_files() -> list[str]:
    return list(folder_paths.get_filename_list(ENCODERS))


def adapter_roots() -> list[str]:
    return list(folder_paths.get_folder_paths(ADAPTERS))


def encoder_roots() -> list[str]:
    return list(folder_paths.get_folder_paths(ENCODERS))


def encoder_folders() -> dict[str, Path]:
    """Folders in transformers layout below the encoder paths, by their name with a trailing slash."""
    found: dict[str, Path] = {}
    for base in map(Path, encoder_roots()):
        for folder, files in files_below(base):
            if "config.json" in files and folder != base:
                found.setdefault(f"{folder.relative_to(base).as_posix()}/", folder)
    return dict(sorted(found.items()))


def encoder_file_path(name: str) -> Path:
    """Errors as `model_path`."""
    return model_path(ENCODERS, name, FILE_KIND)


def encoder_candidates(choice: str | None) -> list[Path]:
    """The files that a choice of image encoder depends on; all there are for `auto` and where it is not known yet."""
    if choice == NONE:
        return []
    folders = encoder_folders()
    if choice in (AUTO, None):
        names = [*encoder_files(), *folders]
    else:  # a file may stand for the folder it lies in
        names = [choice, *(folder for folder in folders if Path(choice).is_relative_to(folder))]
    return [file for name in names for file in weight_files(folders.get(name) or _place(ENCODERS, name))]


def weight_files(path: Path) -> list[Path]:
    """A file itself; of a folder, its config and safetensors."""
    return sorted((*path.glob("*.json"), *path.glob("*.safetensors"))) if os.path.isdir(path) else [path]


def check_name(name: object, where: str) -> str:
    """What should name a file, or a choice like one.

    Raises:
        BadInputError: no text, as a linked input may give, or one longer than a name can be.
    """
    if not isinstance(name, str) or len(name) > _LONGEST_NAME:
        found = f"{len(name)} characters" if isinstance(name, str) else f"a {type(name).__name__}"
        raise BadInputError(
            f"{found} where the name of a file is needed",
            expected=f"the name of a file of {where}",
            action="choose one, or connect a node that gives its name",
        )
    return name


def model_path(folder: str, name: object, kind: str) -> Path:
    """Where a file of one of ComfyUI's model folders lies.

    Args:
        folder: as ComfyUI knows it, such as "loras".
        kind: what the file should be, for messages.

    Raises:
        BadInputError: as `check_name`.
        UnreadableFileError: there is no such file, or a link that leads nowhere, a folder, a pipe.
    """
    place = _place(folder, check_name(name, f"models/{folder}"))
    if not os.path.lexists(place):
        raise UnreadableFileError(
            f"no file {shown(str(name))} in {' or '.join(folder_paths.get_folder_paths(folder))}",
            expected=f"the name of a file of models/{folder}",
            action="choose another file or put this one back",
            more=way_to(str(name)),
        )
    file_status(place, kind)
    return place


def model_candidates(folder: str, names: Iterable[str]) -> list[Path]:
    """Where files of one of ComfyUI's model folders lie, whether they can be read or not."""
    return [_place(folder, name) for name in names]


def input_path(name: object, what: str) -> Path:
    """Where a file of ComfyUI's input folder lies, there or not.

    Args:
        what: the file is to be, for messages.

    Raises:
        BadInputError: as `check_name`, or a place outside that folder, links followed: as ComfyUI has it for pictures.
    """
    base = folder_paths.get_input_directory()
    path = os.path.join(base, check_name(name, f"{what} in ComfyUI's input folder"))
    if not is_within(base, path):
        raise BadInputError(
            f"{shown(str(name))}, which does not lie in ComfyUI's input folder",
            expected=f"the name of a file of {what} in {base}",
            action="copy the file there (links that lead out of it are not followed), and choose it",
        )
    return Path(path)


def output_place(prefix: str) -> tuple[Path, str, str]:
    """Where the next file of a prefix goes below ComfyUI's output folder: its folder, its name without suffix, subfolder.

    Raises:
        BadInputError: a place outside that folder, links followed, or one that cannot be made.
    """
    base = folder_paths.get_output_directory()
    subfolder = os.path.dirname(os.path.normpath(prefix))
    if not is_within(base, os.path.join(base, subfolder)):
        raise BadInputError(
            f"'{shown(prefix)}', which leads out of ComfyUI's output folder",
            expected=f"a name, or a folder and a name, below {base}",
            action="choose a name without '..' and without a drive or '/' at its beginning",
        )
    try:
        folder, name, counter, made, _ = folder_paths.get_save_image_path(prefix, base)
    except (OSError, ValueError) as error:
        raise BadInputError(
            f"'{shown(prefix)}', for which no folder can be made ({shown(str(error))})",
            expected="a name that the file system takes, in a folder that can be written to",
            action="choose another name",
        ) from error
    return Path(folder), f"{name}_{counter:05}_", made


@contextmanager
def writing(path: Path, what: str, widget: str) -> Iterator[None]:
    """Turn what a disk or a file format refuses inside into a message.

    Args:
        what: is written, for the message.
        widget: that names the file.

    Raises:
        BadInputError: it cannot be written.
    """
    try:
        yield
    except (OSError, ValueError, SafetensorError) as error:
        raise BadInputError(
            f"{what} that cannot be written to {shown(str(path))} ({shown(str(error))})",
            expected="a name that the file system takes, and room on the disk",
            action=f"choose another {widget}, or make room",
        ) from error


def is_within(folder: str, path: str) -> bool:
    """Whether a path lies in a folder, as it is written and with all links followed."""
    try:
        return all(
            os.path.commonpath((place, resolve(path))) == place
            for resolve in (os.path.abspath, os.path.realpath)
            if (place := resolve(folder))
        )
    except ValueError:  # a null character, another drive
        return False


def inside(name: str) -> str:
    """A name as that of something below a folder, as ComfyUI has it: what leads up or begins anew leads nowhere."""
    try:
        return os.path.relpath(os.path.join("/", name), "/")
    except ValueError:  # on Windows another drive or a share, which would be told who asks for it
        return _NOWHERE


def files_below(folder: Path, above: frozenset[str] = frozenset()) -> Iterator[tuple[Path, list[str]]]:
    """Every folder from this one down, links followed but never in a circle, and the names of its files."""
    real = os.path.realpath(folder)
    if real in above:
        return
    try:
        with os.scandir(folder) as entries:
            is_folder = {entry.name: _is_folder(entry) for entry in entries}
    except OSError:
        return
    yield folder, sorted(name for name in is_folder if not is_folder[name])
    for name in sorted(name for name in is_folder if is_folder[name]):
        yield from files_below(folder / name, above | {real})


def fingerprint(files: Iterable[Path]) -> str:
    """Changes when one of the files does, comes or goes; empty where there is none."""
    there = [found for file in files if (found := _identity(file))]
    return hashlib.blake2b(repr(there).encode(), digest_size=16).hexdigest() if there else ""


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, for one
        return False


def _identity(path: Path) -> tuple[str, int, int] | None:
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return os.path.realpath(path), status.st_size, status.st_mtime_ns


def _place(folder: str, name: str) -> Path:
    """Of the places where a file may lie the first that has it, else the first that has something of its name."""
    places = [Path(base) / inside(name) for base in folder_paths.get_folder_paths(folder)]
    for is_there in (os.path.isfile, os.path.lexists):
        for place in places:
            if is_there(place):
                return place
    return places[0]
