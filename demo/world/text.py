"""The text encoder: SD1.5's CLIP-L layout with frozen weights that a fixed random generator draws, so none are shipped.

A random transformer is a usable text encoder for a small world: every word has its own direction, which the residual
stream carries to the output, and the layers mix in some of the words before it. The diffusion model learns the rest.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

SEED = 20260401
CONFIG = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
    "bos_token_id": 49406,
    "eos_token_id": 49407,
    "pad_token_id": 49407,
}
# Standard deviations, over 1 / sqrt(inputs) except for the two tables. The first layers look sharply at single tokens and
# add much of them, so that each of the 77 outputs, the padding as well, tells of some words; the others add little.
_TABLES = {"token_embedding": 1.0, "position_embedding": 0.3}
_GATHERING_LAYERS = 2
_GATHERING = {"q_proj": 3.0, "k_proj": 3.0, "out_proj": 1.0, "fc2": 0.1}
_OTHER = {"out_proj": 0.1, "fc2": 0.1}


def build_text_encoder() -> CLIPTextModel:
    """The frozen model, float32 with values that float16 holds; the same bits on every machine.

    `numpy.random.RandomState` is used because its stream never changes (NEP 19).
    """
    with torch.device("meta"):
        model = CLIPTextModel(CLIPTextConfig(**CONFIG))
    random = np.random.RandomState(SEED)
    tensors = {name: _draw(name, tensor.shape, random) for name, tensor in sorted(model.state_dict().items())}
    model.load_state_dict(tensors, assign=True)
    positions = torch.arange(CONFIG["max_position_embeddings"])[None]
    for module in model.modules():
        if "position_ids" in dict(module.named_buffers(recurse=False)):
            module.register_buffer("position_ids", positions, persistent=False)
    return model.eval().requires_grad_(False)


def load_tokenizer(comfyui: Path) -> CLIPTokenizer:
    """CLIP's tokenizer from the files that every ComfyUI has."""
    folder = comfyui / "comfy" / "sd1_tokenizer"
    return CLIPTokenizer.from_pretrained(folder, model_max_length=CONFIG["max_position_embeddings"])


@torch.no_grad()
def encode(model: CLIPTextModel, tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """Captions to (B, 77, 768), cut at 77 tokens."""
    tokens = tokenizer(captions, padding="max_length", truncation=True, max_length=77, return_tensors="pt")
    states: Tensor = model(tokens.input_ids).last_hidden_state
    return states


def _draw(name: str, shape: torch.Size, random: np.random.RandomState) -> Tensor:
    if len(shape) == 1:
        return torch.ones(shape) if name.endswith("weight") else torch.zeros(shape)
    *path, module, _ = name.split(".")
    if module in _TABLES:
        deviation = _TABLES[module]
    else:
        layer = int(path[path.index("layers") + 1])
        deviation = (_GATHERING if layer < _GATHERING_LAYERS else _OTHER).get(module, 1.0) / shape[-1] ** 0.5
    return torch.from_numpy((random.standard_normal(tuple(shape)) * deviation).astype(np.float16)).float()
