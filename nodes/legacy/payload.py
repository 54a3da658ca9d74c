"""The IPADAPTER socket: what IPAdapter_plus puts on it, what we put on it, and the adapter behind both.

A loader of one file gives a raw adapter: `{"image_proj": {...}, "ip_adapter": {...}}` and two marker keys. A unified
loader gives a pipeline: `{"clipvision": {"file", "model"}, "ipadapter": {"file", "model"}, "insightface": {"provider",
"model"}}` with a raw adapter as the second model. Ours are the same dictionaries, so that other packs can read them,
and carry the loaded adapter besides, so that we need not build it again.
"""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypedDict
from uuid import uuid4

from torch import Tensor

from ...ipadapter_core.encoder.choice import check_encoder, encoder_need
from ...ipadapter_core.errors import BadInputError, MismatchError, shown
from ...ipadapter_core.network.adapter import build_adapter
from ..arrivals import UnfitError, describe, read_tensor, read_vision
from ..encoding.encoder import VisionEncoder, from_clip_vision
from ..sockets import WEIGHT_OPERATIONS, LoadedAdapter

PARTS = ("image_proj", "ip_adapter")
EXPECTED = f"an adapter with its parts {' and '.join(PARTS)}"
ACTION = "connect IPAdapter Unified Loader or IPAdapter Model Loader, and choose an adapter in it"
PLUS_V2, UNNORM = "faceidplusv2", "portraitunnorm"  # marker keys; true where the file's name has "plusv2" or "unnorm"
_MOST_FOREIGN = 2
_MOST_DIMENSIONS = 8  # of a weight


class IPAdapterParams(TypedDict):
    """What travels through IPADAPTER_PARAMS: lists of one length, one entry per region."""

    image: list[Tensor | None]
    attn_mask: list[Tensor | None]
    weight: list[float]
    weight_type: list[str]
    start_at: list[float]
    end_at: list[float]


class RawAdapter(dict[str, Any]):
    """A raw adapter as IPAdapter_plus makes it, which also knows the adapter built from it."""

    def __init__(self, loaded: LoadedAdapter) -> None:
        parts: dict[str, dict[str, Tensor]] = {part: {} for part in PARTS}
        for name, tensor in {**loaded.network.state_dict(), **loaded.network.lora}.items():
            part, _, rest = name.partition(".")
            parts.setdefault(part, {})[rest] = tensor  # some kinds have parts beside
        name = loaded.name.lower()
        super().__init__({**parts, PLUS_V2: "plusv2" in name, UNNORM: "unnorm" in name})
        self.loaded = loaded


@dataclass(frozen=True, eq=False)
class Payload:
    """What arrived on an IPADAPTER socket, and on those that override parts of it.

    Attributes:
        adapter: recognised and built.
        clip_vision: a CLIP_VISION of ComfyUI or a `VisionEncoder`; None if there is none.
        face_model: an INSIGHTFACE; None if there is none.
        raw: the raw adapter, for its marker keys.
        is_pipeline: it came from a unified loader.
    """

    adapter: LoadedAdapter
    clip_vision: object | None
    face_model: object | None
    raw: Mapping[str, Any]
    is_pipeline: bool

    def encoder(self) -> VisionEncoder:
        """The image encoder to use.

        Raises:
            MismatchError: there is none, or it does not fit the adapter.
            BadInputError: the adapter states a resolution it cannot read.
        """
        if self.clip_vision is None:
            raise MismatchError(
                f"{self.adapter.name} without an image encoder",
                expected=encoder_need(self.adapter.spec),
                action="connect a Load CLIP Vision node to clip_vision, or use IPAdapter Unified Loader",
            )
        given = self.clip_vision
        encoder = given if isinstance(given, VisionEncoder) else from_clip_vision(given)
        check_encoder(encoder.spec, self.adapter.spec)
        if self.adapter.spec.base == "Kolors":  # no file says 336, and IPAdapter_plus took any encoder as it is
            return encoder
        return encoder.at(self.adapter.spec.encoder.image_size)


def make_pipeline(
    loaded: LoadedAdapter, *, face_model: object | None = None, provider: str | None = None
) -> dict[str, Any]:
    """A pipeline of an adapter, the image encoder it was loaded with and a face model."""
    encoder = loaded.encoder
    return {
        "clipvision": {
            "file": encoder.name if encoder else None,
            # a folder in transformers layout has no CLIP_VISION of ComfyUI
            "model": (encoder.clip_vision or encoder) if encoder else None,
        },
        "ipadapter": {"file": loaded.name, "model": RawAdapter(loaded)},
        "insightface": {"provider": provider, "model": face_model},
    }


def read_payload(value: Any, clip_vision: object | None = None, insightface: object | None = None) -> Payload:
    """Read an IPADAPTER, ours or that of IPAdapter_plus.

    Args:
        clip_vision, insightface: from sockets of their own; they go before the pipeline's.

    Raises:
        BadInputError: no such payload.
        UnsupportedFamilyError, UnknownCheckpointError, UnreadableFileError: as `build_adapter`, for a foreign one.
    """
    if found := what_is_wrong(value):
        raise BadInputError(found, expected=EXPECTED, action=ACTION)
    is_pipeline = "ipadapter" in value
    raw = _model(value, "ipadapter") if is_pipeline else value
    if is_pipeline:
        clip_vision = _model(value, "clipvision") if clip_vision is None else clip_vision
        insightface = _model(value, "insightface") if insightface is None else insightface
    adapter = raw.loaded if isinstance(raw, RawAdapter) else _foreign(raw)
    return Payload(adapter, clip_vision, insightface, raw, is_pipeline)


def what_is_wrong(value: object) -> str:
    """Why a value is no IPADAPTER, as what was found; empty if it is one."""
    is_pipeline = isinstance(value, Mapping) and "ipadapter" in value
    raw = _model(value, "ipadapter") if is_pipeline else value
    vision = _model(value, "clipvision") if is_pipeline else None
    try:
        if vision is not None:
            read_vision(vision)
    except UnfitError as error:
        return f"an IPADAPTER whose image encoder is {error.found}"
    if isinstance(raw, RawAdapter):
        return ""
    if not isinstance(raw, Mapping) or not all(isinstance(raw.get(part), Mapping) for part in PARTS):
        return f"an IPADAPTER input that is {_describe(raw)}"
    for part in PARTS:
        for name, tensor in raw[part].items():
            try:
                read_tensor(tensor, range(_MOST_DIMENSIONS), is_finite=False)
            except UnfitError as error:
                return f"an IPADAPTER whose {part} has {error.found} as {shown(str(name))}"
    return ""


def _model(pipeline: Any, part: str) -> Any:
    entry = pipeline.get(part)
    return entry.get("model") if isinstance(entry, Mapping) else None


# Raw adapters of other packs, by the identity of their parts, which are kept so that no others take their place.
_built: "OrderedDict[tuple[int, ...], tuple[list[Mapping[str, Tensor]], LoadedAdapter]]" = OrderedDict()


def forget_foreign() -> None:
    """Drop the adapters built for other packs, and our hold on their tensors."""
    _built.clear()


def _foreign(raw: Mapping[str, Any]) -> LoadedAdapter:
    parts = [raw[part] for part in PARTS]
    key = tuple(map(id, parts))
    if key not in _built:
        tensors = {f"{part}.{name}": tensor for part in PARTS for name, tensor in raw[part].items()}
        network = build_adapter(tensors, {}, WEIGHT_OPERATIONS)
        loaded = LoadedAdapter(name="an adapter of another pack", adapter_id=uuid4().hex, network=network, encoder=None)
        _built[key] = (parts, loaded)
        while len(_built) > _MOST_FOREIGN:
            _built.popitem(last=False)
    return _built[key][1]


def _describe(value: object) -> str:
    if isinstance(value, Mapping):
        return describe(value)
    return "empty" if value is None else f"a {type(value).__name__}"
