"""Tokens of faces equal those of diffusers' FaceID projections for the same published tensors."""

from typing import Any

import pytest
import torch
from torch import Tensor

from ipadapter_core.network.adapter import build_adapter
from support.published import nested, random_tensors, tiny_face_adapter
from support.tiny_unet import diffusers_unet

FACE, WIDTH = 24, 64  # diffusers takes heads of size 64 and four layers for granted


@pytest.fixture(scope="module")
def unet() -> Any:
    return diffusers_unet("sd15")


def both(unet: Any, kind: str, dtype: torch.dtype) -> tuple[Any, Any]:
    shapes = tiny_face_adapter(kind, site_dims=(32,), cross_attention_dim=WIDTH, face=FACE)
    tensors = random_tensors(shapes)  # diffusers loads float32
    theirs = unet._convert_ip_adapter_image_proj_to_diffusers(nested(tensors)["image_proj"], low_cpu_mem_usage=False)
    return build_adapter(tensors, {}).to(dtype), theirs.eval().to(dtype)


def random(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
@torch.no_grad()
def test_faceid_tokens(unet: Any, dtype: torch.dtype, tolerance: float) -> None:
    ours, theirs = both(unet, "faceid", dtype)
    identities = random(3, 10, dtype=dtype)
    expected = theirs(identities)
    assert expected.abs().mean() > 0.1
    torch.testing.assert_close(ours.project_faces(identities), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
@pytest.mark.parametrize("structure", [None, 1.0, 0.3, -0.5])
@torch.no_grad()
def test_faceid_plus_tokens(unet: Any, structure: float | None, dtype: torch.dtype, tolerance: float) -> None:
    """None is v1; a number is v2 with that factor."""
    ours, theirs = both(unet, "faceid plus", dtype)
    identities, features = random(3, 10, dtype=dtype), random(3, 17, FACE, dtype=dtype)
    theirs.clip_embeds = features[:, None]
    theirs.shortcut = structure is not None
    theirs.shortcut_scale = structure
    expected = theirs(identities)
    assert expected.abs().mean() > 0.1
    torch.testing.assert_close(
        ours.project_faces(identities, features, structure), expected, rtol=tolerance, atol=tolerance
    )
