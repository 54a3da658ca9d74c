"""Nothing outside ComfyUI's model, input and output folders is read or written, whatever name an input gives.

A name comes typed in a prompt, where ComfyUI itself compares it with a list, or from another node, where nobody does.
"""

import ntpath
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from support import comfy_host, encoders, face_files
from support.published import random_tensors, tiny_adapter, write_safetensors

NAMES = {  # of what lies in a folder beside the one it should be in, or nowhere
    "up": "../outside/secret{}",
    "up and down": "sub/../../outside/secret{}",
    "absolute": "{base}/outside/secret{}",
    "through a link to a folder": "link/secret{}",
    "through a link to a file": "linked{}",
    "backslash": "..\\outside\\secret{}",
    "nul": "secret\0{}",
    "too long": "x" * 5000 + "{}",
    "surrogate": "\ud800{}",
    "nothing": "",
    "dots": "..",
}


@pytest.fixture
def folders(base_directory: Path) -> Iterator[dict[str, Path]]:
    """Input and output folder, with links to a folder outside that holds embeds and an adapter."""
    import folder_paths

    places = {"input": folder_paths.get_input_directory(), "output": folder_paths.get_output_directory()}
    outside = base_directory / "outside"
    outside.mkdir()
    torch.save(torch.ones(1, 4), outside / "secret.ipadpt")
    shapes = tiny_adapter("base", site_dims=(32,))
    write_safetensors(outside / "secret.safetensors", random_tensors(shapes))
    made = []
    for place in map(Path, places.values()):
        (place / "sub").mkdir(parents=True, exist_ok=True)
        for name, target in (("link", outside), ("linked.ipadpt", outside / "secret.ipadpt")):
            (place / name).symlink_to(target)
            made.append(place / name)
    yield {name: Path(place) for name, place in places.items()} | {"outside": outside}
    for link in made:
        link.unlink()
    for file in outside.rglob("*"):
        file.unlink()
    outside.rmdir()


def message_of(node_id: str, **inputs: Any) -> str:
    with pytest.raises(ValueError, match=r"(?s)Found: .*\. Expected: .*\. What to do: ") as error:
        comfy_host.call(node_id, **inputs)
    assert len(str(error.value)) < 1500
    return str(error.value)


@pytest.mark.parametrize("kind", NAMES)
def test_embeds_are_read_below_the_input_folder_only(folders: dict, base_directory: Path, kind: str) -> None:
    name = NAMES[kind].format(".ipadpt", base=base_directory)
    said = message_of("IPAdapterLoadEmbeds", embeds=name)
    leads_out = kind in ("up", "up and down", "absolute", "dots", "nul", "surrogate") or kind.startswith("through")
    assert ("which does not lie in ComfyUI's input folder" in said) == leads_out, said
    node = comfy_host.node("IPAdapterLoadEmbeds")
    assert not [option for option in node.INPUT_TYPES()["required"]["embeds"][0] if "link" in option]


def test_a_link_within_the_input_folder_is_followed(folders: dict) -> None:
    torch.save(torch.ones(1, 4), folders["input"] / "sub" / "mine.ipadpt")
    link = folders["input"] / "other.ipadpt"
    link.symlink_to(folders["input"] / "sub" / "mine.ipadpt")
    try:
        assert torch.equal(comfy_host.call("IPAdapterLoadEmbeds", embeds="other.ipadpt")[0], torch.ones(1, 4))
    finally:
        link.unlink()


PREFIXES = {  # where embeds are to be saved, and what is said
    "up": ("../escaped", "leads out of ComfyUI's output folder"),
    "up and down": ("sub/../../escaped", "leads out of ComfyUI's output folder"),
    "absolute": ("{base}/escaped", "leads out of ComfyUI's output folder"),
    "through a link": ("link/escaped", "leads out of ComfyUI's output folder"),
    "nul in a folder": ("a\0b/escaped", "leads out of ComfyUI's output folder"),
    "nul": ("a\0b", "cannot be written"),
    "surrogate": ("\ud800", "cannot be written"),
    "too long": ("x" * 300, "cannot be written"),
    "a folder too long": ("x" * 300 + "/a", "no folder can be made"),
    "a file in place of a folder": ("file/a", "no folder can be made"),
}


@pytest.mark.parametrize("kind", PREFIXES)
def test_embeds_are_written_below_the_output_folder_only(folders: dict, base_directory: Path, kind: str) -> None:
    prefix, found = PREFIXES[kind]
    (folders["output"] / "file").touch()
    before = set(base_directory.rglob("*"))
    said = message_of(
        "IPAdapterSaveEmbeds", embeds=torch.ones(1, 4), filename_prefix=prefix.format(base=base_directory)
    )
    assert found in said
    assert set(base_directory.rglob("*")) == before


@pytest.mark.parametrize("prefix", ["..", "a/../b", "sub/%year%", "", "."])
def test_other_names_are_written_there(folders: dict, base_directory: Path, prefix: str) -> None:
    before = set(base_directory.rglob("*"))
    comfy_host.node("IPAdapterSaveEmbeds")().save(embeds=torch.ones(1, 4), filename_prefix=prefix)
    new = set(base_directory.rglob("*")) - before
    assert {path.suffix for path in new if path.is_file()} == {".safetensors"}
    assert all(path.is_relative_to(folders["output"]) for path in new)


LOADERS = {
    "IPALoadAdapter": ("adapter_file", {"image_encoder": "none"}),
    "IPAdapterModelLoader": ("ipadapter_file", {}),
}


@pytest.mark.parametrize("kind", sorted(set(NAMES) - {"through a link to a folder", "through a link to a file"}))
@pytest.mark.parametrize("node_id", LOADERS)
def test_adapters_are_read_below_their_folder_only(
    folders: dict, base_directory: Path, node_id: str, kind: str
) -> None:
    input_name, widgets = LOADERS[node_id]
    name = NAMES[kind].replace("../outside", "../../outside").format(".safetensors", base=base_directory)
    comfy_host.fingerprint(node_id, **widgets | {input_name: name})
    message_of(node_id, **widgets | {input_name: name})


@pytest.mark.parametrize("kind", sorted(set(NAMES) - {"through a link to a folder", "through a link to a file"}))
def test_encoders_and_face_packs_are_read_below_their_folders_only(
    folders: dict, base_directory: Path, make_adapter: Any, kind: str
) -> None:
    face_files.write_pack(base_directory / "models" / "insightface" / "outside")
    for suffix in ("", ".safetensors", "/"):
        name = NAMES[kind].format(suffix, base=base_directory)
        message_of("IPALoadAdapter", adapter_file=make_adapter("base", "sd15").name, image_encoder=name)
    for node_id, pack in (("IPALoadFaceModel", "face_pack"), ("IPAdapterInsightFaceLoader", "model_name")):
        device = "device" if node_id == "IPALoadFaceModel" else "provider"
        for name in (NAMES[kind].format("", base=base_directory), "../outside"):
            comfy_host.fingerprint(node_id, **{pack: name, device: "CPU"})
            assert re.match(
                r"Found: (no face pack|5\d+ characters)", message_of(node_id, **{pack: name, device: "CPU"})
            )


@pytest.fixture
def other_disk(base_directory: Path, tmp_path: Path) -> Iterator[Path]:
    """A folder of models outside ComfyUI, with links to it and to its files from ComfyUI's model folders."""
    write_safetensors(tmp_path / "secret.safetensors", random_tensors(tiny_adapter("base", site_dims=(32,))))
    (tmp_path / "sub").mkdir()
    write_safetensors(tmp_path / "sub" / "mine.safetensors", random_tensors(tiny_adapter("base", site_dims=(32,))))
    encoders.write_folder("clip", tmp_path / "encoder")
    face_files.write_pack(tmp_path / "pack")
    models = base_directory / "models"
    links = {
        models / "ipadapter" / "one.safetensors": tmp_path / "sub" / "mine.safetensors",
        models / "ipadapter" / "disk": tmp_path / "sub",
        models / "clip_vision" / "disk": tmp_path / "encoder",
        models / "insightface" / "models" / "disk": tmp_path / "pack",
    }
    for link, target in links.items():
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(target)
    yield tmp_path
    for link in links:
        link.unlink()


@pytest.mark.parametrize("name", ["one.safetensors", "disk/mine.safetensors"])
def test_links_in_model_folders_are_followed(other_disk: Path, name: str) -> None:
    """Their owner made them: no input of a node can, and many keep their models on another disk."""
    before = {path: path.read_bytes() for path in other_disk.rglob("*") if path.is_file()}
    for node_id, (input_name, widgets) in LOADERS.items():
        comfy_host.run(node_id, **widgets | {input_name: name})
    assert comfy_host.run("IPALoadAdapter", adapter_file=name, image_encoder="none").spec.site_dims == (32,)
    assert "disk/" in comfy_host.pack("nodes.paths").encoder_folders()
    assert comfy_host.run("IPALoadFaceModel", face_pack="disk", device="CPU").name == "disk"
    assert {path: path.read_bytes() for path in other_disk.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("name", ["disk/../secret.safetensors", "disk/sub/../../secret.safetensors"])
def test_no_name_leads_on_from_a_link_in_a_model_folder(other_disk: Path, name: str) -> None:
    assert (other_disk / "sub" / ".." / "secret.safetensors").is_file(), "what the system would find by that name"
    for node_id, (input_name, widgets) in LOADERS.items():
        assert "no file" in message_of(node_id, **widgets | {input_name: name})


def test_an_output_folder_that_is_a_link_is_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import folder_paths

    (tmp_path / "disk").mkdir()
    (tmp_path / "output").symlink_to(tmp_path / "disk")
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    comfy_host.node("IPAdapterSaveEmbeds")().save(embeds=torch.ones(1, 4), filename_prefix="sub/mine")
    assert [path.name for path in (tmp_path / "disk" / "sub").iterdir()] == ["mine_00001_.safetensors"]


WINDOWS = {
    "below": ("sub\\a.ipadpt", True),
    "up": ("..\\a.ipadpt", False),
    "up with both": ("sub\\..\\../a.ipadpt", False),
    "a drive": ("D:\\a.ipadpt", False),
    "of a drive": ("D:a.ipadpt", False),
    "absolute": ("\\a.ipadpt", False),
    "a share": ("\\\\host\\share\\a.ipadpt", False),
    "a device": ("\\\\?\\C:\\a.ipadpt", False),
}


@pytest.mark.parametrize("kind", WINDOWS)
def test_on_windows(base_directory: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    name, is_inside = WINDOWS[kind]
    paths = comfy_host.pack("nodes.paths")
    monkeypatch.setattr(paths, "os", SimpleNamespace(path=ntpath))
    base = "C:\\ComfyUI\\input"
    assert paths.is_within(base, ntpath.join(base, name)) == is_inside
    inside = paths.inside(name)
    assert not ntpath.isabs(inside)
    assert not ntpath.splitdrive(inside)[0]
    assert ".." not in inside.split("\\")
