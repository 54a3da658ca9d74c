"""How ComfyUI shows our errors: named plainly, in the same words before anything runs, with a way to what is missing."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support import comfy_host, encoders
from support.bad_files import BAD_FILES
from support.executor import NAME, SINK, Executor, Graph, nodes_of_tests
from support.graphs import PLAIN
from support.published import random_tensors, tiny_adapter, write_safetensors

ADAPTER = "errors.safetensors"


@pytest.fixture(scope="module")
def executor(base_directory: Path) -> Iterator[Executor]:
    with nodes_of_tests():
        yield Executor()


@pytest.fixture(scope="module")
def adapters(base_directory: Path) -> Iterator[Path]:
    folder = base_directory / "models" / "ipadapter"
    shapes = tiny_adapter("plus", site_dims=(32,), image_dim=encoders.WIDTH, head_dim=64, heads=1)
    write_safetensors(folder / ADAPTER, random_tensors(shapes))
    yield folder
    (folder / ADAPTER).unlink()


def loading(**inputs: Any) -> Graph:
    return {
        "loader": {"class_type": "IPALoadAdapter", "inputs": {"image_encoder": "none"} | inputs},
        "sink": {"class_type": SINK, "inputs": {"value": ["loader", 0]}},
    }


def raised(node_id: str, **inputs: Any) -> str:
    """What a node says while it runs."""
    with pytest.raises(ValueError, match="Found: ") as caught:
        comfy_host.run(node_id, **inputs)
    return str(caught.value)


def kinds(kind: type) -> Iterator[type]:
    yield kind
    for below in kind.__subclasses__():
        yield from kinds(below)


@pytest.mark.smoke
def test_an_error_has_its_name_and_no_path_before_it(base_directory: Path) -> None:
    import execution

    ours = list(kinds(comfy_host.pack("ipadapter_core.errors").IPAdapterError))
    assert len(ours) > 6
    assert [execution.full_type_name(kind) for kind in ours] == [kind.__name__ for kind in ours]


@pytest.mark.smoke
def test_what_the_page_is_told_begins_with_the_sentence(executor: Executor, adapters: Path) -> None:
    write_safetensors(adapters / "pickled.safetensors", random_tensors(tiny_adapter("plus", site_dims=(32,))))
    (adapters / "pickled.safetensors").rename(adapters / "misnamed.bin")
    kind, message, _ = executor.run(loading(adapter_file="misnamed.bin")) or ("", "", [])
    (adapters / "misnamed.bin").unlink()
    assert kind == "UnreadableFileError"
    assert message.startswith("Found: ")


@pytest.mark.parametrize("kind", ["text_named_safetensors", "git_lfs_pointer", "without_ip_adapter"])
def test_a_wrong_adapter_file_is_refused_before_it_runs(executor: Executor, adapters: Path, kind: str) -> None:
    folder = adapters / "bad"
    folder.mkdir()
    try:
        name = f"bad/{BAD_FILES[kind](folder).name}"
        said = said_before(name)
        assert said == raised("IPALoadAdapter", adapter_file=name, image_encoder="none")
        assert "custom_validation_failed" in executor.validate(loading(adapter_file=name))
    finally:
        shutil.rmtree(folder)


def said_before(adapter_file: str) -> str | bool:
    return comfy_host.node("IPALoadAdapter").validate_inputs(adapter_file=adapter_file, image_encoder="none")


@pytest.mark.smoke
@pytest.mark.parametrize("linked", [(), ("references.image2",), ("references.image2", "references.image3")])
def test_inputs_that_grow_do_not_disturb_the_check(executor: Executor, linked: tuple[str, ...]) -> None:
    widgets = PLAIN | {"start_percent": 0.9, "end_percent": 0.1}
    links = {name: ["name", 0] for name in ("model", "adapter", "image", *linked)}
    graph = {
        "name": {"class_type": NAME, "inputs": {"name": "x"}},
        "node": {"class_type": "IPAApplyImage", "inputs": widgets | links},
        "sink": {"class_type": SINK, "inputs": {"value": ["node", 0]}},
    }
    wrong = executor.validate(graph)
    assert "an image prompt that acts from 0.9 to 0.1" in wrong
    assert "exception_during" not in wrong
    combining = {"weights": "1, b", "method": "concat", "tokens.tokens0": ["name", 0], "tokens.tokens1": ["name", 0]}
    wrong = executor.validate(graph | {"node": {"class_type": "IPACombineTokens", "inputs": combining}})
    assert "weights '1, b'" in wrong
    assert "exception_during" not in wrong


@pytest.mark.parametrize("ends", [(0.8, 0.2), (-0.5, 1.0), (0.0, 1.5)])
@pytest.mark.parametrize("node_id", ["IPAApply", "IPAApplyImage"])
def test_a_range_is_checked_before_it_runs(
    node_id: str, ends: tuple[float, float], model: Callable, make_adapter: Callable, make_tokens: Callable
) -> None:
    adapter = make_adapter("base", "sd15")
    given = dict(zip(("start_percent", "end_percent"), ends, strict=True))
    said = comfy_host.node(node_id).validate_inputs(**given)
    inputs = {"model": model("sd15"), "adapter": adapter.loaded, "tokens": make_tokens(adapter)} | PLAIN
    assert said == raised("IPAApply", **inputs | given)
    assert comfy_host.node(node_id).validate_inputs(start_percent=0.2, end_percent=None) is True
    assert comfy_host.node(node_id).validate_inputs(start_percent=0.2, end_percent=0.8) is True


@pytest.mark.parametrize(
    ("node_id", "wrong", "right", "others"),
    [
        ("IPACombineTokens", {"weights": "1, b"}, {"weights": "1, 2"}, {"tokens": {}, "method": "concat"}),
        ("IPALayerWeights", {"site_factors": "x"}, {"site_factors": "3: 0"}, {}),
        ("IPALoadFaceModel", {"face_pack": "mine"}, {"face_pack": None}, {"device": "CPU"}),
    ],
)
def test_texts_and_packs_are_checked_before_they_run(
    node_id: str, wrong: dict, right: dict, others: dict, make_adapter: Callable, make_tokens: Callable
) -> None:
    if "tokens" in others:
        others = others | {"tokens": {"tokens0": make_tokens(make_adapter("base", "sd15"))}}
    if node_id == "IPALayerWeights":
        others = dict.fromkeys(("input", "middle", "output", "style", "composition"), 1.0)
    assert comfy_host.node(node_id).validate_inputs(**wrong) == raised(node_id, **wrong | others)
    assert comfy_host.node(node_id).validate_inputs(**right) is True


def test_a_missing_adapter_says_where_it_can_be_had(adapters: Path) -> None:
    name = "sd15/ip-adapter-plus_sd15.safetensors"
    for text in (said_before(name), raised("IPALoadAdapter", adapter_file=name, image_encoder="none")):
        assert isinstance(text, str)
        assert "https://huggingface.co/h94/IP-Adapter\n" in text
        assert "comfy model download --url https://huggingface.co/h94/IP-Adapter/resolve/main/models/ip-adapter" in text
        assert "--relative-path models/ipadapter --filename ip-adapter-plus_sd15.safetensors" in text
    assert "comfy model" not in str(said_before("my own.safetensors"))


def test_where_there_is_no_adapter_at_all_one_is_named(
    base_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import folder_paths

    monkeypatch.setitem(folder_paths.folder_names_and_paths, "ipadapter", ([str(tmp_path)], {".safetensors"}))
    said = comfy_host.node("IPALoadAdapter").validate_inputs(adapter_file="", image_encoder="auto")
    assert f"no adapter at all in {tmp_path}" in said
    assert "--filename ip-adapter-plus_sd15.safetensors" in said


def test_a_missing_encoder_says_where_it_can_be_had(clip_vision: Path, adapter_for: Callable) -> None:
    text = raised("IPALoadAdapter", adapter_file=adapter_for("plus", 1280), image_encoder="auto")
    assert "h94/IP-Adapter/resolve/main/models/image_encoder/model.safetensors" in text
    assert "--relative-path models/clip_vision --filename CLIP-ViT-H-14-laion2B-s32B-b79K.safetensors" in text


def test_a_missing_face_pack_says_where_it_can_be_had(base_directory: Path) -> None:
    shutil.rmtree(base_directory / "models" / "insightface" / "models" / "antelopev2", ignore_errors=True)
    text = raised("IPALoadFaceModel", face_pack="antelopev2", device="CPU")
    assert "insightface/releases/download/v0.7/antelopev2.zip --relative-path models/insightface/models" in text
    assert "choose buffalo_l" in raised("IPALoadFaceModel", face_pack="mine", device="CPU")
