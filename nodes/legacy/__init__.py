"""The nodes of IPAdapter_plus under their own ids, so that workflows saved with it run: each a thin call of our core."""

from comfy_api.latest import io

from .apply import NODES as APPLY_NODES
from .apply_embeds import NODES as APPLY_EMBEDS_NODES
from .embeds import NODES as EMBEDS_NODES
from .enhancer import NODES as ENHANCER_NODES
from .face import NODES as FACE_NODES
from .load import NODES as LOAD_NODES
from .noise import NODES as NOISE_NODES
from .params import NODES as PARAMS_NODES
from .precise import NODES as PRECISE_NODES
from .preparation import NODES as PREPARATION_NODES
from .scientist import NODES as SCIENTIST_NODES
from .style import NODES as STYLE_NODES
from .tiled import NODES as TILED_NODES
from .unified import NODES as UNIFIED_NODES
from .unified_face import NODES as UNIFIED_FACE_NODES
from .weights import NODES as WEIGHTS_NODES

NODES: tuple[type[io.ComfyNode], ...] = (
    *LOAD_NODES,
    *UNIFIED_NODES,
    *UNIFIED_FACE_NODES,
    *APPLY_NODES,
    *APPLY_EMBEDS_NODES,
    *STYLE_NODES,
    *PRECISE_NODES,
    *SCIENTIST_NODES,
    *FACE_NODES,
    *ENHANCER_NODES,
    *TILED_NODES,
    *EMBEDS_NODES,
    *NOISE_NODES,
    *PREPARATION_NODES,
    *WEIGHTS_NODES,
    *PARAMS_NODES,
)
