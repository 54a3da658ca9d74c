"""References to EMBEDS as IPAdapter_plus encodes them: cut by ComfyUI, a black picture for "no image"."""

import torch
from comfy.clip_vision import clip_preprocess
from torch import Tensor
from torch.nn import functional

from ...ipadapter_core.embeds import combine_embeds
from ...ipadapter_core.errors import MismatchError
from ...ipadapter_core.masks import read_mask
from ...ipadapter_core.preprocess import check_image
from ...ipadapter_core.spec import Feature
from ...ipadapter_core.tokens import ImageTokens
from ..cache import CACHE
from ..encode import digest
from ..encoder import VisionEncoder
from ..progress import steps
from ..types import LoadedAdapter


def embed_images(adapter: LoadedAdapter, encoder: VisionEncoder, image: Tensor, mask: Tensor | None = None) -> Tensor:
    """Features of every picture, (R, E) or (R, S, E), from the cache when they were encoded before.

    Args:
        image: (R, H, W, channels), 0..1; its middle square is seen.
        mask: (1 or R, H, W), multiplied onto the normalised pixels: 0 is the encoder's mean colour.

    Raises:
        BadInputError: a picture or mask that cannot be used.
    """
    pictures = check_image(image)
    masks = None if mask is None else _square(read_mask(mask), encoder.pixel_format.size)
    rows: list[Tensor] = []
    for index, picture in steps(enumerate(pictures), pictures):
        seen = None if masks is None else masks[min(index, len(masks) - 1)]

        def encode(picture: Tensor = picture, seen: Tensor | None = seen) -> Tensor:
            form = encoder.pixel_format
            pixels = clip_preprocess(picture[None].cpu(), size=form.size, mean=form.mean, std=form.std, crop=True)
            return encoder.encode(pixels.float() if seen is None else pixels.float() * seen, adapter.spec)

        spec = adapter.spec
        key = ("embeds", encoder.identity, encoder.pixel_format, spec.feature, spec.layer, digest(picture))
        key = (*key, None if seen is None else digest(seen))
        rows.append(CACHE.get_or_make(key, Tensor, encode, lambda features: features.nbytes))
    return torch.cat(rows)


def negative_embeds(adapter: LoadedAdapter, encoder: VisionEncoder | None, like: Tensor) -> Tensor:
    """What stands for "no image": features of a black picture where the adapter reads hidden states, zeros elsewhere.

    Args:
        encoder: needed for hidden states only.
        like: (R, …) features of the references; the result has one row.

    Raises:
        MismatchError: an encoder is needed and there is none.
    """
    if adapter.spec.feature is Feature.IMAGE_EMBEDS:
        return torch.zeros_like(like[:1])
    if encoder is None:
        raise MismatchError(
            f"{adapter.name} without neg_embed and without an image encoder to make one",
            expected="the embeds of a black picture for the negative side",
            action="connect neg_embed, or a Load CLIP Vision node to clip_vision",
        )
    size = encoder.pixel_format.size
    return embed_images(adapter, encoder, torch.zeros(1, size, size, 3))


def combine_sides(cond: Tensor, uncond: Tensor, method: str) -> tuple[Tensor, Tensor]:
    """References combined into one; of several negatives the first stays. `concat` keeps all of both."""
    if method == "concat" or len(cond) == 1:
        return cond, uncond
    return combine_embeds(cond, method), uncond[:1]


def project(adapter: LoadedAdapter, cond: Tensor, uncond: Tensor) -> ImageTokens:
    """Image tokens of embeds, from the cache when they were projected before.

    Raises:
        MismatchError: embeds of another encoder than the adapter reads.
    """
    for side in (cond, uncond):
        rank = 2 if adapter.spec.feature is Feature.IMAGE_EMBEDS else 3
        if side.ndim != rank or side.shape[-1] != adapter.spec.image_dim:
            raise MismatchError(
                f"embeds of shape {list(side.shape)} for {adapter.spec.family}",
                expected=f"{'[references, ' if rank == 2 else '[references, positions, '}{adapter.spec.image_dim}]",
                action="encode the reference with this adapter, in IPAdapter Encoder",
            )

    def make() -> ImageTokens:
        device = adapter.load_to_device()
        sides = (adapter.network.project(side.to(device, torch.float32)).cpu() for side in (cond, uncond))
        return ImageTokens(*sides, adapter.adapter_id)

    key = ("legacy tokens", adapter.adapter_id, digest(cond), digest(uncond))
    return CACHE.get_or_make(key, ImageTokens, make, lambda tokens: tokens.num_bytes)


def _square(mask: Tensor, size: int) -> Tensor:
    """(M, H, W) cut to its middle square and brought to (M, size, size)."""
    side = min(mask.shape[-2:])
    top, left = (mask.shape[-2] - side) // 2, (mask.shape[-1] - side) // 2
    middle = mask[:, None, top : top + side, left : left + side]
    return functional.interpolate(middle, size=(size, size), mode="bicubic", antialias=True)[:, 0]
