"""Whatever layout a trainer left, conversion gives the published file with every tensor in its place."""

import errno
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from torch import Tensor

from ipadapter_core.errors import UnknownCheckpointError, UnreadableFileError
from ipadapter_core.file.container import read_tensors
from ipadapter_core.file.spec import EncoderHint, Negative
from ipadapter_core.network.adapter import load_adapter
from ipadapter_trainer.convert.conversion import Hints, convert_file
from ipadapter_trainer.convert.errors import ConvertError
from ipadapter_trainer.convert.numbers import repair_numbers
from ipadapter_trainer.convert.reading import find_state
from ipadapter_trainer.files.export import ExportError
from ipadapter_trainer.files.portability import EVERYWHERE
from support import bad_files
from support.published import (
    OTHER_FILES,
    SD15_SITES,
    SDXL_SITES,
    nested,
    random_tensors,
    sites,
    tiny_adapter,
    write_bin,
    write_safetensors,
)
from support.tiny_unet import diffusers_unet, site_dims
from support.training_states import (
    Official,
    diffusers_processors,
    diffusers_projection,
    tiny_ipadapter,
    write_accelerate_state,
    write_mmengine,
)

Tensors = Mapping[str, Tensor]


def converted(source: Path, folder: Path, **options: Any) -> tuple[dict[str, Tensor], Any]:
    output = folder / "converted.safetensors"
    conversion = convert_file(source, output, **options)
    return read_tensors(output).tensors, conversion


def check_equal(given: Tensors, expected: Tensors) -> None:
    assert given.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(given[name], tensor), name


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Official]:
    made: dict[tuple[str, bool], Official] = {}

    def state(layout: str = "sd15", *, safe: bool = True) -> Official:
        if (layout, safe) not in made:
            folder = tmp_path_factory.mktemp("checkpoint") / "checkpoint-2000"
            made[layout, safe] = write_accelerate_state(folder, layout, safe=safe)
        return made[layout, safe]

    return state


def test_a_conversion_is_the_same_bytes_whenever_it_is_made(official: Callable[..., Official], tmp_path: Path) -> None:
    made = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        convert_file(official().folder, tmp_path / name / "a.safetensors")
        made.append([(tmp_path / name / f"a{suffix}").read_bytes() for suffix in (".safetensors", ".md")])
        time.sleep(1.1)  # dates are of whole seconds
    assert made[0] == made[1]


def test_a_conversion_is_of_the_date_that_the_file_states(tmp_path: Path) -> None:
    source = write_safetensors(tmp_path / "a.safetensors", bad_files.good_tensors(), {"modelspec.date": "2024-01-31"})
    convert_file(source, tmp_path / "b.safetensors")
    assert read_tensors(tmp_path / "b.safetensors").metadata["modelspec.date"] == "2024-01-31"
    assert "| made | 2024-01-31 |" in (tmp_path / "b.md").read_text()


@pytest.mark.parametrize("layout", ["sd15", "sdxl"])
@pytest.mark.parametrize("safe", [True, False])
def test_accelerate_states(official: Callable[..., Official], tmp_path: Path, layout: str, safe: bool) -> None:
    state = official(layout, safe=safe)
    names = read_tensors(state.folder / ("model.safetensors" if safe else "pytorch_model.bin")).tensors
    assert any(name.startswith("adapter_modules.") for name in names) != safe, "accelerate drops shared tensors"
    tensors, conversion = converted(state.folder, tmp_path)
    check_equal(tensors, state.expected)
    assert "accelerate" in conversion.source
    assert conversion.notes == ()
    assert conversion.report.portability.label == EVERYWHERE


@pytest.mark.parametrize(
    "order", [sorted, lambda names: sorted(names, reverse=True), lambda names: sorted(names, key=hash)]
)
def test_the_order_of_names_plays_no_part(
    official: Callable[..., Official], tmp_path: Path, order: Callable[[Any], list[str]]
) -> None:
    """Sorted names put the middle block before the up blocks: the well-known misnumbering."""
    state = official()
    names = read_tensors(state.folder / "model.safetensors").tensors
    torch.save({name: names[name] for name in order(names)}, tmp_path / "model.bin")
    tensors, _ = converted(tmp_path / "model.bin", tmp_path)
    check_equal(tensors, state.expected)


def test_the_empty_conversion_of_the_official_readme(official: Callable[..., Official], tmp_path: Path) -> None:
    """Their snippet takes image_proj_model.* and adapter_modules.*, and safetensors have none of the latter."""
    state = official()
    content: dict[str, dict[str, Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for name, tensor in read_tensors(state.folder / "model.safetensors").tensors.items():
        if name.startswith("image_proj_model"):
            content["image_proj"][name.replace("image_proj_model.", "")] = tensor
        elif name.startswith("adapter_modules"):
            content["ip_adapter"][name.replace("adapter_modules.", "")] = tensor
    assert content["ip_adapter"] == {}
    empty = write_bin(tmp_path / "ip_adapter.bin", content)
    with pytest.raises(ConvertError, match=r"well-known empty conversion.*convert the training state itself.*--state"):
        converted(empty, tmp_path)
    tensors, conversion = converted(empty, tmp_path, state=state.folder)
    check_equal(tensors, state.expected)
    assert "K/V projections were missing" in conversion.notes[0]

    content["image_proj"]["proj.bias"] = content["image_proj"]["proj.bias"] + 1
    other = write_bin(tmp_path / "other.bin", content)
    with pytest.raises(ConvertError, match=r"has another proj\.bias"):
        converted(other, tmp_path, state=state.folder)
    with pytest.raises(ConvertError, match="has no K/V projections either"):
        converted(empty, tmp_path, state=empty)
    with pytest.raises(ConvertError, match="leave --state out"):
        converted(state.folder, tmp_path, state=state.folder)


def test_deepspeed_states(official: Callable[..., Official], tmp_path: Path) -> None:
    """accelerate leaves saving to DeepSpeed: a pickle of its own, the model's names under `module`."""
    state = official()
    folder = tmp_path / "checkpoint-2000"
    (folder / "pytorch_model").mkdir(parents=True)
    module = read_tensors(state.folder / "model.safetensors").tensors
    content = {"module": module, "optimizer": None, "ds_version": "0.16", "param_shapes": [{"x": torch.Size([1])}]}
    torch.save(content, folder / "pytorch_model" / "mp_rank_00_model_states.pt")
    tensors, _ = converted(folder, tmp_path)
    check_equal(tensors, state.expected)


@pytest.mark.parametrize("kind", ["base", "plus", "full"])
def test_mmengine_states_of_diffengine(tmp_path: Path, kind: str) -> None:
    """Their names are diffusers', their message hub holds objects that are not opened."""
    unet = diffusers_unet("sdxl")
    adapter = tiny_ipadapter(kind, site_dims(unet))
    source = write_mmengine(tmp_path / "epoch_3.pth", adapter, unet)
    tensors, conversion = converted(source, tmp_path)
    check_equal(tensors, adapter.state_dict())
    assert "diffengine" in conversion.source


@pytest.mark.parametrize("kind", ["base", "plus", "full"])
def test_diffengine_bin_files(tmp_path: Path, kind: str) -> None:
    """`image_proj` under diffusers' names, processors with one more number: `1.to_k_ip.0.weight`."""
    unet = diffusers_unet("sdxl")
    adapter = tiny_ipadapter(kind, site_dims(unet))
    processors = diffusers_processors(adapter, unet).values()
    modules = torch.nn.ModuleList(
        processor if isinstance(processor, torch.nn.Module) else torch.nn.Identity() for processor in processors
    )
    projection = diffusers_projection(adapter).state_dict()
    content = {"image_proj": projection, "ip_adapter": modules.state_dict()}
    tensors, _ = converted(write_bin(tmp_path / "ip_adapter.bin", content), tmp_path)
    check_equal(tensors, adapter.state_dict())


def test_the_resampler_names_of_older_diffusers(tmp_path: Path) -> None:
    """Before 0.28 a layer was a list: two norms, attention, feed-forward."""
    adapter = tiny_ipadapter("plus")
    old: dict[str, Tensor] = {}
    for name, tensor in diffusers_projection(adapter).state_dict().items():
        for new, numbered in ((".ln0.", ".0."), (".ln1.", ".1."), (".attn.", ".2."), (".ff.", ".3.")):
            name = name.replace(new, numbered)
        old[f"image_proj.{name}"] = tensor
    assert "image_proj.layers.0.2.to_k.weight" in old
    assert "image_proj.layers.3.3.1.net.0.proj.weight" in old
    sites_part = {name: tensor for name, tensor in adapter.state_dict().items() if name.startswith("ip_adapter.")}
    tensors, _ = converted(write_bin(tmp_path / "old.bin", nested({**old, **sites_part})), tmp_path)
    check_equal(tensors, adapter.state_dict())


@pytest.mark.parametrize("prefix", ["ip_adapter", "adapter_modules"])
def test_published_bin_files(tmp_path: Path, prefix: str) -> None:
    adapter = tiny_ipadapter("plus")
    content = {name.replace("ip_adapter", prefix): tensor for name, tensor in adapter.state_dict().items()}
    tensors, conversion = converted(write_bin(tmp_path / "plus.bin", nested(content)), tmp_path, precision="fp16")
    check_equal(tensors, {name: tensor.half() for name, tensor in adapter.state_dict().items()})
    assert conversion.report.precision == "fp16"


def test_mixed_precision_is_kept_unless_another_is_asked_for(tmp_path: Path) -> None:
    """Published plus files hold a float32 projection and float16 sites."""
    tensors = {
        name: tensor if name.startswith("image_proj.") else tensor.half()
        for name, tensor in tiny_ipadapter("plus").state_dict().items()
    }
    given, conversion = converted(write_bin(tmp_path / "plus.bin", nested(tensors)), tmp_path)
    check_equal(given, tensors)
    assert conversion.report.precision == "fp16, fp32"


def wide_adapter(widths: tuple[int, ...]) -> dict[str, Tensor]:
    """Widths as published, text width 2: small enough to convert."""
    return random_tensors(
        tiny_adapter("base", site_dims=widths, cross_attention_dim=2, image_dim=4), dtype=torch.float32
    )


def misnumbered(tensors: Tensors, order: list[int], number: Callable[[int], int]) -> dict[str, Tensor]:
    """Site `order[n]` under `number(n)`."""
    wrong = {name: tensor for name, tensor in tensors.items() if name.startswith("image_proj.")}
    for place, site in enumerate(order):
        for part in ("to_k_ip", "to_v_ip"):
            wrong[f"ip_adapter.{number(place)}.{part}.weight"] = tensors[f"ip_adapter.{2 * site + 1}.{part}.weight"]
    return wrong


@pytest.mark.parametrize(("widths", "parts"), [(SD15_SITES, (6, 9, 1)), (SDXL_SITES, (24, 36, 10))])
@pytest.mark.parametrize("mistake", ["middle first", "as text"])
@pytest.mark.parametrize("counter", ["odd", "consecutive"])
def test_misnumbered_files_are_repaired_by_their_widths(
    tmp_path: Path, widths: tuple[int, ...], parts: tuple[int, int, int], mistake: str, counter: str
) -> None:
    tensors, (down, up, _), total = wide_adapter(widths), parts, len(widths)
    order = [*range(down), *range(down + up, total), *range(down, down + up)]
    if mistake == "as text":
        order = [(number - 1) // 2 for number in sorted(range(1, 2 * total, 2), key=str)]
    number = (lambda n: 2 * n + 1) if counter == "odd" else (lambda n: n)
    source = write_bin(tmp_path / "wrong.bin", nested(misnumbered(tensors, order, number)))
    given, conversion = converted(source, tmp_path)
    check_equal(given, tensors)
    assert any("in another order" in note for note in conversion.notes)
    assert any("numbered 0, 1, 2" in note for note in conversion.notes) == (counter == "consecutive")


@pytest.mark.parametrize("widths", [SD15_SITES, SDXL_SITES, (320, 320, 640), (64,) * 16])
def test_right_numbers_stay(widths: tuple[int, ...]) -> None:
    tensors = {
        (int(name.split(".")[1]), name.split(".", 2)[2]): torch.empty(shape, device="meta")
        for name, shape in sites(widths, 2).items()
    }
    repaired, notes = repair_numbers(tensors)
    assert notes == []
    assert all(repaired[key] is tensor for key, tensor in tensors.items())


def test_a_gap_between_numbers_is_not_closed(tmp_path: Path) -> None:
    """A site is missing there: renumbering would shift all that follow."""
    with pytest.raises(UnreadableFileError, match="do not run 1, 3, 5"):
        converted(bad_files.gap_in_sites(tmp_path), tmp_path)
    assert not (tmp_path / "converted.safetensors").exists()


def test_hints_become_metadata(tmp_path: Path) -> None:
    source = write_bin(tmp_path / "plus.bin", nested(tiny_ipadapter("plus").state_dict()))
    hints = Hints(encoder="dinov2-base", layer=-1, negative=Negative.ZERO_FEATURES)
    _, conversion = converted(source, tmp_path, hints=hints)
    spec = load_adapter(conversion.path).spec
    assert (spec.encoder, spec.layer, spec.negative) == (EncoderHint(name="dinov2-base"), -1, Negative.ZERO_FEATURES)
    with pytest.raises(ConvertError, match="--layer 3"):
        converted(source, tmp_path, hints=Hints(layer=3))
    base = write_bin(tmp_path / "base.bin", nested(tiny_ipadapter("base").state_dict()))
    with pytest.raises(ConvertError, match="only for an adapter that reads hidden states"):
        converted(base, tmp_path, hints=Hints(layer=-1))


@pytest.mark.parametrize("name", ["lora_kohya", "checkpoint", "controlnet", "clip_vision", "unknown"])
def test_other_files_are_named(tmp_path: Path, name: str) -> None:
    source = write_safetensors(tmp_path / "other.safetensors", random_tensors(OTHER_FILES[name]))
    with pytest.raises(UnknownCheckpointError):
        converted(source, tmp_path)


def test_bad_places_and_pickles_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnreadableFileError, match="run code"):
        converted(bad_files.code_in_bin(tmp_path), tmp_path)
    assert not bad_files.code_marker(tmp_path).exists()
    good = write_bin(tmp_path / "good.bin", nested(tiny_ipadapter().state_dict()))
    with pytest.raises(ExportError, match=r"ends in \.bin"):
        convert_file(good, tmp_path / "out.bin")
    (tmp_path / "states" / "checkpoint-9").mkdir(parents=True)
    (tmp_path / "states" / "checkpoint-9" / "model.safetensors").write_bytes(b"")
    with pytest.raises(ConvertError, match=r"training states: checkpoint-9"):
        converted(tmp_path / "states", tmp_path)
    with pytest.raises(UnreadableFileError, match="no file at"):
        converted(tmp_path / "missing.bin", tmp_path)


def test_several_adapters_in_one_state_are_refused(tmp_path: Path) -> None:
    tensors = tiny_ipadapter().state_dict()
    tensors["ip_adapter.1.to_k_ip.1.weight"] = tensors["ip_adapter.1.to_k_ip.weight"]
    with pytest.raises(ConvertError, match="several adapters"):
        converted(write_bin(tmp_path / "two.bin", nested(tensors)), tmp_path)


def test_a_folder_that_may_not_be_looked_into_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_: Path) -> NoReturn:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refused)  # root may look everywhere
    with pytest.raises(ConvertError, match=r"cannot be looked into \(Permission denied\)"):
        find_state(tmp_path)
