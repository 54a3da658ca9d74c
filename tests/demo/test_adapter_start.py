"""What the demo's adapters start from."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from demo.models import DIFFUSERS, ENCODER, demo_models
from demo.world import adapter_start
from demo.world.adapter_start import start_adapter
from demo.world.image_prompts import WordsOf
from ipadapter_core.adapter import load_adapter
from support.letters import letters

RECIPE = Path(__file__).parents[2] / "trainer" / "configs" / "demo_plus.toml"


def test_a_start_learns_words_from_what_is_not_held_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter_start, "RECIPE", replace(adapter_start.RECIPE, steps=12, warmup=1, average=0.5))
    monkeypatch.setattr(adapter_start, "BATCH", 8)
    monkeypatch.setattr(adapter_start, "ROUNDS", 1)
    models, pictures, path = demo_models(), letters(), tmp_path / "start.safetensors"
    overrides = [f'base.model="{models / DIFFUSERS}"', f'encoder.model="{models / ENCODER}"']
    torch.manual_seed(0)
    pixels = torch.randint(256, (len(pictures), 3, 64, 64), dtype=torch.uint8)
    latents = torch.randn(len(pictures), 4, 8, 8)
    latents[torch.tensor([picture.is_held_out for picture in pictures])] = torch.nan  # would spoil every weight
    start_adapter(RECIPE, overrides, pictures, pixels, latents, path)
    adapter = load_adapter(path)
    unet = load_file(next((models / DIFFUSERS / "unet").glob("*.safetensors")))
    text = unet["down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_v.weight"]
    assert torch.equal(adapter.site(0).to_v_ip.weight.float(), text.float())
    assert adapter.spec.num_tokens == len(WordsOf(2).place)
    assert all(tensor.isfinite().all() for tensor in adapter.state_dict().values())

    first, *_, last = (
        json.loads(line)["loss"] for line in (tmp_path / "start" / "0" / "losses.jsonl").read_text().splitlines()
    )
    assert last < first
