"""The `ipadapter` program: help with an example, JSON for programs, and one clear message for a user's mistake."""

import io
import json
import logging
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import tomli_w
from typer.testing import CliRunner

from ipadapter_trainer.cli import COMMANDS, app, main
from support.encoders import write_single_file
from support.network import import_all
from support.training import write_pictures
from support.training_states import write_accelerate_state

ROOT = Path(__file__).parents[2]
MISTAKE = re.compile(r"error: Found: .+\. Expected: .+\. What to do: .+\.\n")
HEAVY = {"accelerate", "datasets", "diffusers", "matplotlib", "torch", "transformers", "webdataset"}


def program(*arguments: str, cwd: Path = ROOT) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "ipadapter_trainer", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60)


def run_main(arguments: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.setattr(sys, "argv", ["ipadapter", *arguments])
    with pytest.raises(SystemExit) as exit_info:
        main()
    return exit_info.value.code


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example_and_json(command: str) -> None:
    result = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "120"})
    assert result.exit_code == 0
    assert f"Example: ipadapter {command} " in result.output
    assert "--json" in result.output


def test_help_lists_every_command() -> None:
    result = program("--help")
    assert result.returncode == 0
    assert all(re.search(rf"\b{command}\b", result.stdout) for command in COMMANDS)


def test_the_program_is_installed() -> None:
    installed = shutil.which("ipadapter", path=str(Path(sys.executable).parent))
    assert installed is not None
    result = subprocess.run([installed, "--help"], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0


def test_help_loads_no_heavy_library() -> None:
    code = "import sys; import ipadapter_trainer.cli; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert not HEAVY.intersection(result.stdout.split())
    assert "typer" in result.stdout.split()


def test_no_command_imports_comfyui_or_the_nodes() -> None:
    names, imported, _ = import_all("ipadapter_trainer")
    files = {path.relative_to(ROOT / "trainer").with_suffix("") for path in (ROOT / "trainer").rglob("[!_]*.py")}
    assert {".".join(("ipadapter_trainer", *path.parts)) for path in files} <= set(names)
    named = {name.partition(".")[0] for name in imported}
    assert not [name for name in named if name.startswith("comfy") or name in ("folder_paths", "nodes")]


@pytest.fixture(scope="module")
def place(
    tmp_path_factory: pytest.TempPathFactory,
    small_base_folder: Callable[..., Path],
    encoder_folder: Callable[..., Path],
) -> Path:
    """A folder with a config that would train, and files that are not what a command wants."""
    folder = tmp_path_factory.mktemp("cli")
    config = {
        "base": {"model": str(small_base_folder())},
        "encoder": {"model": str(encoder_folder())},
        "data": {"path": str(write_pictures(folder / "pictures", 6)), "resolution": 64, "workers": 0},
        "train": {"output": "run", "steps": 2, "trackers": []},
        "validation": {"images": 2},
    }
    (folder / "my.toml").write_text(tomli_w.dumps(config))
    (folder / "list.toml").write_text("= 3")
    (folder / "cut.safetensors").write_bytes(b"\x10" + bytes(7))
    (folder / "empty").mkdir()
    (folder / "silent").mkdir()
    shutil.copy(folder / "pictures" / "0.png", folder / "silent" / "0.png")
    write_single_file(folder / "vision.safetensors", 64, 2, 32)
    return folder


SAMPLE = "sample --base {base} --adapter vision.safetensors --encoder {encoder} -o out --image"
MISTAKES = {
    "no config": ("train nothing.toml", "nothing.toml cannot be read"),
    "no TOML": ("plan list.toml", "list.toml is not TOML"),
    "unknown key": ("train my.toml --set train.stepz=3", "write train.steps"),
    "key of another section": ("train my.toml --set train.learning_rate=1.0", "write optimizer.learning_rate"),
    "wrong type": ("cache my.toml --set train.steps=many", "a whole number"),
    "contradiction": ("plan my.toml --set objective.masked=true", "data.mask_column"),
    "no model": ("train my.toml --set base.model=nothing", "nothing cannot be loaded as a text-to-image model"),
    "empty model folder": ("plan my.toml --set base.model=empty", "model_index.json"),
    "no encoder": ("train my.toml --set encoder.model=nothing", "encoder.model = 'nothing'"),
    "empty encoder folder": ("plan my.toml --set encoder.model=empty", "empty"),
    "no data": ("train my.toml --set data.path=picture", "perhaps pictures"),
    "no pictures": ("train my.toml --set data.path=empty", "no pictures in empty"),
    "no captions": ("train my.toml --set data.path=silent", "silent/0.png has no caption"),
    "output is a file": ("train my.toml --set train.output=my.toml", "my.toml"),
    "cache without a place": ("cache my.toml", "cache.path"),
    "no such preset": ("plan my.toml --set adapter.blocks=styl", "layer preset 'styl'"),
    "no adapter to evaluate": ("eval my.toml --adapter nothing.safetensors", "no file at nothing.safetensors"),
    "encoder for an adapter": ("eval my.toml --adapter vision.safetensors", "image encoder"),
    "no run": ("export nothing", "nothing is no checkpoint"),
    "wrong suffix": ("convert cut.safetensors -o mine.bin", "mine.bin ends in .bin"),
    "damaged": ("convert cut.safetensors -o mine.safetensors", "cut.safetensors is no usable adapter file"),
    "nothing to inspect": ("inspect nothing", "no file at nothing"),
    "folder of nothing": ("inspect empty", "empty is a folder with no run"),
    "no picture": (f"{SAMPLE} nothing.png", "--image nothing.png (no such file)"),
    "text for a picture": (f"{SAMPLE} my.toml", "--image my.toml (not a picture"),
    "adapter that is none": (f"{SAMPLE} pictures/0.png", "image encoder"),
    "strength": (f"{SAMPLE} pictures/0.png --strength high", "--strength 'high'"),
    "size": (f"{SAMPLE} pictures/0.png --size huge", "--size huge"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_message(
    name: str,
    place: Path,
    small_base_folder: Callable[..., Path],
    encoder_folder: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    recwarn: pytest.WarningsRecorder,
) -> None:
    command, words = MISTAKES[name]
    monkeypatch.chdir(place)
    before = sorted(place.rglob("*"))
    assert run_main(command.format(base=small_base_folder(), encoder=encoder_folder()).split(), monkeypatch) == 1
    out, err = capsys.readouterr()
    assert words in err
    assert MISTAKE.fullmatch(err), err
    assert out == ""
    assert [str(warning.message) for warning in recwarn] == []  # these too would be written to standard error
    assert sorted(place.rglob("*")) == before, "a mistake leaves nothing behind"


def test_the_real_program_says_it_the_same_way(place: Path) -> None:
    result = program("train", str(place / "my.toml"), "--set", "train.stepz=3")
    assert result.returncode == 1
    assert MISTAKE.fullmatch(result.stderr), result.stderr
    assert result.stdout == ""


def test_only_this_program_reports_what_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    for library in ("accelerate", "httpx"):
        monkeypatch.setattr(logging.getLogger(library), "level", logging.NOTSET)
    run_main(["--help"], monkeypatch)
    assert {logging.getLogger(library).level for library in ("accelerate", "httpx")} == {logging.WARNING}


def test_json_is_all_there_is_on_standard_output(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    result = CliRunner().invoke(app, ["inspect", "vision.safetensors", "--json"])
    assert json.loads(result.stdout)["kind"] == "image encoder"


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8"])
def test_a_terminal_that_lacks_letters_gets_all_it_can_show(
    tmp_path: Path, encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Windows gives to a program whose output goes to a file: the message names the folder as well as it can."""
    write_accelerate_state(tmp_path / "日本 → é")
    terminal = io.TextIOWrapper(io.BytesIO(), encoding)
    monkeypatch.setenv("COLUMNS", "500")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", terminal)
        assert run_main(["inspect", str(tmp_path / "日本 → é")], patch) == 0
    terminal.flush()
    shown = terminal.buffer.getvalue().decode(encoding)
    assert ("日本 → é" if encoding == "utf-8" else r"\u65e5\u672c \u2192") in shown


def test_processes_of_a_launch_say_a_mistake_once(tmp_path: Path) -> None:
    missing = tmp_path / "missing.toml"
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "ipadapter_trainer", "plan", str(missing)]
    for _ in range(2):  # the same mistake of a later launch is said again
        result = subprocess.run(
            [sys.executable, *launcher], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
        )
        assert result.returncode != 0
        assert result.stderr.count("error: ") == 1
        assert "missing.toml" in result.stderr
