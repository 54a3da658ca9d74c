"""krita-ai-diffusion, SwarmUI and Easy-Use with a server in which this pack stands under the folder name they pin."""

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from demo.client import Client
from demo.server import ROOT, ComfyServer
from legacy import hosts
from legacy.facts import FACTS
from legacy.hosts import SD15, SDXL, Graph
from support.server import PACKS, SILENCE, tiny_server

PINNED = "ComfyUI_IPAdapter_plus"
SHORT = ("standard", "plus (", "faceid", "faceid plus v2")  # of presets; test_loaders.py knows what each stands for

pytest_plugins = ["support.server"]

pytestmark = [pytest.mark.slow, pytest.mark.smoke_long]


class PinnedServer(ComfyServer):
    """A server whose only pack of ours has the name that programs look for."""

    pack = PINNED


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, server_models: Path) -> Iterator[ComfyServer]:
    folder = tmp_path_factory.mktemp("hosts")
    packs = folder / "packs"
    packs.mkdir()
    (packs / PINNED).symlink_to(ROOT)
    with tiny_server(folder, server_models, PinnedServer, (PACKS, packs), ("tiny_models", "python_host")) as pinned:
        yield pinned


@pytest.fixture(scope="module")
def client(server: ComfyServer) -> Iterator[Client]:
    with Client(server.url, timeout=SILENCE) as connected:
        yield connected


@pytest.fixture(scope="module")
def info(client: Client) -> Any:
    """What a program reads first."""
    return client.get("/object_info")


@pytest.fixture(scope="module")
def draw(client: Client, server: ComfyServer) -> Callable[[Graph, Any], Tensor]:
    """The latent of a graph whose reference acts: the picture is there, and another one than without it."""

    def latent(graph: Graph, model: Any) -> Tensor:
        shown = graph.draw(model, "acting")
        graph.draw(graph.checkpoint, "plain")
        run = client.run(graph.prompt)
        assert run.end == "execution_success", run.error
        assert client.files(run, shown[0])
        saves = [key for key, node in graph.prompt.items() if node["class_type"] == "SaveLatent"]
        acting, plain = (safetensors.torch.load(client.files(run, key)[0])["latent_tensor"] for key in saves)
        assert (acting - plain).abs().max() > 1e-3 * plain.abs().max()
        return acting

    return latent


def test_all_nodes_are_there_under_the_pinned_folder(info: Any, client: Client) -> None:
    assert set(FACTS) <= set(info)
    assert {info[node_id]["python_module"] for node_id in FACTS} == {f"custom_nodes.{PINNED}"}
    assert client.get_text(f"/extensions/{PINNED}/docs/IPAdapterAdvanced.md").startswith("# IPAdapter Advanced")


@pytest.mark.parametrize("node_id", FACTS)
def test_every_choice_is_a_list_of_its_values(info: Any, node_id: str) -> None:
    entries = [entry for group in info[node_id]["input"].values() for entry in group.values()]
    assert [entry for entry in entries if entry[0] == "COMBO"] == []


@pytest.mark.parametrize("weights", [(1.0,), (1.0, 0.6, 0.3)], ids=["one", "several"])
@pytest.mark.parametrize("weight_type", ["linear", "style transfer", "composition"])
def test_krita_draws_with_references(info: Any, draw: Callable, weights: tuple[float, ...], weight_type: str) -> None:
    assert hosts.krita_connects(info)
    graph = Graph(SD15)
    without = draw(graph, hosts.krita_reference(graph, info, weights, None, weight_type))
    graph = Graph(SD15)
    mask = graph.add("SolidMask", value=0.5, width=64, height=64)
    within = draw(graph, hosts.krita_reference(graph, info, weights, mask, weight_type))
    assert not torch.equal(within, without)


def test_krita_draws_with_a_face(info: Any, draw: Callable) -> None:
    graph = Graph(SD15)
    without = draw(graph, hosts.krita_face(graph, info, None))
    graph = Graph(SD15)
    mask = graph.add("SolidMask", value=0.5, width=64, height=64)
    assert not torch.equal(draw(graph, hosts.krita_face(graph, info, mask)), without)


@pytest.mark.parametrize(
    "prefix",
    [
        pytest.param(prefix, marks=[] if prefix in SHORT else pytest.mark.long)
        for prefix in (*hosts.SWARM_PRESETS, *hosts.SWARM_FACE_PRESETS)
    ],
)
def test_swarm_draws_by_preset(info: Any, draw: Callable, prefix: str) -> None:
    is_face = prefix.startswith("faceid")
    preset = hosts.swarm_preset(info, prefix, is_face=is_face)
    graph = Graph(SDXL if "SDXL only" in preset else SD15)
    draw(graph, hosts.swarm_by_preset(graph, preset, "standard", is_face=is_face))


def test_swarm_draws_with_every_weight_type_it_offers(info: Any, draw: Callable) -> None:
    weight_types = hosts.swarm_choices(info, "IPAdapter", "weight_type")
    drawn = []
    for weight_type in weight_types:
        graph = Graph(SDXL)
        preset = hosts.swarm_preset(info, "standard", is_face=False)
        drawn.append(draw(graph, hosts.swarm_by_preset(graph, preset, weight_type, is_face=False)))
    assert len(drawn) == 3
    assert all(not torch.equal(first, second) for first, second in pairwise(drawn))


def test_swarm_draws_with_a_file_and_an_encoder_of_its_own(info: Any, draw: Callable) -> None:
    files = hosts.swarm_choices(info, "IPAdapterModelLoader", "ipadapter_file")
    assert "ip-adapter_sdxl.safetensors" in files
    graph = Graph(SDXL)
    draw(graph, hosts.swarm_by_file(graph, "ip-adapter_sdxl.safetensors", hosts.BIG_G))


def test_easy_use_draws_what_the_node_draws(draw: Callable) -> None:
    file = "ip-adapter-plus_sd15.safetensors"
    graph = Graph(SD15)
    encoder = graph.encoder(hosts.VIT_H)
    given = {"model": graph.checkpoint, "clip_vision": encoder, "image": graph.image, "weight": 0.8}
    called = draw(graph, graph.add("HostApply", file=file, **given))
    graph = Graph(SD15)
    encoder = graph.encoder(hosts.VIT_H)
    given |= {"ipadapter": graph.add("IPAdapterModelLoader", ipadapter_file=file)}
    widgets = {"weight_type": "linear", "combine_embeds": "concat", "start_at": 0.0, "end_at": 1.0}
    own = draw(graph, graph.add("IPAdapterAdvanced", **given, **widgets, embeds_scaling="V only"))
    assert torch.equal(called, own)
