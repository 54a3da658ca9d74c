"""`ipadapter_core` stands alone, and imports run one way: from the nodes and the trainer down to plain numbers."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOREIGN = {
    "accelerate",
    "comfy",
    "comfy_api",
    "comfy_extras",
    "diffusers",
    "folder_paths",
    "nodes",
    "timm",
    "transformers",
}
LIST_MODULES = """
import importlib, json, pkgutil, sys
import ipadapter_core
names = [module.name for module in pkgutil.walk_packages(ipadapter_core.__path__, "ipadapter_core.")]
for name in names:
    importlib.import_module(name)
print(json.dumps([names, sorted(sys.modules)]))
"""
GROUND = {"box", "errors", "numbers", "operations"}
# What each part may import of its own package, itself apart.
CORE = {
    "errors": set(),
    "operations": set(),
    "numbers": {"errors"},
    "box": {"errors"},
    "face": GROUND,
    "file": GROUND | {"face"},
    "backbone": GROUND | {"face"},
    "strength": GROUND | {"backbone"},
    "encoder": GROUND | {"file"},
    "network": GROUND | {"backbone", "face", "file"},
    "branch": GROUND | {"backbone", "file", "network", "strength"},
    "legacy": GROUND | {"backbone", "branch", "encoder", "face", "file", "network", "strength"},
}
BELOW_NODES = {"arrivals", "cache", "encoding", "loading", "paths", "patching", "previews", "progress", "sockets"}
NODES = {
    "blueprints": set(),
    "cache": set(),
    "errors": set(),
    "heat": set(),
    "paths": set(),
    "previews": set(),
    "progress": set(),
    "sockets": {"encoding"},
    "arrivals": {"encoding", "sockets"},
    "encoding": {"cache", "paths", "progress", "sockets"},
    "loading": {"encoding", "paths", "sockets"},
    "inputs": {"errors", "sockets"},
    "patching": {"cache", "sockets"},
    "training": {"paths", "progress"},
    "legacy": BELOW_NODES,
    "definitions": BELOW_NODES | {"errors", "heat", "inputs", "previews", "training"},
    "__init__": {"blueprints", "cache", "definitions", "errors", "legacy", "paths"},
}
TRAINER = {"ipadapter_core", "ipadapter_trainer"}
OURS = {"comfy", "comfy_api", "comfy_extras", "folder_paths", "ipadapter_core", "ipadapter_trainer", "nodes", "trainer"}


def test_core_imports_no_comfyui_and_no_model_library() -> None:
    command = [sys.executable, "-c", LIST_MODULES]
    result = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=300)
    names, imported = json.loads(result.stdout)
    files = {path.relative_to(ROOT).with_suffix("") for path in (ROOT / "ipadapter_core").rglob("[!_]*.py")}
    assert {".".join(file.parts) for file in files} <= set(names)
    assert not FOREIGN.intersection(module.partition(".")[0] for module in imported)
    assert not [module for module in imported if module.startswith("comfy")]


def imported_by(path: Path) -> Iterator[str]:
    """Full names of what a file imports from this checkout, as if the checkout were one package; others as they are."""
    place = path.relative_to(ROOT).with_suffix("").parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = (*place[: -node.level],) if node.level else ()
            name = ".".join((*base, *filter(None, (node.module,))))
            yield from (f"{name}.{alias.name}" for alias in node.names)


def part_of(name: str, package: str) -> str | None:
    """The part of a package that a full name lies in: a folder of it, or a module."""
    parts = name.split(".")
    return parts[1] if parts[0] == package and len(parts) > 1 else None


@pytest.mark.parametrize(("package", "table"), [("ipadapter_core", CORE), ("nodes", NODES)])
def test_imports_run_one_way(package: str, table: dict[str, set[str]]) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    parts = {part_of(".".join(file.relative_to(ROOT).with_suffix("").parts), package) for file in files}
    assert parts - {"__init__"} == set(table) - {"__init__"}
    upward = []
    for file in files:
        here = file.relative_to(ROOT / package).with_suffix("").parts[0]
        for name in imported_by(file):
            there = part_of(name, package)
            if there is not None and there != here and there not in table.get(here, set()):
                upward.append(f"{file.relative_to(ROOT)} imports {name}")
    assert upward == []


@pytest.mark.parametrize(
    ("package", "allowed"),
    [("ipadapter_core", {"ipadapter_core"}), ("trainer", TRAINER), ("nodes", OURS - {"ipadapter_trainer", "trainer"})],
)
def test_nodes_and_trainer_do_not_know_each_other(package: str, allowed: set[str]) -> None:
    found = {name.partition(".")[0] for file in (ROOT / package).rglob("*.py") for name in imported_by(file)}
    assert {"ipadapter_core", "trainer"} & found
    assert found & OURS - {package} <= allowed


def test_the_trainer_has_one_name() -> None:
    """Its folder's, `trainer`, would be a second copy of every module, whose classes are not those of the first."""
    files = [file for folder in ("bench", "demo", "docs", "tests") for file in sorted((ROOT / folder).rglob("*.py"))]
    named = {(file, name.partition(".")[0]) for file in files for name in imported_by(file)}
    assert [file for file, name in named if name == "ipadapter_trainer"]
    assert [str(file) for file, name in named if name == "trainer"] == []


def test_what_watches_a_run_and_what_makes_files_do_not_know_each_other() -> None:
    for folder, other in (("watch", "files"), ("files", "watch")):
        files = sorted((ROOT / "trainer" / folder).rglob("*.py"))
        assert files
        assert [name for file in files for name in imported_by(file) if part_of(name, "trainer") == other] == []


@pytest.mark.parametrize(
    ("module", "unneeded"),
    [
        ("file.detect", ("ipadapter_core.backbone", "ipadapter_core.network", "ipadapter_core.branch")),
        ("strength.presets", ("ipadapter_core.file", "ipadapter_core.network", "ipadapter_core.backbone.unet")),
        ("strength.layer_weights", ("ipadapter_core.file", "ipadapter_core.network", "ipadapter_core.backbone.unet")),
        ("strength.presets", ("safetensors",)),
    ],
)
def test_a_module_brings_no_more_than_it_needs(module: str, unneeded: tuple[str, ...]) -> None:
    code = f"import ipadapter_core.{module}, sys; print(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True, timeout=60
    )
    assert [name for name in result.stdout.split() if name.startswith(unneeded)] == []
