"""Places on the Hugging Face hub as settings name them, and the copy of them in the hub's cache on this machine."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import huggingface_hub
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ipadapter_core.errors import IPAdapterError

from .words import first_line

HUB_ERRORS = (HFValidationError, HfHubHTTPError, EntryNotFoundError, OSError)
"""What a look-up on the hub may raise."""
_WRITTEN = re.compile(
    r"(?P<repository>[\w-][\w.-]*/[\w-][\w.-]*)(?P<inside>(?:/[\w-][\w. +-]*)*)(?:@(?P<revision>[\w./-]+))?"
)
Kind = Literal["model", "dataset"]


class ModelNotFoundError(IPAdapterError):
    """A model folder, file or hub repository that cannot be opened."""


@dataclass(frozen=True)
class HubPlace:
    """A repository or something in it: `owner/name`, `owner/name/folder`, either with `@revision` behind.

    Attributes:
        inside: folder or file of the repository; "" is all of it.
        revision: branch, tag or commit; None is the newest of the main branch.
    """

    repository: str
    inside: str = ""
    revision: str | None = None

    @classmethod
    def of(cls, text: str) -> "HubPlace | None":
        """What a setting names on the hub; None if it is not written so, or if that lies on this machine."""
        written = _WRITTEN.fullmatch(text)
        if written is None or Path(text).exists():
            return None
        place = cls(written["repository"], written["inside"].removeprefix("/"), written["revision"])
        is_mistyped = place.inside and Path(place.repository).is_dir()  # of a local folder
        return None if is_mistyped else place

    def __str__(self) -> str:
        return f"{self.unpinned}{f'@{self.revision}' if self.revision else ''}"

    @property
    def unpinned(self) -> str:
        """Without its revision."""
        return f"{self.repository}/{self.inside}".removesuffix("/")

    def snapshot(self, files: Sequence[str] | None, kind: Kind = "model") -> Path:
        """Bring files (patterns; None is all) into the hub's cache.

        Raises:
            HUB_ERRORS: what `explain` puts in words.
        """
        names = [f"{self.inside}/{name}".removeprefix("/") for name in files or ("*",)]
        if self.inside and files is None:
            names.append(self.inside)  # which may be a file
        root = huggingface_hub.snapshot_download(
            self.repository, revision=self.revision, allow_patterns=names, repo_type=kind
        )
        found = Path(root) / self.inside
        if not found.exists():
            missing = LocalEntryNotFoundError if huggingface_hub.is_offline_mode() else EntryNotFoundError
            raise missing(str(self))
        return found

    def commit(self, found: Path) -> str:
        """Of what `snapshot` has found."""
        return (found.parents[len(Path(self.inside).parts) - 1] if self.inside else found).name

    def file(self) -> Path:
        """Bring the file that `inside` names into the hub's cache.

        Raises:
            HUB_ERRORS: what `explain` puts in words.
        """
        return Path(huggingface_hub.hf_hub_download(self.repository, self.inside, revision=self.revision))

    def explain(self, error: Exception, key: str, kind: Kind = "model") -> tuple[str, str]:
        """(What a look-up failed at, what to do) for an error of the setting that names the place."""
        what, action = self._reason(error, key, kind)
        return (
            f"{key} = {str(self)!r}, which is no {'file' if '.' in self.inside else 'folder'} here, and {what}",
            action,
        )

    def _reason(self, error: Exception, key: str, kind: Kind) -> tuple[str, str]:
        get = f"hf download {self.repository}{' --repo-type dataset' if kind == 'dataset' else ''}"
        get += f" --revision {self.revision}" if self.revision else ""
        if isinstance(error, GatedRepoError):
            return "the hub gives it only to those who accept its terms", (
                f"accept them on the page of {self.repository} and run hf auth login"
            )
        if isinstance(error, RepositoryNotFoundError):
            return f"the hub has no {kind} repository {self.repository}, or hides it from you", (
                f"correct {key}; if it is a private one, run hf auth login"
            )
        if isinstance(error, RevisionNotFoundError):
            return f"{self.repository} on the hub has no revision {self.revision}", (
                f"correct what stands behind @ in {key}, or leave it out for the newest"
            )
        if isinstance(error, LocalEntryNotFoundError):
            is_offline = huggingface_hub.is_offline_mode()
            where = "HF_HUB_OFFLINE is set" if is_offline else "the hub cannot be reached"
            return f"{where} and the hub's cache on this machine does not have it", (
                f"correct {key}, or run {get} {'without HF_HUB_OFFLINE' if is_offline else 'when there is a network'}; "
                "a machine without one can be given that machine's cache"
            )
        if isinstance(error, EntryNotFoundError):
            return f"{self.repository} on the hub has no {self.inside}", f"correct the part behind the name in {key}"
        return f"the hub gives nothing by that name ({first_line(error).rstrip('.')})", f"correct {key}"


def find_folder(text: str, key: str, files: Sequence[str], expected: str) -> Path:
    """A local folder as it is; of the hub, a copy of the folder's files in the hub's cache.

    Raises:
        ModelNotFoundError: neither; names the setting.
    """
    if Path(text).is_dir():
        return Path(text)
    place = HubPlace.of(text)
    if place is None:
        raise ModelNotFoundError(
            f"{key} = {text!r}, which is no folder here and no name on the hub",
            expected=expected,
            action=f"correct {key}",
        )
    try:
        return place.snapshot(files)
    except HUB_ERRORS as error:
        found, action = place.explain(error, key)
        raise ModelNotFoundError(found, expected=expected, action=action) from error


def find_file(text: str, key: str, expected: str) -> Path:
    """A local file as it is, whether there or not; of the hub, its copy in the hub's cache.

    Raises:
        ModelNotFoundError: the hub does not have it; names the setting.
    """
    place = HubPlace.of(text)
    if place is None or not place.inside:
        return Path(text)
    try:
        return place.file()
    except HUB_ERRORS as error:
        found, action = place.explain(error, key)
        raise ModelNotFoundError(found, expected=expected, action=action) from error
