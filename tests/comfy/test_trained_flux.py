"""A FLUX.1 adapter that the trainer trained and exported does the same in ComfyUI, in the trainer and in diffusers."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline
from torch import Tensor
from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

from ipadapter_trainer.backbones.image_prompt import ImagePrompt
from ipadapter_trainer.config import BaseModelConfig
from ipadapter_trainer.files.adapter_file import open_adapter
from ipadapter_trainer.files.checkpoint_export import export_checkpoint
from ipadapter_trainer.loop import train
from ipadapter_trainer.models.loading import load_base
from support import comfy_host, encoders
from support.graphs import PLAIN
from support.tiny_flux import LATENT_CHANNELS, POOLED_DIM, TEXT_DIM, comfy_flux, diffusers_flux
from support.tiny_flux_base import write_flux_base
from support.trained import reference_picture
from support.training import make_config, write_pictures

SIDE, TEXT, TIME, GUIDANCE, STRENGTH = 8, 7, 0.6, 3.5, 0.8
RELATIVE, EFFECT = 1e-4, 0.02
CPU = torch.device("cpu")
KINDS: dict[str, dict[str, Any]] = {
    "base": {"kind": "base", "tokens": 4},
    "plus": {"kind": "plus", "tokens": 6, "resampler_dim": 64, "resampler_depth": 1},
}
ENCODER = "flux trained with"


@pytest.fixture(scope="module")
def encoder_folder(base_directory: Path) -> Iterator[Path]:
    folder = base_directory / "models" / "clip_vision" / ENCODER
    encoders.write_folder("clip", folder)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module", params=KINDS)
def trained(
    request: pytest.FixtureRequest, base_directory: Path, encoder_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, Path]:
    """Kind, the base's folder and the exported file, which is in models/ipadapter too."""
    folder = tmp_path_factory.mktemp("trained_flux")
    config = make_config(
        write_flux_base(folder / "base"),
        encoder_folder,
        write_pictures(folder / "pictures", 4),
        folder / "run",
        adapter=KINDS[request.param],
        train={"steps": 2},
        optimizer={"learning_rate": 0.05},
    )
    train(config)
    file = export_checkpoint(config.run, None).path
    (base_directory / "models" / "ipadapter").mkdir(exist_ok=True)
    shutil.copy(file, base_directory / "models" / "ipadapter" / f"flux-{request.param}.safetensors")
    return request.param, folder / "base", file


def picture() -> Tensor:
    return torch.from_numpy(np.asarray(reference_picture(), dtype=np.float32) / 255)[None]


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(1, LATENT_CHANNELS, SIDE, SIDE, generator=generator)
    text = torch.randn(1, TEXT, TEXT_DIM, generator=generator)
    return latents, text, torch.randn(1, POOLED_DIM, generator=generator)


def in_comfyui(model: Any) -> Tensor:
    """The velocity of a forward as FLUX is drawn: cond alone."""
    latents, text, pooled = inputs()
    sigma, base = torch.full((1,), TIME), model.model
    options = model.model_options["transformer_options"] | {"cond_or_uncond": [0]}
    with torch.inference_mode():
        denoised = base.apply_model(
            latents * 1.0,
            sigma,
            c_crossattn=text,
            y=pooled,
            guidance=torch.full((1,), GUIDANCE),
            transformer_options=options,
        )
    return (base.model_sampling.calculate_input(sigma, latents) - denoised) / TIME


def in_trainer(folder: Path, file: Path, encoder: Path) -> Tensor:
    base = load_base(BaseModelConfig(model=str(folder), precision="fp32"), CPU)
    opened = open_adapter(file, base, str(encoder), "fp32")
    latents, text, pooled = inputs()
    with torch.no_grad():
        features = opened.reader.read({"pixels": opened.reader.encoder.format.pixels(picture())})
        kv = opened.network(features).kv
        image = ImagePrompt(tuple((k, v * STRENGTH) for k, v in kv))
        named = {"text": text, "pooled": pooled}
        return base.predict(latents, torch.full((1,), TIME), named, torch.zeros(1, 6), image)


def in_diffusers(folder: Path, file: Path, encoder: Path) -> Tensor:
    pipeline = FluxPipeline.from_pretrained(
        folder,
        image_encoder=CLIPVisionModelWithProjection.from_pretrained(encoder),
        feature_extractor=CLIPImageProcessor(size=encoders.IMAGE_SIZE, crop_size=encoders.IMAGE_SIZE),
    )
    pipeline.load_ip_adapter(str(file.parent), weight_name=file.name, image_encoder_pretrained_model_name_or_path=None)
    pipeline.set_ip_adapter_scale(STRENGTH)
    latents, text, pooled = inputs()
    with torch.no_grad():
        embeds = pipeline.prepare_ip_adapter_image_embeds([reference_picture()], None, CPU, 1)
        answer = pipeline.transformer(
            FluxPipeline._pack_latents(latents, 1, LATENT_CHANNELS, SIDE, SIDE),
            text,
            pooled,
            torch.full((1,), TIME),
            img_ids=FluxPipeline._prepare_latent_image_ids(1, SIDE // 2, SIDE // 2, CPU, torch.float32),
            txt_ids=torch.zeros(TEXT, 3),
            guidance=torch.full((1,), GUIDANCE),
            joint_attention_kwargs={"ip_adapter_image_embeds": embeds},
        ).sample
    return FluxPipeline._unpack_latents(answer, SIDE * 8, SIDE * 8, 8)


def difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


def test_nodes_equal_the_trainer_and_diffusers(trained: tuple[str, Path, Path], encoder_folder: Path) -> None:
    kind, folder, file = trained
    adapter = comfy_host.run("IPALoadAdapter", adapter_file=f"flux-{kind}.safetensors", image_encoder="auto")
    assert adapter.encoder.name == f"{ENCODER}/"
    tokens = comfy_host.run("IPAEncodeImage", adapter=adapter, image=picture(), crop="center")
    model = comfy_flux(diffusers_flux())
    patched = comfy_host.run("IPAApply", model=model, adapter=adapter, tokens=tokens, **PLAIN | {"strength": STRENGTH})
    nodes = in_comfyui(patched)
    assert difference(in_comfyui(model), nodes) > EFFECT, "it does nothing"
    assert difference(nodes, in_trainer(folder, file, encoder_folder)) < RELATIVE
    if kind == "base":
        assert difference(nodes, in_diffusers(folder, file, encoder_folder)) < RELATIVE
