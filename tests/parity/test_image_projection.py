"""Image tokens equal those of diffusers' projections for the same published tensors, in float64 and in float32."""

from typing import Any

import pytest
import torch
from torch import Tensor

from ipadapter_core.network.adapter import build_adapter
from support.published import Shapes, nested, random_tensors, tiny_adapter
from support.tiny_unet import diffusers_unet

IMAGE_DIM = 24
# What diffusers takes for granted: 4 tokens of a base adapter, 4 layers and heads of size 64 of a plus adapter.
KINDS: dict[str, tuple[Shapes, tuple[int, ...]]] = {
    "base": (tiny_adapter("base", site_dims=(32,), image_dim=IMAGE_DIM), (IMAGE_DIM,)),
    "plus 4": (tiny_adapter("plus", site_dims=(32,), depth=4, head_dim=64), (9, IMAGE_DIM)),
    "plus 16": (tiny_adapter("plus", site_dims=(32,), depth=4, head_dim=64, num_tokens=16), (257, IMAGE_DIM)),
    "full": (tiny_adapter("full", site_dims=(32,), image_dim=IMAGE_DIM), (257, IMAGE_DIM)),
}


@pytest.fixture(scope="module")
def unet() -> Any:
    return diffusers_unet("sd15")


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_tokens_equal_diffusers(unet: Any, kind: str, dtype: torch.dtype, tolerance: float) -> None:
    shapes, feature_shape = KINDS[kind]
    tensors = random_tensors(shapes)  # diffusers loads float32
    theirs = unet._convert_ip_adapter_image_proj_to_diffusers(nested(tensors)["image_proj"], low_cpu_mem_usage=False)
    ours = build_adapter(tensors, {}).image_proj
    features = torch.randn(2, *feature_shape, dtype=dtype, generator=torch.Generator().manual_seed(1))
    expected: Tensor = theirs.eval().to(dtype)(features)
    assert expected.abs().mean() > 0.1
    torch.testing.assert_close(ours.to(dtype)(features), expected, rtol=tolerance, atol=tolerance)
