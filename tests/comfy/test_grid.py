"""IP-Adapter Grid: every cell is what a single run draws, and nothing is encoded again."""

import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from demo.client import Client, Prompt
from support import comfy_host, graphs
from support.graphs import node, simple

pytest_plugins = ["support.server"]
GRID, SHEET = "20", "21"
STRENGTHS = (0.0, 0.5, 1.0)


@pytest.fixture
def layout() -> str:
    return "sdxl"


def grid(model: Any, adapter: Any, tokens: list[Any], **changes: Any) -> tuple[Any, ...]:
    inputs = {"strengths": "0, 0.5, 1", "layer_presets": "all, style"} | changes
    given = {f"tokens{number}": each for number, each in enumerate(tokens)}
    return comfy_host.call("IPAGrid", model=model, adapter=adapter, tokens=given, **inputs)


def test_every_cell_draws_what_a_single_run_draws(setting: tuple, make_tokens: Any, apply: Any, sample: Any) -> None:
    model, file, first = setting
    both = [first, make_tokens(file, seed=7)]
    models, labels, columns = grid(model, file.loaded, both)
    cells = [(tokens, preset, strength) for tokens in both for preset in ("all", "style") for strength in STRENGTHS]
    assert columns == 3
    assert len(models) == len(labels) == len(set(labels)) == 12
    assert labels[4] == "reference 1, style, strength 0.5"
    for number in (0, 2, 4, 11):
        tokens, preset, strength = cells[number]
        single = apply(model, file, tokens, strength=strength, layer_preset=preset)
        assert torch.equal(sample(models[number]), sample(single)), labels[number]


def test_a_label_says_what_differs_alone(setting: tuple) -> None:
    model, file, tokens = setting
    _, labels, _ = grid(model, file.loaded, [tokens], layer_presets="style")
    assert labels == ["strength 0", "strength 0.5", "strength 1"]


@pytest.mark.parametrize(
    "changes", [{"strengths": ""}, {"layer_presets": " "}, {"strengths": ", ".join(map(str, range(257)))}]
)
def test_grids_without_cells_or_with_too_many(setting: tuple, changes: dict[str, str]) -> None:
    model, file, tokens = setting
    with pytest.raises(ValueError, match="What to do: list fewer, or at least one of each"):
        grid(model, file.loaded, [tokens], **changes)


def test_a_preset_nobody_knows(setting: tuple) -> None:
    with pytest.raises(ValueError, match="layer preset"):
        grid(setting[0], setting[1].loaded, [setting[2]], layer_presets="all, stile")


def test_a_sheet_has_every_picture_at_its_place() -> None:
    colours = torch.linspace(0.2, 0.9, 6)
    images = [torch.full((1, 32, 80, 3), float(colour)) for colour in colours]
    labels = [f"number {number}" for number in range(6)]
    whole = comfy_host.run("IPAGridSheet", images=images, labels=labels, columns=[3])
    assert whole.shape == (1, 2 * (32 + 20 + 8) + 8, 3 * (80 + 8) + 8, 3)
    for number, colour in enumerate(colours):
        row, column = divmod(number, 3)
        middle = whole[0, 8 + row * 60 + 20 + 16, 8 + column * 88 + 40]
        torch.testing.assert_close(middle, torch.full((3,), float(colour)), rtol=0, atol=1 / 255)
    with pytest.raises(ValueError, match="5 pictures and 6 labels"):
        comfy_host.run("IPAGridSheet", images=images[:5], labels=labels, columns=[3])


def test_a_huge_sheet_is_made_smaller() -> None:
    sheet = comfy_host.pack("nodes.previews").sheet
    assert max(sheet([(torch.zeros(64, 3000, 3), "wide")] * 4, 4).shape) <= 8192 + 16


def test_a_label_longer_than_its_picture_goes_on_below() -> None:
    sheet = comfy_host.pack("nodes.previews").sheet
    short, long = (
        sheet([(torch.zeros(64, 64, 3), text)], 1) for text in ("strength 1", "reference 2, style, strength 1")
    )
    assert long.shape[2] == short.shape[2]
    assert long.shape[1] > short.shape[1] + 14


def prompt(seed: int, strengths: str) -> Prompt:
    made = simple(seed=seed)
    del made[graphs.APPLY]
    made[GRID] = node(
        "IPAGrid",
        model=[graphs.CHECKPOINT, 0],
        adapter=[graphs.ADAPTER, 0],
        strengths=strengths,
        layer_presets="all",
        **{"tokens.tokens0": [graphs.TOKENS, 0]},
    )
    made[graphs.SAMPLER]["inputs"]["model"] = [GRID, 0]
    made[SHEET] = node("IPAGridSheet", images=[graphs.DECODE, 0], labels=[GRID, 1], columns=[GRID, 2])
    made[graphs.SAVE]["inputs"]["images"] = [SHEET, 0]
    return made


def test_the_server_draws_all_cells_and_encodes_nothing_again(client: Client) -> None:
    first = client.run(prompt(931, "0, 1"))
    assert first.end == "execution_success", first.error
    second = client.run(prompt(931, "0, 0.3, 0.6, 1"))
    assert second.end == "execution_success", second.error
    assert {graphs.ADAPTER, graphs.TOKENS} <= second.cached
    for run, columns in ((first, 2), (second, 4)):
        (content,) = client.files(run, graphs.SAVE)
        with Image.open(io.BytesIO(content)) as sheet:
            assert sheet.size == (columns * 72 + 8, 64 + 20 + 8 + 8)
            pixels = np.asarray(sheet)
    assert not np.array_equal(pixels[30:90, 8:72], pixels[30:90, 8 + 3 * 72 : 72 + 3 * 72])
