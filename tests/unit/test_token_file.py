"""Image tokens in files: equal after reading, of one adapter, and refused with a reason where they are not."""

from pathlib import Path
from typing import Any

import pytest
import torch

from ipadapter_core.branch.token_file import holds_tokens, read_tokens, save_tokens
from ipadapter_core.branch.tokens import ImageTokens, combine, features_as_tokens
from ipadapter_core.errors import MismatchError, UnreadableFileError
from ipadapter_core.file.container import read_tensors
from ipadapter_core.network.adapter import IPAdapter, build_adapter
from ipadapter_core.network.origin import origin_of
from support.published import instantx_sd35, random_tensors, tiny_adapter, write_safetensors

SHAPES = {
    "plain": tiny_adapter("base", site_dims=(8, 16, 16), cross_attention_dim=8, image_dim=12),
    "timed": instantx_sd35(blocks=2, width=64, image=12, tokens=5, dim=32, inner=64, time=16),
}


@pytest.fixture(params=SHAPES)
def adapter(request: pytest.FixtureRequest) -> IPAdapter:
    return build_adapter(random_tensors(SHAPES[request.param]), {})


@pytest.fixture
def tokens(adapter: IPAdapter) -> ImageTokens:
    sides = [torch.randn(rows, 4, 12 if adapter.spec.is_timed else 8) for rows in (3, 1)]
    return features_as_tokens(*sides, "a") if adapter.spec.is_timed else ImageTokens(*sides, "a")


def test_what_is_saved_is_read_bit_for_bit(adapter: IPAdapter, tokens: ImageTokens, tmp_path: Path) -> None:
    path, origin = tmp_path / "tokens.safetensors", origin_of(adapter)
    both = combine([tokens, tokens], "average", [1.0, 0.5])
    for given in (tokens, both):
        save_tokens(path, given, origin, adapter.spec.family)
        read = read_tokens(path, adapter.spec, origin, "b")
        assert torch.equal(read.cond, given.cond)
        assert torch.equal(read.uncond, given.uncond)
        assert read.mix == given.mix
        assert read.adapter_id == "b"
    assert holds_tokens(path)
    assert path.stat().st_size < 20_000


def test_an_adapter_is_known_by_its_weights_in_whatever_type_and_file(adapter: IPAdapter) -> None:
    tensors = random_tensors(SHAPES["timed" if adapter.spec.is_timed else "plain"], dtype=torch.float16)
    origin = origin_of(build_adapter(tensors, {}))
    assert origin == origin_of(build_adapter({name: tensor.float() for name, tensor in tensors.items()}, {}))
    assert origin == origin_of(build_adapter(dict(reversed(tensors.items())), {}))
    first, last = (next(name for name in names if "ip_adapter" not in name) for names in (tensors, reversed(tensors)))
    sites = [name for name in tensors if "ip_adapter" in name]
    for changed in (first, last, sites[0], sites[-1]):
        other = tensors | {changed: tensors[changed] + 1}
        assert origin_of(build_adapter(other, {})) != origin, changed


def test_tokens_of_another_adapter_are_refused(adapter: IPAdapter, tokens: ImageTokens, tmp_path: Path) -> None:
    path = tmp_path / "tokens.safetensors"
    save_tokens(path, tokens, "another", "SDXL plus")
    with pytest.raises(MismatchError, match=r"tokens for another adapter \(SDXL plus\)"):
        read_tokens(path, adapter.spec, origin_of(adapter), "a")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cond": None}, "a tensor missing"),
        ({"cond": torch.ones(2, 4, 7)}, r"shape \[2, 4, 7\]"),
        ({"cond": torch.ones(4, 8)}, r"shape \[4, 8\]"),
        ({"cond": torch.ones(1, 3, 8)}, r"sides of \[1, 3, 8\] and \[1, 4, 8\]"),
        ({"uncond": torch.ones(1, 4, 8, dtype=torch.int32)}, "type torch.int32"),
        ({"uncond": torch.full((1, 4, 8), torch.nan)}, "NaN"),
        ({"mix.cond": torch.ones(1, 1)}, "a combination of references"),
    ],
    ids=lambda value: None if isinstance(value, dict) else value[:12],
)
def test_damaged_files(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    adapter = build_adapter(random_tensors(SHAPES["plain"]), {})
    path = tmp_path / "tokens.safetensors"
    save_tokens(path, ImageTokens(torch.ones(1, 4, 8), torch.zeros(1, 4, 8), "a"), origin_of(adapter), "base")
    file = read_tensors(path)
    tensors = {name: tensor.clone() for name, tensor in file.tensors.items()} | changes
    kept = {name: text for name, text in file.metadata.items() if name == "ipadapter.tokens"}
    write_safetensors(path, {name: tensor for name, tensor in tensors.items() if tensor is not None}, kept)
    with pytest.raises(ValueError, match=message):
        read_tokens(path, adapter.spec, origin_of(adapter), "a")


@pytest.mark.parametrize("about", ["", "[]", "{", '{"adapter": 1, "family": "x"}', '{"adapter": "x"}'])
def test_files_of_something_else(about: str, tmp_path: Path) -> None:
    adapter = build_adapter(random_tensors(SHAPES["plain"]), {})
    path = write_safetensors(tmp_path / "other.safetensors", {"cond": torch.ones(1)}, {"ipadapter.tokens": about})
    with pytest.raises(UnreadableFileError, match="holds no image tokens"):
        read_tokens(path, adapter.spec, "x", "a")
    assert not holds_tokens(write_safetensors(tmp_path / "plain.safetensors", {"cond": torch.ones(1)}, {}))
    assert not holds_tokens(tmp_path / "missing.safetensors")
    assert not holds_tokens(path.rename(path.with_suffix(".part"))), "a file that is still written"
