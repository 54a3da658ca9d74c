"""Old workflows in a real server: opened in its page and run, posted as prompts; the picture is that of today's nodes."""

import io
import json
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from PIL import Image

from demo.client import Client
from demo.server import ComfyServer
from legacy.facts import FACTS
from legacy.former_facts import FORMER
from legacy.former_workflows import RUNNING, SAVED_AS, SAYING, Former, small
from support.browser import Page

pytest_plugins = ["support.server"]

UNKNOWN = "app.graph._nodes.filter(n => n.has_errors || !(n.type in LiteGraph.registered_node_types)).map(n => n.type)"
RUN = "app.extensionManager.command.execute('Comfy.QueuePrompt')"  # what the button runs

PAGE_SEED = 6

each_running = pytest.mark.parametrize("make", RUNNING)
each_saying = pytest.mark.parametrize("make", SAYING)
pytestmark = pytest.mark.smoke


def pixels(contents: Iterable[bytes]) -> list[bytes]:
    """A file holds the prompt besides the picture."""
    return [Image.open(io.BytesIO(content)).tobytes() for content in contents]


def drawn(client: Client, prompt: dict[str, Any]) -> list[bytes]:
    run = client.run(prompt)
    assert run.end == "execution_success", run.error
    (save,) = (key for key, node in prompt.items() if node["class_type"] == "SaveImage")
    return pixels(client.files(run, save))


def widget_values(workflow: Former) -> dict[int, dict[str, Any]]:
    """What the widgets of the nodes in question must say, by node and name."""
    ours = FACTS.keys() | FORMER.keys()
    return {node.number: node.values for node in workflow.former.nodes if node.kind in ours}


@each_running
def test_a_prompt_draws_what_todays_draws(client: Client, make: Callable[[], Former]) -> None:
    workflow = make()
    assert workflow.today is not None
    former, today = drawn(client, workflow.prompt), drawn(client, small(workflow.today.prompt()))
    assert former == today
    without = small(workflow.today.prompt())
    (sampler,) = (node for node in without.values() if node["class_type"] == "KSampler")
    sampler["inputs"]["model"] = ["1", 0]
    assert drawn(client, without) != today, "the adapter does nothing here"


@each_saying
def test_a_prompt_that_cannot_be_drawn_says_what_to_use(client: Client, make: Callable[[], Former]) -> None:
    run = client.run(make().prompt)
    assert run.end == "execution_error"
    assert "What to do: put IPAdapter " in run.error


@pytest.mark.smoke_long
@pytest.mark.slow
def test_the_page_opens_them_with_their_values_and_runs_them(server: ComfyServer, page: Page, client: Client) -> None:
    for make in (*RUNNING, *SAYING):
        workflow = make()
        saved, prefix = workflow.saved, f"page_{workflow.former.name}"
        for node in saved["nodes"]:  # so that nothing is taken from the cache of another test
            first = {"KSampler": PAGE_SEED, "SaveImage": prefix}.get(node["type"])
            if first is not None:
                node["widgets_values"][0] = first
        page.evaluate(f"app.loadGraphData({json.dumps(saved)})")
        page.wait_for(f"app.graph._nodes.length === {len(saved['nodes'])}")
        assert page.evaluate(UNKNOWN) == [], make.__name__
        shown = page.evaluate(
            "Object.fromEntries(app.graph._nodes.map(n => [n.id, "
            "Object.fromEntries((n.widgets ?? []).map(w => [w.name, w.value]))]))"
        )
        for number, values in widget_values(workflow).items():
            assert {name: shown[str(number)].get(name) for name in values} == values, (make.__name__, number)
        reopened = page.evaluate("app.graph.serialize()")
        assert links(reopened) == links(saved), make.__name__
        if workflow.today is None:
            continue
        page.evaluate(RUN)
        saved_one = f"output?.images?.some(image => image.filename.startsWith('{prefix}_'))"
        page.wait_for(f"Object.values(app.nodeOutputs ?? {{}}).some(output => {saved_one})")
        made = pixels(path.read_bytes() for path in sorted(server.output.glob(f"{prefix}_*.png")))
        today = small(workflow.today.prompt())
        (sampler,) = (node for node in today.values() if node["class_type"] == "KSampler")
        sampler["inputs"]["seed"] = PAGE_SEED
        assert made == drawn(client, today), make.__name__


def links(workflow: dict[str, Any]) -> set[tuple[Any, ...]]:
    """What is linked with what, by names of nodes and inputs."""
    inputs = {node["id"]: [entry["name"] for entry in node.get("inputs") or []] for node in workflow["nodes"]}
    return {(source, slot, target, inputs[target][entry]) for _, source, slot, target, entry, _ in workflow["links"]}


@pytest.mark.smoke_long  # the page is the same in all of them
def test_the_page_renames_in_subgraphs_too_and_leaves_installed_nodes_alone(page: Page) -> None:
    """Such as those of an IPAdapter_plus of before March 2024, whose encoder has the old inputs."""
    encoder = {"type": "IPAdapterEncoder", "inputs": [{"name": "image_1"}]}
    copied = {"type": "IPAdapterAdvancedV2", "inputs": []}
    unknown = {"type": "NobodyKnows", "inputs": []}
    workflow = {"nodes": [encoder, unknown], "definitions": {"subgraphs": [{"nodes": [copied]}]}}
    renamed = f"""(async () => {{
        const extension = app.extensions.find(each => each.name === "IPAdapterStudio.FormerNodes");
        const types = async () => {{
            const workflow = {json.dumps(workflow)};
            await extension.beforeConfigureGraph(workflow);
            return [...workflow.nodes, ...workflow.definitions.subgraphs[0].nodes].map(node => node.type);
        }};
        const before = await types();
        extension.beforeRegisterNodeDef(null, {{name: "IPAdapterEncoder", input: {{required: {{image_1: []}}}}}});
        extension.beforeRegisterNodeDef(null, {{name: "IPAdapterAdvancedV2", input: {{}}}});
        return [before, await types()];
    }})()"""
    assert page.evaluate(renamed) == [
        ["IPAdapterEncoder2023", "NobodyKnows", "IPAdapterAdvanced"],
        ["IPAdapterEncoder", "NobodyKnows", "IPAdapterAdvancedV2"],
    ]


def test_every_form_is_saved_under_an_id_of_then() -> None:
    ids = {node["type"] for make in (*RUNNING, *SAYING) for node in make().saved["nodes"]}
    assert {"IPAdapterApply", "IPAdapterApplyFaceID", "IPAdapterApplyEncoded", "InsightFaceLoader"} <= ids
    assert not ids & SAVED_AS.keys()
