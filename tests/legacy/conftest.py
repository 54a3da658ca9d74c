"""ComfyUI in this process, once per session: tests/comfy and tests/legacy share it when they run together."""

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """A module's own star import would make fixtures, and with them a ComfyUI, for each of the two folders."""
    config.pluginmanager.import_plugin("support.comfy_fixtures")
