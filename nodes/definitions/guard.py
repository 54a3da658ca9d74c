"""`IPAGuard`: what keeps a strong image prompt from burning the picture."""

from comfy_api.latest import io

from ...ipadapter_core.branch.guard import Guard
from ..arrivals import checked
from ..sockets import CATEGORY
from ..sockets import IPAGuard as Socket

_PART = {"min": 0.0, "max": 1.0, "step": 0.05, "default": 0.0}


class IPAGuard(io.ComfyNode):
    """A guard for Apply IP-Adapter."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IPAGuard",
            display_name="IP-Adapter Guard",
            category=CATEGORY,
            description="Keeps a strong image prompt, or several together, from burning the picture and from drowning the "
            "text.",
            search_aliases=["burn", "overcooked", "rescale", "orthogonal", "pulid fidelity", "too strong"],
            inputs=[
                io.Float.Input(
                    "orthogonal",
                    tooltip="Takes away what of the image repeats the text, so that the text keeps its say; part of it, no unit. "
                    "Neutral: 0.",
                    **_PART,
                ),
                io.Float.Input(
                    "rescale",
                    tooltip="Brings text and image together back to the contrast that text alone has, so that several adapters do "
                    "not burn; part of the way, no unit. Neutral: 0; 0.7 is usual.",
                    **_PART,
                ),
                io.Float.Input(
                    "noise",
                    display_name="negative noise",
                    tooltip="Noise on the negative side, from which the picture moves away: less burnt, more detail; in units of "
                    "the reference's own spread. Neutral: 0; 0.35 is usual.",
                    **_PART,
                ),
            ],
            outputs=[Socket.Output("guard", tooltip="For the guard of Apply IP-Adapter.")],
        )

    @classmethod
    @checked
    def execute(cls, orthogonal: float, rescale: float, noise: float) -> io.NodeOutput:
        return io.NodeOutput(Guard(orthogonal, rescale, noise))
