"""The sampling path on a GPU that is not there: a fake CUDA device refuses what a real one would.

What is wrong on a GPU and right on a CPU is where a tensor lies: everything a sampler hands over is on the device here,
everything a node made is on the host.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from support import comfy_host, tiny_unet

pytestmark = pytest.mark.parametrize("layout", tiny_unet.EITHER_LAYOUT)
CUDA, LATENTS = "cuda:0", 3


@pytest.fixture
def add(monkeypatch: pytest.MonkeyPatch, base_directory: object) -> Callable[..., list[Tensor]]:
    """Call every patched site with queries on the device, as a sampler does; a cond and an uncond side."""
    from comfy.ldm.modules import attention

    run, applied = comfy_host.pack("nodes.patching.run"), comfy_host.pack("nodes.patching.applied").applied_to
    monkeypatch.setattr(attention, "optimized_attention", attention.attention_pytorch)  # ComfyUI's choice on a GPU

    def call(model: Any, dtype: torch.dtype, **more: Any) -> list[Tensor]:
        options = model.model_options["transformer_options"] | {"cond_or_uncond": [0, 1]} | more
        started = run.Run(applied(options), model.get_model_object("model_sampling"))
        outputs = []
        with FakeTensorMode(allow_non_fake_inputs=True):
            step = run.Step(started, options | {"sigmas": torch.full((2,), 3.0, device=CUDA)})
            for site in applied(options).running_order:
                q = torch.zeros(2 * LATENTS, 64, site.dim, device=CUDA, dtype=dtype)
                outputs += [step.add_images(q, q, site.address, (8, 8)) for _ in range(2)]
        return outputs

    return call


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("use", ["plain", "mask and range", "masks"])
def test_static_keys(
    layout: str,
    use: str,
    dtype: torch.dtype,
    model: Callable,
    make_adapter: Callable,
    make_tokens: Callable,
    apply: Callable,
    add: Callable,
) -> None:
    settings = {
        "plain": {},
        "mask and range": {"mask": torch.rand(1, 16, 16), "end_percent": 0.6},
        "masks": {"mask": torch.rand(2, 16, 16), "start_percent": 0.1},
    }[use]
    adapter = make_adapter("base", layout)
    patched = apply(model(layout), adapter, make_tokens(adapter, references=2), **settings)
    for output in add(patched, dtype):
        assert (str(output.device), output.dtype) == (CUDA, dtype)


@pytest.mark.parametrize(
    ("weights", "dtype"),
    [
        ("one", torch.float32),
        ("per frame", torch.float16),
        pytest.param("one", torch.float16, marks=pytest.mark.long),
        pytest.param("per frame", torch.float32, marks=pytest.mark.long),
    ],
)
def test_keys_of_frames(
    layout: str,
    weights: str,
    dtype: torch.dtype,
    model: Callable,
    make_adapter: Callable,
    make_tokens: Callable,
    add: Callable,
) -> None:
    """Their network may lie on either side: ComfyUI casts what it did not move."""
    application, strength = (
        comfy_host.pack("nodes.patching.application"),
        comfy_host.pack("ipadapter_core.strength.site"),
    )
    adapter = make_adapter("base", layout)
    loaded, tokens = adapter.loaded, make_tokens(adapter, references=4)
    sites = application.fitting_sites(model(layout), loaded)
    each = strength.SiteStrength(1.0) if weights == "one" else strength.FrameStrength((0.5, 1.0))
    numbers = range(len(sites.sites))
    for per_frame in (True, False):
        patched = application.patch_sites(
            model(layout),
            sites,
            loaded,
            dict.fromkeys(numbers, tokens),
            dict.fromkeys(numbers, each),
            application.Limits(mask=torch.rand(5, 8, 8)),
            per_frame=per_frame,
        )
        for output in add(patched, dtype, ad_params={"sub_idxs": [4, 0, 2]}):
            assert (str(output.device), output.dtype) == (CUDA, dtype)
