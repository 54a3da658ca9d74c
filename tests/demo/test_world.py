"""What the demo's models are taught: the held-out set, the pairs, packed weights, the loop."""

import base64
import hashlib
import io
import itertools
import tarfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from demo.world import pictures as emoji
from demo.world.pack import FLOAT8, pack, unpack
from demo.world.packages import Package, PackageError
from demo.world.packages import unpack as unpack_package
from demo.world.pairs import pairs
from demo.world.pictures import base_of, is_held_out, plain
from demo.world.training import STATE, Recipe, train
from support.letters import letters

CODES = [f"{number:x}" for number in range(0x1F300, 0x1F700)]


@pytest.mark.parametrize(
    ("code", "base"),
    [
        ("1f98a", "1f98a"),
        ("1f44b-1f3fd", "1f44b"),  # waving hand, a skin tone
        ("1f575-200d-2640", "1f575"),  # woman detective
        ("1f469-1f3ff-200d-1f680", "1f9d1-200d-1f680"),  # woman astronaut, a skin tone
        ("1f468-200d-1f680", "1f9d1-200d-1f680"),  # man astronaut
        ("2640", "2640"),  # the sign itself
    ],
)
def test_variants_go_with_their_base(code: str, base: str) -> None:
    assert base_of(code) == base


def test_packages_are_joined_without_variation_selectors() -> None:
    assert plain("0023-FE0F-20E3") == plain("0023-20e3") == "0023-20e3"


def test_a_tenth_is_held_out_and_it_is_always_the_same() -> None:
    held_out = [code for code in CODES if is_held_out(code)]
    assert 0.07 < len(held_out) / len(CODES) < 0.13
    assert held_out[:4] == ["1f306", "1f307", "1f316", "1f317"]  # a change would show the adapters what judges them


def test_a_picture_with_alpha_is_laid_on_white() -> None:
    drawn = emoji.on_white(Image.new("RGBA", (256, 256), (255, 0, 0, 0)))
    assert drawn.size == (64, 64)
    assert drawn.getpixel((10, 10)) == (255, 255, 255)


def test_adapters_are_not_taught_what_is_held_out() -> None:
    taught = list(pairs(letters()))
    files = {file for target, reference, _ in taught for file in (target, reference)}
    assert files == {picture.file for picture in letters() if not picture.is_held_out}


def test_without_text_the_reference_is_the_target_and_a_style_word_parts_them() -> None:
    taught = list(pairs(letters()))
    assert all(target == reference for target, reference, caption in taught if not caption)
    crossed = {(target, reference, caption) for target, reference, caption in taught if caption == "3d emoji"}
    assert ("3d/a.png", "flat/a.png", "3d emoji") in crossed
    assert Counter(caption for _, _, caption in taught)[""] == 3


def test_packed_weights_come_back_within_float8() -> None:
    torch.manual_seed(0)
    tensors = {"conv.weight": torch.randn(8, 4, 3, 3) * torch.logspace(-3, 1, 8)[:, None, None, None]}
    tensors["conv.bias"] = torch.randn(8)
    packed = pack(tensors)
    assert packed["conv.weight"].dtype == FLOAT8
    unpacked = unpack(packed)
    assert set(unpacked) == set(tensors)
    assert torch.equal(unpacked["conv.bias"], tensors["conv.bias"].half())
    error = (unpacked["conv.weight"].float() - tensors["conv.weight"]).flatten(1).norm(dim=1)
    assert (error / tensors["conv.weight"].flatten(1).norm(dim=1)).max() < 0.04  # per channel, large or small


def test_a_channel_of_zeros_stays_zero() -> None:
    assert not unpack(pack({"weight": torch.zeros(2, 3)}))["weight"].any()


def test_a_run_that_was_cut_off_ends_with_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("demo.world.training.SAVE_EVERY", 4)
    recipe = Recipe(steps=10, learning_rate=0.1, warmup=3, average=0.5)
    whole = _train(recipe, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        _train(recipe, tmp_path / "cut", stop_at=7)
    assert (tmp_path / "cut" / STATE).exists()
    resumed = _train(recipe, tmp_path / "cut")
    assert torch.equal(whole, resumed)
    losses = [(tmp_path / run / "losses.jsonl").read_text().count("\n") for run in ("whole", "cut")]
    assert losses == [10, 10]
    assert torch.equal(load_file(tmp_path / "cut" / "result.safetensors")["weight"], resumed)


def test_a_finished_model_is_read_and_not_trained_again(tmp_path: Path) -> None:
    recipe = Recipe(steps=3, learning_rate=0.1, warmup=1)
    made = _train(recipe, tmp_path)
    assert torch.equal(_train(replace(recipe, steps=100), tmp_path, stop_at=0), made)


def test_a_package_that_is_not_the_pinned_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package, archive = _package(tmp_path)
    assert (unpack_package(package, tmp_path) / "package" / "a.txt").read_text() == "a"  # lies there already
    other = replace(package, version="2", sha512="other")
    monkeypatch.setattr("demo.world.packages.requests.get", lambda *_, **__: _Response(archive.read_bytes()))
    with pytest.raises(PackageError, match=r"SHA-512.*not other as pinned"):
        unpack_package(other, tmp_path)
    assert not list(tmp_path.glob("*2*"))


def _train(recipe: Recipe, folder: Path, stop_at: int | None = None) -> torch.Tensor:
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    steps = itertools.count()

    def loss_at(model: nn.Module, generator: torch.Generator) -> torch.Tensor:
        if next(steps) == stop_at:
            raise KeyboardInterrupt
        x = torch.randn(5, 3, generator=generator)
        return (model(x) - x.sum(1, keepdim=True)).square().mean()

    train("test", model, loss_at, recipe, folder)
    return model.weight.detach()


def _package(folder: Path) -> tuple[Package, Path]:
    archive = folder / "tiny-1.tgz"
    with tarfile.open(archive, "w:gz") as content:
        entry = tarfile.TarInfo("package/a.txt")
        entry.size = 1
        content.addfile(entry, io.BytesIO(b"a"))
    digest = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    return Package("@scope/tiny", "1", digest, "package"), archive


class _Response:
    """What requests gives for a file."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.headers = {"Content-Length": str(len(content))}

    def __enter__(self) -> "_Response":
        return self

    def __exit__(self, *_: object) -> None: ...

    def raise_for_status(self) -> None: ...

    def iter_content(self, _: int) -> list[bytes]:
        return [self.content]
