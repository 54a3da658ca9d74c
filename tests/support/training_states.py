"""What trainers leave behind: our own checkpoints, and the states of other programs, saved as those programs save them."""

import contextlib
import json
import sys
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from accelerate import Accelerator
from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0
from torch import Tensor, nn

from ipadapter_core.network.adapter import IPAdapter, build_adapter, save_adapter
from ipadapter_trainer.config import Config
from ipadapter_trainer.config_file import write_config
from support.published import random_tensors, tiny_adapter
from support.tiny_unet import CONTEXT_DIM, diffusers_unet, site_dims

IMAGE_DIM = 24


def tiny_ipadapter(kind: Any = "base", site_widths: tuple[int, ...] = (32, 64, 64), **sizes: Any) -> IPAdapter:
    """An adapter that diffusers loads, unless `sizes` say otherwise: 4 tokens, 4 layers, heads of size 64."""
    sizes = {"depth": 4, "head_dim": 64, **sizes}
    shapes = tiny_adapter(kind, site_dims=site_widths, image_dim=IMAGE_DIM, **sizes)
    return build_adapter(random_tensors(shapes), {})


def run_config(run: Path, encoder_model: Path, base: str = "tiny-base", **sections: Mapping[str, object]) -> Config:
    data: dict[str, Any] = {
        "base": {"model": base},
        "encoder": {"model": str(encoder_model)},
        "data": {"path": "pictures", "resolution": 64},
        "train": {"output": str(run), "steps": 30, "seed": 7},
    }
    for name, values in sections.items():
        data[name] = {**data.get(name, {}), **values}
    return Config.model_validate(data)


def write_checkpoint(config: Config, adapter: IPAdapter, *, step: int = 20, ema: IPAdapter | None = None) -> Path:
    """The files of a checkpoint that an export reads, under the names `ipadapter_trainer.state` gives them."""
    folder = config.run / "checkpoints" / f"step-{step:08d}"
    folder.mkdir(parents=True)
    save_adapter(adapter, folder / "adapter.safetensors")
    if ema is not None:
        save_adapter(ema, folder / "ema.safetensors")
    write_config(config, folder / "config.toml")
    (folder / "state.json").write_text(json.dumps({"step": step, "samples": 8 * step, "ema_step": step, "best": {}}))
    return folder


class OfficialAdapter(nn.Module):
    """The module that tencent-ailab/IP-Adapter's tutorial_train.py hands to accelerate: UNet and adapter share tensors."""

    def __init__(self, unet: nn.Module, image_proj_model: nn.Module, adapter_modules: nn.Module) -> None:
        super().__init__()
        self.unet = unet
        self.image_proj_model = image_proj_model
        self.adapter_modules = adapter_modules


class OfficialProcessor(nn.Module):
    """`IPAttnProcessor2_0` of the official code, as far as it has weights."""

    def __init__(self, cross_attention_dim: int, hidden_size: int) -> None:
        super().__init__()
        self.to_k_ip = nn.Linear(cross_attention_dim, hidden_size, bias=False)
        self.to_v_ip = nn.Linear(cross_attention_dim, hidden_size, bias=False)


@dataclass(frozen=True, eq=False)
class Official:
    """A state of the official trainer, and the tensors a right conversion of it has."""

    folder: Path
    expected: dict[str, Tensor]


def write_accelerate_state(folder: Path, layout: str = "sd15", *, safe: bool = True, kind: Any = "base") -> Official:
    """Really run the official trainer's save: `accelerator.save_state` of its module around a tiny UNet."""
    unet = diffusers_unet(layout)
    adapter = tiny_ipadapter(kind, site_dims(unet))
    numbers = iter(range(adapter.spec.num_sites))
    processors: dict[str, Any] = {}
    for name in unet.attn_processors:
        if not name.endswith("attn2.processor"):
            processors[name] = nn.Identity()  # a module without weights, as in the official code
            continue
        site = next(numbers)
        processors[name] = OfficialProcessor(CONTEXT_DIM, adapter.spec.site_dims[site])
        processors[name].load_state_dict(adapter.site(site).state_dict())
    unet.set_attn_processor(processors)
    module = OfficialAdapter(unet, adapter.image_proj, nn.ModuleList(unet.attn_processors.values()))
    accelerator = Accelerator(cpu=True)
    accelerator.prepare(module)
    accelerator.save_state(str(folder), safe_serialization=safe)
    return Official(folder, dict(adapter.state_dict()))


def diffusers_projection(adapter: IPAdapter) -> nn.Module:
    """An adapter's projection as the module diffusers (and diffengine with it) makes of it."""
    tensors = {name: tensor.clone() for name, tensor in adapter.image_proj.state_dict().items()}
    module: nn.Module = diffusers_unet("sd15")._convert_ip_adapter_image_proj_to_diffusers(
        tensors, low_cpu_mem_usage=False
    )
    return module


def diffusers_processors(adapter: IPAdapter, unet: Any) -> dict[str, Any]:
    """Processors as diffusers 0.26 and later have them: `to_k_ip.0.weight`."""
    sites = iter(range(adapter.spec.num_sites))
    processors: dict[str, Any] = {}
    for name, processor in unet.attn_processors.items():
        if not name.endswith("attn2.processor"):
            processors[name] = processor
            continue
        site = adapter.site(next(sites))
        processors[name] = IPAdapterAttnProcessor2_0(site.to_k_ip.out_features, CONTEXT_DIM)
        processors[name].to_k_ip[0].load_state_dict(site.to_k_ip.state_dict())
        processors[name].to_v_ip[0].load_state_dict(site.to_v_ip.state_dict())
    return processors


def write_mmengine(path: Path, adapter: IPAdapter, unet: Any) -> Path:
    """A diffengine `.pth`: mmengine's dictionary, whose message hub holds objects beside the tensors."""
    unet.set_attn_processor(diffusers_processors(adapter, unet))
    weights = {f"unet.{name}": tensor for name, tensor in unet.state_dict().items() if ".processor." in name}
    projection = diffusers_projection(adapter).state_dict()
    weights |= {f"image_projection.{name}": tensor for name, tensor in projection.items()}
    shuffled = dict(sorted(weights.items()))  # sorted: the middle block comes before the up blocks
    with _history_class() as history_class:
        history = history_class()
        torch.save(
            {
                "meta": {"epoch": 3, "iter": 30, "experiment_name": "pokemon", "seed": 7},
                "state_dict": shuffled,
                "message_hub": {"log_scalars": {"train/loss": history}, "runtime_info": {"loss": numpy.float64(0.5)}},
                "optimizer": {"state": {0: {"step": 30, "exp_avg": torch.zeros(4)}}, "param_groups": [{"lr": 1e-5}]},
            },
            path,
        )
    return path


class HistoryBuffer:
    """Pickled as mmengine's is: arrays, and the methods that read them."""

    def __getstate__(self) -> dict[str, object]:
        counts = numpy.array([1, 1])
        return {"_log_history": numpy.array([0.5, 0.25]), "_count_history": counts, "methods": {"min": self.min}}

    @staticmethod
    def min() -> None:
        pass


@contextlib.contextmanager
def _history_class() -> Iterator[Any]:
    """A class named as mmengine's, importable while it is pickled and not afterwards."""
    names = ("mmengine", "mmengine.logging", "mmengine.logging.history_buffer")
    for name in names:
        sys.modules[name] = types.ModuleType(name)
    HistoryBuffer.__module__ = names[-1]
    sys.modules[names[-1]].__dict__["HistoryBuffer"] = HistoryBuffer
    yield HistoryBuffer
    for name in names:
        del sys.modules[name]
