"""What kinds of files there are, by the names and shapes of their tensors: tables only.

Rows run from specific to broad. Shapes follow the published files of ostris, InstantX, XLabs and Wenaka2004 (Anima).
"""

from collections.abc import Mapping
from dataclasses import dataclass

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Signature:
    """A kind of file: it matches when every name in `has` is there (a trailing `*` stands for a prefix), no name in
    `lacks` is, and every shape in `dims` (name, axis, size) agrees."""

    name: str
    has: tuple[str, ...]
    lacks: tuple[str, ...] = ()
    dims: tuple[tuple[str, int, int], ...] = ()

    def matches(self, shapes: Shapes) -> bool:
        return (
            all(has_tensor(shapes, name) for name in self.has)
            and not any(has_tensor(shapes, name) for name in self.lacks)
            and all(dim_of(shapes, name, axis) == size for name, axis, size in self.dims)
        )


# Recognised, and refused by name until their issue is done.
UNSUPPORTED: tuple[Signature, ...] = (
    Signature("an Anima adapter of Wenaka's kind", ("resampler.latents", "ip_cross_attns.*")),
)

# Not IP-Adapters: what else lies in people's model folders.
FOREIGN: tuple[tuple[Signature, str], ...] = tuple(
    (Signature(name, has), folder)
    for name, has, folder in (
        ("a raw training state (accelerate)", ("image_proj_model.*",), "export the adapter from it first"),
        ("a PuLID adapter", ("pulid_encoder.*",), "use the PuLID nodes"),
        ("a PuLID adapter", ("id_adapter.*",), "use the PuLID nodes"),
        ("a ControlNet", ("control_model.*",), "move it to models/controlnet"),
        ("a ControlNet", ("controlnet_cond_embedding.*",), "move it to models/controlnet"),
        ("a ControlNet", ("input_hint_block.*",), "move it to models/controlnet"),
        ("a ControlNet", ("controlnet_blocks.*",), "move it to models/controlnet"),
        ("a T2I-Adapter", ("body.0.*", "conv_in.weight"), "move it to models/controlnet"),
        ("a T2I-Adapter", ("adapter.body.0.*",), "move it to models/controlnet"),
        ("a T2I-Adapter", ("body.0.*",), "move it to models/controlnet"),
        ("a whole checkpoint", ("model.diffusion_model.*",), "move it to models/checkpoints"),
        ("a diffusion model", ("down_blocks.*", "up_blocks.*", "conv_norm_out.weight"), "move it to models/unet"),
        ("a diffusion model", ("double_blocks.*", "single_blocks.*"), "move it to models/diffusion_models"),
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
