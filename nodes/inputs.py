"""Inputs that several native nodes take, and how they look on the screen."""

from comfy_api.latest import io

from ..ipadapter_core.backbone.registry import base_names
from ..ipadapter_core.branch.schedule import percent_range
from ..ipadapter_core.strength.presets import PRESET_GROUPS
from .errors import problem
from .sockets import IPAAdapter, IPAGuard, IPASchedule, IPAWeights


def strength_input(tooltip: str, *, default: float = 1.0, high: float = 5.0, step: float = 0.05) -> io.Input:
    """A strength: the page shows a slider for the usual ones (`nodes/web/sliders.js`), all of them are taken."""
    return io.Float.Input(
        "strength",
        default=default,
        min=-1.0,
        max=high,
        step=step,
        display_mode=io.NumberDisplay.slider,
        tooltip=tooltip,
    )


def box_inputs() -> list[io.Input]:
    """A part of a picture, as `Box` has it: where it begins, and how wide and high it is."""
    part = {"min": 0.0, "max": 1.0, "step": 0.01}
    tooltips = {
        "x": (0.25, "Of a box: where it begins, 0 left to 1 right. Neutral: 0."),
        "y": (0.25, "Of a box: where it begins, 0 top to 1 bottom. Neutral: 0."),
        "width": (0.5, "Of a box: part of the picture's width. Neutral: 1, all of it."),
        "height": (0.5, "Of a box: part of the picture's height. Neutral: 1, all of it."),
    }
    return [
        io.Float.Input(name, default=default, tooltip=tooltip, **part) for name, (default, tooltip) in tooltips.items()
    ]


def apply_inputs(reference: io.Input) -> list[io.Input]:
    """What every node that patches a model with an adapter takes; `reference` is what it takes the image as."""
    return [
        io.Model.Input("model", tooltip=f"The model to steer: {', '.join(base_names())}."),
        IPAAdapter.Input("adapter", tooltip="An adapter made for this kind of model."),
        reference,
        strength_input(
            "How strongly the image acts beside the text; no unit. 0 is neutral: the model is unchanged. 1 is as "
            "trained, 0.5 to 0.8 leaves more to the text."
        ),
        io.Float.Input(
            "start_percent",
            display_name="start percent",
            advanced=True,
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.001,
            tooltip="Where in the noise schedule the image begins to act, from 0 (start) to 1 (end). Neutral: 0.",
        ),
        io.Float.Input(
            "end_percent",
            display_name="end percent",
            advanced=True,
            default=1.0,
            min=0.0,
            max=1.0,
            step=0.001,
            tooltip="Where in the noise schedule the image stops acting, from 0 (start) to 1 (end). Neutral: 1.",
        ),
        io.Combo.Input(
            "layer_preset",
            display_name="layer preset",
            options=[name for group in PRESET_GROUPS for name in group],
            default="all",
            tooltip="Which attention layers take the image. Neutral: all. Those of style and composition take only the "
            "layers that carry them, and are for UNets (SD1.5, SDXL), as are 'weak …' and 'strong middle'; halves, rises and "
            "eases are for every model; 'double blocks' and 'single blocks' for FLUX.1 and Chroma.",
        ),
        IPAWeights.Input(
            "layer_weights",
            display_name="layer weights",
            optional=True,
            tooltip="Factors from IP-Adapter Layer Weights that multiply the preset's. Neutral: unconnected.",
        ),
        io.Mask.Input(
            "mask",
            optional=True,
            tooltip="Where in the picture the image acts, 0..1, any size; a batch is one mask per latent. Neutral: 1 "
            "everywhere, or unconnected.",
        ),
        IPASchedule.Input(
            "schedule",
            optional=True,
            tooltip="From IP-Adapter Schedule: how the strength changes over steps or frames. Neutral: unconnected.",
        ),
        IPAGuard.Input(
            "guard",
            optional=True,
            tooltip="From IP-Adapter Guard: keeps a strong image, or several, from burning the picture. Neutral: unconnected.",
        ),
    ]


def range_problem(start_percent: float | None, end_percent: float | None) -> bool | str:
    """For `validate_inputs`: True, or what is wrong with a range; one that is linked (None) is not known yet."""
    if start_percent is None or end_percent is None:
        return True
    return problem(lambda: percent_range(start_percent, end_percent))
