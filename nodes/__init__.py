"""The ComfyUI layer: thin nodes over `ipadapter_core`. The only package that imports ComfyUI."""

from comfy_api.latest import ComfyExtension, io
from typing_extensions import override

from .definitions.apply import IPAApply, IPAApplyImage
from .definitions.apply_face_lora import IPAApplyFaceLora
from .definitions.combine_tokens import IPACombineTokens
from .definitions.face import IPAEncodeFace, IPALoadFaceModel
from .definitions.layer_weights import IPALayerWeights
from .definitions.load_adapter import IPALoadAdapter
from .encoding.pictures import IPAEncodeImage
from .legacy.coexistence import nodes_to_register
from .paths import register_folders

NODES: tuple[type[io.ComfyNode], ...] = (
    IPALoadAdapter,
    IPAEncodeImage,
    IPACombineTokens,
    IPAApply,
    IPAApplyImage,
    IPALayerWeights,
    IPALoadFaceModel,
    IPAEncodeFace,
    IPAApplyFaceLora,
)


class IPAdapterStudio(ComfyExtension):
    """Registers the model folder and the nodes."""

    @override
    async def on_load(self) -> None:
        register_folders()

    @override
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [*NODES, *nodes_to_register()]


async def comfy_entrypoint() -> IPAdapterStudio:
    """What ComfyUI calls after importing the pack."""
    return IPAdapterStudio()
