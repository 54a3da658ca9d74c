"""SD3.5 on a GPU that is not there: model and latents lie on it, the adapter and what a node made lie on the host.

A fake device has no values, so whatever would copy one to the host fails here as well.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from support import comfy_host, families, tiny_sd3

NAME, CUDA, LATENTS = "instantx_sd35", torch.device("cuda:0"), 3


class Copies(TorchDispatchMode):
    """Counts what is copied from the device to the host."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {arg.device.type for arg in args if isinstance(arg, Tensor)}
        self.count += "cuda" in given and isinstance(out, Tensor) and out.device.type == "cpu"
        return out


@pytest.fixture
def adapter(base_directory: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    from comfy.ldm.modules import attention
    from comfy.ldm.modules.diffusionmodules import mmdit

    for module in (attention, mmdit):  # ComfyUI's choice on a GPU
        monkeypatch.setattr(module, "optimized_attention", attention.attention_pytorch)
    families.adapter_of(NAME, base_directory)  # writes the file
    # not by the node: torch decomposes no operation on what was made in inference mode, and asks the driver
    return comfy_host.pack("nodes.loading").open_adapter(f"{NAME}-0.safetensors", "none")


def network(base: dict[str, Any], dtype: torch.dtype) -> Any:
    """ComfyUI's own model, as it lies on the device; made inside of the fake mode."""
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.mmdit import MMDiT

    return MMDiT(
        input_size=None,
        in_channels=16,
        depth=tiny_sd3.BLOCKS,
        adm_in_channels=tiny_sd3.POOLED_DIM,
        context_embedder_config={
            "target": "torch.nn.Linear",
            "params": {"in_features": tiny_sd3.TEXT_DIM, "out_features": tiny_sd3.WIDTH},
        },
        num_patches=tiny_sd3.POSITIONS**2,
        pos_embed_max_size=tiny_sd3.POSITIONS,
        qk_norm="rms" if base.get("qk_norm", "rms") else None,
        x_block_self_attn_layers=list(base.get("dual", ())),
        device=CUDA,
        dtype=dtype,
        operations=comfy.ops.disable_weight_init,
    )


@pytest.mark.parametrize(
    ("base", "dtype", "use"),
    [
        ({}, torch.float16, "plain"),
        ({}, torch.bfloat16, "mask and range"),
        ({}, torch.float32, "masks, per frame"),
        ({"dual": (0, 1)}, torch.bfloat16, "plain"),
        ({"qk_norm": None}, torch.float16, "masks, per frame"),
    ],
    ids=str,
)
def test_all_lies_where_it_must(adapter: Any, base: dict[str, Any], dtype: torch.dtype, use: str) -> None:
    application, site = (
        comfy_host.pack("nodes.patching.application"),
        comfy_host.pack("ipadapter_core.strength.site"),
    )
    model, features = families.sd3_model(**base), families.features_of(NAME, references=2)
    tokens = adapter.project(features, torch.zeros_like(features[:1]))
    settings: dict[str, Any] = {
        "plain": {},
        "mask and range": {"mask": torch.rand(1, 16, 16), "end_percent": 0.6},
        "masks, per frame": {"mask": torch.rand(2, 16, 16), "start_percent": 0.1},
    }[use]
    if "frame" in use:
        numbers = range(tiny_sd3.BLOCKS)
        patched = application.patch_sites(
            model,
            application.fitting_sites(model, adapter),
            adapter,
            dict.fromkeys(numbers, tokens),
            dict.fromkeys(numbers, site.FrameStrength((0.5, 1.0))),
            application.Limits(mask=settings["mask"]),
            per_frame=True,
        )
    else:
        patched = application.apply_adapter(model, adapter, tokens, application.ApplySettings(**settings))
    run, applied = comfy_host.pack("nodes.patching.run"), comfy_host.pack("nodes.patching.applied").applied_to
    options = patched.model_options["transformer_options"] | {"cond_or_uncond": [0, 1]}
    started = run.Run(applied(options), model.get_model_object("model_sampling"))
    copies = Copies()
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
        on_device, rows = network(base, dtype), 2 * LATENTS
        x, text, pooled = (
            torch.zeros(rows, *shape, device=CUDA, dtype=dtype)
            for shape in ((16, 8, 8), (5, tiny_sd3.TEXT_DIM), (tiny_sd3.POOLED_DIM,))
        )
        for sigma in (1.0, 0.5):
            options |= {"sigmas": torch.full((LATENTS,), sigma, device=CUDA)}
            step = run.Step(started, options, size=(8, 8))
            with copies:
                out = on_device(
                    x,
                    torch.full((rows,), 1000 * sigma, device=CUDA),
                    context=text,
                    y=pooled,
                    transformer_options=options | {run.STEP: step},
                )
            assert (out.device, out.dtype) == (CUDA, dtype)
    assert copies.count == 0


def test_a_copy_to_the_host_would_be_noticed() -> None:
    copies = Copies()
    with FakeTensorMode(), copies:
        torch.zeros(3, device=CUDA).cpu()
    assert copies.count == 1
