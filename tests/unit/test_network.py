"""Nothing asks the network when it is imported or asked for help: only whoever names a repository makes it ask."""

from pathlib import Path

import pytest

from support.network import PROGRAM, import_all, run_watched

ROOT = Path(__file__).parents[2]
ASKS = """
import socket
result = 0
for attempt in (
    lambda: socket.create_connection(("huggingface.co", 443)),
    lambda: socket.socket().connect(("192.0.2.1", 443)),
    lambda: socket.socket(type=socket.SOCK_DGRAM).sendto(b"", ("192.0.2.2", 53)),
):
    try:
        attempt()
    except OSError:
        result += 1
"""


def test_this_is_how_it_would_be_noticed():
    assert run_watched(ASKS) == (3, ["huggingface.co", "('192.0.2.1', 443)", "('192.0.2.2', 53)"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("package", "folder"), [("ipadapter_core", "ipadapter_core"), ("ipadapter_trainer", "trainer")]
)
def test_imports_ask_nobody(package: str, folder: str):
    names, _, asked = import_all(package)
    files = [path.relative_to(ROOT / folder).with_suffix("") for path in (ROOT / folder).rglob("[!_]*.py")]
    assert {".".join((package, *file.parts)) for file in files} <= set(names)
    assert asked == []


@pytest.mark.slow
def test_help_asks_nobody():
    assert run_watched(PROGRAM, "train", "--help") == (0, [])
