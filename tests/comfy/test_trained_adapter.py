"""A file that the trainer trained and exported does the same in ComfyUI, in diffusers and in the trainer."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ipadapter_trainer.config import BaseModelConfig
from ipadapter_trainer.files.adapter_file import open_adapter
from ipadapter_trainer.models.loading import load_base
from support import comfy_host, encoders, tiny_unet
from support.graphs import PLAIN
from support.trained import KINDS, Trained, diffusers_pipeline, reference_picture, train_adapter

SIZE = 16
TIMESTEP = 500
RELATIVE = 1e-5  # found: 1e-6; another idea of no image makes 3e-4 of a plus adapter
EFFECT = 0.1  # found: 0.24 and more
STRENGTH = 0.8
CPU = torch.device("cpu")
SHORT = {("sd15", "plus"), ("sdxl", "base")}  # each layout and each kind once
CASES = [
    pytest.param((layout, kind), marks=[] if (layout, kind) in SHORT else pytest.mark.long, id=f"{layout}-{kind}")
    for layout in ("sd15", "sdxl")
    for kind in KINDS
]
# "a first" fits as well: only the name in the file's metadata tells which encoder the adapter was trained with
OTHER_ENCODER, ENCODER = "a first", "trained with"


@pytest.fixture(scope="module")
def encoder_folder(base_directory: Path) -> Iterator[Path]:
    """The encoder trained with, in models/clip_vision beside another one of its size."""
    clip_vision = base_directory / "models" / "clip_vision"
    for seed, name in enumerate((OTHER_ENCODER, ENCODER)):
        encoders.write_folder("clip", clip_vision / name, seed)
    yield clip_vision / ENCODER
    for name in (OTHER_ENCODER, ENCODER):
        shutil.rmtree(clip_vision / name)


@pytest.fixture(scope="module", params=CASES)
def case(
    request: pytest.FixtureRequest,
    base_directory: Path,
    encoder_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[str, str, Trained]:
    """Layout, the file's name in models/ipadapter, and the run it is from."""
    layout, kind = request.param
    trained = train_adapter(tmp_path_factory.mktemp("trained"), layout, kind, encoder_folder)
    name = f"trained-{layout}-{kind}.safetensors"
    (base_directory / "models" / "ipadapter").mkdir(exist_ok=True)
    shutil.copy(trained.file, base_directory / "models" / "ipadapter" / name)
    return layout, name, trained


def inputs() -> dict[str, Tensor]:
    """Of an uncond and a cond row."""
    generator = torch.Generator().manual_seed(11)
    return {
        "latents": torch.randn(2, 4, SIZE, SIZE, generator=generator),
        "text": torch.randn(2, 7, tiny_unet.CONTEXT_DIM, generator=generator),
        "pooled": torch.randn(2, tiny_unet.POOLED_DIM, generator=generator),
        "time_ids": torch.full((2, 6), 64.0),
    }


def picture() -> Tensor:
    """The reference as ComfyUI's IMAGE."""
    return torch.from_numpy(np.asarray(reference_picture(), dtype=np.float32) / 255)[None]


def in_comfyui(model: Any, layout: str, unet: Any) -> Tensor:
    given = inputs()
    vector = None
    if layout == "sdxl":
        sizes = unet.add_time_proj(given["time_ids"].flatten()).reshape(2, -1)
        vector = torch.cat((given["pooled"], sizes), dim=1)
    options = model.model_options["transformer_options"] | {"cond_or_uncond": [1, 0], "sigmas": torch.ones(1)}
    times = torch.full((2,), float(TIMESTEP))
    with torch.inference_mode():
        return model.model.diffusion_model(
            given["latents"], times, context=given["text"], y=vector, transformer_options=options
        )


def added(layout: str) -> dict[str, Tensor]:
    given = inputs()
    return {"text_embeds": given["pooled"], "time_ids": given["time_ids"]} if layout == "sdxl" else {}


def in_diffusers(trained: Trained, layout: str) -> Tensor:
    pipeline = diffusers_pipeline(trained)
    pipeline.set_ip_adapter_scale(STRENGTH)
    with torch.no_grad():
        embeds = pipeline.prepare_ip_adapter_image_embeds([reference_picture()], None, CPU, 1, True)
        conditions = added(layout) | {"image_embeds": embeds}
        given = inputs()
        return pipeline.unet(given["latents"], TIMESTEP, given["text"], added_cond_kwargs=conditions).sample


def in_trainer(trained: Trained, layout: str) -> Tensor:
    """As training computes it: the UNet under its processors, with the K/V of one forward of the network."""
    base = load_base(BaseModelConfig(model=str(trained.base), precision="fp32"), CPU)
    opened = open_adapter(trained.file, base, str(trained.encoder), "fp32")
    pixels = opened.reader.encoder.format.pixels(picture())
    with torch.no_grad():
        features = opened.reader.read({"pixels": pixels})["features"]
        pairs = opened.network({"features": torch.cat((opened.no_image["features"], features))}).kv
        kv = [(k, v * STRENGTH) for k, v in pairs]
        given = inputs()
        return base.model(
            given["latents"],
            TIMESTEP,
            given["text"],
            added_cond_kwargs=added(layout),
            cross_attention_kwargs={"image_kv": kv},
        ).sample


def difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


@pytest.fixture(scope="module")
def nodes_output(case: tuple[str, str, Trained], model: Callable, unet: Callable) -> Tensor:
    layout, name, _ = case
    adapter = comfy_host.run("IPALoadAdapter", adapter_file=name, image_encoder="auto")
    tokens = comfy_host.run("IPAEncodeImage", adapter=adapter, image=picture(), crop="center")
    settings = PLAIN | {"strength": STRENGTH}
    patched = comfy_host.run("IPAApply", model=model(layout), adapter=adapter, tokens=tokens, **settings)
    output = in_comfyui(patched, layout, unet(layout))
    assert adapter.encoder.name == f"{ENCODER}/"
    assert difference(in_comfyui(model(layout), layout, unet(layout)), output) > EFFECT, "it does nothing"
    return output


def test_nodes_equal_diffusers(case: tuple[str, str, Trained], nodes_output: Tensor) -> None:
    """diffusers has its own reading of the file, its own preprocessing, and its own idea of no image."""
    layout, _, trained = case
    assert difference(nodes_output, in_diffusers(trained, layout)) < RELATIVE


def test_nodes_equal_the_trainer(case: tuple[str, str, Trained], nodes_output: Tensor) -> None:
    layout, _, trained = case
    assert difference(nodes_output, in_trainer(trained, layout)) < RELATIVE


def test_both_halves_count(case: tuple[str, str, Trained], model: Callable, unet: Callable) -> None:
    """The uncond half sees "no image" as in training, which is not the same as no adapter."""
    layout, name, _ = case
    adapter = comfy_host.run("IPALoadAdapter", adapter_file=name, image_encoder="auto")
    tokens = comfy_host.run("IPAEncodeImage", adapter=adapter, image=picture(), crop="center")
    patched = comfy_host.run("IPAApply", model=model(layout), adapter=adapter, tokens=tokens, **PLAIN)
    changed, plain = (in_comfyui(each, layout, unet(layout)) for each in (patched, model(layout)))
    assert difference(changed[0], plain[0]) > EFFECT
    assert difference(changed[1], plain[1]) > EFFECT
