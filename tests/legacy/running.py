"""What the tests of the compatibility nodes run them with."""

import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from support import comfy_host
from support.encoders import EMBED_DIM, HEADS, IMAGE_SIZE, LAYERS, PATCH, WIDTH

# For loaders of ComfyUI that build what they load at full size only.
STAND_INS = {"CheckpointLoaderSimple": "TinyCheckpoint", "CLIPVisionLoader": "TinyCLIPVision"}
SIDE, STEPS = 64, 3  # of a workflow made small; three steps, so that one lies well within any range
_VISION = {
    "model_type": "clip_vision_model",
    "hidden_act": "gelu",
    "hidden_size": WIDTH,
    "intermediate_size": 2 * WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_channels": 3,
    "image_size": IMAGE_SIZE,
    "patch_size": PATCH,
    "projection_dim": EMBED_DIM,
}


outputs = comfy_host.call


def clip_vision(seed: int = 0) -> Any:
    """A CLIP_VISION of ComfyUI's own class, tiny and random."""
    import comfy.clip_vision

    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.json"  # the older versions take no dictionary
        config.write_text(json.dumps(_VISION), encoding="utf-8")
        made = comfy.clip_vision.ClipVisionModel(str(config))
    generator = torch.Generator().manual_seed(seed)
    for parameter in made.model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    return made


def random_image(*shape: int, seed: int = 0) -> torch.Tensor:
    """An IMAGE of (batch, height, width)."""
    return torch.rand(*shape, 3, generator=torch.Generator().manual_seed(seed))
