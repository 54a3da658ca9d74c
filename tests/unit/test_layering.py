"""`ipadapter_core` stands alone: it brings neither ComfyUI nor a model library with it."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOREIGN = {"accelerate", "comfy", "comfy_api", "comfy_extras", "diffusers", "folder_paths", "nodes", "transformers"}
LIST_MODULES = """
import importlib, json, pkgutil, sys
import ipadapter_core
names = [module.name for module in pkgutil.walk_packages(ipadapter_core.__path__, "ipadapter_core.")]
for name in names:
    importlib.import_module(name)
print(json.dumps([names, sorted(sys.modules)]))
"""


def test_core_imports_no_comfyui_and_no_model_library() -> None:
    command = [sys.executable, "-c", LIST_MODULES]
    result = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=60)
    names, imported = json.loads(result.stdout)
    files = {path.relative_to(ROOT).with_suffix("") for path in (ROOT / "ipadapter_core").rglob("[!_]*.py")}
    assert {".".join(file.parts) for file in files} <= set(names)
    assert not FOREIGN.intersection(module.partition(".")[0] for module in imported)
    assert not [module for module in imported if module.startswith("comfy")]
