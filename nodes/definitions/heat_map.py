"""`IPAHeatMap`: where in the picture each reference acted."""

from comfy_api.latest import io, ui
from torch import Tensor

from ...ipadapter_core.branch.recording import Record
from ...ipadapter_core.encoder.pixels import check_image
from ..arrivals import checked
from ..heat import SCALES, heat_of, maps_of
from ..previews import heated
from ..sockets import CATEGORY, IPARecordSocket

_MOST = 10_000


class IPAHeatMap(io.ComfyNode):
    """A picture under its heat map, and the map as a mask."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IPAHeatMap",
            display_name="IP-Adapter Heat Map",
            category=CATEGORY,
            description="Shows where in a picture each reference acted, over the picture: how much the image branch added "
            "there.",
            search_aliases=["heatmap", "attention map", "where does the reference act", "attribution", "saliency"],
            is_output_node=True,  # seen without anything behind it
            inputs=[
                IPARecordSocket.Input(
                    "record", tooltip="From Record IP-Adapter Heat Map, which the sampler's model came from."
                ),
                io.Image.Input(
                    "image",
                    tooltip="The picture that was sampled, from VAE Decode; any size. One of another graph is shown as well, "
                    "if the model was sampled before.",
                ),
                io.Int.Input(
                    "adapter",
                    default=0,
                    min=0,
                    max=_MOST,
                    tooltip="Which adapter, in the order they were applied; one that has no effect does not count. Neutral: 0, "
                    "all of them together.",
                ),
                io.Int.Input(
                    "reference",
                    default=0,
                    min=0,
                    max=_MOST,
                    tooltip="Which reference of the adapter, in the order of its tokens. Neutral: 0, all of them together.",
                ),
                io.Int.Input(
                    "step",
                    default=0,
                    min=0,
                    max=_MOST,
                    tooltip="Which step of the sampling. Neutral: 0, the sum over all.",
                ),
                io.Float.Input(
                    "blending",
                    default=0.6,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="How much the map covers the picture; no unit. Neutral: 0, the picture alone.",
                ),
                io.Combo.Input(
                    "scale",
                    options=list(SCALES),
                    default=SCALES[0],
                    optional=True,
                    advanced=True,
                    tooltip="What is brightest: 'common', where all references of all adapters together add most, so that maps "
                    "can be compared, and add up; 'own', where the chosen ones do, so that weak ones can be seen.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    "overlay", tooltip="The picture with the map over it: dark is nothing, yellow is most."
                ),
                io.Mask.Output("mask", tooltip="The map, 0 to 1, of the picture's size."),
            ],
        )

    @classmethod
    @checked
    def execute(
        cls,
        record: Record,
        image: Tensor,
        adapter: int,
        reference: int,
        step: int,
        blending: float,
        scale: str = SCALES[0],
    ) -> io.NodeOutput:
        image = check_image(image)
        mask = heat_of(maps_of(record), image.shape[:3], (adapter, reference, step), scale)
        overlay = heated(image, mask, blending)
        return io.NodeOutput(overlay, mask, ui=ui.PreviewImage(overlay, cls=cls))
