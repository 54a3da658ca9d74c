"""`InsightFaceLoader`: the face model's loader when there was one face pack."""

from comfy_api.latest import io

from ...encoding.face_model import USUAL_PACKS, load_face_model, pack_fingerprint
from .. import schema
from ..arrivals import checked

_PACK = USUAL_PACKS[0]


class InsightFaceLoader(io.ComfyNode):
    """Load the usual face pack."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema.legacy_schema(
            "InsightFaceLoader",
            "Load InsightFace",
            "ipadapter",
            "Loads the networks that find and recognise faces.",
            native="Load Face Model for IP-Adapter",
            inputs=[schema.face_provider()],
            outputs=[schema.InsightFaceSocket.Output(display_name="INSIGHTFACE", tooltip="The face model.")],
        )

    @classmethod
    def fingerprint_inputs(cls, provider: str) -> str:
        return pack_fingerprint(_PACK)

    @classmethod
    @checked
    def execute(cls, provider: str) -> io.NodeOutput:
        return io.NodeOutput(load_face_model(_PACK, provider).analysis)


NODES: tuple[type[io.ComfyNode], ...] = (InsightFaceLoader,)
