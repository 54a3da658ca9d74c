"""What a base model's scheduler says of its training: read, or refused where noise is added otherwise."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from ipadapter_core.errors import MismatchError
from ipadapter_trainer.backbones.image_prompt import ImagePrompt
from ipadapter_trainer.backbones.unet import UNetBackbone
from ipadapter_trainer.config import BaseModelConfig, ObjectiveConfig
from ipadapter_trainer.models.loading import load_base
from ipadapter_trainer.objective import Condition, Objective

CPU = torch.device("cpu")
SDXL_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@pytest.fixture
def load(tmp_path: Path, small_base_folder: Callable[[str], Path]) -> Callable[..., UNetBackbone]:
    """The base with another scheduler, by class and settings."""

    def make(name: str, **settings: Any) -> UNetBackbone:
        folder = shutil.copytree(small_base_folder("sdxl"), tmp_path / "base")
        getattr(diffusers, name)(**settings).save_pretrained(folder / "scheduler")
        index = folder / "model_index.json"
        parts = json.loads(index.read_text()) | {"scheduler": ["diffusers", name]}
        index.write_text(json.dumps(parts))
        return load_base(BaseModelConfig(model=str(folder), precision="bf16"), CPU)

    return make


@pytest.mark.parametrize(
    ("name", "settings", "found"),
    [
        ("EDMEulerScheduler", {}, "EDMEulerScheduler"),
        ("EDMDPMSolverMultistepScheduler", {}, "EDMDPMSolverMultistepScheduler"),
        ("FlowMatchEulerDiscreteScheduler", {}, "FlowMatchEulerDiscreteScheduler"),
        ("EulerDiscreteScheduler", {**SDXL_BETAS, "timestep_type": "continuous"}, "timestep_type = 'continuous'"),
        ("DPMSolverMultistepScheduler", {**SDXL_BETAS, "use_flow_sigmas": True}, "use_flow_sigmas"),
        ("DDPMScheduler", {**SDXL_BETAS, "prediction_type": "sample"}, "prediction_type = 'sample'"),
    ],
)
def test_other_noise_is_refused(
    load: Callable[..., UNetBackbone], name: str, settings: dict[str, Any], found: str
) -> None:
    with pytest.raises(MismatchError, match=f"{found}.*epsilon or v_prediction.*scheduler_config.json"):
        load(name, **settings)


@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "DPMSolverMultistepScheduler", "LCMScheduler"])
def test_betas_are_the_base_models_whatever_samples_it(load: Callable[..., UNetBackbone], name: str) -> None:
    betas = load(name, **SDXL_BETAS).schedule.betas
    assert torch.equal(betas, diffusers.DDPMScheduler(**SDXL_BETAS).betas)
    assert not torch.equal(betas, diffusers.DDPMScheduler().betas)


def test_sizes_reach_the_unet_as_they_are(small_base_folder: Callable[[str], Path]) -> None:
    """In bfloat16 1333 would be 1336."""
    base = load_base(BaseModelConfig(model=str(small_base_folder("sdxl")), precision="bf16"), CPU)
    base.install()
    sizes = torch.tensor([[1333.0, 2001.0, 3.0, 259.0, 1024.0, 1024.0]])
    seen: list[Tensor] = []
    base.model.add_time_proj.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    text = base.encode_text(["a"])
    condition = Condition(latents=torch.zeros(1, 4, 8, 8), text=text, sizes=sizes, features={})
    image = ImagePrompt((None,) * 100)
    output = Objective(ObjectiveConfig(), base, {}).predict(image, condition, condition.latents, torch.tensor([0.5]))
    assert output.dtype is torch.bfloat16
    assert torch.equal(seen[0].double(), sizes.flatten().double())
