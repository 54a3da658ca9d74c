"""What the IPAdapter_plus nodes share: socket types, and the inputs that come back in nearly all of them."""

from comfy_api.latest import io

from ...ipadapter_core.legacy.weight_types import OFFERED_WEIGHT_TYPES
from ...ipadapter_core.strength.scaling import SCALINGS

IPAdapterSocket = io.Custom("IPADAPTER")  # see payload.py
EmbedsSocket = io.Custom("EMBEDS")  # Tensor (R, E) or (R, S, E): image features before the projection
InsightFaceSocket = io.Custom("INSIGHTFACE")
ParamsSocket = io.Custom("IPADAPTER_PARAMS")  # see payload.IPAdapterParams
StrategySocket = io.Custom("WEIGHTS_STRATEGY")  # dict of the schedule's widgets

COMBINE_METHODS = ("concat", "add", "subtract", "average", "norm average")


def legacy_schema(
    node_id: str,
    display_name: str,
    category: str,
    description: str,
    *,
    native: str,
    inputs: list[io.Input],
    outputs: list[io.Output],
    is_output_node: bool = False,
    saved_with: str = "IPAdapter_plus",
) -> io.Schema:
    """The schema of a compatibility node: deprecated, so that search offers the native nodes first.

    Args:
        description: what the node does.
        native: the native way, as a clause such as "Apply IP-Adapter with a layer preset".
        is_output_node: it runs though nothing is connected to it.
        saved_with: the pack that had this node.
    """
    return io.Schema(
        node_id=node_id,
        display_name=display_name,
        category=category,
        description=f"{description} For workflows saved with {saved_with}; in new ones use {native}.",
        inputs=inputs,
        outputs=outputs,
        is_deprecated=True,
        is_output_node=is_output_node,
    )


def model() -> io.Input:
    """The model to steer."""
    return io.Model.Input("model", tooltip="The model to steer: SD1.5, SDXL or derived from them.")


def ipadapter(*, optional: bool = False) -> io.Input:
    """The adapter; optional where it is only handed on."""
    return IPAdapterSocket.Input(
        "ipadapter",
        optional=optional,
        tooltip="The loader before this one, for what both need. Neutral: unconnected."
        if optional
        else "An adapter from one of the IPAdapter loaders.",
    )


def image(name: str = "image", tooltip: str = "Reference image; a batch is several references.") -> io.Input:
    """A reference."""
    return io.Image.Input(name, tooltip=tooltip)


def weight(
    name: str = "weight",
    *,
    low: float = -1.0,
    high: float = 5.0,
    default: float = 1.0,
    tooltip: str = "How strongly the image acts; no unit. Neutral: 0, the model is unchanged.",
) -> io.Input:
    """How strongly something acts."""
    return io.Float.Input(name, default=default, min=low, max=high, step=0.05, tooltip=tooltip)


def face_weight() -> io.Input:
    """How much the picture of a face counts beside its identity."""
    return weight(
        "weight_faceidv2",
        tooltip="FaceID-Plus v2: how much the face's picture counts beside its identity; no unit. Neutral: 1, as trained; "
        "without effect on other adapters.",
    )


def weight_type() -> io.Input:
    """How the weight is spread over the layers."""
    return io.Combo.Input(
        "weight_type",
        options=list(OFFERED_WEIGHT_TYPES),
        default="linear",
        tooltip="How the weight is spread over the attention layers. Neutral: linear, the same in all.",
    )


def combine_embeds(default: str = "concat") -> io.Input:
    """How several references become one."""
    return io.Combo.Input(
        "combine_embeds",
        options=list(COMBINE_METHODS),
        default=default,
        tooltip="How several references become one. 'concat' keeps every one whole. Without effect on one image.",
    )


def embeds_scaling() -> io.Input:
    """What of the image branch the weight multiplies."""
    return io.Combo.Input(
        "embeds_scaling",
        options=list(SCALINGS),
        default="V only",
        tooltip="What the weight multiplies: values only (usual), keys too, less in narrow layers (C penalty). Neutral "
        "at weight 1: V only and K+V.",
    )


def start_end() -> list[io.Input]:
    """The part of the sampling in which the image acts: its start and its end."""
    return [
        io.Float.Input(
            "start_at",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.001,
            tooltip="Where in the sampling the image begins to act, from 0 (start) to 1 (end). Neutral: 0.",
        ),
        io.Float.Input(
            "end_at",
            default=1.0,
            min=0.0,
            max=1.0,
            step=0.001,
            tooltip="Where in the sampling the image stops acting, from 0 (start) to 1 (end). Neutral: 1.",
        ),
    ]


def encode_batch_size() -> io.Input:
    """A widget of the batch nodes that has lost its meaning."""
    return io.Int.Input(
        "encode_batch_size",
        default=0,
        min=0,
        max=4096,
        tooltip="Neutral: any. It was the number of images encoded at a time; here they are encoded one by one and kept.",
    )


def image_negative() -> io.Input:
    """What stands in for a reference on the negative side."""
    return io.Image.Input(
        "image_negative", optional=True, tooltip="What the picture should move away from. Neutral: unconnected."
    )


def sharpening(what: str = "Contrast-adaptive sharpening") -> io.Input:
    """How much a picture is sharpened."""
    return io.Float.Input(
        "sharpening",
        default=0.0,
        min=0.0,
        max=1.0,
        step=0.05,
        tooltip=f"{what}, 0..1; no unit. Neutral: 0, none.",
    )


def face_provider() -> io.Input:
    """Where a face model runs."""
    return io.Combo.Input(
        "provider",
        options=["CPU", "CUDA", "ROCM"],
        default="CPU",
        tooltip="Where faces are recognised; CPU where the other is not there.",
    )


def attn_mask() -> io.Input:
    """Where in the picture the image acts."""
    return io.Mask.Input(
        "attn_mask",
        optional=True,
        tooltip="Where in the picture the image acts, 0..1; a batch is one mask per latent. Neutral: unconnected.",
    )


def clip_vision() -> io.Input:
    """An image encoder that goes before the loader's."""
    return io.ClipVision.Input(
        "clip_vision",
        optional=True,
        tooltip="Image encoder to use in place of the loader's. Neutral: unconnected.",
    )


def insightface() -> io.Input:
    """A face model that goes before the loader's."""
    return InsightFaceSocket.Input(
        "insightface",
        optional=True,
        tooltip="Face model to use in place of the loader's. Neutral: unconnected.",
    )


def model_output() -> io.Output:
    """The patched model."""
    return io.Model.Output(display_name="MODEL", tooltip="The patched model; the one that came in is unchanged.")


def optional_inputs(*, face: bool = False) -> list[io.Input]:
    """The optional inputs of nearly every apply node."""
    return [image_negative(), attn_mask(), clip_vision(), *([insightface()] if face else [])]
