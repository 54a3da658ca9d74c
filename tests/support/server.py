"""The ComfyUI server and the browser that all tests share: `pytest_plugins = ["support.server"]` in a test module.

It has the tiny models, the demo's, and those of the legacy workflows. Both of the tiny ones have the names of published
files, so the names of the former begin with `graphs.TINY`.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from demo import references, tiny_base
from demo.client import Client
from demo.models import demo_models, tiny_models
from demo.server import MODEL_FOLDERS, ComfyServer
from legacy import tiny_files

from . import face_files, transformer_files
from .browser import CHROMIUM, Browser, Page
from .graphs import FACE_ADAPTER, REFERENCE, SDXL_ADAPTER, TINY
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

PACKS = Path(__file__).resolve().parents[1] / "legacy" / "server_packs"
FACE_PACKS = ("buffalo_l", "antelopev2")
SILENCE = 600  # seconds a busy machine may take to load a model


@pytest.fixture(scope="session")
def server_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The models folder of every server of the session: it takes half as long to write as a server to start."""
    return _write_models(tmp_path_factory.mktemp("server_models"))


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, server_models: Path) -> Iterator[ComfyServer]:
    """The server."""
    with tiny_server(tmp_path_factory.mktemp("server"), server_models) as shared:
        yield shared


def tiny_server(
    folder: Path,
    models: Path,
    kind: type[ComfyServer] = ComfyServer,
    packs: Sequence[Path] = (PACKS,),
    names: Sequence[str] = ("tiny_models",),
) -> ComfyServer:
    """A server, not yet started, with the tiny models and what workflows load.

    Args:
        models: what `server_models` is.
        packs: folders of custom nodes; `names` are those of them that are loaded beside the server's own pack.
    """
    extra = folder / "extra.yaml"
    paths = {"base_path": str(models), "insightface": "insightface", "loras": "loras"}
    paths["custom_nodes"] = "\n".join(map(str, packs))
    extra.write_text(yaml.safe_dump({"tests": paths}), encoding="utf-8")
    made = kind(folder, models=models)
    made.options = (
        "--cpu",
        "--use-pytorch-cross-attention",  # ComfyUI's choice on a GPU; on a CPU it would take one that is slower
        *("--extra-model-paths-config", str(extra)),
        *("--whitelist-custom-nodes", made.pack, *names),
    )
    _write_inputs(made.input)
    return made


@pytest.fixture
def client(server: ComfyServer) -> Iterator[Client]:
    with Client(server.url, timeout=SILENCE) as connected:
        yield connected


@pytest.fixture(scope="session")
def object_info(server: ComfyServer) -> Any:
    """What the server says of all its nodes."""
    with Client(server.url, timeout=SILENCE) as connected:
        return connected.get("/object_info")


@pytest.fixture(scope="session")
def browser(server: ComfyServer) -> Iterator[Browser]:
    if not Path(CHROMIUM).exists():
        pytest.skip(f"no {CHROMIUM} (apt-get install chromium)")
    with Client(server.url) as client:
        client.set("Comfy.TutorialCompleted", True)  # else the page opens with a dialog
    with Browser() as started:
        yield started


@pytest.fixture
def page(server: ComfyServer, browser: Browser) -> Iterator[Page]:
    """A tab of its own in which ComfyUI's page is open, with this pack's nodes."""
    with browser.page() as tab:
        tab.open(server.url)
        tab.wait_for("window.app?.graph && window.LiteGraph?.registered_node_types['IPAApply']")
        yield tab


def _write_models(folder: Path) -> Path:
    """The tiny models, the demo's, an adapter for SDXL, a FaceID adapter, and what the legacy workflows load."""
    for name in MODEL_FOLDERS:
        (folder / name).mkdir(parents=True)
        for models, prefix in ((tiny_models(), TINY if name == "ipadapter" else ""), (demo_models(), "")):
            for entry in (models / name).iterdir():
                (folder / name / f"{prefix}{entry.name}").symlink_to(entry)
    shapes = tiny_adapter(
        "base", site_dims=(8,) * len(SDXL_SITES), cross_attention_dim=SDXL_DIM, image_dim=tiny_base.EMBED_DIM
    )
    write_safetensors(folder / "ipadapter" / SDXL_ADAPTER, random_tensors(shapes))
    sizes = {"site_dims": (tiny_base.UNET["block_out_channels"][-1],) * tiny_base.NUM_SITES}
    face_shapes = tiny_face_adapter("faceid", cross_attention_dim=SD15_DIM, identity=face_files.EMBEDDING, **sizes)
    write_bin(folder / "ipadapter" / FACE_ADAPTER, nested(random_tensors(face_shapes, scale=0.02)))
    tiny_files.write_adapters(folder / "ipadapter")
    transformer_files.write(folder)
    tiny_files.write_encoders(folder / "clip_vision")
    for pack in FACE_PACKS:
        face_files.write_pack(folder / "insightface" / "models" / pack)
    return folder


def _write_inputs(folder: Path) -> None:
    """The pictures and embeds that workflows load."""
    references.put_into(folder)
    pixels = face_files.picture((face_files.RED, 100, 60, 64), size=(320, 288))
    Image.fromarray((pixels[0] * 255).byte().numpy()).save(folder / REFERENCE)
    tiny_files.write_embeds(folder / "face.ipadpt")
