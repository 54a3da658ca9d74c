"""Kinds that do not run here are still converted, tensor by tensor, and the report says so."""

import re
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ipadapter_core.file.container import read_tensors
from ipadapter_core.file.seal import SEAL
from ipadapter_core.network.adapter import load_adapter, save_adapter
from ipadapter_trainer.convert.conversion import Conversion, convert_file
from ipadapter_trainer.convert.errors import ConvertError
from support.published import (
    Shapes,
    anima_lucifer,
    anima_pe,
    instantx_flux,
    instantx_sd35,
    linear,
    lora,
    nested,
    norm,
    random_tensors,
    sites,
    write_bin,
    write_safetensors,
    xlabs_flux,
)

WIDTH, TEXT, TOKENS = 6, 8, 4
STREAM = "ip_adapter_double_stream"


def xlabs(blocks: int = 19) -> dict[str, Tensor]:
    """XLabs' published layout at tiny sizes."""
    shapes = linear("ip_adapter_proj_model.proj", TOKENS * TEXT, 5) | norm("ip_adapter_proj_model.norm", TEXT)
    for block in range(blocks):
        for kv in "kv":
            shapes |= linear(f"double_blocks.{block}.processor.{STREAM}_{kv}_proj", WIDTH, TEXT)
    return random_tensors(shapes)


def renamed(tensors: Mapping[str, Tensor], projection: str, pattern: str) -> dict[str, Tensor]:
    """`pattern` makes a site's name of its block, k or v, and weight or bias."""
    new: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if match := re.fullmatch(rf"double_blocks\.(\d+)\.processor\.{STREAM}_([kv])_proj\.(.+)", name):
            new[pattern.format(block=match[1], kv=match[2], kind=match[3])] = tensor
        else:
            new[name.replace("ip_adapter_proj_model", projection)] = tensor
    return new


LAYOUTS = {
    "published": ("ip_adapter_proj_model", "double_blocks.{block}.processor." + STREAM + "_{kv}_proj.{kind}"),
    "trainer's file": ("image_proj", "ip_adapter.{block}." + STREAM + "_{kv}_proj.{kind}"),
    "accelerate": ("image_proj_model", "adapter_modules.{block}." + STREAM + "_{kv}_proj.{kind}"),
    "accelerate, by block": (
        "image_proj_model",
        "transformer.double_blocks.{block}.processor." + STREAM + "_{kv}_proj.{kind}",
    ),
    "diffusers": ("image_proj", "ip_adapter.{block}.to_{kv}_ip.{kind}"),
}


def convert(tensors: Mapping[str, Tensor], folder: Path) -> tuple[dict[str, Tensor], Conversion]:
    source = write_safetensors(folder / "source.safetensors", tensors)
    conversion = convert_file(source, folder / "converted.safetensors")
    return read_tensors(conversion.path).tensors, conversion


@pytest.mark.parametrize("layout", LAYOUTS)
def test_xlabs_layouts_become_the_published_one(tmp_path: Path, layout: str) -> None:
    published = xlabs()
    source = renamed(published, *LAYOUTS[layout])
    if layout == "accelerate, by block":
        source["transformer.double_blocks.0.img_attn.qkv.weight"] = torch.zeros(3, 3)
    tensors, conversion = convert(source, tmp_path)
    assert tensors.keys() == published.keys()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in published.items())
    assert conversion.to_json()["runs_here"] is False
    assert "XLabs FLUX" in str(conversion.unsupported)
    assert not conversion.path.with_suffix(".md").exists()


def test_xlabs_with_some_blocks_is_converted_only_where_the_blocks_are_named(tmp_path: Path) -> None:
    some = {name: tensor for name, tensor in xlabs().items() if not name.startswith("double_blocks.1")}
    tensors, _ = convert(some, tmp_path)
    assert tensors.keys() == some.keys()
    with pytest.raises(ConvertError, match="only counted"):
        convert(renamed(xlabs(7), *LAYOUTS["accelerate"]), tmp_path)


@pytest.mark.parametrize(
    "missing", ["ip_adapter_proj_model.norm.bias", f"double_blocks.3.processor.{STREAM}_v_proj.bias"]
)
def test_an_incomplete_xlabs_state_is_refused(tmp_path: Path, missing: str) -> None:
    tensors = xlabs()
    del tensors[missing]
    with pytest.raises(ConvertError, match="missing"):
        convert(tensors, tmp_path)
    assert not (tmp_path / "converted.safetensors").exists()


def faceid() -> dict[str, Tensor]:
    """FaceID: an identity projection, and LoRA on every attention layer, even numbers included."""
    proj = linear("image_proj.proj.0", 10, 5) | linear("image_proj.proj.2", TOKENS * TEXT, 10)
    proj |= norm("image_proj.norm", TEXT)
    return random_tensors(proj | sites((6, 12), TEXT) | lora((6, 12), TEXT, rank=2))


def test_faceid_keeps_its_lora(tmp_path: Path) -> None:
    tensors = faceid()
    source = write_bin(tmp_path / "faceid.bin", nested(tensors))
    conversion = convert_file(source, tmp_path / "faceid.safetensors")
    given = read_tensors(conversion.path).tensors
    assert given.keys() == tensors.keys()
    assert all(torch.equal(given[name], tensor) for name, tensor in tensors.items())
    assert "FaceID" in str(conversion.unsupported)
    with pytest.raises(ConvertError, match="leave --precision out"):
        convert_file(source, tmp_path / "faceid.safetensors", precision="fp16")


def test_faceid_training_states_are_numbered_by_their_place(tmp_path: Path) -> None:
    """Deduplicated accelerate states name processors by the UNet's blocks: attn1 is even, attn2 odd."""
    tensors, state = faceid(), {}
    for name, tensor in tensors.items():
        if match := re.fullmatch(r"ip_adapter\.(\d+)\.(.+)", name):
            layer, attention = divmod(int(match[1]), 2)
            block = ("down_blocks.0", "mid_block")[layer]
            path = f"unet.{block}.attentions.0.transformer_blocks.0.attn{attention + 1}.processor"
            state[f"{path}.{match[2]}"] = tensor
        else:
            state[name.replace("image_proj.", "image_proj_model.")] = tensor
    given, _ = convert(state, tmp_path)
    assert given.keys() == tensors.keys()
    assert all(torch.equal(given[name], tensor) for name, tensor in tensors.items())


def test_consecutive_numbers_of_another_family_are_no_mistake(tmp_path: Path) -> None:
    """InstantX numbers FLUX blocks 0, 1, 2 …"""
    proj = (
        linear("image_proj.proj.0", 10, 5) | linear("image_proj.proj.2", 4 * 4096, 10) | norm("image_proj.norm", 4096)
    )
    instantx = {f"ip_adapter.{n}.to_{kv}_ip.weight": (3, 4096) for n in range(3) for kv in "kv"}
    tensors = random_tensors(proj | instantx)
    given, conversion = convert(tensors, tmp_path)
    assert given.keys() == tensors.keys()
    assert "InstantX FLUX" in str(conversion.unsupported)


TINY = {"blocks": 2, "width": 128, "image": 24}
NODES_RUN: dict[str, Shapes] = {
    "XLabs FLUX": xlabs_flux(4, width=8, image=24, text=8),
    "InstantX FLUX": instantx_flux(**TINY, tokens=4, text=4096),
    "InstantX SD3.5": instantx_sd35(**TINY, tokens=5, dim=32, inner=64, time=16),
    "Anima LuciferTC": anima_lucifer(**TINY, rank=2, text=16),
    "Anima PE": anima_pe(**TINY, token=16),
}


@pytest.mark.parametrize("kind", NODES_RUN)
@pytest.mark.parametrize("saved_by", ["its author", "Studio"])
def test_what_the_nodes_run_keeps_all_that_its_file_says(kind: str, saved_by: str, tmp_path: Path) -> None:
    path, tensors = tmp_path / "source.safetensors", random_tensors(NODES_RUN[kind])
    write_safetensors(path, tensors, {"ipadapter.spec": '{"head_dim": 64}', "author": "somebody"})
    if saved_by == "Studio":
        save_adapter(load_adapter(path), path := tmp_path / "saved.safetensors")
    source = read_tensors(path)
    conversion = convert_file(path, tmp_path / "converted.safetensors")
    converted = read_tensors(conversion.path)
    assert converted.tensors.keys() == tensors.keys()
    assert all(torch.equal(converted.tensors[name], tensor) for name, tensor in tensors.items())
    assert {**converted.metadata, SEAL: ""} == {**source.metadata, SEAL: "", "format": "pt"}
    spec = load_adapter(path).spec
    assert load_adapter(conversion.path).spec == spec
    is_trained = kind != "InstantX FLUX"
    reason = "its tensors are renamed and nothing else" if is_trained else "the nodes run it, the trainer does not"
    why = f"this is {spec.family}, an adapter for {spec.base}: {reason}"
    assert why in str(conversion.unsupported)
    with pytest.raises(ConvertError, match=f"--precision fp16 for an adapter that convert only renames: {why}"):
        convert_file(path, tmp_path / "other.safetensors", precision="fp16")


def test_metadata_that_contradict_the_tensors_are_said(tmp_path: Path) -> None:
    path = tmp_path / "lies.safetensors"
    write_safetensors(path, xlabs(), {"ipadapter.spec": '{"num_tokens": 7, "layer": "x"}'})
    with pytest.raises(ValueError, match=r"Expected: .*What to do: "):
        convert_file(path, tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()
