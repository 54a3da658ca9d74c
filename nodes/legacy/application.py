"""Apply an adapter as the nodes of IPAdapter_plus do: their widgets become the records native nodes use."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...ipadapter_core.backbone.sites import Role, Sites
from ...ipadapter_core.branch.masks import BILINEAR, read_mask
from ...ipadapter_core.branch.schedule import percent_range
from ...ipadapter_core.branch.tokens import ImageTokens
from ...ipadapter_core.encoder.pixels import check_image
from ...ipadapter_core.errors import MismatchError
from ...ipadapter_core.legacy.embeds import combine_sides
from ...ipadapter_core.legacy.enhance import enhance
from ...ipadapter_core.legacy.weight_types import parse_layer_weights, resolve_frames
from ...ipadapter_core.strength.scaling import find_scaling
from ...ipadapter_core.strength.site import AnyStrength
from ..patching.application import Limits, fitting_sites, patch_sites
from ..patching.narrowing import narrowed
from ..sockets import LoadedAdapter
from .face_features import encode_faces
from .features import image_tokens, negative_features, positive_features
from .payload import Payload
from .unified import SDXL_NAME, base_of

logger = logging.getLogger(__name__)

Weight = float | Sequence[float] | Tensor  # a list or a tensor has one per frame; packs give NumPy's as well


@dataclass(frozen=True, eq=False, kw_only=True)
class LegacyUse:
    """The widgets of an apply node.

    Attributes:
        weight: no unit; 0 is neutral.
        second: weight of the composition layers, or of all others for "composition precise"; None is the type's own.
        start_at, end_at: 0..1 of the sampling.
        attn_mask: (M, H, W); None is 1 everywhere.
        layer_weights: "transformer: factor" pairs; empty is none.
        per_frame: image i is for latent i; else all act together on every latent.
        weight_faceidv2: how much the face's picture counts in FaceID-Plus v2; None is twice the weight.
        weight_kolors: factor of the layer through which a Kolors model narrows the tokens of its FaceID; 1 is neutral.
        enhance_tiles, enhance_ratio: as of `enhance`, for adapters that read whole pictures; 1 tile is none.
    """

    weight: Weight = 1.0
    weight_type: str = "linear"
    second: Weight | None = None
    start_at: float = 0.0
    end_at: float = 1.0
    embeds_scaling: str = "V only"
    combine_embeds: str = "concat"
    attn_mask: Tensor | None = None
    layer_weights: str = ""
    per_frame: bool = False
    weight_faceidv2: float | None = None
    weight_kolors: float = 1.0
    enhance_tiles: int = 1
    enhance_ratio: float = 1.0

    def but(self, **changes: Any) -> "LegacyUse":
        """The same with other values."""
        return replace(self, **changes)

    @property
    def method(self) -> str:
        """How references are combined; those of frames stay apart."""
        return "concat" if self.per_frame else self.combine_embeds

    @property
    def structure(self) -> float:
        """Factor of the face's picture in FaceID-Plus v2."""
        if self.weight_faceidv2 is not None:
            return self.weight_faceidv2
        return 2 * _per_frame(self.weight)[0]


def list_weights(weight: Weight) -> list[float]:
    """Every weight of one or of many."""
    listed: list[float] = torch.as_tensor(weight, dtype=torch.float64).flatten().tolist()
    return listed


def apply_image(
    model: ModelPatcher, payload: Payload, image: Tensor, use: LegacyUse, image_negative: Tensor | None = None
) -> tuple[ModelPatcher, Tensor]:
    """Encode references and patch a clone of the model. Returns and raises as `encode` and `apply_tokens`."""
    fitting_sites(model, payload.adapter)
    tokens, pictures = encode(payload, image, use, image_negative)
    return apply_tokens(model, payload.adapter, tokens, use), pictures


def encode(
    payload: Payload, image: Tensor, use: LegacyUse, image_negative: Tensor | None = None
) -> tuple[ImageTokens, Tensor]:
    """Image tokens of references, or of the faces in them, combined as the widgets say, and the pictures they show.

    Raises:
        MismatchError, BadInputError: as `encode_faces`, `positive_features` and `image_tokens`.
    """
    if payload.adapter.spec.face is not None:
        return encode_faces(payload, image, use.method, use.structure, image_negative)
    features = partial(positive_features, payload)
    positive = enhance(check_image(image), use.enhance_tiles, use.enhance_ratio, features)
    negative = negative_features(payload, positive, image_negative)
    return tokens_of(payload.adapter, positive, negative, use), image


def tokens_of(adapter: LoadedAdapter, positive: Tensor, negative: Tensor, use: LegacyUse) -> ImageTokens:
    """Image tokens of features, combined as the widgets say."""
    return image_tokens(adapter, *combine_sides(positive, negative, use.method))


def apply_tokens(
    model: ModelPatcher,
    adapter: LoadedAdapter,
    tokens: ImageTokens,
    use: LegacyUse,
    composition: ImageTokens | None = None,
) -> ModelPatcher:
    """Patch a clone of the model; the model itself if nothing would change.

    Args:
        composition: what the composition layers get in place of the tokens' cond side.

    Raises:
        MismatchError: adapter and model do not belong together.
        BadInputError: a weight type, scaling, layer weight, range or mask that cannot be used.
    """
    sites = fitting_sites(model, adapter)
    strengths = _strengths(sites, use)
    mask = None if use.attn_mask is None else read_mask(use.attn_mask)
    if use.start_at > use.end_at or not any(any(strength.factors) for strength in strengths.values()):
        logger.info("IPAdapter has no effect: its weights are 0, or it ends before it starts.")
        return model
    tokens = narrowed(model, adapter.spec, tokens, use.weight_kolors)
    of_site = dict.fromkeys(strengths, tokens)
    if composition is not None:
        composition = narrowed(model, adapter.spec, composition, use.weight_kolors)
        of_site |= dict.fromkeys(_composition_sites(sites) & set(strengths), replace_cond(tokens, composition))
    limits = Limits(percent_range(use.start_at, use.end_at), mask, BILINEAR)
    scaling = find_scaling(use.embeds_scaling)
    return patch_sites(model, sites, adapter, of_site, strengths, limits, scaling, per_frame=use.per_frame)


def replace_cond(tokens: ImageTokens, other: ImageTokens) -> ImageTokens:
    """The cond side of `other` with the uncond side of `tokens`."""
    return ImageTokens(other.cond, tokens.uncond, tokens.adapter_id)


def check_sdxl(model: ModelPatcher) -> None:
    """Raises MismatchError unless the model is SDXL or derived from it."""
    if base_of(model) != SDXL_NAME:
        raise MismatchError(
            f"a model of class {type(model.model).__name__} in a style and composition node",
            expected="an SDXL model",
            action="load an SDXL checkpoint, or use Apply IP-Adapter with layer preset 'style and composition'",
        )


def _strengths(sites: Sites, use: LegacyUse) -> Mapping[int, AnyStrength]:
    seconds = [] if use.second is None else _per_frame(use.second)
    factors = parse_layer_weights(use.layer_weights)
    return resolve_frames(use.weight_type, sites, _per_frame(use.weight), seconds, factors)


def _per_frame(weight: Weight) -> list[float]:
    return list_weights(weight) or [0.0]


def _composition_sites(sites: Sites) -> set[int]:
    roles = sites.roles
    return {site.index for site in sites.sites if roles.get(site.block, (Role.OTHER,))[0] is Role.COMPOSITION}
