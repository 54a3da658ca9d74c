"""`bench/trainer_throughput.py`: every kind runs in toy sizes, and each plain loop trains what our trainer trains."""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from ipadapter_trainer.batch import Batch
from ipadapter_trainer.run import Run, open_run

BENCH = Path(__file__).resolve().parents[2] / "bench"
sys.path.append(str(BENCH))

import throughput_worker  # noqa: E402
from official_loop import Settings, tokenize  # noqa: E402
from plain_face_loop import FaceLoop  # noqa: E402
from throughput_kinds import KINDS  # noqa: E402

FLOWS = ["flux", "sd3", "z_image", "qwen_image", "anima"]
STEPS, RATE = 2, 1e-3
Named = dict[str, Tensor]


def our_run(name: str, folder: Path) -> tuple[Run, Settings]:
    """In toy sizes and float32, without a cache; and what the plain loop is told of the same files."""
    shape, size = KINDS[name].small
    written = KINDS[name].write(folder, shape)
    more = {"kind": name, "size": size, "resolution": shape.resolution}
    config = throughput_worker.make_config(
        {**written, **more, "output": str(folder / "run"), "batch_size": shape.batch_size}, "fp32", is_cached=False
    )
    changed = {
        "optimizer": config.optimizer.model_copy(update={"learning_rate": RATE, "clip_norm": None}),
        "objective": config.objective.model_copy(update={"drop_image": 0.0, "drop_both": 0.0}),
    }
    settings = Settings(
        *(written.get(part, Path()) for part in ("base", "encoder", "data")),
        resolution=shape.resolution,
        batch_size=shape.batch_size,
        learning_rate=RATE,
        weight_decay=config.optimizer.weight_decay,
    )
    return open_run(config.model_copy(update=changed)), settings


def moved(run: Run) -> None:
    """Weights that training has moved: values of zero would hide a mistake."""
    with torch.no_grad():
        for parameter in run.network.trained_parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))


def step(run: Run, batch: Batch) -> Tensor:
    loss = run.objective.loss(run.adapter, batch)
    run.accelerator.backward(loss)
    run.optimizer.step()
    run.optimizer.zero_grad()
    return loss.detach()


def of_flux(state: Mapping[str, Tensor]) -> Named:
    projection = "encoder_hid_proj.image_projection_layers.0"
    names = {"image_proj.proj": f"{projection}.image_embeds", "image_proj.norm": f"{projection}.norm"}
    blocks = at_blocks(state, "transformer_blocks.{}.attn")
    moved_to = {name.replace("_ip.", "_ip.0."): each for name, each in blocks.items()}
    for name, tensor in state.items():
        stem, _, end = name.rpartition(".")
        if stem in names:
            moved_to[f"{names[stem]}.{end}"] = tensor
    return moved_to


def of_image_proj(convert: Callable[..., Any], state: Mapping[str, Tensor]) -> Named:
    """Under diffusers' names, by its own loader."""
    given = {name.removeprefix("image_proj."): each for name, each in state.items() if name.startswith("image_proj.")}
    made = convert(given, low_cpu_mem_usage=False).state_dict()
    return {f"image_proj.{name}": tensor for name, tensor in made.items()}


def at_blocks(state: Mapping[str, Tensor], place: str) -> Named:
    parts = [(name.split(".", 2), each) for name, each in state.items() if name.startswith("ip_adapter.")]
    return {f"{place.format(number)}.processor.{rest}": each for (_, number, rest), each in parts}


def of_plus(state: Mapping[str, Tensor]) -> Named:
    return of_image_proj(partial(UNet2DConditionModel._convert_ip_adapter_image_proj_to_diffusers, None), state)


def of_perceiver(state: Mapping[str, Tensor]) -> Named:
    start = "image_proj.resampler."
    return {f"image_proj.{name.removeprefix(start)}": each for name, each in state.items() if name.startswith(start)}


LOADED: dict[str, Callable[[Mapping[str, Tensor], Any], Named]] = {
    "flux": lambda state, _: of_flux(state),
    "sd3": lambda state, model: {
        **of_image_proj(model._convert_ip_adapter_image_proj_to_diffusers, state),
        **at_blocks(state, "transformer_blocks.{}.attn"),
    },
    "z_image": lambda state, _: {**of_plus(state), **at_blocks(state, "layers.{}.attention")},
    "qwen_image": lambda state, _: {**of_plus(state), **at_blocks(state, "transformer_blocks.{}.attn")},
    "anima": lambda state, _: {**of_perceiver(state), **at_blocks(state, "transformer_blocks.{}.attn2")},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FLOWS)
def test_a_plain_flow_loop_and_ours_train_the_same_weights(name: str, tmp_path: Path) -> None:
    run, settings = our_run(name, tmp_path)
    moved(run)
    loop = KINDS[name].loop(settings, KINDS[name].small[1])
    transformer = loop.model.transformer
    weights = LOADED[name](run.network.adapter.state_dict(), transformer)
    assert weights.keys() == {name for name, each in transformer.named_parameters() if each.requires_grad}
    transformer.load_state_dict(weights, strict=False)
    batches = run.batches(0)
    for _ in range(STEPS):
        batch = next(batches)
        assert batch.pixels is not None
        assert batch.references is not None
        latents = run.base.scale_latents(batch_latents(run, batch))
        torch.manual_seed(5)
        encoded = loop.encode_pixels(batch.pixels)
        torch.manual_seed(5)
        mean, std = run.base.encode_pixels(batch.pixels)
        torch.testing.assert_close(encoded, run.base.scale_latents(mean + std * torch.randn(mean.shape)))
        expected = loop.update(
            latents,
            batch.noise,
            batch.times,
            loop.encode_text(batch.captions),
            loop.encode_references(batch.references["pixels"], torch.zeros(len(latents))),
        )
        torch.testing.assert_close(step(run, batch), expected, rtol=1e-4, atol=1e-6)


def batch_latents(run: Run, batch: Batch) -> Tensor:
    assert batch.pixels is not None
    mean, std = run.base.encode_pixels(batch.pixels)
    return mean + std * batch.latent_noise


@pytest.mark.slow
def test_the_plain_loop_of_faces_and_ours_train_the_same_weights(tmp_path: Path) -> None:
    run, settings = our_run("faceid", tmp_path)
    moved(run)
    loop = FaceLoop(settings, KINDS["faceid"].small[1])
    loop.load(run.network.published())
    batches = run.batches(0)
    for _ in range(STEPS):
        batch = next(batches)
        assert batch.references is not None
        latents = run.base.scale_latents(batch_latents(run, batch))
        text = loop.encode_text(tokenize(loop.tokenizer, batch.captions))
        identity = loop.encode_references(batch.references["identity"], batch.drop_image)
        expected = loop.update(latents, batch.noise, (batch.times * 1000).round().long(), text, identity)
        torch.testing.assert_close(step(run, batch), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("name", KINDS)
def test_every_kind_is_measured(name: str) -> None:
    """In toy sizes, where no ratio says anything."""
    command = [sys.executable, str(BENCH / "trainer_throughput.py"), "--small", "--kind", name]
    result = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
    plain = KINDS[name].plain
    assert result["kind"] == name
    assert result["images_per_second"].keys() == result["peak_bytes"].keys() == {plain, "uncached", "cached"}
    seconds = result["seconds"]
    assert result["speed_ratio"] == pytest.approx(seconds[plain][0] / seconds["cached"][0], rel=0.1)
    bytes_ = result["peak_bytes"]
    assert result["memory_ratio"] == pytest.approx(bytes_[plain] / bytes_["cached"], rel=0.01)
    assert bytes_["cached"] < bytes_["uncached"] < bytes_[plain]
    assert result["operations"]["encoding"] > 0
