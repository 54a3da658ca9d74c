"""The diffusers code of a model card runs as it stands, and gives the pictures our own processors give."""

import re
import runpy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy
import torch
import transformers
from PIL import Image

from ipadapter_core.encoder.folder import load_vision_folder
from ipadapter_core.encoder.pixels import encoder_pixels
from ipadapter_core.file.spec import Negative
from ipadapter_core.network.adapter import build_adapter, load_adapter
from ipadapter_trainer.files.export import export_adapter
from ipadapter_trainer.files.facts import ExportFacts, Preprocess
from support.published import random_tensors, tiny_adapter
from support.tiny_unet import diffusers_unet, site_dims

SIZE = 40  # of the reference; not the encoder's


def snippet(card: str, **places: object) -> str:
    code = re.search(r"```python\n(.+?)```", card, re.DOTALL)
    assert code is not None
    text = code[1].replace('"cuda"', '"cpu"').replace("torch.float16", "torch.float32")
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
