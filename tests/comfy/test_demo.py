"""The demo shows what it promises and says plainly what is wrong."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests
from PIL import Image

from demo import graph, run, show
from demo.client import Client
from demo.references import FILES
from demo.run import read_picture
from demo.scenes import CHECKPOINT, SCENES, STRENGTH, STRENGTHS, Scene
from demo.server import ROOT, ComfyServer
from support.browser import Browser
from support.graphs import ADAPTERS

pytest_plugins = ["support.server"]

CLAIMS = 5
CARD = '[role=dialog] [data-testid^="template-workflow-"]'  # of ComfyUI's gallery
CLAIMING = tuple(scene for scene in SCENES if scene is STRENGTH or scene.in_halves)


@dataclass(frozen=True)
class Done:
    """How the demo program ended."""

    code: int
    stdout: str
    stderr: str


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., Done]]:
    """The program with arguments, in this process."""
    handler = signal.getsignal(signal.SIGTERM)

    def run_main(*arguments: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["demo", *arguments])
        try:
            code = run.main()
        except SystemExit as ended:  # of argparse
            code = int(ended.code or 0)
        return Done(code, *capsys.readouterr())

    yield run_main
    signal.signal(signal.SIGTERM, handler)


@pytest.mark.long  # test_workflows.py draws each of its scenes, and `test_serve_…` starts all of it
@pytest.mark.slow
@pytest.mark.parametrize("scenes", [SCENES, CLAIMING], ids=["all", "those that claim something"])
def test_it_holds_and_writes_sheet_and_page(
    tmp_path: Path,
    demo: Callable[..., Done],
    server: ComfyServer,
    monkeypatch: pytest.MonkeyPatch,
    scenes: tuple[Scene, ...],
) -> None:
    """On the server of the tests; `test_serve_…` starts one as the program does."""
    monkeypatch.setattr(run, "ComfyServer", lambda *_, **__: contextlib.nullcontext(server))
    monkeypatch.setattr(show, "SCENES", scenes)
    done = demo("--output", str(tmp_path))
    assert done.code == 0, done.stdout + done.stderr
    assert done.stdout.count("yes") == CLAIMS
    assert [scene.name for scene in scenes if f"demo: {scene.name}: " not in done.stderr] == []
    with Image.open(tmp_path / "demo.png") as sheet:
        assert sheet.width > 1600
        assert sheet.height > 400 * len(scenes)
    pictures = sum(len(scene.references) + len(scene.labels) for scene in scenes)
    assert (tmp_path / "demo.html").read_text().count("<img ") == pictures


@pytest.mark.slow
def test_serve_has_everything_in_place_and_ends_cleanly(tmp_path: Path, browser: Browser):
    arguments = [sys.executable, "-m", "demo.run", "--serve", "--output", str(tmp_path)]
    with subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as running:
        assert running.stdout is not None
        url = running.stdout.readline().split()[-1]
        info = requests.get(f"{url}/object_info", timeout=60).json()
        listed = requests.get(f"{url}/workflow_templates", timeout=60).json()
        with browser.page() as tab:
            tab.open(url)
            tab.wait_for(f"document.querySelectorAll('{CARD}').length === {len(SCENES)}", seconds=120)
            cards = tab.evaluate(f"[...document.querySelectorAll('{CARD}')].map(card => card.textContent)")
            nodes = tab.evaluate("app.graph._nodes.length")
        running.terminate()
        assert running.wait(60) == 130
    assert CHECKPOINT in str(info["CheckpointLoaderSimple"]["input"])
    assert [file for file in FILES if file not in str(info["LoadImage"]["input"])] == []
    assert sorted(listed["ipadapter-studio-demo"]) == sorted(scene.title for scene in SCENES)
    assert [scene.title for scene in SCENES if not any(scene.title in card for card in cards)] == []
    assert nodes == 0  # ComfyUI's own first workflow would ask for a model that is not there
    with pytest.raises(requests.ConnectionError):
        requests.get(url, timeout=5)


def test_the_sweep_is_sampled_without_adapter_and_by_euler_too(client: Client):
    prompt = graph.of_scene(client.get("/object_info"), STRENGTH, "photo.png")
    changed, latents, euler = graph.with_latents(prompt)
    assert list(latents) == [None, *STRENGTHS]
    assert len(graph.ids_in_order(changed, "KSampler")) == len(STRENGTHS) + 2
    samplers = {strength: changed[graph.sampler_of(changed, node)]["inputs"] for strength, node in latents.items()}
    (checkpoint,) = graph.ids_in_order(prompt, "CheckpointLoaderSimple")
    assert samplers[None] == samplers[0.0] | {"model": [checkpoint, 0]}
    sampler = graph.sampler_of(changed, euler)
    assert changed[sampler]["inputs"] == samplers[1.0] | {"sampler_name": "euler"}
    assert graph.settings(changed, sampler)["strength"] == 1
    assert [node["inputs"]["image"] for node in prompt.values() if node["class_type"] == "LoadImage"] == ["photo.png"]


@pytest.mark.parametrize(
    ("content", "message"), [(None, "there is no file"), (b"no picture", "is not a picture that can be read")]
)
def test_a_bad_picture_is_named(tmp_path: Path, demo: Callable[..., Done], content: bytes | None, message: str):
    path = tmp_path / "[photo].jpg"  # brackets: no markup to the terminal
    if content is not None:
        path.write_bytes(content)
    done = demo("--image", str(path), "--output", str(tmp_path))
    assert done.code == 1
    assert message in done.stderr
    assert "[photo].jpg" in done.stderr


def test_a_photograph_is_turned_upright(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright
    Image.new("RGB", (40, 20)).save(tmp_path / "photo.jpg", exif=exif)
    assert read_picture(tmp_path / "photo.jpg").size == (20, 40)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_becomes_white(tmp_path: Path, mode: str):
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    clear.putpixel((0, 0), (0, 0, 0, 255))
    clear.convert(mode).save(tmp_path / "emoji.png")
    picture = read_picture(tmp_path / "emoji.png")
    assert [picture.getpixel(place) for place in ((0, 0), (7, 7))] == [(0, 0, 0), (255, 255, 255)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--checkpoint", "x.safetensors"), "--checkpoint and --adapter go together"),
        (("--install", "--image", "x.png"), "--install and --serve take neither --image nor model files"),
        (("--install", "--serve"), "not allowed with argument"),
    ],
)
def test_what_does_not_go_together(demo: Callable[..., Done], arguments: tuple[str, ...], message: str):
    done = demo(*arguments)
    assert done.code == 2
    assert message in done.stderr


def test_install_asks_for_a_comfyui():
    environment = {name: value for name, value in os.environ.items() if name != "COMFYUI_PATH"}
    script = [str(ROOT / "scripts" / "demo.sh"), "--install"]
    done = subprocess.run(script, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "set COMFYUI_PATH" in done.stderr


def test_an_unknown_name_is_answered_with_the_known_ones(client: Client):
    with pytest.raises(graph.UnknownFileError, match="no adapter x") as caught:
        graph.of_own_models(client.get("/object_info"), "v1-5-pruned-emaonly-fp16.safetensors", "x.safetensors")
    assert ADAPTERS[0] in str(caught.value)
