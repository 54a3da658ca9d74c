"""Files of adapters for Anima: their variants, their names on disk, and what in them does not fit."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ipadapter_core.errors import UnreadableFileError, UnsupportedFamilyError
from ipadapter_core.file.anima import published_metadata
from ipadapter_core.file.container import read_tensors
from ipadapter_core.file.detect import detect
from ipadapter_core.file.names import canonical_name
from ipadapter_core.file.spec import Feature
from ipadapter_core.network.adapter import build_adapter, load_adapter, save_adapter
from support.published import Shapes, anima_lucifer, anima_pe, random_tensors, write_safetensors

TINY = {"blocks": 2, "width": 128, "image": 24}
RICH = {"shared": True, "queries": 4, "null_tokens": (1, 4, 24), "self_attention": True, "norm_features": True}
FILES: dict[str, tuple[Shapes, dict[str, str], str]] = {
    "lucifer": (anima_lucifer(**TINY), {}, "Anima LuciferTC"),
    "with a LoRA": (anima_lucifer(**TINY, rank=2, text=16), {}, "Anima LuciferTC"),
    "with every part": (anima_lucifer(**TINY, **RICH), {}, "Anima LuciferTC shared"),
    "norms keys": (anima_lucifer(**TINY), {"ip_norm_keys": "True"}, "Anima LuciferTC normed keys"),
    "early": (anima_lucifer(**TINY), {"ip_inject_before_mlp": "true"}, "Anima LuciferTC before MLP"),
    "says no": (anima_lucifer(**TINY), {"ip_norm_keys": "False"}, "Anima LuciferTC"),
    "pe": (anima_pe(**TINY, token=16), {"ss_num_heads": "4", "ss_resampler_heads": "2"}, "Anima PE"),
    "pe gated": (anima_pe(**TINY, token=16, gated=True), {"ss_encoder": "pe"}, "Anima PE gated"),
}


@pytest.mark.parametrize("kind", FILES)
def test_what_is_saved_has_the_authors_names_and_loads_as_it_was(kind: str, tmp_path: Path) -> None:
    shapes, metadata, layout = FILES[kind]
    tensors = random_tensors(shapes)
    write_safetensors(tmp_path / "first.safetensors", tensors, metadata)
    first = load_adapter(tmp_path / "first.safetensors")
    assert first.spec.layout == layout
    save_adapter(first, tmp_path / "second.safetensors")
    saved = read_tensors(tmp_path / "second.safetensors").tensors
    assert saved.keys() == tensors.keys()
    assert all(torch.equal(saved[name], tensor) for name, tensor in tensors.items())
    assert load_adapter(tmp_path / "second.safetensors").spec == first.spec


def test_what_metadata_says_of_heads_is_believed() -> None:
    shapes, metadata, _ = FILES["pe"]
    spec = detect(shapes, metadata)
    assert (spec.head_dim, spec.resampler.num_heads, spec.resampler.head_dim) == (32, 2, 8)


@pytest.mark.parametrize("kind", ["pe", "pe gated"])
def test_the_authors_metadata_tell_what_tensors_do_not(kind: str) -> None:
    """A file with these alone is the same adapter."""
    shapes, metadata, _ = FILES[kind]
    spec = detect(shapes, metadata)
    stated = published_metadata(spec)
    assert detect(shapes, stated) == spec
    assert {"ss_network_spec": "ip_adapter", "ss_num_ip_tokens": "16", "ss_context_dim": "16"}.items() <= stated.items()
    other = replace(spec, encoder=replace(spec.encoder, kind="CLIP"))
    assert published_metadata(other)["ss_encoder"] == "CLIP", "anima_lora must not take it for its own encoder"


def test_a_file_that_norms_features_reads_an_inner_layer() -> None:
    assert detect(FILES["with every part"][0], {}).feature is Feature.HIDDEN_STATES
    assert detect(FILES["lucifer"][0], {}).feature is Feature.LAST_HIDDEN_STATE


def test_no_picture_adds_nothing_though_the_projections_have_biases() -> None:
    adapter = build_adapter(random_tensors(FILES["lucifer"][0]), {})
    features = torch.randn(1, 5, 24)
    for given, is_nothing in ((features, False), (torch.zeros_like(features), True)):
        _, value = adapter.kv(1, adapter.project(given))
        assert (value.abs().max() == 0) == is_nothing


def changed(kind: str, **tensors: Tensor) -> dict[str, Tensor]:
    return random_tensors(FILES[kind][0]) | tensors


@pytest.mark.parametrize(
    ("tensors", "error", "message"),
    [
        (
            changed("pe", **{"_pe_lora.blocks.0.down": torch.ones(2, 2)}),
            UnsupportedFamilyError,
            "changes its image enc",
        ),
        (changed("lucifer", **{"shared_ip_q_proj.weight": torch.ones(2, 2)}), UnsupportedFamilyError, "queries of its"),
        (changed("lucifer", **{"blocks.3.adaln_ip.1.weight": torch.ones(128, 128)}), UnreadableFileError, "2 missing"),
        (
            changed("pe", **{"resampler.queries": torch.ones(5, 16)}),
            UnreadableFileError,
            r"queries has shape \[5, 16\]",
        ),
        (
            changed(
                "lucifer", **{"lora.base_model.model.blocks.0.cross_attn.q_proj.lora_A.weight": torch.ones(2, 128)}
            ),
            UnreadableFileError,
            r"LoRA tensors of blocks\.0\.cross_attn\.q_proj of shape \[2, 128\]",
        ),
        (
            changed(
                "with a LoRA",
                **{"lora.base_model.model.blocks.0.cross_attn.q_proj.lora_A.default.weight": torch.ones(3, 128)},
            ),
            UnreadableFileError,
            r"LoRA tensors of blocks\.0\.cross_attn\.q_proj of shape \[128, 2\], \[3, 128\]",
        ),
    ],
    ids=["encoder LoRA", "own queries", "a gap", "flat queries", "half a LoRA", "two ranks"],
)
def test_what_does_not_fit_is_refused(tensors: dict[str, Tensor], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build_adapter(tensors, {})


@pytest.mark.parametrize(
    ("kind", "shapes", "metadata", "message"),
    [
        ("with every part", {"image_proj.null_tokens": (1, 4, 23)}, {}, r"null_tokens has shape \[1, 4, 23\]"),
        ("with every part", {"image_proj.null_tokens": (2, 4, 24)}, {}, r"null_tokens has shape \[2, 4, 24\]"),
        ("with every part", {"image_proj.null_tokens": ()}, {}, None),  # a file without
        ("with every part", {"image_proj.siglip_compressor.queries": (4, 20)}, {}, "20 wide, which 8 heads do not"),
        ("pe", {}, {"ss_num_heads": "3"}, "the blocks are 128 wide, which 3 heads do not divide"),
        ("pe", {}, {"ss_num_heads": "0"}, "the blocks are 128 wide, which 0 heads do not divide"),
        ("pe", {}, {"ss_resampler_heads": "0"}, "which 0 heads do not divide"),
        ("pe", {}, {"ss_resampler_heads": "5"}, "which 5 heads do not divide"),
    ],
)
def test_sizes_that_contradict_each_other_are_named(
    kind: str, shapes: Shapes, metadata: dict[str, str], message: str | None
) -> None:
    found = {canonical_name(name): shape for name, shape in FILES[kind][0].items()}
    assert found.keys() >= shapes.keys()
    found |= shapes
    if message is None:
        detect(found, metadata)
        return
    with pytest.raises(UnreadableFileError, match=message):
        detect(found, metadata)
