"""`IPALoadFaceModel`: the networks that find and recognise faces."""

from comfy_api.latest import io

from ..arrivals import checked
from ..encoding.face_model import PROVIDERS, USUAL_PACKS, load_face_model, pack_fingerprint, pack_folder, packs
from ..errors import problem
from ..paths import check_name
from ..sockets import CATEGORY, IPAFaceModel


class IPALoadFaceModel(io.ComfyNode):
    """Load the networks that find and recognise faces."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IPALoadFaceModel",
            display_name="Load Face Model for IP-Adapter",
            category=CATEGORY,
            description="Loads a face pack for FaceID adapters: with InsightFace if it is installed, else with onnxruntime "
            "alone.",
            search_aliases=["insightface", "faceid", "buffalo_l", "antelopev2", "IPAdapter InsightFace Loader"],
            inputs=[
                io.Combo.Input(
                    "face_pack",
                    display_name="face pack",
                    options=list(dict.fromkeys((*packs(), *USUAL_PACKS))),
                    tooltip="A folder of ONNX files in models/insightface/models. buffalo_l is what the FaceID adapters "
                    "were trained with, antelopev2 what Kolors FaceID was. Both are for non-commercial research only.",
                ),
                io.Combo.Input(
                    "device",
                    advanced=True,
                    options=list(PROVIDERS),
                    default="CPU",
                    tooltip="Where faces are recognised. CPU (usual) takes about a second per picture; others need an "
                    "onnxruntime built for them.",
                ),
            ],
            outputs=[IPAFaceModel.Output("face_model", tooltip="The face model for Encode Face for IP-Adapter.")],
        )

    @classmethod
    def validate_inputs(cls, face_pack: str | None) -> bool | str:
        return face_pack is None or problem(lambda: pack_folder(face_pack))

    @classmethod
    def fingerprint_inputs(cls, face_pack: str, device: str) -> str:
        return pack_fingerprint(face_pack)

    @classmethod
    @checked
    def execute(cls, face_pack: str, device: str) -> io.NodeOutput:
        return io.NodeOutput(load_face_model(check_name(face_pack, "models/insightface/models"), device))
