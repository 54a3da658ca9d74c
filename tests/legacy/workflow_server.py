"""A server with the legacy workflows' tiny models. A test module has it by `pytest_plugins = ["legacy.workflow_server"]`."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from PIL import Image

from demo.client import Client
from demo.server import ComfyServer
from legacy import tiny_files
from legacy.make_workflows.parts import PICTURE
from support import face_files

PACKS = Path(__file__).resolve().parent / "server_packs"
FACE_PACKS = ("buffalo_l", "antelopev2")
# For loaders of ComfyUI that build what they load at full size only.
STAND_INS = {"CheckpointLoaderSimple": "TinyCheckpoint", "CLIPVisionLoader": "TinyCLIPVision"}
SIDE, STEPS = 64, 3  # three, so that one lies well within any range


@pytest.fixture(scope="session")
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
