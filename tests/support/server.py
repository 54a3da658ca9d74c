"""The ComfyUI server that the tests share. A test module has its fixtures by `pytest_plugins = ["support.server"]`."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from demo import references, tiny_base
from demo.client import Client
from demo.models import demo_models, tiny_models
from demo.server import MODEL_FOLDERS, ComfyServer

from . import face_files
from .graphs import FACE_ADAPTER, REFERENCE, SDXL_ADAPTER
from .published import (
    SD15_DIM,
    SDXL_DIM,
    SDXL_SITES,
    nested,
    random_tensors,
    tiny_adapter,
    tiny_face_adapter,
    write_bin,
    write_safetensors,
)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    """A server with the tiny models and the demo's."""
    folder = tmp_path_factory.mktemp("server")
    models = _models(folder / "models")
    faces = folder / "faces.yaml"
    faces.write_text(yaml.safe_dump({"faces": {"base_path": str(models), "insightface": "insightface"}}))
    options = ["--cpu", "--extra-model-paths-config", str(faces)]
    shared = ComfyServer(folder, models=models, options=options)
    references.put_into(shared.input)
    shutil.copy(shared.comfyui / "input" / REFERENCE, shared.input)  # what the workflows load
    with shared:
        yield shared


@pytest.fixture
def client(server: ComfyServer) -> Iterator[Client]:
    with Client(server.url) as connected:
        yield connected


def _models(folder: Path) -> Path:
    """The tiny models, the demo's, an adapter for SDXL, and a FaceID adapter with a face pack."""
    for name in MODEL_FOLDERS:
        (folder / name).mkdir(parents=True)
        for models in (tiny_models(), demo_models()):
            for entry in (models / name).iterdir():
                (folder / name / entry.name).symlink_to(entry)
    shapes = tiny_adapter(
        "base", site_dims=(8,) * len(SDXL_SITES), cross_attention_dim=SDXL_DIM, image_dim=tiny_base.EMBED_DIM
    )
    write_safetensors(folder / "ipadapter" / SDXL_ADAPTER, random_tensors(shapes))
    sizes = {"site_dims": (tiny_base.UNET["block_out_channels"][-1],) * tiny_base.NUM_SITES}
    face_shapes = tiny_face_adapter("faceid", cross_attention_dim=SD15_DIM, identity=face_files.EMBEDDING, **sizes)
    write_bin(folder / "ipadapter" / FACE_ADAPTER, nested(random_tensors(face_shapes, scale=0.02)))
    face_files.write_pack(folder / "insightface" / "models" / "buffalo_l", anywhere=True)
    return folder
