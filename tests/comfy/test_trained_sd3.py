"""An SD3.5 adapter that the trainer trained and exported does the same in ComfyUI, in diffusers and in the trainer."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from torch import Tensor
from transformers import SiglipImageProcessor, SiglipVisionModel

from ipadapter_core.strength.site import SiteStrength
from ipadapter_trainer.config import BaseModelConfig
from ipadapter_trainer.files.adapter_file import open_adapter
from ipadapter_trainer.files.checkpoint_export import export_checkpoint
from ipadapter_trainer.loop import train
from ipadapter_trainer.models.loading import load_base
from ipadapter_trainer.watch.sampling import encode_reference, guided
from support import comfy_host, encoders, families, tiny_sd3
from support.encoders import IMAGE_SIZE
from support.graphs import PLAIN
from support.tiny_sd3_base import write_sd3_base
from support.trained import Trained, reference_picture
from support.training import make_config, write_pictures

CPU = torch.device("cpu")
TIMES, SIZE = 0.62, 12
STRENGTH = 0.7
RELATIVE = 1e-4  # as tests/comfy/test_sd3_parity.py: the nodes take the model's own norms back
EFFECT = 0.01
NAME = "trained-sd3.safetensors"
ENCODER = "trained sd3 with"


@pytest.fixture(scope="module")
def encoder_folder(base_directory: Path) -> Iterator[Path]:
    folder = base_directory / "models" / "clip_vision" / ENCODER
    encoders.write_folder("siglip", folder)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module", params=[(), (0, 1)], ids=["large", "medium"])
def dual(request: pytest.FixtureRequest) -> tuple[int, ...]:
    """Blocks with a second attention."""
    return request.param


@pytest.fixture(scope="module")
def trained(
    base_directory: Path, encoder_folder: Path, tmp_path_factory: pytest.TempPathFactory, dual: tuple[int, ...]
) -> Trained:
    """Two long steps, so that the adapter shows; the file also lies in models/ipadapter."""
    folder = tmp_path_factory.mktemp("trained")
    base = write_sd3_base(folder / "base", transformer=tiny_sd3.diffusers_sd3(dual=dual))
    config = make_config(
        base,
        encoder_folder,
        write_pictures(folder / "pictures", 4),
        folder / "run",
        encoder={"crop": "stretch"},
        adapter={"kind": "plus", "tokens": 4, "resampler_dim": 64},
        train={"steps": 2},
        optimizer={"learning_rate": 0.05},
    )
    train(config)
    file = export_checkpoint(config.run, None).path
    (base_directory / "models" / "ipadapter").mkdir(exist_ok=True)
    shutil.copy(file, base_directory / "models" / "ipadapter" / NAME)
    return Trained(config, base, encoder_folder, file)


def inputs() -> dict[str, Tensor]:
    """Of an uncond and a cond row."""
    generator = torch.Generator().manual_seed(11)
    return {
        "latents": torch.randn(2, tiny_sd3.LATENT_CHANNELS, SIZE, SIZE, generator=generator),
        "text": torch.randn(2, 7, tiny_sd3.TEXT_DIM, generator=generator),
        "pooled": torch.randn(2, tiny_sd3.POOLED_DIM, generator=generator),
    }


def in_comfyui(model: Any) -> Tensor:
    given = inputs()
    options = model.model_options["transformer_options"]
    options = options | {"cond_or_uncond": [1, 0], "sigmas": torch.full((1,), TIMES)}
    times = torch.full((2,), 1000 * TIMES)
    with torch.inference_mode():
        return model.model.diffusion_model(
            given["latents"], times, context=given["text"], y=given["pooled"], transformer_options=options
        )


@pytest.fixture(scope="module")
def nodes_output(trained: Trained, dual: tuple[int, ...]) -> Tensor:
    adapter = comfy_host.run("IPALoadAdapter", adapter_file=NAME, image_encoder="auto")
    picture = torch.from_numpy(np.asarray(reference_picture(), dtype=np.float32) / 255)[None]
    tokens = comfy_host.run("IPAEncodeImage", adapter=adapter, image=picture, crop="stretch")
    model = families.sd3_model(dual=dual)
    settings = PLAIN | {"strength": STRENGTH}
    patched = comfy_host.run("IPAApply", model=model, adapter=adapter, tokens=tokens, **settings)
    output = in_comfyui(patched)
    assert adapter.encoder.name == f"{ENCODER}/"
    assert difference(in_comfyui(model), output) > EFFECT, "it does nothing"
    return output


@torch.no_grad()
def test_nodes_equal_the_trainer(trained: Trained, nodes_output: Tensor) -> None:
    base = load_base(BaseModelConfig(model=str(trained.base), precision="fp32"), CPU)
    opened = open_adapter(trained.file, base, str(trained.encoder), "fp32")
    reference = encode_reference(reference_picture(), "it", base=base, reader=opened.reader)
    times, given = torch.full((2,), TIMES), inputs()
    uncond, cond = (opened.network(features, times[:1]) for features in (opened.no_image, reference.features))
    strengths = dict.fromkeys(range(tiny_sd3.BLOCKS), SiteStrength(STRENGTH))
    output = base.predict(given["latents"], times, given, torch.zeros(2, 6), guided(uncond, cond, strengths))
    assert difference(nodes_output, output) < RELATIVE


@torch.no_grad()
@pytest.mark.parametrize("dual", [()], indirect=True, ids=["large"])  # the other: tests/trainer/test_sd35_medium.py
def test_nodes_equal_diffusers(trained: Trained, nodes_output: Tensor) -> None:
    """diffusers has its own reading of the file, its own preprocessing, and its own idea of no image."""
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    pipeline = StableDiffusion3Pipeline.from_pretrained(
        trained.base,
        image_encoder=SiglipVisionModel.from_pretrained(trained.encoder),
        feature_extractor=SiglipImageProcessor(size=size),
    )
    pipeline.load_ip_adapter(
        str(trained.file.parent), subfolder="", weight_name=trained.file.name, image_encoder_folder=None
    )
    pipeline.set_ip_adapter_scale(STRENGTH)
    embeds = pipeline.prepare_ip_adapter_image_embeds(reference_picture(), None, CPU, 1, True)
    given = inputs()
    output = pipeline.transformer(
        given["latents"],
        encoder_hidden_states=given["text"],
        pooled_projections=given["pooled"],
        timestep=torch.full((2,), 1000 * TIMES),
        joint_attention_kwargs={"ip_adapter_image_embeds": embeds},
    ).sample
    assert difference(nodes_output, output) < RELATIVE


def difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())
