"""Nodes of which too little is known to do what they did: they open with their values, and say what to use instead."""

from collections.abc import Callable
from dataclasses import dataclass

from comfy_api.latest import io

from ....ipadapter_core.errors import BadInputError
from .. import schema
from . import schema as former


@dataclass(frozen=True)
class Gone:
    """A node in words.

    Attributes:
        inputs: made anew for each schema.
        found, expected, action: as in `IPAdapterError`.
        instead: the node to use, for the description.
    """

    node_id: str
    title: str
    inputs: Callable[[], list[io.Input]]
    output: io.Output
    found: str
    expected: str
    action: str
    instead: str


def _optional(*inputs: io.Input) -> list[io.Input]:
    """Prompts of that time may have other names: the node shall run, to say its word, whatever is missing."""
    for item in inputs:
        item.optional = True
    return list(inputs)


GONE = (
    Gone(
        "IPAdapterApply2023",
        "Apply IPAdapter (September 2023)",
        lambda: _optional(
            schema.model(),
            schema.ipadapter(),
            io.ClipVisionOutput.Input("clip_vision_output", tooltip="A picture, encoded."),
            io.Mask.Input("mask", tooltip="Where in the picture the image acts. Neutral: unconnected."),
            schema.weight(high=3.0),
        ),
        schema.model_output(),
        "the first form of Apply IPAdapter, of September 2023, which took an encoded picture",
        "IPAdapter Advanced, which encodes the picture itself",
        "put IPAdapter Advanced here with the same model, ipadapter and weight, connect the picture to image, Load CLIP "
        "Vision to clip_vision, and the mask to attn_mask",
        "Apply IP-Adapter from Image",
    ),
    Gone(
        "IPAdapterCLIPVisionEncode",
        "CLIP Vision Encode (IPAdapter)",
        lambda: _optional(schema.clip_vision(), schema.image()),
        io.ClipVisionOutput.Output(display_name="CLIP_VISION_OUTPUT", tooltip="Nothing comes out any more."),
        "an encoder of IPAdapter_plus that was there in September 2023 only",
        "IPAdapter Advanced, which encodes the picture itself",
        "put IPAdapter Advanced in place of the apply node behind this one, connect the picture to image and Load CLIP "
        "Vision to clip_vision",
        "Encode Image for IP-Adapter",
    ),
    Gone(
        "IPAdapterTilesMasked",
        "IPAdapter Masked Tiles",
        lambda: _optional(
            schema.ipadapter(),
            schema.clip_vision(),
            schema.image(),
            schema.model(),
            schema.weight(high=3.0),
            former.noise(),
            former.weight_type(),
            *former.start_end(),
        ),
        schema.model_output(),
        "an experiment of February 2024, of which IPAdapter_plus itself kept another form",
        "IPAdapter Tiled",
        "put IPAdapter Tiled here with the same inputs, weight, start_at and end_at",
        "docs/migrating.md to find another way",
    ),
)


def _node(gone: Gone) -> type[io.ComfyNode]:
    class Node(io.ComfyNode):
        @classmethod
        def define_schema(cls) -> io.Schema:
            return schema.legacy_schema(
                gone.node_id,
                gone.title,
                "ipadapter",
                f"Does nothing any more: it says what to use instead, {gone.expected}.",
                native=gone.instead,
                inputs=gone.inputs(),
                outputs=[gone.output],
            )

        @classmethod
        def execute(cls, **_inputs: object) -> io.NodeOutput:
            raise BadInputError(gone.found, expected=gone.expected, action=gone.action)

    Node.__name__ = Node.__qualname__ = gone.node_id
    return Node


NODES: tuple[type[io.ComfyNode], ...] = tuple(map(_node, GONE))
