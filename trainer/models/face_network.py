"""Face adapters: their specs, what their networks make of faces, and the LoRA that is trained beside them."""

# B samples, K faces of each, I identity dim, S feature positions, E encoder dim, N tokens of a face, C their width

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ipadapter_core.backbone.unet import UNET
from ipadapter_core.errors import MismatchError
from ipadapter_core.face.lora_file import key_name, key_parts
from ipadapter_core.file.detect import face_crop_size
from ipadapter_core.file.spec import (
    PENULTIMATE,
    AdapterSpec,
    EncoderHint,
    FaceSpec,
    Feature,
    Negative,
    Projection,
    ResamplerSpec,
)
from ipadapter_core.network.adapter import IPAdapter

from ..backbones.backbone import Backbone
from ..backbones.image_prompt import LayerLora
from ..config import AdapterConfig
from ..readers.reader import FEATURES, IDENTITY
from .image_encoder import ImageEncoder

IDENTITY_DIM = 512  # of ArcFace, whose embeddings all published face adapters read
LORA_LAYERS = "ipadapter.lora_layers"
"""Metadata: names of the layers that a LoRA is for, in the order of their numbers."""
_PARTS = ("q", "k", "v", "out")
_HIDDEN = 2  # times the embedding's width
_FF_FACTOR = 4
_SEVERAL = 3  # dimensions of embeddings of several faces


@dataclass(frozen=True)
class _Kind:
    """What makes a kind of face adapter.

    Attributes:
        name: in the family's name.
        has_shortcut: as `FaceSpec`.
    """

    name: str
    projection: Projection
    tokens: int
    has_shortcut: bool | None = None


_KINDS = {
    "faceid": _Kind("FaceID", Projection.IDENTITY, 4),
    "faceid_plus": _Kind("FaceID-Plus", Projection.IDENTITY_AND_FACE, 4, has_shortcut=False),
    "faceid_plus_v2": _Kind("FaceID-Plus v2", Projection.IDENTITY_AND_FACE, 4, has_shortcut=True),
    "portrait": _Kind("FaceID portrait", Projection.IDENTITY, 16),
}


def face_adapter_spec(config: AdapterConfig, base: Backbone, encoder: ImageEncoder | None) -> AdapterSpec:
    """What a config of a face kind describes.

    Raises:
        MismatchError: the base is no UNet.
    """
    kind, sites = _KINDS[config.kind], base.sites
    if sites.backbone is not UNET:
        raise MismatchError(
            f'adapter.kind = "{config.kind}" with {base.name}, a {base.word}',
            expected="SD1.5, SD2.x or SDXL: face adapters are trained for their UNets",
            action='choose such a base.model, or adapter.kind = "plus" with pictures of faces',
        )
    dim, tokens = sites.sites[0].context_dim, config.tokens or kind.tokens
    resampler, encoder_hint = None, EncoderHint()
    if kind.projection is Projection.IDENTITY_AND_FACE:
        assert encoder is not None
        encoder_hint = EncoderHint(name=encoder.name, image_size=encoder.format.pixel_format.size)
        resampler = ResamplerSpec(
            dim=dim,
            depth=config.resampler_depth,
            num_heads=max(1, dim // config.resampler_head_dim),
            head_dim=config.resampler_head_dim,
            ff_dim=_FF_FACTOR * dim,
            num_queries=tokens,
        )
    return AdapterSpec(
        family=f"{base.base_name} {kind.name}",
        base=base.base_name,
        projection=kind.projection,
        feature=Feature.IDENTITY if encoder is None else encoder.feature,
        image_dim=IDENTITY_DIM if encoder is None else encoder.width,
        cross_attention_dim=dim,
        num_tokens=tokens,
        site_dims=tuple(site.dim for site in sites.sites),
        negative=Negative.ZERO_FEATURES if encoder is None else Negative.ZERO_PIXELS,
        resampler=resampler,
        layer=PENULTIMATE if encoder is None else encoder.layer,
        encoder=encoder_hint,
        face=replace(face_read(dim), has_shortcut=kind.has_shortcut),
    )


def face_read(token_dim: int) -> FaceSpec:
    """What adapters for a base with text tokens of this width read of a face."""
    return FaceSpec(
        identity_dim=IDENTITY_DIM,
        hidden_dim=_HIDDEN * IDENTITY_DIM,
        crop_size=face_crop_size(token_dim),
        token_dim=token_dim,
    )


def face_tokens(adapter: IPAdapter, features: Mapping[str, Tensor]) -> Tensor:
    """Tokens of B samples: of one face (B, I) each, or of K (B, K, I) behind each other, as the nodes lay several.

    With "plus" also from features of the faces' pictures, (B, S, E) or (B, K, S, E).

    Returns:
        (B, N, C) or (B, K·N, C), float32.
    """
    face = adapter.spec.face
    assert face is not None
    identity, pictures = features[IDENTITY].float(), features.get(FEATURES)
    samples = len(identity)
    if identity.ndim == _SEVERAL:
        identity = identity.flatten(0, 1)
        pictures = None if pictures is None else pictures.flatten(0, 1)
    structure = 1.0 if face.has_shortcut else None
    tokens = adapter.project_faces(identity, None if pictures is None else pictures.float(), structure)
    return tokens.reshape(samples, -1, tokens.shape[-1])


class FaceLora(nn.Module):
    """A LoRA on query, key, value and output of every attention layer, those of self-attention too, of one rank.

    Invariant: `state_dict()` has the published flat names, `ip_adapter.0.to_q_lora.down.weight` and so on.

    Attributes:
        layers: names of the layers in diffusers' model, in the order of their numbers.
    """

    def __init__(self, spec: AdapterSpec, rank: int, layers: tuple[str, ...]) -> None:
        super().__init__()
        self.layers = layers
        self.ip_adapter = nn.ModuleDict()
        for site, dim in enumerate(spec.site_dims):
            for number, context in ((2 * site, dim), (2 * site + 1, spec.cross_attention_dim)):
                inputs = {"q": dim, "k": context, "v": context, "out": dim}
                pairs = {f"to_{part}_lora": _Pair(inputs[part], dim, rank) for part in _PARTS}
                self.ip_adapter[str(number)] = nn.ModuleDict(pairs)

    @classmethod
    def of(cls, adapter: IPAdapter, layers: tuple[str, ...]) -> "FaceLora | None":
        """What a file carries; None if it carries none.

        Raises:
            MismatchError: of some layers only, or of several ranks.
        """
        if not adapter.lora:
            return None
        rank = max(tensor.shape[0] for name, tensor in adapter.lora.items() if key_parts(name)[2] == "down")
        made = cls(adapter.spec, rank, layers)
        made.load(adapter.lora)
        return made

    @property
    def rank(self) -> int:
        return self._weight(0, "q", "down").shape[0]

    def load(self, lora: Mapping[str, Tensor]) -> None:
        """Raises MismatchError if these are tensors of another LoRA."""
        wanted = self.state_dict()
        wrong = [name for name in wanted if name not in lora or lora[name].shape != wanted[name].shape]
        if wrong or len(lora) != len(wanted):
            raise MismatchError(
                f"a LoRA that differs in {wrong[0] if wrong else 'what it has more'}",
                expected=f"rank {self.rank} on query, key, value and output of {len(self.ip_adapter)} attention layers",
                action="set adapter.lora_rank to that of the file, or take another file",
            )
        self.load_state_dict(dict(lora))

    def weights(self) -> tuple[LayerLora, ...]:
        """Down and up of every layer, in the order of their numbers: copies, as FSDP takes the weights away again."""
        return tuple(
            {
                part: (self._weight(number, part, "down").clone(), self._weight(number, part, "up").clone())
                for part in _PARTS
            }
            for number in range(len(self.ip_adapter))
        )

    def _weight(self, number: int, part: str, side: str) -> Tensor:
        return self.get_parameter(key_name(number, part, side))


class _Pair(nn.Module):
    """Up times down, which begins as nothing (arXiv 2106.09685, section 4.1)."""

    def __init__(self, width_in: int, width_out: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Linear(width_in, rank, bias=False)
        self.up = nn.Linear(rank, width_out, bias=False)
        nn.init.normal_(self.down.weight, std=1 / rank)
        nn.init.zeros_(self.up.weight)


def lora_file(lora: Mapping[str, Tensor], layers: tuple[str, ...]) -> dict[str, Tensor]:
    """A LoRA under the names that programs load a file of its own by (kohya-ss' for diffusers' layers)."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in lora.items():
        number, part, side = key_parts(name)
        layer = f"lora_unet_{layers[number]}.to_{'out.0' if part == 'out' else part}".replace(".", "_")
        tensors[f"{layer}.lora_{side}.weight"] = tensor
        if side == "down":  # as strong as it is: alpha over rank is the factor
            tensors[f"{layer}.alpha"] = torch.tensor(float(tensor.shape[0]), dtype=tensor.dtype)
    return tensors
