"""What cannot be read among the models is left out with a word, and what nobody can load is not offered."""

import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from support import comfy_host, encoders, face_files
from support.bad_files import truncated_safetensors
from support.executor import SINK, Executor, nodes_of_tests
from support.published import random_tensors, tiny_adapter, write_safetensors
from support.unreadable import UNREADABLE, no_waiting  # noqa: F401 - a fixture

pytestmark = pytest.mark.usefixtures("no_waiting")
ADAPTER = "left_out.safetensors"


@pytest.fixture
def clip_vision(base_directory: Path) -> Iterator[Path]:
    """models/clip_vision with a tiny encoder in transformers layout, and an adapter for it."""
    folder = base_directory / "models" / "clip_vision"
    assert not list(folder.iterdir())
    encoders.write_folder("clip", folder / "mine")
    shapes = tiny_adapter("plus", site_dims=(32,), image_dim=encoders.WIDTH, head_dim=64, heads=1)
    write_safetensors(base_directory / "models" / "ipadapter" / ADAPTER, random_tensors(shapes))
    yield folder
    shutil.rmtree(folder)
    folder.mkdir()
    (base_directory / "models" / "ipadapter" / ADAPTER).unlink()


def load(encoder: str = "auto") -> Any:
    return comfy_host.run("IPALoadAdapter", adapter_file=ADAPTER, image_encoder=encoder)


def message(encoder: str = "auto") -> str:
    with pytest.raises(ValueError, match=r"Found: .*Expected: .*What to do: ") as caught:
        load(encoder)
    return str(caught.value)


def choices() -> list[str]:
    options: list[str] = comfy_host.node("IPALoadAdapter").INPUT_TYPES()["required"]["image_encoder"][1]["options"]
    return options


@pytest.mark.parametrize("kind", UNREADABLE)
@pytest.mark.parametrize("name", ["a.safetensors", "sub/a.safetensors", "a.bin"])
def test_auto_passes_over_what_cannot_be_read(
    clip_vision: Path, kind: str, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    make, reason = UNREADABLE[kind]
    (clip_vision / "sub").mkdir()
    make(clip_vision / name)
    fingerprint = comfy_host.node("IPALoadAdapter").fingerprint_inputs
    assert fingerprint(adapter_file=ADAPTER, image_encoder="auto")
    with caplog.at_level(logging.WARNING):
        assert load().encoder.name == "mine/"
    is_listed = kind != "folder" and not (kind == "read error" and name == "a.bin")  # pickles are not opened
    said = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert len(said) == int(is_listed)
    assert all(name in text and reason in text for text in said)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "preprocessor_config.json"])
@pytest.mark.parametrize("kind", UNREADABLE)
def test_auto_passes_over_a_folder_with_such_a_file(
    clip_vision: Path, kind: str, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    encoders.write_folder("clip", clip_vision / "a")
    (clip_vision / "a" / name).unlink(missing_ok=True)
    UNREADABLE[kind][0](clip_vision / "a" / name)
    with caplog.at_level(logging.WARNING):
        if name == "preprocessor_config.json":  # transformers itself does not read it: only its own folder is refused
            assert UNREADABLE[kind][1] in message("a/")
            return
        assert load().encoder.name == "mine/"
    if kind != "folder" or name != "config.json":  # a folder of that name is no config: the other is no encoder
        assert "a/ is left out" in caplog.text


@pytest.mark.parametrize("kind", set(UNREADABLE) - {"folder"})
def test_chosen_by_name_it_says_what_is_wrong(clip_vision: Path, kind: str) -> None:
    make, reason = UNREADABLE[kind]
    make(clip_vision / "a.safetensors")
    text = message("a.safetensors")
    assert reason in text
    assert str(clip_vision / "a.safetensors") in text


@pytest.mark.parametrize("kind", set(UNREADABLE) - {"folder"})
def test_an_adapter_that_cannot_be_read_says_why(base_directory: Path, kind: str) -> None:
    make, reason = UNREADABLE[kind]
    path = make(base_directory / "models" / "ipadapter" / "strange.safetensors")
    try:
        with pytest.raises(ValueError, match=reason):
            comfy_host.run("IPALoadAdapter", adapter_file="strange.safetensors", image_encoder="none")
    finally:
        path.unlink()


def test_a_circle_of_folders_is_walked_once(clip_vision: Path) -> None:
    (clip_vision / "mine" / "up").symlink_to("..")
    assert load().encoder.name == "mine/"
    assert choices() == ["auto", "none", "mine/"]


def test_a_link_to_a_file_without_suffix_is_what_its_own_name_says(clip_vision: Path, base_directory: Path) -> None:
    """As in the cache of Hugging Face."""
    encoders.write_single_file(base_directory / "blob", *SIZES["h"])
    (clip_vision / "h.safetensors").symlink_to(base_directory / "blob")
    with pytest.raises(ValueError, match=r"CLIP ViT-H/14 .*, which gives 1280-wide"):
        load("h.safetensors")


@pytest.mark.parametrize("kind", UNREADABLE)
def test_a_face_pack_does_without_what_cannot_be_read(
    base_directory: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    make, reason = UNREADABLE[kind]
    pack = face_files.write_pack(base_directory / "models" / "insightface" / "models" / "strange")
    try:
        make(pack / "z.onnx")
        if kind == "read error":  # which no status shows
            with pytest.raises(ValueError, match=r"Found: .*Expected: "):
                comfy_host.run("IPALoadFaceModel", face_pack="strange", device="CPU")
            return
        with caplog.at_level(logging.WARNING):
            comfy_host.run("IPALoadFaceModel", face_pack="strange", device="CPU")
        assert "z.onnx is left out" in caplog.text
        assert reason in caplog.text
        assert comfy_host.node("IPALoadFaceModel").fingerprint_inputs(face_pack="strange", device="CPU")
    finally:
        shutil.rmtree(pack)


SIZES = {"h": (1280, 32, 1024), "l": (1024, 24, 768)}


def test_files_of_a_folder_are_offered_only_if_comfyui_loads_them(clip_vision: Path) -> None:
    mine = clip_vision / "mine"
    for name in ("another.safetensors", "pytorch_model.bin", "deep/down.safetensors"):
        (mine / name).parent.mkdir(exist_ok=True)
        shutil.copy(mine / "model.safetensors", mine / name)
    usual = clip_vision / "usual"
    encoders.write_folder("clip", usual)
    sizes = {"hidden_size": 1280, "num_hidden_layers": 32, "projection_dim": 1024}
    config = json.loads((usual / "config.json").read_text())
    (usual / "config.json").write_text(json.dumps(config | sizes))
    encoders.write_single_file(usual / "model.safetensors", *SIZES["h"])
    for name in ("pytorch_model.bin", "pytorch_model-00001-of-00002.bin"):
        (usual / name).touch()
    encoders.write_sparse(usual / "model-00001-of-00002.safetensors", {"vision_model.x.weight": (4, 4)})
    encoders.write_single_file(clip_vision / "alone.safetensors", 64, 3, 32)
    assert choices() == [
        "auto",
        "none",
        "mine/",
        "usual/",
        "alone.safetensors",
        "usual/model.safetensors",
        "usual/pytorch_model.bin",
    ]


@pytest.mark.parametrize("name", ["model.safetensors", "model-00001-of-00002.safetensors", "pytorch_model.bin"])
def test_a_saved_workflow_with_such_a_file_loads_its_folder(clip_vision: Path, name: str, tmp_path: Path) -> None:
    if name != "model.safetensors":
        shutil.copy(clip_vision / "mine" / "model.safetensors", clip_vision / "mine" / name)
    with nodes_of_tests():
        executor = Executor()
        loader = {"adapter_file": ADAPTER, "image_encoder": f"mine/{name}"}
        graph = {
            "loader": {"class_type": "IPALoadAdapter", "inputs": loader},
            "sink": {"class_type": SINK, "inputs": {"value": ["loader", 0]}},
        }
        assert executor.queue(graph) == {"loader", "sink"}
        assert executor.queue(graph) == set()
        encoders.write_folder("clip", tmp_path, seed=1)
        shutil.copy(tmp_path / "model.safetensors", clip_vision / "mine")
        assert executor.queue(graph) == {"loader", "sink"}
        loader["image_encoder"] = "mine/gone.safetensors"
        assert "no file mine/gone.safetensors in " in executor.validate(graph)
    assert load(f"mine/{name}").encoder.name == "mine/"


def test_the_advice_for_a_file_of_another_size_can_be_followed(clip_vision: Path) -> None:
    alone = clip_vision / "alone.safetensors"
    shutil.copy(clip_vision / "mine" / "model.safetensors", alone)
    text = message("alone.safetensors")
    assert (
        "make a folder in models/clip_vision with this file as model.safetensors and the encoder's config.json" in text
    )
    (clip_vision / "made").mkdir()
    alone.rename(clip_vision / "made" / "model.safetensors")
    shutil.copy(clip_vision / "mine" / "config.json", clip_vision / "made")
    assert load("made/").encoder.name == "made/"


def test_what_auto_does_not_open_is_named_where_nothing_fits(clip_vision: Path) -> None:
    (clip_vision / "mine" / "model.safetensors").rename(clip_vision / "mine" / "pytorch_model.bin")
    for name in ("a.bin", "b.pt"):
        torch.save({"x": torch.zeros(1)}, clip_vision / name)
    encoders.write_single_file(clip_vision / "c.safetensors", 64, 3, 32)
    truncated_safetensors(clip_vision)
    text = message()
    assert "no image encoder at all" not in text
    for name, why in {
        "a.bin": "a pickle",
        "b.pt": "a pickle",
        "mine/pytorch_model.bin": "a pickle",
        "mine/": "no safetensors file",
        "c.safetensors": "does not load from a single file",
        "truncated.safetensors": "bytes are missing",
    }.items():
        assert name in text
        assert why in text.split(name, 1)[1]
    assert "choose one that was left out by its name" in text


def write_broken(path: Path, how: str) -> None:
    made = truncated_safetensors(path.parent)
    if how == "cut":
        made.rename(path)
        return
    made.unlink()
    contents = {"empty": b"", "page": b"<html>", "noise": b"\x80\x02" + bytes(range(256))}
    path.write_bytes(contents[how])


@pytest.mark.parametrize("how", ["cut", "empty", "page", "noise"])
@pytest.mark.parametrize("suffix", [".safetensors", ".bin", ".pt", ".ckpt"])
def test_a_broken_encoder_is_called_an_image_encoder(clip_vision: Path, suffix: str, how: str) -> None:
    write_broken(clip_vision / f"broken{suffix}", how)
    text = message(f"broken{suffix}")
    assert "adapter" not in text
    assert "encoder file" in text


def test_a_pickled_encoder_of_the_wrong_width_is_refused_before_comfyui_loads_it(clip_vision: Path) -> None:
    tensors = {
        "vision_model.embeddings.class_embedding": torch.zeros(64),
        "vision_model.embeddings.position_embedding.weight": torch.zeros(5, 64),
        "vision_model.encoder.layers.0.layer_norm1.weight": torch.zeros(64),
    }
    for name, content in (("a.bin", tensors), ("b.ckpt", {"state_dict": tensors})):
        torch.save(content, clip_vision / name)
        assert "CLIP of width 64, 1 layers, which gives 64-wide hidden states" in message(name)


def test_an_encoder_whose_tensors_do_not_fit_is_a_message(clip_vision: Path, adapter_of_1024: str) -> None:
    """Of the right depth and width by its header, with one tensor of another shape, which ComfyUI stumbles over."""
    encoders.write_single_file(clip_vision / "l.safetensors", *SIZES["l"])
    with (clip_vision / "l.safetensors").open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(length)
        changed = header.replace(b'"shape": [4096]', b'"shape": [2048,2]', 1)
        file.seek(8)
        file.write(changed.rstrip().ljust(length))
    with pytest.raises(ValueError, match="no usable image encoder file: ComfyUI cannot load it"):
        comfy_host.run("IPALoadAdapter", adapter_file=adapter_of_1024, image_encoder="l.safetensors")


@pytest.fixture
def adapter_of_1024(base_directory: Path) -> Iterator[str]:
    shapes = tiny_adapter("plus", site_dims=(32,), image_dim=1024, head_dim=64, heads=1)
    path = write_safetensors(base_directory / "models" / "ipadapter" / "wide.safetensors", random_tensors(shapes))
    yield path.name
    path.unlink()


def test_a_file_beside_a_config_that_describes_no_encoder_stands_for_itself(
    clip_vision: Path, adapter_of_1024: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (clip_vision / "odd").mkdir()
    (clip_vision / "odd" / "config.json").write_text('{"model_type": "open_clip"}')
    encoders.write_single_file(clip_vision / "odd" / "l.safetensors", *SIZES["l"])
    loaded: list[str] = []

    def stop(path: Path) -> Any:
        loaded.append(path.name)
        raise KeyboardInterrupt  # the file has the right header and no weights

    monkeypatch.setattr(comfy_host.pack("nodes.loading"), "load_encoder_file", stop)
    with pytest.raises(KeyboardInterrupt):
        comfy_host.run("IPALoadAdapter", adapter_file=adapter_of_1024, image_encoder="auto")
    assert loaded == ["l.safetensors"]


def test_a_model_folder_that_leads_nowhere_does_not_stop_the_pack(
    base_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import folder_paths

    (tmp_path / "ipadapter").symlink_to("nowhere")
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "ipadapter", ([], {".safetensors"}))
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    paths = comfy_host.pack("nodes.paths")
    paths.register_folders()
    assert "cannot be made" in caplog.text
    assert paths.adapter_files() == []
