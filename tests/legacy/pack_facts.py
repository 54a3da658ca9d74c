"""What the nodes of packs for FLUX, SD3.5 and Anima that no longer run took and gave.

Sources: the example workflows of their repositories (order of sockets and widget values), and what they announced to
ComfyUI. ComfyUI-IPAdapter-Flux, x-flux-comfyui, ComfyUI-InstantX-IPAdapter-SD3 and ComfyUI-Anima_IP-Adapter, all under
the Apache licence.
"""

from legacy.fact_records import Facts, Input, combo, decimal, optional, socket
from legacy.facts import A_MODEL, IMAGE, MODEL

FILES = None  # options of a combo that lists files
SIGLIP = combo("clip_vision", "google/siglip-so400m-patch14-384")
PLACES = combo("provider", "cuda", "cpu", "mps")
WEIGHT = decimal("weight", 1.0, -1, 5)


def file(name: str) -> Input:
    return Input(name, "COMBO", options=FILES)


def switch(name: str, *, default: bool = False) -> Input:
    return Input(name, "BOOLEAN", default)


def start_end(step: float) -> tuple[Input, ...]:
    return decimal("start_percent", 0.0, 0, 1, step), decimal("end_percent", 1.0, 0, 1, step)


PACKS: dict[str, Facts] = {
    "IPAdapterFluxLoader": Facts(
        "Load IPAdapter Flux Model",
        "InstantXNodes",
        (file("ipadapter"), SIGLIP, PLACES),
        (("IP_ADAPTER_FLUX_INSTANTX", "ipadapterFlux"),),
    ),
    "ApplyIPAdapterFlux": Facts(
        "Apply IPAdapter Flux Model",
        "InstantXNodes",
        (MODEL, socket("ipadapter_flux", "IP_ADAPTER_FLUX_INSTANTX"), IMAGE, WEIGHT, *start_end(0.001)),
        A_MODEL,
    ),
    "LoadFluxIPAdapter": Facts(
        "Load Flux IPAdatpter",
        "XLabsNodes",
        (file("ipadatper"), file("clip_vision"), combo("provider", "CPU", "GPU")),
        (("IP_ADAPTER_FLUX", "ipadapterFlux"),),
    ),
    "ApplyFluxIPAdapter": Facts(
        "Apply Flux IPAdapter",
        "XLabsNodes",
        (MODEL, socket("ip_adapter_flux", "IP_ADAPTER_FLUX"), IMAGE, decimal("ip_scale", 0.93, 0, 1, 0.001)),
        A_MODEL,
    ),
    # until December 2024 with an encoder and the picture, later without and with the picture's embeds
    "IPAdapterSD3Loader": Facts(
        "Load IPAdapter SD3 Model",
        "InstantXNodes",
        (file("ipadapter"), *optional(SIGLIP, PLACES)),
        (("IP_ADAPTER_SD3_INSTANTX", "ipadapter"),),
    ),
    "ApplyIPAdapterSD3": Facts(
        "Apply IPAdapter SD3 Model",
        "InstantXNodes",
        (
            *(MODEL, socket("ipadapter", "IP_ADAPTER_SD3_INSTANTX"), WEIGHT, *start_end(0.01)),
            *optional(IMAGE, socket("image_embed", "CLIP_VISION_OUTPUT")),
        ),
        A_MODEL,
    ),
    "AnimaIPAdapterLoader": Facts(
        "Anima IP-Adapter Loader (SigLIP2)",
        "Anima/IP-Adapter",
        (file("ip_adapter_name"), switch("auto_download")),
        (("ANIMA_IP_ADAPTER", "ip_adapter"),),
    ),
    "AnimaIPAdapterApply": Facts(
        "Anima IP-Adapter Apply (SigLIP2)",
        "Anima/IP-Adapter",
        (
            MODEL,
            socket("ip_adapter", "ANIMA_IP_ADAPTER"),
            socket("ref_image", "IMAGE"),
            decimal("strength", 1.0, 0, 2),
            Input("ref_image_size", "INT", 512, 224, 2048, 16),
            Input("siglip_layer", "INT", -1, -1, 24),
            decimal("ip_cfg_scale", 4.0, 1, 10),
            switch("ip_cfg_separate"),
            switch("gray_null"),
            switch("use_lora", default=True),
        ),
        (("MODEL", "model"),),
    ),
}
