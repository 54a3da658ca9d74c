"""A real server with IPAdapter_plus' ids registered by another pack, loaded before or after ours: its nodes answer."""

from pathlib import Path

import pytest
import yaml

from demo.client import Client
from demo.server import ComfyServer
from legacy.facts import FACTS
from legacy.former_facts import FORMER
from legacy.pack_facts import PACKS

THEIR_IDS = ("IPAdapterAdvanced", "IPAdapterModelLoader", "IPAdapterUnifiedLoader", "PrepImageForClipVision")
THEIR_PACK = "another_pack"
SOURCE = f"""
class Node:
    CATEGORY, FUNCTION, RETURN_TYPES = "theirs", "run", ()

    @classmethod
    def INPUT_TYPES(cls):
        return {{"required": {{}}}}

    def run(self):
        return ()


NODE_CLASS_MAPPINGS = dict.fromkeys({THEIR_IDS}, Node)
"""


@pytest.mark.parametrize(
    "is_first", [True, pytest.param(False, marks=pytest.mark.long)], ids=["loaded before", "loaded after"]
)
def test_their_nodes_answer_and_none_of_ours_is_left(tmp_path: Path, is_first: bool) -> None:
    pack = tmp_path / "packs" / THEIR_PACK
    pack.mkdir(parents=True)
    (pack / "__init__.py").write_text(SOURCE, encoding="utf-8")
    extra = tmp_path / "extra.yaml"
    paths = {
        "base_path": str(tmp_path),
        "is_default": is_first,
        "custom_nodes": "packs",
    }  # ComfyUI's default goes first
    extra.write_text(yaml.safe_dump({"theirs": paths}), encoding="utf-8")
    server = ComfyServer(tmp_path)
    server.options = (
        "--cpu",
        *("--extra-model-paths-config", str(extra)),
        *("--whitelist-custom-nodes", server.pack, THEIR_PACK),
    )
    with server, Client(server.url) as client:
        info = client.get("/object_info")
    assert set(FACTS) & set(info) == set(THEIR_IDS)
    assert {info[node_id]["category"] for node_id in THEIR_IDS} == {"theirs"}
    assert {"IPAApply", *FORMER, *PACKS} <= info.keys()  # what it has dropped it cannot run
    log = server.log.read_text(encoding="utf-8")
    assert log.count("IPAdapter_plus is installed: its own nodes run its workflows") == 1
