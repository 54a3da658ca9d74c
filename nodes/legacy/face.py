"""The FaceID nodes: the face model's loader, and the apply nodes that also give the face they found."""

from comfy_api.latest import io

from ..encoding.face_model import USUAL_PACKS, load_face_model, pack_fingerprint
from ..paths import check_name
from . import schema
from .apply_node import ApplyNode
from .arrivals import checked

_CATEGORY = "ipadapter/faceid"
_NATIVE = "Encode Face for IP-Adapter and Apply IP-Adapter"


class IPAdapterInsightFaceLoader(io.ComfyNode):
    """Load a face pack."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema.legacy_schema(
            "IPAdapterInsightFaceLoader",
            "IPAdapter InsightFace Loader",
            "ipadapter/loaders",
            "Loads the networks that find and recognise faces.",
            native="Load Face Model for IP-Adapter",
            inputs=[
                schema.face_provider(),
                io.Combo.Input(
                    "model_name",
                    options=list(USUAL_PACKS),
                    default=USUAL_PACKS[0],
                    tooltip="A face pack in models/insightface/models; antelopev2 for Kolors FaceID.",
                ),
            ],
            outputs=[schema.InsightFaceSocket.Output(display_name="INSIGHTFACE", tooltip="The face model.")],
        )

    @classmethod
    def fingerprint_inputs(cls, provider: str, model_name: str) -> str:
        return pack_fingerprint(model_name)

    @classmethod
    @checked
    def execute(cls, provider: str, model_name: str) -> io.NodeOutput:
        return io.NodeOutput(load_face_model(check_name(model_name, "models/insightface/models"), provider).analysis)


def _apply_schema(node_id: str, display_name: str, description: str, *weights: io.Input) -> io.Schema:
    return schema.legacy_schema(
        node_id,
        display_name,
        _CATEGORY,
        description,
        native=_NATIVE,
        inputs=[
            schema.model(),
            schema.ipadapter(),
            schema.image(tooltip="Picture with a face; the first one found counts. A batch is several references."),
            schema.weight(high=3.0),
            schema.face_weight(),
            *weights,
            schema.weight_type(),
            schema.combine_embeds(),
            *schema.start_end(),
            schema.embeds_scaling(),
            *schema.optional_inputs(face=True),
        ],
        outputs=[
            schema.model_output(),
            io.Image.Output(display_name="face_image", tooltip="The faces as they were cut out."),
        ],
    )


class IPAdapterFaceID(ApplyNode):
    """Steer a model with a face."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _apply_schema("IPAdapterFaceID", "IPAdapter FaceID", "Steers a model with the identity of a face.")


class IPAdapterFaceIDKolors(ApplyNode):
    """Steer Kolors with a face."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _apply_schema(
            "IPAdapterFaceIDKolors",
            "IPAdapter FaceID Kolors",
            "Steers a Kolors model with the identity of a face.",
            schema.weight(
                "weight_kolors",
                tooltip="Factor of the layer through which Kolors narrows the tokens; no unit. Neutral: 1.",
            ),
        )


class IPAAdapterFaceIDBatch(IPAdapterFaceID):
    """One face per latent; the double A is part of the id."""

    per_frame = True

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _apply_schema(
            "IPAAdapterFaceIDBatch",
            "IPAdapter FaceID Batch",
            "Steers every latent of a batch with the face in the picture of its number.",
        )


NODES: tuple[type[io.ComfyNode], ...] = (
    IPAdapterFaceID,
    IPAdapterFaceIDKolors,
    IPAAdapterFaceIDBatch,
    IPAdapterInsightFaceLoader,
)
