"""The nodes of IPAdapter_plus under their own ids, so that workflows saved with it run: each a thin call of our core."""

from comfy_api.latest import io

from .load import NODES as LOAD_NODES

NODES: tuple[type[io.ComfyNode], ...] = (*LOAD_NODES,)
