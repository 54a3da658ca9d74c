"""Names and shapes of the adapters for diffusion transformers, those that are refused among them.

The tables follow the loader code of InstantX, XLabs, LuciferTC, anima_lora, Wenaka2004, Tencent and ByteDance.
"""

from .tensor_shapes import Shapes, id_proj, linear, merged, norm, perceiver_layer, resampler


def instantx_sd35(
    *,
    blocks: int = 38,
    width: int = 2432,
    image: int = 1152,
    tokens: int = 64,
    dim: int = 1280,
    inner: int = 1280,
    time: int = 320,
    depth: int = 4,
) -> Shapes:
    shapes = resampler(dim=dim, inner=inner, image=image, out=width, queries=tokens, depth=depth)
    shapes |= merged(linear(f"image_proj.layers.{n}.2.1", 4 * dim, dim) for n in range(depth))
    shapes |= merged(linear(f"image_proj.time_embedding.linear_{n}", dim, size) for n, size in ((1, time), (2, dim)))
    for name in (f"ip_adapter.{n}" for n in range(blocks)):
        shapes |= linear(f"{name}.norm_ip.linear", 2 * width, dim)
        shapes |= {f"{name}.to_{kv}_ip.weight": (width, width) for kv in "kv"}
        shapes |= {f"{name}.{part}.weight": (64,) for part in ("norm_q", "norm_k", "norm_ip_k")}
    return shapes


def studio(
    *,
    blocks: int,
    width: int,
    head: int = 128,
    image: int = 1152,
    token: int = 1280,
    tokens: int = 16,
    dim: int = 1280,
    inner: int = 1280,
) -> Shapes:
    """What this project's own trainer makes for transformers."""
    shapes = resampler(dim=dim, inner=inner, image=image, out=token, queries=tokens)
    for name in (f"ip_adapter.{n}" for n in range(blocks)):
        shapes |= {f"{name}.to_{kv}_ip.weight": (width, token) for kv in "kv"} | {f"{name}.norm_ip_k.weight": (head,)}
    return shapes


def instantx_flux(
    *, blocks: int = 57, width: int = 3072, image: int = 1152, tokens: int = 128, text: int = 4096
) -> Shapes:
    layers = {f"ip_adapter.{n}.to_{kv}_ip.weight": (width, text) for n in range(blocks) for kv in "kv"}
    return id_proj(text, tokens, identity=image) | layers


def xlabs_flux(tokens: int, *, blocks: int = 19, width: int = 3072, image: int = 768, text: int = 4096) -> Shapes:
    names = [f"double_blocks.{n}.processor.ip_adapter_double_stream_{kv}_proj" for n in range(blocks) for kv in "kv"]
    proj = linear("ip_adapter_proj_model.proj", tokens * text, image) | norm("ip_adapter_proj_model.norm", text)
    return merged(linear(name, width, text) for name in names) | proj


def anima_lucifer(  # noqa: PLR0913 - one for each part that a file may have
    *,
    blocks: int = 28,
    width: int = 2048,
    image: int = 768,
    shared: bool = False,
    queries: int = 0,
    norm_features: bool = False,
    self_attention: bool = False,
    null_tokens: tuple[int, ...] = (),
    rank: int = 0,
    text: int = 1024,
) -> Shapes:
    """LuciferTC's adapter, with what its loader knows beside: parts over the features, and a LoRA of this rank."""
    shapes: Shapes = {"null_tokens": null_tokens} if null_tokens else {}
    for n in range(blocks):
        shapes |= linear(f"blocks.{n}.adaln_ip.1", width, width)
        if not shared:
            shapes |= merged(linear(f"blocks.{n}.ip_{kv}_proj", width, image) for kv in "kv")
        layers = {
            **{f"{part}_attn.{name}_proj": (width, width) for part in ("self", "cross") for name in ("q", "output")},
            **{f"self_attn.{name}_proj": (width, width) for name in "kv"},
            **{f"cross_attn.{name}_proj": (width, text) for name in "kv"},
            "mlp.layer1": (4 * width, width),
            "mlp.layer2": (width, 4 * width),
        }
        for layer, (rows, columns) in layers.items() if rank else ():
            prefix = f"lora.base_model.model.blocks.{n}.{layer}"
            shapes |= {
                f"{prefix}.lora_A.default.weight": (rank, columns),
                f"{prefix}.lora_B.default.weight": (rows, rank),
            }
    for kv in "kv" if shared else ():
        shapes |= linear(f"shared_ip_{kv}_proj.expand", width, image) | linear(
            f"shared_ip_{kv}_proj.project", width, width
        )
    if norm_features:
        shapes |= norm("siglip_norm", image)
    if queries:
        shapes |= {"siglip_compressor.queries": (queries, image)} | norm("siglip_compressor.final_norm", image)
        for name in ("siglip_compressor.layers.0", "siglip_compressor.layers.1"):
            shapes |= merged(norm(f"{name}.norm_{part}", image) for part in ("q", "kv", "self", "ffn"))
            shapes |= merged(linear(f"{name}.{p}_proj", image, image, bias=False) for p in ("q", "k", "v", "out"))
            shapes |= linear(f"{name}.self_qkv", 3 * image, image, bias=False)
            shapes |= linear(f"{name}.self_out", image, image, bias=False)
            shapes |= linear(f"{name}.ffn.0", 4 * image, image) | linear(f"{name}.ffn.2", image, 4 * image)
    if self_attention:
        shapes |= norm("ip_self_attn.norm1", image) | norm("ip_self_attn.norm2", image)
        shapes |= linear("ip_self_attn.qkv", 3 * image, image, bias=False)
        shapes |= linear("ip_self_attn.out_proj", image, image, bias=False)
        shapes |= linear("ip_self_attn.ffn.0", 4 * image, image) | linear("ip_self_attn.ffn.2", image, 4 * image)
    return shapes


def anima_pe(
    *,
    blocks: int = 28,
    width: int = 2048,
    image: int = 1024,
    token: int = 1024,
    tokens: int = 16,
    depth: int = 2,
    gated: bool = False,
) -> Shapes:
    """An adapter of anima_lora; `gated` as newer versions write it."""
    shapes: Shapes = {"resampler.queries": (1, tokens, token), **linear("resampler.kv_proj", token, image)}
    shapes |= norm("resampler.out_norm", token) | linear("resampler.out", token, token)
    for name in (f"resampler.blocks.{n}" for n in range(depth)):
        shapes |= merged(norm(f"{name}.{part}", token) for part in ("q_norm_x", "kv_norm_x", "norm_s", "norm_f"))
        for part in ("xattn", "sattn"):
            shapes |= {f"{name}.{part}.in_proj_weight": (3 * token, token), f"{name}.{part}.in_proj_bias": (3 * token,)}
            shapes |= linear(f"{name}.{part}.out_proj", token, token)
        shapes |= linear(f"{name}.ffn.0", 4 * token, token) | linear(f"{name}.ffn.2", token, 4 * token)
    shapes |= {f"to_{kv}_ip.{n}.weight": (width, token) for n in range(blocks) for kv in "kv"}
    return shapes | ({f"ip_gate.{n}": () for n in range(blocks)} | {"ip_centroid": (image,)} if gated else {})


def anima(*, intermediate: bool = False) -> Shapes:
    shapes: Shapes = {"resampler.latents": (1, 32, 1024), **norm("resampler.norm_out", 2048)}
    shapes |= linear("resampler.proj_in", 1024, 768, bias=False) | linear("resampler.proj_out", 2048, 1024, bias=False)
    shapes |= linear("resampler.time_proj", 320, 1) | linear("resampler.time_mlp.0", 1024, 320)
    shapes |= linear("resampler.time_mlp.2", 1024, 1024)
    for name in (f"resampler.layers.{n}" for n in range(4)):
        shapes |= perceiver_layer(name, dim=1024, inner=1024, norms=("norm_kv", "norm_q"))
        shapes |= linear(f"{name}.2.1", 4 * 1024, 1024)
    for n in range(28):
        name = f"ip_cross_attns.{n}"
        shapes |= {f"{name}.norm_ip_q.scale": (128,), f"{name}.norm_ip_k.scale": (128,), f"ip_scales.{n}": (1,)}
        shapes |= {f"{name}.to_{kv}_ip.weight": (2048, 2048) for kv in "kv"}
    for stream in ("shallow", "deep") if intermediate else ():
        shapes |= linear(f"intermediate_encoder.{stream}_proj", 768, 768, bias=False)
        shapes |= {f"intermediate_encoder.norm_{stream}.scale": (768,)}
    return shapes


def anima_qwen() -> Shapes:
    """Wenaka2004's first kind: a perceiver over Qwen3-VL's embedding."""
    shapes: Shapes = {"resampler.latents": (16, 1024), **norm("resampler.norm", 1024)}
    for n in range(28):
        name = f"ip_cross_attns.{n}"
        shapes |= linear(f"{name}.q_proj", 2048, 2048, bias=False) | linear(
            f"{name}.output_proj", 2048, 2048, bias=False
        )
        shapes |= {f"{name}.{part}_proj.weight": (2048, 1024) for part in "kv"}
        shapes |= {f"{name}.{part}_norm.weight": (128,) for part in "qk"} | {f"ip_scales.{n}": (1,)}
    return shapes


def anima_modulation() -> Shapes:
    """Its fourth version, which has no attention: shifts and scales of every block."""
    mods = (f"block_mods.{n}" for n in range(28))
    shapes = merged(
        linear(f"{name}.proj", 512, 768, bias=False) | linear(f"{name}.mod", 4096, 512, bias=False) for name in mods
    )
    return shapes | {f"ip_scales.{n}": (1,) for n in range(28)}


def instant_character() -> Shapes:
    """Tencent/InstantCharacter: attention processors of all 57 blocks, a projector of SigLIP and DINOv2."""
    shapes = resampler(dim=1280, inner=1280, image=2688, out=4096, queries=1024, prefix="image_proj.resampler")
    shapes |= merged(
        linear(f"image_proj.resampler.time_embedding.linear_{n}", 1280, size) for n, size in ((1, 320), (2, 1280))
    )
    shapes |= linear("image_proj.cross_layer_blocks.0.attn1.to_q", 2688, 2688)
    shapes |= linear("image_proj.cross_scale_blocks.0.attn1.to_q", 2688, 2688)
    for name in (f"ip_adapter.{n}" for n in range(57)):
        shapes |= linear(f"{name}.to_k_ip", 3072, 4096) | linear(f"{name}.to_v_ip", 3072, 4096)
        shapes |= {f"{name}.norm_ip_{part}.weight": (128,) for part in "qk"}
    return shapes


def hunyuan_dit() -> Shapes:
    """Tencent-Hunyuan/IP-Adapter, ipa.pt: its tensors go into the base model's own modules."""
    shapes = linear("ip_adapter_clip_len_trans_block", 8 * 1024, 1024) | norm("ip_adapter_img_norm_cond", 1024)
    for name in (f"blocks.{n}.attn2" for n in range(40)):
        shapes |= linear(f"{name}.kv_proj_ip_adapter", 2 * 1408, 1024) | norm(f"{name}.k_norm_ip_adapter", 88)
    return shapes


def infinite_you() -> Shapes:
    """ByteDance/InfiniteYou, image_proj_model.bin: no more than a resampler of ArcFace's numbers."""
    return resampler(dim=1280, inner=1280, image=512, out=4096, queries=8)
