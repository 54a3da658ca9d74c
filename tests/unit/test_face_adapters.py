"""Adapters that read faces: every published file builds, tokens follow the formula, LoRA tensors are kept apart."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ipadapter_core.backbone.sites import Site, Sites
from ipadapter_core.backbone.unet import UNET
from ipadapter_core.backbone.unet_lora import lora_weights
from ipadapter_core.errors import MismatchError, UnreadableFileError
from ipadapter_core.file.spec import SPEC_KEY, Feature
from ipadapter_core.network.adapter import IPAdapter, build_adapter, load_adapter, save_adapter
from support.published import PUBLISHED, meta_tensors, random_tensors, tiny_face_adapter

SITE_DIMS = (32, 64)
KINDS = ("faceid", "faceid plus", "portrait", "unnorm", "kolors")
FACES = [name for name in PUBLISHED if name.startswith(("faceid", "portrait", "kolors"))]
IDENTITY, FACE, TEXT = 10, 24, 16


def stating(**values: object) -> dict[str, str]:
    return {SPEC_KEY: json.dumps(values)}


STATED = {kind: stating(resampler={"head_dim": 8}) for kind in KINDS} | {
    "unnorm": stating(projection="resampler", feature="identity", resampler={"head_dim": 8})
}


def make(kind: str, **options: int) -> tuple[IPAdapter, dict[str, Tensor]]:
    shapes = tiny_face_adapter(kind, site_dims=SITE_DIMS, identity=IDENTITY, face=FACE, **options)
    tensors = random_tensors(shapes, dtype=torch.float64)
    return build_adapter(tensors, STATED[kind]), tensors


@pytest.mark.parametrize("name", FACES)
def test_every_published_file_builds_with_all_its_tensors(name: str) -> None:
    published = PUBLISHED[name]()
    adapter = build_adapter(meta_tensors(published), {})
    assert len(adapter.state_dict()) + len(adapter.lora) == len(published)
    assert bool(adapter.lora) == name.startswith("faceid")


@pytest.mark.parametrize("kind", KINDS)
def test_saving_and_loading_keeps_spec_tensors_and_lora(kind: str, tmp_path: Path) -> None:
    adapter, tensors = make(kind)
    save_adapter(adapter, tmp_path / "adapter.safetensors")
    again = load_adapter(tmp_path / "adapter.safetensors")
    assert again.spec == adapter.spec
    kept = {**again.state_dict(), **again.lora}
    assert kept.keys() == tensors.keys()
    assert all(torch.equal(kept[name], tensor) for name, tensor in tensors.items())


def test_an_adapter_with_lora_is_a_faceid_and_one_without_a_portrait() -> None:
    assert make("faceid")[0].spec.family.endswith(" FaceID")
    assert make("portrait")[0].spec.family.endswith(" FaceID portrait")


@pytest.mark.parametrize("tokens", [1, 4, 16])
def test_the_identity_alone_makes_the_tokens_of_portrait(tokens: int) -> None:
    adapter, tensors = make("portrait", num_tokens=tokens)
    identities = torch.randn(2, IDENTITY, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    weights = {name.removeprefix("image_proj."): tensor for name, tensor in tensors.items()}
    hidden = torch.nn.functional.gelu(identities @ weights["proj.0.weight"].T + weights["proj.0.bias"])
    rows = (hidden @ weights["proj.2.weight"].T + weights["proj.2.bias"]).reshape(2, tokens, TEXT)
    deviation = (rows.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()
    normed = (rows - rows.mean(-1, keepdim=True)) / deviation * weights["norm.weight"] + weights["norm.bias"]
    torch.testing.assert_close(adapter.project_faces(identities), normed, rtol=0, atol=1e-12)


def test_unnorm_is_a_resampler_that_reads_the_identity_as_one_position() -> None:
    adapter, _ = make("unnorm")
    assert adapter.spec.feature is Feature.IDENTITY
    assert adapter.spec.face.is_normed is False
    identities = torch.randn(3, IDENTITY, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = torch.cat([adapter.image_proj(row.reshape(1, 1, IDENTITY)) for row in identities])
    torch.testing.assert_close(adapter.project_faces(identities), expected, rtol=0, atol=1e-12)


def test_kolors_tokens_are_as_wide_as_its_text_encoder_not_as_its_attention() -> None:
    adapter, _ = make("kolors")
    assert (adapter.spec.token_dim, adapter.spec.cross_attention_dim) == (2 * TEXT, TEXT)
    identities, features = torch.zeros(1, IDENTITY).double(), torch.zeros(1, 5, FACE).double()
    assert adapter.project_faces(identities, features, 1.0).shape == (1, 4, 2 * TEXT)


@pytest.mark.parametrize("has_shortcut", [True, False])
def test_metadata_tells_the_version_of_faceid_plus(has_shortcut: bool) -> None:
    shapes = tiny_face_adapter("faceid plus", site_dims=SITE_DIMS)
    stated = stating(resampler={"head_dim": 8}, face={"has_shortcut": has_shortcut})
    assert build_adapter(meta_tensors(shapes), STATED["faceid plus"]).spec.face.has_shortcut is None
    assert build_adapter(meta_tensors(shapes), stated).spec.face.has_shortcut is has_shortcut


@pytest.mark.parametrize("face", ["v2", {"has_shortcut": "v2"}, 7])
def test_metadata_about_the_face_that_nobody_understands_is_refused(face: object) -> None:
    shapes = tiny_face_adapter("faceid plus", site_dims=SITE_DIMS)
    with pytest.raises(UnreadableFileError, match="has_shortcut"):
        build_adapter(meta_tensors(shapes), stating(resampler={"head_dim": 8}, face=face))


def test_a_projection_whose_rows_make_no_whole_tokens_is_refused() -> None:
    shapes = tiny_face_adapter("portrait", site_dims=SITE_DIMS) | {"image_proj.proj.2.weight": (30, 20)}
    with pytest.raises(UnreadableFileError, match="30 rows, not a multiple"):
        build_adapter(meta_tensors(shapes), {})


@pytest.mark.parametrize("missing", ["to_q_lora.up", "to_out_lora.down"])
def test_half_a_lora_pair_is_refused(missing: str) -> None:
    shapes = tiny_face_adapter("faceid", site_dims=SITE_DIMS)
    del shapes[f"ip_adapter.2.{missing}.weight"]
    with pytest.raises(UnreadableFileError, match="without a partner"):
        build_adapter(meta_tensors(shapes), {})


def test_a_lora_for_more_layers_than_there_are_is_refused() -> None:
    shapes = tiny_face_adapter("faceid", site_dims=SITE_DIMS)
    shapes |= {"ip_adapter.4.to_q_lora.down.weight": (3, 32), "ip_adapter.4.to_q_lora.up.weight": (32, 3)}
    with pytest.raises(UnreadableFileError, match="only 4 attention layers"):
        build_adapter(meta_tensors(shapes), {})


class _Attention(torch.nn.Module):
    def __init__(self, dim: int, context: int) -> None:
        super().__init__()
        self.to_q, self.to_k, self.to_v = (torch.nn.Linear(size, dim) for size in (dim, context, context))
        self.to_out = torch.nn.Sequential(torch.nn.Linear(dim, dim))


def unet() -> tuple[torch.nn.Module, Sites]:
    """Two transformer blocks under CompVis' names; the middle one comes last in checkpoint order."""
    model, sites = torch.nn.Module(), []
    for index, (path, dim) in enumerate((("input_blocks.1.1", 32), ("middle_block.1", 64))):
        place = model
        for name in f"{path}.transformer_blocks.0".split("."):
            if name not in place._modules:
                place.add_module(name, torch.nn.Module())
            place = place._modules[name]
        place.attn1, place.attn2 = _Attention(dim, dim), _Attention(dim, TEXT)
        block, block_id = path.split("_")[0], int(path.startswith("input"))
        address = (block, block_id, 0)
        sites.append(Site(index=index, address=address, depth=index / 2, heads=2, head_dim=dim // 2, context_dim=TEXT))
    return model, Sites(UNET, tuple(sites))


def test_lora_tensors_find_their_layers() -> None:
    """Even numbers are self-attention, odd ones cross-attention, in checkpoint order."""
    adapter, tensors = make("faceid")
    changes = lora_weights(adapter.lora, *unet())
    prefixes = ("input_blocks.1.1", "input_blocks.1.1", "middle_block.1", "middle_block.1")
    layers = {"q": "to_q", "k": "to_k", "v": "to_v", "out": "to_out.0"}
    assert len(changes) == 4 * len(prefixes)
    for number, prefix in enumerate(prefixes):
        for part, layer in layers.items():
            change = changes[f"{prefix}.transformer_blocks.0.attn{1 + number % 2}.{layer}.weight"]
            for side in ("down", "up"):
                expected = tensors[f"ip_adapter.{number}.to_{part}_lora.{side}.weight"]
                assert getattr(change, side) is expected


def test_a_lora_for_another_model_is_refused() -> None:
    adapter, _ = make("faceid")
    model, sites = unet()
    model.middle_block._modules["1"].transformer_blocks._modules["0"].attn1.to_q = torch.nn.Linear(64, 48)
    with pytest.raises(MismatchError, match="no layer"):
        lora_weights(adapter.lora, model, sites)
