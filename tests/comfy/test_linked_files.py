"""A file input that is linked: the loader is cached as with a typed name, and reads a replaced file again."""

import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from support import comfy_host, encoders, face_files
from support.executor import NAME, SINK, Executor, Graph, nodes_of_tests
from support.published import random_tensors, tiny_adapter, write_safetensors

LOADERS: dict[str, dict[str, str]] = {  # inputs that name files, and one each
    "IPALoadAdapter": {"adapter_file": "one.safetensors", "image_encoder": "auto"},
    "IPALoadFaceModel": {"face_pack": "linked_pack", "device": "CPU"},
    "IPAdapterModelLoader": {"ipadapter_file": "one.safetensors"},
    "IPAdapterLoadEmbeds": {"embeds": "one.ipadpt"},
    "IPAdapterInsightFaceLoader": {"provider": "CPU", "model_name": "buffalo_l"},
}
LINKS = [(node, name) for node, inputs in LOADERS.items() for name in inputs]


@pytest.fixture(scope="module")
def executor(base_directory: Path) -> Iterator[Executor]:
    with nodes_of_tests():
        yield Executor()


@pytest.fixture(scope="module")
def files(base_directory: Path) -> Iterator[dict[str, Callable[[], object]]]:
    """What each loader of a file needs, and how to write that file anew."""
    import folder_paths

    models, inputs = base_directory / "models", Path(folder_paths.get_input_directory())
    inputs.mkdir(parents=True, exist_ok=True)
    encoders.write_folder("clip", models / "clip_vision" / "linked")
    packs = [models / "insightface" / "models" / name for name in ("linked_pack", "buffalo_l")]
    had = [pack.exists() for pack in packs]
    for pack in packs:
        face_files.write_pack(pack)
    shapes = tiny_adapter("plus", site_dims=(32,), image_dim=encoders.WIDTH, head_dim=64, heads=1)

    def write_adapter() -> None:
        write_safetensors(models / "ipadapter" / "one.safetensors", random_tensors(shapes))

    def write_embeds() -> None:
        torch.save(torch.zeros(1, 4), inputs / "one.ipadpt")

    def touch_pack(pack: Path) -> Callable[[], None]:
        return lambda: os.utime(next(pack.glob("*.onnx")))

    write_adapter()
    write_embeds()
    yield {
        "IPALoadAdapter": write_adapter,
        "IPALoadFaceModel": touch_pack(packs[0]),
        "IPAdapterModelLoader": write_adapter,
        "IPAdapterLoadEmbeds": write_embeds,
        "IPAdapterInsightFaceLoader": touch_pack(packs[1]),
    }
    shutil.rmtree(models / "clip_vision" / "linked")
    (models / "ipadapter" / "one.safetensors").unlink()
    (inputs / "one.ipadpt").unlink()
    for pack, was_there in zip(packs, had, strict=True):
        if not was_there:
            shutil.rmtree(pack)


def graph(node: str, inputs: dict[str, Any], linked: str | None) -> Graph:
    """A loader with one input given by another node."""
    given = dict(inputs)
    nodes: Graph = {"sink": {"class_type": SINK, "inputs": {"value": ["loader", 0]}}}
    if linked is not None:
        nodes["name"] = {"class_type": NAME, "inputs": {"name": given[linked]}}
        given[linked] = ["name", 0]
    nodes["loader"] = {"class_type": node, "inputs": given}
    return nodes


@pytest.mark.parametrize(("node", "linked"), [*LINKS, *((node, None) for node in LOADERS)])
def test_the_second_queue_runs_nothing(
    executor: Executor, files: dict, node: str, linked: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = graph(node, LOADERS[node], linked)
    assert executor.queue(wanted) == set(wanted)
    assert executor.queue(wanted) == set()
    assert "WARNING" not in caplog.text, "a fingerprint raised"


@pytest.mark.parametrize(("node", "linked"), LINKS)
def test_a_replaced_file_is_read_again(executor: Executor, files: dict, node: str, linked: str) -> None:
    wanted = graph(node, LOADERS[node], linked)
    executor.queue(wanted)
    files[node]()
    assert "loader" in executor.queue(wanted)
    assert executor.queue(wanted) == set()


def test_another_linked_name_is_another_file(executor: Executor, files: dict, base_directory: Path) -> None:
    shutil.copy(
        base_directory / "models" / "ipadapter" / "one.safetensors", base_directory / "models/ipadapter/two.sft"
    )
    try:
        one = graph("IPALoadAdapter", LOADERS["IPALoadAdapter"], "adapter_file")
        two = graph("IPALoadAdapter", LOADERS["IPALoadAdapter"] | {"adapter_file": "two.sft"}, "adapter_file")
        executor.queue(one)
        assert executor.queue(two) == {"name", "loader", "sink"}
    finally:
        (base_directory / "models/ipadapter/two.sft").unlink()


@pytest.mark.parametrize(("node", "linked"), [link for link in LINKS if link[1] not in ("device", "provider")])
def test_a_linked_name_of_nothing_is_a_message(executor: Executor, files: dict, node: str, linked: str) -> None:
    wanted = graph(node, LOADERS[node] | {linked: "gone.safetensors"}, linked)
    with pytest.raises(RuntimeError, match=r"Found: .*gone.*Expected: .*What to do: "):
        executor.queue(wanted)


@pytest.mark.parametrize("value", [None, 3, ["a"]], ids=str)
@pytest.mark.parametrize(
    ("node", "linked"), [("IPALoadAdapter", "adapter_file"), ("IPALoadAdapter", "image_encoder"), LINKS[-3]]
)
def test_no_name_is_a_message(files: dict, node: str, linked: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"{comfy_host.title(node, linked)} of .*Expected: the name of a choice"):
        comfy_host.run(node, **LOADERS[node] | {linked: value})


def test_the_unified_loaders_are_cached_too(
    executor: Executor, files: dict, base_directory: Path, model: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their files are found by tensors; a linked preset is like a typed one."""
    for node, preset in (
        ("IPAdapterUnifiedLoader", "PLUS (high strength)"),
        ("IPAdapterUnifiedLoaderCommunity", "Composition"),
        ("IPAdapterUnifiedLoaderFaceID", "FACEID"),
    ):
        fingerprint = partial(comfy_host.fingerprint, node)
        before = fingerprint(preset=None, model=None)
        assert before
        assert fingerprint(preset=preset, model=None) == before
        files["IPALoadAdapter"]()
        assert fingerprint(preset=None, model=None) != before
