"""What the trainer draws with an exported file, diffusers draws with it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from ipadapter_trainer.config import BaseModelConfig
from ipadapter_trainer.files.adapter_file import open_adapter
from ipadapter_trainer.models.loading import load_base
from ipadapter_trainer.watch.sampling import (
    SampleGrid,
    Sampler,
    SampleSettings,
    encode_prompt,
    encode_reference,
    sample_grid,
)
from support.trained import KINDS, Trained, diffusers_pipeline, reference_picture, train_adapter

CPU = torch.device("cpu")
STEP = 1 / 255
PROMPT, NEGATIVE = "a red cat", "ugly"
SETTINGS = SampleSettings(strengths=(0.0, 0.6, 1.0), steps=3, guidance=3.0, size=(64, 48), seed=7)


SHORT = {("sd15", "base"), ("sdxl", "plus")}  # each layout and each kind once
CASES = [
    pytest.param((layout, kind), marks=[] if (layout, kind) in SHORT else pytest.mark.long, id=f"{layout}-{kind}")
    for layout in ("sd15", "sdxl")
    for kind in KINDS
]


@pytest.fixture(scope="module", params=CASES)
def trained(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, encoder_folder: Callable[[str], Path]
) -> Trained:
    return train_adapter(tmp_path_factory.mktemp("trained"), *request.param, encoder_folder("clip"))


def by_trainer(trained: Trained) -> tuple[SampleGrid, torch.Tensor]:
    """Pictures at every strength, and the noise they come from; everything is read from files."""
    base = load_base(BaseModelConfig(model=str(trained.base), precision="fp32"), CPU)
    opened = open_adapter(trained.file, base, str(trained.encoder), "fp32")
    sampler = Sampler(base, SETTINGS, encode_prompt(base, NEGATIVE))
    reference = encode_reference(reference_picture(), "it", base=base, reader=opened.reader, prompt=PROMPT)
    return sample_grid(sampler, opened.network, opened.no_image, [reference]), sampler.noise(0, 0)


def test_pictures_are_those_of_diffusers(trained: Trained) -> None:
    grid, noise = by_trainer(trained)
    pipeline = diffusers_pipeline(trained)
    pictures = [np.asarray(picture, dtype=np.float64) / 255 for picture in grid.rows[0]]
    for strength, picture in zip(SETTINGS.strengths, pictures, strict=True):
        pipeline.set_ip_adapter_scale(strength)
        drawn = pipeline(
            PROMPT,
            negative_prompt=NEGATIVE,
            ip_adapter_image=reference_picture(),
            latents=noise,
            width=SETTINGS.size[0],
            height=SETTINGS.size[1],
            num_inference_steps=SETTINGS.steps,
            guidance_scale=SETTINGS.guidance,
            output_type="np",
        ).images[0]
        assert np.abs(picture - drawn).max() < STEP / 2 + 1e-4
    assert np.abs(pictures[0] - pictures[2]).max() > 4 * STEP, "the adapter shows"
    assert np.abs(pictures[1] - pictures[2]).max() > STEP, "and so does its strength"
