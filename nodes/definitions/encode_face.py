"""`IPAEncodeFace`: a face's identity as image prompt."""

import logging

from comfy_api.latest import io
from torch import Tensor

from ...ipadapter_core.face.detection import FACE_CHOICES, check_proportions
from ..arrivals import checked
from ..encoding.face_model import FaceModel
from ..encoding.faces import VERSIONS, face_features, face_spec, face_tokens, find_faces, nearest_bytes, structure_of
from ..encoding.pictures import encoder_of
from ..sockets import CATEGORY, IPAAdapter, IPAFaceModel, IPATokens, LoadedAdapter

logger = logging.getLogger(__name__)


class IPAEncodeFace(io.ComfyNode):
    """Encode the identity of one or more faces."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IPAEncodeFace",
            display_name="Encode Face for IP-Adapter",
            category=CATEGORY,
            description="Turns faces into image tokens for a FaceID adapter. Every image of a batch is one reference.",
            search_aliases=[
                *("faceid", "face id", "face", "face swap", "character", "identity", "insightface", "portrait"),
                "IPAdapter FaceID",
            ],
            inputs=[
                IPAAdapter.Input("adapter", tooltip="A FaceID adapter: FaceID, FaceID-Plus, portrait, Kolors FaceID."),
                IPAFaceModel.Input(
                    "face_model", display_name="face model", tooltip="From Load Face Model for IP-Adapter."
                ),
                io.Image.Input(
                    "image", tooltip="Picture with a face; a batch is several references that act together."
                ),
                io.Combo.Input(
                    "face",
                    options=list(FACE_CHOICES),
                    default=FACE_CHOICES[0],
                    tooltip="Which face of a picture counts: 'largest' (usual), 'first', the one the detector is surest "
                    "of, or 'all', each as a reference.",
                ),
                io.Combo.Input(
                    "version",
                    advanced=True,
                    options=list(VERSIONS),
                    default="auto",
                    tooltip="For FaceID-Plus of SD1.5 alone, whose v1 and v2 have the same tensors: say which the file is. "
                    "'auto' asks the file and, if it does not tell, takes v1 and warns. Neutral: auto.",
                ),
                io.Float.Input(
                    "structure",
                    advanced=True,
                    default=1.0,
                    min=-1.0,
                    max=5.0,
                    step=0.05,
                    tooltip="FaceID-Plus v2 and Kolors FaceID: how much the look of the face's picture adds to its identity; "
                    "no unit. 1 is as trained and neutral, 0 leaves the identity alone.",
                ),
                io.Image.Input(
                    "negative_image",
                    display_name="negative image",
                    optional=True,
                    tooltip="FaceID-Plus: what the picture should move away from. Neutral: leave it unconnected.",
                ),
                io.ClipVision.Input(
                    "clip_vision",
                    display_name="CLIP vision",
                    optional=True,
                    tooltip="FaceID-Plus: image encoder in place of the one Load IP-Adapter found. Neutral: unconnected.",
                ),
            ],
            outputs=[
                IPATokens.Output("tokens", tooltip="Image tokens, for Apply IP-Adapter or Combine IP-Adapter Tokens."),
                io.Image.Output("face_image", tooltip="The faces as they were cut out, to see what was found."),
            ],
        )

    @classmethod
    @checked
    def execute(
        cls,
        adapter: LoadedAdapter,
        face_model: FaceModel,
        image: Tensor,
        face: str,
        version: str,
        structure: float,
        negative_image: Tensor | None = None,
        clip_vision: object | None = None,
    ) -> io.NodeOutput:
        spec = face_spec(adapter)
        encoder = encoder_of(adapter, clip_vision) if adapter.spec.reads_pictures else None
        if encoder is None and negative_image is not None:
            logger.warning("The negative image does nothing: %s reads no picture.", adapter.spec.family)
        check_proportions(image)
        faces = find_faces(face_model, nearest_bytes(image), spec, face, frames_close_ups=True)
        features = None if encoder is None else face_features(adapter, encoder, faces, negative_image)
        tokens = face_tokens(adapter, faces.identities, features, structure_of(adapter, version, structure))
        return io.NodeOutput(tokens, faces.pictures)
