"""Adapters for Anima: LuciferTC's (Anima-IP-Adapter), and those of anima_lora, which read PE-Core."""

import re
from collections.abc import Callable, Mapping

from ..errors import UnsupportedFamilyError
from ..numbers import is_whole
from .names import LUCIFER, PE, PE_GATED
from .shapes import block_dims, inconsistent, matrix, numbered
from .signatures import Shapes, Signature, has_tensor
from .spec import AdapterSpec, EncoderHint, Feature, Negative, Projection, ResamplerSpec

# Variants of a layout, behind its name: `Backbone.layouts` has a row for each.
_SHARED, _NORMED, _EARLY = " shared", " normed keys", " before MLP"
_BASE = _BACKBONE = "Anima"
_HEAD_DIM, _HEADS = 128, 8  # of the model; of the networks over the features
_GATE = re.compile(r"ip_adapter\.(\d+)\.adaln_ip\.1\.weight")
_KEY = re.compile(r"ip_adapter\.(\d+)\.to_k_ip\.weight")
_COMPRESSOR_LAYER = re.compile(r"image_proj\.siglip_compressor\.layers\.(\d+)\.q_proj\.weight")
_RESAMPLER_BLOCK = re.compile(r"image_proj\.resampler\.blocks\.(\d+)\.ffn\.0\.weight")
_PARTS = ("siglip_norm", "siglip_compressor", "ip_self_attn")
_SIGLIP_2 = EncoderHint(kind="SigLIP", image_size=512, crop="pad", padding="black")
_PE_CORE = EncoderHint(kind="PE-Core", image_size=336, crop="stretch")  # as anima_lora resizes
_SWITCHES = {"ip_norm_keys": _NORMED, "ip_inject_before_mlp": _EARLY}
_NUMBERS = ("ss_num_heads", "ss_resampler_heads")


_A_NUMBER = re.compile(r"[0-9]{1,6}")  # of a file: none has as many heads


def published_facts(metadata: Mapping[str, str]) -> dict[str, object]:
    """What the authors' own metadata says that tensors do not show."""
    facts: dict[str, object] = {name: metadata.get(name, "").lower() == "true" for name in _SWITCHES}
    facts |= {name: int(metadata[name]) for name in _NUMBERS if _A_NUMBER.fullmatch(metadata.get(name, ""))}
    return facts | {name: metadata[name] for name in ("ss_encoder",) if name in metadata}


def published_metadata(spec: AdapterSpec) -> dict[str, str]:
    """What anima_lora's program asks the metadata of its kinds for; nothing of other kinds."""
    if not spec.layout.startswith(PE):
        return {}
    assert spec.resampler is not None
    encoder = spec.encoder.kind
    facts: dict[str, object] = {
        "network_module": "networks.methods.ip_adapter",
        "network_spec": "ip_adapter",
        "encoder": "pe" if encoder in (None, _PE_CORE.kind) else encoder,
        "encoder_dim": spec.image_dim,
        "context_dim": spec.cross_attention_dim,
        "num_ip_tokens": spec.num_tokens,
        "num_blocks": spec.num_sites,
        "hidden_size": spec.site_dims[0],
        "num_heads": spec.site_dims[0] // spec.head_dim,
        "resampler_layers": spec.resampler.depth,
        "resampler_heads": spec.resampler.num_heads,
        "ip_scale": 1.0,
    }
    return {f"ss_{name}": str(value) for name, value in facts.items()}


def _read_lucifer(shapes: Shapes, stated: Mapping[str, object]) -> AdapterSpec:
    if has_tensor(shapes, "shared_ip_q_proj.*"):
        raise UnsupportedFamilyError(
            "this is an Anima adapter with queries of its own (shared_ip_q_proj)",
            expected="one that asks with the model's queries, as published",
            action="choose another adapter",
        )
    blocks = numbered(shapes, _GATE)
    is_shared = has_tensor(shapes, "shared.to_k_ip.expand.weight")
    first = "shared.to_k_ip.expand.weight" if is_shared else "ip_adapter.0.to_k_ip.weight"
    token_dim = matrix(shapes, first)[1]
    parts = tuple(part for part in _PARTS if has_tensor(shapes, f"image_proj.{part}.*"))
    compressor = _compressor(shapes) if "siglip_compressor" in parts else None
    no_image = shapes.get("image_proj.null_tokens", ())
    if no_image and (
        len(no_image) not in (1, 2, 3) or no_image[-1] != token_dim or (len(no_image) == 3 and no_image[0] != 1)
    ):
        raise inconsistent(f"null_tokens has shape {list(no_image)}, for tokens that are {token_dim} wide")
    variants = [_SHARED] if is_shared else []
    variants += [
        variant for name, variant in _SWITCHES.items() if stated.get(name) or variant in _stated_layout(stated)
    ]
    return AdapterSpec(
        family=LUCIFER,
        base=_BASE,
        projection=Projection.PATCHES,
        # the author norms features where they are those of an inner layer; which one, only metadata can tell
        feature=Feature.HIDDEN_STATES if "siglip_norm" in parts else Feature.LAST_HIDDEN_STATE,
        image_dim=token_dim,
        cross_attention_dim=token_dim,
        num_tokens=compressor.num_queries if compressor else None,
        site_dims=tuple(matrix(shapes, f"ip_adapter.{index}.adaln_ip.1.weight")[0] for index in range(blocks)),
        negative=Negative.ZERO_FEATURES,
        resampler=compressor,
        backbone=_BACKBONE,
        encoder=_SIGLIP_2,
        layout=LUCIFER + "".join(variants),
        head_dim=_HEAD_DIM,
        parts=parts,
        no_image=no_image,
    )


def _compressor(shapes: Shapes) -> ResamplerSpec:
    queries, dim = matrix(shapes, "image_proj.siglip_compressor.queries")
    if dim % _HEADS:
        raise inconsistent(f"siglip_compressor.queries is {dim} wide, which {_HEADS} heads do not divide")
    return ResamplerSpec(
        dim=dim,
        depth=numbered(shapes, _COMPRESSOR_LAYER),
        num_heads=_HEADS,
        head_dim=dim // _HEADS,
        ff_dim=matrix(shapes, "image_proj.siglip_compressor.layers.0.ffn.0.weight")[0],
        num_queries=queries,
    )


def _read_pe(shapes: Shapes, stated: Mapping[str, object]) -> AdapterSpec:
    if has_tensor(shapes, "_pe_lora.*"):
        raise UnsupportedFamilyError(
            "this is an Anima adapter that changes its image encoder as well (_pe_lora)",
            expected="one that reads PE-Core as Meta publishes it",
            action="choose another adapter, or use anima_lora's own nodes",
        )
    queries = shapes["image_proj.resampler.queries"]
    if len(queries) != 3:
        raise inconsistent(f"resampler.queries has shape {list(queries)}")
    _, num_queries, dim = queries
    given = stated.get("resampler")
    heads = given.get("num_heads") if isinstance(given, dict) else stated.get("ss_resampler_heads", _HEADS)
    if not is_whole(heads) or heads < 1 or dim % heads:
        raise inconsistent(f"the resampler is {dim} wide, which {heads!r} heads do not divide")
    site_dims = block_dims(shapes, _KEY)
    model_heads = stated.get("ss_num_heads", max(1, site_dims[0] // _HEAD_DIM))
    if not is_whole(model_heads) or not 0 < model_heads <= site_dims[0] or site_dims[0] % model_heads:
        raise inconsistent(f"the blocks are {site_dims[0]} wide, which {model_heads!r} heads do not divide")
    return AdapterSpec(
        family=PE,
        base=_BASE,
        projection=Projection.PERCEIVER,
        feature=Feature.LAST_HIDDEN_STATE,
        image_dim=matrix(shapes, "image_proj.resampler.kv_proj.weight")[1],
        cross_attention_dim=matrix(shapes, "ip_adapter.0.to_k_ip.weight")[1],
        num_tokens=num_queries,
        site_dims=site_dims,
        negative=Negative.SAME_PICTURE,
        resampler=ResamplerSpec(
            dim=dim,
            depth=numbered(shapes, _RESAMPLER_BLOCK),
            num_heads=heads,
            head_dim=dim // heads,
            ff_dim=matrix(shapes, "image_proj.resampler.blocks.0.ffn.0.weight")[0],
            num_queries=num_queries,
        ),
        backbone=_BACKBONE,
        encoder=_PE_CORE if stated.get("ss_encoder", "pe") == "pe" else EncoderHint(),
        # the author took the model's norm off the keys when each block got a gate
        layout=PE_GATED if has_tensor(shapes, "ip_adapter.0.gate") else PE,
        head_dim=site_dims[0] // model_heads,
        parts=tuple(part for part in ("ip_centroid",) if has_tensor(shapes, f"image_proj.{part}")),
    )


def _stated_layout(stated: Mapping[str, object]) -> str:
    return str(stated.get("layout", ""))


ANIMA_ADAPTERS: tuple[tuple[Signature, Callable[[Shapes, Mapping[str, object]], AdapterSpec]], ...] = (
    (Signature(LUCIFER, ("ip_adapter.0.adaln_ip.1.weight",)), _read_lucifer),
    (Signature(PE, ("image_proj.resampler.queries", "ip_adapter.0.to_k_ip.weight")), _read_pe),
)
