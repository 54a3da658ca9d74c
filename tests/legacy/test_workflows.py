"""Every legacy workflow in a real server: its saved values land in the right inputs, it runs, and draws a picture."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
from comfy_cli.workflow_to_api import convert_ui_to_api
from PIL import Image

from demo.client import Client, Prompt
from legacy.facts import FACTS
from legacy.make_workflows.__main__ import FOLDER
from legacy.running import SIDE, STAND_INS, STEPS

pytest_plugins = ["support.server"]

SAVED = sorted(path for path in FOLDER.glob("*.json") if not path.name.endswith(".api.json"))
LEAST_DIFFERENCE = 1e-3  # of the largest number of a latent, in every picture of a batch

# Between them they have each of the 37 ids.
SMOKE = {
    *("composition", "embeds", "enhancer", "enhancer_batch", "face_loaders", "faceid_batch", "faceid_kolors"),
    *("loaded_embeds", "mad_scientist_face", "precise_composition", "precise_composition_batch", "precise_style"),
    *("precise_style_batch", "regions", "schedule", "style_composition", "style_composition_batch", "tiled"),
    *("tiled_batch", "unified_loaders"),
}
# Of these, each way of applying and of loading once: a reference, faces, embeds, tiles, regions, a schedule.
SOON = {"composition", "embeds", "face_loaders", "faceid_batch", "regions", "schedule", "tiled", "unified_loaders"}

each_workflow = pytest.mark.parametrize("path", SAVED, ids=lambda path: path.stem)


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def marks_of(path: Path) -> list[pytest.MarkDecorator]:
    if path.stem in SOON:
        return [pytest.mark.smoke]
    return [pytest.mark.smoke_long] if path.stem in SMOKE else [pytest.mark.long]


def runnable(prompt: Prompt) -> Prompt:
    """With tiny models in place of loaders that know full sizes only, a small picture, and few steps."""
    for node in prompt.values():
        node["class_type"] = STAND_INS.get(node["class_type"], node["class_type"])
        if node["class_type"] == "EmptyLatentImage":
            node["inputs"] |= {"width": SIDE, "height": SIDE}
        if node["class_type"] == "KSampler":
            node["inputs"]["steps"] = STEPS
    return prompt


@pytest.mark.smoke
@each_workflow
def test_values_saved_by_position_land_where_they_belong(path: Path, object_info: Any):
    converted = convert_ui_to_api(read(path), object_info)
    expected = read(path.with_suffix(".api.json"))
    assert {key: node["inputs"] for key, node in converted.items()} == {
        key: node["inputs"] for key, node in expected.items()
    }
    assert [node["type"] for node in read(path)["nodes"] if node["type"] not in object_info] == []


def with_latents(prompt: Prompt) -> Prompt:
    """With the latent saved, and that of a second sampler whose model no adapter has touched."""
    (sampler,) = (key for key, node in prompt.items() if node["class_type"] == "KSampler")
    (checkpoint,) = (key for key, node in prompt.items() if node["class_type"] == "TinyCheckpoint")
    untouched = {**prompt[sampler]["inputs"], "model": [checkpoint, 0]}
    saves = {
        name: {"class_type": "SaveLatent", "inputs": {"samples": [source, 0], "filename_prefix": f"latents/{name}"}}
        for name, source in (("acting", sampler), ("plain", "untouched"))
    }
    return {**prompt, "untouched": {"class_type": "KSampler", "inputs": untouched}, **saves}


def test_the_smoke_runs_every_node():
    assert SOON < SMOKE
    assert {node["type"] for path in SAVED if path.stem in SMOKE for node in read(path)["nodes"]} >= FACTS.keys()


@pytest.mark.slow
@pytest.mark.parametrize("path", [pytest.param(path, id=path.stem, marks=marks_of(path)) for path in SAVED])
def test_it_runs_and_draws(path: Path, client: Client, object_info: Any):
    """The reference acts as well; in latents, of which a random decoder shows little."""
    prompt = with_latents(runnable(convert_ui_to_api(read(path), object_info)))
    run = client.run(prompt)
    assert run.end == "execution_success", run.error
    (save,) = (key for key, node in prompt.items() if node["class_type"] == "SaveImage")
    pictures = client.files(run, save)
    batch = next(node["inputs"]["batch_size"] for node in prompt.values() if node["class_type"] == "EmptyLatentImage")
    assert len(pictures) == batch
    for content in pictures:
        with Image.open(io.BytesIO(content)) as picture:
            pixels = np.asarray(picture)
        assert pixels.shape == (SIDE, SIDE, 3)
        assert pixels.std() > 1
    acting, plain = (
        safetensors.torch.load(client.files(run, name)[0])["latent_tensor"] for name in ("acting", "plain")
    )
    assert acting.isfinite().all()
    difference = (acting - plain).abs().flatten(1).amax(1)
    assert (difference > LEAST_DIFFERENCE * plain.abs().max()).all()
