"""Where model files lie: `models/ipadapter`, and encoders in `models/clip_vision`, with `extra_model_paths.yaml`."""

import os
from pathlib import Path

import folder_paths

from ..ipadapter_core.file.container import ADAPTER_SUFFIXES

ADAPTERS = "ipadapter"
ENCODERS = "clip_vision"
AUTO = "auto"  # choices of IPALoadAdapter beside the encoders found
NONE = "none"


def register_folders() -> None:
    """Add `models/ipadapter` to ComfyUI's folders; paths from `extra_model_paths.yaml` or another pack stay first."""
    folder = Path(folder_paths.models_dir) / ADAPTERS
    folder.mkdir(parents=True, exist_ok=True)
    folder_paths.add_model_folder_path(ADAPTERS, str(folder))
    paths, extensions = folder_paths.folder_names_and_paths[ADAPTERS]
    # A folder known from extra_model_paths.yaml alone admits every suffix.
    folder_paths.folder_names_and_paths[ADAPTERS] = (paths, set(extensions) | set(ADAPTER_SUFFIXES))


def adapter_files() -> list[str]:
    return [name for name in folder_paths.get_filename_list(ADAPTERS) if name.endswith(ADAPTER_SUFFIXES)]


def adapter_path(name: str) -> Path:
    return Path(folder_paths.get_full_path_or_raise(ADAPTERS, name))


def encoder_files() -> list[str]:
    return list(folder_paths.get_filename_list(ENCODERS))


def encoder_roots() -> list[str]:
    return list(folder_paths.get_folder_paths(ENCODERS))


def encoder_folders() -> dict[str, Path]:
    """Folders in transformers layout below the encoder paths, by their name with a trailing slash."""
    found: dict[str, Path] = {}
    for base in encoder_roots():
        for folder, subfolders, files in os.walk(base, followlinks=True):
            subfolders.sort()
            if "config.json" in files and folder != base:
                found.setdefault(f"{Path(folder).relative_to(base).as_posix()}/", Path(folder))
    return dict(sorted(found.items()))


def encoder_file_path(name: str) -> Path:
    return Path(folder_paths.get_full_path_or_raise(ENCODERS, name))


def encoder_candidates(choice: str) -> list[Path]:
    """The weight files that a choice of image encoder depends on; all there are for `auto`."""
    if choice == NONE:
        return []
    folders = encoder_folders()
    names = [*encoder_files(), *folders] if choice == AUTO else [choice]
    return [file for name in names for file in weight_files(folders.get(name) or encoder_file_path(name))]


def weight_files(path: Path) -> list[Path]:
    """A file itself; of a folder, its config and safetensors."""
    return sorted((*path.glob("*.json"), *path.glob("*.safetensors"))) if path.is_dir() else [path]


def file_identity(path: Path) -> tuple[str, int, int]:
    """Changes when the file is replaced: resolved path, size, time of last change."""
    stat = path.stat()
    return str(path.resolve()), stat.st_size, stat.st_mtime_ns
