"""Loaders: what goes out on IPADAPTER, which file a preset means, and whose nodes answer when IPAdapter_plus is here."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from legacy.apply_fixtures import LAYOUTS, adapter, bare, forward
from legacy.facts import FACTS
from legacy.running import clip_vision, outputs, random_image
from support import comfy_host, encoders, tiny_unet
from support.published import linear, nested, norm, random_tensors, sites, tiny_adapter, write_bin, write_safetensors
from support.unreadable import UNREADABLE, no_waiting  # noqa: F401 - a fixture

PRESETS = next(item.options for item in FACTS["IPAdapterUnifiedLoader"].inputs if item.name == "preset")
LIGHT, STANDARD, VIT_G, PLUS, PLUS_FACE, FULL_FACE = PRESETS
H_EMBED, G_EMBED, H_WIDTH = 1024, 1280, 1280  # of the published encoders


@pytest.fixture
def folder(base_directory: Path) -> Iterator[Path]:
    """models/ipadapter, empty, with tiny encoders of the published widths."""
    models = base_directory / "models"
    adapters, aside = models / "ipadapter", base_directory / "aside"
    adapters.mkdir(exist_ok=True)
    adapters.rename(aside)
    adapters.mkdir()
    made = {"h": (H_WIDTH, H_EMBED), "big_g": (1664, G_EMBED)}
    for name, (width, embed) in made.items():
        if not (models / "clip_vision" / name).exists():
            write_encoder(models / "clip_vision" / name, width, embed)
    yield adapters
    for file in adapters.iterdir():
        file.unlink()
    adapters.rmdir()
    aside.rename(adapters)


def write_encoder(folder: Path, width: int, embed: int) -> None:
    """An encoder of one layer that is as wide as a published one."""
    import transformers

    config = transformers.CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=encoders.IMAGE_SIZE,
        patch_size=encoders.PATCH,
        projection_dim=embed,
    )
    transformers.CLIPVisionModelWithProjection(config).save_pretrained(folder)


def tensors(kind: str, layout: str, image_dim: int) -> dict[str, torch.Tensor]:
    dims = tiny_unet.layout_dims(layout)
    if kind == "full":  # its MLP is as wide as the encoder
        proj = "image_proj.proj"
        shapes = linear(f"{proj}.0", image_dim, image_dim) | linear(f"{proj}.2", 16, image_dim) | norm(f"{proj}.3", 16)
        return random_tensors(shapes | sites(dims, 16))
    return random_tensors(tiny_adapter(kind, site_dims=dims, image_dim=image_dim, head_dim=64, heads=1))


# published files as their tensors, by layout: kind and width of what they read
KINDS = {
    "light": ("base", H_EMBED),
    "base": ("base", H_EMBED),
    "vit_g": ("base", G_EMBED),
    "plus": ("plus", H_WIDTH),
    "full": ("full", H_WIDTH),
}
PUBLISHED = {
    "sd15": {
        "ip-adapter_sd15_light_v11.safetensors": "light",
        "ip-adapter_sd15_light.safetensors": "light",
        "ip-adapter_sd15.safetensors": "base",
        "ip-adapter_sd15_vit-G.safetensors": "vit_g",
        "ip-adapter-plus_sd15.safetensors": "plus",
        "ip-adapter-plus-face_sd15.safetensors": "plus",
        "ip-adapter-full-face_sd15.safetensors": "full",
        "ip_plus_composition_sd15.safetensors": "plus",
    },
    "sdxl": {
        "ip-adapter_sdxl_vit-h.safetensors": "base",
        "ip-adapter_sdxl.safetensors": "vit_g",
        "ip-adapter-plus_sdxl_vit-h.safetensors": "plus",
        "ip-adapter-plus-face_sdxl_vit-h.safetensors": "plus",
        "ip_plus_composition_sdxl.safetensors": "plus",
    },
}
MEANT = {
    "sd15": {
        LIGHT: "ip-adapter_sd15_light_v11.safetensors",
        STANDARD: "ip-adapter_sd15.safetensors",
        VIT_G: "ip-adapter_sd15_vit-G.safetensors",
        PLUS: "ip-adapter-plus_sd15.safetensors",
        PLUS_FACE: "ip-adapter-plus-face_sd15.safetensors",
        FULL_FACE: "ip-adapter-full-face_sd15.safetensors",
        "Composition": "ip_plus_composition_sd15.safetensors",
    },
    "sdxl": {
        STANDARD: "ip-adapter_sdxl_vit-h.safetensors",
        VIT_G: "ip-adapter_sdxl.safetensors",
        PLUS: "ip-adapter-plus_sdxl_vit-h.safetensors",
        PLUS_FACE: "ip-adapter-plus-face_sdxl_vit-h.safetensors",
        "Composition": "ip_plus_composition_sdxl.safetensors",
    },
}


def write_all(folder: Path) -> None:
    for layout, files in PUBLISHED.items():
        for name, kind in files.items():
            write_safetensors(folder / name, tensors(KINDS[kind][0], layout, KINDS[kind][1]))


def load(model: Any, preset: str) -> Any:
    node = "IPAdapterUnifiedLoader" if preset in PRESETS else "IPAdapterUnifiedLoaderCommunity"
    given, payload = outputs(node, model=model, preset=preset)
    assert given is model
    return payload


def test_every_preset_means_the_published_file(folder: Path, model: Callable) -> None:
    write_all(folder)
    for layout, presets in MEANT.items():
        for preset, name in presets.items():
            payload = load(model(layout), preset)
            assert payload["ipadapter"]["file"] == name
            assert payload["clipvision"]["file"] == ("big_g/" if preset == VIT_G else "h/")


@pytest.mark.parametrize("preset", [LIGHT, FULL_FACE])
def test_presets_for_sd15_alone(folder: Path, model: Callable, preset: str) -> None:
    write_all(folder)
    with pytest.raises(ValueError, match=r"Expected: a model of the SD1\.5 kind"):
        load(model("sdxl"), preset)


def test_kolors_is_for_sdxl_alone(folder: Path, model: Callable) -> None:
    with pytest.raises(ValueError, match="Expected: a model of the SDXL kind"):
        load(model("sd15"), "Kolors")


def test_a_renamed_file_is_known_by_its_tensors(folder: Path, model: Callable) -> None:
    write_safetensors(folder / "mine.safetensors", tensors("plus", "sd15", H_WIDTH))
    write_safetensors(folder / "ip-adapter-plus-face_sd15.safetensors", tensors("plus", "sd15", H_WIDTH))
    write_safetensors(folder / "ip-adapter-plus_sd15.safetensors", tensors("base", "sd15", H_EMBED))  # a wrong name
    write_safetensors(folder / "ip-adapter-plus_sdxl_vit-h.safetensors", tensors("plus", "sdxl", H_WIDTH))
    (folder / "broken.safetensors").write_bytes(b"nothing")
    assert load(model("sd15"), PLUS)["ipadapter"]["file"] == "mine.safetensors"
    write_safetensors(folder / "other.safetensors", tensors("plus", "sd15", H_WIDTH))
    with pytest.raises(ValueError, match=r"several files that could be 'PLUS .*mine\.safetensors, other\.safetensors"):
        load(model("sd15"), PLUS)


def test_what_is_missing_is_said_with_what_is_there(folder: Path, model: Callable) -> None:
    write_safetensors(folder / "ip-adapter-plus-face_sd15.safetensors", tensors("plus", "sd15", H_WIDTH))
    with pytest.raises(ValueError, match="no file for the preset") as caught:
        load(model("sd15"), PLUS)
    text = str(caught.value)
    assert "ip-adapter-plus-face_sd15.safetensors (" in text
    assert "an adapter such as ip-adapter-plus_sd15.safetensors" in text
    assert f"put it into {folder}" in text


def test_pickles_are_files_too(folder: Path, model: Callable) -> None:
    write_bin(folder / "ip-adapter_sd15.bin", nested(tensors("base", "sd15", H_EMBED)))
    payload = load(model("sd15"), STANDARD)
    assert payload["ipadapter"]["file"] == "ip-adapter_sd15.bin"
    image = random_image(1, 30, 30)
    widgets = {"weight": 1.0, "start_at": 0.0, "end_at": 1.0, "weight_type": "standard"}
    patched = outputs("IPAdapter", model=model("sd15"), ipadapter=payload, image=image, **widgets)[0]
    assert not torch.allclose(forward(patched), bare(model("sd15")), rtol=1e-3)


@pytest.mark.usefixtures("no_waiting")
@pytest.mark.parametrize("kind", set(UNREADABLE) - {"folder"})
@pytest.mark.parametrize("place", ["ipadapter", "clip_vision"])
def test_what_cannot_be_read_is_left_out_with_a_warning(
    folder: Path, model: Callable, kind: str, place: str, caplog: pytest.LogCaptureFixture
) -> None:
    make, reason = UNREADABLE[kind]
    write_safetensors(folder / "mine.safetensors", tensors("plus", "sd15", H_WIDTH))
    strange = make(folder.parent / place / "ip-adapter-plus_sd15.safetensors")
    fingerprint = partial(comfy_host.fingerprint, "IPAdapterUnifiedLoader")
    try:
        with caplog.at_level("WARNING"):
            assert load(model("sd15"), PLUS)["ipadapter"]["file"] == "mine.safetensors"
        assert "ip-adapter-plus_sd15.safetensors is left out" in caplog.text
        assert reason in caplog.text
        before = fingerprint(preset=PLUS)
    finally:
        strange.unlink()
    write_safetensors(folder / "ip-adapter-plus_sd15.safetensors", tensors("plus", "sd15", H_WIDTH))
    assert fingerprint(preset=PLUS) != before
    assert load(model("sd15"), PLUS)["ipadapter"]["file"] == "ip-adapter-plus_sd15.safetensors"


def test_a_file_that_cannot_be_read_is_named_where_nothing_fits(folder: Path, model: Callable) -> None:
    (folder / "ip-adapter-plus_sd15.safetensors").symlink_to("nowhere")
    (folder / "cut.safetensors").write_bytes(b"cut")
    with pytest.raises(ValueError, match="no file for the preset") as caught:
        load(model("sd15"), PLUS)
    for name in ("ip-adapter-plus_sd15.safetensors", "cut.safetensors"):
        assert f"{name} (which cannot be read)" in str(caught.value)


def test_a_link_to_a_blob_is_an_adapter(folder: Path, model: Callable, tmp_path: Path) -> None:
    """As in the cache of Hugging Face: the file itself has no suffix."""
    made = write_safetensors(tmp_path / "made.safetensors", tensors("plus", "sd15", H_WIDTH))
    made.rename(tmp_path / "blob")
    (folder / "mine.safetensors").symlink_to(tmp_path / "blob")
    assert load(model("sd15"), PLUS)["ipadapter"]["file"] == "mine.safetensors"


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="asks Linux what is mapped")
@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
@pytest.mark.parametrize("disabled", [True, False])
def test_disable_mmap_is_honoured(
    folder: Path, model: Callable, monkeypatch: pytest.MonkeyPatch, suffix: str, disabled: bool
) -> None:
    import comfy.utils

    monkeypatch.setattr(comfy.utils, "DISABLE_MMAP", disabled)
    path, content = folder / f"mapped{suffix}", tensors("base", "sd15", H_EMBED)
    write_bin(path, nested(content)) if suffix == ".bin" else write_safetensors(path, content)
    inputs = {"adapter_file": path.name, "image_encoder": "none"}
    loaded = [comfy_host.run("IPALoadAdapter", **inputs), outputs("IPAdapterModelLoader", ipadapter_file=path.name)]
    assert (str(path) in Path("/proc/self/maps").read_text()) != disabled
    assert loaded


WIDGETS = {
    "weight": 1.0,
    "weight_type": "linear",
    "combine_embeds": "concat",
    "start_at": 0.0,
    "end_at": 1.0,
    "embeds_scaling": "V only",
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_payloads_of_ours_and_of_other_packs_draw_the_same(base_directory: Path, model: Callable, layout: str) -> None:
    made, vision = adapter(base_directory, layout), clip_vision()
    raw = {part: dict(tensors) for part, tensors in nested(made.tensors).items()}
    pipeline = {"clipvision": {"model": vision}, "insightface": {"model": None}}
    pictures = []
    for payload, encoder in (
        (made.payload, vision),
        (raw, vision),
        (pipeline | {"ipadapter": {"model": made.payload}}, None),
        (pipeline | {"ipadapter": {"model": raw}}, None),
    ):
        inputs = {"model": model(layout), "ipadapter": payload, "clip_vision": encoder} | WIDGETS
        pictures.append(forward(outputs("IPAdapterAdvanced", image=random_image(1, 30, 30), **inputs)[0]))
    assert all(torch.equal(picture, pictures[0]) for picture in pictures)
    assert not torch.allclose(pictures[0], bare(model(layout)), rtol=1e-3)


def test_the_payload_is_what_other_packs_read(base_directory: Path) -> None:
    made = adapter(base_directory, "sd15")
    for part, wanted in nested(made.tensors).items():
        assert made.payload[part].keys() == wanted.keys()
        assert all(torch.equal(made.payload[part][name], tensor) for name, tensor in wanted.items())
    assert made.payload["faceidplusv2"] is False
    assert made.payload["portraitunnorm"] is False


@pytest.mark.parametrize("wrong", [None, {}, {"ipadapter": {"file": None, "model": None}}, torch.zeros(1)], ids=str)
def test_no_payload_is_refused(base_directory: Path, model: Callable, wrong: object) -> None:
    with pytest.raises(ValueError, match="connect IPAdapter Unified Loader or IPAdapter Model Loader"):
        outputs("IPAdapterAdvanced", model=model("sd15"), ipadapter=wrong, image=random_image(1, 30, 30), **WIDGETS)


def test_a_missing_image_encoder_is_named(base_directory: Path, model: Callable) -> None:
    payload = adapter(base_directory, "sd15").payload
    with pytest.raises(ValueError, match=r"without an image encoder.*connect a Load CLIP Vision node"):
        outputs("IPAdapterAdvanced", model=model("sd15"), ipadapter=payload, image=random_image(1, 30, 30), **WIDGETS)


class TheirNode:
    """Stands for a node class of IPAdapter_plus: any class that is not ours."""


@pytest.fixture
def registry(base_directory: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """ComfyUI's table of nodes, a copy that tests may change."""
    import nodes

    table = dict(nodes.NODE_CLASS_MAPPINGS)
    monkeypatch.setattr(nodes, "NODE_CLASS_MAPPINGS", table)
    monkeypatch.setattr(nodes, "NODE_DISPLAY_NAME_MAPPINGS", dict(nodes.NODE_DISPLAY_NAME_MAPPINGS))
    return table


def registered_ids() -> set[str]:
    nodes = comfy_host.pack("nodes.legacy.coexistence").nodes_to_register()
    return {node.GET_SCHEMA().node_id for node in nodes}


def test_ours_stay_out_where_theirs_were_loaded_before(registry: dict, caplog: pytest.LogCaptureFixture) -> None:
    assert registered_ids() == set(FACTS)
    registry["PrepImageForClipVision"] = TheirNode  # by some other pack
    assert registered_ids() == set(FACTS) - {"PrepImageForClipVision"}
    registry["IPAdapterAdvanced"] = TheirNode
    with caplog.at_level("INFO"):
        assert registered_ids() == set()
    assert caplog.text.count("IPAdapter_plus is installed") == 1


def test_ours_give_way_where_theirs_are_loaded_after(registry: dict, caplog: pytest.LogCaptureFixture) -> None:
    give_way = comfy_host.pack("nodes.legacy.coexistence").give_way
    give_way()
    assert set(FACTS) <= set(registry)
    registry["IPAdapterUnifiedLoader"] = TheirNode
    with caplog.at_level("INFO"):
        give_way()
    assert set(FACTS) & set(registry) == {"IPAdapterUnifiedLoader"}
    assert registry["IPAdapterUnifiedLoader"] is TheirNode
    assert "IPAApply" in registry
    assert caplog.text.count("IPAdapter_plus is installed") == 1
