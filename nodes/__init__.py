"""The ComfyUI layer: thin nodes over `ipadapter_core`. The only package that imports ComfyUI."""

from comfy_api.latest import ComfyExtension, io
from typing_extensions import override

from .blueprints import say_search_words
from .cache import free_with_models
from .definitions.apply import IPAApply
from .definitions.apply_face_lora import IPAApplyFaceLora
from .definitions.apply_image import IPAApplyImage
from .definitions.combine_tokens import IPACombineTokens
from .definitions.compare import IPACompare
from .definitions.encode_face import IPAEncodeFace
from .definitions.encode_image import IPAEncodeImage
from .definitions.grid import IPAGrid
from .definitions.grid_sheet import IPAGridSheet
from .definitions.guard import IPAGuard
from .definitions.heat_map import IPAHeatMap
from .definitions.layer_weights import IPALayerWeights
from .definitions.load_adapter import IPALoadAdapter
from .definitions.load_face_model import IPALoadFaceModel
from .definitions.load_tokens import IPALoadTokens
from .definitions.prepare_reference import IPAPrepareReference
from .definitions.record import IPARecord
from .definitions.region import IPARegion
from .definitions.save_tokens import IPASaveTokens
from .definitions.schedule import IPASchedule
from .definitions.train import IPATrain
from .errors import name_plainly
from .legacy.coexistence import former_nodes_to_register, nodes_to_register
from .legacy.former.renaming import rename_in_prompts
from .legacy.payload import forget_foreign
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
    IPARegion,
    IPASaveTokens,
    IPALoadTokens,
    IPAPrepareReference,
    IPACompare,
    IPASchedule,
    IPAGrid,
    IPAGridSheet,
    IPARecord,
    IPAHeatMap,
    IPAGuard,
    IPATrain,
)


class IPAdapterStudio(ComfyExtension):
    """Registers folder, nodes and blueprints, names errors, reads old prompts, and frees what is kept when ComfyUI does."""

    @override
    async def on_load(self) -> None:
        name_plainly()
        register_folders()
        free_with_models(forget_foreign)
        rename_in_prompts()
        say_search_words()

    @override
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [*NODES, *nodes_to_register(), *former_nodes_to_register()]


async def comfy_entrypoint() -> IPAdapterStudio:
    """What ComfyUI calls after importing the pack."""
    return IPAdapterStudio()
