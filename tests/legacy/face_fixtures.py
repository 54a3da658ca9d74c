"""What the tests of the FaceID nodes share: adapters, the face as IPAdapter_plus finds it, and the projections written out.

The formulas are IPAdapter_plus' own; nothing of the pack computes them.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from insightface.utils import face_align
from torch import Tensor
from torch.nn import functional
from torchvision.transforms import functional as pictures

from legacy import plain
from legacy.running import outputs
from support import face_files, tiny_unet
from support.encoders import IMAGE_SIZE, WIDTH
from support.face_files import GREEN, RED, picture
from support.published import random_tensors, tiny_face_adapter, write_safetensors

HEAD_DIM = 8
ONE = picture((RED, 162, 122, 32))
OTHER = picture((RED, 66, 202, 40))
TWO = picture((RED, 40, 40, 30), (GREEN, 160, 160, 100))
STATED = {"resampler": {"head_dim": HEAD_DIM}}
UNNORM = STATED | {"projection": "resampler", "feature": "identity"}
WIDGETS = {
    "weight": 0.8,
    "weight_faceidv2": 0.6,
    "weight_type": "linear",
    "combine_embeds": "concat",
    "start_at": 0.0,
    "end_at": 1.0,
    "embeds_scaling": "V only",
}


def write(
    folder: Path, layout: str, kind: str, name: str, stated: dict[str, Any] = STATED, **sizes: int
) -> dict[str, Tensor]:
    dims = tiny_unet.layout_dims(layout)
    sizes = {"identity": face_files.EMBEDDING, "face": WIDTH} | sizes
    shapes = tiny_face_adapter(kind, site_dims=dims, cross_attention_dim=tiny_unet.CONTEXT_DIM, **sizes)
    tensors = random_tensors(shapes, scale=0.2)
    write_safetensors(folder / "models" / "ipadapter" / name, tensors, {"ipadapter.spec": json.dumps(stated)})
    return tensors


def load(name: str) -> Any:
    return outputs("IPAdapterModelLoader", ipadapter_file=name)[0]


def first_face(face_model: Any, image: Tensor, size: int = 224) -> tuple[Tensor, Tensor, Tensor]:
    """As IPAdapter_plus finds it: normed and raw embedding (1, 512), aligned picture (1, size, size, 3), 0..1.

    A number between two bytes becomes the lower one.
    """
    bgr = np.array(pictures.to_pil_image(image[0].movedim(-1, 0)))[..., ::-1].copy()
    face_model.prepare(ctx_id=0, det_size=(640, 640))
    face = face_model.get(bgr)[0]
    crop = face_align.norm_crop(bgr, face.kps, size)[..., ::-1].copy()
    rows = (torch.from_numpy(np.array(each))[None] for each in (face.normed_embedding, face.embedding))
    return (*rows, torch.from_numpy(crop)[None].float() / 255)


def _linear(x: Tensor, tensors: dict[str, Tensor], name: str) -> Tensor:
    bias = tensors.get(f"image_proj.{name}.bias")
    return functional.linear(x, tensors[f"image_proj.{name}.weight"], bias)


def _norm(x: Tensor, tensors: dict[str, Tensor], name: str) -> Tensor:
    weight, bias = (tensors[f"image_proj.{name}.{part}"] for part in ("weight", "bias"))
    return functional.layer_norm(x, (len(weight),), weight, bias)


def identity_tokens(tensors: dict[str, Tensor], identity: Tensor) -> Tensor:
    hidden = functional.gelu(_linear(identity, tensors, "proj.0"))
    width = len(tensors["image_proj.norm.weight"])
    return _norm(_linear(hidden, tensors, "proj.2").reshape(len(identity), -1, width), tensors, "norm")


def perceive(tensors: dict[str, Tensor], latents: Tensor, features: Tensor, prefix: str, heads: int) -> Tensor:
    x = _linear(features, tensors, f"{prefix}proj_in")
    depth = len({name.split(".layers.")[1].split(".")[0] for name in tensors if ".layers." in name})
    for layer in (f"{prefix}layers.{n}" for n in range(depth)):
        own = _norm(latents, tensors, f"{layer}.0.norm2")
        seen = torch.cat((_norm(x, tensors, f"{layer}.0.norm1"), own), dim=1)
        k, v = _linear(seen, tensors, f"{layer}.0.to_kv").chunk(2, dim=-1)
        attended = plain.softmax_attention(_linear(own, tensors, f"{layer}.0.to_q"), k, v, heads)
        latents = latents + _linear(attended, tensors, f"{layer}.0.to_out")
        hidden = functional.gelu(_linear(_norm(latents, tensors, f"{layer}.1.0"), tensors, f"{layer}.1.1"))
        latents = latents + _linear(hidden, tensors, f"{layer}.1.3")
    return _norm(_linear(latents, tensors, f"{prefix}proj_out"), tensors, f"{prefix}norm_out")


def plus_tokens(tensors: dict[str, Tensor], identity: Tensor, features: Tensor, scale: float | None) -> Tensor:
    """`scale` None is v1."""
    tokens = identity_tokens(tensors, identity)
    heads = tensors["image_proj.perceiver_resampler.layers.0.0.to_q.weight"].shape[0] // HEAD_DIM
    read = perceive(tensors, tokens, features, "perceiver_resampler.", heads)
    return read if scale is None else tokens + scale * read


def seen(vision: Any, image: Tensor) -> Tensor:
    """Penultimate hidden states, the picture cut as ComfyUI cuts it."""
    import comfy.clip_vision

    pixels = comfy.clip_vision.clip_preprocess(image, size=IMAGE_SIZE, mean=vision.image_mean, std=vision.image_std)
    with torch.no_grad():
        return vision.model(pixel_values=pixels.float(), intermediate_output=-2)[1].float()


def steered(tensors: dict[str, Tensor], layout: str, cond: Tensor, uncond: Tensor, **more: Any) -> plain.Plain:
    weights = plain.weights("linear", layout, WIDGETS["weight"])
    return plain.Plain(tensors, cond, uncond, weights=weights, middle=plain.MIDDLE[layout], **more)


NOBODY = torch.zeros(1, face_files.EMBEDDING)


def usual_face_model(folder: Path) -> Any:
    """INSIGHTFACE from the node, on the tiny pack under the usual name below ComfyUI's base directory."""
    face_files.write_pack(folder / "models" / "insightface" / "models" / "buffalo_l")
    return outputs("IPAdapterInsightFaceLoader", provider="CPU", model_name="buffalo_l")[0]
