"""Inputs that several native nodes take."""

from comfy_api.latest import io

from ..ipadapter_core.backbone.registry import base_names
from ..ipadapter_core.strength.presets import ONE_STRENGTH_PRESETS
from .sockets import IPAAdapter, IPASchedule, IPAWeights


def apply_inputs(reference: io.Input) -> list[io.Input]:
    """What every node that patches a model with an adapter takes; `reference` is what it takes the image as."""
    return [
        io.Model.Input("model", tooltip=f"The model to steer: {', '.join(base_names())}."),
        IPAAdapter.Input("adapter", tooltip="An adapter made for this kind of model."),
        reference,
        io.Float.Input(
            "strength",
            default=1.0,
            min=-1.0,
            max=5.0,
            step=0.05,
            tooltip="How strongly the image acts beside the text; no unit. 0 is neutral: the model is unchanged. "
            "1 is as trained, 0.5 to 0.8 leaves more to the text.",
        ),
        io.Float.Input(
            "start_percent",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.001,
            tooltip="Where in the noise schedule the image begins to act, from 0 (start) to 1 (end). Neutral: 0.",
        ),
        io.Float.Input(
            "end_percent",
            default=1.0,
            min=0.0,
            max=1.0,
            step=0.001,
            tooltip="Where in the noise schedule the image stops acting, from 0 (start) to 1 (end). Neutral: 1.",
        ),
        io.Combo.Input(
            "layer_preset",
            options=list(ONE_STRENGTH_PRESETS),
            default="all",
            tooltip="Which attention layers take the image. Neutral: all. 'style' and 'composition' take only the "
            "layers that carry them, and are for UNets (SD1.5, SDXL); 'double blocks' and 'single blocks' are for FLUX.1 and "
            "Chroma.",
        ),
        IPAWeights.Input(
            "layer_weights",
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
    ]
