"""Our compatibility nodes as classes of ComfyUI's first node interface, which is what others read and call.

Programs read in `/object_info` that the type of a choice is the list of its values; packs take the classes from
`NODE_CLASS_MAPPINGS`, make instances and call their methods. ComfyUI offers neither for a node of its third interface.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from comfy_api.latest import io

_NO_DEFAULT = inspect.Parameter.empty
_COMBO_ONLY = ("options", "multiselect")  # details of a choice that the first interface lacks
_LOADER = ("model", "preset", "lora_strength", "provider", "ipadapter")


class Choices(list[str]):
    """Values of a choice, to which what gives a COMBO can be linked, as to a choice of the third interface.

    ComfyUI's page lets it be linked, but its server takes a list for another type: it asks whether the two differ.
    """

    def __ne__(self, other: object) -> bool:
        return other != io.Combo.io_type and super().__ne__(other)


@dataclass(frozen=True)
class Method:
    """How IPAdapter_plus calls what a node does.

    Attributes:
        name: of the method.
        order: its arguments by position, where they are not those of our `execute`. Those that the node lacks are taken
            and have no effect, as there.
    """

    name: str
    order: tuple[str, ...] = ()


_APPLY = Method("apply_ipadapter")
_LOAD = Method("load_models", _LOADER)
_APPLY_EMBEDS = Method(
    "apply_ipadapter",
    (
        *("model", "ipadapter", "pos_embed", "weight", "weight_type", "start_at", "end_at"),
        *("neg_embed", "attn_mask", "clip_vision", "embeds_scaling"),
    ),
)
_APPLY_TILED = Method(
    "apply_tiled",
    (
        *("model", "ipadapter", "image", "weight", "weight_type", "start_at", "end_at", "sharpening", "combine_embeds"),
        *("image_negative", "attn_mask", "clip_vision", "embeds_scaling", "encode_batch_size"),
    ),
)
METHODS: dict[str, Method] = {
    "IPAdapter": _APPLY,
    "IPAdapterAdvanced": _APPLY,
    "IPAdapterBatch": _APPLY,
    "IPAdapterFaceID": _APPLY,
    "IPAdapterFaceIDKolors": _APPLY,
    "IPAAdapterFaceIDBatch": _APPLY,
    "IPAdapterTiled": _APPLY_TILED,
    "IPAdapterTiledBatch": _APPLY_TILED,
    "IPAdapterEmbeds": _APPLY_EMBEDS,
    "IPAdapterEmbedsBatch": _APPLY_EMBEDS,
    "IPAdapterStyleComposition": _APPLY,
    "IPAdapterStyleCompositionBatch": _APPLY,
    "IPAdapterMS": _APPLY,
    "IPAdapterClipVisionEnhancer": _APPLY,
    "IPAdapterClipVisionEnhancerBatch": _APPLY,
    "IPAdapterFromParams": _APPLY,
    "IPAdapterPreciseStyleTransfer": _APPLY,
    "IPAdapterPreciseStyleTransferBatch": _APPLY,
    "IPAdapterPreciseComposition": _APPLY,
    "IPAdapterPreciseCompositionBatch": _APPLY,
    "IPAdapterUnifiedLoader": _LOAD,
    "IPAdapterUnifiedLoaderFaceID": _LOAD,
    "IPAdapterUnifiedLoaderCommunity": _LOAD,
    "IPAdapterModelLoader": Method("load_ipadapter_model"),
    "IPAdapterInsightFaceLoader": Method("load_insightface"),
    "IPAdapterEncoder": Method("encode"),
    "IPAdapterCombineEmbeds": Method("batch"),
    "IPAdapterNoise": Method("make_noise"),
    "PrepImageForClipVision": Method("prep_image"),
    "IPAdapterSaveEmbeds": Method("save"),
    "IPAdapterLoadEmbeds": Method("load"),
    "IPAdapterWeights": Method("weights"),
    "IPAdapterCombineWeights": Method("combine"),
    "IPAdapterWeightsFromStrategy": Method("weights"),
    "IPAdapterPromptScheduleFromWeightsStrategy": Method("prompt_schedule"),
    "IPAdapterRegionalConditioning": Method("conditioning"),
    "IPAdapterCombineParams": Method("combine"),
}


def first_interface(node: type[io.ComfyNode], schema: io.Schema) -> type:
    """A node of the third interface as a class of the first: same id, inputs, outputs and texts.

    Args:
        schema: the node's. To make one lists files, so it is made once.
    """
    method = METHODS[schema.node_id]
    outputs = schema.outputs
    attributes: dict[str, Any] = {
        "__doc__": node.__doc__,
        "__module__": node.__module__,
        "INPUT_TYPES": classmethod(lambda cls: input_types(node)),
        "RETURN_TYPES": tuple(output.io_type for output in outputs),
        "RETURN_NAMES": tuple(output.display_name or output.io_type for output in outputs),
        "OUTPUT_TOOLTIPS": tuple(output.tooltip for output in outputs),
        # also keeps from ComfyUI what a method gives its caller beyond the node's outputs
        "OUTPUT_IS_LIST": (False,) * len(outputs),
        "OUTPUT_NODE": schema.is_output_node,
        "FUNCTION": method.name,
        "CATEGORY": schema.category,
        "DESCRIPTION": schema.description,
        "DEPRECATED": schema.is_deprecated,
        # what ComfyUI asks the classes of a pack with an entry point for: their id and title
        "GET_SCHEMA": classmethod(lambda cls: schema),
        method.name: _caller(node, method, schema),
    }
    if node.fingerprint_inputs.__func__ is not io.ComfyNode.fingerprint_inputs.__func__:
        attributes["IS_CHANGED"] = classmethod(lambda cls, **inputs: node.fingerprint_inputs(**inputs))
    return type(node.__name__, (), attributes)


def input_types(node: type[io.ComfyNode]) -> dict[str, dict[str, tuple[Any, dict[str, Any]]]]:
    """A node's inputs, with the files that are there now, in the form of the first interface."""
    groups = node.INPUT_TYPES()
    return {
        group: {name: _first_form(*entry) for name, entry in groups[group].items()}
        for group in ("required", "optional")  # but for "hidden", which no node of ours reads
        if group in groups
    }


def _first_form(kind: str, details: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    if kind != io.Combo.io_type:
        return kind, details
    return Choices(details["options"]), {name: value for name, value in details.items() if name not in _COMBO_ONLY}


def _caller(node: type[io.ComfyNode], method: Method, schema: io.Schema) -> Callable[..., Any]:
    """The method: takes arguments as IPAdapter_plus did, and returns its tuple."""
    known = inspect.signature(node.execute).parameters
    signature = _signature(known, method.order or tuple(known), schema)

    def call(self: object, *args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(self, *args, **kwargs)
        bound.apply_defaults()
        output = node.execute(**{name: value for name, value in bound.arguments.items() if name in known})
        return output.args if output.ui is None else {"ui": output.ui, "result": output.args}

    call.__name__ = method.name
    call.__signature__ = signature  # type: ignore[attr-defined]
    return call


def _signature(known: Mapping[str, inspect.Parameter], order: tuple[str, ...], schema: io.Schema) -> inspect.Signature:
    """Arguments in this order; what need not be given has the default in `known`, or else of the widget."""
    widgets = {item.id: getattr(item, "default", None) for item in schema.inputs}
    parameters = [inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)]
    for name in order:
        default = known[name].default if name in known else None
        if default is _NO_DEFAULT:
            default = _NO_DEFAULT if widgets[name] is None else widgets[name]
        parameters.append(inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default))
    return inspect.Signature(parameters)
