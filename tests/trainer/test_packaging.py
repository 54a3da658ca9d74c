"""What is installed is all of the trainer."""

import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]


def test_every_folder_is_installed() -> None:
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {
        path.parent.relative_to(ROOT).as_posix()
        for package in ("trainer", "ipadapter_core")
        for path in (ROOT / package).rglob("__init__.py")
    }
    listed = {name.replace("ipadapter_trainer", "trainer").replace(".", "/") for name in setuptools["packages"]}
    assert folders == listed
    data = {
        path
        for package, patterns in setuptools["package-data"].items()
        for pattern in patterns
        for path in (ROOT / package.replace("ipadapter_trainer", "trainer").replace(".", "/")).glob(pattern)
    }
    others = {path for path in (ROOT / "trainer").rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert others == data
