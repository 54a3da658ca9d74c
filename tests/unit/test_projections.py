"""Image features become tokens by the published arithmetic, for any number of tokens, positions and references."""

import json

import pytest
import torch
from torch import Tensor
from torch.nn.functional import gelu

from ipadapter_core.file.spec import SPEC_KEY
from ipadapter_core.network.adapter import IPAdapter, build_adapter
from support.published import TINY_RESAMPLER_DIM, linear, norm, random_tensors, tiny_adapter

SITE_DIMS, IMAGE_DIM, WIDTH = (32, 64), 24, 16
HEADS, HEAD_DIM = 3, 8
STATED = {SPEC_KEY: json.dumps({"resampler": {"head_dim": HEAD_DIM}})}
SIZES = (1, 4, 16, 257)
EXACT = {"rtol": 0, "atol": 1e-12}
PREFIX = "image_proj."


def features(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def layer_norm(x: Tensor, tensors: dict[str, Tensor], name: str) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    deviation = (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return centred / deviation * tensors[f"{PREFIX}{name}.weight"] + tensors[f"{PREFIX}{name}.bias"]


def matmul(x: Tensor, tensors: dict[str, Tensor], name: str) -> Tensor:
    return x @ tensors[f"{PREFIX}{name}.weight"].T + tensors.get(f"{PREFIX}{name}.bias", torch.zeros(()))


def perceive(x: Tensor, latents: Tensor, tensors: dict[str, Tensor], layer: int) -> Tensor:
    """One perceiver layer, head by head."""
    name = f"layers.{layer}"
    source, own = layer_norm(x, tensors, f"{name}.0.norm1"), layer_norm(latents, tensors, f"{name}.0.norm2")
    q = matmul(own, tensors, f"{name}.0.to_q")
    kv = matmul(torch.cat((source, own), dim=1), tensors, f"{name}.0.to_kv")
    inner = HEADS * HEAD_DIM
    heads = []
    for start in range(0, inner, HEAD_DIM):
        part = slice(start, start + HEAD_DIM)
        k, v = kv[..., :inner][..., part], kv[..., inner:][..., part]
        heads.append((q[..., part] @ k.mT / HEAD_DIM**0.5).softmax(-1) @ v)
    latents = latents + matmul(torch.cat(heads, dim=-1), tensors, f"{name}.0.to_out")
    hidden = gelu(matmul(layer_norm(latents, tensors, f"{name}.1.0"), tensors, f"{name}.1.1"))
    return latents + matmul(hidden, tensors, f"{name}.1.3")


def plus(depth: int, queries: int) -> tuple[IPAdapter, dict[str, Tensor]]:
    shapes = tiny_adapter("plus", site_dims=SITE_DIMS, num_tokens=queries, depth=depth, heads=HEADS, head_dim=HEAD_DIM)
    tensors = random_tensors(shapes, dtype=torch.float64)
    return build_adapter(tensors, STATED), tensors


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("tokens", SIZES)
def test_base_is_a_linear_layer_and_a_norm_per_token(batch: int, tokens: int) -> None:
    tensors = random_tensors(tiny_adapter("base", site_dims=SITE_DIMS, num_tokens=tokens), dtype=torch.float64)
    embeds = features(batch, IMAGE_DIM)
    wanted = layer_norm(matmul(embeds, tensors, "proj").reshape(batch, tokens, WIDTH), tensors, "norm")
    given = build_adapter(tensors, {}).project(embeds)
    assert given.dtype == torch.float64
    torch.testing.assert_close(given, wanted, **EXACT)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("positions", SIZES)
def test_full_face_gives_a_token_per_position(batch: int, positions: int) -> None:
    tensors = random_tensors(tiny_adapter("full", site_dims=SITE_DIMS), dtype=torch.float64)
    x = features(batch, positions, IMAGE_DIM)
    hidden = matmul(gelu(matmul(x, tensors, "proj.0")), tensors, "proj.2")
    given = build_adapter(tensors, {}).project(x)
    assert given.shape == (batch, positions, WIDTH)
    torch.testing.assert_close(given, layer_norm(hidden, tensors, "proj.3"), **EXACT)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("queries", SIZES)
@pytest.mark.parametrize(("depth", "positions"), [(1, 257), (2, 1), (5, 16)])
def test_plus_is_a_perceiver_resampler(batch: int, queries: int, depth: int, positions: int) -> None:
    adapter, tensors = plus(depth, queries)
    x = features(batch, positions, IMAGE_DIM)
    source = matmul(x, tensors, "proj_in")
    latents = tensors[f"{PREFIX}latents"].expand(batch, -1, -1)
    for layer in range(depth):
        latents = perceive(source, latents, tensors, layer)
    wanted = layer_norm(matmul(latents, tensors, "proj_out"), tensors, "norm_out")
    given = adapter.project(x)
    assert given.shape == (batch, queries, WIDTH)
    torch.testing.assert_close(given, wanted, rtol=0, atol=1e-10)


def test_position_embedding_is_added_to_the_features() -> None:
    adapter, tensors = plus(2, 4)
    embedding = {f"{PREFIX}pos_emb.weight": features(9, IMAGE_DIM)}
    with_positions = build_adapter(tensors | embedding, STATED)
    x = features(3, 7, IMAGE_DIM)
    wanted = adapter.project(x + embedding[f"{PREFIX}pos_emb.weight"][:7])
    torch.testing.assert_close(with_positions.project(x), wanted, **EXACT)


def test_mean_pooled_latents_come_before_the_learned_ones() -> None:
    adapter, tensors = plus(2, 4)
    name, dim = "to_latents_from_mean_pooled_seq", TINY_RESAMPLER_DIM
    shapes = norm(f"{PREFIX}{name}.0", dim) | linear(f"{PREFIX}{name}.1", 3 * dim, dim)
    pooling = random_tensors(shapes, dtype=torch.float64)
    with_pooling = build_adapter(tensors | pooling, STATED)
    x = features(2, 7, IMAGE_DIM)
    pooled = layer_norm(matmul(x, tensors, "proj_in").mean(1), pooling, f"{name}.0")
    latents = torch.cat(
        (
            matmul(pooled, pooling, f"{name}.1").reshape(2, 3, dim),
            tensors[f"{PREFIX}latents"].expand(2, -1, -1),
        ),
        dim=1,
    )
    for layer in range(2):
        latents = perceive(matmul(x, tensors, "proj_in"), latents, tensors, layer)
    wanted = layer_norm(matmul(latents, tensors, "proj_out"), tensors, "norm_out")
    assert with_pooling.spec.num_tokens == 7
    torch.testing.assert_close(with_pooling.project(x), wanted, **EXACT)
    torch.testing.assert_close(with_pooling.project(x).shape, torch.Size((2, 7, WIDTH)))
    assert adapter.spec.num_tokens == 4


@pytest.mark.parametrize("kind", ["base", "full", "plus"])
def test_references_do_not_influence_each_other(kind: str) -> None:
    tensors = random_tensors(tiny_adapter(kind, site_dims=SITE_DIMS), dtype=torch.float64)
    adapter = build_adapter(tensors, STATED)
    x = features(3, IMAGE_DIM) if kind == "base" else features(3, 5, IMAGE_DIM)
    alone = torch.cat([adapter.project(x[index : index + 1]) for index in range(3)])
    torch.testing.assert_close(adapter.project(x), alone, **EXACT)
