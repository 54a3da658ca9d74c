"""The first encoder, and what joins its embeds: positive and negative side behind each other in one tensor."""

from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ....ipadapter_core.encoder.pixels import check_image
from ....ipadapter_core.errors import BadInputError, MismatchError
from ....ipadapter_core.legacy.embeds import describe_embeds
from ....ipadapter_core.legacy.noise import former_noise
from .. import schema
from ..arrivals import checked
from . import schema as former

_SLOTS = 4
SIDES, _STACKED = 2, (3, 4)  # positive and negative; dimensions


class IPAdapterEncoder2023(io.ComfyNode):
    """Encode up to four references; it had the id that today's encoder has."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        images = [_image(number) for number in range(1, _SLOTS + 1)]
        weights = [_weight(number) for number in range(1, _SLOTS + 1)]
        return schema.legacy_schema(
            "IPAdapterEncoder2023",
            "Encode IPAdapter Image",
            "ipadapter/embeds",
            "Encodes up to four references to embeds for Apply IPAdapter from Encoded.",
            native="Encode Image for IP-Adapter",
            inputs=[
                io.ClipVision.Input("clip_vision", tooltip="The image encoder, from Load CLIP Vision."),
                images[0],
                io.Boolean.Input(
                    "ipadapter_plus",
                    default=False,
                    tooltip="On for plus and full-face adapters, which read the hidden states of the encoder.",
                ),
                former.noise(optional=False),
                *weights,
                *images[1:],
            ],
            outputs=[schema.EmbedsSocket.Output(display_name="EMBEDS", tooltip="Both sides, behind each other.")],
        )

    @classmethod
    @checked
    def execute(
        cls,
        clip_vision: Any,
        image_1: Tensor,
        ipadapter_plus: bool,
        noise: float,
        weight_1: float,
        weight_2: float,
        weight_3: float,
        weight_4: float,
        image_2: Tensor | None = None,
        image_3: Tensor | None = None,
        image_4: Tensor | None = None,
    ) -> io.NodeOutput:
        slots = zip((image_1, image_2, image_3, image_4), (weight_1, weight_2, weight_3, weight_4), strict=True)
        given = [(image, weight) for image, weight in slots if image is not None]
        positive = torch.cat([_encode(clip_vision, image, ipadapter_plus) * weight for image, weight in given])
        if noise > 0:
            noised = former_noise([image for image, _ in given], noise)
            negative = _encode(clip_vision, noised, ipadapter_plus)
        elif ipadapter_plus:
            size = clip_vision.image_size
            negative = _encode(clip_vision, torch.zeros(1, size, size, 3), ipadapter_plus).expand_as(positive)
        else:
            negative = torch.zeros_like(positive)
        return io.NodeOutput(torch.stack((positive, negative)))


class IPAdapterBatchEmbeds(io.ComfyNode):
    """Join the embeds of two encoders."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema.legacy_schema(
            "IPAdapterBatchEmbeds",
            "IPAdapter Batch Embeds",
            "ipadapter/embeds",
            "Puts the embeds of two encoders behind each other.",
            native="Combine IP-Adapter Tokens",
            inputs=[
                schema.EmbedsSocket.Input("embed1", tooltip="Embeds of Encode IPAdapter Image."),
                schema.EmbedsSocket.Input("embed2", tooltip="Embeds of another one, with the same settings."),
            ],
            outputs=[schema.EmbedsSocket.Output(display_name="EMBEDS", tooltip="Those of both.")],
        )

    @classmethod
    @checked
    def execute(cls, embed1: Tensor, embed2: Tensor) -> io.NodeOutput:
        first, second = map(_check_stacked, (embed1, embed2))
        if (first.shape[0], *first.shape[2:]) != (second.shape[0], *second.shape[2:]):
            raise MismatchError(
                f"embeds of shapes {list(first.shape)} and {list(second.shape)}",
                expected="embeds made with one image encoder and the same ipadapter_plus",
                action="set both Encode IPAdapter Image nodes alike",
            )
        return io.NodeOutput(torch.cat((first, second.to(first)), dim=1))


def _check_stacked(embeds: object) -> Tensor:
    if isinstance(embeds, Tensor) and embeds.ndim in _STACKED and len(embeds) == SIDES:
        return embeds
    raise BadInputError(
        describe_embeds(embeds),
        expected=f"[{SIDES}, references, width] or [{SIDES}, references, positions, width], both sides behind each other",
        action="connect Encode IPAdapter Image; embeds of IPAdapter Encoder go into IPAdapter Combine Embeds",
    )


def _image(number: int) -> io.Input:
    return io.Image.Input(
        f"image_{number}",
        optional=number > 1,
        tooltip="A reference; a batch is several." + (" Neutral: unconnected." if number > 1 else ""),
    )


def _weight(number: int) -> io.Input:
    return io.Float.Input(
        f"weight_{number}",
        default=1.0,
        min=-1.0,
        max=3.0,
        step=0.01,
        tooltip=f"Multiplies the embeds of image_{number}; no unit. Neutral: 1.",
    )


def _encode(clip_vision: Any, image: Tensor, is_hidden: bool) -> Tensor:
    out = clip_vision.encode_image(check_image(image))
    features: Tensor = out.penultimate_hidden_states if is_hidden else out.image_embeds
    return features.float()


NODES: tuple[type[io.ComfyNode], ...] = (IPAdapterEncoder2023, IPAdapterBatchEmbeds)
