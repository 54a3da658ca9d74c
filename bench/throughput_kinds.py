"""What `trainer_throughput.py` measures: for each kind of training the shape of its base, who writes that, what our
config asks for, and the plain loop beside it.

Shapes end within minutes on one core. Bases are larger in life: width, depth and encoders shrink together, so that
encoding remains about the share of a transformer's step that it is there at the usual size (`operations` of the result;
docs/scaling.md has those of full-size models). Pictures shrink too, and with them what is computed for each frozen weight: what a plain
loop spends on casting float32 weights in every step is a larger share here than there.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from official_loop import AdapterSize, OfficialLoop, Settings
from plain_anima import PlainAnima
from plain_face_loop import IDENTITY_DIM, FaceLoop
from plain_flow_loop import PlainFlowLoop
from plain_flow_models import PlainFlux, PlainModel, PlainQwenImage, PlainSD3, PlainZImage
from shaped_flow_models import FlowShape, anima, describe_flow, flux, qwen_image, sd3, write_flow_models, z_image
from shaped_models import SD15_LIKE, SMALL, Shape, describe, write_base, write_models, write_pictures

Written = dict[str, Path]


@dataclass(frozen=True)
class Kind:
    """A kind of training.

    Attributes:
        sizes, small: shape of the models and size of the adapter; toy ones.
        write: models and pictures of a shape, into a folder; where they are, by settings of `Settings`.
        describe: a shape in words.
        adapter: our settings for a size.
        loop: the plain loop; it has `step`.
        feature: what of the image encoder is read, as `encoder.feature` calls it.
        plain: what it is called in the result.
    """

    sizes: tuple[Any, AdapterSize]
    small: tuple[Any, AdapterSize]
    write: Callable[[Path, Any], Written]
    describe: Callable[[Any], str]
    adapter: Callable[[AdapterSize], dict[str, Any]]
    loop: Callable[[Settings, AdapterSize], Any]
    plain: str = "plain"
    feature: str = "auto"


def _with_pictures(write: Callable[[Path, Any], tuple[Path, Path]], folder: Path, shape: Any) -> Written:
    base, encoder = write(folder, shape)
    return {"base": base, "encoder": encoder, "data": write_pictures(folder / "pictures", PICTURES, shape.picture)}


def _with_faces(folder: Path, shape: Shape) -> Written:
    """Embeddings are ready, beside the pictures."""
    data = write_pictures(folder / "pictures", PICTURES, shape.picture)
    generator = np.random.default_rng(1)
    for picture in data.parent.glob("*.jpg"):
        embedding = generator.standard_normal(IDENTITY_DIM).astype(np.float32)
        np.save(picture.with_suffix(".npy"), embedding / np.linalg.norm(embedding))
    return {"base": write_base(folder, shape), "data": data}


def _official(settings: Settings, _size: AdapterSize) -> OfficialLoop:
    return OfficialLoop(settings)


def _base(size: AdapterSize) -> dict[str, Any]:
    return {"kind": "base", "tokens": size.tokens}


def _plus(size: AdapterSize) -> dict[str, Any]:
    resampler = {"resampler_dim": size.width, "resampler_depth": size.depth, "resampler_head_dim": size.head_dim}
    return {"kind": "plus", "tokens": size.tokens, **resampler}


def _faceid(size: AdapterSize) -> dict[str, Any]:
    return {"kind": "faceid", "tokens": size.tokens, "lora_rank": size.rank}


PICTURES = 4
# encoding is 0.3 of training here, and more in life (0.7), which a cache would save
_FACE_LIKE = replace(SD15_LIKE, resnets=1, vae_channels=(64, 128, 256, 256))
_FLOW = FlowShape(
    heads=8,
    head_dim=128,
    blocks=4,
    more_blocks=0,
    text_width=512,
    text_layers=2,
    text_tokens=256,
    vae_channels=(16, 32, 64, 64),
    vae_resnets=1,
    vision_width=320,
    vision_layers=2,
    vision_embed=256,
    vision_size=224,
    resolution=256,
    picture=512,
    batch_size=1,
)
_SMALL_FLOW = FlowShape(
    heads=2,
    head_dim=32,
    blocks=2,
    more_blocks=1,
    text_width=256,
    text_layers=1,
    text_tokens=16,
    vae_channels=(16, 16, 16, 16),
    vae_resnets=1,
    vision_width=32,
    vision_layers=2,
    vision_embed=24,
    vision_size=28,
    resolution=64,
    picture=80,
    batch_size=2,
)
_RESAMPLER, _SMALL_RESAMPLER = AdapterSize(16, width=640, depth=2), AdapterSize(4, width=64)


def _flow(
    model: type[PlainModel],
    make: Callable[[Path, FlowShape], Any],
    adapter: Callable[[AdapterSize], dict[str, Any]],
    shape: FlowShape,
    size: AdapterSize,
) -> Kind:
    return Kind(
        sizes=(shape, size),
        small=(_SMALL_FLOW, _SMALL_RESAMPLER),
        write=partial(_with_pictures, partial(write_flow_models, make)),
        describe=describe_flow,
        adapter=adapter,
        loop=lambda settings, wanted: PlainFlowLoop(settings, model, wanted),
    )


KINDS = {
    "unet": Kind(
        sizes=(SD15_LIKE, AdapterSize()),
        small=(SMALL, AdapterSize()),
        write=partial(_with_pictures, write_models),
        describe=describe,
        adapter=_base,
        loop=_official,
        plain="official",
    ),
    "flux": _flow(
        PlainFlux,
        flux,
        _base,
        replace(_FLOW, blocks=2, more_blocks=4, text_width=1024, text_layers=1, text_tokens=128),
        AdapterSize(),
    ),
    "sd3": _flow(
        PlainSD3, sd3, _plus, replace(_FLOW, heads=16, head_dim=64, text_layers=6), replace(_RESAMPLER, tokens=64)
    ),
    "z_image": _flow(PlainZImage, z_image, _plus, replace(_FLOW, blocks=6, more_blocks=1), _RESAMPLER),
    # encoding is 0.13 of training here, and less in life (0.06)
    "qwen_image": _flow(PlainQwenImage, qwen_image, _plus, _FLOW, _RESAMPLER),
    "anima": replace(
        _flow(PlainAnima, anima, _plus, replace(_FLOW, more_blocks=1), replace(_RESAMPLER, head_dim=80)),
        feature="last_hidden_state",
    ),
    "faceid": Kind(
        sizes=(_FACE_LIKE, AdapterSize()),
        small=(SMALL, AdapterSize(rank=4)),
        write=_with_faces,
        describe=describe,
        adapter=_faceid,
        loop=FaceLoop,
    ),
}
