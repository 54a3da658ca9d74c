"""`IPASchedule`: strength that changes over the steps or over the frames, drawn on the node."""

from comfy_api.latest import io, ui

from ...ipadapter_core.strength.curve import CURVES, Curve, Schedule, named_curve, parse_curve
from ..arrivals import checked
from ..previews import drawn
from ..sockets import CATEGORY
from ..sockets import IPASchedule as Socket

_POINTS = "points"
_OVER_STEPS, _OVER_FRAMES = "steps", "frames"
_FACTOR = {"min": -5.0, "max": 5.0, "step": 0.05}


class IPASchedule(io.ComfyNode):
    """A schedule for Apply IP-Adapter."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IPASchedule",
            display_name="IP-Adapter Schedule",
            category=CATEGORY,
            description="Lets the strength of an image prompt change over the steps of a sampling, or over the frames of an "
            "animation, where references may fade into one another. Shows the curve.",
            search_aliases=[
                "strength schedule",
                "keyframes",
                "fade",
                "weight curve",
                "prompt travel",
                "IPAdapter Weights",
            ],
            inputs=[
                io.Combo.Input(
                    "over",
                    options=[_OVER_STEPS, _OVER_FRAMES],
                    default=_OVER_STEPS,
                    tooltip="What it runs over: the 'steps' of the sampling, or the 'frames' of the batch of latents.",
                ),
                io.Combo.Input(
                    "curve",
                    options=[*CURVES, _POINTS],
                    default="fade out",
                    tooltip="Its form, between low and high; 'points' reads those below. Neutral: constant.",
                ),
                io.Float.Input(
                    "low",
                    default=0.0,
                    tooltip="Lowest factor of the strength; no unit. 0 is off. Neutral: 1, as set.",
                    **_FACTOR,
                ),
                io.Float.Input(
                    "high",
                    default=1.0,
                    tooltip="Highest factor of the strength; no unit. Neutral: 1, as set.",
                    **_FACTOR,
                ),
                io.String.Input(
                    "points",
                    default="0: 1, 0.5: 0.5, 1: 0",
                    multiline=True,
                    tooltip="For 'points': time and factor, from 0 (the beginning) to 1 (the end), one pair per line or "
                    "separated by commas, with straight lines between. Two pairs of one time are a jump. Neutral: '0: 1'.",
                ),
                io.Int.Input(
                    "frames",
                    default=16,
                    min=1,
                    max=10_000,
                    tooltip="For 'frames': how many there are, as in the batch of latents. Further ones are as the last.",
                ),
                io.Boolean.Input(
                    "fade_references",
                    display_name="fade references",
                    default=False,
                    tooltip="For 'frames': the references take turns, each fading into the next. Neutral: off, all act in all "
                    "frames.",
                ),
            ],
            outputs=[Socket.Output("schedule", tooltip="For the schedule of Apply IP-Adapter.")],
            is_output_node=True,  # seen without anything behind it
        )

    @classmethod
    @checked
    def execute(
        cls, over: str, curve: str, low: float, high: float, points: str, frames: int, fade_references: bool
    ) -> io.NodeOutput:
        shape: Curve = parse_curve(points) if curve == _POINTS else named_curve(curve, low, high)
        has_frames = over == _OVER_FRAMES
        schedule = Schedule(shape, frames if has_frames else None, has_frames and fade_references)
        return io.NodeOutput(schedule, ui=ui.PreviewImage(drawn(shape, over), cls=cls))
