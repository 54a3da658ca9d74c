"""Tiny models on disk, made once per session."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.quantizers.bitsandbytes import BnB4BitDiffusersQuantizer, BnB8BitDiffusersQuantizer

from ipadapter_core.encoder import pe
from ipadapter_trainer.config import Config
from ipadapter_trainer.watch import observe
from support.encoders import write_folder
from support.faces import face_config, write_people
from support.recipe_models import write_small_base
from support.tiny_base import write_base

CPU = torch.device("cpu")


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Curves take longer than all the rest of a tiny run, and know no device and no kind of model."""
    monkeypatch.setattr(observe, "write_report", lambda run, *, is_live: None)


@pytest.fixture
def bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers asks for a GPU, though bitsandbytes has no need of one."""
    modules = pytest.importorskip("bitsandbytes.nn.modules")
    monkeypatch.setattr(modules, "has_avx512bf16", lambda: False)  # its kernels take wide layers only
    for quantizer in (BnB4BitDiffusersQuantizer, BnB8BitDiffusersQuantizer):
        monkeypatch.setattr(quantizer, "validate_environment", lambda *_, **__: None)


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Folder of a tiny text-to-image model: layout "sd15" or "sdxl", and its prediction type."""
    made: dict[tuple[str, str], Path] = {}

    def folder(layout: str = "sd15", prediction_type: str = "epsilon") -> Path:
        key = layout, prediction_type
        if key not in made:
            made[key] = write_base(tmp_path_factory.mktemp("base") / layout, layout, prediction_type=prediction_type)
        return made[key]

    return folder


@pytest.fixture(scope="session")
def small_base_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Folder of the same with fewer layers, where any step will do."""
    made: dict[tuple[str, str], Path] = {}

    def folder(layout: str = "sd15", prediction_type: str = "epsilon") -> Path:
        key = layout, prediction_type
        if key not in made:
            made[key] = tmp_path_factory.mktemp("small_base") / layout
            write_small_base(made[key], prediction_type)
        return made[key]

    return folder


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folder of a tiny image encoder of a kind in `support.encoders.FOLDERS`."""
    made: dict[str, Path] = {}

    def folder(kind: str = "clip") -> Path:
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp("encoder") / kind
            write_folder(kind, made[kind])
        return made[kind]

    return folder


@pytest.fixture
def face_runs(
    tmp_path: Path, small_base_folder: Callable[[str], Path], encoder_folder: Callable[[str], Path]
) -> Callable[..., Config]:
    """Configs of small runs of a kind of face adapter, on people of their own unless other data are given."""

    def make(kind: str, data: Path | None = None, /, run: str = "run", **changes: Any) -> Config:
        data = data or (tmp_path / "people" if (tmp_path / "people").exists() else write_people(tmp_path / "people"))
        return face_config(small_base_folder("sd15"), encoder_folder("clip"), data, tmp_path / run, kind, **changes)

    return make


@pytest.fixture
def tiny_pe_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """PE-Core of a tiny size is one of those that are known."""
    from support import tiny_pe  # which imports timm

    monkeypatch.setitem(pe.TIMM_NAMES, tiny_pe.KEY, tiny_pe.NAME)
