"""`IPAGridSheet`: the pictures of a grid on one labelled sheet."""

from comfy_api.latest import io, ui
from torch import Tensor

from ...ipadapter_core.encoder.pixels import check_image
from ...ipadapter_core.errors import BadInputError
from ..arrivals import checked
from ..previews import sheet
from ..sockets import CATEGORY


class IPAGridSheet(io.ComfyNode):
    """One picture of many."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IPAGridSheet",
            display_name="IP-Adapter Grid Sheet",
            category=CATEGORY,
            description="Lays the pictures of IP-Adapter Grid out on one sheet, each with its label.",
            search_aliases=["xy plot", "image grid", "contact sheet", "combine images"],
            is_input_list=True,
            inputs=[
                io.Image.Input(
                    "images", tooltip="The pictures, from VAE Decode; batches are laid out one after the other."
                ),
                io.String.Input("labels", force_input=True, tooltip="From IP-Adapter Grid."),
                io.Int.Input(
                    "columns", force_input=True, tooltip="From IP-Adapter Grid: how many pictures are in a row."
                ),
            ],
            outputs=[io.Image.Output("sheet", tooltip="All of them in one picture, for Save Image.")],
            is_output_node=True,  # seen without anything behind it
        )

    @classmethod
    @checked
    def execute(cls, images: list[Tensor], labels: list[str], columns: list[int]) -> io.NodeOutput:
        if len(images) != len(labels) or len(columns) != 1 or columns[0] < 1:
            raise BadInputError(
                f"{len(images)} pictures and {len(labels)} labels in rows of {', '.join(map(str, columns))}",
                expected="as many pictures as labels, and one number of columns",
                action="connect labels and columns of the IP-Adapter Grid that the pictures come from",
            )
        cells = [
            (picture, label) for batch, label in zip(images, labels, strict=True) for picture in check_image(batch)
        ]
        laid_out = sheet(cells, columns[0] * (len(cells) // len(images) or 1))
        return io.NodeOutput(laid_out, ui=ui.PreviewImage(laid_out, cls=cls))
