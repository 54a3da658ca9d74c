"""What the dropped nodes share: inputs that no later node has."""

from comfy_api.latest import io

from .. import schema

# Today's embeds scaling that computes what a former weight type did; the last one is the nearest there is.
FORMER_SCALINGS = {"original": "V only", "linear": "K+V", "channel penalty": "K+mean(V) w/ C penalty"}


def noise(*, optional: bool = True) -> io.Input:
    """How a negative image is made of the reference."""
    return io.Float.Input(
        "noise",
        default=0.0,
        min=0.0,
        max=1.0,
        step=0.01,
        optional=optional,
        tooltip="Above 0 a copy of the reference, warped, flipped and noised, is the negative image: much noise at 0.01, "
        "little at 1. Neutral: 0, none.",
    )


def weight_type() -> io.Input:
    """What of the image branch the weight multiplies; all layers alike."""
    return io.Combo.Input(
        "weight_type",
        options=list(FORMER_SCALINGS),
        default="original",
        optional=True,
        tooltip="What the weight multiplies: the result (original), keys and values (linear), or keys and the mean of "
        "the values, less in narrow layers (channel penalty). Neutral at weight 1: original and linear.",
    )


def start_end() -> list[io.Input]:
    """As everywhere, but for files saved before they were there."""
    inputs = schema.start_end()
    for item in inputs:
        item.optional = True
    return inputs


def unfold_batch() -> io.Input:
    """Whether references are frames."""
    return io.Boolean.Input(
        "unfold_batch",
        default=False,
        optional=True,
        tooltip="On: image i is for latent i of the batch. Neutral: off, all act together on every latent.",
    )


def encoder() -> io.Input:
    """The image encoder, which came from a node of its own; in December 2023 a face model came this way as well."""
    return io.MultiType.Input(
        "clip_vision",
        [io.ClipVision, schema.InsightFaceSocket],
        tooltip="The image encoder, from Load CLIP Vision; for a FaceID adapter that needs none, a face model.",
    )
