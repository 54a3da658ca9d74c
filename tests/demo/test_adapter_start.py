"""What the demo's adapters start from."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from demo.models import DIFFUSERS, ENCODER, demo_models
from demo.world import adapter_start
from demo.world.adapter_start import aim, patches_of, start_adapter
from demo.world.encoder import PATCHES, place_codes
from demo.world.glances import Outputs, glance_error
from demo.world.image_prompts import WordsOf
from ipadapter_core.file.spec import ResamplerSpec
from ipadapter_core.network.adapter import load_adapter
from ipadapter_core.network.resampler import Resampler
from support.letters import letters

RECIPE = Path(__file__).parents[2] / "trainer" / "configs" / "demo_plus.toml"
HELD_OUT = 255


def latents_of(pixels: Tensor) -> Tensor:
    """Any, but NaN, which would spoil every weight, where a held-out picture is seen."""
    cells = functional.avg_pool2d(pixels.float() / 255, 8)
    return functional.pad(cells, (0, 0, 0, 0, 0, 1)).masked_fill((pixels == HELD_OUT).any(), torch.nan)


def test_a_start_learns_words_from_what_is_not_held_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter_start, "RECIPE", replace(adapter_start.RECIPE, steps=6, warmup=1, average=0.5))
    monkeypatch.setattr(adapter_start, "BATCH", 8)
    models, pictures, path = demo_models(), letters(), tmp_path / "start.safetensors"
    overrides = [f'base.model="{models / DIFFUSERS}"', f'encoder.model="{models / ENCODER}"']
    torch.manual_seed(0)
    pixels = torch.randint(255, (len(pictures), 3, 64, 64), dtype=torch.uint8)
    pixels[torch.tensor([picture.is_held_out for picture in pictures])] = HELD_OUT
    start_adapter(RECIPE, overrides, pictures, pixels, latents_of, path)
    adapter = load_adapter(path)
    unet = load_file(next((models / DIFFUSERS / "unet").glob("*.safetensors")))
    text = unet["down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_v.weight"]
    assert torch.equal(adapter.site(0).to_v_ip.weight.float(), text.float())
    assert adapter.spec.num_tokens == len(WordsOf(2).place)
    assert all(tensor.isfinite().all() for tensor in adapter.state_dict().values())

    first, *_, last = (
        json.loads(line)["loss"] for line in (tmp_path / "start" / "losses.jsonl").read_text().splitlines()
    )
    assert last < first


def test_each_head_looks_at_its_patch_before_any_training() -> None:
    torch.manual_seed(0)
    spec = ResamplerSpec(
        dim=320, depth=4, num_heads=5, head_dim=64, ff_dim=640, num_queries=16, max_positions=None, num_mean_pooled=0
    )
    resampler = Resampler(spec, image_dim=192, cross_attention_dim=768, ops=nn)
    places = functional.pad(place_codes(), (0, 192 - 2 * PATCHES, 1, 0))
    features = 6 * places + 0.3 * torch.randn(32, *places.shape)
    patches = patches_of(WordsOf(2), layers=4, heads=5)
    aim(resampler, features[:16], patches)
    heard = [Outputs([getattr(read, name) for read, _ in resampler.layers]) for name in ("to_q", "to_kv")]
    resampler(features[16:])
    for query, key_value, patch in zip(heard[0](), heard[1](), patches, strict=True):
        assert glance_error(query, key_value.chunk(2, dim=-1)[0], patch, 5, 5).mean() < 0.5  # a guess has 4.4


def test_a_word_reads_its_square_and_what_is_around() -> None:
    patches = torch.stack(patches_of(WordsOf(2), layers=4, heads=5))
    read = (patches - 1)[..., 5].unique()  # the sixth word: cells 2 and 3 down, 2 and 3 across
    block = torch.arange(64).reshape(8, 8)[1:5, 1:5].flatten()
    assert torch.equal(read, block)
    assert patches[..., 0].min() == 1  # in the corner: what is outside is the nearest inside
