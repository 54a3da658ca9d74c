"""`Weights`: a frozen network, known again whatever folder and precision it is loaded in."""

import base64
import hashlib
from dataclasses import dataclass

import torch
from torch import nn

_VALUES_PER_TENSOR = 4
_ROUNDING = 2.0**-7  # of a value, rounded to bfloat16 by way of another type
_SMALLEST = 2.0**-23  # float16 has no finer steps near zero


@dataclass(frozen=True)
class Weights:
    """A few values of each tensor of a network.

    Attributes:
        setting: of the config, that names it.
        place: folder, file or repository it was loaded from, for messages.
        layout: hash of the names and shapes of all tensors.
        values: in bfloat16, as base64.
        form: in which the values are kept, which other forms cannot be compared with.
    """

    setting: str
    place: str
    layout: str
    values: str
    form: str = "none"

    @classmethod
    def of(cls, module: nn.Module, setting: str, place: str, form: str = "none") -> "Weights":
        layout = hashlib.blake2b(digest_size=16)
        some = []
        for name, tensor in module.state_dict().items():
            if not tensor.is_floating_point():
                continue
            layout.update(f"{name}{tuple(tensor.shape)}\n".encode())
            flat = tensor.detach().flatten()
            some.append(flat[:: max(1, flat.numel() // _VALUES_PER_TENSOR)][:_VALUES_PER_TENSOR].cpu().bfloat16())
        values = torch.cat(some).view(torch.int16).numpy().tobytes()
        return cls(setting, place, layout.hexdigest(), base64.b64encode(values).decode(), form)

    def equals(self, other: "Weights") -> bool:
        """Whether both are of the same network, up to the rounding of their precisions."""
        if self.layout != other.layout or len(self.values) != len(other.values):
            return False
        ours, theirs = self._numbers(), other._numbers()
        larger = torch.maximum(ours.abs(), theirs.abs())
        return bool(((ours - theirs).abs() <= _ROUNDING * larger + _SMALLEST).all())

    def _numbers(self) -> torch.Tensor:
        return torch.frombuffer(bytearray(base64.b64decode(self.values)), dtype=torch.bfloat16).float()
