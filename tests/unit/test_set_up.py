"""scripts/env.sh with small packages in place of the real ones: what is installed is what the lock says, or nothing."""

import base64
import hashlib
import itertools
import os
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]

[project]
name = "checkout"
version = "1"
"""
BACKEND = """
import zipfile
from pathlib import Path

def build_editable(folder, settings=None, metadata=None):
    with zipfile.ZipFile(Path(folder) / "checkout-1-py3-none-any.whl", "w") as file:
        file.writestr("checkout.pth", str(Path.cwd()))
        file.writestr("checkout-1.dist-info/METADATA", "Metadata-Version: 2.1\\nName: checkout\\nVersion: 1\\n")
        file.writestr("checkout-1.dist-info/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        file.writestr("checkout-1.dist-info/RECORD", "")
    return "checkout-1-py3-none-any.whl"
"""
NUMBERS = itertools.count(1)
pytestmark = pytest.mark.slow
SAYS_EXCHANGED = "a package is another file than the one that scripts/requirements.lock names, and was not installed"


def make_wheel(folder: Path, name: str, version: str, files: dict[str, bytes]) -> Path:
    path = folder / f"{name}-{version}-py3-none-any.whl"
    about = f"{name}-{version}.dist-info"
    files = files | {
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
        f"{about}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    digests = {place: base64.urlsafe_b64encode(hashlib.sha256(data).digest()) for place, data in files.items()}
    record = [f"{place},sha256={digests[place].decode().rstrip('=')},{len(files[place])}" for place in files]
    with zipfile.ZipFile(path, "w") as file:
        for place, data in files.items():
            file.writestr(place, data)
        file.writestr(f"{about}/RECORD", "\n".join([*record, f"{about}/RECORD,,\n"]))
    return path


def pinned(path: Path) -> str:
    name, version, *_ = path.name.split("-")
    return f"{name}=={version} \\\n    --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}\n"


class Checkout:
    """A project with scripts/env.sh, a lock of its own, and a ComfyUI of the user's."""

    def __init__(self, folder: Path, cache: Path, installer: str) -> None:
        self.folder, self.wheels, self.comfyui = folder / "checkout", folder / "wheels", folder / "ComfyUI"
        self.cache, self.installer = cache, installer
        self.name = f"small{next(NUMBERS)}"
        for path in (self.wheels, self.folder / "scripts", self.comfyui / "custom_nodes", folder / "bin"):
            path.mkdir(parents=True)
        for script in ("env.sh", "comfyui.sh"):
            shutil.copy(ROOT / "scripts" / script, self.folder / "scripts")
        (self.folder / "pyproject.toml").write_text(PROJECT)
        (self.folder / "backend.py").write_text(BACKEND)
        (self.comfyui / "main.py").touch()
        self.ask(f"{self.name}>=1")
        real = distribution("packaging")  # which env.sh needs of its lock
        there = [file for file in real.files or () if file.suffix == ".py" and file.parts[0] == "packaging"]
        content = {file.as_posix(): file.locate().read_bytes() for file in there}
        self.packaging = make_wheel(self.wheels, "packaging", real.version, content)
        self.lock(self.wheel("1"))
        uv = Path(sys.prefix) / "bin" / "uv"
        (folder / "bin" / "uv").symlink_to(uv if uv.exists() else shutil.which("uv") or "no uv")
        (folder / "uv.toml").write_text(f'no-index = true\nfind-links = ["{self.wheels}"]\n')
        self.environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "UV_", "PYTHON"))
        } | {
            "PYTHON": sys.executable,
            "PIP_CONFIG_FILE": os.devnull,
            "UV_CONFIG_FILE": str(folder / "uv.toml"),
            "UV_CACHE_DIR": str(folder / "uv"),
            "COMFYUI_PATH": str(self.comfyui),
            "IPADAPTER_STUDIO_CACHE": str(cache),
            "PATH": os.pathsep.join([str(folder / "bin")] * (installer == "uv") + ["/usr/bin", "/bin"]),
        }
        if installer == "pip":
            self.environment |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(self.wheels), "PIP_NO_CACHE_DIR": "1"}

    def wheel(self, version: str, name: str | None = None) -> Path:
        name = name or self.name
        return make_wheel(self.wheels, name, version, {f"{name}.py": f"version = {version!r}\n".encode()})

    def lock(self, *wheels: Path) -> None:
        text = "".join(map(pinned, (*wheels, self.packaging)))
        (self.folder / "scripts" / "requirements.lock").write_text(text)

    def ask(self, *lines: str) -> None:
        (self.comfyui / "requirements.txt").write_text("\n".join(("torch", *lines, "")))

    def run(self, *command: str, **environment: str) -> tuple[int, str]:
        done = subprocess.run(
            [self.folder / "scripts" / "env.sh", *command],
            env=self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
            check=False,
        )
        return done.returncode, done.stdout

    def version(self, name: str | None = None) -> tuple[int, str]:
        name = name or self.name
        return self.run("python", "-c", f"import {name}; print('found', {name}.version)")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(params=["pip", "uv"])
def checkout(tmp_path: Path, cache: Path, request: pytest.FixtureRequest) -> Checkout:
    return Checkout(tmp_path, cache, request.param)


@pytest.fixture
def with_pip(tmp_path: Path, cache: Path) -> Checkout:
    return Checkout(tmp_path, cache, "pip")


def test_what_the_lock_says_is_installed_once_and_again_when_it_changes(checkout: Checkout):
    status, output = checkout.version()
    assert status == 0, output
    assert output.endswith("found 1\n")
    assert f"scripts/requirements.lock, with {checkout.installer} (" in output
    assert checkout.version() == (0, "found 1\n")
    checkout.wheel("3")
    checkout.lock(checkout.wheel("2"))  # not the newest there is
    status, output = checkout.version()
    assert status == 0, output
    assert "up to date" in output
    assert output.endswith("found 2\n")


def test_an_exchanged_file_is_refused_and_the_right_one_then_taken(checkout: Checkout):
    path = checkout.wheel("1")
    right = path.read_bytes()
    make_wheel(checkout.wheels, checkout.name, "1", {f"{checkout.name}.py": b"version = 'evil'\n"})
    status, output = checkout.version()
    assert status == 1
    assert SAYS_EXCHANGED in output
    assert "found" not in output
    assert not list(checkout.cache.glob(f"venv-*/lib/python*/site-packages/{checkout.name}*"))
    path.write_bytes(right)
    status, output = checkout.version()
    assert (status, output.splitlines()[-1]) == (0, "found 1"), output


def test_what_has_no_hash_is_refused(checkout: Checkout):
    lock = checkout.folder / "scripts" / "requirements.lock"
    lock.write_text(f"{checkout.name}==1\n{pinned(checkout.packaging)}")
    status, output = checkout.version()
    assert status == 1
    assert "hash" in output
    assert SAYS_EXCHANGED not in output


def test_a_package_that_a_kill_cut_off_is_made_whole(with_pip: Checkout):
    assert with_pip.version()[0] == 0
    (about,) = with_pip.cache.glob(f"venv-*/lib/python*/site-packages/{with_pip.name}-1.dist-info")
    (about / "INSTALLER").unlink()
    about.with_name(f"{with_pip.name}.py").unlink()
    (installed,) = with_pip.cache.glob("venv-*/.installed")
    installed.unlink()
    status, output = with_pip.version()
    assert (status, output.splitlines()[-1]) == (0, "found 1"), output


def test_what_a_comfyui_asks_for_beyond_the_lock_is_said(with_pip: Checkout):
    more = f"{with_pip.name}more"
    with_pip.wheel("1", more)
    with_pip.ask("# a comment", f"{with_pip.name}>=1", f"{more}>=1  # why", "absent; sys_platform == 'win32'", "")
    status, output = with_pip.version(more)
    assert status == 0, output
    (line,) = (line for line in output.splitlines() if "hashes" in line)
    assert line == f"env.sh: not in the lock, and so installed without hashes: {more}>=1"
    assert output.endswith("found 1\n")


def test_uv_does_not_go_past_an_index_that_pip_is_told_of(tmp_path: Path, cache: Path):
    checkout = Checkout(tmp_path, cache, "uv")
    status, output = checkout.run("true", PIP_FIND_LINKS=str(checkout.wheels), PIP_NO_INDEX="1")
    assert status == 0, output
    assert "with pip (" in output
