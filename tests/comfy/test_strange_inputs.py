"""Prompts and sockets that strangers send, through ComfyUI's own validation and executor: it works or says why not."""

import gc
import importlib
import logging
import math
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from legacy import apply_fixtures, face_fixtures
from legacy.running import clip_vision, outputs
from support import comfy_host, encoders
from support.executor import Executor, nodes_of_tests
from support.fuzzing_nodes import GIVEN, Given, Link, NodeFuzzer, defaults
from support.strange import ANYTHING, TENSORS

LAYOUT = "sdxl"
SPEAKING = (  # have no file here that they look for, or have but a message
    "AnimaIPAdapterApply",
    "AnimaIPAdapterLoader",
    "ApplyFluxIPAdapter",
    "ApplyIPAdapterFlux",
    "ApplyIPAdapterSD3",
    "IPAdapterFluxLoader",
    "IPAdapterSD3Loader",
    "LoadFluxIPAdapter",
    "IPATrain",
    "IPAdapterUnifiedLoader",
    "IPAdapterUnifiedLoaderCommunity",
    "IPAdapterUnifiedLoaderFaceID",
    "IPAdapterApply2023",
    "IPAdapterCLIPVisionEncode",
    "IPAdapterTilesMasked",
)


@pytest.fixture(scope="module")
def goods(
    base_directory: Path,
    model: Callable,
    make_adapter: Callable,
    make_tokens: Callable,
    apply: Callable,
    sample: Callable,
) -> dict[str, Any]:
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
    recorded, record = comfy_host.call("IPARecord", model=apply(model(LAYOUT), plain, tokens))
    sample(recorded)
    with torch.inference_mode():
        saved = comfy_host.node("IPASaveTokens").EXECUTE_NORMALIZED(
            adapter=plain.loaded, tokens=tokens, filename="fuzz"
        )
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
        "IPA_RECORD": record,
        "IPA_SCHEDULE": comfy_host.run("IPASchedule", **defaults("IPASchedule")),
        "IPA_GUARD": comfy_host.run("IPAGuard", **defaults("IPAGuard")),
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
        "IPALoadFaceModel": {"face_pack": "buffalo_l", "device": "CPU"},
        "IPAdapterLoadEmbeds": {"embeds": "fuzz.ipadpt"},
        "IPAApplyFaceLora": {"adapter": face},
        "IPAdapterModelLoader": {"ipadapter_file": plain.name},
        "IPAGrid": {"tokens.tokens0": tokens},
        "IPAGridSheet": {"labels": "one", "columns": 1},
        "IPALoadTokens": {"tokens_file": saved.ui["tokens"][0]["filename"]},
        "IPACompare": {"clip_vision": vision},
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
    gc.collect()
    gc.freeze()  # ComfyUI collects after each prompt: all that other tests left would be looked at every time
    with nodes_of_tests():
        every_node()[GIVEN] = Given
        yield NodeFuzzer(Executor(), goods)
        del every_node()[GIVEN]
    gc.unfreeze()


def test_good_inputs_run(fuzzer: NodeFuzzer) -> None:
    """Else the mutated ones would fail for another reason."""
    said = [node_id for node_id in fuzzer.goods if fuzzer.outcome(node_id, fuzzer.inputs(node_id)) != "read"]
    assert sorted(said) == sorted(SPEAKING)


def test_mutated_inputs_run_or_say_why_not(fuzzer: NodeFuzzer, numbers: range, seed: int) -> None:
    before = neighbour(fuzzer)
    tally = fuzzer.fuzz(numbers, seed)
    print(f"{tally}\n({fuzzer.refused} of the messages are ComfyUI's own)")  # noqa: T201 - the count of outcomes
    assert not tally.failures
    assert neighbour(fuzzer) == before


def neighbour(fuzzer: NodeFuzzer) -> str:
    """What a good node gives, computed anew."""
    comfy_host.pack("nodes.cache").CACHE.clear()
    inputs = {name: fuzzer.goods["IPAApplyImage"][name] for name in ("adapter", "image")}
    tokens = comfy_host.run("IPAEncodeImage", **inputs, crop="center")
    return str(tokens.digest)


def refused(fuzzer: NodeFuzzer, node_id: str, **changes: Any) -> str:
    """What a node says when other nodes give it these; the executor took no other exception for a message."""
    assert fuzzer.outcome(node_id, fuzzer.inputs(node_id) | {n: Link(v) for n, v in changes.items()}) == "message"
    return fuzzer.said


RARE = ("meta", "whole", "text", "list", "dictionary", "array", "object")


@pytest.mark.parametrize("strange", ["none", *(pytest.param(kind, marks=pytest.mark.long) for kind in RARE)])
def test_every_socket_of_every_node_says_what_it_got(fuzzer: NodeFuzzer, strange: str) -> None:
    for node_id, inputs in fuzzer.goods.items():
        schema = comfy_host.schema(node_id)
        required = [item.id for item in schema.inputs if not item.optional and item.id in inputs]
        for name in required if node_id not in SPEAKING else ():
            value = ANYTHING[strange]()
            if isinstance(inputs[name], str | int):  # a widget
                continue
            if value is None and name == "image_composition":  # without it the style's picture is both
                continue
            said = refused(fuzzer, node_id, **{name: value})
            apply_nodes_own = "no image" in said  # these take a picture by several names
            assert (
                apply_nodes_own
                or f", for {comfy_host.title(node_id, name)} of {schema.display_name}. Expected: " in said
            ), (
                node_id,
                name,
                said,
            )
            assert ". What to do: connect" in said or ". What to do: look at" in said


IMAGE_FAULTS = {
    "numpy": "a NumPy array of shape",
    "list": "a list of 1 (Tensor)",
    "meta": "that is without content",
    "sparse": "that is not dense",
    "quantized": "that is not dense",
    "complex": "type complex64",
    "bool": "type bool",
    "int": "type int64",
    "bytes": "type uint8",
    "one value": "shape []",
    "empty batch": "shape [0, ",
    "nan": "with NaN or infinite values",
    "infinite": "with NaN or infinite values",
}


@pytest.mark.parametrize("fault", IMAGE_FAULTS)
@pytest.mark.parametrize(
    ("node_id", "name"),
    [("IPAEncodeImage", "image"), ("IPAEncodeImage", "negative_image"), ("IPAdapterAdvanced", "image")],
)
def test_images(fuzzer: NodeFuzzer, node_id: str, name: str, fault: str) -> None:
    image = fuzzer.goods[node_id][name]
    said = refused(fuzzer, node_id, **{name: TENSORS[fault](random.Random(0), image)})
    assert IMAGE_FAULTS[fault] in said
    assert f"for {comfy_host.title(node_id, name)} of " in said
    assert "Expected: an IMAGE" in said


@pytest.mark.parametrize("fault", sorted(set(IMAGE_FAULTS) - {"bool", "int", "bytes"}))
@pytest.mark.parametrize(("node_id", "name"), [("IPAApply", "mask"), ("IPAdapterTiled", "attn_mask")])
def test_masks(fuzzer: NodeFuzzer, node_id: str, name: str, fault: str) -> None:
    said = refused(fuzzer, node_id, **{name: TENSORS[fault](random.Random(0), fuzzer.goods[node_id][name])})
    assert IMAGE_FAULTS[fault] in said
    assert f"for {comfy_host.title(node_id, name)} of " in said


@pytest.mark.parametrize("fault", sorted(set(IMAGE_FAULTS) - {"bool"}))
def test_embeds(fuzzer: NodeFuzzer, fault: str) -> None:
    good = fuzzer.goods["IPAdapterEmbeds"]["pos_embed"]
    assert IMAGE_FAULTS[fault] in refused(fuzzer, "IPAdapterEmbeds", pos_embed=TENSORS[fault](random.Random(0), good))


@pytest.mark.parametrize(
    "kind", ["fp8", "float16", "float64", "gradient", "many", "one picture", "thin strip", "one pixel"]
)
@pytest.mark.parametrize("node_id", ["IPAEncodeImage", "IPAdapterAdvanced", "IPAdapterTiled", "IPAdapterWeights"])
def test_unusual_images_are_taken(fuzzer: NodeFuzzer, node_id: str, kind: str) -> None:
    image = TENSORS[kind](random.Random(0), fuzzer.goods[node_id]["image"][:, :40, :40])
    assert fuzzer.outcome(node_id, fuzzer.inputs(node_id) | {"image": Link(image)}) == "read", fuzzer.said


@pytest.mark.parametrize("strip", ["wide strip", "tall strip"])
@pytest.mark.parametrize("node_id", ["IPAEncodeFace", "IPAdapterFaceID", "IPAdapterApplyFaceID"])
def test_a_strip_holds_no_face(fuzzer: NodeFuzzer, node_id: str, strip: str) -> None:
    """And takes no minutes; InsightFace divides by its short side."""
    image = TENSORS[strip](random.Random(0), fuzzer.goods[node_id]["image"])
    assert re.search(
        r"a strip of (1 x 16000|16000 x 1) pixels, in which no face", refused(fuzzer, node_id, image=image)
    )


NUMBERS = {
    "not a number": (math.nan, "the number nan"),
    "infinite": (math.inf, "the number inf"),
    "5,000 digits": (10**5000, "a number of very many digits"),
    "text": ("1.0", "the text '1.0'"),
    "nothing": (None, "nothing (None)"),
    "list of text": (["a"], "a list of 1 (str)"),
    "tensor": (torch.rand(2, 2), "a tensor of shape [2, 2]"),
}


@pytest.mark.parametrize("kind", NUMBERS)
@pytest.mark.parametrize(
    ("node_id", "name"), [("IPAApply", "strength"), ("IPALayerWeights", "style"), ("IPAdapterNoise", "blur")]
)
def test_linked_numbers(base_directory: Path, goods: dict, node_id: str, name: str, kind: str) -> None:
    """Through the class: ComfyUI's own report of an error has no room for 5,000 digits."""
    value, found = NUMBERS[kind]
    widgets = {key: default for key, default in defaults(node_id).items() if default is not None}
    with pytest.raises(
        ValueError,
        match=re.escape(f"Found: {found}") + rf".*, for {comfy_host.title(node_id, name)} of .*Expected: a .*number",
    ):
        comfy_host.call(node_id, **widgets | goods[node_id] | {name: value})


@pytest.mark.parametrize("weights", [[0.5, 1.0], torch.tensor([0.5, 1.0]), np.array([0.5, 1.0]), np.float32(0.5), 1])
def test_weights_per_frame_are_taken(fuzzer: NodeFuzzer, weights: Any) -> None:
    inputs = fuzzer.inputs("IPAdapterAdvanced") | {"weight": Link(weights)}
    assert fuzzer.outcome("IPAdapterAdvanced", inputs) == "read", fuzzer.said


@pytest.mark.parametrize("weights", [[0.5, math.nan], ["a"], [[1.0], [1.0, 2.0]], torch.zeros(400, 300)], ids=str)
def test_weights_that_are_none(fuzzer: NodeFuzzer, weights: Any) -> None:
    assert "for weight of IPAdapter Advanced. Expected: " in refused(fuzzer, "IPAdapterAdvanced", weight=weights)


WORDS: list[tuple[str, str, Any, str]] = [
    ("IPALayerWeights", "site_factors", "9" * 5000 + ": 1", "layer weight '9999"),
    ("IPALayerWeights", "site_factors", "1: " + "9" * 5000, "layer weight '1: 9999"),
    ("IPAdapterMS", "layer_weights", "9" * 5000 + ": 1", "layer weight '9999"),
    ("IPACombineTokens", "weights", "9" * 5000, "weights '9999"),
    ("IPAdapterWeights", "weights", "1\0", r"weights '1\x00'"),
    ("IPAApply", "layer_preset", "\ud800", r"layer preset '\ud800'"),
    ("IPAEncodeImage", "crop", "x" * 100_000, "crop 'xxxx"),
    ("IPAEncodeImage", "crop", 5, "the number 5, for crop of Encode Image for IP-Adapter"),
    ("IPAdapterAdvanced", "weight_type", ["linear"], "a list of 1 (str), for weight_type of IPAdapter Advanced"),
    ("IPAdapterNoise", "strength", -1e9, "strength -1e+09"),
    ("IPAdapterNoise", "blur", 10**9, "blur 1e+09"),
    ("IPAdapterApply", "noise", 1e9, "noise 1e+09"),
    ("IPAdapterWeights", "frames", 10**9, "frames of a weight schedule"),
    ("IPAdapterWeights", "add_starting_frames", -1, "add_starting_frames of a weight schedule"),
    ("IPAdapterLayerWeightsSlider", "layer3", "x", "the text 'x', for layer3 of IPAdapter Layer Weights Slider"),
]


@pytest.mark.parametrize(("node_id", "name", "value", "found"), WORDS, ids=lambda value: str(value)[:20])
def test_linked_words_and_numbers(fuzzer: NodeFuzzer, node_id: str, name: str, value: Any, found: str) -> None:
    said = refused(fuzzer, node_id, **{name: value})
    assert said.startswith(f"Found: {found}")
    assert len(said) < 1000


@pytest.mark.parametrize("frames", ["3", None, 1.5, -1, 10**9], ids=str)
def test_strategies_of_other_packs(fuzzer: NodeFuzzer, frames: Any) -> None:
    strategy = fuzzer.goods["IPAdapterWeightsFromStrategy"]["weights_strategy"] | {"frames": frames}
    said = refused(fuzzer, "IPAdapterWeightsFromStrategy", weights_strategy=strategy)
    assert "frames of a weight schedule that is no number of frames" in said


@pytest.mark.parametrize("name", ["timing", "method"])
def test_strategies_whose_names_are_no_text(fuzzer: NodeFuzzer, name: str) -> None:
    strategy = fuzzer.goods["IPAdapterWeightsFromStrategy"]["weights_strategy"] | {name: np.array([None, "a"])}
    said = refused(fuzzer, "IPAdapterWeightsFromStrategy", weights_strategy=strategy)
    assert f"{name} of a weight schedule that is no text" in said


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"weight": ["x"]}, "the text 'x' as weight of a region"),
        ({"image": [[1]]}, "a list of 1 (int) as image of a region"),
        ({"start_at": [0.0, 0.5]}, "unequal length"),
        ({"attn_mask": 3}, "without attn_mask"),
    ],
)
def test_regions_of_other_packs(fuzzer: NodeFuzzer, change: dict[str, Any], found: str) -> None:
    params = fuzzer.goods["IPAdapterFromParams"]["ipadapter_params"] | change
    said = refused(fuzzer, "IPAdapterFromParams", ipadapter_params=params)
    assert found in said
    assert "for ipadapter_params of IPAdapter from Params" in said


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"clipvision": {"model": "x"}}, "whose image encoder is the text 'x'"),
        ({"ipadapter": {"model": {"image_proj": {"a": [1]}, "ip_adapter": {}}}}, "whose image_proj has a list of 1"),
        ({"ipadapter": {"model": None}}, "an IPADAPTER input that is empty"),
    ],
)
def test_pipelines_of_other_packs(fuzzer: NodeFuzzer, change: dict[str, Any], found: str) -> None:
    pipeline = fuzzer.goods["IPAdapter"]["ipadapter"] | change
    assert found in refused(fuzzer, "IPAdapter", ipadapter=pipeline)


def test_more_frames_than_memory_holds(fuzzer: NodeFuzzer) -> None:
    image = torch.zeros(1, 1, 1, 3).expand(1, 4000, 4000, 3)
    said = refused(fuzzer, "IPAdapterWeights", image=image, frames=2, add_ending_frames=999_000)
    assert said.startswith("Found: 999002 frames of pictures of 4000 x 4000 pixels")


@pytest.mark.parametrize("kind", ["float16", "float64", "fp8"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_the_first_encoder_takes_unusual_images(fuzzer: NodeFuzzer, kind: str, channels: int) -> None:
    image = TENSORS[kind](random.Random(0), torch.rand(1, 20, 20, channels))
    inputs = fuzzer.inputs("IPAdapterEncoder2023") | {"image_1": Link(image)}
    assert fuzzer.outcome("IPAdapterEncoder2023", inputs) == "read", fuzzer.said
