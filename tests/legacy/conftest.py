"""ComfyUI in this process, once per session."""

from support.comfy_fixtures import *  # noqa: F403 - fixtures
