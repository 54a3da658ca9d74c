"""What an export says of diffusers is what a whole diffusers UNet does, for every row of the portability table."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from ipadapter_core.file.container import read_tensors, write_safetensors
from ipadapter_core.file.spec import (
    AdapterSpec,
    Feature,
    Negative,
    Projection,
    ResamplerSpec,
)
from ipadapter_core.network.adapter import IPAdapter, load_adapter
from ipadapter_trainer.backbones.unet_attention import install
from ipadapter_trainer.files.facts import Preprocess
from ipadapter_trainer.files.portability import (
    EVERYWHERE,
    NATIVE_ONLY,
    UNetOutline,
    check_portability,
    random_features,
)
from support.published import nested, random_tensors
from support.tiny_unet import CONTEXT_DIM, diffusers_unet, site_dims

IMAGE_DIM = 24
CLIP = Preprocess(encoder_kind="CLIP", crop="center", size=32, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.2))
Outcome = Literal["equal", "refused", "silently wrong"]


@dataclass(frozen=True)
class Row:
    """One row of the table, and what diffusers 0.42 was seen to do with it at its default settings."""

    outcome: Outcome
    projection: Projection
    num_tokens: int | None
    resampler: dict[str, Any] | None = None


def plus(outcome: Outcome, queries: int = 4, **sizes: Any) -> Row:
    tokens = queries + sizes.get("num_mean_pooled", 0)
    return Row(outcome, Projection.RESAMPLER, tokens, {"depth": 4, "head_dim": 64, "num_queries": queries, **sizes})


ROWS = {
    "base, 4 tokens": Row("equal", Projection.LINEAR, 4),
    "base, 8 tokens": Row("refused", Projection.LINEAR, 8),
    "base, 16 tokens": Row("refused", Projection.LINEAR, 16),
    "full": Row("equal", Projection.MLP, None),
    "plus, 16 queries": plus("equal", 16),
    "plus, 32 queries": plus("equal", 32),
    "plus, 2 layers": plus("refused", depth=2),
    "plus, 6 layers": plus("silently wrong", depth=6),
    "plus, learned positions": plus("silently wrong", max_positions=9),
    "plus, heads of size 32": plus("silently wrong", head_dim=32, num_heads=4),
    "plus, mean-pooled tokens": plus("silently wrong", num_mean_pooled=2),
}


def make_spec(row: Row, widths: tuple[int, ...]) -> AdapterSpec:
    resampler = None
    if row.resampler is not None:
        resampler = ResamplerSpec(**{"dim": 20, "num_heads": 2, "ff_dim": 80, **row.resampler})
    is_linear = row.projection is Projection.LINEAR
    return AdapterSpec(
        family="tiny",
        base="tiny",
        projection=row.projection,
        feature=Feature.IMAGE_EMBEDS if is_linear else Feature.HIDDEN_STATES,
        negative=Negative.ZERO_FEATURES if is_linear else Negative.ZERO_PIXELS,
        image_dim=IMAGE_DIM,
        cross_attention_dim=CONTEXT_DIM,
        num_tokens=row.num_tokens,
        site_dims=widths,
        resampler=resampler,
    )


def write_random(path: Path, spec: AdapterSpec) -> IPAdapter:
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in IPAdapter(spec).state_dict().items()}
    write_safetensors(path, random_tensors(shapes), spec.to_metadata())
    return load_adapter(path)


@torch.no_grad()
def whole_unet_outcome(path: Path, adapter: IPAdapter) -> Outcome:
    """Load into a whole UNet and compare its output with the same UNet under the trainer's processors."""
    generator = torch.Generator().manual_seed(1)
    features = random_features(adapter.spec)["features"]
    latents, text = (torch.randn(2, *shape, generator=generator) for shape in ((4, 8, 8), (7, CONTEXT_DIM)))
    theirs, ours = diffusers_unet("sd15"), diffusers_unet("sd15")
    try:
        theirs._load_ip_adapter_weights([nested(read_tensors(path).tensors)])
    except (RuntimeError, ValueError):
        return "refused"
    given: Tensor = theirs(latents, 500, text, added_cond_kwargs={"image_embeds": [features[:, None]]}).sample
    install(ours)
    tokens = adapter.project(features)
    sites = [adapter.site(index) for index in range(adapter.spec.num_sites)]
    kv = [(site.to_k_ip(tokens), site.to_v_ip(tokens)) for site in sites]
    expected = ours(latents, 500, text, cross_attention_kwargs={"image_kv": kv}).sample
    return "equal" if torch.allclose(given, expected, rtol=1e-4, atol=1e-4) else "silently wrong"


@pytest.mark.parametrize("name", ROWS)
def test_the_report_says_what_diffusers_does(tmp_path: Path, name: str) -> None:
    row, path = ROWS[name], tmp_path / "adapter.safetensors"
    adapter = write_random(path, make_spec(row, site_dims(diffusers_unet("sd15"))))
    assert whole_unet_outcome(path, adapter) == row.outcome
    portability = check_portability(path, adapter, CLIP)
    assert portability.weights_load == (row.outcome == "equal")
    assert portability.label == (EVERYWHERE if row.outcome == "equal" else NATIVE_ONLY)
    expected = {"equal": None, "refused": "cannot load it", "silently wrong": "without a word"}[row.outcome]
    assert (portability.reasons == ()) if expected is None else (expected in portability.reasons[0])


@pytest.mark.parametrize("part", ["to_k_ip", "to_v_ip"])
def test_one_wrong_site_is_noticed(tmp_path: Path, part: str) -> None:
    """The comparison covers every site, not one of each width."""
    path = tmp_path / "adapter.safetensors"
    adapter = write_random(path, make_spec(ROWS["base, 4 tokens"], (32, 64, 64, 64)))
    getattr(adapter.site(2), part).weight.data[0, 0] += 1e-2
    assert not check_portability(path, adapter, CLIP).weights_load


def test_wrong_tokens_are_noticed_where_the_layers_looked_at_take_no_image(tmp_path: Path) -> None:
    """Training some blocks leaves zero values in the others, whose attention shows nothing."""
    path = tmp_path / "adapter.safetensors"
    adapter = write_random(path, make_spec(ROWS["plus, 6 layers"], (32, 64, 32, 64)))
    for site in (0, 1):
        for projection in (adapter.site(site).to_k_ip, adapter.site(site).to_v_ip):
            projection.weight.data.zero_()
    write_safetensors(path, adapter.state_dict(), adapter.spec.to_metadata())
    assert not check_portability(path, load_adapter(path), CLIP).weights_load


@pytest.mark.parametrize(
    ("row", "change", "preprocess", "reason"),
    [
        ("plus, 16 queries", {"layer": -1}, CLIP, "hidden state -2, it reads -1"),
        ("plus, 16 queries", {"negative": Negative.ZERO_FEATURES}, CLIP, "trained with zero features"),
        ("base, 4 tokens", {"negative": Negative.ZERO_PIXELS}, CLIP, "trained with zero pixels"),
        ("plus, 16 queries", {"negative": Negative.NOISE}, CLIP, "is zero pixels, it was trained with noise"),
        ("base, 4 tokens", {}, replace(CLIP, crop="pad"), "crop 'pad'"),
        ("base, 4 tokens", {}, replace(CLIP, encoder_kind="DINOv2"), "it reads DINOv2"),
    ],
)
def test_what_diffusers_pipelines_do_otherwise_is_a_reason(
    tmp_path: Path, row: str, change: dict[str, Any], preprocess: Preprocess, reason: str
) -> None:
    path = tmp_path / "adapter.safetensors"
    adapter = write_random(path, replace(make_spec(ROWS[row], (32, 64)), **change))
    portability = check_portability(path, adapter, preprocess)
    assert portability.weights_load
    assert portability.label == NATIVE_ONLY
    assert len(portability.reasons) == 1
    assert reason in portability.reasons[0]


@pytest.mark.parametrize("layout", ["sd15", "sdxl"])
def test_the_outline_of_a_unet_gets_the_processors_a_whole_one_gets(tmp_path: Path, layout: str) -> None:
    path, unet = tmp_path / "adapter.safetensors", diffusers_unet(layout)
    adapter = write_random(path, make_spec(ROWS["base, 4 tokens"], site_dims(unet)))
    unet._load_ip_adapter_weights([nested(read_tensors(path).tensors)])
    outline = UNetOutline(adapter.spec, torch.float32)
    outline._load_ip_adapter_weights([nested(read_tensors(path).tensors)])
    whole = [processor for name, processor in unet.attn_processors.items() if name.endswith("attn2.processor")]
    assert len(whole) == len(outline.attn_processors)
    for expected, given in zip(whole, outline.attn_processors.values(), strict=True):
        assert torch.equal(expected.to_k_ip[0].weight, given.to_k_ip[0].weight)
        assert torch.equal(expected.to_v_ip[0].weight, given.to_v_ip[0].weight)
