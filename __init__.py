"""IP-Adapter Studio: image prompts for diffusion models as ComfyUI nodes."""

from .nodes import comfy_entrypoint

WEB_DIRECTORY = "./nodes/web"

__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
