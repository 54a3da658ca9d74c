"""A path that leads to no ordinary file is a message like any broken file; and what is broken is called by its name."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ipadapter_core.encoder.known import read_encoder_file, read_encoder_folder
from ipadapter_core.errors import UnreadableFileError
from ipadapter_core.file.container import file_identity, read_header, read_pickle, read_tensors
from ipadapter_core.legacy.embeds import holds_embeds, read_embeds
from ipadapter_core.network.adapter import load_adapter, read_spec
from support.bad_files import BAD_FILES, good_tensors, html_page, truncated_safetensors
from support.published import nested, write_bin, write_safetensors
from support.unreadable import UNREADABLE, no_waiting  # noqa: F401 - a fixture

pytestmark = pytest.mark.usefixtures("no_waiting")

READERS: dict[str, Callable[[Path], object]] = {
    "tensors": read_tensors,
    "header": read_header,
    "pickle": read_pickle,
    "spec": read_spec,
    "encoder": read_encoder_file,
    "embeds": read_embeds,
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", UNREADABLE)
@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_what_is_no_ordinary_file_is_refused_with_the_reason(
    tmp_path: Path, kind: str, reader: str, suffix: str
) -> None:
    make, reason = UNREADABLE[kind]
    path = make(tmp_path / f"a{suffix}")
    with pytest.raises(UnreadableFileError) as caught:
        READERS[reader](path)
    assert reason in caught.value.found
    assert path.name in caught.value.found


@pytest.mark.parametrize("kind", set(UNREADABLE) - {"read error"})
def test_it_has_no_identity(tmp_path: Path, kind: str) -> None:
    make, reason = UNREADABLE[kind]
    with pytest.raises(UnreadableFileError, match=reason):
        file_identity(make(tmp_path / "a.safetensors"))


@pytest.mark.parametrize("suffix", [".safetensors", ".ipadpt"])
@pytest.mark.parametrize("kind", set(UNREADABLE) - {"read error"})
def test_it_holds_no_embeds(tmp_path: Path, kind: str, suffix: str) -> None:
    assert not holds_embeds(UNREADABLE[kind][0](tmp_path / f"a{suffix}"))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("kind", UNREADABLE)
def test_an_encoder_folder_with_one_in_it_is_refused(tmp_path: Path, kind: str, name: str) -> None:
    make, reason = UNREADABLE[kind]
    encoder_folder(tmp_path)
    (tmp_path / name).unlink()
    make(tmp_path / name)
    with pytest.raises(UnreadableFileError) as caught:
        read_encoder_folder(tmp_path)
    assert reason in caught.value.found


def test_what_transformers_does_not_read_does_not_matter(tmp_path: Path) -> None:
    encoder_folder(tmp_path)
    (tmp_path / "another.safetensors").symlink_to("nowhere")
    assert read_encoder_folder(tmp_path).kind == "DINOv2"


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    encoder_folder(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "model-00001-of-00002.safetensors")
    shards = '{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}'
    (tmp_path / "model.safetensors.index.json").write_text(shards)
    with pytest.raises(UnreadableFileError, match=r"no file at .*model-00002-of-00002\.safetensors"):
        read_encoder_folder(tmp_path)


def encoder_folder(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "dinov2"}')
    (folder / "model.safetensors").write_bytes(len(b"{}").to_bytes(8, "little") + b"{}")


NOUNS: dict[str, Callable[[Path], object]] = {
    "adapter": load_adapter,
    "image encoder": lambda path: read_encoder_file(path, is_whole=True),
    "embeds": read_embeds,
    "LoRA": lambda path: read_tensors(path, "LoRA"),
}


@pytest.mark.parametrize("noun", NOUNS)
@pytest.mark.parametrize("name", ["empty_bin", "truncated_bin", "truncated_safetensors", "long_header", "html_page"])
def test_a_broken_file_is_called_what_it_should_be(tmp_path: Path, noun: str, name: str) -> None:
    with pytest.raises(UnreadableFileError) as caught:
        NOUNS[noun](BAD_FILES[name](tmp_path))
    assert f"is no usable {noun} file" in str(caught.value)
    assert noun == "adapter" or "adapter" not in str(caught.value)


@pytest.mark.parametrize("noun", NOUNS)
def test_a_missing_file_and_a_pickle_with_code_are_too(tmp_path: Path, noun: str) -> None:
    for path in (tmp_path / "gone.bin", BAD_FILES["code_in_bin"](tmp_path)):
        with pytest.raises(UnreadableFileError) as caught:
            NOUNS[noun](path)
        assert f"Expected: {'a' if noun == 'LoRA' else 'an'} {noun} file" in str(caught.value)


def test_an_encoder_whose_data_ends_early_is_known_by_its_size(tmp_path: Path) -> None:
    with pytest.raises(UnreadableFileError, match=r"its last \d+ bytes are missing"):
        read_encoder_file(truncated_safetensors(tmp_path), is_whole=True)
    with pytest.raises(UnreadableFileError, match=r"its last \d+ bytes are missing"):
        read_spec(truncated_safetensors(tmp_path))


def test_a_page_in_place_of_an_embeds_pickle_is_called_one(tmp_path: Path) -> None:
    path = html_page(tmp_path).rename(tmp_path / "page.ipadpt")
    with pytest.raises(UnreadableFileError, match="no usable embeds file"):
        read_embeds(path)


def maps(path: Path) -> bool:
    """Whether this process has a file mapped into its memory."""
    return os.path.realpath(path) in Path("/proc/self/maps").read_text()


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="asks Linux what is mapped")
@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
@pytest.mark.parametrize("can_map", [True, False])
def test_tensors_are_mapped_if_they_may_be(tmp_path: Path, suffix: str, can_map: bool) -> None:
    path = tmp_path / f"a{suffix}"
    if suffix == ".bin":
        write_bin(path, nested(good_tensors()))
    else:
        write_safetensors(path, good_tensors())
    adapter = load_adapter(path, can_map=can_map)
    assert maps(path) == can_map
    assert adapter.state_dict().keys() == good_tensors().keys()
