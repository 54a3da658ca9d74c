"""What kinds of files there are, by the names and shapes of their tensors: tables only.

Rows run from specific to broad. Shapes follow the published files of ostris, InstantX, XLabs, Tencent (HunyuanDiT,
InstantCharacter), ByteDance (InfiniteYou, USO, UNO) and Wenaka2004 (Anima).
"""

from collections.abc import Mapping
from dataclasses import dataclass

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Signature:
    """A kind of file: it matches when every name in `has` is there (a trailing `*` stands for a prefix), no name in
    `lacks` is, and every shape in `dims` (name, axis, size) agrees.

    Attributes:
        known: what is known of a kind that does not run here.
        action: what can be done with it instead.
    """

    name: str
    has: tuple[str, ...]
    lacks: tuple[str, ...] = ()
    dims: tuple[tuple[str, int, int], ...] = ()
    known: str = ""
    action: str = ""

    def matches(self, shapes: Shapes) -> bool:
        return (
            all(has_tensor(shapes, name) for name in self.has)
            and not any(has_tensor(shapes, name) for name in self.lacks)
            and all(dim_of(shapes, name, axis) == size for name, axis, size in self.dims)
        )


_WENAKA = "three kinds have this author's name, and none reads another's weights"
_OTHER_ANIMA = "use the nodes its author made for it, or another adapter for Anima"

# Recognised, and refused by name until their issue is done.
UNSUPPORTED: tuple[Signature, ...] = (
    Signature(
        "an Anima adapter of Wenaka2004's, of the kind that reads SigLIP",
        ("resampler.latents", "ip_cross_attns.0.to_k_ip.weight"),
        known=_WENAKA,
        action=_OTHER_ANIMA,
    ),
    Signature(
        "an Anima adapter of Wenaka2004's, of the kind that reads Qwen3-VL",
        ("ip_cross_attns.0.k_proj.weight",),
        known=_WENAKA,
        action=_OTHER_ANIMA,
    ),
    Signature(
        "an Anima adapter of Wenaka2004's, of the kind that modulates blocks",
        ("block_mods.0.mod.weight", "ip_scales.*"),
        known=_WENAKA,
        action=_OTHER_ANIMA,
    ),
    Signature(
        "an InstantCharacter adapter for FLUX.1",
        ("ip_adapter.0.norm_ip_q.weight", "ip_adapter.0.to_k_ip.weight", "image_proj.cross_layer_blocks.*"),
        known="it reads SigLIP and DINOv2 together through a network of 1.4 billion weights, at every step",
        action="use the nodes made for it, or an XLabs or InstantX adapter for FLUX.1",
    ),
    Signature(
        "a HunyuanDiT adapter",
        ("ip_adapter_img_norm_cond.weight", "blocks.0.attn2.kv_proj_ip_adapter.weight"),
        known="its base model, HunyuanDiT, is none of those here",
        action="use the program Tencent made for it, or another base model with an adapter made for that",
    ),
    Signature(
        "the image projection of InfiniteYou",
        ("image_proj.latents", "image_proj.proj_out.weight"),
        lacks=("ip_adapter.*",),
        dims=(("image_proj.proj_out.weight", 0, 4096),),
        known="it feeds faces to a ControlNet for FLUX.1",
        action="use the InfiniteYou nodes, or a FaceID adapter on SD1.5, SDXL or Kolors",
    ),
)

_STYLE = "move it to models/style_models; Load Style Model loads it, Apply Style Model applies it"

# Not IP-Adapters: what else lies in people's model folders.
FOREIGN: tuple[tuple[Signature, str], ...] = tuple(
    (Signature(name, has), folder)
    for name, has, folder in (
        ("a raw training state (accelerate)", ("image_proj_model.*",), "export the adapter from it first"),
        ("a PuLID adapter", ("pulid_encoder.*",), "use the PuLID nodes"),
        ("a PuLID adapter", ("id_adapter.*",), "use the PuLID nodes"),
        ("a PuLID adapter", ("image_proj.mapping_patch_0.*",), "use the PuLID nodes"),  # as its nodes publish it
        ("a Redux model", ("redux_up.weight", "redux_down.weight"), _STYLE),
        ("a style model", ("style_embedding",), _STYLE),
        (
            "a UNO or USO LoRA",
            ("double_blocks.18.processor.qkv_lora2.up.weight", "single_blocks.37.processor.qkv_lora.up.weight"),
            "move it to models/loras, and load it with Load LoRA (Model and CLIP); the picture goes in by Set Reference "
            "Latent, with uxo/uno in Edit Model Reference Method",
        ),
        (
            "the projector of USO",
            ("feature_embedder.mid_layer_norm.bias",),
            "move it to models/model_patches; Load Model Patch loads it, Apply USO Style Reference applies it",
        ),
        ("a ControlNet", ("control_model.*",), "move it to models/controlnet"),
        ("a ControlNet", ("controlnet_cond_embedding.*",), "move it to models/controlnet"),
        ("a ControlNet", ("input_hint_block.*",), "move it to models/controlnet"),
        ("a ControlNet", ("controlnet_blocks.*",), "move it to models/controlnet"),
        ("a T2I-Adapter", ("adapter.body.0.*",), "move it to models/controlnet"),
        ("a T2I-Adapter", ("body.0.*",), "move it to models/controlnet"),
        ("a whole checkpoint", ("model.diffusion_model.*",), "move it to models/checkpoints"),
        ("a diffusion model", ("down_blocks.*", "up_blocks.*", "conv_norm_out.weight"), "move it to models/unet"),
        (
            "a diffusion model",
            ("img_in.weight", "double_blocks.*", "single_blocks.*"),
            "move it to models/diffusion_models",
        ),
        ("a VAE", ("decoder.up.*",), "move it to models/vae"),
        ("a VAE", ("decoder.up_blocks.*",), "move it to models/vae"),
        ("an image encoder", ("vision_model.*",), "move it to models/clip_vision"),
        ("an image encoder", ("visual.*",), "move it to models/clip_vision"),
        ("a textual inversion embedding", ("emb_params",), "move it to models/embeddings"),
        ("a textual inversion embedding", ("string_to_param.*",), "move it to models/embeddings"),
    )
)


def has_tensor(shapes: Shapes, name: str) -> bool:
    """Whether a tensor of this name is there, or any with this start if the name ends in `*`."""
    if name.endswith("*"):
        return any(key.startswith(name[:-1]) for key in shapes)
    return name in shapes


def dim_of(shapes: Shapes, name: str, axis: int) -> int | None:
    """Size of a tensor along an axis; None if it has no such axis or is not there."""
    shape = shapes.get(name, ())
    return shape[axis] if axis < len(shape) else None
