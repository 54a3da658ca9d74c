"""The diffusers code of a model card runs as it stands, and gives the pictures our own processors give."""

import re
import runpy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import transformers
from diffusers import FluxPipeline
from PIL import Image

from ipadapter_core.encoder.folder import load_vision_folder
from ipadapter_core.encoder.pixels import encoder_pixels
from ipadapter_core.file.spec import Negative
from ipadapter_core.network.adapter import build_adapter, load_adapter
from ipadapter_trainer.config import AdapterConfig, BaseModelConfig, EncoderConfig
from ipadapter_trainer.files.export import export_adapter
from ipadapter_trainer.files.facts import ExportFacts, Preprocess
from ipadapter_trainer.models.image_encoder import load_image_encoder
from ipadapter_trainer.models.loading import load_base
from ipadapter_trainer.models.network import new_adapter
from ipadapter_trainer.readers.pictures import PictureReader
from ipadapter_trainer.watch.sampling import encode_reference
from support.published import random_tensors, tiny_adapter
from support.tiny_flux_base import write_flux_base
from support.tiny_sd3_base import write_sd3_base
from support.tiny_unet import diffusers_unet, site_dims

CPU = torch.device("cpu")
SIZE = 40  # of the reference; not the encoder's


def snippet(card: str, **places: object) -> str:
    code = re.search(r"```python\n(.+?)```", card, re.DOTALL)
    assert code is not None
    text = re.sub(r"torch\.b?float16", "torch.float32", code[1].replace('"cuda"', '"cpu"'))
    text = text.replace("num_inference_steps=30", "num_inference_steps=2")
    text = text.replace('pipe("", ', 'pipe("", output_type="latent", height=64, width=64, latents=latents, ')
    for name, value in places.items():
        assert name in text
        text = text.replace(name, str(value))
    return text


@torch.no_grad()
def test_the_code_of_the_card_runs_and_is_right(
    tmp_path: Path, base_folder: Callable[..., Path], encoder_folder: Callable[..., Path]
) -> None:
    encoder, base = encoder_folder("clip"), base_folder("sd15")
    vision = load_vision_folder(encoder, transformers)
    shapes = tiny_adapter("base", site_dims=site_dims(diffusers_unet("sd15")), image_dim=vision.spec.embed_dim or 0)
    adapter = build_adapter(random_tensors(shapes), {})
    # a mean that no pipeline has by itself: the card must state it
    pixel_format = replace(vision.pixel_format, mean=(0.1, 0.2, 0.3))
    facts = ExportFacts(title="x", preprocess=Preprocess.of(vision.spec, pixel_format, "center"), training={})
    report = export_adapter(adapter, tmp_path / "adapter.safetensors", precision="fp32", facts=facts)

    picture = numpy.random.default_rng(0).integers(0, 255, (SIZE, SIZE, 3), dtype=numpy.uint8)
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    places = {"IMAGE_ENCODER": encoder, "BASE_MODEL": base, "FOLDER_OF_THIS_FILE": tmp_path}
    code = tmp_path / "card.py"
    code.write_text(snippet(report.card.read_text(), **places))
    scope = runpy.run_path(str(code), {"reference": Image.fromarray(picture), "latents": latents})
    given = scope["image"]

    pipe = scope["pipe"]
    read = load_adapter(report.path)
    assert read.spec.negative is Negative.ZERO_FEATURES
    pixels = encoder_pixels(torch.from_numpy(picture)[None] / 255, pixel_format, "center")
    features = vision.features(pixels, read.spec.feature, read.spec.layer)
    embeds = torch.stack([torch.zeros_like(features), features])  # (2, 1, E): diffusers' negative comes first
    call = {"height": 64, "width": 64, "latents": latents, "num_inference_steps": 2, "output_type": "latent"}
    expected = pipe("", ip_adapter_image_embeds=[embeds], **call).images[0]
    nothing = pipe("", ip_adapter_image_embeds=[torch.zeros_like(embeds)], **call).images[0]
    # diffusers resizes with PIL, we with torch: the pictures differ by roundings of the reference's pixels
    assert (given - expected).abs().mean() < 0.05 * (expected - nothing).abs().mean()


@pytest.mark.parametrize("family", ["flux", "sd3"])
@torch.no_grad()
def test_the_code_of_the_card_runs_for_transformers(
    tmp_path: Path, encoder_folder: Callable[..., Path], family: str
) -> None:
    """With features as the trainer reads them."""
    write, reads, kind = {
        "flux": (write_flux_base, "clip", AdapterConfig(kind="base", init="random")),
        "sd3": (write_sd3_base, "siglip", AdapterConfig(kind="plus", tokens=4, resampler_dim=64, init="random")),
    }[family]
    folder, seen = write(tmp_path / "base"), encoder_folder(reads)
    base = load_base(BaseModelConfig(model=str(folder), precision="fp32"), CPU)
    crop = "center" if family == "flux" else "stretch"
    settings = EncoderConfig(model=str(seen), crop=crop, precision="fp32")
    encoder = load_image_encoder(settings, kind.kind, CPU)
    network = new_adapter(kind, base, encoder)
    negative = network.spec.negative
    stated = Preprocess.of(encoder.spec, encoder.format.pixel_format, crop)
    facts = ExportFacts(title="x", preprocess=stated, training={})
    report = export_adapter(network.adapter, tmp_path / "adapter.safetensors", precision="fp32", facts=facts)

    side = encoder.format.pixel_format.size  # nothing is to be resized
    picture = Image.fromarray(numpy.random.default_rng(0).integers(0, 255, (side, side, 3), dtype=numpy.uint8))
    reader = PictureReader(encoder)
    features, nothing = (
        each["features"]
        for each in (encode_reference(picture, "x", base=base, reader=reader).features, reader.no_image(negative))
    )
    latents = torch.randn(1, base.latent_channels, 8, 8, generator=torch.Generator().manual_seed(0))
    if family == "flux":
        latents = FluxPipeline._pack_latents(latents, 1, base.latent_channels, 8, 8)
    places = {"IMAGE_ENCODER": seen, "BASE_MODEL": folder, "FOLDER_OF_THIS_FILE": tmp_path}
    code = tmp_path / "card.py"
    code.write_text(snippet(report.card.read_text(), **places))
    scope = runpy.run_path(str(code), {"reference": picture, "latents": latents})
    call = {"height": 64, "width": 64, "latents": latents, "num_inference_steps": 2, "output_type": "latent"}

    def drawn(features: torch.Tensor) -> Any:
        embeds = [features[None]] if family == "flux" else torch.cat((nothing, features))
        return scope["pipe"]("", ip_adapter_image_embeds=embeds, **call).images[0]

    expected = drawn(features)
    assert (scope["image"] - expected).abs().mean() < 0.05 * (expected - drawn(nothing)).abs().mean()
