"""Kinds of base models that no IP-Adapter was made for, by the names of their classes in ComfyUI; for messages only."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Other:
    """A kind of model without adapters.

    Attributes:
        name: in words.
        matches: whether a model is of this kind.
        note: what people believe of it, and is not so.
    """

    name: str
    matches: Callable[[nn.Module], bool]
    note: str = ""


def _class(name: str) -> Callable[[nn.Module], bool]:
    return lambda model: any(of.__name__ == name for of in type(model).__mro__)


def has_shared_modulation(model: nn.Module) -> bool:
    """FLUX.2: a FLUX by its class, whose blocks share one modulation."""
    return hasattr(model, "double_stream_modulation_img")


OTHERS: tuple[Other, ...] = (
    Other("FLUX.2", has_shared_modulation),
    Other("Lumina", _class("NextDiT")),
    Other("Krea 2", _class("SingleStreamDiT")),
    Other("HiDream", _class("HiDreamImageTransformer2DModel")),
    Other(
        "Wan",
        _class("WanModel"),
        "what goes round as an IP-Adapter for Wan are weights for SD3.5-Large, which do nothing in it",
    ),
    Other("HunyuanVideo or HunyuanImage", _class("HunyuanVideo")),
    Other("HunyuanDiT", _class("HunYuanDiT"), "Tencent's adapter for it runs in Tencent's own program alone"),
    Other("LTX-Video", _class("LTXBaseModel")),
    Other("OmniGen2", _class("OmniGen2Transformer2DModel")),
    Other("PixArt", _class("PixArtMS")),
    Other("Stable Cascade", _class("StageC")),
    Other("Stable Cascade", _class("StageB")),
)


def other_of(model: nn.Module) -> Other | None:
    """What kind of model without adapters this is; None where it is unknown."""
    return next((other for other in OTHERS if other.matches(model)), None)
