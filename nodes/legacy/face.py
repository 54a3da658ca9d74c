"""The FaceID nodes: the face model's loader, and the apply nodes that also give the face they found."""

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

from ..encoding.face_model import USUAL_PACKS, load_face_model, pack_fingerprint
from ..patching.application import fitting_sites
from . import schema
from .application import LegacyUse, Weight, apply_image, apply_tokens
from .face_features import encode_faces
from .payload import read_payload

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
                io.Combo.Input(
                    "provider",
                    options=["CPU", "CUDA", "ROCM"],
                    default="CPU",
                    tooltip="Where faces are recognised; CPU where the other is not there.",
                ),
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
    def execute(cls, provider: str, model_name: str) -> io.NodeOutput:
        return io.NodeOutput(load_face_model(model_name, provider).analysis)


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


def _apply(
    model: ModelPatcher,
    ipadapter: object,
    image: Tensor,
    use: LegacyUse,
    image_negative: Tensor | None,
    clip_vision: object | None,
    insightface: object | None,
) -> io.NodeOutput:
    payload = read_payload(ipadapter, clip_vision, insightface)
    if payload.adapter.spec.face is None:  # as IPAdapter Advanced
        return io.NodeOutput(apply_image(model, payload, image, use, image_negative), image)
    fitting_sites(model, payload.adapter)
    tokens, faces = encode_faces(payload, image, use.method, use.structure, image_negative)
    return io.NodeOutput(apply_tokens(model, payload.adapter, tokens, use), faces)


class IPAdapterFaceID(io.ComfyNode):
    """Steer a model with a face."""

    per_frame = False

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _apply_schema("IPAdapterFaceID", "IPAdapter FaceID", "Steers a model with the identity of a face.")

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        ipadapter: object,
        image: Tensor,
        weight: Weight,
        weight_faceidv2: float,
        weight_type: str,
        combine_embeds: str,
        start_at: float,
        end_at: float,
        embeds_scaling: str,
        image_negative: Tensor | None = None,
        attn_mask: Tensor | None = None,
        clip_vision: object | None = None,
        insightface: object | None = None,
    ) -> io.NodeOutput:
        use = LegacyUse(
            weight=weight,
            weight_type=weight_type,
            combine_embeds=combine_embeds,
            start_at=start_at,
            end_at=end_at,
            embeds_scaling=embeds_scaling,
            attn_mask=attn_mask,
            weight_faceidv2=weight_faceidv2,
            per_frame=cls.per_frame,
        )
        return _apply(model, ipadapter, image, use, image_negative, clip_vision, insightface)


class IPAdapterFaceIDKolors(io.ComfyNode):
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

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        ipadapter: object,
        image: Tensor,
        weight: Weight,
        weight_faceidv2: float,
        weight_kolors: float,
        weight_type: str,
        combine_embeds: str,
        start_at: float,
        end_at: float,
        embeds_scaling: str,
        image_negative: Tensor | None = None,
        attn_mask: Tensor | None = None,
        clip_vision: object | None = None,
        insightface: object | None = None,
    ) -> io.NodeOutput:
        use = LegacyUse(
            weight=weight,
            weight_type=weight_type,
            combine_embeds=combine_embeds,
            start_at=start_at,
            end_at=end_at,
            embeds_scaling=embeds_scaling,
            attn_mask=attn_mask,
            weight_faceidv2=weight_faceidv2,
            weight_kolors=weight_kolors,
        )
        return _apply(model, ipadapter, image, use, image_negative, clip_vision, insightface)


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
