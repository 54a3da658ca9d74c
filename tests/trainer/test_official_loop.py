"""The yardstick of `bench/trainer_throughput.py` trains what our trainer trains."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ipadapter_core.file.container import read_tensors
from ipadapter_trainer.batch import Batch
from ipadapter_trainer.run import Run, open_run
from support.training import SIZE, make_config, write_pictures

BENCH = Path(__file__).resolve().parents[2] / "bench"
sys.path.append(str(BENCH))

from official_loop import OfficialLoop, Settings, official_train, tokenize  # noqa: E402

STEPS = 3


@pytest.fixture
def settings(tmp_path: Path, base_folder: Callable[..., Path], encoder_folder: Callable[[str], Path]) -> Settings:
    pictures = write_pictures(tmp_path / "pictures", 6)
    data = pictures / "list.json"
    data.write_text(json.dumps([{"image_file": f"{number}.png", "text": f"shape {number}"} for number in range(6)]))
    return Settings(base_folder(), encoder_folder("clip"), data, resolution=SIZE, batch_size=2, learning_rate=1e-3)


def our_run(settings: Settings, output: Path) -> Run:
    config = make_config(
        settings.base,
        settings.encoder,
        settings.data,
        output,
        optimizer={"learning_rate": settings.learning_rate, "clip_norm": None},
        objective={"drop_image": 0.3, "drop_both": 0.2},
    )
    return open_run(config)


def official_update(loop: OfficialLoop, batch: Batch) -> torch.Tensor:
    """A step of the official loop on one of our batches, with our draws."""
    assert batch.pixels is not None
    assert batch.references is not None
    with torch.no_grad():
        latents = loop.vae.encode(batch.pixels).latent_dist
        latents = (latents.mean + latents.std * batch.latent_noise) * loop.vae.config.scaling_factor
    text = loop.encode_text(tokenize(loop.tokenizer, batch.captions))
    embeds = loop.encode_references(batch.references["pixels"], batch.drop_image)
    return loop.update(latents, batch.noise, (batch.times * 1000).round().long(), text, embeds)


def test_official_loop_and_ours_train_the_same_weights(tmp_path: Path, settings: Settings) -> None:
    run = our_run(settings, tmp_path / "run")
    loop = OfficialLoop(settings)
    loop.load(run.network.adapter.state_dict())
    batches = run.batches(0)
    dropped = 0
    for _ in range(STEPS):
        batch = next(batches)
        dropped += int(batch.drop_image.sum())
        loss = run.objective.loss(run.adapter, batch)
        run.accelerator.backward(loss)
        run.optimizer.step()
        run.optimizer.zero_grad()
        torch.testing.assert_close(official_update(loop, batch), loss.detach(), rtol=1e-4, atol=1e-6)
    assert dropped  # else dropping is not tried
    # after an AdamW step of 1e-3 a weight without noticeable gradient may differ by the step itself
    for name, value in run.network.adapter.state_dict().items():
        difference = (loop.weights()[name] - value).abs()
        assert difference.mean() < 2e-5, name


def test_official_loop_writes_an_adapter_in_published_form(tmp_path: Path, settings: Settings) -> None:
    losses = official_train(settings, tmp_path / "official.safetensors", 2)
    assert len(losses) == 2
    ours = our_run(settings, tmp_path / "run").network.adapter.state_dict()
    written = read_tensors(tmp_path / "official.safetensors").tensors
    assert {name: value.shape for name, value in written.items()} == {name: value.shape for name, value in ours.items()}
    first = "ip_adapter.1.to_k_ip.weight"
    assert not torch.equal(written[first], ours[first])  # ours still has the text's, which both start from
    torch.testing.assert_close(written[first], ours[first], rtol=0, atol=3 * settings.learning_rate)
