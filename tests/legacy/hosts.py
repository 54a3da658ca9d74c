"""The graphs that programs send, with the inputs they send and no other, from what `/object_info` tells them.

Sources: krita-ai-diffusion's `workflow.py` and `comfy_workflow.py` (2026-08), SwarmUI's `WorkflowGeneratorSteps.cs` and
`ComfyUIBackendExtension.cs` (2026-08), as observed, not copied.
"""

from typing import Any

from demo.client import Prompt
from legacy.running import SIDE, STEPS
from support.graphs import REFERENCE

SD15, SDXL = "v1-5-pruned-emaonly-fp16.safetensors", "sd_xl_base_1.0.safetensors"
VIT_H = "CLIP-ViT-H-14-laion2B-s32B-b79K.safetensors"
BIG_G = "CLIP-ViT-bigG-14-laion2B-39B-b160k.safetensors"
Info = dict[str, Any]
Link = list[Any]
# by which SwarmUI knows a preset, in lower case
SWARM_PRESETS = ("light", "standard", "vit-g", "plus (", "plus face", "full")
SWARM_FACE_PRESETS = (*("faceid", "faceid plus -", "faceid plus v2", "faceid portrait unnorm", "faceid portrait ("),)


class Graph:
    """A prompt in the making: checkpoint, reference and sampler are there."""

    def __init__(self, checkpoint: str) -> None:
        self.prompt: Prompt = {}
        self.checkpoint = self.add("TinyCheckpoint", ckpt_name=checkpoint)
        self.image = self.add("LoadImage", image=REFERENCE)

    def add(self, class_type: str, **inputs: Any) -> Link:
        key = str(len(self.prompt) + 1)
        self.prompt[key] = {"class_type": class_type, "inputs": inputs}
        return [key, 0]

    def encoder(self, name: str) -> Link:
        """CLIPVisionLoader's stand-in."""
        return self.add("TinyCLIPVision", clip_name=name)

    def draw(self, model: Link, name: str) -> Link:
        """Sample a model, save its latent and show its picture; which node shows it."""
        clip = [self.checkpoint[0], 1]
        texts = [self.add("CLIPTextEncode", text=text, clip=clip) for text in ("a fox", "blurry")]
        empty = self.add("EmptyLatentImage", width=SIDE, height=SIDE, batch_size=1)
        sampler = {
            "seed": 1,
            "steps": STEPS,
            "cfg": 7.0,
            "sampler_name": "euler",
            "scheduler": "normal",
            "denoise": 1.0,
        }
        conds = {"positive": texts[0], "negative": texts[1], "latent_image": empty}
        latent = self.add("KSampler", model=model, **sampler, **conds)
        self.add("SaveLatent", samples=latent, filename_prefix=f"latents/{name}")
        return self.add("PreviewImage", images=self.add("VAEDecode", samples=latent, vae=[self.checkpoint[0], 2]))


def krita_choices(info: Info, node: str, name: str) -> list[str]:
    """Values of a choice, in the form of either node interface."""
    entry = info[node]["input"]["required"][name]
    return list(entry[0]) if isinstance(entry[0], list) else list(entry[1]["options"])


def krita_connects(info: Info) -> bool:
    """It looks for two nodes."""
    return {"IPAdapterModelLoader", "IPAdapter"} <= set(info)


def krita_add(graph: Graph, info: Info, class_type: str, **inputs: Any) -> Link:
    """With the defaults of required inputs that it does not know."""
    for name, entry in info[class_type]["input"]["required"].items():
        if name not in inputs:
            details = entry[1] if len(entry) > 1 else {}
            inputs[name] = details["default"] if "default" in details else entry[0][0]
    return graph.add(class_type, **inputs)


def krita_reference(graph: Graph, info: Info, weights: tuple[float, ...], mask: Link | None, weight_type: str) -> Link:
    """Several references for one model: encoded, combined, applied."""
    files = krita_choices(info, "IPAdapterModelLoader", "ipadapter_file")
    file = next(name for name in files if name.lower().startswith("ip-adapter_sd15.safetensors"))
    adapter = krita_add(graph, info, "IPAdapterModelLoader", ipadapter_file=file)
    encoder = graph.encoder(VIT_H)
    inputs = {"ipadapter": adapter, "clip_vision": encoder}
    embeds = [krita_add(graph, info, "IPAdapterEncoder", image=graph.image, weight=w, **inputs) for w in weights]
    if len(embeds) > 1:
        numbered = {f"embed{number}": embed for number, embed in enumerate(embeds, start=1)}
        embeds = [krita_add(graph, info, "IPAdapterCombineEmbeds", method="concat", **numbered)]
    return krita_add(
        graph,
        info,
        "IPAdapterEmbeds",
        model=graph.checkpoint,
        pos_embed=embeds[0],
        weight=1.0,
        weight_type=weight_type,
        embeds_scaling="V only",
        start_at=0.0,
        end_at=0.8,
        attn_mask=mask,
        **inputs,
    )


def krita_face(graph: Graph, info: Info, mask: Link | None) -> Link:
    """A face."""
    files = krita_choices(info, "IPAdapterModelLoader", "ipadapter_file")
    file = next(name for name in files if name.lower().startswith("ip-adapter-faceid-plusv2_sd15"))
    return krita_add(
        graph,
        info,
        "IPAdapterFaceID",
        model=graph.checkpoint,
        ipadapter=krita_add(graph, info, "IPAdapterModelLoader", ipadapter_file=file),
        image=graph.image,
        clip_vision=graph.encoder(VIT_H),
        insightface=krita_add(graph, info, "IPAdapterInsightFaceLoader", provider="CPU", model_name="buffalo_l"),
        weight=0.7,
        weight_faceidv2=1.4,
        weight_type="linear",
        combine_embeds="concat",
        start_at=0.0,
        end_at=0.8,
        attn_mask=mask,
        embeds_scaling="V only",
    )


def swarm_choices(info: Info, node: str, name: str) -> list[str]:
    """Values of a choice in the form of the first node interface, the only one it reads everywhere."""
    values = info[node]["input"]["required"][name][0]
    assert isinstance(values, list), f"{node}.{name} offers nothing"
    return values


def swarm_preset(info: Info, prefix: str, *, is_face: bool) -> str:
    """The first preset with a prefix."""
    node = "IPAdapterUnifiedLoaderFaceID" if is_face else "IPAdapterUnifiedLoader"
    return next(preset for preset in swarm_choices(info, node, "preset") if preset.lower().startswith(prefix))


def swarm_by_preset(graph: Graph, preset: str, weight_type: str, *, is_face: bool) -> Link:
    """A reference by preset; the loader's model goes on."""
    if is_face:
        face = {"lora_strength": 0.6, "provider": "CPU"}
        loader = graph.add("IPAdapterUnifiedLoaderFaceID", model=graph.checkpoint, preset=preset, **face)
    else:
        loader = graph.add("IPAdapterUnifiedLoader", model=graph.checkpoint, preset=preset)
    return graph.add(
        "IPAdapter",
        model=loader,
        ipadapter=[loader[0], 1],
        image=graph.image,
        weight=1.0,
        start_at=0.0,
        end_at=1.0,
        weight_type=weight_type,
    )


def swarm_by_file(graph: Graph, file: str, encoder: str) -> Link:
    """A reference by file, with an image encoder of its own."""
    return graph.add(
        "IPAdapterAdvanced",
        model=graph.checkpoint,
        ipadapter=graph.add("IPAdapterModelLoader", ipadapter_file=file),
        image=graph.image,
        weight=1.0,
        start_at=0.0,
        end_at=1.0,
        weight_type="ease out",
        combine_embeds="concat",
        embeds_scaling="V only",
        clip_vision=graph.encoder(encoder),
    )
