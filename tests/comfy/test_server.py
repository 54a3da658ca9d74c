"""A whole graph in a real ComfyUI server, over HTTP and WebSocket as its page talks to it."""

import io
import re

import numpy as np
import pytest
import requests
import torch
from PIL import Image
from safetensors.torch import load
from torch import Tensor

from demo.client import Client, Event, Prompt, RejectedError, Run
from demo.layout import WORKFLOWS
from demo.server import ComfyServer
from support import graphs
from support.graphs import simple, with_inputs, without

pytest_plugins = ["support.server"]

NODES = ("IPALoadAdapter", "IPAEncodeImage", "IPACombineTokens", "IPAApply", "IPAApplyImage", "IPALayerWeights")
pytestmark = pytest.mark.smoke
AFTER_APPLY = {graphs.APPLY, graphs.SAMPLER, graphs.SAVE_LATENT, graphs.DECODE, graphs.SAVE}


def finished(client: Client, prompt: Prompt) -> Run:
    run = client.run(prompt)
    assert run.end == "execution_success", run.error
    return run


def latent(client: Client, prompt: Prompt) -> Tensor:
    (content,) = client.files(finished(client, prompt), graphs.SAVE_LATENT)
    return load(content)["latent_tensor"]


def failure(client: Client, prompt: Prompt) -> Run:
    run = client.run(prompt)
    assert run.end == "execution_error"
    assert run.error.startswith("Found: ")
    assert "Expected: " in run.error
    assert "What to do: " in run.error
    return run


def test_graph_makes_a_picture(client: Client):
    run = finished(client, simple(seed=1))
    (content,) = client.files(run, graphs.SAVE)
    with Image.open(io.BytesIO(content)) as picture:
        assert picture.size == (64, 64)
        assert np.asarray(picture).std() > 1


def test_loader_shows_what_the_file_is(client: Client):
    # Another choice of encoder than elsewhere, so that the node is not cached.
    prompt = with_inputs(simple(seed=2), graphs.ADAPTER, image_encoder="image_encoder/")
    run = finished(client, prompt)
    text, *choice = run.outputs[graphs.ADAPTER]["ipadapter_studio"]
    assert "SD1.5 plus" in text
    assert "16 tokens, 4 attention layers" in text
    assert "image_encoder/" in text
    assert choice == [prompt[graphs.ADAPTER]["inputs"]["adapter_file"], "image_encoder/", "0"]
    again = finished(client, prompt)
    assert graphs.ADAPTER in again.cached
    if client.get("/object_info/IPALoadAdapter")["IPALoadAdapter"].get("has_intermediate_output"):
        assert again.outputs[graphs.ADAPTER] == run.outputs[graphs.ADAPTER]


def test_unchanged_graph_runs_nothing_again(client: Client):
    prompt = simple(seed=3)
    assert set(finished(client, prompt).executed) >= AFTER_APPLY
    again = finished(client, prompt)
    assert again.executed == []
    assert again.cached == set(prompt)


def test_changed_strength_runs_only_from_apply_on(client: Client):
    prompt = simple(seed=4)
    finished(client, prompt)
    changed = finished(client, with_inputs(prompt, graphs.APPLY, strength=0.5))
    assert set(changed.executed) == AFTER_APPLY
    assert changed.cached == set(prompt) - AFTER_APPLY


def test_strength_changes_the_latent(client: Client):
    half, full = (latent(client, simple(seed=5, strength=strength)) for strength in (0.5, 1.0))
    assert (full - half).abs().max() > 1e-3


@pytest.mark.parametrize(
    "off",
    [{"strength": 0.0}, {"start_percent": 0.5, "end_percent": 0.5}],
    ids=["strength 0", "empty range"],
)
def test_switched_off_equals_bypassed(client: Client, off: dict[str, float]):
    bypassed = latent(client, without(simple(seed=6), graphs.APPLY, [graphs.CHECKPOINT, 0]))
    assert torch.equal(latent(client, simple(seed=6, **off)), bypassed)


def test_the_same_graph_gives_the_same_latent_after_unloading(client: Client):
    prompt = simple(seed=7)
    first = latent(client, prompt)
    client.free()
    assert torch.equal(latent(client, prompt), first)


def test_interruption_stops_sampling_and_the_next_queue_runs(client: Client):
    prompt = simple(seed=8)
    undisturbed = latent(client, prompt)
    client.free()
    steps: list[int] = []

    def interrupt(event: Event) -> None:
        if event.type == "progress" and event.data["node"] == graphs.SAMPLER:
            steps.append(event.data["value"])
            if len(steps) == 1:
                client.interrupt()

    assert client.run(simple(seed=9, steps=500), interrupt).end == "execution_interrupted"
    assert max(steps) < 500
    assert torch.equal(latent(client, prompt), undisturbed)


def test_adapter_for_another_model_is_refused(client: Client):
    run = failure(client, with_inputs(simple(seed=10), graphs.ADAPTER, adapter_file=graphs.SDXL_ADAPTER))
    assert "SDXL" in run.error
    assert graphs.APPLY in run.executed
    assert graphs.SAMPLER not in run.executed


def test_missing_image_encoder_is_named(client: Client):
    run = failure(client, with_inputs(simple(seed=11), graphs.ADAPTER, image_encoder="none"))
    assert "128-wide" in run.error
    assert graphs.APPLY not in run.executed


def test_unknown_file_is_refused_before_anything_runs(client: Client):
    with pytest.raises(RejectedError, match="adapter_file"):
        client.run(with_inputs(simple(seed=12), graphs.ADAPTER, adapter_file="absent.safetensors"))


def test_files_of_extra_model_paths_are_offered(client: Client, server: ComfyServer):
    required = client.get("/object_info/IPALoadAdapter")["IPALoadAdapter"]["input"]["required"]
    assert "extra_model_paths" in " ".join(server.command())
    assert {*graphs.ADAPTERS, graphs.SDXL_ADAPTER} <= set(options(required["adapter_file"]))
    encoders = options(required["image_encoder"])
    assert encoders[:2] == ["auto", "none"]
    assert "image_encoder/" in encoders


def options(combo: list) -> list[str]:
    """Of a combo in either of the forms ComfyUI versions send."""
    return combo[0] if isinstance(combo[0], list) else combo[1]["options"]


@pytest.mark.parametrize("node_id", NODES)
def test_node_is_described(client: Client, server: ComfyServer, node_id: str):
    info = client.get(f"/object_info/{node_id}")[node_id]
    inputs = {**info["input"].get("required", {}), **info["input"].get("optional", {})}
    assert info["description"]
    assert [name for name, (_, *details) in inputs.items() if not (details and details[0].get("tooltip"))] == []
    assert all(info["output_tooltips"])
    page = client.get_text(f"/extensions/{server.pack}/docs/{node_id}.md")
    assert page.startswith("#")
    assert [name for name in inputs if f"`{name}`" not in page] == []
    for picture in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page):  # where the page's panel looks for it
        shown = requests.get(f"{server.url}/extensions/{server.pack}/docs/{picture}", timeout=60)
        assert shown.headers["Content-Type"] == "image/png"
    assert node_id in client.get("/i18n")["ja"]["nodeDefs"]


def test_workflows_are_offered_as_templates(client: Client, server: ComfyServer):
    names = sorted(path.stem for path in WORKFLOWS.glob("*.json"))
    assert "Image prompt" in names
    assert sorted(client.get("/workflow_templates")[server.pack]) == names
    assert client.get(f"/api/workflow_templates/{server.pack}/Image prompt.json")["version"] == 0.4
