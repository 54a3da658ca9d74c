"""IP-Adapter Region, Save and Load IP-Adapter Tokens: what they hand on draws what the plain way draws."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from support import comfy_host, families

BOX = {"x": 0.25, "y": 0.25, "width": 0.5, "height": 0.5, "picture_width": 64, "picture_height": 64}
HARD = {"feather": 0.0, "invert": False} | BOX


@pytest.fixture
def layout() -> str:
    return "sd15"


def region(name: str, **changes: Any) -> Tensor:
    return comfy_host.call("IPARegion", region=name, **HARD | changes)[0]


@pytest.mark.parametrize("invert", [False, True])
def test_a_region_draws_what_its_mask_draws(setting: tuple, apply: Callable, sample: Callable, invert: bool) -> None:
    by_hand = torch.zeros(1, 64, 64)
    by_hand[..., 32:] = 1
    drawn = sample(apply(*setting, mask=region("left" if invert else "right", invert=invert)))
    assert torch.equal(drawn, sample(apply(*setting, mask=by_hand)))
    assert not torch.equal(drawn, sample(apply(*setting)))


def test_two_halves_draw_what_one_adapter_draws_everywhere(setting: tuple, apply: Callable, sample: Callable) -> None:
    model, *rest = setting
    both = apply(apply(model, *rest, mask=region("left", feather=0.2)), *rest, mask=region("right", feather=0.2))
    torch.testing.assert_close(sample(both), sample(apply(*setting)), rtol=1e-3, atol=1e-3)
    assert torch.equal(sample(apply(*setting, mask=region("everywhere"))), sample(apply(*setting)))


def test_a_region_has_the_size_of_the_picture_it_is_shown_over() -> None:
    image = torch.ones(2, 40, 60, 3)
    mask, preview = comfy_host.call("IPARegion", region="box", image=image, **HARD)
    assert mask.shape == (1, 40, 60)
    assert preview.shape == (1, 40, 60, 3)
    assert (preview[0, 20, 30] == 1).all()
    assert (preview[0, 0, 0] < 0.5).all()


def test_a_mask_of_ones_own_is_cut_to_the_region() -> None:
    mine = torch.zeros(1, 24, 32)
    mine[:, :12] = 1
    assert torch.equal(region("everywhere", mask=mine), mine)
    quarter = region("left", mask=mine)
    assert quarter.mean() == pytest.approx(0.25)
    assert quarter[0, :12, :16].min() == 1
    soft = region("everywhere", mask=mine, feather=0.5)
    assert 0 < soft[0, 11, 0] < 1, "its edges are softened too"
    assert soft[0, 0, 0] == 1
    assert torch.equal(region("left", mask=mine, invert=True), 1 - quarter)


def test_a_box_outside_the_picture_is_refused() -> None:
    with pytest.raises(ValueError, match="What to do: let it begin and end within the picture"):
        region("box", x=0.75)


@pytest.fixture(params=["unet", "instantx_sd35"])
def family(request: pytest.FixtureRequest, base_directory: Path) -> Any:
    """A model, its adapter's node output, tokens, and what samples it."""
    if request.param != "unet":
        model, adapter, tokens = families.setting_of(request.param, base_directory)
        return model, adapter, tokens, lambda patched: families.sample(request.param, patched), families.apply
    model, file, tokens = request.getfixturevalue("setting")
    apply = request.getfixturevalue("apply")
    return model, file.loaded, tokens, request.getfixturevalue("sample"), lambda m, _adapter, t: apply(m, file, t)


def saved(adapter: Any, tokens: Any, filename: str) -> str:
    found = comfy_host.node("IPASaveTokens")
    with torch.inference_mode():
        (entry,) = found.EXECUTE_NORMALIZED(adapter=adapter, tokens=tokens, filename=filename).ui["tokens"]
    assert entry["type"] == "output"
    return str(Path(entry["subfolder"]).relative_to("ipadapter_tokens") / entry["filename"])


def choices() -> list[str]:
    (entry,) = [item for item in comfy_host.schema("IPALoadTokens").inputs if item.id == "tokens_file"]
    return list(entry.options)


def test_saved_tokens_are_listed_at_once_and_draw_the_same(family: Any) -> None:
    model, adapter, tokens, sample, apply = family
    names = [saved(adapter, tokens, name) for name in ("reference", "people/reference", "reference")]
    assert len(set(names)) == 3
    assert set(names) <= set(choices())
    for name in names[:2]:
        loaded = comfy_host.run("IPALoadTokens", adapter=adapter, tokens_file=name)
        assert loaded.digest == tokens.digest
        assert torch.equal(sample(apply(model, adapter, loaded)), sample(apply(model, adapter, tokens)))


def test_a_copy_of_the_adapter_takes_them_and_another_does_not(
    setting: tuple, make_adapter: Callable, base_directory: Path
) -> None:
    _, file, tokens = setting
    name = saved(file.loaded, tokens, "copied")
    folder = base_directory / "models" / "ipadapter"
    shutil.copy(folder / file.name, folder / "a copy.safetensors")
    copy = comfy_host.run("IPALoadAdapter", adapter_file="a copy.safetensors", image_encoder="none")
    assert copy.adapter_id != file.loaded.adapter_id
    loaded = comfy_host.run("IPALoadTokens", adapter=copy, tokens_file=name)
    assert loaded.adapter_id == copy.adapter_id
    assert torch.equal(loaded.cond, tokens.cond)
    other = make_adapter("base", "sd15", seed=5).loaded
    with pytest.raises(
        ValueError, match=r"tokens for another adapter .*What to do: load the adapter they were made with"
    ):
        comfy_host.run("IPALoadTokens", adapter=other, tokens_file=name)
    with pytest.raises(ValueError, match=r"tokens that another adapter made.*What to do: connect one and the same"):
        saved(other, tokens, "wrong")


@pytest.mark.parametrize("filename", ["../out", "/tmp/out", "..", ".", "", "  ", "a/../../out"])
def test_names_that_lead_elsewhere(setting: tuple, filename: str) -> None:
    with pytest.raises(ValueError, match=r"the filename .*What to do: choose a name without"):
        saved(setting[1].loaded, setting[2], filename)


def test_a_changed_file_is_read_anew(setting: tuple, base_directory: Path) -> None:
    _, file, tokens = setting
    name = saved(file.loaded, tokens, "changing")
    before = comfy_host.fingerprint("IPALoadTokens", tokens_file=name)
    path = base_directory / "output" / "ipadapter_tokens" / name
    assert before == comfy_host.fingerprint("IPALoadTokens", tokens_file=name)
    path.touch()
    assert before != comfy_host.fingerprint("IPALoadTokens", tokens_file=name)
    (path.parent / "damaged.safetensors").write_bytes(b"x" * 40)
    assert "damaged.safetensors" not in choices()
    with pytest.raises(ValueError, match="What to do"):
        comfy_host.run("IPALoadTokens", adapter=file.loaded, tokens_file="missing.safetensors")
