"""What loading the pack costs a user who does not use it: nothing but our own modules.

ComfyUI prints the seconds of each pack when it starts; `bench/import_time.py` measures them.
"""

import json
import subprocess
import sys

import pytest

from support import comfy_host

pytestmark = pytest.mark.smoke
# What ComfyUI has loaded by the time it comes to the packs, and what its loader loads for the first of them.
WHAT_LOADING_CHANGES = """
import importlib, json, sys
from pathlib import Path
from support import comfy_host

comfy_host.start_alone(Path(sys.argv[1]))
for name in ("server", "comfy_api.latest", "comfy_config.config_parser"):
    importlib.import_module(name)
import torch

def state():
    return set(sys.modules), set(torch._C._dispatch_get_all_op_names())

before = state()
comfy_host.load_pack()
print(json.dumps([sorted(now - then) for now, then in zip(state(), before)]))
"""


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], list[str]]:
    """The modules and PyTorch's operations that are there because of the pack."""
    command = [sys.executable, "-c", WHAT_LOADING_CHANGES, str(tmp_path_factory.mktemp("comfyui"))]
    done = subprocess.run(
        command, cwd=comfy_host.ROOT / "tests", check=True, stdout=subprocess.PIPE, text=True, timeout=300
    )
    modules, operations = json.loads(done.stdout.splitlines()[-1])
    return modules, operations


def test_no_module_of_others_is_loaded(loaded: tuple[list[str], list[str]]) -> None:
    ours = [name for name in loaded[0] if name.startswith(str(comfy_host.ROOT).replace(".", "_x_"))]
    others = [name for name in loaded[0] if name not in ours and name.partition(".")[0] not in sys.stdlib_module_names]
    assert len(ours) > 100
    assert others == []


def test_no_operation_is_registered_with_pytorch(loaded: tuple[list[str], list[str]]) -> None:
    assert loaded[1] == []
