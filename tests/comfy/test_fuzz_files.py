"""Face packs and encoder files of strangers, where ComfyUI, onnxruntime and InsightFace open them.

`pytest tests/comfy/test_fuzz_files.py --cases 10000` as in tests/fuzz.
"""

import random
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch

from ipadapter_core.errors import BadInputError
from support import comfy_host, encoders, face_files, hostile_onnx, hostile_pickles, hostile_safetensors
from support.face_files import RED
from support.fuzzing import fuzz

NAME = "strangers"
DETECTION = 256 << 20
"""Bytes in which a good pack looks for faces too: the layers of pictures of up to 640 x 640, and the session."""
FACE = face_files.picture((RED, 162, 122, 32))[0].mul(255).round().to(torch.uint8)


@pytest.fixture
def pack_link(base_directory: Path) -> Iterator[Path]:
    """What ComfyUI takes for a face pack; a case lets it lead to its own."""
    link = base_directory / "models" / "insightface" / "models" / NAME
    link.parent.mkdir(parents=True, exist_ok=True)
    yield link
    link.unlink(missing_ok=True)


def checked(work: Callable[[Path], None], place: Path) -> None:
    """The pack inside ComfyUI has errors of its own, of the same name."""
    own = comfy_host.pack("ipadapter_core.errors").IPAdapterError
    try:
        work(place)
    except own as error:
        raise BadInputError(str(error), expected="", action="") from error


def find_faces(link: Path, *, is_ours: bool, place: Path) -> None:
    link.unlink(missing_ok=True)
    link.symlink_to(place / "pack")
    face_model = comfy_host.pack("nodes.encoding.face_model")
    if is_ours:
        face_model.importlib.util.find_spec = _without_insightface(face_model.importlib.util.find_spec)
    model = face_model.load_face_model(NAME, "CPU")
    model.find(FACE)


def _without_insightface(find: Callable[..., object]) -> Callable[..., object]:
    return lambda name, *rest: None if name == "insightface" else find(name, *rest)


def write_pack(draw: random.Random, place: Path) -> str:
    return hostile_onnx.write_mutated(draw, place / "pack")


@pytest.mark.parametrize("is_ours", [True, False], ids=["onnxruntime", "insightface"])
def test_no_face_pack_does_more_than_be_refused(pack_link: Path, numbers: range, seed: int, is_ours: bool) -> None:
    entry = partial(checked, lambda place: find_faces(pack_link, is_ours=is_ours, place=place))
    tally = fuzz(entry, write_pack, numbers, seed, beside=DETECTION)
    print(f"face pack: {tally}")  # noqa: T201 - the figures that are asked for
    assert not tally.failures, str(tally)


def write_encoder(draw: random.Random, place: Path) -> str:
    torch.manual_seed(0)
    tensors = {name: x.half() for name, x in encoders.published_names(encoders.FOLDERS["clip"]()).items()}
    if draw.random() < 0.5:
        content = hostile_safetensors.safetensors_bytes(tensors)
        return hostile_safetensors.write_mutated(draw, place / "a.safetensors", content)
    return hostile_pickles.write_mutated(draw, place / "a.bin", tensors)


def load_encoder(place: Path) -> None:
    (path,) = place.iterdir()
    comfy_host.pack("nodes.encoding.encoder").load_encoder_file(path)


def test_no_encoder_file_does_more_than_be_refused(base_directory: Path, numbers: range, seed: int) -> None:
    warnings.simplefilter("ignore")
    tally = fuzz(partial(checked, load_encoder), write_encoder, numbers, seed)
    print(f"encoder file in ComfyUI: {tally}")  # noqa: T201 - the figures that are asked for
    assert not tally.failures, str(tally)
