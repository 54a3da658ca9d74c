"""`IPARegion`: where in the picture an image acts, by name, box or mask."""

from comfy_api.latest import io, ui
from torch import Tensor

from ...ipadapter_core.box import Box
from ...ipadapter_core.branch.masks import check_mask, resized
from ...ipadapter_core.branch.regions import REGIONS, named_box, region_mask, softened
from ...ipadapter_core.encoder.pixels import check_image
from ..arrivals import checked
from ..inputs import box_inputs
from ..previews import shaded
from ..sockets import CATEGORY

_BOX = "box"


class IPARegion(io.ComfyNode):
    """A mask for Apply IP-Adapter."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IPARegion",
            display_name="IP-Adapter Region",
            category=CATEGORY,
            description="Says where in the picture a reference acts: a half, a third, a box or a mask of yours, with soft "
            "edges. Shows it over a picture.",
            search_aliases=["regional", "attention mask", "left half", "mask region", "IPAdapter Regional"],
            inputs=[
                io.Combo.Input(
                    "region",
                    options=[*REGIONS, _BOX],
                    default="left",
                    tooltip="Which part of the picture. 'box' reads x, y, width and height below. Neutral: everywhere.",
                ),
                io.Float.Input(
                    "feather",
                    default=0.1,
                    min=0.0,
                    max=0.5,
                    step=0.01,
                    tooltip="Width of the soft edges, as part of the picture's shorter side. Neighbours with one feather add "
                    "up to 1. Neutral: 0, hard edges.",
                ),
                io.Boolean.Input("invert", default=False, tooltip="Everything but the region. Neutral: off."),
                *box_inputs(),
                io.Int.Input(
                    "picture_width",
                    display_name="picture width",
                    default=1024,
                    min=16,
                    max=16384,
                    advanced=True,
                    tooltip="Pixels of the picture that is drawn; where no image or mask tells it. Its shape alone counts.",
                ),
                io.Int.Input(
                    "picture_height",
                    display_name="picture height",
                    default=1024,
                    min=16,
                    max=16384,
                    advanced=True,
                    tooltip="Pixels of the picture that is drawn; where no image or mask tells it. Its shape alone counts.",
                ),
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip="A picture to show the region over; the mask gets its size. Neutral: unconnected.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="A mask of yours, of which the region is a part; with 'everywhere' it is the region. Neutral: "
                    "unconnected.",
                ),
            ],
            outputs=[
                io.Mask.Output("mask", tooltip="1 where the image acts; for the mask of Apply IP-Adapter."),
                io.Image.Output("preview", tooltip="The picture, darker where the image does not act."),
            ],
            is_output_node=True,  # seen without anything behind it
        )

    @classmethod
    @checked
    def execute(
        cls,
        region: str,
        feather: float,
        invert: bool,
        x: float,
        y: float,
        width: float,
        height: float,
        picture_width: int,
        picture_height: int,
        image: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> io.NodeOutput:
        given = None if mask is None else check_mask(mask)
        size = (picture_height, picture_width)
        if image is not None:
            image = check_image(image)
            size = (image.shape[1], image.shape[2])
        elif given is not None:
            size = (given.shape[1], given.shape[2])
        box = Box(x, y, x + width, y + height) if region == _BOX else named_box(region)
        made = region_mask(box, *size, feather)[None]
        if given is not None:
            made = made * softened(resized(given, size), feather)
        made = 1 - made if invert else made
        preview = shaded(image, made)
        return io.NodeOutput(made, preview, ui=ui.PreviewImage(preview, cls=cls))
