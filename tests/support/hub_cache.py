"""Repositories in the cache of the Hugging Face hub, laid out as huggingface_hub does it, without a network."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import huggingface_hub
import pytest

FIRST, SECOND = "a1" * 20, "b2" * 20
"""Commits."""


def use_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let the hub's cache be a folder, and no network be there."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return folder


def put(
    cache: Path,
    repository: str,
    folders: Mapping[str, Path],
    *,
    commit: str = FIRST,
    refs: tuple[str, ...] = ("main",),
    kind: str = "model",
) -> Path:
    """Files or folders, by where they lie in a repository, at a commit that `refs` name. Returns the snapshot."""
    home = cache / f"{kind}s--{repository.replace('/', '--')}"
    snapshot = home / "snapshots" / commit
    for place, source in folders.items():
        files = [source] if source.is_file() else [path for path in source.rglob("*") if path.is_file()]
        for file in files:
            content = file.read_bytes()
            blob = home / "blobs" / hashlib.sha256(content).hexdigest()
            blob.parent.mkdir(parents=True, exist_ok=True)
            blob.write_bytes(content)
            link = snapshot / place if file == source else snapshot / place / file.relative_to(source)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(blob)
    for ref in refs:
        (home / "refs" / ref).parent.mkdir(parents=True, exist_ok=True)
        (home / "refs" / ref).write_text(commit)
    return snapshot
