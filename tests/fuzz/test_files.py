"""Files of strangers at every door that opens them: one message, no traceback, no hang, no memory beyond the file."""

import random
import warnings
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor

from ipadapter_core.encoder.choice import encoder_need
from ipadapter_core.encoder.folder import load_vision_folder
from ipadapter_core.encoder.known import read_encoder_file
from ipadapter_core.file.container import read_tensors
from ipadapter_core.file.spec import Feature
from ipadapter_core.legacy.embeds import holds_embeds, read_embeds
from ipadapter_core.network.adapter import load_adapter, read_spec
from ipadapter_trainer.convert.conversion import convert_file
from ipadapter_trainer.files.inspection import inspect_path
from support import encoders, hostile_folders, hostile_pickles, hostile_safetensors
from support.fuzzing import Entry, Make, fuzz
from support.hostile import PLACES
from support.published import Shapes, linear, norm, random_tensors, tiny_adapter, tiny_face_adapter

SITES = (8, 16, 16)
SMALL = {"site_dims": SITES, "cross_attention_dim": 8, "image_dim": 12}
FACE = {"site_dims": SITES, "cross_attention_dim": 8, "face": 12}
ADAPTERS: dict[str, Callable[[], Shapes]] = {
    "base": lambda: tiny_adapter("base", **SMALL),
    "plus": lambda: tiny_adapter("plus", **SMALL, depth=1),
    "full": lambda: tiny_adapter("full", **SMALL),
    "faceid": lambda: tiny_face_adapter("faceid", **FACE),
    "faceid plus": lambda: tiny_face_adapter("faceid plus", **FACE),
    "kolors": lambda: tiny_face_adapter("kolors", **FACE),
}
LORAS = ("faceid", "faceid plus")
_BLOCK = "unet.{}.attentions.0.transformer_blocks.0.attn2.processor.to_{}_ip.weight"


def _state(kind: str) -> Shapes:
    """As the official trainer leaves it."""
    published = ADAPTERS[kind]()
    state = {name.replace("image_proj.", "image_proj_model."): shape for name, shape in published.items()}
    state = {name.replace("ip_adapter.", "adapter_modules."): shape for name, shape in state.items()}
    blocks = zip(("down_blocks.0", "up_blocks.1", "mid_block"), SITES, strict=True)
    return state | {_BLOCK.format(block, kv): (dim, 8) for block, dim in blocks for kv in "kv"}


def _diffusers() -> Shapes:
    parts = zip((1, 3, 5), SITES, strict=True)
    sites = {f"ip_adapter.{number}.to_{kv}_ip.weight": (dim, 8) for number, dim in parts for kv in "kv"}
    return linear("image_proj.image_embeds", 32, 12) | norm("image_proj.norm", 8) | sites


def _xlabs() -> Shapes:
    names = [f"double_blocks.{n}.processor.ip_adapter_double_stream_{kv}_proj" for n in range(19) for kv in "kv"]
    shapes = linear("ip_adapter_proj_model.proj", 16, 4) | norm("ip_adapter_proj_model.norm", 4)
    for name in names:
        shapes |= linear(name, 4, 4)
    return shapes


STATES: dict[str, Callable[[], Shapes]] = {
    **{kind: partial(_state, kind) for kind in ("base", "plus", "full", "faceid")},
    "diffusers": _diffusers,
    "xlabs": _xlabs,
}


@lru_cache
def _tensors(kind: str) -> dict[str, Tensor]:
    make = ADAPTERS[kind] if kind in ADAPTERS else STATES[kind.removeprefix("state ")]
    return random_tensors(make(), dtype=torch.float16)


@lru_cache
def _encoder_tensors() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {name: value.half() for name, value in encoders.published_names(encoders.FOLDERS["clip"]()).items()}


def _file(kinds: tuple[str, ...], draw: random.Random, place: Path) -> str:
    return _mutated(_tensors(draw.choice(kinds)), draw, place)


def _mutated(tensors: dict[str, Tensor], draw: random.Random, place: Path, pickled: str = ".bin") -> str:
    form = draw.random()
    if form < 0.05:
        draw.choice(PLACES)(place / f"a{draw.choice(('.safetensors', pickled))}")
        return "place"
    if form < 0.5:
        return hostile_safetensors.write_mutated(
            draw, place / "a.safetensors", hostile_safetensors.safetensors_bytes(tensors)
        )
    return hostile_pickles.write_mutated(draw, place / f"a{pickled}", tensors)


def _encoder_file(draw: random.Random, place: Path) -> str:
    return _mutated(_encoder_tensors(), draw, place)


def _embeds(draw: random.Random, place: Path) -> str:
    return _mutated({"embeds": torch.ones(2, 3, 8)}, draw, place, ".ipadpt")


def _folder(draw: random.Random, place: Path) -> str:
    return hostile_folders.write_mutated(draw, place / "folder")


def _only(place: Path) -> Path:
    (path,) = place.iterdir()
    return path


def _load(place: Path) -> None:
    path = _only(place)
    adapter = load_adapter(path)
    read_spec(path)
    encoder_need(adapter.spec)
    face = adapter.spec.face
    wide = torch.zeros(1, adapter.spec.image_dim)
    features = wide if adapter.spec.feature is not Feature.HIDDEN_STATES else wide[:, None]
    if face is None:
        adapter.float().project(features)
    else:
        adapter.float().project_faces(torch.zeros(1, face.identity_dim), features)


def _load_encoder(place: Path) -> None:
    vision = load_vision_folder(place / "folder", transformers)
    size = vision.pixel_format.size
    if size <= 224:
        vision.features(torch.zeros(1, 3, size, size), Feature.HIDDEN_STATES, -2)


def _convert(place: Path) -> None:
    convert_file(_only(place), place / "out.safetensors")


def _read_embeds(place: Path) -> None:
    holds_embeds(_only(place))
    read_embeds(_only(place))


DOORS: dict[str, tuple[Entry, Make]] = {
    "adapter, loaded": (_load, partial(_file, tuple(ADAPTERS))),
    "adapter, recognised": (lambda place: read_spec(_only(place)), partial(_file, tuple(ADAPTERS))),
    "adapter, inspected": (
        lambda place: inspect_path(_only(place)),
        partial(_file, (*ADAPTERS, *(f"state {s}" for s in STATES))),
    ),
    "LoRA of a face adapter": (_load, partial(_file, LORAS)),
    "encoder file": (lambda place: read_encoder_file(_only(place), is_whole=True), _encoder_file),
    "encoder folder": (_load_encoder, _folder),
    "encoder folder, inspected": (lambda place: inspect_path(place / "folder"), _folder),
    "embeds": (_read_embeds, _embeds),
    "state, converted": (_convert, partial(_file, tuple(f"state {name}" for name in STATES))),
}


def _beside(neighbour: Path, wanted: dict[str, Tensor], entry: Entry, place: Path) -> None:
    """A good file is read as before, whatever was met meanwhile."""
    try:
        entry(place)
    finally:
        found = read_tensors(neighbour).tensors
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


@pytest.mark.parametrize("door", DOORS)
def test_no_file_of_a_stranger_does_more_than_be_refused(door: str, numbers: range, seed: int, tmp_path: Path) -> None:
    entry, make = DOORS[door]
    wanted = _tensors("plus")
    (tmp_path / "good.safetensors").write_bytes(hostile_safetensors.safetensors_bytes(wanted))
    entry = partial(_beside, tmp_path / "good.safetensors", wanted, entry)
    warnings.simplefilter("ignore")  # torch comments on what it meets
    hostile_folders.good("clip")
    tally = fuzz(entry, make, numbers, seed)
    print(f"{door}: {tally}")  # noqa: T201 - the figures that are asked for; `pytest -s` shows them
    assert not tally.failures, str(tally)
