"""The contract of the native nodes: ids, inputs and their order, tooltips, help pages, search."""

import inspect
from pathlib import Path
from typing import Any

import pytest

from support import comfy_host

_USE = ["strength", "start_percent", "end_percent", "layer_preset", "layer_weights", "mask", "schedule", "guard"]
_BOX = ["x", "y", "width", "height"]
CONTRACT = {
    "IPALoadAdapter": (["adapter_file", "image_encoder", "encoder_resolution"], ["IPA_ADAPTER"]),
    "IPAEncodeImage": (["adapter", "image", "crop", "negative_image", "mask", "clip_vision"], ["IPA_TOKENS"]),
    "IPACombineTokens": (["tokens", "method", "weights"], ["IPA_TOKENS"]),
    "IPAApply": (["model", "adapter", "tokens", *_USE], ["MODEL"]),
    "IPAApplyImage": (
        ["model", "adapter", "image", *_USE, "crop", "image_strengths", "references"],
        ["MODEL"],
    ),
    "IPALayerWeights": (
        ["input", "middle", "output", "style", "composition", "site_factors", "model", "layer_preset"],
        ["IPA_WEIGHTS"],
    ),
    "IPALoadFaceModel": (["face_pack", "device"], ["IPA_FACE_MODEL"]),
    "IPAEncodeFace": (
        ["adapter", "face_model", "image", "face", "version", "structure", "negative_image", "clip_vision"],
        ["IPA_TOKENS", "IMAGE"],
    ),
    "IPAApplyFaceLora": (["model", "adapter", "strength"], ["MODEL"]),
    "IPARegion": (
        ["region", "feather", "invert", *_BOX, "picture_width", "picture_height", "image", "mask"],
        ["MASK", "IMAGE"],
    ),
    "IPASaveTokens": (["adapter", "tokens", "filename"], []),
    "IPALoadTokens": (["adapter", "tokens_file"], ["IPA_TOKENS"]),
    "IPAPrepareReference": (
        [
            *("image", "cut", "margin", "fit", "pad_colour", "resolution", "sharpening", *_BOX),
            *("mask", "face_model", "adapter"),
        ],
        ["IMAGE"],
    ),
    "IPACompare": (["image", "reference", "adapter", "clip_vision"], ["FLOAT", "IMAGE"]),
    "IPASchedule": (["over", "curve", "low", "high", "points", "frames", "fade_references"], ["IPA_SCHEDULE"]),
    "IPAGrid": (["model", "adapter", "tokens", "strengths", "layer_presets"], ["MODEL", "STRING", "INT"]),
    "IPAGridSheet": (["images", "labels", "columns"], ["IMAGE"]),
    "IPARecord": (["model"], ["MODEL", "IPA_RECORD"]),
    "IPAHeatMap": (["record", "image", "adapter", "reference", "step", "blending", "scale"], ["IMAGE", "MASK"]),
    "IPAGuard": (["orthogonal", "rescale", "noise"], ["IPA_GUARD"]),
    "IPATrain": (
        [
            *("folder", "base_model", "image_encoder", "kind", "steps", "resolution", "learning_rate", "seed", "name"),
            *("images", "captions", "start_from", "base_config"),
        ],
        ["IPA_ADAPTER", "IMAGE", "IMAGE"],
    ),
}
DOCS = comfy_host.ROOT / "nodes" / "web" / "docs"

pytestmark = pytest.mark.smoke


def schema(node_id: str) -> Any:
    return comfy_host.schema(node_id)


def test_every_node_of_the_pack_is_registered_and_no_other(base_directory: Path) -> None:
    import nodes

    legacy = set(comfy_host.pack("nodes.legacy.coexistence").ids())
    legacy |= {node.GET_SCHEMA().node_id for node in comfy_host.pack("nodes.legacy.former").NODES}
    assert {name for name in nodes.NODE_CLASS_MAPPINGS if name.startswith("IPA")} - legacy == set(CONTRACT)


@pytest.mark.parametrize("node_id", CONTRACT)
def test_inputs_and_outputs_are_the_contract(base_directory: Path, node_id: str) -> None:
    inputs, outputs = CONTRACT[node_id]
    assert [item.id for item in schema(node_id).inputs] == inputs
    assert [item.get_io_type() for item in schema(node_id).outputs] == outputs


@pytest.mark.parametrize("node_id", CONTRACT)
def test_execute_takes_what_the_schema_offers(base_directory: Path, node_id: str) -> None:
    parameters = inspect.signature(comfy_host.node(node_id).execute).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        assert set(parameters) - {"groups"} <= {item.id for item in schema(node_id).inputs}
    else:
        assert list(parameters) == [item.id for item in schema(node_id).inputs]


@pytest.mark.parametrize("node_id", CONTRACT)
def test_every_input_and_output_has_a_tooltip(base_directory: Path, node_id: str) -> None:
    for item in (*schema(node_id).inputs, *schema(node_id).outputs):
        assert item.tooltip, f"{node_id}.{item.id}"


@pytest.mark.parametrize("node_id", CONTRACT)
def test_every_number_says_its_unit_and_neutral_value(base_directory: Path, node_id: str) -> None:
    for item in schema(node_id).inputs:
        if item.get_io_type() in ("FLOAT", "STRING") and not getattr(item, "force_input", None):
            assert "neutral" in item.tooltip.lower(), f"{node_id}.{item.id}"


@pytest.mark.parametrize("node_id", CONTRACT)
def test_the_screen_shows_words(base_directory: Path, node_id: str) -> None:
    for item in schema(node_id).inputs:
        assert item.id.replace("_", " ") in (item.display_name or item.id).lower()


def test_what_beginners_leave_alone_is_folded_away(base_directory: Path) -> None:
    folded = {
        f"{name}.{item.id}" for name in CONTRACT for item in schema(name).inputs if getattr(item, "advanced", None)
    }
    assert folded == {
        *(f"{name}.{end}" for name in ("IPAApply", "IPAApplyImage") for end in ("start_percent", "end_percent")),
        "IPAApplyImage.crop",
        "IPALoadAdapter.encoder_resolution",
        "IPALoadFaceModel.device",
        "IPAEncodeFace.version",
        "IPAEncodeFace.structure",
        *(f"IPARegion.picture_{side}" for side in ("width", "height")),
        "IPAHeatMap.scale",
        "IPATrain.base_config",
        *(f"IPAPrepareReference.{name}" for name in ("pad_colour", "resolution", "sharpening")),
    }


def test_what_has_something_to_show_runs_with_nothing_behind_it(base_directory: Path) -> None:
    ends = {name for name in CONTRACT if schema(name).is_output_node}
    shows = {"IPARegion", "IPAPrepareReference", "IPASchedule", "IPALayerWeights", "IPAHeatMap", "IPACompare"}
    assert ends == shows | {"IPAGridSheet", "IPASaveTokens", "IPATrain"}


@pytest.mark.parametrize("node_id", CONTRACT)
def test_search_finds_the_node_and_the_help_page_names_every_input(base_directory: Path, node_id: str) -> None:
    assert schema(node_id).search_aliases
    page = (DOCS / f"{node_id}.md").read_text(encoding="utf-8")
    for item in schema(node_id).inputs:
        assert f"`{item.id}`" in page, f"{node_id}.{item.id}"


def test_ranges_of_the_apply_nodes(base_directory: Path) -> None:
    inputs = {item.id: item for item in schema("IPAApply").inputs}
    assert (inputs["strength"].default, inputs["strength"].min, inputs["strength"].max) == (1.0, -1.0, 5.0)
    assert (inputs["start_percent"].default, inputs["end_percent"].default) == (0.0, 1.0)
    assert inputs["layer_preset"].options[:4] == ["all", "style", "composition", "style and composition"]
    presets = comfy_host.pack("ipadapter_core.strength.presets").ONE_STRENGTH_PRESETS
    assert sorted(inputs["layer_preset"].options) == sorted(presets)


def test_the_help_page_states_the_size_of_the_cache(base_directory: Path) -> None:
    size = comfy_host.pack("nodes.cache").MAX_BYTES // 2**20
    assert f"{size} MiB" in (DOCS / "IPAEncodeImage.md").read_text(encoding="utf-8")


def test_registering_the_folder_keeps_paths_that_are_there(base_directory: Path, tmp_path: Path) -> None:
    import folder_paths

    paths = comfy_host.pack("nodes.paths")
    before = folder_paths.folder_names_and_paths["ipadapter"]
    try:
        folder_paths.folder_names_and_paths["ipadapter"] = ([str(tmp_path)], set())  # as extra_model_paths.yaml does
        (tmp_path / "elsewhere.safetensors").touch()
        (tmp_path / "readme.md").touch()
        paths.register_folders()
        assert folder_paths.get_folder_paths("ipadapter")[0] == str(tmp_path)
        assert str(base_directory / "models" / "ipadapter") in folder_paths.get_folder_paths("ipadapter")
        assert "elsewhere.safetensors" in paths.adapter_files()
        assert "readme.md" not in paths.adapter_files()
    finally:
        folder_paths.folder_names_and_paths["ipadapter"] = before
