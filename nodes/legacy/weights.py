"""Weights over the frames of an animation, cross-fades between references, and prompts to go with them."""

from collections.abc import Mapping

import comfy.model_management
import torch
from comfy_api.latest import io
from torch import Tensor

from ...ipadapter_core.errors import BadInputError
from ...ipadapter_core.legacy.weight_schedule import (
    LINEAR,
    METHODS,
    TIMINGS,
    Strategy,
    prompt_schedule,
    schedule_weights,
)
from .application import Weight, list_weights
from .arrivals import checked
from .schema import StrategySocket, legacy_schema

_NO_NATIVE = "it too: there is no native weight schedule yet (docs/migrating.md)"
_MOST_FRAMES = 9999
_FRAMES = {
    "frames": (0, "Frames of one pass of the curve; at least 2 unless timing is custom. Neutral: 0."),
    "start_frame": (0, "Frame of a pass at which the weight begins to change. Neutral: 0."),
    "end_frame": (_MOST_FRAMES, "First frame of a pass at which the last weight is reached. Neutral: 9999, the end."),
    "add_starting_frames": (0, "Frames put in front: the first weight, the first image on both outputs. Neutral: 0."),
    "add_ending_frames": (0, "Frames added at the end: the last weight, the last image on both outputs. Neutral: 0."),
}


def _references() -> io.Input:
    return io.Image.Input(
        "image", optional=True, tooltip="References of the animation, one after another. Neutral: none."
    )


def _outputs() -> list[io.Output]:
    return [
        io.Float.Output(display_name="weights", tooltip="One weight per frame, as a list."),
        io.Float.Output(display_name="weights_invert", tooltip="The same list from its end to its beginning."),
        io.Int.Output(display_name="total_frames", tooltip="How many frames there are in all."),
        io.Image.Output(display_name="image_1", tooltip="The reference of each frame."),
        io.Image.Output(display_name="image_2", tooltip="The other reference of each frame; none in a full batch."),
        StrategySocket.Output(display_name="weights_strategy", tooltip="These settings, for another image batch."),
    ]


def _check_memory(count: int, picture: Tensor) -> None:
    """Raises BadInputError if so many pictures do not fit into what is free."""
    needed, free = count * picture.nbytes, comfy.model_management.get_free_memory(torch.device("cpu"))
    if needed > free:
        raise BadInputError(
            f"{count} frames of pictures of {picture.shape[1]} x {picture.shape[0]} pixels, {needed >> 20} MiB",
            expected=f"what fits into the {int(free) >> 20} MiB of memory that are free",
            action="use fewer frames or smaller pictures",
        )


def _run(strategy: Strategy, image: Tensor | None) -> io.NodeOutput:
    schedule = schedule_weights(strategy, 0 if image is None else len(image))
    orders = (schedule.first, schedule.second)
    if image is not None:
        _check_memory(sum(len(order or ()) for order in orders), image[0])
    first, second = (None if image is None or order is None else image[torch.tensor(order)] for order in orders)
    weights = schedule.weights
    return io.NodeOutput(weights, weights[::-1], len(weights), first, second, schedule.strategy.to_dict())


class IPAdapterWeights(io.ComfyNode):
    """A weight for every frame."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return legacy_schema(
            "IPAdapterWeights",
            "IPAdapter Weights",
            "ipadapter/weights",
            "Weights over the frames of an animation, and the references that fade into one another.",
            native=_NO_NATIVE,
            inputs=[
                io.String.Input(
                    "weights",
                    default="1.0, 0.0",
                    multiline=True,
                    tooltip="Weights, separated by commas or line ends; no unit. Only the first and the last count, "
                    "except with timing 'custom'. Neutral: 1.0, as trained all along.",
                ),
                io.Combo.Input(
                    "timing",
                    options=list(TIMINGS),
                    default=LINEAR,
                    tooltip="How the weight changes from the first to the last; 'custom' takes the list as it is.",
                ),
                *(
                    io.Int.Input(name, default=default, min=0, max=_MOST_FRAMES, step=1, tooltip=tooltip)
                    for name, (default, tooltip) in _FRAMES.items()
                ),
                io.Combo.Input(
                    "method",
                    options=list(METHODS),
                    default=METHODS[0],
                    tooltip="'full batch': one pass per image. 'shift batches' and 'alternate batches': one pass from "
                    "each image to the next; alternating, an image keeps its output while it fades in and out.",
                ),
                _references(),
            ],
            outputs=_outputs(),
        )

    @classmethod
    @checked
    def execute(
        cls,
        weights: str,
        timing: str,
        frames: int,
        start_frame: int,
        end_frame: int,
        add_starting_frames: int,
        add_ending_frames: int,
        method: str,
        image: Tensor | None = None,
    ) -> io.NodeOutput:
        strategy = Strategy(
            weights, timing, frames, start_frame, end_frame, add_starting_frames, add_ending_frames, method
        )
        return _run(strategy, image)


class IPAdapterWeightsFromStrategy(io.ComfyNode):
    """The same schedule for other references."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return legacy_schema(
            "IPAdapterWeightsFromStrategy",
            "IPAdapter Weights From Strategy",
            "ipadapter/weights",
            "Runs the settings of an IPAdapter Weights node with another image batch.",
            native=_NO_NATIVE,
            inputs=[
                StrategySocket.Input("weights_strategy", tooltip="Settings from IPAdapter Weights."),
                _references(),
            ],
            outputs=_outputs(),
        )

    @classmethod
    @checked
    def execute(cls, weights_strategy: Mapping[str, object], image: Tensor | None = None) -> io.NodeOutput:
        return _run(Strategy.from_dict(weights_strategy), image)


class IPAdapterPromptScheduleFromWeightsStrategy(io.ComfyNode):
    """Prompts that change with the references."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return legacy_schema(
            "IPAdapterPromptScheduleFromWeightsStrategy",
            "Prompt Schedule From Weights Strategy",
            "ipadapter/weights",
            "Writes a prompt schedule for FizzNodes: each line of the prompt begins with its reference.",
            native=_NO_NATIVE,
            inputs=[
                StrategySocket.Input("weights_strategy", tooltip="Settings from IPAdapter Weights."),
                io.String.Input(
                    "prompt",
                    default="",
                    multiline=True,
                    tooltip="One prompt per line, in the order of the images; the last one is repeated. Neutral: empty.",
                ),
            ],
            outputs=[io.String.Output(display_name="prompt_schedule", tooltip='Lines such as "12": "a red fox",')],
        )

    @classmethod
    @checked
    def execute(cls, weights_strategy: Mapping[str, object], prompt: str) -> io.NodeOutput:
        return io.NodeOutput(prompt_schedule(Strategy.from_dict(weights_strategy), prompt))


class IPAdapterCombineWeights(io.ComfyNode):
    """Two lists of weights one behind the other."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return legacy_schema(
            "IPAdapterCombineWeights",
            "IPAdapter Combine Weights",
            "ipadapter/utils",
            "Puts two lists of weights one behind the other.",
            native=_NO_NATIVE,
            inputs=[
                io.Float.Input(
                    name,
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip=f"The {which} list, from IPAdapter Weights, or one weight; no unit. Neutral: 1, as trained.",
                )
                for name, which in (("weights_1", "first"), ("weights_2", "second"))
            ],
            outputs=[
                io.Float.Output(display_name="weights", tooltip="Both lists, as one."),
                io.Int.Output(display_name="count", tooltip="How many weights there are."),
            ],
        )

    @classmethod
    @checked
    def execute(cls, weights_1: Weight, weights_2: Weight) -> io.NodeOutput:
        weights = [*list_weights(weights_1), *list_weights(weights_2)]
        return io.NodeOutput(weights, len(weights))


NODES = (
    IPAdapterWeights,
    IPAdapterCombineWeights,
    IPAdapterWeightsFromStrategy,
    IPAdapterPromptScheduleFromWeightsStrategy,
)
