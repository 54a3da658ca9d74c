"""The locks in scripts/ hold all that is installed, by hash, and the scripts install nothing past them."""

import itertools
import os
import re
import shlex
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
LOCK = ROOT / "scripts" / "requirements.lock"
DOCS_LOCK = ROOT / "scripts" / "docs.lock"
SMALLEST = {LOCK: 150, DOCS_LOCK: 20}  # packages
SCRIPTS = [*sorted((ROOT / "scripts").glob("*.sh")), ROOT / ".ci" / "run", *sorted((ROOT / "demo").glob("*.sh"))]
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
MACHINES = [("linux", "Linux", "x86_64"), ("linux", "Linux", "aarch64"), ("darwin", "Darwin", "arm64")]
SPLIT_OFF = {"torch", "torchvision", "torchaudio", "comfyui-workflow-templates"}  # in requirements.in, or not wanted


@dataclass(frozen=True)
class Pin:
    name: str
    version: str
    marker: Marker | None
    hashes: tuple[str, ...]


@cache
def pins(lock: Path = LOCK) -> list[Pin]:
    text = re.sub(r"\\\n", " ", lock.read_text(encoding="utf-8"))
    found = []
    for line in text.splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        stated, *hashes = re.split(r"\s+--hash=", line.strip())
        wanted = Requirement(stated)
        (specifier,) = wanted.specifier
        assert specifier.operator == "==", line
        found.append(Pin(canonicalize_name(wanted.name), specifier.version, wanted.marker, tuple(hashes)))
    return found


ENVIRONMENTS = {
    f"{python}-{platform}-{machine}": {
        "python_version": python,
        "python_full_version": f"{python}.7",
        "sys_platform": platform,
        "platform_system": system,
        "platform_machine": machine,
        "platform_python_implementation": "CPython",
        "implementation_name": "cpython",
        "os_name": "posix",
    }
    for python, (platform, system, machine) in itertools.product(PYTHONS, MACHINES)
}


def installed(environment: dict[str, str], lock: Path = LOCK) -> dict[str, str]:
    """What the lock gives there, every name once."""
    there: dict[str, str] = {}
    for pin in pins(lock):
        if pin.marker is None or pin.marker.evaluate(environment):
            assert pin.name not in there, f"{pin.name} twice on {environment}"
            there[pin.name] = pin.version
    return there


def unmet(wanted: list[Requirement], environment: dict[str, str], lock: Path = LOCK) -> list[str]:
    there = installed(environment, lock)
    return [
        str(one)
        for one in wanted
        if one.marker is None or one.marker.evaluate(environment | {"extra": ""})
        if canonicalize_name(one.name) not in there
        or not one.specifier.contains(there[canonicalize_name(one.name)], prereleases=True)
    ]


def lines_of(path: Path) -> list[Requirement]:
    stated = (line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [Requirement(line) for line in stated if line]


def comfyui_requirements(folder: Path) -> list[Requirement]:
    return [one for one in lines_of(folder / "requirements.txt") if canonicalize_name(one.name) not in SPLIT_OFF]


each_lock = pytest.mark.parametrize("lock", SMALLEST, ids=lambda path: path.name)


@each_lock
def test_every_package_has_the_hashes_of_its_files(lock: Path):
    assert len(pins(lock)) > SMALLEST[lock]
    assert [pin.name for pin in pins(lock) if not pin.hashes] == []
    assert [one for pin in pins(lock) for one in pin.hashes if not re.fullmatch(r"sha256:[0-9a-f]{64}", one)] == []


@each_lock
def test_the_lock_names_no_place(lock: Path):
    """Neither an index of whoever made it nor a folder."""
    lines = lock.read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if re.search(r"://|@ |(?<!\w)/\w|^--", line)] == []


@pytest.mark.parametrize("environment", ENVIRONMENTS.values(), ids=ENVIRONMENTS)
def test_it_holds_what_this_project_and_its_set_up_ask_for(environment: dict[str, str]):
    tomllib = pytest.importorskip("tomllib")  # Python 3.11; the lock is the same for all
    content = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    project = content["project"]
    asked = [*project["dependencies"], *itertools.chain(*project["optional-dependencies"].values())]
    asked += content["build-system"]["requires"]
    wanted = [one for one in map(Requirement, asked) if one.name != project["name"]]
    assert len(wanted) > 35
    assert unmet([*wanted, *lines_of(ROOT / "scripts" / "requirements.in")], environment) == []


@pytest.mark.parametrize("environment", ENVIRONMENTS.values(), ids=ENVIRONMENTS)
def test_it_holds_what_the_site_asks_for(environment: dict[str, str]):
    assert unmet(lines_of(ROOT / "scripts" / "docs.in"), environment, DOCS_LOCK) == []


@pytest.mark.skipif("COMFYUI_PATH" not in os.environ, reason="no COMFYUI_PATH")
def test_it_holds_what_comfyui_asks_for():
    folder = Path(os.environ["COMFYUI_PATH"])
    (newest,) = re.findall(r"version=\$\{1:-(.*)\}", (ROOT / "scripts" / "comfyui.sh").read_text(encoding="utf-8"))
    version = (folder / "comfyui_version.py").read_text(encoding="utf-8")
    if f'"{newest}"' not in version:
        pytest.skip(f"COMFYUI_PATH is not {newest}, which the lock is made for")
    assert len(comfyui_requirements(folder)) > 20
    for environment in ENVIRONMENTS.values():
        assert unmet(comfyui_requirements(folder), environment) == []
        for older in folder.parent.glob("comfyui-*/requirements.txt"):  # other versions of some, but of the same names
            names = {canonicalize_name(one.name) for one in comfyui_requirements(older.parent)}
            assert names - installed(environment).keys() == set()


# How each way to install is held: by the lock's hashes, or because nothing is fetched.
HELD = ({"--require-hashes"}, {"--no-index", "--no-deps"}, {"--generate-hashes"})
OF_THE_USER = ["-c", "$venv/constraints.txt", "-r", "$venv/beyond.txt"]  # what a ComfyUI of theirs asks for, said


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_install_nothing_without_hashes(script: Path):
    assert [line for line in installing(script.read_text(encoding="utf-8")) if not is_held(line)] == []


def test_what_installs_is_found():
    counts = {script.name: len(installing(script.read_text(encoding="utf-8"))) for script in SCRIPTS}
    assert {name: count for name, count in counts.items() if count} == {
        "comfyui.sh": 2,
        "docs.sh": 1,
        "env.sh": 4,
        "lock.sh": 1,
    }
    (bad,) = installing("    logged 'a' pip install \\\n  --no-deps torch\n# pip install that\n")
    assert not is_held(bad)
    assert not is_held("curl -L https://example.org/install.sh | bash")


def installing(text: str) -> list[str]:
    lines = re.sub(r'\b(die|say) ".*?"', "", re.sub(r"\\\n\s*", "", text)).splitlines()
    fetches = re.compile(
        r"\bpip (install|download|wheel|sync|compile)\b|\b(curl|wget|npm|conda|pipx|uvx|easy_install)\b"
    )
    return [line.strip() for line in lines if fetches.search(line) and not line.lstrip().startswith("#")]


def is_held(line: str) -> bool:
    words = shlex.split(line.rstrip("&|{ }"))
    if words[-4:] == OF_THE_USER:
        return True
    return any(held <= set(words) for held in HELD)
