"""`IPARecord`: what the adapters on a model add to a picture is recorded while it is sampled."""

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..arrivals import checked
from ..patching.wrappers import add_record
from ..sockets import CATEGORY, IPARecordSocket


class IPARecord(io.ComfyNode):
    """A model whose samplings leave a record."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IPARecord",
            display_name="Record IP-Adapter Heat Map",
            category=CATEGORY,
            description="Records where in the picture each reference acts while this model is sampled, for IP-Adapter Heat "
            "Map. The picture stays the same; sampling takes a little longer.",
            search_aliases=["heatmap", "attention map", "where does the reference act", "attribution", "DAAM"],
            inputs=[
                io.Model.Input("model", tooltip="The model with its adapters; the one that goes to the sampler."),
            ],
            outputs=[
                io.Model.Output("model", tooltip="For the sampler; the model that came in is unchanged."),
                IPARecordSocket.Output(
                    "record", tooltip="For IP-Adapter Heat Map: of the latest sampling with this model."
                ),
            ],
        )

    @classmethod
    @checked
    def execute(cls, model: ModelPatcher) -> io.NodeOutput:
        return io.NodeOutput(*add_record(model))
