"""`IPAApplyFaceLora`: the LoRA that a FaceID file carries, as weight patches on a model."""

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..arrivals import checked
from ..inputs import strength_input
from ..patching.face_lora import apply_face_lora
from ..sockets import CATEGORY, IPAAdapter, LoadedAdapter


class IPAApplyFaceLora(io.ComfyNode):
    """Apply the LoRA in a FaceID file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IPAApplyFaceLora",
            display_name="Apply FaceID LoRA",
            category=CATEGORY,
            description="Applies the LoRA that a FaceID file carries, so that no second file is needed. FaceID and "
            "FaceID-Plus were trained with it.",
            search_aliases=["faceid lora", "ip-adapter-faceid lora", "face lora"],
            inputs=[
                io.Model.Input("model", tooltip="The model to patch: the base the adapter was made for."),
                IPAAdapter.Input("adapter", tooltip="A FaceID adapter whose file carries a LoRA (the .bin files do)."),
                strength_input(
                    "How strongly the LoRA acts; no unit. 0 is neutral: the model is unchanged. 1 is as trained; 0.5 to 0.7 "
                    "is usual.",
                    default=0.6,
                    high=2.0,
                    step=0.01,
                ),
            ],
            outputs=[io.Model.Output("model", tooltip="The patched model; the one that came in is unchanged.")],
        )

    @classmethod
    @checked
    def execute(cls, model: ModelPatcher, adapter: LoadedAdapter, strength: float) -> io.NodeOutput:
        return io.NodeOutput(apply_face_lora(model, adapter, strength))
