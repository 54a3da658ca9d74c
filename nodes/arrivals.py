"""What arrives at a node is of the kind its inputs promise, or one message says which input got what.

ComfyUI compares the declared types of linked sockets and nothing else: packs hand over None and lists, nodes that join
any types hand over anything.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from numbers import Real
from typing import Any, TypeVar, get_args

import numpy as np
import torch
from comfy_api.latest import io
from torch import Tensor

from ..ipadapter_core.branch.guard import Guard
from ..ipadapter_core.branch.recording import Record
from ..ipadapter_core.branch.tokens import ImageTokens
from ..ipadapter_core.errors import BadInputError, shown
from ..ipadapter_core.strength.curve import Schedule
from ..ipadapter_core.strength.layer_weights import LayerWeights
from .encoding.encoder import VisionEncoder
from .encoding.face_model import FaceModel
from .sockets import (
    IPAAdapter,
    IPAFaceModel,
    IPAGuard,
    IPARecordSocket,
    IPASchedule,
    IPATokens,
    IPAWeights,
    LoadedAdapter,
)

Execute = TypeVar("Execute", bound=Callable[..., Any])

_CLIP_VISION = ("model", "patcher", "config", "model_type", "image_size", "image_mean", "image_std", "encode_image")
_MODEL = ("model", "clone", "get_model_object", "model_options")
_NO_DEFAULT = inspect.Parameter.empty
_MOST_WEIGHTS = 100_000  # an hour of film; a picture has more numbers
_AT_ONCE = 16  # pictures whose numbers are looked at together
_LONG = 64  # bits of a number


class UnfitError(Exception):
    """A value that is not of a kind; `found` says what it is."""

    def __init__(self, found: str) -> None:
        super().__init__(found)
        self.found = found


@dataclass(frozen=True)
class Kind:
    """What a type of socket or widget promises.

    Attributes:
        read: the value as nodes use it, or `UnfitError`.
        expected, action: as in `IPAdapterError`.
    """

    read: Callable[[Any], Any]
    expected: str
    action: str


def checker(kinds: Mapping[str, Kind], unread: Sequence[str] = ()) -> Callable[[Execute], Execute]:
    """A decorator for `execute` that reads every input as the kind its node's schema names.

    None is taken where `execute` has it as default, and a number per frame where its annotation admits a tensor. A node
    that takes more than its schema shows has the types of the rest in `beyond_schema`, by name.

    Args:
        kinds: by type of ComfyUI, such as "IMAGE"; what has other types is taken as it is.
        unread: inputs without effect, by name, which may be anything.
    """

    def checked(execute: Execute) -> Execute:
        parameters = inspect.signature(execute).parameters
        defaults = {name: parameter.default for name, parameter in parameters.items()}
        lists = {name for name, parameter in parameters.items() if Tensor in get_args(parameter.annotation)}

        @wraps(execute)
        def check_and_execute(cls: type[io.ComfyNode], *args: Any, **kwargs: Any) -> io.NodeOutput:
            schema = cls.SCHEMA or cls.GET_SCHEMA()
            types = {**getattr(cls, "beyond_schema", {}), **{item.id: _type_of(item) for item in schema.inputs}}
            titles = {name: name for name in types} | {item.id: item.display_name or item.id for item in schema.inputs}
            read = types.keys() - unread
            given = dict(zip([*parameters][1:], args, strict=False)) | kwargs
            for name, value in given.items():
                if name in read and not (value is None and defaults.get(name, _NO_DEFAULT) is None):
                    io_type = PER_FRAME if types[name] == io.Float.io_type and name in lists else types[name]
                    place = f"{titles[name]} of {schema.display_name}"
                    given[name] = (
                        [_read(kinds, io_type, each, place) for each in value]
                        if schema.is_input_list
                        else _read(kinds, io_type, value, place)
                    )
            return execute(cls, **given)

        return check_and_execute  # type: ignore[return-value]

    return checked


def _type_of(item: io.Input) -> str:
    """Of an input that grows, the type of what it takes behind its own."""
    io_type: str = item.get_io_type()
    return f"{io_type} {item.template.input.get_io_type()}" if isinstance(item, io.Autogrow.Input) else io_type


def _read(kinds: Mapping[str, Kind], io_type: str, value: object, place: str) -> object:
    fitting = [kinds[name] for name in io_type.split(",") if name in kinds]
    found = ""
    for kind in fitting:
        try:
            return kind.read(value)
        except UnfitError as error:
            found = error.found
    if not fitting:
        return value
    raise BadInputError(
        f"{found}, for {place}",
        expected=" or ".join(kind.expected for kind in fitting),
        action=" or ".join(kind.action for kind in fitting),
    )


def describe(value: object) -> str:
    """What a value is, in few words."""
    if value is None:
        return "nothing (None)"
    if isinstance(value, Tensor):
        return f"a tensor of shape {list(value.shape)} and type {value.dtype}".replace("torch.", "")
    if isinstance(value, np.ndarray):
        return f"a NumPy array of shape {list(value.shape)}"
    if isinstance(value, str):
        return f"the text '{shown(value)}'"
    if isinstance(value, Real):
        is_long = isinstance(value, int) and value.bit_length() > _LONG
        return "a number of very many digits" if is_long else f"the number {value}"
    if isinstance(value, Mapping):
        return f"a dictionary of {shown(', '.join(map(str, value))) or 'nothing'}"
    if isinstance(value, Sequence):
        kinds = sorted({type(entry).__name__ for entry in value})
        return f"a {type(value).__name__} of {len(value)} ({shown(', '.join(kinds))})"
    return f"a {type(value).__name__}"


def instance_of(kind: type) -> Callable[[object], object]:
    """A reader of objects of a class."""

    def read(value: object) -> object:
        if not isinstance(value, kind):
            raise UnfitError(describe(value))
        return value

    return read


def having(*names: str) -> Callable[[object], object]:
    """A reader of objects that speak a language, by their attributes: packs have classes of their own."""

    def read(value: object) -> object:
        missing = [name for name in names if not hasattr(value, name)]
        if missing:
            raise UnfitError(describe(value))
        return value

    return read


def read_tensor(value: object, ranks: Sequence[int], *, is_finite: bool = True) -> Tensor:
    """A dense tensor of real numbers in memory, with something in it; floats of one byte as float32.

    Args:
        ranks: numbers of dimensions it may have.
        is_finite: its numbers have to be.

    Raises:
        UnfitError: something else.
    """
    if not isinstance(value, Tensor):
        raise UnfitError(describe(value))
    if value.is_meta or value.layout != torch.strided or value.is_nested or value.is_quantized:
        form = "without content" if value.is_meta else "not dense"
        raise UnfitError(f"{describe(value)} that is {form}")
    if value.is_complex() or value.ndim not in ranks or 0 in value.shape:
        raise UnfitError(describe(value))
    if value.is_floating_point():
        if value.element_size() == 1:
            value = value.float()
        if is_finite and not all(bool(part.isfinite().all()) for part in _parts(value)):
            raise UnfitError(f"{describe(value)} with NaN or infinite values")
    return value


def _parts(x: Tensor) -> Sequence[Tensor]:
    return torch.split(x, _AT_ONCE) if x.ndim else (x,)


def _image(value: object) -> Tensor:
    image = read_tensor(value, (3, 4))
    if image.shape[-1] not in (1, 3, 4) or not image.is_floating_point():
        raise UnfitError(describe(image))
    return image[None] if image.ndim == 3 else image


def _mask(value: object) -> Tensor:
    return read_tensor(value, (2, 3))


def read_vision(value: object) -> object:
    """A CLIP_VISION of ComfyUI, or the encoder of our own loader.

    Raises:
        UnfitError: something else.
    """
    return value if isinstance(value, VisionEncoder) else having(*_CLIP_VISION)(value)


def _model(value: object) -> object:
    having(*_MODEL)(value)
    if not hasattr(value.model, "diffusion_model"):  # type: ignore[attr-defined]
        raise UnfitError(f"a model of class {type(value.model).__name__}, which draws nothing")  # type: ignore[attr-defined]
    return value


def _number(value: object) -> float:
    if isinstance(value, Tensor | np.ndarray) and math.prod(value.shape) == 1:
        value = _numbers(value)[0]
    try:
        number = float(value) if isinstance(value, Real) else math.nan
    except OverflowError:
        number = math.nan
    if not math.isfinite(number):
        raise UnfitError(describe(value))
    return number


def _whole_number(value: object) -> int:
    number = _number(value)
    if not number.is_integer():
        raise UnfitError(describe(value))
    return int(number)


def _numbers(value: object) -> list[float]:
    try:
        numbers = torch.as_tensor(value, dtype=torch.float64)
        listed: list[float] = read_tensor(numbers, range(8)).flatten().tolist()
    except (TypeError, ValueError, OverflowError, RuntimeError, UnfitError) as error:
        raise UnfitError(describe(value)) from error
    if len(listed) > _MOST_WEIGHTS:
        raise UnfitError(describe(value))
    return listed


def read_weights(value: object) -> float | list[float]:
    """A number, or a list, tensor or array of them, one per frame.

    Raises:
        UnfitError: something else, or no finite numbers.
    """
    if isinstance(value, Sequence | Tensor | np.ndarray) and not isinstance(value, str):
        is_empty = not (len(value) if isinstance(value, Sequence) else math.prod(value.shape))
        return [] if is_empty else _numbers(value)
    return _number(value)


def _flag(value: object) -> bool:
    if not isinstance(value, bool | np.bool_ | Real) or value not in (0, 1):
        raise UnfitError(describe(value))
    return bool(value)


def _conditioning(value: object) -> object:
    if not isinstance(value, list | tuple) or not all(map(_is_prompt, value)):
        raise UnfitError(describe(value))
    return value


def _is_prompt(pair: object) -> bool:
    return isinstance(pair, list | tuple) and len(pair) > 1 and isinstance(pair[1], dict)


def _growing(read: Callable[[Any], Any], *, may_be_empty: bool) -> Callable[[Any], dict[str, Any]]:
    """A reader of an input that grows: each that is connected, by its name."""

    def read_all(value: object) -> dict[str, Any]:
        entries = value if isinstance(value, Mapping) else {"": value}
        given: dict[str, Any] = {}
        for name, entry in entries.items():
            if entry is None:
                continue
            try:
                given[name] = read(entry)
            except UnfitError as error:
                raise UnfitError(f"{error.found} ({shown(str(name))})" if name else error.found) from error
        if not given and not may_be_empty:
            raise UnfitError("nothing (None)")
        return given

    return read_all


_LOOK = "look at the node it comes from, and connect one that gives"
_CHOOSE = "type it into the widget, or connect a node that gives one"
PER_FRAME = "one number per frame"
IMAGE = Kind(
    _image,
    "an IMAGE: a tensor of shape [batch, height, width, 1, 3 or 4 channels] with values from 0 to 1",
    f"{_LOOK} an IMAGE, not a mask, a latent or a list (lists are made one with a node that makes a batch of them)",
)
MASK = Kind(
    _mask,
    "a MASK: a tensor of shape [batch, height, width] or [height, width] with values from 0 to 1",
    f"{_LOOK} a MASK, not an image or a latent",
)
WEIGHTS = Kind(read_weights, f"a finite number, or a list of them, one per frame and at most {_MOST_WEIGHTS}", _CHOOSE)
TEXT = Kind(instance_of(str), "a text", _CHOOSE)
KINDS: dict[str, Kind] = {
    "IMAGE": IMAGE,
    "MASK": MASK,
    "MODEL": Kind(
        _model, "a MODEL, such as Load Checkpoint gives", "connect the MODEL of a loader, or of what follows it"
    ),
    "CLIP_VISION": Kind(
        read_vision,
        "a CLIP_VISION, an image encoder",
        "connect Load CLIP Vision, or leave it unconnected if it is optional",
    ),
    "CONDITIONING": Kind(_conditioning, "a CONDITIONING, an encoded prompt", "connect CLIP Text Encode (Prompt)"),
    "FLOAT": Kind(_number, "a finite number", _CHOOSE),
    "INT": Kind(_whole_number, "a whole number", _CHOOSE),
    "BOOLEAN": Kind(_flag, "true or false", _CHOOSE),
    "STRING": TEXT,
    "COMBO": Kind(
        instance_of(str), "the name of a choice", "choose one in the widget, or connect a node that gives its name"
    ),
    PER_FRAME: WEIGHTS,
    IPAAdapter.io_type: Kind(instance_of(LoadedAdapter), "an adapter", "connect Load IP-Adapter"),
    IPATokens.io_type: Kind(
        instance_of(ImageTokens), "image tokens", "connect Encode Image for IP-Adapter or Encode Face for IP-Adapter"
    ),
    IPAFaceModel.io_type: Kind(instance_of(FaceModel), "a face model", "connect Load Face Model for IP-Adapter"),
    IPAGuard.io_type: Kind(instance_of(Guard), "a guard", "connect IP-Adapter Guard"),
    IPASchedule.io_type: Kind(instance_of(Schedule), "a schedule", "connect IP-Adapter Schedule"),
    IPAWeights.io_type: Kind(instance_of(LayerWeights), "layer weights", "connect IP-Adapter Layer Weights"),
    IPARecordSocket.io_type: Kind(
        instance_of(Record), "the record of a sampling", "connect Record IP-Adapter Heat Map"
    ),
}
GROWING: dict[str, bool] = {IPATokens.io_type: False, io.Image.io_type: True}  # and whether none at all is fine
KINDS |= {
    f"{io.Autogrow.io_type} {name}": Kind(
        _growing(KINDS[name].read, may_be_empty=may_be_empty), KINDS[name].expected, KINDS[name].action
    )
    for name, may_be_empty in GROWING.items()
}
checked = checker(KINDS)
