"""What ComfyUI's page shows of our nodes: texts, errors and sliders, in both of its ways to draw nodes; its search."""

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from demo.client import Client, Prompt
from demo.server import ComfyServer
from support.browser import Browser, Page
from support.graphs import ADAPTERS, SDXL_ADAPTER, simple

pytest_plugins = ["support.server"]
pytestmark = pytest.mark.slow

VUE = "Comfy.VueNodes.Enabled"
READY = "window.app?.graph && window.LiteGraph?.registered_node_types['IPAApply']"
LISTEN = """
window.problems = [];
window.addEventListener("error", event => problems.push(event.message));
window.addEventListener("unhandledrejection", event => problems.push(String(event.reason)));
"""
QUEUE = "app.extensionManager.command.execute('Comfy.QueuePrompt')"  # what the button runs
SEARCH = "app.extensionManager.command.execute('Workspace.SearchBox.Toggle')"
HITS = "[...document.querySelectorAll('[role=option]')].map(hit => hit.innerText.split('\\n')[0])"
OURS = {"Apply IP-Adapter from Image", "Apply IP-Adapter", "Encode Image for IP-Adapter", "Encode Face for IP-Adapter"}
FIRST = {"face swap": "Encode Face for IP-Adapter"} | dict.fromkeys(
    ("style", "style transfer", "composition", "character", "regional", "reference image", "image variation"),
    "Apply IP-Adapter from Image",
)


@pytest.fixture(params=[False, True], ids=["canvas", "Vue"])
def tab(server: ComfyServer, browser: Browser, request: pytest.FixtureRequest) -> Iterator[Page]:
    """A page that draws nodes in one of its ways."""
    with Client(server.url) as client:
        client.set(VUE, request.param)
    with browser.page() as page:
        page.call("Page.enable")
        page.call("Page.addScriptToEvaluateOnNewDocument", source=LISTEN)
        page.open(server.url)
        page.wait_for(READY)
        yield page
        assert page.evaluate("problems") == []
    with Client(server.url) as client:
        client.set(VUE, False)


def open_in(page: Page, prompt: Prompt) -> None:
    """As a workflow, which the page keeps over a reload."""
    page.evaluate(f"app.loadApiJson({json.dumps(prompt)}, 'texts')")
    page.evaluate("app.loadGraphData(app.graph.serialize())")
    page.wait_for(f"app.graph.nodes.length === {len(prompt)}")


def seen(page: Page, kind: str, name: str) -> dict[str, Any] | None:
    """A text on a node as the page shows it: its lines, and whether it lies on the node and is shown whole."""
    return page.evaluate(f"""(() => {{
        const node = app.graph.nodes.find(each => each.type === {kind!r});
        const element = node?.widgets.find(each => each.name === {name!r})?.element;
        if (!element?.isConnected || !element.offsetParent) return null;
        const box = element.getBoundingClientRect(), scale = app.canvas.ds.scale;
        const [left, top] = app.canvas.ds.convertOffsetToCanvas(node.pos);
        return {{
            lines: element.innerText.split("\\n"),
            whole: element.scrollHeight <= element.clientHeight + 1,
            wide: element.clientWidth / node.size[0],
            place: [box.left - left, box.top - top, box.right - left, box.bottom - top, ...node.size, scale],
            inside: box.left >= left - 2 && box.right <= left + node.size[0] * scale + 2
                && box.bottom <= top + node.size[1] * scale + 60 * scale,
        }};
    }})()""")


def wait_for_text(page: Page, kind: str, name: str, beginning: str) -> list[str]:
    end = time.monotonic() + 90
    while time.monotonic() < end:
        found = seen(page, kind, name)
        is_right = found and found["lines"][0].startswith(beginning)
        if is_right and found["whole"] and found["inside"] and found["wide"] > 0.8:  # once the page has drawn it
            return found["lines"]
        time.sleep(0.3)
    raise AssertionError(f"{kind} shows {seen(page, kind, name)}, not {beginning}")


def choose(page: Page, kind: str, widget: str, value: Any) -> None:
    """As a person does it in the widget."""
    page.evaluate(f"""(() => {{
        const node = app.graph.nodes.find(each => each.type === {kind!r});
        const widget = node.widgets.find(each => each.name === {widget!r});
        widget.value = {json.dumps(value)};
        widget.callback?.(widget.value, app.canvas, node);
    }})()""")


def test_texts_on_nodes(tab: Page, server: ComfyServer) -> None:
    open_in(tab, simple(seed=901))
    tab.evaluate(QUEUE)
    lines = wait_for_text(tab, "IPALoadAdapter", "IP-Adapter file", "SD1.5 plus")
    assert [line.partition(":")[0] for line in lines[1:]] == [
        "16 tokens, 4 attention layers of SD1.5",
        "encoder needed",
        "encoder",
    ]
    saved = tab.evaluate("app.graph.serialize()")
    (loader,) = (node for node in saved["nodes"] if node["type"] == "IPALoadAdapter")
    assert loader["widgets_values"] == [ADAPTERS[0], "auto", 0]
    tab.open(server.url)
    tab.wait_for(READY)
    assert wait_for_text(tab, "IPALoadAdapter", "IP-Adapter file", "SD1.5 plus") == lines
    choose(tab, "IPALoadAdapter", "adapter_file", SDXL_ADAPTER)
    tab.wait_for("!app.graph.nodes.some(node => node.widgets?.some(widget => widget.name === 'IP-Adapter file'))")
    tab.evaluate(QUEUE)
    lines = wait_for_text(tab, "IPAApply", "IP-Adapter error", "Found: an adapter for SDXL")
    assert [line.partition(":")[0] for line in lines] == ["Found", "Expected", "What to do"]
    wait_for_text(tab, "IPALoadAdapter", "IP-Adapter file", "SDXL")
    choose(tab, "IPALoadAdapter", "adapter_file", "absent/ip-adapter-plus_sd15.safetensors")
    tab.evaluate(QUEUE)
    lines = wait_for_text(tab, "IPALoadAdapter", "IP-Adapter error", "Found: no file")
    assert lines[-1].startswith("In a terminal: comfy model download --url https://huggingface.co/h94/IP-Adapter/")
    assert seen(tab, "IPAApply", "IP-Adapter error") is None
    choose(tab, "IPALoadAdapter", "adapter_file", ADAPTERS[0])
    tab.evaluate(QUEUE)
    tab.wait_for("!app.graph.nodes.some(node => node.widgets?.some(widget => widget.name === 'IP-Adapter error'))")
    wait_for_text(tab, "IPALoadAdapter", "IP-Adapter file", "SD1.5 plus")


def test_sliders_and_search(page: Page) -> None:
    check_how_far_strengths_slide(page)
    check_that_search_finds_the_beginners_node_first(page)


def check_how_far_strengths_slide(page: Page) -> None:
    """As far as is usual, and as a file says."""
    for strength, ends in ((0.8, [0, 2]), (3.5, [0, 3.5]), (-0.5, [-0.5, 2])):
        open_in(page, simple(seed=902, strength=strength))
        widget = page.evaluate("""(() => {
            const node = app.graph.nodes.find(each => each.type === "IPAApply");
            const { type, value, options } = node.widgets.find(each => each.name === "strength");
            return { type, value, ends: [options.min, options.max] };
        })()""")
        assert widget == {"type": "slider", "value": strength, "ends": ends}


def check_that_search_finds_the_beginners_node_first(page: Page) -> None:
    for words, title in FIRST.items():
        page.evaluate(SEARCH)
        page.wait_for("document.activeElement?.tagName === 'INPUT'")
        page.call("Input.insertText", text=words)
        page.wait_for(f"{HITS}.includes({title!r})", seconds=30)
        assert next(hit for hit in page.evaluate(HITS) if hit in OURS) == title, words
        page.evaluate(SEARCH)
        page.wait_for(f"{HITS}.length === 0", seconds=30)
