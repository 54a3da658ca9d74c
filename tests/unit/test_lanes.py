"""scripts/test.sh and .ci/run with small projects in place of this one: lanes, the truth, and no process left."""

import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
STUBS = {
    "env.sh": 'case $1 in ruff | mypy | comfy) exit ;; esac; exec "$@"',
    "comfyui.sh": 'printf "%s" "$(dirname "$0")/comfyui-${1:-9.9}"',
    "docs.sh": "",
}
SOONER = {"sign_of_life": 0, "insist": 1}  # seconds
WAITS_FOR_THE_OTHER = """
import time
from pathlib import Path

def test_both_lanes_run():
    Path("{me}").touch()
    for number in range(100):
        print("line of {me}", number, flush=True)
        time.sleep(0.1)
        if Path("{other}").exists() and number > 5:
            return
    raise AssertionError("the other lane does not run")
"""
HAS_A_CHILD = """
import subprocess, sys, time
from pathlib import Path

def test_child():
    code = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print('.', flush=True); time.sleep(300)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as child:
        child.stdout.read(1)
        Path("{me} part").write_text(str(child.pid))
        Path("{me} part").rename("{me}")
        try:
            time.sleep(300)
        except KeyboardInterrupt:  # as a training does, which asks its loop to end
            time.sleep(300)
        finally:
            Path("{me} left").touch()
"""
PASSES, FAILS = "def test_it():\n    pass\n", "def test_it():\n    assert not 'this one fails'\n"
SKIPS = "import pytest\n\ndef test_it():\n    pytest.skip('no browser')\n"


class Project:
    """A checkout with the script, and tests of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "scripts" / "comfyui-9.9").mkdir(parents=True)
        (folder / "scripts" / "comfyui-9.9" / "comfyui_version.py").write_text('__version__ = "9.9"\n')
        shutil.copytree(ROOT / ".ci", folder / ".ci")
        script = (ROOT / "scripts" / "test.sh").read_text()
        for setting, value in SOONER.items():
            script, count = re.subn(f"(?m)^{setting}=\\d+", f"{setting}={value}", script)
            assert count == 1
        self.write_script("test.sh", script)
        for name, text in STUBS.items():
            self.write_script(name, f"#!/usr/bin/env bash\n{text}\n")
        (folder / "pytest.ini").write_text(
            "[pytest]\ntestpaths = tests/unit tests/trainer\nmarkers =\n    smoke\n    smoke_long\n    long\n"
        )
        for name in ("unit", "trainer", "comfy", "legacy"):
            self.write(name, PASSES)

    def write_script(self, name: str, text: str) -> None:
        path = self.folder / "scripts" / name
        path.write_text(text)
        path.chmod(0o755)

    def write(self, name: str, text: str) -> None:
        path = self.folder / "tests" / name / f"test_{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.replace("{me}", name).replace("{other}", "comfy" if name == "trainer" else "trainer"))

    def start(self, *arguments: str, script: str = "scripts/test.sh") -> subprocess.Popen[str]:
        path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
        return subprocess.Popen(
            [self.folder / script, *arguments],
            # There is nothing to install, and no plugin that the small projects need.
            env=os.environ | {"PATH": path, "CHROMIUM": sys.executable, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, *arguments: str, script: str = "scripts/test.sh") -> tuple[int, str]:
        with self.start(*arguments, script=script) as running:
            output, _ = running.communicate(timeout=60)
        return running.returncode, output


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def test_lanes_run_at_once_and_speak_one_after_the_other(project: Project):
    for name in ("trainer", "comfy"):
        project.write(name, WAITS_FOR_THE_OTHER)
    status, output = project.run("-s")
    assert status == 0, output
    spoken = re.findall(r"line of (\w+)", output)
    assert len(spoken) > 12
    assert sum(one != other for one, other in itertools.pairwise(spoken)) == 1
    assert re.search(r"test.sh: \d+ s: the trainer, ComfyUI 9.9\n", output), "no sign of life"
    assert output.count(" passed in ") >= 4
    assert "test.sh: ComfyUI 9.9: passed (1 passed in" in output
    assert "test.sh: ComfyUI 9.9, legacy nodes: passed (1 passed in" in output
    assert "test.sh: the trainer: passed (1 passed in" in output
    assert "test.sh: without ComfyUI: passed (1 passed in" in output


@pytest.mark.parametrize("lane", ["unit", "trainer", "comfy", "legacy"])
def test_one_failure_fails_the_whole(project: Project, lane: str):
    project.write(lane, FAILS)
    status, output = project.run()
    assert status == 1
    assert output.count("FAILED (1 failed") == 1
    assert output.count(": passed (") == 3


def test_what_was_skipped_is_said(project: Project):
    project.write("comfy", SKIPS)
    status, output = project.run()
    assert status == 0
    (line,) = (line for line in output.splitlines() if "NOT run" in line)
    assert line.startswith("test.sh: ComfyUI 9.9: NOT run: [1] tests/comfy/test_comfy.py")
    assert line.endswith("no browser")


@pytest.mark.parametrize(
    ("text", "status", "end"),
    [
        (PASSES, 0, r"\n\nall passed after \d+ s\n"),
        (
            SKIPS,
            0,
            r"\n\nNOT run:\n  ComfyUI 9.9: \[1\].*: no browser\n\npassed after \d+ s, but not all of it was run\n",
        ),
        (FAILS, 1, r"\n\nFAILED after \d+ s:\n  tests\n"),
    ],
    ids=["all", "some", "failed"],
)
def test_the_check_says_how_it_ended(project: Project, text: str, status: int, end: str):
    project.write("comfy", text)
    project.write("legacy", f"import pytest\npytestmark = pytest.mark.smoke\n{PASSES}")
    ended, output = project.run(script=".ci/run")
    assert ended == status, output
    assert re.search(f"{end}$", output), output
    assert ("all passed" in output) == (text == PASSES)


def test_what_mypy_finds_beside_the_tests_is_said_and_fails_the_check(project: Project):
    fails = STUBS["env.sh"].replace("ruff | mypy", "mypy) echo 'a wrong type'; exit 1 ;; ruff")
    project.write_script("env.sh", f"#!/usr/bin/env bash\n{fails}\n")
    ended, output = project.run(script=".ci/run")
    assert ended == 1, output
    assert re.search(r"== mypy \(after \d+ s\)\na wrong type\n", output)
    assert re.search(r"FAILED after \d+ s:\n  mypy\n", output)


@pytest.mark.parametrize(
    ("options", "versions", "count"),
    [(["--all-comfyui"], ["0.16.3"], 1), (["--long", "--all-comfyui"], ["0.16.3", "0.20.1", "0.18.2"], 4)],
)
def test_an_older_comfyui_is_given_the_marked_tests(
    project: Project, options: list[str], versions: list[str], count: int
):
    marks = ("smoke",), ("smoke", "long"), ("smoke", "smoke_long"), ("smoke_long",), ()
    tests = [
        "".join(f"@pytest.mark.{name}\n" for name in names) + PASSES.replace("it", f"number_{number}")
        for number, names in enumerate(marks)
    ]
    project.write("comfy", "import pytest\n\n" + "\n".join(tests))
    here = 5 if "--long" in options else 4
    status, output = project.run(*options)
    assert status == 0, output
    for version in versions:
        assert f"test.sh: ComfyUI {version}, smoke: passed ({count} passed, {6 - count} deselected in" in output
    assert output.count(", smoke: passed") == len(versions)
    assert f"test.sh: ComfyUI 9.9: passed ({here} passed" in output
    assert "test.sh: ComfyUI 9.9, legacy nodes: passed (1 passed" in output


def test_arguments_narrow_it_down(project: Project):
    status, output = project.run("tests/unit", "-k", "it")
    assert status == 0
    assert "1 passed" in output
    assert "ComfyUI 9.9" not in output
    assert project.run("-k", "nothing")[0] == 5


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.long)])
def test_an_interruption_ends_both_lanes_and_their_children(project: Project, number: int):
    names = ("trainer", "comfy")
    for name in names:
        project.write(name, HAS_A_CHILD)
    with project.start() as running:
        deadline = time.monotonic() + 30
        while not all((project.folder / name).exists() for name in names):
            assert time.monotonic() < deadline, "the lanes did not begin"
            time.sleep(0.05)
        children = [psutil.Process(int((project.folder / name).read_text())) for name in names]
        tree = [*children, *(child.parent() for child in children)]
        assert all(process.is_running() for process in tree)
        os.killpg(running.pid, number)  # as a terminal does; lanes are in groups of their own
        output, _ = running.communicate(timeout=60)
    assert running.returncode == 130, output
    _, alive = psutil.wait_procs(tree, timeout=10)
    assert [process for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []
    assert [name for name in names if not (project.folder / f"{name} left").exists()] == [], "no time to clean up"
