"""The two npm packages of emoji pictures, fetched once and checked; npm itself is not needed."""

import base64
import hashlib
import shutil
import tarfile
from dataclasses import dataclass
from pathlib import Path

import requests
from tqdm import tqdm

from ipadapter_core.file.container import publish

CHUNK = 1 << 20  # bytes


class PackageError(RuntimeError):
    """A package that cannot be fetched, or is not what it was."""


@dataclass(frozen=True)
class Package:
    """A package of the npm registry.

    Attributes:
        name: with its scope.
        sha512: of the archive, as the registry's `dist.integrity` states it (base64).
        folder: of the pictures, inside the archive.
    """

    name: str
    version: str
    sha512: str
    folder: str

    @property
    def file_name(self) -> str:
        return f"{self.name.rpartition('/')[2]}-{self.version}.tgz"

    @property
    def url(self) -> str:
        return f"https://registry.npmjs.org/{self.name}/-/{self.file_name}"


NOTO = Package(
    "emoji-datasource-google",
    "16.0.0",
    "ZRexfzs7MVoLnmzZmNsO4TKhnAJp5D++Vm6PpUpH/jEQQlemp3l88CjZ+DoZ2faM9R4QxZkOPJCoT8DlPhfQ3A==",
    "package/img/google/64",
)
FLUENT = Package(
    "@lobehub/fluent-emoji-3d",
    "1.1.0",
    "Wlq2lVStTnr8BDpIJ0pEnTKO4LuDxxqTEhTvRtD1DLRF0me7ogeRQjKoehDHXuVJ2Qaecgl5wRBv60lUAG3h7g==",
    "package/assets",
)


def unpack(package: Package, cache: Path) -> Path:
    """Folder with the package's contents, fetched if it is not there.

    Raises:
        PackageError: the registry does not answer, or what came is not the pinned archive.
    """
    folder = cache / package.file_name.removesuffix(".tgz")
    if not folder.exists():
        archive = cache / package.file_name
        if not archive.exists() or _sha512(archive) != package.sha512:
            _fetch(package, archive)
        part = folder.with_name(f"{folder.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        with tarfile.open(archive) as content:
            content.extractall(part, filter="data")
        part.rename(folder)
    return folder


def _fetch(package: Package, archive: Path) -> None:
    archive.parent.mkdir(parents=True, exist_ok=True)
    part = archive.with_name(f"{archive.name}.part")
    try:
        with requests.get(package.url, stream=True, timeout=60) as response:
            response.raise_for_status()
            size = int(response.headers.get("Content-Length", 0)) or None
            with part.open("wb") as file, tqdm(total=size, unit="B", unit_scale=True, desc=package.name) as bar:
                for chunk in response.iter_content(CHUNK):
                    file.write(chunk)
                    bar.update(len(chunk))
    except requests.RequestException as error:
        raise PackageError(
            f"{package.url} cannot be fetched ({error}). Put the file at {archive}, or try again with a network"
        ) from error
    found = _sha512(part)
    if found != package.sha512:
        part.unlink()
        raise PackageError(f"{package.url} has SHA-512 {found}, not {package.sha512} as pinned: it is not used")
    publish(part, archive)


def _sha512(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha512()
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return base64.b64encode(digest.digest()).decode()
