"""A pack of the test's server that calls IPAdapter_plus' classes from Python, as ComfyUI-Easy-Use does.

It reads the adapter's file itself: the IPADAPTER it hands over is made of plain dictionaries.
"""

from typing import Any

import comfy.utils
import folder_paths

import nodes


def call(node_id: str, method: str, *args: Any, **kwargs: Any) -> Any:
    return getattr(nodes.NODE_CLASS_MAPPINGS[node_id](), method)(*args, **kwargs)


class HostApply:
    """MODEL with a reference, through `IPAdapterAdvanced`."""

    CATEGORY, FUNCTION, RETURN_TYPES = "test", "apply", ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802  the name is ComfyUI's
        return {
            "required": {
                "model": ("MODEL",),
                "file": ("STRING", {"default": ""}),
                "clip_vision": ("CLIP_VISION",),
                "image": ("IMAGE",),
                "weight": ("FLOAT", {"default": 1.0}),
            }
        }

    def apply(self, model: Any, file: str, clip_vision: Any, image: Any, weight: float) -> tuple[Any]:
        parts: dict[str, dict[str, Any]] = {"image_proj": {}, "ip_adapter": {}}
        for name, tensor in comfy.utils.load_torch_file(folder_paths.get_full_path("ipadapter", file)).items():
            part, _, rest = name.partition(".")
            parts[part][rest] = tensor
        pipeline = {
            "clipvision": {"file": None, "model": None},
            "ipadapter": {"file": file, "model": parts},
            "insightface": {"provider": None, "model": None},
        }
        patched, _ = call(
            "IPAdapterAdvanced",
            "apply_ipadapter",
            model,
            pipeline,
            start_at=0.0,
            end_at=1.0,
            weight=weight,
            weight_type="linear",
            combine_embeds="concat",
            weight_faceidv2=None,
            image=image,
            image_negative=None,
            weight_style=1.0,
            weight_composition=1.0,
            image_style=None,
            image_composition=None,
            expand_style=False,
            clip_vision=clip_vision,
            attn_mask=None,
            insightface=None,
            embeds_scaling="V only",
            layer_weights=None,
            weight_kolors=1.0,
        )
        return (patched,)


NODE_CLASS_MAPPINGS = {"HostApply": HostApply}
