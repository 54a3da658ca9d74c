"""The ComfyUI server that the tests share. A test module has its fixtures by `pytest_plugins = ["support.server"]`."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo import references, tiny_base
from demo.client import Client
from demo.models import demo_models, tiny_models
from demo.server import MODEL_FOLDERS, ComfyServer

from .graphs import REFERENCE, SDXL_ADAPTER
from .published import SDXL_DIM, SDXL_SITES, random_tensors, tiny_adapter, write_safetensors


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    """A server with the tiny models and the demo's."""
    folder = tmp_path_factory.mktemp("server")
    shared = ComfyServer(folder, models=_models(folder / "models"), options=["--cpu"])
    references.put_into(shared.input)
    shutil.copy(shared.comfyui / "input" / REFERENCE, shared.input)  # what the workflows load
    with shared:
        yield shared


@pytest.fixture
def client(server: ComfyServer) -> Iterator[Client]:
    with Client(server.url) as connected:
        yield connected


def _models(folder: Path) -> Path:
    """The tiny models, the demo's, and an adapter for SDXL."""
    for name in MODEL_FOLDERS:
        (folder / name).mkdir(parents=True)
        for models in (tiny_models(), demo_models()):
            for entry in (models / name).iterdir():
                (folder / name / entry.name).symlink_to(entry)
    shapes = tiny_adapter(
        "base", site_dims=(8,) * len(SDXL_SITES), cross_attention_dim=SDXL_DIM, image_dim=tiny_base.EMBED_DIM
    )
    write_safetensors(folder / "ipadapter" / SDXL_ADAPTER, random_tensors(shapes))
    return folder
