"""Loading the pack, and describing its nodes to the page, asks the network for nothing."""

from pathlib import Path

from support.network import run_watched

LOAD = """
from pathlib import Path
sys.path.insert(0, "tests")
from support import comfy_host
comfy_host.start(Path(sys.argv[1]))
import nodes
pack = nodes.NODE_CLASS_MAPPINGS["IPAApply"].__module__.partition(".nodes.")[0]
package = sys.modules[f"{pack}.nodes"]
for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
    importlib.import_module(module.name)
ours = {name: node for name, node in nodes.NODE_CLASS_MAPPINGS.items() if node.__module__.startswith(pack)}
for node in ours.values():
    node.INPUT_TYPES()
result = sorted(ours)
"""


def test_loading_the_pack_asks_nobody(tmp_path: Path) -> None:
    nodes, asked = run_watched(LOAD, str(tmp_path))
    assert {"IPALoadAdapter", "IPAdapterUnifiedLoader"} <= set(nodes)
    assert asked == []
