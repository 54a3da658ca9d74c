"""Nodes of packs that no longer run: they offer what was saved, find their files, and draw what the native nodes draw."""

import inspect
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from legacy.pack_facts import PACKS
from legacy.running import random_image
from support import comfy_host, encoders, executor, families, tiny_anima
from support.families import FAMILIES, sample
from support.published import anima_lucifer, random_tensors, write_safetensors

DOCS = comfy_host.ROOT / "nodes" / "web" / "docs"
ENCODER = "siglip_of_packs/"
SIZE = 224  # the smallest that Anima's node offers; a multiple of the tiny encoder's patches
ANIMA = {"ref_image_size": SIZE, "siglip_layer": -1, "ip_cfg_scale": 4.0, "ip_cfg_separate": False}
ANIMA |= {"gray_null": False, "use_lora": True}
# loader: its inputs but the file, apply node, its inputs by what they are, families of adapters, folder they lay in
PAIRS: dict[str, tuple[str, dict[str, Any], str, dict[str, Any], tuple[str, ...], str]] = {
    "IPAdapterFluxLoader": (
        "ipadapter",
        {"clip_vision": "google/siglip-so400m-patch14-384", "provider": "cuda"},
        "ApplyIPAdapterFlux",
        {"adapter": "ipadapter_flux", "strength": "weight", "start_percent": "", "end_percent": ""},
        ("instantx_flux", "instantx_chroma"),
        "ipadapter-flux",
    ),
    "LoadFluxIPAdapter": (
        "ipadatper",
        {"clip_vision": "no longer there.safetensors", "provider": "CPU"},
        "ApplyFluxIPAdapter",
        {"adapter": "ip_adapter_flux", "strength": "ip_scale"},
        ("xlabs_v1", "xlabs_v2", "xlabs_chroma"),
        "xlabs/ipadapters",
    ),
    "IPAdapterSD3Loader": (
        "ipadapter",
        {"clip_vision": "cuda"},  # as the page reads a later file
        "ApplyIPAdapterSD3",
        {"adapter": "ipadapter", "strength": "weight", "start_percent": "", "end_percent": ""},
        ("instantx_sd35", "instantx_sd3"),
        "ipadapter",
    ),
    "AnimaIPAdapterLoader": (
        "ip_adapter_name",
        {"auto_download": True},
        "AnimaIPAdapterApply",
        {"adapter": "ip_adapter", "image": "ref_image", "strength": ""},
        ("anima_lucifer", "anima_lucifer_rich"),
        "ipadapter",
    ),
}
CASES = [(loader, name) for loader, pair in PAIRS.items() for name in pair[4]]
STRETCHED = ("IPAdapterFluxLoader", "IPAdapterSD3Loader")  # transformers' SigLIP reads the whole picture

each_node = pytest.mark.parametrize("node_id", PACKS)
each_case = pytest.mark.parametrize(("loader", "name"), CASES, ids=lambda value: value)
pytestmark = pytest.mark.smoke


@pytest.fixture
def encoder(base_directory: Path) -> Iterator[Path]:
    """The one image encoder there is: a tiny SigLIP, whose pooled and hidden states are as wide as adapters here read."""
    folder = base_directory / "models" / "clip_vision" / ENCODER.rstrip("/")
    encoders.write_folder("siglip", folder)
    yield folder
    shutil.rmtree(folder)


@each_node
def test_inputs_and_outputs_are_those_that_were_saved(base_directory: Path, node_id: str) -> None:
    import nodes

    node, facts = comfy_host.node(node_id), PACKS[node_id]
    groups = {"required": {}, "optional": {}, **node.INPUT_TYPES()}
    given = {name: entry for group in ("required", "optional") for name, entry in groups[group].items()}
    assert list(given) == [item.name for item in facts.inputs]
    assert list(groups["optional"]) == [item.name for item in facts.inputs if item.optional]
    for item in facts.inputs:
        kind, detail = given[item.name][0], given[item.name][1] if len(given[item.name]) > 1 else {}
        options = kind if isinstance(kind, list) else detail.get("options")
        assert ("COMBO" if options is not None else kind) == item.type, item.name
        assert item.options is None or tuple(options) == item.options, item.name
        if item.options is not None or item.type in ("INT", "FLOAT", "BOOLEAN"):
            assert detail.get("default") == item.default, item.name
        assert tuple(detail.get(name) for name in ("min", "max", "step")) == (item.min, item.max, item.step), item.name
        assert len(detail["tooltip"]) > 10
    assert tuple(zip(node.RETURN_TYPES, node.RETURN_NAMES or node.RETURN_TYPES, strict=True)) == facts.outputs
    assert (nodes.NODE_DISPLAY_NAME_MAPPINGS[node_id], node.CATEGORY) == (facts.display_name, facts.category)
    assert node.DEPRECATED
    assert list(inspect.signature(node.execute).parameters) == list(given)


@each_node
def test_a_help_page_names_every_input(base_directory: Path, node_id: str) -> None:
    page = (DOCS / f"{node_id}.md").read_text(encoding="utf-8")
    assert page.startswith(f"# {PACKS[node_id].display_name}\n")
    for heading in ("## What it did", "## Inputs", "## Native way", "## What differs"):
        assert heading in page
    rows = " ".join(line.split("|")[1] for line in page.splitlines() if line.startswith("| `"))
    assert [item.name for item in PACKS[node_id].inputs if f"`{item.name}`" not in rows] == []


def write(base_directory: Path, name: str, folder: str) -> str:
    file, family = f"of-a-pack-{name}.safetensors", FAMILIES[name]
    path = base_directory / "models" / folder / file
    path.parent.mkdir(parents=True, exist_ok=True)
    stated = family.spec | {"encoder": {"image_size": encoders.IMAGE_SIZE}}
    metadata = getattr(family, "metadata", {}) | {"ipadapter.spec": json.dumps(stated)}
    write_safetensors(path, families.tensors_of(name), metadata)
    return file


def load(base_directory: Path, loader: str, name: str) -> Any:
    key, widgets, *_, folder = PAIRS[loader]
    return comfy_host.run(loader, **{key: write(base_directory, name, folder)}, **widgets)


def applied(loader: str, name: str, adapter: Any, image: Tensor, **widgets: Any) -> Any:
    _, _, node, names, *_ = PAIRS[loader]
    model = widgets.pop("model", None) or families.model_of(name)
    given = {"adapter": adapter, "image": image, "strength": 0.7, "start_percent": 0.0, "end_percent": 1.0} | widgets
    inputs = {names.get(part) or part: value for part, value in given.items() if part in names or part == "image"}
    more = {part: value for part, value in (ANIMA | widgets).items() if part in ANIMA and loader.startswith("Anima")}
    return comfy_host.run(node, model=model, **inputs, **more)


def native(base_directory: Path, loader: str, name: str, image: Tensor, strength: float = 0.7, **settings: Any) -> Any:
    file = write(base_directory, name, "ipadapter")
    size = {"encoder_resolution": SIZE} if loader.startswith("Anima") else {}
    adapter = comfy_host.run("IPALoadAdapter", adapter_file=file, image_encoder="auto", **size)
    crop = "stretch" if loader in STRETCHED else adapter.spec.encoder.crop or "center"
    negative = settings.pop("negative_image", None)
    tokens = comfy_host.run("IPAEncodeImage", adapter=adapter, image=image, crop=crop, negative_image=negative)
    return families.apply(families.model_of(name), adapter, tokens, strength=strength, **settings)


@each_case
def test_a_pair_draws_what_the_native_nodes_draw(base_directory: Path, encoder: Path, loader: str, name: str) -> None:
    image = random_image(1, 40, 64)
    adapter = load(base_directory, loader, name)
    drawn = sample(name, applied(loader, name, adapter, image))
    assert not torch.allclose(drawn, sample(name, families.model_of(name)), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(drawn, sample(name, native(base_directory, loader, name, image)), rtol=1e-4, atol=1e-5)
    assert torch.equal(
        sample(name, applied(loader, name, adapter, image, strength=0.0)), sample(name, families.model_of(name))
    )
    if "start_percent" in PAIRS[loader][3]:
        late = sample(name, applied(loader, name, adapter, image, start_percent=0.5), steps=4)
        wanted = native(base_directory, loader, name, image, start_percent=0.5)
        torch.testing.assert_close(late, sample(name, wanted, steps=4), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("loader", PAIRS)
def test_what_is_no_adapter_names_the_loader(base_directory: Path, loader: str) -> None:
    case = next(name for of, name in CASES if of == loader)
    with pytest.raises(ValueError, match=rf"What to do: connect {PACKS[loader].display_name.split(' (')[0]}"):
        applied(loader, case, {"a": "dictionary"}, random_image(1, 8, 8))


@pytest.mark.parametrize(("loader", "name"), [case for case in CASES if case[0] == "IPAdapterSD3Loader"])
def test_a_picture_that_comfyui_encoded_is_the_picture(
    base_directory: Path, encoder: Path, loader: str, name: str
) -> None:
    adapter, image = load(base_directory, loader, name), random_image(1, 40, 40)
    pixels = comfy_host.pack("ipadapter_core.encoder.pixels").encoder_pixels(
        image, adapter.encoder.pixel_format, "stretch"
    )
    features = adapter.encoder.encode(pixels, adapter.spec)

    class Output:  # CLIP_VISION_OUTPUT is a bag of attributes
        penultimate_hidden_states = features

    inputs = {"model": families.model_of(name), "ipadapter": adapter, "start_percent": 0.0, "end_percent": 1.0}
    given = comfy_host.run("ApplyIPAdapterSD3", weight=0.7, image_embed=Output(), **inputs)
    wanted = applied(loader, name, adapter, image)
    torch.testing.assert_close(sample(name, given), sample(name, wanted), rtol=1e-4, atol=1e-5)
    Output.penultimate_hidden_states = features[..., :-1]
    for embed, found in ((Output(), "a reference encoded by another"), (None, "no reference")):
        with pytest.raises(ValueError, match=f"Found: {found}.*connect the picture to image"):
            comfy_host.run("ApplyIPAdapterSD3", weight=0.7, image_embed=embed, **inputs)


@pytest.mark.parametrize("name", [name for loader, name in CASES if loader == "AnimaIPAdapterLoader"])
def test_widgets_of_anima_act_or_are_refused(base_directory: Path, encoder: Path, name: str) -> None:
    loader, image = "AnimaIPAdapterLoader", random_image(1, 40, 40)
    adapter = load(base_directory, loader, name)
    usual = sample(name, applied(loader, name, adapter, image))
    for widgets, negative in (
        ({"ip_cfg_scale": 1.0}, image),
        ({"gray_null": True}, torch.full((1, SIZE, SIZE, 3), 0.5)),
    ):
        given = sample(name, applied(loader, name, adapter, image, **widgets))
        wanted = native(base_directory, loader, name, image, negative_image=negative)
        torch.testing.assert_close(given, sample(name, wanted), rtol=1e-4, atol=1e-5, msg=str(widgets))
        assert not torch.equal(given, usual)
    for widgets in ({"siglip_layer": 3}, {"ip_cfg_separate": True}):
        with pytest.raises(ValueError, match="What to do: set them so"):
            applied(loader, name, adapter, image, **widgets)


def test_the_lora_in_a_file_of_anima_is_a_switch(base_directory: Path, encoder: Path) -> None:
    name, loader, image = "anima_lucifer", "AnimaIPAdapterLoader", random_image(1, 40, 40)
    lora = anima_lucifer(blocks=tiny_anima.BLOCKS, width=tiny_anima.WIDTH, image=24, text=tiny_anima.TEXT_DIM, rank=2)
    stated = FAMILIES[name].spec | {"encoder": {"image_size": encoders.IMAGE_SIZE}}
    path = base_directory / "models" / "ipadapter" / "of-a-pack-with-lora.safetensors"
    write_safetensors(path, random_tensors(lora, scale=0.05), {"ipadapter.spec": json.dumps(stated)})
    adapter = comfy_host.run(loader, ip_adapter_name=path.name, auto_download=False)
    assert adapter.network.model_lora
    without, once = (applied(loader, name, adapter, image, use_lora=use) for use in (False, True))
    assert without.patches == {}
    assert set(without.model_patches_models()) == {adapter.patcher}, "two that load the same weights take them away"
    after = applied(loader, name, adapter, image, model=without)
    twice = applied(loader, name, adapter, image, model=once)
    for patched in (once, after, twice):
        assert {key: len(patches) for key, patches in patched.patches.items()} == dict.fromkeys(once.patches, 1)
    assert once.patches


SAVED = [
    *((loader, pair[1]) for loader, pair in PAIRS.items()),
    ("IPAdapterSD3Loader", {"clip_vision": "google/siglip-so400m-patch14-384", "provider": "cuda"}),
    ("IPAdapterSD3Loader", {"provider": "cuda"}),
]


@pytest.mark.parametrize(("loader", "widgets"), SAVED, ids=str)
def test_comfyui_takes_saved_values_and_runs_them(
    base_directory: Path, encoder: Path, loader: str, widgets: dict[str, Any]
) -> None:
    key, _, _, _, (name, *_), folder = PAIRS[loader]
    inputs = {key: write(base_directory, name, folder)} | widgets
    graph = {
        "1": {"class_type": loader, "inputs": inputs},
        "sink": {"class_type": executor.SINK, "inputs": {"value": ["1", 0]}},
    }
    with executor.nodes_of_tests():
        runner = executor.Executor()
        assert runner.queue(graph) == {"1", "sink"}
        assert runner.queue(graph) == set()


def test_a_size_with_other_tokens_than_those_for_no_image_is_refused(base_directory: Path, encoder: Path) -> None:
    name = "anima_lucifer_early"
    adapter = load(base_directory, "AnimaIPAdapterLoader", name)
    with pytest.raises(
        ValueError, match="Found: 256 image tokens, for an adapter with 6 tokens that stand for no image"
    ):
        applied("AnimaIPAdapterLoader", name, adapter, random_image(1, 40, 40))


@pytest.mark.parametrize("loader", ["IPAdapterFluxLoader", "LoadFluxIPAdapter"])
def test_the_pack_s_own_folder_goes_before_the_common_one(base_directory: Path, encoder: Path, loader: str) -> None:
    key, widgets, _, _, _, folder = PAIRS[loader]
    name = next(each for of, each in CASES if of == loader)
    file = write(base_directory, name, folder)
    common = base_directory / "models" / "ipadapter" / file
    common.write_bytes(b"something else")
    assert comfy_host.run(loader, **{key: file}, **widgets).spec.num_tokens
    before = comfy_host.node(loader).fingerprint_inputs(file, **widgets)
    (base_directory / "models" / folder / file).unlink()
    assert comfy_host.node(loader).fingerprint_inputs(file, **widgets) != before
    with pytest.raises(ValueError, match="of-a-pack"):
        comfy_host.run(loader, **{key: file}, **widgets)
    common.unlink()
    assert file not in options_of(loader, key)
    write(base_directory, name, folder)
    assert file in options_of(loader, key)


def options_of(loader: str, key: str) -> list[str]:
    entry = comfy_host.node(loader).INPUT_TYPES()["required"][key]
    return entry[0] if isinstance(entry[0], list) else entry[1]["options"]


def test_the_file_of_an_encoder_that_is_there_is_taken(base_directory: Path, encoder: Path) -> None:
    file = write(base_directory, "xlabs_v1", "xlabs/ipadapters")
    adapter = comfy_host.run("LoadFluxIPAdapter", ipadatper=file, clip_vision=ENCODER, provider="GPU")
    assert adapter.encoder.name == ENCODER
    other = encoder.parent / "other"
    encoders.write_folder("clip", other)
    try:
        with pytest.raises(ValueError, match=r"for XLabs FLUX v1: .* let it be found"):
            comfy_host.run("LoadFluxIPAdapter", ipadatper=file, clip_vision="other/", provider="GPU")
    finally:
        shutil.rmtree(other)
