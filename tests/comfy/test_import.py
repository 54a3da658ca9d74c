"""What loading the pack costs a user who does not use it: nothing but our own modules, and nobody on the network is asked.

ComfyUI prints the seconds of each pack when it starts; `bench/import_time.py` measures them.
"""

import sys
from dataclasses import dataclass

import pytest

from support import comfy_host
from support.network import run_watched

pytestmark = pytest.mark.smoke
# What ComfyUI has loaded by the time it comes to the packs, and what its loader loads for the first of them; then all that
# the pack may load later, and what the page asks of its nodes.
LOAD = """
from pathlib import Path
sys.path.insert(0, "tests")
from support import comfy_host

comfy_host.start_alone(Path(sys.argv[1]))
for name in ("server", "comfy_api.latest", "comfy_config.config_parser"):
    importlib.import_module(name)
import torch

def state():
    return set(sys.modules), set(torch._C._dispatch_get_all_op_names())

before = state()
comfy_host.load_pack()
changed = [sorted(now - then) for now, then in zip(state(), before)]
import nodes
pack = nodes.NODE_CLASS_MAPPINGS["IPAApply"].__module__.partition(".nodes.")[0]
package = sys.modules[f"{pack}.nodes"]
for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
    importlib.import_module(module.name)
ours = {name: node for name, node in nodes.NODE_CLASS_MAPPINGS.items() if node.__module__.startswith(pack)}
for node in ours.values():
    node.INPUT_TYPES()
result = [*changed, sorted(ours)]
"""


@dataclass(frozen=True)
class Loaded:
    """The modules and PyTorch's operations that are there because of the pack, its nodes, and who was asked for."""

    modules: list[str]
    operations: list[str]
    nodes: list[str]
    asked: list[str]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    found, asked = run_watched(LOAD, str(tmp_path_factory.mktemp("comfyui")))
    return Loaded(*found, asked)


def test_no_module_of_others_is_loaded(loaded: Loaded) -> None:
    ours = [name for name in loaded.modules if name.startswith(str(comfy_host.ROOT).replace(".", "_x_"))]
    rest = [name for name in loaded.modules if name not in ours]
    others = [name for name in rest if name.partition(".")[0] not in sys.stdlib_module_names]
    assert len(ours) > 100
    assert others == []


def test_no_operation_is_registered_with_pytorch(loaded: Loaded) -> None:
    assert loaded.operations == []


def test_loading_the_pack_asks_nobody(loaded: Loaded) -> None:
    """Nor does describing its nodes to the page."""
    assert {"IPALoadAdapter", "IPAdapterUnifiedLoader"} <= set(loaded.nodes)
    assert loaded.asked == []
