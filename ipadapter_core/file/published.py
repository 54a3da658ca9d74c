"""Where published files can be had, for messages about one that is missing. Nothing here asks the network."""

from dataclasses import dataclass
from pathlib import PurePath

_HUB = "https://huggingface.co"
_INSIGHTFACE = "https://github.com/deepinsight/insightface/releases"


@dataclass(frozen=True)
class Published:
    """A file as its authors publish it.

    Attributes:
        page: what to read before: what it is made for, its licence.
        url: the file itself.
        folder: of ComfyUI's models where it belongs.
        name: to save it under; many are published as `model.safetensors`.
    """

    page: str
    url: str
    folder: str
    name: str

    @property
    def way(self) -> str:
        """How to get it: its page, and a line for the terminal."""
        return (
            f"{self.name}: {self.page}\n"
            f"In a terminal: comfy model download --url {self.url} "
            f"--relative-path models/{self.folder} --filename {self.name}"
        )


def _on_hub(repository: str, path: str, folder: str, name: str = "") -> Published:
    """A file of a repository; `name` if it is not to be saved under its own."""
    page = f"{_HUB}/{repository}"
    return Published(page, f"{page}/resolve/main/{path}", folder, name or PurePath(path).name)


def _pack(name: str) -> Published:
    return Published(_INSIGHTFACE, f"{_INSIGHTFACE}/download/v0.7/{name}.zip", "insightface/models", f"{name}.zip")


_ADAPTERS = (
    *(
        _on_hub("h94/IP-Adapter", path, "ipadapter")
        for path in (
            "models/ip-adapter_sd15.safetensors",
            "models/ip-adapter_sd15_light.safetensors",
            "models/ip-adapter_sd15_light_v11.bin",
            "models/ip-adapter_sd15_vit-G.safetensors",
            "models/ip-adapter-plus_sd15.safetensors",
            "models/ip-adapter-plus-face_sd15.safetensors",
            "models/ip-adapter-full-face_sd15.safetensors",
            "sdxl_models/ip-adapter_sdxl.safetensors",
            "sdxl_models/ip-adapter_sdxl_vit-h.safetensors",
            "sdxl_models/ip-adapter-plus_sdxl_vit-h.safetensors",
            "sdxl_models/ip-adapter-plus-face_sdxl_vit-h.safetensors",
        )
    ),
    *(
        _on_hub("h94/IP-Adapter-FaceID", name, "ipadapter")
        for name in (
            "ip-adapter-faceid_sd15.bin",
            "ip-adapter-faceid-plus_sd15.bin",
            "ip-adapter-faceid-plusv2_sd15.bin",
            "ip-adapter-faceid-portrait_sd15.bin",
            "ip-adapter-faceid-portrait-v11_sd15.bin",
            "ip-adapter-faceid_sdxl.bin",
            "ip-adapter-faceid-plusv2_sdxl.bin",
            "ip-adapter-faceid-portrait_sdxl.bin",
            "ip-adapter-faceid-portrait_sdxl_unnorm.bin",
        )
    ),
    *(
        _on_hub("ostris/ip-composition-adapter", f"ip_plus_composition_{base}.safetensors", "ipadapter")
        for base in ("sd15", "sdxl")
    ),
    _on_hub(
        "Kwai-Kolors/Kolors-IP-Adapter-Plus", "ip_adapter_plus_general.bin", "ipadapter", "Kolors-IP-Adapter-Plus.bin"
    ),
    _on_hub(
        "Kwai-Kolors/Kolors-IP-Adapter-FaceID-Plus",
        "ipa-faceid-plus.bin",
        "ipadapter",
        "Kolors-IP-Adapter-FaceID-Plus.bin",
    ),
    _on_hub("LuciferTC/Anima-IP-Adapter", "ip_adapter-Character_Reference-10.safetensors", "ipadapter"),
)
_LORAS = (
    _on_hub("h94/IP-Adapter-FaceID", f"ip-adapter-{kind}_lora.safetensors", "loras")
    for kind in ("faceid_sd15", "faceid-plus_sd15", "faceid-plusv2_sd15", "faceid_sdxl", "faceid-plusv2_sdxl")
)
_ENCODERS = (
    _on_hub(
        "h94/IP-Adapter",
        "models/image_encoder/model.safetensors",
        "clip_vision",
        "CLIP-ViT-H-14-laion2B-s32B-b79K.safetensors",
    ),
    _on_hub(
        "h94/IP-Adapter",
        "sdxl_models/image_encoder/model.safetensors",
        "clip_vision",
        "CLIP-ViT-bigG-14-laion2B-39B-b160k.safetensors",
    ),
    *(
        _on_hub(repository, "model.safetensors", "clip_vision", f"{PurePath(repository).name}.safetensors")
        for repository in (
            "openai/clip-vit-large-patch14",
            "google/siglip-so400m-patch14-384",
            "google/siglip2-base-patch16-512",
        )
    ),
    _on_hub(
        "Kwai-Kolors/Kolors-IP-Adapter-Plus",
        "image_encoder/pytorch_model.bin",
        "clip_vision",
        "clip-vit-large-patch14-336.bin",
    ),
    _on_hub("timm/vit_pe_core_large_patch14_336.fb", "model.safetensors", "clip_vision", "PE-Core-L14-336.safetensors"),
)
USUAL_ADAPTER = "ip-adapter-plus_sd15.safetensors"  # for who has none yet
PUBLISHED: dict[str, Published] = {
    file.name: file for file in (*_ADAPTERS, *_LORAS, *_ENCODERS, _pack("buffalo_l"), _pack("antelopev2"))
}
_BY_LOWER_CASE = {name.lower(): file for name, file in PUBLISHED.items()}


def way_to(name: str) -> str:
    """How to get a file of this name, in whatever sub-folder it lies; nothing where nobody is known to publish it."""
    file = _BY_LOWER_CASE.get(name.replace("\\", "/").rpartition("/")[2].lower())
    return file.way if file else ""
