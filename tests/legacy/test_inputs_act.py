"""Every input of every apply node reaches the picture: changed alone, it changes one forward of the tiny UNet."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from legacy.apply_fixtures import adapter, embeds, forward
from legacy.facts import FACTS
from legacy.running import clip_vision, outputs, random_image
from support.encoders import IMAGE_SIZE, PATCH, WIDTH

LAYOUT, POSITIONS = "sdxl", (IMAGE_SIZE // PATCH) ** 2 + 1
APPLY = [
    node_id
    for node_id, facts in FACTS.items()
    if ("MODEL", "MODEL") in facts.outputs
    and any(item.name == "ipadapter" and not item.optional for item in facts.inputs)
]
# by the adapter of these tests, which reads no face; tests/legacy/test_faceid.py has them
OF_FACES = {"weight_faceidv2", "weight_kolors", "insightface"}
CHANGED_WIDGETS = {
    **dict.fromkeys(("weight", "weight_style", "weight_composition", "style_boost", "composition_boost"), 0.5),
    "start_at": 0.9,
    "end_at": 0.1,
    "sharpening": 1.0,
    "enhance_tiles": 3,
    "enhance_ratio": 0.25,
    "expand_style": True,
    "layer_weights": "0: 1, 3: 1",
}


def sockets(seed: int) -> dict[str, Any]:
    pictures = {name: random_image(2, 40, 60, seed=seed) for name in ("image", "image_style", "image_negative")}
    return pictures | {
        "image_composition": random_image(2, 40, 60, seed=seed + 10),
        "pos_embed": embeds(2, seed=seed, positions=POSITIONS, width=WIDTH),
        "neg_embed": embeds(1, seed=seed + 10, positions=POSITIONS, width=WIDTH),
        "attn_mask": torch.cat((torch.ones(1, 8, 4), torch.zeros(1, 8, 4)), dim=2),
        "clip_vision": clip_vision(seed + 1),
        "ipadapter_params": params(image=random_image(2, 40, 60, seed=seed)),
    }


def params(**changes: Any) -> Any:
    region = {"image": random_image(2, 40, 60), "image_weight": 1.0, "prompt_weight": 1.0, "weight_type": "linear"}
    return outputs("IPAdapterRegionalConditioning", **region | {"start_at": 0.0, "end_at": 1.0} | changes)[0]


@pytest.fixture(scope="module")
def draw(base_directory: Path, model: Callable) -> Callable[..., Tensor]:
    """A forward with what a node makes of the inputs that a file has, without its optional ones, and with changes."""
    kept, encoder, drawn = sockets(0), clip_vision(), dict[str, Tensor]()

    def run(node_id: str, **changes: Any) -> Tensor:
        raw = adapter(base_directory, LAYOUT, "plus").payload
        pipeline = {"ipadapter": {"file": "a", "model": raw}, "clipvision": {"file": "b", "model": encoder}}
        given = kept | {"model": model(LAYOUT), "ipadapter": pipeline, "enhance_ratio": 0.5}  # at 1 no tile counts
        required = [item for item in FACTS[node_id].inputs if not item.optional]
        inputs = {item.name: given.get(item.name, item.default) for item in required} | changes
        return forward(outputs(node_id, **inputs)[0], latents=2)

    def remembered(node_id: str, **changes: Any) -> Tensor:
        if changes:
            return run(node_id, **changes)
        if node_id not in drawn:
            drawn[node_id] = run(node_id)
        return drawn[node_id]

    return remembered


@pytest.mark.parametrize("node_id", APPLY)
def test_every_input_acts(draw: Callable, node_id: str) -> None:
    before, changed_sockets = draw(node_id), sockets(5)
    idle = []
    for item in FACTS[node_id].inputs:
        if item.name in OF_FACES or item.name in ("model", "ipadapter"):
            continue
        if item.options:
            change: Any = item.options[-1]
        else:
            change = changed_sockets.get(item.name, CHANGED_WIDGETS.get(item.name))
        if torch.equal(draw(node_id, **{item.name: change}), before):
            idle.append(item.name)
    known = ("encode_batch_size", "combine_embeds") if node_id.endswith("Batch") else ()  # frames are not combined
    assert idle == [item.name for item in FACTS[node_id].inputs if item.name in known]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("image_weight", 0.5),
        ("weight_type", "ease in"),
        ("start_at", 0.9),
        ("end_at", 0.1),
        ("mask", torch.zeros(1, 8, 8)),
    ],
)
def test_every_setting_of_a_region_acts(draw: Callable, name: str, change: Any) -> None:
    before = draw("IPAdapterFromParams", ipadapter_params=params())
    after = draw("IPAdapterFromParams", ipadapter_params=params(**{name: change}))
    assert not torch.equal(after, before)


@pytest.mark.parametrize("node_id", [node_id for node_id in APPLY if node_id != "IPAdapterFromParams"])
def test_the_order_of_references_counts_in_batch_nodes_alone(draw: Callable, node_id: str) -> None:
    given = sockets(0)
    names = [item.name for item in FACTS[node_id].inputs if item.name in ("image", "image_style", "pos_embed")]
    (name,) = names
    forward_order, reversed_order = draw(node_id), draw(node_id, **{name: given[name].flip(0)})
    is_same = torch.allclose(forward_order, reversed_order, atol=1e-5)
    assert is_same != node_id.endswith("Batch")
