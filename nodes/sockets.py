"""Socket types of the native nodes, and what travels through them."""

from dataclasses import dataclass, field
from functools import cached_property

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import torch
from comfy_api.latest import io
from torch import Tensor

from ..ipadapter_core.branch.tokens import ImageTokens, features_as_tokens
from ..ipadapter_core.errors import MismatchError
from ..ipadapter_core.file.spec import AdapterSpec
from ..ipadapter_core.network.adapter import IPAdapter
from ..ipadapter_core.network.origin import origin_of
from .encoding.encoder import VisionEncoder

IPAAdapter = io.Custom("IPA_ADAPTER")  # LoadedAdapter
IPATokens = io.Custom("IPA_TOKENS")  # ipadapter_core.branch.tokens.ImageTokens
IPAFaceModel = io.Custom("IPA_FACE_MODEL")  # face_model.FaceModel
IPAGuard = io.Custom("IPA_GUARD")  # ipadapter_core.branch.guard.Guard
IPASchedule = io.Custom("IPA_SCHEDULE")  # ipadapter_core.strength.curve.Schedule
IPAWeights = io.Custom("IPA_WEIGHTS")  # ipadapter_core.strength.layer_weights.LayerWeights
IPARecordSocket = io.Custom("IPA_RECORD")  # ipadapter_core.branch.recording.Record

CATEGORY = "model/patch/ip-adapter"
WEIGHT_OPERATIONS = comfy.ops.manual_cast  # weights stay as stored and are cast to the input's dtype when used


@dataclass(frozen=True, eq=False)
class LoadedAdapter:
    """An adapter under ComfyUI's memory management, with the image encoder it reads.

    Attributes:
        name: file name, for messages.
        adapter_id: identity of the file's content on disk (path, size, time of change).
        encoder: None if none was wanted or connected.
    """

    name: str
    adapter_id: str
    network: IPAdapter
    encoder: VisionEncoder | None
    patcher: comfy.model_patcher.ModelPatcher = field(init=False)

    def __post_init__(self) -> None:
        # Looked up at call time: ComfyUI rebinds CoreModelPatcher at start-up.
        patcher = comfy.model_patcher.CoreModelPatcher(
            self.network,
            load_device=comfy.model_management.get_torch_device(),
            offload_device=comfy.model_management.unet_offload_device(),
        )
        object.__setattr__(self, "patcher", patcher)

    @property
    def spec(self) -> AdapterSpec:
        return self.network.spec

    @cached_property
    def origin(self) -> str:
        """Identity of the adapter by its weights, which a copy of its file has too."""
        return origin_of(self.network)

    def load_to_device(self) -> torch.device:
        """Bring the network to the compute device and return that device."""
        comfy.model_management.load_models_gpu([self.patcher])
        device: torch.device = self.patcher.load_device
        return device

    def project(self, cond: Tensor, uncond: Tensor) -> ImageTokens:
        """Image tokens, on the CPU, of the features (R, E) or (R, S, E) of both sides.

        Of an adapter whose tokens change with the noise level they are the features themselves.
        """
        if self.spec.is_timed:
            return features_as_tokens(cond.float().cpu(), uncond.float().cpu(), self.adapter_id)
        device = self.load_to_device()
        positive, negative = (self.network.project(side.to(device)).cpu() for side in (cond, uncond))
        return ImageTokens(positive, negative, self.adapter_id)


def check_origin(tokens: ImageTokens, adapter: LoadedAdapter) -> None:
    """Raises MismatchError: an adapter together with tokens that another one made."""
    if tokens.adapter_id != adapter.adapter_id:
        raise MismatchError(
            f"tokens that another adapter made, together with {adapter.name}",
            expected=f"tokens encoded with {adapter.name}",
            action="connect one and the same adapter to this node and to the one that the tokens come from",
        )
