"""`IPAdapterNoise`: a negative image made of noise."""

from collections.abc import Callable

import torch
from comfy_api.latest import io
from torch import Tensor
from torchvision.transforms import ElasticTransform
from torchvision.transforms import functional as pictures

from ...ipadapter_core.encoder.pixels import check_image
from ...ipadapter_core.errors import BadInputError
from .schema import legacy_schema

SIDE = 224  # pixels, of what comes out
_SEEDS = 1_000_000_007
_ELASTIC_ALPHA, _ELASTIC_SIGMA = 75.0, 3.5
_SHUFFLE_NOISE = 0.75  # of the strength


def _fade(x: Tensor, strength: float) -> Tensor:
    return x * (1 - strength) + torch.rand_like(x) * strength


def _dissolve(x: Tensor, strength: float) -> Tensor:
    is_replaced = torch.rand_like(x) < strength
    return torch.where(is_replaced, torch.rand_like(x), x)


def _gaussian(x: Tensor, strength: float) -> Tensor:
    return x + torch.randn_like(x) * strength


def _shuffle(x: Tensor, strength: float) -> Tensor:
    elastic = ElasticTransform(alpha=_ELASTIC_ALPHA, sigma=(1 - strength) * _ELASTIC_SIGMA)
    x = pictures.hflip(pictures.vflip(elastic(x.movedim(-1, 1)))).movedim(1, -1).contiguous()
    noise = torch.randn_like(x) * (_SHUFFLE_NOISE * strength)
    return x * (1 - noise) + noise


NOISES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "fade": _fade,
    "dissolve": _dissolve,
    "gaussian": _gaussian,
    "shuffle": _shuffle,
}


def make_noise(kind: str, strength: float, blur: int, image: Tensor | None) -> Tensor:
    """Noise over the middle square of pictures, or over black.

    Args:
        kind: a key of `NOISES`.
        strength: 0 leaves the picture, 1 leaves nothing of it (gaussian and shuffle: something).
        blur: size of a gaussian kernel in pixels; even ones are made odd, 0 is none.
        image: (B, H, W, 3), 0..1.

    Returns:
        (B, 224, 224, 3), 0..1. The seed follows from the picture's content.

    Raises:
        BadInputError: an unknown kind.
    """
    if kind not in NOISES:
        raise BadInputError(f"noise type {kind!r}", expected=f"one of {', '.join(NOISES)}", action="choose one of them")
    # Channels last, as pictures are in ComfyUI: the order in which random numbers fall on them.
    x = torch.zeros(1, SIDE, SIDE, 3) if image is None else _square(check_image(image).cpu())
    with torch.random.fork_rng(devices=[]):  # the global generator is the user's: it goes on as if nothing was drawn
        torch.default_generator.manual_seed(int(x.sum().item()) % _SEEDS)
        x = NOISES[kind](x, strength).clamp(0, 1)
    if blur:
        x = pictures.gaussian_blur(x.movedim(-1, 1), blur + 1 - blur % 2).movedim(1, -1)
    return x.contiguous()


def _square(image: Tensor) -> Tensor:
    x = pictures.center_crop(image.movedim(-1, 1), [min(image.shape[1:3])] * 2)
    x = pictures.resize(x, [SIDE, SIDE], pictures.InterpolationMode.BICUBIC, antialias=True)
    return x.movedim(1, -1).contiguous()


class IPAdapterNoise(io.ComfyNode):
    """Make a negative image."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return legacy_schema(
            "IPAdapterNoise",
            "IPAdapter Noise",
            "ipadapter/utils",
            "Makes a negative image of noise, 224 x 224 pixels.",
            native="negative_image of IPAEncodeImage with any picture",
            inputs=[
                io.Combo.Input(
                    "type",
                    options=list(NOISES),
                    default="fade",
                    tooltip="'fade' mixes noise in, 'dissolve' replaces single numbers, 'gaussian' adds, 'shuffle' warps "
                    "and flips the picture.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="How much noise, 0..1; no unit. Neutral: 0, the picture itself.",
                ),
                io.Int.Input(
                    "blur",
                    default=0,
                    min=0,
                    max=32,
                    step=1,
                    tooltip="Size of a gaussian blur after the noise, in pixels. Neutral: 0, none.",
                ),
                io.Image.Input(
                    "image_optional",
                    optional=True,
                    tooltip="What the noise lies over; its middle square is used. Neutral: unconnected, which is black.",
                ),
            ],
            outputs=[io.Image.Output(tooltip="For image_negative of the IPAdapter nodes.")],
        )

    @classmethod
    def execute(cls, type: str, strength: float, blur: int, image_optional: Tensor | None = None) -> io.NodeOutput:
        return io.NodeOutput(make_noise(type, strength, blur, image_optional))


NODES = (IPAdapterNoise,)
