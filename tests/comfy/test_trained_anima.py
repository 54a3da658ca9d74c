"""What the trainer trains for Anima does the same in ComfyUI as in the trainer."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ipadapter_core.strength.site import SiteStrength
from ipadapter_trainer.config import BaseModelConfig
from ipadapter_trainer.files.adapter_file import open_adapter
from ipadapter_trainer.files.checkpoint_export import export_checkpoint
from ipadapter_trainer.loop import train
from ipadapter_trainer.models.loading import load_base
from ipadapter_trainer.watch.sampling import guided
from support import comfy_host, encoders, tiny_anima
from support.graphs import PLAIN
from support.steps import difference
from support.tiny_anima_base import of_comfy, write_anima_base
from support.trained import reference_picture
from support.training import make_config, write_pictures

CPU = torch.device("cpu")
SIZE, WORDS, TIME, STRENGTH = (8, 12), 7, 0.6, 0.8
RELATIVE, EFFECT = 1e-4, 0.02


@pytest.fixture(scope="module")
def encoder(base_directory: Path) -> Iterator[Path]:
    folder = base_directory / "models" / "clip_vision" / "anima encoder"
    encoders.write_folder("clip", folder)
    yield folder
    shutil.rmtree(folder)


def test_diffusers_model_is_comfyuis(base_directory: Path) -> None:
    """Of the same weights: the blocks, positions and time, and the text conditioner."""
    network = tiny_anima.comfy_anima().model.diffusion_model
    transformer, conditioner = of_comfy(network)
    generator = torch.Generator().manual_seed(1)
    noisy = torch.randn(2, tiny_anima.LATENT_CHANNELS, 1, 12, 8, generator=generator)
    text, states = (
        torch.randn(2, 7, tiny_anima.TEXT_DIM, generator=generator),
        torch.randn(2, 5, 8, generator=generator),
    )
    times, words = torch.tensor([0.9, 0.3]), torch.randint(0, 32000, (2, 9), generator=generator)
    with torch.inference_mode():
        expected = network(noisy, times, text)
        given = transformer(noisy, times, text, padding_mask=torch.zeros(1, 1, 96, 64)).sample
        assert difference(given, expected) < 1e-4
        assert difference(conditioner(states, words), network.preprocess_text_embeds(states, words)) < 1e-4


def picture() -> Tensor:
    """The reference as ComfyUI's IMAGE."""
    return torch.frombuffer(bytearray(reference_picture().tobytes()), dtype=torch.uint8).reshape(
        1, *reference_picture().size[::-1], 3
    ) / torch.tensor(255.0)


def inputs() -> tuple[Tensor, Tensor]:
    """Latents and text of an uncond and a cond row."""
    generator = torch.Generator().manual_seed(11)
    latents = torch.randn(2, tiny_anima.LATENT_CHANNELS, *SIZE, generator=generator)
    return latents, torch.randn(2, WORDS, tiny_anima.TEXT_DIM, generator=generator)


def in_comfyui(model: Any) -> Tensor:
    import comfy.patcher_extension

    latents, text = inputs()
    wrappers = comfy.patcher_extension.merge_nested_dicts({}, model.wrappers)
    options = model.model_options["transformer_options"]
    options = options | {"cond_or_uncond": [1, 0], "sigmas": torch.ones(1), "wrappers": wrappers}
    with torch.inference_mode():
        network = model.model.diffusion_model
        return network(latents[:, :, None], torch.full((2,), TIME), text, transformer_options=options)[:, :, 0]


@torch.no_grad()
def in_trainer(file: Path, base_folder: Path, encoder: Path) -> Tensor:
    """As training computes it, with the K/V of one forward of the network."""
    base = load_base(BaseModelConfig(model=str(base_folder), precision="fp32"), CPU)
    opened = open_adapter(file, base, str(encoder), "fp32")
    features = opened.reader.read({"pixels": opened.reader.encoder.format.pixels(picture())})["features"]
    times = base.adapter_times(torch.tensor([TIME]))
    none, image = (opened.network({"features": x}, times) for x in (opened.no_image["features"], features))
    strengths = {site.index: SiteStrength(STRENGTH) for site in base.sites.sites}
    latents, text = inputs()
    prompt = guided(none, image, strengths)
    return base.predict(latents, torch.full((2,), TIME), {"text": text}, torch.zeros(2, 6), prompt)


KINDS: dict[str, dict[str, Any]] = {
    "PE": {"kind": "plus", "resampler_dim": 64, "resampler_depth": 2, "tokens": 4},
    "PE gated": {"kind": "plus", "resampler_dim": 64, "resampler_depth": 2, "tokens": 4, "gate": "block"},
    "LuciferTC": {"kind": "full", "gate": "time"},
    "LuciferTC, fewer tokens": {"kind": "plus", "resampler_depth": 2, "tokens": 4, "gate": "time"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_nodes_equal_the_trainer(encoder: Path, base_directory: Path, tmp_path: Path, kind: str) -> None:
    model = tiny_anima.comfy_anima()
    base = write_anima_base(tmp_path / "base", transformer=of_comfy(model.model.diffusion_model)[0])
    config = make_config(
        base,
        encoder,
        write_pictures(tmp_path / "pictures", 4),
        tmp_path / "run",
        encoder={"feature": "last_hidden_state"},
        adapter=KINDS[kind],
        train={"steps": 6 if "gate" in KINDS[kind] else 2},  # gates are closed at first
        optimizer={"learning_rate": 0.05},  # so that the adapter shows
    )
    train(config)
    exported = export_checkpoint(config.run, None).path
    name = f"trained-anima-{kind}.safetensors"
    (base_directory / "models" / "ipadapter").mkdir(exist_ok=True)
    shutil.copy(exported, base_directory / "models" / "ipadapter" / name)
    adapter = comfy_host.run("IPALoadAdapter", adapter_file=name, image_encoder="auto")
    tokens = comfy_host.run("IPAEncodeImage", adapter=adapter, image=picture(), crop="center")
    patched = comfy_host.run("IPAApply", model=model, adapter=adapter, tokens=tokens, **PLAIN | {"strength": STRENGTH})
    expected = in_trainer(exported, base, encoder)
    assert difference(in_comfyui(patched), expected) < RELATIVE
    assert difference(in_comfyui(model), expected) > EFFECT, "it does nothing"
