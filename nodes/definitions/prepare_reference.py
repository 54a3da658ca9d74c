"""`IPAPrepareReference`: what of a picture is the reference, cut out and squared, and shown as the encoder sees it."""

from collections.abc import Callable

import torch
from comfy_api.latest import io, ui
from torch import Tensor

from ...ipadapter_core.box import Box
from ...ipadapter_core.branch.masks import check_mask, resized
from ...ipadapter_core.encoder.pixels import check_image
from ...ipadapter_core.encoder.prepare import COLOURS, box_of_mask, part_of, sharpened, squared, widened
from ...ipadapter_core.errors import BadInputError
from ...ipadapter_core.file.spec import CROPS
from ..arrivals import checked
from ..encoding.face_model import FaceModel
from ..encoding.faces import boxes_of_faces
from ..encoding.pictures import choose, seen
from ..inputs import box_inputs
from ..sockets import CATEGORY, IPAAdapter, IPAFaceModel, LoadedAdapter

_CUTS = ("none", "box", "mask", "face")


class IPAPrepareReference(io.ComfyNode):
    """Cut, square and sharpen reference pictures."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IPAPrepareReference",
            display_name="Prepare Reference for IP-Adapter",
            category=CATEGORY,
            description="Cuts the part of a picture that matters and makes it the square that an image encoder reads; "
            "shows what the encoder will see.",
            search_aliases=[
                "crop reference",
                "crop face",
                "crop",
                "square",
                "prep image",
                "Prep Image For ClipVision",
                "PrepImageForClipVision",
            ],
            inputs=[
                io.Image.Input("image", tooltip="Reference image; of a batch each is prepared for itself."),
                io.Combo.Input(
                    "cut",
                    options=list(_CUTS),
                    default=_CUTS[0],
                    tooltip="What is cut out: a 'box' (x, y, width, height), what a 'mask' shows, or the largest 'face', "
                    "which needs a face model. Neutral: none.",
                ),
                io.Float.Input(
                    "margin",
                    default=0.2,
                    min=0.0,
                    max=2.0,
                    step=0.05,
                    tooltip="Room around a mask or face on each side, as part of its own width and height. Neutral: 0.",
                ),
                io.Combo.Input(
                    "fit",
                    options=list(CROPS),
                    default=CROPS[0],
                    tooltip="How it becomes a square: 'center' (usual) cuts the long sides, 'pad' fills the short ones, "
                    "'stretch' distorts.",
                ),
                io.Combo.Input(
                    "pad_colour",
                    display_name="pad colour",
                    advanced=True,
                    options=list(COLOURS),
                    default=next(iter(COLOURS)),
                    tooltip="What 'pad' fills with. Usual: grey, which says least.",
                ),
                io.Int.Input(
                    "resolution",
                    advanced=True,
                    default=512,
                    min=64,
                    max=4096,
                    step=8,
                    tooltip="Side of the square, in pixels. Encoders read 224 to 512; more costs nothing but memory.",
                ),
                io.Float.Input(
                    "sharpening",
                    advanced=True,
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="How much the square is sharpened, which brings out detail of a large picture made small; no "
                    "unit. Neutral: 0, not at all.",
                ),
                *box_inputs(),
                io.Mask.Input("mask", optional=True, tooltip="For the cut 'mask': 1 on what is to be cut out."),
                IPAFaceModel.Input(
                    "face_model",
                    display_name="face model",
                    optional=True,
                    tooltip="For the cut 'face'; from Load Face Model for IP-Adapter.",
                ),
                IPAAdapter.Input(
                    "adapter",
                    optional=True,
                    tooltip="Shows the pictures as this adapter's encoder will see them. Neutral: unconnected, which shows the "
                    "squares.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    "image", tooltip="The squares, for Encode Image for IP-Adapter or Apply IP-Adapter from Image."
                )
            ],
            is_output_node=True,  # seen without anything behind it
        )

    @classmethod
    @checked
    def execute(
        cls,
        image: Tensor,
        cut: str,
        margin: float,
        fit: str,
        pad_colour: str,
        resolution: int,
        sharpening: float,
        x: float,
        y: float,
        width: float,
        height: float,
        mask: Tensor | None = None,
        face_model: FaceModel | None = None,
        adapter: LoadedAdapter | None = None,
    ) -> io.NodeOutput:
        pictures = check_image(image).cpu()
        boxes: dict[str, Callable[[], list[Box]]] = {
            "none": lambda: [Box()] * len(pictures),
            "box": lambda: [Box(x, y, x + width, y + height)] * len(pictures),
            "mask": lambda: _masked(pictures, mask, margin),
            "face": lambda: _faces(pictures, face_model, margin),
        }
        squares = torch.stack(
            [
                sharpened(squared(part_of(picture, box), resolution, fit, pad_colour), sharpening)
                for picture, box in zip(pictures, boxes[cut](), strict=True)
            ]
        )
        return io.NodeOutput(squares, ui=ui.PreviewImage(_seen(squares, adapter), cls=cls))


def _masked(pictures: Tensor, mask: Tensor | None, margin: float) -> list[Box]:
    if mask is None:
        raise _missing("mask", "a MASK")
    masks = resized(check_mask(mask), (pictures.shape[1], pictures.shape[2]))
    if len(masks) not in (1, len(pictures)):
        raise BadInputError(
            f"{len(masks)} masks for {len(pictures)} images",
            expected="one mask, or one per image",
            action="connect masks that belong to these images",
        )
    return [widened(box_of_mask(each), margin) for each in masks.expand(len(pictures), -1, -1)]


def _faces(pictures: Tensor, face_model: FaceModel | None, margin: float) -> list[Box]:
    if face_model is None:
        raise _missing("face", "a face model (Load Face Model for IP-Adapter)")
    return [widened(box, margin) for box in boxes_of_faces(face_model, pictures)]


def _missing(choice: str, what: str) -> BadInputError:
    return BadInputError(
        f"the cut '{choice}' with nothing connected that tells it",
        expected=what,
        action=f"connect {what}, or choose another cut",
    )


def _seen(squares: Tensor, adapter: LoadedAdapter | None) -> Tensor:
    """The squares as they are, or as an adapter's encoder gets them."""
    if adapter is None or adapter.spec.face is not None or adapter.encoder is None:
        return squares
    return seen(adapter, choose(adapter), squares)
