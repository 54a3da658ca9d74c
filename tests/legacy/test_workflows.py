"""Every legacy workflow in a real server: its saved values land in the right inputs, it runs, and draws a picture."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import yaml
from comfy_cli.workflow_to_api import convert_ui_to_api
from PIL import Image

from demo.client import Client, Prompt
from demo.server import ComfyServer
from legacy import tiny_files
from legacy.make_workflows.__main__ import FOLDER
from legacy.make_workflows.parts import PICTURE
from support import face_files

PACKS = Path(__file__).resolve().parent / "server_packs"
SAVED = sorted(path for path in FOLDER.glob("*.json") if not path.name.endswith(".api.json"))
SIDE, STEPS = 64, 2
LEAST_DIFFERENCE = 1e-3  # of the largest number of a latent, in every picture of a batch
STAND_INS = {"CheckpointLoaderSimple": "TinyCheckpoint", "CLIPVisionLoader": "TinyCLIPVision"}
FACE_PACKS = ("buffalo_l", "antelopev2")

each_workflow = pytest.mark.parametrize("path", SAVED, ids=lambda path: path.stem)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    """A server with the tiny models and files."""
    folder = tmp_path_factory.mktemp("legacy-server")
    models = folder / "models"
    tiny_files.write_adapters(models / "ipadapter")
    tiny_files.write_encoders(models / "clip_vision")
    (models / "checkpoints").mkdir()
    for pack in FACE_PACKS:
        face_files.write_pack(models / "insightface" / "models" / pack)
    extra = folder / "extra.yaml"
    paths = {"base_path": str(models), "custom_nodes": str(PACKS), "insightface": "insightface", "loras": "loras"}
    extra.write_text(yaml.safe_dump({"legacy": paths}), encoding="utf-8")
    shared = ComfyServer(folder, models=models)
    shared.options = (
        "--cpu",
        *("--extra-model-paths-config", str(extra)),
        *("--whitelist-custom-nodes", shared.pack, "tiny_models"),
    )
    shared.input.mkdir(parents=True)
    tiny_files.write_embeds(shared.input / "face.ipadpt")
    pixels = face_files.picture((face_files.RED, 100, 60, 64), size=(320, 288))
    Image.fromarray((pixels[0] * 255).byte().numpy()).save(shared.input / PICTURE)
    with shared:
        yield shared


@pytest.fixture
def client(server: ComfyServer) -> Iterator[Client]:
    with Client(server.url, timeout=600) as connected:
        yield connected


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def runnable(prompt: Prompt) -> Prompt:
    """With tiny models in place of loaders that know full sizes only, a small picture, and few steps."""
    for node in prompt.values():
        node["class_type"] = STAND_INS.get(node["class_type"], node["class_type"])
        if node["class_type"] == "EmptyLatentImage":
            node["inputs"] |= {"width": SIDE, "height": SIDE}
        if node["class_type"] == "KSampler":
            node["inputs"]["steps"] = STEPS
    return prompt


@each_workflow
def test_values_saved_by_position_land_where_they_belong(path: Path, client: Client):
    info = client.get("/object_info")
    converted = convert_ui_to_api(read(path), info)
    expected = read(path.with_suffix(".api.json"))
    assert {key: node["inputs"] for key, node in converted.items()} == {
        key: node["inputs"] for key, node in expected.items()
    }
    assert [node["type"] for node in read(path)["nodes"] if node["type"] not in info] == []


def with_latents(prompt: Prompt) -> Prompt:
    """With the latent saved, and that of a second sampler whose model no adapter has touched."""
    (sampler,) = (key for key, node in prompt.items() if node["class_type"] == "KSampler")
    (checkpoint,) = (key for key, node in prompt.items() if node["class_type"] == "TinyCheckpoint")
    untouched = {**prompt[sampler]["inputs"], "model": [checkpoint, 0]}
    saves = {
        name: {"class_type": "SaveLatent", "inputs": {"samples": [source, 0], "filename_prefix": f"latents/{name}"}}
        for name, source in (("acting", sampler), ("plain", "untouched"))
    }
    return {**prompt, "untouched": {"class_type": "KSampler", "inputs": untouched}, **saves}


@pytest.mark.slow
@each_workflow
def test_it_runs_and_draws(path: Path, client: Client):
    """The reference acts as well; in latents, of which a random decoder shows little."""
    prompt = with_latents(runnable(convert_ui_to_api(read(path), client.get("/object_info"))))
    run = client.run(prompt)
    assert run.end == "execution_success", run.error
    (save,) = (key for key, node in prompt.items() if node["class_type"] == "SaveImage")
    pictures = client.files(run, save)
    batch = next(node["inputs"]["batch_size"] for node in prompt.values() if node["class_type"] == "EmptyLatentImage")
    assert len(pictures) == batch
    for content in pictures:
        with Image.open(io.BytesIO(content)) as picture:
            pixels = np.asarray(picture)
        assert pixels.shape == (SIDE, SIDE, 3)
        assert pixels.std() > 1
    acting, plain = (
        safetensors.torch.load(client.files(run, name)[0])["latent_tensor"] for name in ("acting", "plain")
    )
    assert acting.isfinite().all()
    difference = (acting - plain).abs().flatten(1).amax(1)
    assert (difference > LEAST_DIFFERENCE * plain.abs().max()).all()
