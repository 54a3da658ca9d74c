"""What arrives on the sockets of IPAdapter_plus: see `nodes/arrivals.py`."""

from collections.abc import Mapping

from ...ipadapter_core.errors import BadInputError
from ...ipadapter_core.legacy.weight_schedule import Strategy
from ..arrivals import IMAGE, KINDS, MASK, TEXT, WEIGHTS, Kind, UnfitError, checker, describe, having, read_tensor
from .payload import ACTION, EXPECTED, what_is_wrong
from .schema import EmbedsSocket, InsightFaceSocket, IPAdapterSocket, ParamsSocket, StrategySocket

_RANKS = (2, 3, 4)  # both sides behind each other count as a dimension
_OF_REGIONS = {
    "image": IMAGE,
    "attn_mask": MASK,
    "weight": WEIGHTS,
    "weight_type": TEXT,
    "start_at": KINDS["FLOAT"],
    "end_at": KINDS["FLOAT"],
}
_NONE_IS_FINE = ("image", "attn_mask")


def _embeds(value: object) -> object:
    embeds = read_tensor(value, _RANKS)
    if not embeds.is_floating_point():
        raise UnfitError(describe(embeds))
    return embeds


def _payload(value: object) -> object:
    if found := what_is_wrong(value):
        raise UnfitError(found)
    return value


def _params(value: object) -> object:
    """Lists of one length, each entry of its kind."""
    if not isinstance(value, Mapping):
        raise UnfitError(describe(value))
    missing = [key for key in _OF_REGIONS if not isinstance(value.get(key), list | tuple)]
    if missing:
        raise UnfitError(f"IPADAPTER_PARAMS without {', '.join(missing)}")
    counts = {key: len(value[key]) for key in _OF_REGIONS}
    if len(set(counts.values())) > 1:
        raise UnfitError(f"IPADAPTER_PARAMS of unequal length ({', '.join(f'{key}: {counts[key]}' for key in counts)})")
    return {key: [_of_region(key, entry) for entry in value[key]] for key in _OF_REGIONS}


def _of_region(key: str, entry: object) -> object:
    if entry is None and key in _NONE_IS_FINE:
        return None
    try:
        return _OF_REGIONS[key].read(entry)
    except UnfitError as error:
        raise UnfitError(f"{error.found} as {key} of a region") from error


def _strategy(value: object) -> object:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise UnfitError(describe(value))
    try:
        Strategy.from_dict(value)
    except BadInputError as error:
        raise UnfitError(error.found) from error
    return value


checked = checker(
    KINDS
    | {
        IPAdapterSocket.io_type: Kind(_payload, EXPECTED, ACTION),
        EmbedsSocket.io_type: Kind(
            _embeds,
            "embeds: a tensor of shape [references, width] or [references, positions, width]",
            "connect IPAdapter Encoder or IPAdapter Load Embeds; for a node of before March 2024, Encode IPAdapter Image",
        ),
        InsightFaceSocket.io_type: Kind(
            having("get", "det_model"),
            "InsightFace's FaceAnalysis, or what speaks its language",
            "connect IPAdapter InsightFace Loader",
        ),
        ParamsSocket.io_type: Kind(
            _params, f"lists for {', '.join(_OF_REGIONS)}", "connect the output of IPAdapter Regional Conditioning"
        ),
        StrategySocket.io_type: Kind(
            _strategy, "the settings of a weight schedule", "connect the weights_strategy of IPAdapter Weights"
        ),
    },
    unread=("encode_batch_size",),
)
