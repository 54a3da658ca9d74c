"""Prompts and sockets that strangers send, through ComfyUI's own validation and executor: it works or says why not."""

import importlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from legacy import apply_fixtures, face_fixtures
from legacy.running import clip_vision, outputs
from support import comfy_host, encoders
from support.executor import Executor, nodes_of_tests
from support.fuzzing_nodes import GIVEN, Given, NodeFuzzer, defaults

LAYOUT = "sdxl"
SPEAKING = (  # have no file here that they look for, or have but a message
    "IPAdapterUnifiedLoader",
    "IPAdapterUnifiedLoaderCommunity",
    "IPAdapterUnifiedLoaderFaceID",
    "IPAdapterApply2023",
    "IPAdapterCLIPVisionEncode",
    "IPAdapterTilesMasked",
)


@pytest.fixture(scope="module")
def goods(base_directory: Path, model: Callable, make_adapter: Callable, make_tokens: Callable) -> dict[str, Any]:
    """Inputs with which every node of the pack runs."""
    import folder_paths

    face_fixtures.write(base_directory, LAYOUT, "faceid plus", "fuzz-face.safetensors")
    picture, mask = face_fixtures.ONE, torch.rand(1, 12, 16)
    vision = clip_vision()
    adapter = apply_fixtures.adapter(base_directory, LAYOUT, "plus")
    face_model = face_fixtures.usual_face_model(base_directory)
    face = comfy_host.run("IPALoadAdapter", adapter_file="fuzz-face.safetensors", image_encoder="none")
    plus = comfy_host.run("IPALoadAdapter", adapter_file=f"legacy-plus-{LAYOUT}-0.safetensors", image_encoder="none")
    encoders.write_folder("clip", base_directory / "models" / "clip_vision" / "fuzz")
    with_encoder = comfy_host.run(
        "IPALoadAdapter", adapter_file=f"legacy-plus-{LAYOUT}-0.safetensors", image_encoder="fuzz/"
    )
    plain = make_adapter("base", LAYOUT)
    positive, negative = outputs(
        "IPAdapterEncoder", ipadapter=adapter.payload, image=picture, clip_vision=vision, weight=1
    )
    pipeline = {
        "clipvision": {"model": vision},
        "ipadapter": {"model": adapter.payload},
        "insightface": {"model": None},
    }
    inputs = Path(folder_paths.get_input_directory())
    inputs.mkdir(parents=True, exist_ok=True)
    torch.save(positive, inputs / "fuzz.ipadpt")
    region = {"image_weight": 1.0, "prompt_weight": 1.0, "weight_type": "linear", "start_at": 0.0, "end_at": 1.0}
    params = outputs("IPAdapterRegionalConditioning", image=picture, mask=mask, **region)[0]
    strategy = outputs("IPAdapterWeights", **(defaults("IPAdapterWeights") | {"frames": 5, "image": None}))[5]
    tokens = make_tokens(plain)
    by_type = {
        "MODEL": model(LAYOUT),
        "IPADAPTER": dict(adapter.payload),
        "IMAGE": picture,
        "MASK": mask,
        "CLIP_VISION": vision,
        "INSIGHTFACE": face_model,
        "CLIP_VISION,INSIGHTFACE": vision,
        "EMBEDS": positive,
        "CONDITIONING": [[torch.rand(1, 7, 8), {}]],
        "IPADAPTER_PARAMS": params,
        "WEIGHTS_STRATEGY": strategy,
        "IPA_ADAPTER": plain.loaded,
        "IPA_TOKENS": tokens,
        "COMFY_AUTOGROW_V3": None,
        "IPA_WEIGHTS": comfy_host.run("IPALayerWeights", **defaults("IPALayerWeights")),
        "IPA_FACE_MODEL": comfy_host.run("IPALoadFaceModel", face_pack="buffalo_l", device="CPU"),
        "CLIP_VISION_OUTPUT": vision.encode_image(picture),
    }
    stacked = torch.stack((positive, negative))
    special: dict[str, dict[str, Any]] = {
        "IPAdapter": {"ipadapter": pipeline},
        "IPAEncodeImage": {"adapter": plus},
        "IPAEncodeFace": {"adapter": face},
        "IPAApplyImage": {"adapter": with_encoder},
        "IPAdapterApplyEncoded": {"embeds": stacked},
        "IPAdapterBatchEmbeds": {"embed1": stacked, "embed2": stacked},
        "IPALoadAdapter": {"adapter_file": plain.name, "image_encoder": "none"},
        "IPAdapterLoadEmbeds": {"embeds": "fuzz.ipadpt"},
        "IPAApplyFaceLora": {"adapter": face},
        "IPAdapterModelLoader": {"ipadapter_file": plain.name},
        "IPACombineTokens": {"tokens.tokens0": tokens, "tokens.tokens1": tokens},
    }
    payload = outputs("IPAdapterModelLoader", ipadapter_file="fuzz-face.safetensors")[0]
    faces = ("IPAdapterFaceID", "IPAdapterFaceIDKolors", "IPAAdapterFaceIDBatch", "IPAdapterApplyFaceID")
    special |= {node_id: {"ipadapter": payload} for node_id in faces}
    ids = {*comfy_host.pack("nodes.legacy.coexistence").ids(), *(n for n in every_node() if n.startswith("IPA"))}
    ids |= {node.GET_SCHEMA().node_id for node in comfy_host.pack("nodes.legacy.former").NODES}
    return {
        node_id: {
            item.id: by_type[item.get_io_type()]
            for item in comfy_host.schema(node_id).inputs
            if by_type.get(item.get_io_type()) is not None
        }
        | special.get(node_id, {})
        for node_id in ids
    }


def every_node() -> dict[str, type]:
    table: dict[str, type] = importlib.import_module("nodes").NODE_CLASS_MAPPINGS
    return table


@pytest.fixture(scope="module")
def fuzzer(goods: dict[str, Any]) -> Iterator[NodeFuzzer]:
    logging.getLogger().setLevel(logging.CRITICAL)
    with nodes_of_tests():
        every_node()[GIVEN] = Given
        yield NodeFuzzer(Executor(), goods)
        del every_node()[GIVEN]


def test_good_inputs_run(fuzzer: NodeFuzzer) -> None:
    """Else the mutated ones would fail for another reason."""
    said = [node_id for node_id in fuzzer.goods if fuzzer.outcome(node_id, fuzzer.inputs(node_id)) != "read"]
    assert sorted(said) == sorted(SPEAKING)


def test_mutated_inputs_run_or_say_why_not(fuzzer: NodeFuzzer, numbers: range, seed: int) -> None:
    tally = fuzzer.fuzz(numbers, seed)
    print(tally)  # noqa: T201 - the count of outcomes
    assert not tally.failures
