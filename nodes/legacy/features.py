"""Image features as IPAdapter_plus made them: the middle square as ComfyUI cuts it, black where there is no image."""

import torch
from comfy.clip_vision import clip_preprocess
from torch import Tensor

from ...ipadapter_core.branch.masks import check_mask
from ...ipadapter_core.branch.tokens import ImageTokens
from ...ipadapter_core.encoder.pixels import check_image
from ...ipadapter_core.errors import MismatchError
from ...ipadapter_core.file.spec import USUAL_BACKBONE, Feature, Negative
from ...ipadapter_core.legacy.preparation import square_masks
from ..cache import CACHE
from ..encoding.encoder import VisionEncoder
from ..encoding.pictures import digest
from ..progress import steps
from ..sockets import LoadedAdapter
from .payload import Payload

_RANKS = {Feature.IMAGE_EMBEDS: 2, Feature.HIDDEN_STATES: 3, Feature.LAST_HIDDEN_STATE: 3}
_FORMER = "; embeds of before March 2024 go into Apply IPAdapter from Encoded"


def positive_features(payload: Payload, image: Tensor, mask: Tensor | None = None) -> Tensor:
    """Features of references, from the cache where they were encoded before.

    Args:
        image: (R, H, W, channels), 0..1.
        mask: (M, H', W'), 1 where a reference counts, multiplied onto the normalised pixels; its own middle square is
            laid over that of the picture, the last mask serves further pictures.

    Returns:
        (R, E) or (R, S, E), whichever the adapter reads.

    Raises:
        MismatchError, BadInputError: no fitting encoder, or a picture or mask that cannot be used.
    """
    adapter, encoder = payload.adapter, payload.encoder()
    pictures = check_image(image).cpu()
    masks = None if mask is None else square_masks(check_mask(mask), encoder.pixel_format.size)
    rows: list[Tensor] = []
    for index, picture in steps(enumerate(pictures), pictures):
        seen = None if masks is None else masks[min(index, len(masks) - 1)]
        rows.append(_encode(adapter, encoder, picture[None], seen))
    return torch.cat(rows)


def negative_features(payload: Payload, positive: Tensor, image_negative: Tensor | None = None) -> Tensor:
    """Features of a negative image; without one zeros for adapters that read pooled embeds, else a black picture.

    So did IPAdapter_plus, for UNets; adapters of other base models get what they were trained with.
    """
    if image_negative is not None:
        return positive_features(payload, image_negative)
    spec = payload.adapter.spec
    if spec.backbone != USUAL_BACKBONE and spec.negative is Negative.ZERO_FEATURES:
        return torch.zeros_like(positive)
    if spec.backbone != USUAL_BACKBONE and spec.negative is Negative.SAME_PICTURE:
        return positive
    if spec.feature is Feature.IMAGE_EMBEDS and spec.negative is not Negative.BLACK_PICTURE:
        return torch.zeros_like(positive)
    encoder = payload.encoder()
    size = encoder.pixel_format.size
    return _encode(payload.adapter, encoder, torch.zeros(1, size, size, 3), None)


def image_tokens(adapter: LoadedAdapter, positive: Tensor, negative: Tensor) -> ImageTokens:
    """Image tokens of features, from the cache where they were projected before.

    Raises:
        MismatchError: features of another encoder than the adapter reads.
    """
    spec = adapter.spec
    sides = tuple(side.detach().to("cpu", torch.float32) for side in (positive, negative))
    for side in sides:
        rank = _RANKS.get(spec.feature)
        if side.ndim != rank or side.shape[-1] != spec.image_dim:
            wanted = {2: "[references, ", 3: "[references, positions, "}.get(rank or 0)
            raise MismatchError(
                f"embeds of shape {list(side.shape)} for {spec.family}",
                expected=f"{wanted}{spec.image_dim}]" if wanted else "a face",
                action="encode the reference with this adapter and the image encoder it needs"
                + (_FORMER if side.ndim > (rank or 0) else "")
                if wanted
                else "use IPAdapter FaceID, which finds the face in a picture",
            )
    key = ("tokens of embeds", adapter.adapter_id, *(digest(side) for side in sides))
    return CACHE.get_or_make(key, ImageTokens, lambda: adapter.project(*sides), lambda tokens: tokens.num_bytes)


def _encode(adapter: LoadedAdapter, encoder: VisionEncoder, picture: Tensor, mask: Tensor | None) -> Tensor:
    """Features of one picture (1, H, W, 3)."""

    def encode() -> Tensor:
        form = encoder.pixel_format
        pixels = clip_preprocess(picture, size=form.size, mean=form.mean, std=form.std, crop=True).float()
        return encoder.encode(pixels if mask is None else pixels * mask, adapter.spec)

    spec, masked = adapter.spec, None if mask is None else digest(mask)
    key = ("embeds", encoder.identity, encoder.pixel_format, spec.feature, spec.layer, digest(picture), masked)
    return CACHE.get_or_make(key, Tensor, encode, lambda features: features.nbytes)
