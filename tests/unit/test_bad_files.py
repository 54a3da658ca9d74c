"""A file that cannot be used says so in words a user can act on, and no code in it ever runs."""

import contextlib
import pickle
from pathlib import Path

import pytest
import torch

from ipadapter_core.branch.kv import project_tokens
from ipadapter_core.branch.tokens import ImageTokens
from ipadapter_core.errors import BadInputError, IPAdapterError, UnknownCheckpointError, UnreadableFileError
from ipadapter_core.file.container import read_header, read_tensors
from ipadapter_core.network.adapter import build_adapter, load_adapter
from support.bad_files import BAD_FILES, CodeInPickle, code_marker, good_tensors, weight_with_infinity, weight_with_nan
from support.published import nested, tiny_adapter, write_bin, write_safetensors

DAMAGED = "is no usable adapter file: "
RUNS_CODE = "is a pickle that asks to run code or to build foreign objects"
PHRASES = {
    "truncated_safetensors": f"{DAMAGED}a broken safetensors file",
    "truncated_header": f"{DAMAGED}a header of",
    "truncated_bin": DAMAGED,
    "empty_safetensors": f"{DAMAGED}an empty file",
    "empty_bin": f"{DAMAGED}an empty file",
    "text_named_safetensors": f"{DAMAGED}a header of",
    "zip_named_safetensors": "is a PyTorch pickle by its content",
    "pickle_named_safetensors": "is a PyTorch pickle by its content",
    "safetensors_named_bin": "is safetensors by its content",
    "enormous_header": f"{DAMAGED}a header of 1152921504606846976 bytes in a file of 16 bytes",
    "long_header": f"{DAMAGED}a header of 209715200 bytes in a file of 16 bytes",
    "bit_flipped_header": f"{DAMAGED}a header that is not JSON",
    "bit_flipped_metadata": "bit_flipped_metadata.safetensors, whose header is not as it was written",
    "bit_flipped_data": f"{DAMAGED}tensor data whose SHA-256 is not the one its metadata states",
    "code_in_bin": RUNS_CODE,
    "code_in_pickle": RUNS_CODE,
    "without_image_proj": "ip_adapter.1.to_k_ip.weight",
    "without_ip_adapter": "image_proj but no ip_adapter.N.to_k_ip tensors (the well-known empty conversion",
    "without_one_value": "ip_adapter numbers do not run 1, 3, 5 …: [3] missing or extra",
    "gap_in_sites": "ip_adapter numbers do not run 1, 3, 5 …: [5, 7] missing or extra",
    "wrong_norm_shape": "image_proj.norm.weight is [32], not [16]",
    "html_page": f"{DAMAGED}a web page, probably an error page saved in place of the file",
    "git_lfs_pointer": f"{DAMAGED}a git-lfs pointer, not the file it points to",
}
SEEN_WHEN_USED = ("weight_with_nan", "weight_with_infinity")


def test_every_bad_file_has_an_expectation() -> None:
    assert set(BAD_FILES) == {*PHRASES, *SEEN_WHEN_USED}


@pytest.mark.parametrize("name", PHRASES)
def test_bad_file_is_refused_with_its_reason(tmp_path: Path, name: str) -> None:
    with pytest.raises((UnreadableFileError, UnknownCheckpointError)) as caught:
        load_adapter(BAD_FILES[name](tmp_path))
    found, _, rest = str(caught.value).partition(" Expected: ")
    assert found.startswith("Found: ")
    assert PHRASES[name] in found
    assert " What to do: " in rest
    assert not code_marker(tmp_path).exists()


def test_misnamed_file_says_which_suffix_would_be_right(tmp_path: Path) -> None:
    for name, better in (("zip_named_safetensors", "zip.bin"), ("safetensors_named_bin", "safetensors.safetensors")):
        with pytest.raises(UnreadableFileError, match=f"rename it to {better} if you trust its source"):
            load_adapter(BAD_FILES[name](tmp_path))


def test_weight_that_is_not_a_number_shows_in_the_tokens(tmp_path: Path) -> None:
    adapter = load_adapter(weight_with_nan(tmp_path))
    tokens = adapter.project(torch.ones(1, adapter.spec.image_dim))
    with pytest.raises(BadInputError, match="image tokens with NaN or infinite values"):
        ImageTokens(tokens, torch.zeros_like(tokens), "adapter")


def test_infinite_weight_shows_in_the_keys(tmp_path: Path) -> None:
    adapter = load_adapter(weight_with_infinity(tmp_path))
    tokens = ImageTokens(*torch.ones(2, 1, 4, adapter.spec.cross_attention_dim), "adapter")
    with pytest.raises(BadInputError, match=r"NaN or infinite keys or values from .*Expected: .*What to do: "):
        project_tokens(adapter, tokens, torch.device("cpu"))


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UnreadableFileError, match="no file at "):
        load_adapter(tmp_path / "gone.safetensors")


@pytest.mark.parametrize(("name", "says"), [("a.gguf", "ends in .gguf"), ("a", "ends in nothing")])
def test_suffix_nobody_reads(tmp_path: Path, name: str, says: str) -> None:
    with pytest.raises(UnreadableFileError, match=f"{says}\\. Expected: one of .safetensors, .sft, .bin"):
        load_adapter(write_safetensors(tmp_path / name, good_tensors()))


@pytest.mark.parametrize(("content", "says"), [([1, 2], "a list at its top"), (torch.zeros(3), "a Tensor at its top")])
def test_pickle_that_is_no_dictionary(tmp_path: Path, content: object, says: str) -> None:
    torch.save(content, tmp_path / "a.bin")
    with pytest.raises(UnreadableFileError, match=f"a.bin holds {says}"):
        load_adapter(tmp_path / "a.bin")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"\x80\x02J\x01", "no usable adapter file: a broken "),
        (b"\x80\x02", "no usable adapter file: a broken "),
        (b"\x80\x02.", "no usable adapter file: a broken "),
        (b"\x80\x02\x07.", "damaged"),
    ],
    ids=["number cut off", "nothing follows", "empty stack", "no opcode"],
)
def test_damaged_pickle_is_called_damaged(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "a.bin").write_bytes(content)
    with pytest.raises(UnreadableFileError, match=says):
        load_adapter(tmp_path / "a.bin")


@pytest.mark.filterwarnings("ignore")  # torch.load comments on what it meets
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_code_in_a_pickle_of_any_protocol_does_not_run(tmp_path: Path, protocol: int) -> None:
    trap = CodeInPickle(code_marker(tmp_path))
    (tmp_path / "a.bin").write_bytes(pickle.dumps({"image_proj": trap}, protocol=protocol))
    with pytest.raises(UnreadableFileError):
        load_adapter(tmp_path / "a.bin")
    assert not code_marker(tmp_path).exists()
    pickle.loads((tmp_path / "a.bin").read_bytes())  # the trap is real
    assert code_marker(tmp_path).exists()


def test_header_nested_too_deeply(tmp_path: Path) -> None:
    header = b'{"a":' + b"[" * 100_000
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(UnreadableFileError, match="not JSON"):
        read_header(tmp_path / "a.safetensors")


def test_integer_weights_are_refused() -> None:
    tensors = {name: tensor.to(torch.int8) for name, tensor in good_tensors().items()}
    with pytest.raises(UnreadableFileError, match="int8"):
        build_adapter(tensors, {})


def test_missing_extra_and_misshapen_tensors_are_named() -> None:
    tensors = good_tensors()
    del tensors["image_proj.norm.bias"]
    tensors["image_proj.scale"] = torch.ones(1)
    tensors["image_proj.proj.bias"] = torch.ones(3)
    with pytest.raises(UnreadableFileError) as caught:
        build_adapter(tensors, {})
    for phrase in (
        "image_proj.norm.bias missing",
        "image_proj.scale not part of it",
        "image_proj.proj.bias is [3], not [64]",
        f"exactly the {len(tiny_adapter('base', site_dims=(32, 64, 64)))} tensors",
    ):
        assert phrase in str(caught.value)


@pytest.mark.filterwarnings("ignore")  # torch.load comments on what it meets
@pytest.mark.parametrize("layout", ["safetensors", "zip", "legacy"])
def test_damage_of_any_kind_is_a_message_and_never_a_stack_trace(tmp_path: Path, layout: str) -> None:
    path = tmp_path / ("a.safetensors" if layout == "safetensors" else "a.bin")
    if layout == "safetensors":
        write_safetensors(path, good_tensors())
    elif layout == "zip":
        write_bin(path, nested(good_tensors()))
    else:
        torch.save(nested(good_tensors()), path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    cut = [content[: len(content) * part // 40] for part in range(40)]
    # structure lies at both ends: headers and opcodes in front, a zip's directory at the back
    places = [*range(0, min(1200, len(content)), 7), *range(len(content) - 400, len(content), 7)]
    overwritten = [content[:place] + bytes([place % 251]) + content[place + 1 :] for place in places]
    for damaged in cut + overwritten:
        path.write_bytes(damaged)
        with contextlib.suppress(IPAdapterError):
            read_tensors(path)
