"""The published UNets at full size, as diffusers describes them; for the meta device."""

from typing import Any

from support.published import SD15_DIM, SDXL_DIM

_DOWN, _DOWN_ATTENTION = "DownBlock2D", "CrossAttnDownBlock2D"
_UP, _UP_ATTENTION = "UpBlock2D", "CrossAttnUpBlock2D"

CONFIGS: dict[str, dict[str, Any]] = {
    "sd15": {"cross_attention_dim": SD15_DIM},
    "sdxl": {
        "block_out_channels": (320, 640, 1280),
        "down_block_types": (_DOWN, _DOWN_ATTENTION, _DOWN_ATTENTION),
        "up_block_types": (_UP_ATTENTION, _UP_ATTENTION, _UP),
        "attention_head_dim": (5, 10, 20),
        "transformer_layers_per_block": (1, 2, 10),
        "cross_attention_dim": SDXL_DIM,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}
