"""Graphs in the form the server takes, and changes to them."""

import copy
from typing import Any

from demo.client import Prompt

REFERENCE = "example.png"
TINY = "tiny-"  # before the published name of an adapter for the tiny base
ADAPTERS = (f"{TINY}ip-adapter-plus_sd15.safetensors", f"{TINY}ip-adapter_sd15.safetensors")
# What the widgets of IPAApply and IPAApplyImage say when nobody touched them.
PLAIN: dict[str, Any] = {"strength": 1.0, "start_percent": 0.0, "end_percent": 1.0, "layer_preset": "all"}
SDXL_ADAPTER = f"{TINY}ip-adapter_sdxl.safetensors"
FACE_ADAPTER = f"{TINY}ip-adapter-faceid_sd15.bin"

# Node ids of `simple`, so that tests need not count.
CHECKPOINT, POSITIVE, NEGATIVE, LATENT, ADAPTER, IMAGE, TOKENS, APPLY, SAMPLER, SAVE_LATENT, DECODE, SAVE = (
    str(number) for number in range(1, 13)
)


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def simple(*, seed: int, steps: int = 2, **apply: Any) -> Prompt:
    """Checkpoint, text, adapter, one reference, sampler, a latent and a picture saved; `apply` are IPAApply's widgets.

    Tests take different seeds, so that ComfyUI's cache of one test does not serve another.
    """
    widgets = PLAIN | apply
    return {
        CHECKPOINT: node("CheckpointLoaderSimple", ckpt_name="v1-5-pruned-emaonly-fp16.safetensors"),
        POSITIVE: node("CLIPTextEncode", clip=[CHECKPOINT, 1], text="a portrait"),
        NEGATIVE: node("CLIPTextEncode", clip=[CHECKPOINT, 1], text="blurry"),
        LATENT: node("EmptyLatentImage", width=64, height=64, batch_size=1),
        ADAPTER: node("IPALoadAdapter", adapter_file=ADAPTERS[0], image_encoder="auto"),
        IMAGE: node("LoadImage", image=REFERENCE),
        TOKENS: node("IPAEncodeImage", adapter=[ADAPTER, 0], image=[IMAGE, 0], crop="center"),
        APPLY: node("IPAApply", model=[CHECKPOINT, 0], adapter=[ADAPTER, 0], tokens=[TOKENS, 0], **widgets),
        SAMPLER: node(
            "KSampler",
            model=[APPLY, 0],
            positive=[POSITIVE, 0],
            negative=[NEGATIVE, 0],
            latent_image=[LATENT, 0],
            seed=seed,
            steps=steps,
            cfg=7.0,
            sampler_name="euler",
            scheduler="normal",
            denoise=1.0,
        ),
        SAVE_LATENT: node("SaveLatent", samples=[SAMPLER, 0], filename_prefix=f"latents/{seed}"),
        DECODE: node("VAEDecode", samples=[SAMPLER, 0], vae=[CHECKPOINT, 2]),
        SAVE: node("SaveImage", images=[DECODE, 0], filename_prefix=f"images/{seed}"),
    }


def with_inputs(prompt: Prompt, node_id: str, **inputs: Any) -> Prompt:
    """A copy of a prompt in which a node has other inputs."""
    changed = copy.deepcopy(prompt)
    changed[node_id]["inputs"].update(inputs)
    return changed


def without(prompt: Prompt, node_id: str, replacement: list[Any]) -> Prompt:
    """A copy of a prompt without a node, whose readers read `replacement`: what the page queues for a bypassed node."""
    changed = copy.deepcopy(prompt)
    del changed[node_id]
    for other in changed.values():
        for name, value in other["inputs"].items():
            if value == [node_id, 0]:
                other["inputs"][name] = replacement
    return changed
