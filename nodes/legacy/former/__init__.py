"""Nodes that IPAdapter_plus dropped in March 2024, or that only a copy of it had, under the ids they are saved with.

Beside them the nodes of packs for FLUX, SD3.5 and Anima that put other forwards in place of a model's.
They are ours wherever no pack has them, beside IPAdapter_plus too: its last version no longer knows them.
`renaming.py` and `web/former.js` do the rest: ids that became another, and ids whose inputs became others.
"""

from comfy_api.latest import io

from .anima_pack import NODES as ANIMA_PACK_NODES
from .apply import NODES as APPLY_NODES
from .embeds import NODES as EMBEDS_NODES
from .face_loader import NODES as FACE_LOADER_NODES
from .flux_packs import NODES as FLUX_PACK_NODES
from .gone import NODES as GONE_NODES
from .layer_sliders import NODES as LAYER_SLIDER_NODES
from .preparation import NODES as PREPARATION_NODES
from .sd3_pack import NODES as SD3_PACK_NODES

NODES: tuple[type[io.ComfyNode], ...] = (
    *APPLY_NODES,
    *EMBEDS_NODES,
    *FACE_LOADER_NODES,
    *PREPARATION_NODES,
    *LAYER_SLIDER_NODES,
    *GONE_NODES,
    *FLUX_PACK_NODES,
    *SD3_PACK_NODES,
    *ANIMA_PACK_NODES,
)
