"""A tiny PE-Core of timm's own class, and the names that Meta publishes its tensors under."""

import json
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

WIDTH, LAYERS, SIZE = 64, 2, 28
NAME = "vit_pe_core_of_tests"
KEY = (WIDTH, LAYERS)
"""What `ipadapter_core.encoder.pe.TIMM_NAMES` has to know it by."""


def _vit_pe_core_of_tests(pretrained: bool = False, **settings: Any) -> Any:
    settings |= {"embed_dim": WIDTH, "depth": LAYERS, "num_heads": 2, "attn_pool_num_heads": 2, "num_classes": 16}
    return timm.create_model(
        "vit_pe_core_large_patch14_336", pretrained=False, img_size=SIZE, ref_feat_shape=(2, 2), **settings
    )


_vit_pe_core_of_tests.__name__ = NAME


@torch.no_grad()
def tiny_pe(seed: int = 0) -> Any:
    """One with random weights."""
    if not timm.is_model(NAME):
        timm.models.register_model(_vit_pe_core_of_tests)
    torch.manual_seed(seed)
    model = timm.create_model(NAME).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.copy_(torch.randn_like(parameter) * 0.2)
    model.head.bias.zero_()  # Meta has none
    return model


def write_pe_folder(folder: Path, seed: int = 0) -> None:
    """As timm's repositories on the hub are."""
    folder.mkdir(exist_ok=True)
    save_file({name: x.clone() for name, x in tiny_pe(seed).state_dict().items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"architecture": NAME, "num_classes": 16, "pretrained_cfg": {}}))


def meta_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The vision part of Meta's file, as a whole CLIP has it."""
    swaps = (
        *(("patch_embed.proj", "conv1"), ("norm_pre", "ln_pre"), ("blocks.", "transformer.resblocks.")),
        *((".norm1", ".ln_1"), (".norm2", ".ln_2"), ("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj")),
        *(("attn.qkv.", "attn.in_proj_"), ("attn.proj", "attn.out_proj")),
    )
    named: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if not name.startswith(("attn_pool", "head", "norm.", "cls", "pos")):
            for theirs, ours in swaps:
                name = name.replace(theirs, ours)
            named[name] = tensor
    pool = {
        name.removeprefix("attn_pool."): tensor for name, tensor in tensors.items() if name.startswith("attn_pool.")
    }
    for part in ("weight", "bias"):
        named[f"attn_pool.attn.in_proj_{part}"] = torch.cat((pool[f"q.{part}"], pool[f"kv.{part}"]))
        named[f"attn_pool.attn.out_proj.{part}"] = pool[f"proj.{part}"]
        named[f"attn_pool.layernorm.{part}"] = pool[f"norm.{part}"]
        named[f"attn_pool.mlp.c_fc.{part}"] = pool[f"mlp.fc1.{part}"]
        named[f"attn_pool.mlp.c_proj.{part}"] = pool[f"mlp.fc2.{part}"]
        named[f"ln_post.{part}"] = tensors[f"norm.{part}"]
    named |= {
        "attn_pool.probe": pool["latent"],
        "class_embedding": tensors["cls_token"].flatten(),
        "positional_embedding": tensors["pos_embed"][0],
        "proj": tensors["head.weight"].T,
    }
    text = {"positional_embedding": torch.zeros(7, 9), "transformer.resblocks.0.ln_1.weight": torch.zeros(9)}
    return {f"visual.{name}": tensor.contiguous() for name, tensor in named.items()} | text
