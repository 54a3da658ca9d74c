"""Recognise an adapter by its tensors: names and shapes, never the file's name.

Tables run from specific to broad. A new family is one row here, one projection class if it needs one, and one test.
Shapes follow the published files of tencent-ailab/IP-Adapter, ostris, InstantX, XLabs and Kwai-Kolors.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from .errors import UnknownCheckpointError, UnreadableFileError, UnsupportedFamilyError
from .spec import (
    DEFAULT_HEAD_DIM,
    AdapterSpec,
    Feature,
    Negative,
    Projection,
    ResamplerSpec,
    stated_spec,
    with_metadata,
)

Shapes = Mapping[str, tuple[int, ...]]

BASE_NAMES = {768: "SD1.5", 1024: "SD2.x", 2048: "SDXL"}
_SITE_KEY = re.compile(r"ip_adapter\.(\d+)\.to_([kv])_ip\.weight")


@dataclass(frozen=True)
class Signature:
    """A kind of file: it matches when every name in `has` is there (a trailing `*` stands for a prefix), no name in
    `lacks` is, and every shape in `dims` (name, axis, size) agrees. `names_base`: the message adds SD1.5 or SDXL."""

    name: str
    has: tuple[str, ...]
    lacks: tuple[str, ...] = ()
    dims: tuple[tuple[str, int, int], ...] = ()
    names_base: bool = False

    def matches(self, shapes: Shapes) -> bool:
        return (
            all(_present(shapes, name) for name in self.has)
            and not any(_present(shapes, name) for name in self.lacks)
            and all(_dim(shapes, name, axis) == size for name, axis, size in self.dims)
        )


# Recognised, and refused by name until their issue is done.
UNSUPPORTED: tuple[Signature, ...] = (
    Signature(
        "an XLabs FLUX v1 adapter",
        ("ip_adapter_proj_model.proj.weight", "double_blocks.*"),
        dims=(("ip_adapter_proj_model.proj.weight", 0, 4 * 4096),),
    ),
    Signature("an XLabs FLUX v2 adapter", ("ip_adapter_proj_model.proj.weight", "double_blocks.*")),
    Signature("an Anima adapter", ("resampler.latents", "ip_cross_attns.*")),
    Signature("an InstantX SD3.5 adapter", ("image_proj.time_embedding.linear_1.weight", "image_proj.latents")),
    Signature(
        "an InstantX FLUX adapter",
        ("image_proj.proj.2.weight", "ip_adapter.0.to_k_ip.weight"),
        dims=(("ip_adapter.0.to_k_ip.weight", 1, 4096),),
    ),
    Signature(
        "a Kolors FaceID adapter",
        ("image_proj.perceiver_resampler.layers.0.0.to_out.weight",),
        dims=(("image_proj.perceiver_resampler.layers.0.0.to_out.weight", 0, 4096),),
    ),
    Signature(
        "a FaceID-Plus adapter (v1 and v2 have the same tensors)",
        ("image_proj.perceiver_resampler.*",),
        names_base=True,
    ),
    Signature("a FaceID adapter", ("image_proj.proj.2.weight", "ip_adapter.0.to_q_lora.down.weight"), names_base=True),
    Signature(
        "a FaceID portrait adapter", ("image_proj.proj.2.weight",), lacks=("image_proj.proj.3.weight",), names_base=True
    ),
    Signature(
        "a FaceID portrait-unnorm adapter (InstantID's has the same tensors)",
        ("image_proj.latents", "image_proj.proj_in.weight"),
        dims=(("image_proj.proj_in.weight", 1, 512), ("image_proj.proj_in.weight", 0, 1280)),
    ),
    Signature(
        "a Kolors plus adapter",
        ("image_proj.latents", "image_proj.layers.0.0.to_q.weight"),
        dims=(
            ("image_proj.latents", 2, 2048),
            ("image_proj.layers.0.0.to_q.weight", 0, 768),
            ("image_proj.proj_in.weight", 1, 1024),
        ),
    ),
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
_LORA_MARKS = ("lora", "hada_w1")


def canonical_name(name: str) -> str:
    """The published flat name: Kolors and some trainers write `adapter_modules.` for `ip_adapter.`."""
    rest = name.removeprefix("adapter_modules.")
    return name if rest == name else f"ip_adapter.{rest}"


def detect(shapes: Shapes, metadata: Mapping[str, str]) -> AdapterSpec:
    """What adapter these tensors are.

    Args:
        shapes: shape of every tensor under its canonical flat name.
        metadata: the safetensors metadata; completes what shapes cannot show (head size, layer, negative convention).

    Raises:
        UnsupportedFamilyError: an IP-Adapter of a kind that does not run here yet.
        UnknownCheckpointError: no IP-Adapter.
        UnreadableFileError: an IP-Adapter with tensors missing or at odds with each other.
    """
    stated = stated_spec(metadata)
    if "projection" not in stated:  # a file that states its projection is ours, whatever its dimensions look like
        for signature in UNSUPPORTED:
            if signature.matches(shapes):
                base = (
                    BASE_NAMES.get(_dim(shapes, "ip_adapter.1.to_k_ip.weight", 1) or 0)
                    if signature.names_base
                    else None
                )
                raise UnsupportedFamilyError(
                    f"this is {signature.name}{f' for {base}' if base else ''}: not supported yet",
                    expected="an SD1.5 or SDXL image adapter (base, plus, plus-face, composition, full-face)",
                    action="choose such an adapter, or use the nodes made for this one",
                )
    for signature, read in _PROJECTIONS:
        if signature.matches(shapes):
            return with_metadata(read(shapes, stated), metadata)
    raise _unknown(shapes)


def _read_linear(shapes: Shapes, _stated: Mapping[str, object]) -> AdapterSpec:
    rows, image_dim = _matrix(shapes, "image_proj.proj.weight")
    dim = _dim(shapes, "image_proj.norm.weight", 0)
    if not dim or rows % dim:
        raise _inconsistent(f"image_proj.proj.weight has {rows} rows, not a multiple of image_proj.norm.weight's {dim}")
    kind = {(768, 1024): "base or light", (768, 1280): "vit-G", (2048, 1024): "vit-H", (2048, 1280): "bigG"}
    return _spec(
        shapes,
        kind.get((dim, image_dim), "base"),
        projection=Projection.LINEAR,
        feature=Feature.IMAGE_EMBEDS,
        negative=Negative.ZERO_FEATURES,
        image_dim=image_dim,
        num_tokens=rows // dim,
    )


def _read_resampler(shapes: Shapes, stated: Mapping[str, object]) -> AdapterSpec:
    layers = {int(match[1]) for name in shapes if (match := re.match(r"image_proj\.layers\.(\d+)\.", name))}
    dim, image_dim = _matrix(shapes, "image_proj.proj_in.weight")
    inner = _matrix(shapes, "image_proj.layers.0.0.to_q.weight")[0]
    given = stated.get("resampler")
    head_dim = given.get("head_dim", DEFAULT_HEAD_DIM) if isinstance(given, dict) else DEFAULT_HEAD_DIM
    if not isinstance(head_dim, int) or head_dim < 1 or inner % head_dim:
        raise _inconsistent(f"to_q has {inner} rows, which heads of size {head_dim!r} do not divide")
    positions = shapes.get("image_proj.pos_emb.weight")
    pooled = shapes.get("image_proj.to_latents_from_mean_pooled_seq.1.weight")
    num_mean_pooled = pooled[0] // dim if pooled else 0
    queries = _dim(shapes, "image_proj.latents", 1)
    if queries is None:
        raise _inconsistent(f"image_proj.latents has shape {list(shapes['image_proj.latents'])}")
    return _spec(
        shapes,
        "plus (also plus-face and composition)",
        projection=Projection.RESAMPLER,
        feature=Feature.HIDDEN_STATES,
        negative=Negative.ZERO_PIXELS,
        image_dim=image_dim,
        num_tokens=queries + num_mean_pooled,
        resampler=ResamplerSpec(
            dim=dim,
            depth=len(layers),
            num_heads=inner // head_dim,
            head_dim=head_dim,
            ff_dim=_matrix(shapes, "image_proj.layers.0.1.1.weight")[0],
            num_queries=queries,
            max_positions=positions[0] if positions else None,
            num_mean_pooled=num_mean_pooled,
        ),
    )


def _read_mlp(shapes: Shapes, _stated: Mapping[str, object]) -> AdapterSpec:
    return _spec(
        shapes,
        "full-face",
        projection=Projection.MLP,
        feature=Feature.HIDDEN_STATES,
        negative=Negative.ZERO_PIXELS,
        image_dim=_matrix(shapes, "image_proj.proj.0.weight")[1],
        num_tokens=None,
    )


_PROJECTIONS: tuple[tuple[Signature, Callable[[Shapes, Mapping[str, object]], AdapterSpec]], ...] = (
    (
        Signature(
            "resampler",
            (
                "image_proj.latents",
                "image_proj.proj_in.weight",
                "image_proj.layers.0.0.to_q.weight",
                "image_proj.layers.0.1.1.weight",
            ),
        ),
        _read_resampler,
    ),
    (Signature("full", ("image_proj.proj.0.weight", "image_proj.proj.3.weight")), _read_mlp),
    (Signature("linear", ("image_proj.proj.weight", "image_proj.norm.weight")), _read_linear),
)


def _spec(
    shapes: Shapes,
    kind: str,
    *,
    projection: Projection,
    feature: Feature,
    negative: Negative,
    image_dim: int,
    num_tokens: int | None,
    resampler: ResamplerSpec | None = None,
) -> AdapterSpec:
    site_dims, dim = _sites(shapes)
    base = BASE_NAMES.get(dim, f"a base with {dim}-wide text tokens")
    return AdapterSpec(
        family=f"{base} {kind}",
        base=base,
        projection=projection,
        feature=feature,
        negative=negative,
        image_dim=image_dim,
        cross_attention_dim=dim,
        num_tokens=num_tokens,
        site_dims=site_dims,
        resampler=resampler,
    )


def _sites(shapes: Shapes) -> tuple[tuple[int, ...], int]:
    """Channels of each site in checkpoint order, and the common width of the image tokens."""
    found: dict[str, dict[int, tuple[int, ...]]] = {"k": {}, "v": {}}
    for name in shapes:
        if match := _SITE_KEY.fullmatch(name):
            found[match[2]][int(match[1])] = _matrix(shapes, name)
    if not found["k"]:
        raise UnreadableFileError(
            "the file has image_proj but no ip_adapter.N.to_k_ip tensors (the well-known empty conversion of an "
            "accelerate state)",
            expected="image_proj and ip_adapter together",
            action="convert the training state again with a tool that keeps adapter_modules",
        )
    expected = set(range(1, 2 * len(found["k"]), 2))
    for numbers in (found["k"], found["v"]):
        if gap := expected.symmetric_difference(numbers):
            raise _inconsistent(f"ip_adapter numbers do not run 1, 3, 5 …: {sorted(gap)[:4]} missing or extra")
    dims = {shape[1] for shape in (*found["k"].values(), *found["v"].values())}
    if len(dims) != 1:
        raise _inconsistent(f"to_k_ip and to_v_ip expect image tokens of different widths: {sorted(dims)}")
    return tuple(found["k"][number][0] for number in sorted(expected)), dims.pop()


def _matrix(shapes: Shapes, name: str) -> tuple[int, int]:
    shape = shapes[name]
    if len(shape) != 2:
        raise _inconsistent(f"{name} has shape {list(shape)}, not that of a matrix")
    return shape[0], shape[1]


def _unknown(shapes: Shapes) -> UnknownCheckpointError:
    expected = "an IP-Adapter (tensors image_proj.* and ip_adapter.*)"
    for signature, action in FOREIGN:
        if signature.matches(shapes):
            return UnknownCheckpointError(
                f"this is {signature.name}, not an IP-Adapter", expected=expected, action=action
            )
    if any(mark in name.lower() for name in shapes for mark in _LORA_MARKS):
        return UnknownCheckpointError(
            "this is a LoRA, not an IP-Adapter", expected=expected, action="move it to models/loras"
        )
    names = ", ".join(sorted(shapes)[:5]) or "no tensors at all"
    return UnknownCheckpointError(
        f"an unknown file whose first tensors are {names}",
        expected=expected,
        action="check that this is the adapter's weight file; report it with this message if it is",
    )


def _inconsistent(found: str) -> UnreadableFileError:
    return UnreadableFileError(found, expected="tensors that fit each other", action="download or export it again")


def _present(shapes: Shapes, name: str) -> bool:
    if name.endswith("*"):
        return any(key.startswith(name[:-1]) for key in shapes)
    return name in shapes


def _dim(shapes: Shapes, name: str, axis: int) -> int | None:
    shape = shapes.get(name, ())
    return shape[axis] if axis < len(shape) else None
