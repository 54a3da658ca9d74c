"""A model that no adapter was made for is named, whatever adapter comes to it; ComfyUI's own classes, without weights."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from ipadapter_core.backbone.others import OTHERS
from support import families, tiny_flux
from support.families import EACH, apply

pytestmark = pytest.mark.smoke
FLUX_2 = {
    "in_channels": 4,
    "out_channels": 4,
    "vec_in_dim": None,
    "context_in_dim": tiny_flux.TEXT_DIM,
    "hidden_size": tiny_flux.WIDTH,
    "mlp_ratio": 3.0,
    "num_heads": tiny_flux.HEADS,
    "depth": tiny_flux.DOUBLES,
    "depth_single_blocks": tiny_flux.SINGLES,
    "axes_dim": tiny_flux.AXES,
    "theta": 2000,
    "patch_size": 1,
    "qkv_bias": False,
    "guidance_embed": True,
    "global_modulation": True,
    "txt_ids_dims": [3],
}
HUNYUAN_VIDEO = {
    "in_channels": 16,
    "out_channels": 16,
    "vec_in_dim": 768,
    "context_in_dim": 4096,
    "hidden_size": 128,
    "mlp_ratio": 4.0,
    "num_heads": 1,
    "depth": 1,
    "depth_single_blocks": 1,
    "axes_dim": [16, 56, 56],
    "theta": 256,
    "patch_size": [1, 2, 2],
    "qkv_bias": True,
    "guidance_embed": True,
    "byt5": False,
    "meanflow": False,
    "use_cond_type_embedding": False,
    "vision_in_dim": None,
    "meanflow_sum": False,
}
HIDREAM = {
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 128,
    "num_attention_heads": 1,
    "caption_channels": [64, 64],
    "text_emb_dim": 64,
    "num_routed_experts": 2,
    "num_activated_experts": 1,
    "axes_dims_rope": (32, 32),
    "max_resolution": (128, 128),
    "llama_layers": [0, 1],
}
# kind, module, class, its sizes
MODELS: tuple[tuple[str, str, str, dict[str, Any]], ...] = (
    ("FLUX.2", "flux.model", "Flux", FLUX_2),
    (
        "Lumina",
        "lumina.model",
        "NextDiT",
        {"n_layers": 1, "dim": 128, "n_heads": 1, "axes_dims": [16, 56, 56]},
    ),
    ("Krea 2", "krea2.model", "SingleStreamDiT", {"layers": 1}),
    ("HiDream", "hidream.model", "HiDreamImageTransformer2DModel", HIDREAM),
    ("Wan", "wan.model", "WanModel", {"num_layers": 1}),
    ("Wan", "wan.model", "CameraWanModel", {"num_layers": 1}),
    ("HunyuanVideo or HunyuanImage", "hunyuan_video.model", "HunyuanVideo", HUNYUAN_VIDEO),
    ("HunyuanDiT", "hydit.models", "HunYuanDiT", {"depth": 2}),
    ("LTX-Video", "lightricks.model", "LTXVModel", {"num_layers": 1}),
    ("OmniGen2", "omnigen.omnigen2", "OmniGen2Transformer2DModel", {"num_layers": 1}),
    ("PixArt", "pixart.pixartms", "PixArtMS", {"depth": 1}),
    ("Stable Cascade", "cascade.stage_c", "StageC", {}),
    ("Stable Cascade", "cascade.stage_b", "StageB", {}),
)


@pytest.fixture(params=MODELS, ids=lambda row: row[2])
def other(request: pytest.FixtureRequest, base_directory: Path) -> tuple[str, Any]:
    """The kind of a model, and a MODEL of it."""
    import comfy.ops

    kind, module, name, sizes = request.param
    if importlib.util.find_spec(f"comfy.ldm.{module.partition('.')[0]}") is None:
        pytest.skip(f"this ComfyUI has no {kind}")
    made_by = getattr(importlib.import_module(f"comfy.ldm.{module}"), name)
    options = {"dtype": torch.float32, "device": "meta", "operations": comfy.ops.disable_weight_init}
    model = families.flux_model().clone()
    model.add_object_patch("diffusion_model", made_by(**sizes, **options))
    return kind, model


@pytest.mark.parametrize("name", EACH)
def test_it_is_named_and_so_is_what_the_adapter_was_made_for(
    name: str, other: tuple[str, Any], base_directory: Path
) -> None:
    kind, model = other
    adapter = families.adapter_of(name, base_directory)
    with pytest.raises(ValueError, match="for which no IP-Adapter is known") as caught:
        apply(model, adapter, families.tokens_of(name, adapter))
    message = str(caught.value)
    article = "an" if kind[0] in "AEIO" else "a"
    assert f" and {article} {kind} model, for which" in message
    made_for = message.partition("an adapter for ")[2].partition(f" and {article} ")[0]
    assert adapter.spec.base in made_for
    assert (
        f"Expected: {'an' if made_for.startswith(('SD', 'Anima')) else 'a'} {made_for} model. What to do: connect such a model"
        in message
    )
    assert ("are weights for SD3.5-Large, which do nothing in it" in message) == (kind == "Wan")


def test_every_kind_that_is_told_apart_is_here() -> None:
    assert {kind for kind, *_ in MODELS} == {other.name for other in OTHERS}


def test_a_model_with_the_blocks_of_flux_and_other_sizes_is_named(base_directory: Path) -> None:
    """LongCat-Image: FLUX's class in ComfyUI, without the pooled prompt."""
    import comfy.ldm.flux.model
    import comfy.ops

    sizes = FLUX_2 | {"context_in_dim": 3584, "depth": 10, "depth_single_blocks": 20, "global_modulation": False}
    options = {"dtype": torch.float32, "device": "meta", "operations": comfy.ops.disable_weight_init}
    model = families.flux_model().clone()
    model.add_object_patch("diffusion_model", comfy.ldm.flux.model.Flux(**sizes, **options))
    adapter = families.adapter_of("instantx_flux", base_directory)
    with pytest.raises(
        ValueError, match=r"a model of the LongCat-Image kind .* no adapter is known for LongCat-Image"
    ) as caught:
        apply(model, adapter, families.tokens_of("instantx_flux", adapter))
    assert str(caught.value).endswith("What to do: load a FLUX.1 model.")
