"""Embeds: combined as the formulas say, saved and read without running code."""

import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ipadapter_core.errors import BadInputError, MismatchError, UnreadableFileError
from ipadapter_core.file.container import write_safetensors
from ipadapter_core.legacy.embeds import (
    EMBEDS_COMBINATIONS,
    check_embeds,
    combine_embeds,
    combine_sides,
    concat_embeds,
    holds_embeds,
    read_embeds,
    save_embeds,
)

A, B, C = [1.0, 3.0, 0.0], [2.0, -4.0, 0.0], [2.0, 1.0, 0.0]
EXPECTED = {
    "concat": [A, B, C],
    "add": [[5.0, 0.0, 0.0]],
    "subtract": [[-1.0, 4.5, 0.0]],
    "average": [[5 / 3, 0.0, 0.0]],
    "norm average": [[5 / 9, 0.0, 0.0]],  # lengths over the references: 3, √26, 0
    "max": [[2.0, 3.0, 0.0]],
    "min": [[1.0, -4.0, 0.0]],
}


@pytest.mark.parametrize("method", EXPECTED)
def test_combination(method: str):
    assert torch.allclose(combine_embeds(torch.tensor([A, B, C]), method), torch.tensor(EXPECTED[method]))


@pytest.mark.parametrize("method", EXPECTED)
def test_positions_are_combined_each_for_itself(method: str):
    embeds = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    flat = combine_embeds(embeds.flatten(1), method)
    assert torch.equal(combine_embeds(embeds, method), flat.unflatten(1, (5, 4)))


def test_one_reference_alone_is_unchanged_by_subtract():
    assert torch.equal(combine_embeds(torch.tensor([A]), "subtract"), torch.tensor([A]))


def test_every_method_is_tested():
    assert set(EXPECTED) == set(EMBEDS_COMBINATIONS)
    with pytest.raises(BadInputError, match=r"'product'.*concat"):
        combine_embeds(torch.zeros(1, 2), "product")


def test_sides_are_combined_but_for_concat_and_a_single_reference():
    positive, negative = torch.tensor([A, B, C]), torch.tensor([C, B])
    single = positive[:1]
    for references, method in ((positive, "concat"), (single, "average")):
        kept = combine_sides(references, negative, method)
        assert kept[0] is references
        assert kept[1] is negative
    combined, first = combine_sides(positive, negative, "add")
    assert torch.equal(combined, torch.tensor(EXPECTED["add"]))
    assert first.tolist() == [C]


def test_parts_must_be_of_one_kind():
    assert concat_embeds([torch.ones(1, 4), torch.zeros(2, 4)]).tolist() == [[1] * 4, [0] * 4, [0] * 4]
    with pytest.raises(MismatchError, match=r"\[1, 4\], \[1, 5, 4\]"):
        concat_embeds([torch.zeros(1, 4), torch.zeros(1, 5, 4)])


@pytest.mark.parametrize("shape", [(2, 8), (1, 5, 8)])
def test_what_is_saved_is_read(tmp_path: Path, shape: tuple[int, ...]):
    embeds = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    save_embeds(tmp_path / "a.safetensors", embeds)
    assert torch.equal(read_embeds(tmp_path / "a.safetensors"), embeds)
    torch.save(embeds, tmp_path / "old.ipadpt")
    assert torch.equal(read_embeds(tmp_path / "old.ipadpt"), embeds)
    assert sorted(path.name for path in tmp_path.iterdir() if holds_embeds(path)) == ["a.safetensors", "old.ipadpt"]


def test_other_files_are_no_embeds(tmp_path: Path):
    write_safetensors(tmp_path / "model.safetensors", {"weight": torch.zeros(2, 2)}, {})
    (tmp_path / "broken.safetensors").write_bytes(b"no")
    (tmp_path / "picture.png").write_bytes(b"no")
    assert [path.name for path in tmp_path.iterdir() if holds_embeds(path)] == []
    with pytest.raises(UnreadableFileError, match=r"model.safetensors holds something else"):
        read_embeds(tmp_path / "model.safetensors")


class Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return (Path("evil").touch, ())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"embeds": torch.zeros(1, 4)}, "holds something else"),
        (torch.zeros(4), r"a tensor of shape \[4\]"),
        (torch.zeros(1, 4, dtype=torch.long), "a tensor of shape"),
    ],
)
def test_pickles_of_something_else(tmp_path: Path, content: object, message: str):
    torch.save(content, tmp_path / "a.ipadpt")
    with pytest.raises(UnreadableFileError, match=message):
        read_embeds(tmp_path / "a.ipadpt")


def test_no_code_of_a_pickle_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.ipadpt").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(UnreadableFileError):
        read_embeds(tmp_path / "a.ipadpt")
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("cut", [0, 10, 300])
def test_truncated_file_is_named(tmp_path: Path, cut: int):
    torch.save(torch.zeros(1, 400), tmp_path / "whole.ipadpt")
    (tmp_path / "cut.ipadpt").write_bytes((tmp_path / "whole.ipadpt").read_bytes()[:cut])
    with pytest.raises(UnreadableFileError, match=r"cut\.ipadpt"):
        read_embeds(tmp_path / "cut.ipadpt")


@pytest.mark.parametrize("wrong", [None, [torch.zeros(1, 4)], torch.zeros(4), torch.zeros(1, 1, 1, 4)])
def test_what_is_no_embeds_on_a_socket(wrong: Tensor | None):
    with pytest.raises(BadInputError, match="EMBEDS that are"):
        check_embeds(wrong)
