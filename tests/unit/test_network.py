"""Nothing asks the network when it is imported or asked for help: whoever names a repository asks for that."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Refuses and notes every name that is looked up and every connection, whoever of all the libraries asks.
WATCH = """
import importlib, json, os, pkgutil, sys
asked = []
def watch(event, arguments):
    if event in {"socket.getaddrinfo", "socket.gethostbyname", "socket.connect", "socket.sendto"}:
        asked.append([event, repr(arguments[-1]) if event.endswith(("connect", "sendto")) else repr(arguments[0])])
        raise OSError("no network in this test")
sys.addaudithook(watch)
for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"):
    os.environ.pop(name, None)
"""
IMPORT_ALL = """
package = importlib.import_module(sys.argv[1])
names = [module.name for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")]
for name in names:
    if not name.endswith("__main__"):
        importlib.import_module(name)
print(json.dumps([names, asked]))
"""
HELP = """
from ipadapter_trainer.cli import main
sys.argv = ["ipadapter", *sys.argv[1:]]
try:
    main()
except SystemExit as end:
    assert not end.code
print()
print(json.dumps(["help", asked]))
"""
ASKS = """
import socket
try:
    socket.create_connection(("huggingface.co", 443))
except OSError:
    pass
try:
    socket.socket().connect(("192.0.2.1", 443))
except OSError:
    pass
print(json.dumps(["asks", asked]))
"""


def run(code: str, *arguments: str) -> tuple[object, list[list[str]]]:
    command = [sys.executable, "-c", WATCH + code, *arguments]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    what, asked = json.loads(result.stdout.splitlines()[-1])
    return what, asked


def test_this_is_how_it_would_be_noticed():
    _, asked = run(ASKS)
    assert asked == [["socket.getaddrinfo", "'huggingface.co'"], ["socket.connect", "('192.0.2.1', 443)"]]


@pytest.mark.parametrize(
    ("package", "folder"), [("ipadapter_core", "ipadapter_core"), ("ipadapter_trainer", "trainer")]
)
def test_imports_ask_nobody(package: str, folder: str):
    names, asked = run(IMPORT_ALL, package)
    files = [path.relative_to(ROOT / folder).with_suffix("") for path in (ROOT / folder).rglob("[!_]*.py")]
    assert {".".join((package, *file.parts)) for file in files} <= set(names)
    assert asked == []


def test_help_asks_nobody():
    assert run(HELP, "train", "--help") == ("help", [])
