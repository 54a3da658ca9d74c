"""Regions, each with its reference, its mask and its prompt, as lists for IPAdapter from Params."""

from typing import Any

import node_helpers
from comfy_api.latest import io
from torch import Tensor

from ...ipadapter_core.errors import BadInputError
from .arrivals import checked
from .payload import IPAdapterParams
from .schema import ParamsSocket, image, legacy_schema, start_end, weight, weight_type

_FEWEST, _MOST = 2, 5
_NATIVE = "one Apply IP-Adapter from Image per region, with its mask"
_KEYS = tuple(IPAdapterParams.__annotations__)


class IPAdapterRegionalConditioning(io.ComfyNode):
    """One region: its reference and its prompt."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return legacy_schema(
            "IPAdapterRegionalConditioning",
            "IPAdapter Regional Conditioning",
            "ipadapter/params",
            "One region of a picture: a reference for IPAdapter from Params, and prompts that act where the mask is.",
            native=f"{_NATIVE}, and Conditioning (Set Mask)",
            inputs=[
                image(),
                weight(
                    "image_weight",
                    high=3.0,
                    tooltip="How strongly the image acts in the region; no unit. Neutral: 0, not at all; 1 is as trained.",
                ),
                weight(
                    "prompt_weight",
                    low=0.0,
                    high=10.0,
                    tooltip="How strongly the prompts act in the region; no unit. Neutral: 1.",
                ),
                weight_type(),
                *start_end(),
                io.Mask.Input(
                    "mask", optional=True, tooltip="Where the region is, 0..1. Neutral: unconnected, the whole picture."
                ),
                io.Conditioning.Input(
                    "positive", optional=True, tooltip="Prompt of the region. Neutral: unconnected, none goes out."
                ),
                io.Conditioning.Input(
                    "negative", optional=True, tooltip="Negative prompt of the region. Neutral: unconnected."
                ),
            ],
            outputs=[
                ParamsSocket.Output(
                    display_name="IPADAPTER_PARAMS", tooltip="For IPAdapter from Params or Combine Params."
                ),
                io.Conditioning.Output(display_name="POSITIVE", tooltip="The prompt, within the mask."),
                io.Conditioning.Output(display_name="NEGATIVE", tooltip="The negative prompt, within the mask."),
            ],
        )

    @classmethod
    @checked
    def execute(
        cls,
        image: Tensor,
        image_weight: float,
        prompt_weight: float,
        weight_type: str,
        start_at: float,
        end_at: float,
        mask: Tensor | None = None,
        positive: list[Any] | None = None,
        negative: list[Any] | None = None,
    ) -> io.NodeOutput:
        params = IPAdapterParams(
            image=[image],
            attn_mask=[mask],
            weight=[image_weight],
            weight_type=[weight_type],
            start_at=[start_at],
            end_at=[end_at],
        )
        return io.NodeOutput(params, _within(positive, mask, prompt_weight), _within(negative, mask, prompt_weight))


class IPAdapterCombineParams(io.ComfyNode):
    """Several regions."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return legacy_schema(
            "IPAdapterCombineParams",
            "IPAdapter Combine Params",
            "ipadapter/params",
            "Puts the regions of several IPAdapter Regional Conditioning nodes together.",
            native=_NATIVE,
            inputs=[
                ParamsSocket.Input(
                    f"params_{number}",
                    optional=number > _FEWEST,
                    tooltip="Regions." if number <= _FEWEST else "More regions. Neutral: unconnected.",
                )
                for number in range(1, _MOST + 1)
            ],
            outputs=[ParamsSocket.Output(display_name="IPADAPTER_PARAMS", tooltip="All regions.")],
        )

    @classmethod
    @checked
    def execute(
        cls,
        params_1: IPAdapterParams,
        params_2: IPAdapterParams,
        params_3: IPAdapterParams | None = None,
        params_4: IPAdapterParams | None = None,
        params_5: IPAdapterParams | None = None,
    ) -> io.NodeOutput:
        given = (params_1, params_2, params_3, params_4, params_5)
        return io.NodeOutput(combine_params([params for params in given if params is not None]))


def combine_params(parts: list[IPAdapterParams]) -> IPAdapterParams:
    """The lists of several params, one behind the other.

    Raises:
        BadInputError: one that lacks a list.
    """
    for part in parts:
        missing = [key for key in _KEYS if key not in part]
        if missing:
            raise BadInputError(
                f"IPADAPTER_PARAMS without {', '.join(missing)}",
                expected=f"lists for {', '.join(_KEYS)}",
                action="connect the output of IPAdapter Regional Conditioning",
            )
    return IPAdapterParams(
        image=[image for part in parts for image in part["image"]],
        attn_mask=[mask for part in parts for mask in part["attn_mask"]],
        weight=[weight for part in parts for weight in part["weight"]],
        weight_type=[weight_type for part in parts for weight_type in part["weight_type"]],
        start_at=[start for part in parts for start in part["start_at"]],
        end_at=[end for part in parts for end in part["end_at"]],
    )


def _within(conditioning: list[Any] | None, mask: Tensor | None, strength: float) -> list[Any] | None:
    """Conditioning that acts where a mask is."""
    if conditioning is None or mask is None:
        return conditioning
    masks = mask[None] if mask.ndim == 2 else mask
    values = {"mask": masks, "mask_strength": strength, "set_area_to_bounds": False}
    within: list[Any] = node_helpers.conditioning_set_values(conditioning, values)
    return within


NODES: tuple[type[io.ComfyNode], ...] = (IPAdapterRegionalConditioning, IPAdapterCombineParams)
