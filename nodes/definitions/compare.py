"""`IPACompare`: how alike pictures are to references."""

from comfy_api.latest import io, ui
from torch import Tensor

from ...ipadapter_core.encoder.pixels import check_image
from ..arrivals import checked
from ..encoding.similarity import encoder_at_hand, similarities
from ..previews import bars
from ..sockets import CATEGORY, IPAAdapter, LoadedAdapter


class IPACompare(io.ComfyNode):
    """A number and bars."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IPACompare",
            display_name="Compare with Reference",
            category=CATEGORY,
            description="Measures how alike pictures are to references, as an image encoder sees them: the cosine of their "
            "embeddings, 1 for the same picture.",
            search_aliases=["similarity", "clip score", "rate pictures", "compare images", "dino score"],
            inputs=[
                io.Image.Input("image", tooltip="Pictures to rate; every one of a batch gets its bars."),
                io.Image.Input("reference", tooltip="What they are compared with; each with every one of a batch."),
                IPAAdapter.Input(
                    "adapter",
                    optional=True,
                    tooltip="Its image encoder is used. Another one than the adapter was applied with is the fairer judge.",
                ),
                io.ClipVision.Input(
                    "clip_vision",
                    display_name="CLIP vision",
                    optional=True,
                    tooltip="Image encoder to use in place of the adapter's. Neutral: unconnected.",
                ),
            ],
            outputs=[
                io.Float.Output("similarity", tooltip="Mean over all pairs, -1 to 1."),
                io.Image.Output("chart", tooltip="A bar for every pair, with the two pictures beside it."),
            ],
            is_output_node=True,  # seen without anything behind it
        )

    @classmethod
    @checked
    def execute(
        cls,
        image: Tensor,
        reference: Tensor,
        adapter: LoadedAdapter | None = None,
        clip_vision: object | None = None,
    ) -> io.NodeOutput:
        image, reference = check_image(image), check_image(reference)
        found = similarities(encoder_at_hand(adapter, clip_vision), image, reference)
        rows = [
            (picture, other, float(value))
            for picture, line in zip(image, found, strict=True)
            for other, value in zip(reference, line, strict=True)
        ]
        chart = bars(rows)
        return io.NodeOutput(float(found.mean()), chart, ui=ui.PreviewImage(chart, cls=cls))
