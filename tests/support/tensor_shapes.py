"""Names and shapes of the layers that adapter files are made of."""

from collections.abc import Iterable, Sequence

Shapes = dict[str, tuple[int, ...]]


def linear(name: str, rows: int, columns: int, *, bias: bool = True) -> Shapes:
    return {f"{name}.weight": (rows, columns)} | ({f"{name}.bias": (rows,)} if bias else {})


def norm(name: str, dim: int) -> Shapes:
    return {f"{name}.weight": (dim,), f"{name}.bias": (dim,)}


def merged(parts: Iterable[Shapes]) -> Shapes:
    return {name: shape for part in parts for name, shape in part.items()}


def sites(dims: Sequence[int], width: int, *, prefix: str = "ip_adapter") -> Shapes:
    """`to_k_ip` and `to_v_ip` of each cross-attention layer, numbered 1, 3, 5 …"""
    return {f"{prefix}.{2 * n + 1}.to_{kv}_ip.weight": (dim, width) for n, dim in enumerate(dims) for kv in "kv"}


def lora(dims: Sequence[int], width: int, *, rank: int = 128) -> Shapes:
    """FaceID's LoRA on every attention layer: even numbers self-attention, odd numbers cross-attention."""
    shapes: Shapes = {}
    for n, dim in enumerate(dims):
        for number, context in ((2 * n, dim), (2 * n + 1, width)):
            for part, columns in (("q", dim), ("k", context), ("v", context), ("out", dim)):
                name = f"ip_adapter.{number}.to_{part}_lora"
                shapes |= {f"{name}.down.weight": (rank, columns), f"{name}.up.weight": (dim, rank)}
    return shapes


def perceiver_layer(name: str, *, dim: int, inner: int, norms: Sequence[str] = ("norm1", "norm2")) -> Shapes:
    return {
        **merged(norm(f"{name}.0.{part}", dim) for part in norms),
        **linear(f"{name}.0.to_q", inner, dim, bias=False),
        **linear(f"{name}.0.to_kv", 2 * inner, dim, bias=False),
        **linear(f"{name}.0.to_out", dim, inner, bias=False),
        **norm(f"{name}.1.0", dim),
        **linear(f"{name}.1.1", 4 * dim, dim, bias=False),
        **linear(f"{name}.1.3", dim, 4 * dim, bias=False),
    }


def resampler(
    *, dim: int, inner: int, image: int, out: int, queries: int = 16, depth: int = 4, prefix: str = "image_proj"
) -> Shapes:
    """`queries` 0: the queries are tokens from elsewhere (FaceID-Plus), so there are no `latents`."""
    return {
        **({f"{prefix}.latents": (1, queries, dim)} if queries else {}),
        **linear(f"{prefix}.proj_in", dim, image),
        **linear(f"{prefix}.proj_out", out, dim),
        **norm(f"{prefix}.norm_out", out),
        **merged(perceiver_layer(f"{prefix}.layers.{n}", dim=dim, inner=inner) for n in range(depth)),
    }


def id_proj(width: int, tokens: int = 4, *, identity: int = 512, face: int = 0) -> Shapes:
    """FaceID's MLP; with `face`, the width of a face image's features, FaceID-Plus's resampler as well."""
    proj, prefix = "image_proj.proj", "image_proj.perceiver_resampler"
    shapes = linear(f"{proj}.0", 2 * identity, identity) | linear(f"{proj}.2", tokens * width, 2 * identity)
    shapes |= norm("image_proj.norm", width)
    if face:
        shapes |= resampler(dim=width, inner=width, image=face, out=width, queries=0, prefix=prefix)
    return shapes
