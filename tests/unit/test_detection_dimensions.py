"""Dimensions are read from the tensors, what no tensor shows from the metadata, and contradictions are refused."""

import contextlib
import json
import re
from collections.abc import Callable
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipadapter_core.errors import UnreadableFileError
from ipadapter_core.file.detect import canonical_name, detect
from ipadapter_core.file.spec import SPEC_KEY, EncoderHint, Feature, Negative, Projection
from ipadapter_core.network.adapter import build_adapter
from support.published import PUBLISHED, TINY_RESAMPLER_DIM, Shapes, linear, meta_tensors, norm, tiny_adapter

SITE_DIMS = (32, 64, 64)
HEAD_DIM_8 = {"resampler": {"head_dim": 8}}


def stating(**values: object) -> dict[str, str]:
    return {SPEC_KEY: json.dumps(values)}


@given(st.integers(1, 300), st.integers(1, 40), st.integers(1, 40), st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_any_number_of_tokens_and_sites_of_a_base_adapter(
    tokens: int, width: int, image: int, sites: list[int]
) -> None:
    shapes = tiny_adapter("base", site_dims=sites, cross_attention_dim=width, image_dim=image, num_tokens=tokens)
    spec = detect(shapes, {})
    assert (spec.num_tokens, spec.cross_attention_dim, spec.image_dim) == (tokens, width, image)
    assert spec.site_dims == tuple(sites)
    assert spec.num_sites == len(sites)


@given(st.integers(1, 40), st.integers(1, 7), st.integers(1, 6), st.integers(1, 9))
def test_any_resampler_with_the_head_size_its_metadata_states(
    queries: int, depth: int, heads: int, head_dim: int
) -> None:
    shapes = tiny_adapter("plus", site_dims=SITE_DIMS, num_tokens=queries, depth=depth, heads=heads, head_dim=head_dim)
    spec = detect(shapes, stating(resampler={"head_dim": head_dim}))
    resampler = spec.resampler
    assert spec.num_tokens == queries
    assert (resampler.num_queries, resampler.depth) == (queries, depth)
    assert (resampler.num_heads, resampler.head_dim) == (heads, head_dim)
    assert (resampler.dim, resampler.ff_dim) == (TINY_RESAMPLER_DIM, 4 * TINY_RESAMPLER_DIM)


def test_heads_are_64_wide_where_the_metadata_says_nothing() -> None:
    spec = detect(tiny_adapter("plus", site_dims=SITE_DIMS, heads=3, head_dim=64), {})
    assert (spec.resampler.num_heads, spec.resampler.head_dim) == (3, 64)


def test_position_embedding_and_mean_pooled_latents_are_read() -> None:
    dim, pooled = TINY_RESAMPLER_DIM, "image_proj.to_latents_from_mean_pooled_seq"
    shapes = tiny_adapter("plus", site_dims=SITE_DIMS, num_tokens=5)
    shapes |= {"image_proj.pos_emb.weight": (257, 24)} | norm(f"{pooled}.0", dim) | linear(f"{pooled}.1", 3 * dim, dim)
    spec = detect(shapes, stating(**HEAD_DIM_8))
    assert (spec.resampler.max_positions, spec.resampler.num_mean_pooled) == (257, 3)
    assert (spec.resampler.num_queries, spec.num_tokens) == (5, 8)


def test_adapter_modules_is_another_name_of_ip_adapter() -> None:
    published = PUBLISHED["sd15_base"]()
    renamed = {name.replace("ip_adapter.", "adapter_modules."): shape for name, shape in published.items()}
    assert renamed != published
    assert {canonical_name(name): shape for name, shape in renamed.items()} == published
    assert canonical_name("image_proj.adapter_modules.1.weight") == "image_proj.adapter_modules.1.weight"


def test_metadata_states_what_no_tensor_shows() -> None:
    spec = detect(
        tiny_adapter("plus", site_dims=SITE_DIMS),
        stating(
            **HEAD_DIM_8,
            layer=-1,
            feature="hidden_states",
            negative="zero_features",
            encoder={"name": "an encoder", "image_size": 336, "crop": "pad"},
        ),
    )
    assert (spec.layer, spec.feature, spec.negative) == (-1, Feature.HIDDEN_STATES, Negative.ZERO_FEATURES)
    assert spec.encoder == EncoderHint(name="an encoder", image_size=336, crop="pad")


def test_metadata_completes_what_is_known_of_the_encoder_of_a_kind() -> None:
    shapes = {canonical_name(name): shape for name, shape in PUBLISHED["kolors_plus"]().items()}
    whole = {"name": None, "kind": "SigLIP", "image_size": 512, "crop": "pad", "padding": "black"}
    assert detect(shapes, stating(layer=-2)).encoder == EncoderHint(image_size=336)
    assert detect(shapes, stating(encoder={"crop": "pad"})).encoder == EncoderHint(image_size=336, crop="pad")
    assert detect(shapes, stating(encoder=whole)).encoder == EncoderHint(**whole)


def test_metadata_cannot_change_a_dimension() -> None:
    shapes = tiny_adapter("base", site_dims=SITE_DIMS)
    lies = stating(num_tokens=99, image_dim=99, cross_attention_dim=99, site_dims=[9], family="x")
    assert detect(shapes, lies) == detect(shapes, {})


def test_a_file_that_states_its_projection_is_ours_whatever_its_dimensions() -> None:
    spec = detect(PUBLISHED["portrait_unnorm_sdxl"](), stating(projection="resampler"))
    assert (spec.projection, spec.image_dim) == (Projection.RESAMPLER, 512)


def intact(kind: Literal["base", "plus", "full"]) -> Shapes:
    return tiny_adapter(kind, site_dims=SITE_DIMS, head_dim=64)


def without(kind: Literal["base", "plus", "full"], *names: str) -> Shapes:
    return {name: shape for name, shape in intact(kind).items() if name not in names}


def changed(kind: Literal["base", "plus", "full"], name: str, shape: tuple[int, ...]) -> Shapes:
    return intact(kind) | {name: shape}


CONTRADICTIONS: dict[str, tuple[Callable[[], Shapes], str]] = {
    "rows": (
        lambda: changed("base", "image_proj.proj.weight", (65, 24)),
        "image_proj.proj.weight has 65 rows, not a multiple of image_proj.norm.weight's 16",
    ),
    "site widths": (
        lambda: changed("base", "ip_adapter.3.to_v_ip.weight", (64, 17)),
        "to_k_ip and to_v_ip expect image tokens of different widths: [16, 17]",
    ),
    "no value": (lambda: without("base", "ip_adapter.3.to_v_ip.weight"), "[3] missing or extra"),
    "no key": (lambda: without("base", "ip_adapter.1.to_k_ip.weight"), "missing or extra"),
    "extra site": (lambda: changed("base", "ip_adapter.9.to_k_ip.weight", (64, 16)), "missing or extra"),
    "extra value": (lambda: changed("base", "ip_adapter.9.to_v_ip.weight", (64, 16)), "[9] missing or extra"),
    "no sites": (
        lambda: {name: shape for name, shape in intact("plus").items() if name.startswith("image_proj.")},
        "image_proj but no ip_adapter.N.to_k_ip",
    ),
    "heads": (
        lambda: changed("plus", "image_proj.layers.0.0.to_q.weight", (24, 20)),
        "to_q has 24 rows, which heads of size 64 do not divide",
    ),
    "flat projection": (lambda: changed("base", "image_proj.proj.weight", (64,)), "image_proj.proj.weight"),
    "scalar norm": (lambda: changed("base", "image_proj.norm.weight", ()), "image_proj.norm.weight"),
    "empty norm": (lambda: changed("base", "image_proj.norm.weight", (0,)), "image_proj.norm.weight"),
    "flat site": (lambda: changed("base", "ip_adapter.1.to_k_ip.weight", (32,)), "ip_adapter.1.to_k_ip.weight"),
    "flat mlp": (lambda: changed("full", "image_proj.proj.0.weight", (24,)), "image_proj.proj.0.weight"),
    "flat latents": (lambda: changed("plus", "image_proj.latents", (4,)), "image_proj.latents"),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_tensors_at_odds_with_each_other_are_refused(case: str) -> None:
    make, phrase = CONTRADICTIONS[case]
    with pytest.raises(UnreadableFileError, match=re.escape(phrase)):
        detect(make(), {})


@given(st.data())
def test_any_wrong_shape_of_any_tensor_is_a_message(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(("base", "plus", "full")))
    shapes = intact(kind) | {"image_proj.pos_emb.weight": (9, 24)} if kind == "plus" else intact(kind)
    name = data.draw(st.sampled_from(list(shapes)))
    shape = data.draw(st.lists(st.integers(0, 70), max_size=4).map(tuple).filter(lambda shape: shape != shapes[name]))
    with contextlib.suppress(UnreadableFileError):
        build_adapter(meta_tensors(shapes | {name: shape}), {})


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("{", f"metadata {SPEC_KEY} is not JSON"),
        ("[1]", f"metadata {SPEC_KEY} is a list"),
        ('{"negative": "black", "resampler": {"head_dim": 8}}', "black"),
        ('{"feature": "logits", "resampler": {"head_dim": 8}}', "logits"),
        ('{"layer": "last", "resampler": {"head_dim": 8}}', "last"),
        ('{"layer": 0, "resampler": {"head_dim": 8}}', "layer 0, not a negative number"),
        ('{"encoder": "CLIP", "resampler": {"head_dim": 8}}', "encoder 'CLIP', not an object"),
        ('{"encoder": {"name": 3}, "resampler": {"head_dim": 8}}', "not a name and an image_size"),
        (
            '{"encoder": {"crop": "middle"}, "resampler": {"head_dim": 8}}',
            "crop 'middle', none of center, pad, stretch",
        ),
        ('{"encoder": {"kind": 3}, "resampler": {"head_dim": 8}}', "not a name and an image_size"),
        ('{"encoder": {"padding": "grey"}, "resampler": {"head_dim": 8}}', "padding 'grey', none of mean, black"),
        ('{"encoder": {"image_size": "224"}, "resampler": {"head_dim": 8}}', "not a name and an image_size"),
        ('{"resampler": {"head_dim": 7}}', "heads of size 7"),
        ('{"resampler": {"head_dim": 0}}', "heads of size 0"),
        ('{"resampler": {"head_dim": "wide"}}', "wide"),
        ('{"resampler": {"head_dim": null}}', "head"),
    ],
)
def test_metadata_nobody_can_read_is_refused(text: str, phrase: str) -> None:
    with pytest.raises(UnreadableFileError, match=re.escape(phrase)):
        detect(tiny_adapter("plus", site_dims=SITE_DIMS), {SPEC_KEY: text})
