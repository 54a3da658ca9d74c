"""Files of the project's own adapters for transformers: for which base model they are, and what they compute."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ipadapter_core.errors import UnreadableFileError, UnsupportedFamilyError
from ipadapter_core.file.container import read_tensors
from ipadapter_core.file.detect import detect
from ipadapter_core.file.spec import AdapterSpec, EncoderHint, Feature, Negative, Projection, ResamplerSpec
from ipadapter_core.network.adapter import IPAdapter, build_adapter, load_adapter, save_adapter
from support.published import PUBLISHED, random_tensors, studio, write_safetensors

TINY = studio(blocks=3, width=48, head=16, image=24, token=20, tokens=5, dim=32, inner=64)


def stated(**spec: Any) -> dict[str, str]:
    return {"ipadapter.spec": json.dumps(spec)}


@pytest.mark.parametrize("base", ["Z-Image", "Qwen-Image"])
def test_what_is_saved_loads_as_it_was(base: str, tmp_path: Path) -> None:
    tensors = random_tensors(TINY)
    write_safetensors(tmp_path / "first.safetensors", tensors, stated(backbone=base))
    first = load_adapter(tmp_path / "first.safetensors")
    assert (first.spec.backbone, first.spec.family, first.spec.head_dim) == (base, f"{base} plus", 16)
    save_adapter(first, tmp_path / "second.safetensors")
    saved = read_tensors(tmp_path / "second.safetensors").tensors
    assert saved.keys() == tensors.keys()
    assert all(torch.equal(saved[name], tensor) for name, tensor in tensors.items())
    assert load_adapter(tmp_path / "second.safetensors").spec == first.spec


def test_what_a_trainer_builds_by_its_spec_is_read_as_it_was(tmp_path: Path) -> None:
    spec = AdapterSpec(
        family="Z-Image plus",
        base="Z-Image",
        backbone="Z-Image",
        layout="IP-Adapter Studio",
        projection=Projection.RESAMPLER,
        feature=Feature.HIDDEN_STATES,
        layer=-3,
        negative=Negative.ZERO_PIXELS,
        encoder=EncoderHint(kind="SigLIP", image_size=384, crop="pad"),
        image_dim=24,
        cross_attention_dim=20,
        num_tokens=5,
        site_dims=(48,) * 4,
        head_dim=12,
        resampler=ResamplerSpec(dim=32, depth=2, num_heads=2, head_dim=8, ff_dim=128, num_queries=5),
    )
    adapter = IPAdapter(spec)
    save_adapter(adapter, tmp_path / "made.safetensors")
    again = load_adapter(tmp_path / "made.safetensors")
    assert again.spec == spec
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in adapter.state_dict().items())


def test_the_size_tells_the_base_where_metadata_does_not() -> None:
    assert detect(PUBLISHED["z_image"](), {}).backbone == "Z-Image"
    assert detect(PUBLISHED["qwen_image"](), {}).backbone == "Qwen-Image"
    assert detect(PUBLISHED["z_image"](), stated(backbone="Qwen-Image")).backbone == "Qwen-Image"
    with pytest.raises(
        UnsupportedFamilyError, match=r"for a base model it does not name \(3 attention layers, 48 wide"
    ):
        detect(TINY, {})


@pytest.mark.parametrize("name", ["FLUX", "UNet", "Z-Image 2"])
def test_another_base_is_refused_with_those_there_are(name: str) -> None:
    with pytest.raises(UnsupportedFamilyError, match=rf"for {name} \(3 attention .*: one for Z-Image or Qwen-Image\."):
        detect(TINY, stated(backbone=name))


@pytest.mark.parametrize("named", [3, ["Z-Image"], None])
def test_a_base_that_is_no_name_is_refused(named: object) -> None:
    with pytest.raises((UnreadableFileError, UnsupportedFamilyError)):
        detect(TINY, stated(backbone=named))
    with pytest.raises(UnreadableFileError, match="not a name"):
        detect(PUBLISHED["z_image"](), stated(backbone=named))


def test_heads_come_from_the_norm_of_the_keys() -> None:
    wrong = TINY | {"ip_adapter.0.norm_ip_k.weight": (13,)}
    with pytest.raises(
        UnreadableFileError, match=r"heads of size 13 \(ip_adapter\.0\.norm_ip_k\.weight\) do not divide 48"
    ):
        detect(wrong, stated(backbone="Z-Image"))
    with pytest.raises(UnreadableFileError, match=r"ip_adapter\.\d\.norm_ip_k\.weight is \[16\], not \[24\]"):
        build_adapter(random_tensors(TINY), stated(backbone="Z-Image", head_dim=24))
    with pytest.raises(UnreadableFileError, match=r"norm_ip_k\.weight missing"):
        build_adapter(
            random_tensors({name: of for name, of in TINY.items() if name != "ip_adapter.1.norm_ip_k.weight"}),
            stated(backbone="Z-Image"),
        )


def test_a_gap_in_the_numbers_is_found() -> None:
    gap = {name: of for name, of in TINY.items() if not name.startswith("ip_adapter.1.")}
    with pytest.raises(UnreadableFileError, match="do not run 0, 1, 2"):
        detect(gap, stated(backbone="Z-Image"))


def test_keys_have_the_norm_and_values_are_as_projected() -> None:
    tensors = random_tensors(TINY, dtype=torch.float64)
    adapter = build_adapter(tensors, stated(backbone="Qwen-Image"))
    tokens = torch.randn(2, 5, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for number in range(3):
        to_k, to_v, norm = (
            tensors[f"ip_adapter.{number}.{part}.weight"] for part in ("to_k_ip", "to_v_ip", "norm_ip_k")
        )
        raw = (tokens @ to_k.T).reshape(2, 5, 3, 16)
        key, value = adapter.kv(number, tokens)
        wanted = raw * norm / (raw.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt()
        torch.testing.assert_close(key.reshape(wanted.shape), wanted, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(value, tokens @ to_v.T, rtol=1e-12, atol=1e-12)
