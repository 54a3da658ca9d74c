"""Train IP-Adapter in a real server, as the page drives it: started, watched, stopped, resumed, finished and used."""

import io
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import websocket
import yaml
from comfy_cli.workflow_to_api import convert_ui_to_api
from PIL import Image

from demo import references
from demo.client import Client, Event, Prompt, Run
from demo.models import demo_models
from demo.server import ComfyServer
from support import graphs, templates
from support.graphs import node, simple, with_inputs
from support.training import write_pictures

TRAIN = "train"
TEMPLATES_NAME = "my adapter"  # as the template has it
# In place of what `ipadapter new` suggests, which draws more: users may change it as well.
QUICK = """
[base]
precision = "fp32"
[encoder]
precision = "fp32"
[data]
workers = 0
[train]
batch_size = 2
[validation]
every = 1000
images = 2
timesteps = [500]
sample_every = 1000
samples = 1
sampler_steps = 2
"""
SILENCE = 600  # seconds a busy machine may take
pytestmark = [pytest.mark.slow, pytest.mark.long]  # in process, test_train.py does the same


class OwnTrainer(ComfyServer):
    """Finds the trainer where the tests find it, wherever another one is installed."""

    def command(self) -> list[str]:
        return ["env", f"PYTHONPATH={os.environ.get('PYTHONPATH', '')}", *super().command()]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ComfyServer]:
    """With the demo's models, and a folder of pictures."""
    made = OwnTrainer(tmp_path, models=demo_models())
    extra = tmp_path / "extra.yaml"
    extra.write_text(yaml.safe_dump({"tests": {"base_path": str(demo_models()), "diffusers": "diffusers"}}))
    made.options = ("--cpu", "--extra-model-paths-config", str(extra))
    write_pictures(made.input / "pictures", 8, (64, 64))
    references.put_into(made.input)
    for name in ("mine", TEMPLATES_NAME):
        folder = made.output / "ipadapter_runs" / name
        folder.mkdir(parents=True)
        (folder / "suggested.toml").write_text(QUICK)
    with made:
        yield made


def training(name: str, **changes: Any) -> Prompt:
    asked = {
        "folder": "pictures",
        "base_model": "demo_world/",
        "image_encoder": "demo_encoder/",
        "kind": "base",
        "steps": 1000,
        "resolution": 64,
        "learning_rate": 0.0,
        "seed": 0,
        "name": name,
    }
    return {TRAIN: node("IPATrain", **asked | changes)}


def stop_at_a_loss(client: Client, do: Callable[[], object]) -> Callable[[Event], None]:
    """Do something once, when the node's face shows a loss."""
    done: list[int] = []

    def look(event: Event) -> None:
        if event.type == "progress_text" and "loss" in event.data["text"] and not done:
            done.append(1)
            do()

    return look


def steps_shown(run: Run) -> list[int]:
    texts = [text for text in run.texts(TRAIN) if text.startswith("step ")]
    return [int(text.split()[1].replace(",", "")) for text in texts]


def file_of(server: ComfyServer, name: str) -> Path:
    return server.output / "ipadapter_runs" / name


def checkpoints(server: ComfyServer, name: str) -> list[str]:
    return sorted(path.name for path in (file_of(server, name) / "run" / "checkpoints").iterdir())


def test_started_watched_stopped_resumed_finished_and_used(server: ComfyServer) -> None:
    with Client(server.url, timeout=SILENCE) as client:
        stopped = client.run(training("mine"), stop_at_a_loss(client, client.interrupt))
        assert stopped.end == "execution_interrupted", stopped.error
        (checkpoint,) = checkpoints(server, "mine")
        step = int(checkpoint.removeprefix("step-"))
        said = f"stopped at step {step}; queued again, it goes on"
        assert stopped.texts(TRAIN)[-2:] == ["stops: writing a checkpoint …", said]
        finished = client.run(training("mine", steps=step + 10))
        assert finished.end == "execution_success", finished.error
        assert step < steps_shown(finished)[-1] == step + 10
        assert finished.texts(TRAIN)[-1].endswith("Load IP-Adapter lists mine.safetensors")
        values = [event.data["value"] for event in finished.events if event.type == "progress"]
        assert values[-1] == step + 10
        again = client.run(training("mine", steps=step + 10))
        assert TRAIN in again.cached
        sizes = []
        for content in client.files(finished, TRAIN):
            with Image.open(io.BytesIO(content)) as picture:
                sizes.append(picture.size)
        assert sizes[0] == (512, 288)
        assert sizes[1] > (256, 256), "the sheet of samples"
        offered = client.get("/object_info/IPALoadAdapter")["IPALoadAdapter"]["input"]["required"]["adapter_file"]
        assert "mine.safetensors" in str(offered)
        prompt = with_inputs(simple(seed=1), graphs.CHECKPOINT, ckpt_name="demo_world.safetensors")
        prompt = with_inputs(prompt, graphs.IMAGE, image=references.FILES[0])
        prompt = with_inputs(prompt, graphs.ADAPTER, adapter_file="mine.safetensors", image_encoder="auto")
        drawn = []
        for strength in (1.0, 0.0):
            run = client.run(with_inputs(prompt, graphs.APPLY, strength=strength))
            assert run.end == "execution_success", run.error
            (content,) = client.files(run, graphs.SAVE)
            drawn.append(np.asarray(Image.open(io.BytesIO(content))))
        assert not np.array_equal(*drawn), "the trained adapter acts"


def test_the_template_trains_and_draws_with_what_it_trained(server: ComfyServer) -> None:
    workflow = templates.on_the_world(templates.made_small(templates.read(templates.TRAINS)), "pictures")
    with Client(server.url, timeout=SILENCE) as client:
        prompt = convert_ui_to_api(workflow, client.get("/object_info"))
        drawn = client.run(prompt)
        assert drawn.end == "execution_success", drawn.error
        (save,) = [name for name, entry in prompt.items() if entry["class_type"] == "SaveImage"]
        (content,) = client.files(drawn, save)
    with Image.open(io.BytesIO(content)) as picture:
        assert picture.size == (templates.SIZE, templates.SIZE)
    assert (server.output / "ipadapter" / f"{TEMPLATES_NAME}.safetensors").is_file()


def test_a_server_that_is_killed_loses_nothing(server: ComfyServer) -> None:
    def kill() -> None:
        (pid,) = [int(line) for line in _children(os.getpid()) if str(server.port) in _command(int(line))]
        os.kill(pid, signal.SIGKILL)

    gone = (websocket.WebSocketException, OSError)
    with Client(server.url, timeout=SILENCE) as client, pytest.raises(gone):
        client.run(training("mine"), stop_at_a_loss(client, kill))
    deadline = time.monotonic() + SILENCE
    while (file_of(server, "mine") / "run" / ".trainer.lock").exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    (checkpoint,) = checkpoints(server, "mine")
    assert int(checkpoint.removeprefix("step-")) > 0
    server.stop()
    server.start()
    with Client(server.url, timeout=SILENCE) as client:
        finished = client.run(training("mine", steps=int(checkpoint.removeprefix("step-")) + 1))
        assert finished.end == "execution_success", finished.error


def _children(process: int) -> list[str]:
    return subprocess.run(["pgrep", "-P", str(process)], capture_output=True, text=True, check=True).stdout.split()


def _command(process: int) -> str:
    return subprocess.run(["ps", "-wwo", "args=", "-p", str(process)], capture_output=True, text=True).stdout
