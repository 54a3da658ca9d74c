"""Attention sites of the known models, and Hypothesis settings for slow machines."""

import pytest
from hypothesis import settings

from ipadapter_core.backbone.sites import Sites

from .hand_made_sites import SD15, SDXL, make_sites

settings.register_profile("unit", deadline=None, max_examples=40)
settings.load_profile("unit")


@pytest.fixture
def sd15() -> Sites:
    return make_sites(SD15, context_dim=768, head_dim=40)


@pytest.fixture
def sdxl() -> Sites:
    return make_sites(SDXL, context_dim=2048, head_dim=64)


@pytest.fixture
def tiny() -> Sites:
    """Three sites of different width and head count, as `support.bad_files.SITE_DIMS` adapters need them."""
    return make_sites((("input", 1, 1, 32), ("middle", 0, 1, 64), ("output", 0, 1, 64)))
