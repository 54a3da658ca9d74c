"""`IPATrain`: an adapter trained from the page."""

import numpy as np
import torch
from comfy_api.latest import io, ui
from PIL import Image
from torch import Tensor

from ...ipadapter_core.encoder.pixels import check_image
from ...ipadapter_core.errors import BadInputError
from ..arrivals import checked
from ..loading import open_adapter
from ..paths import AUTO, NONE, adapter_files, fingerprint
from ..sockets import CATEGORY, IPAAdapter
from ..training.batch import captions_of, write_batch
from ..training.config import KINDS, LARGEST_SEED, Asked
from ..training.places import (
    base_model,
    base_models,
    diffusers_folders,
    encoder,
    encoders,
    picture_files,
    picture_folder,
    picture_folders,
    place_of,
    start_file,
)
from ..training.session import storage, train

_MOST = 10_000_000  # steps
_SIDE = 64  # pixels of a picture that stands for none
_GREY = 0.125


class IPATrain(io.ComfyNode):
    """Train, watch, stop, go on."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IPATrain",
            display_name="Train IP-Adapter",
            category=CATEGORY,
            description="Trains an IP-Adapter from your pictures, and shows loss and samples meanwhile. Interrupt it at any "
            "time: queued again with the same name it goes on. The finished file is listed in Load IP-Adapter.",
            search_aliases=["train ipadapter", "finetune", "training", "make adapter", "learn style"],
            inputs=[
                io.Combo.Input(
                    "folder",
                    options=[NONE, *picture_folders()],
                    tooltip="A folder of pictures in ComfyUI's input folder; the caption of cat.jpg is in cat.txt beside "
                    "it. 'none' if you connect images.",
                ),
                io.Combo.Input(
                    "base_model",
                    display_name="base model",
                    options=base_models(),
                    tooltip="The SD1.5, SD2.x or SDXL model to train for: a folder of models/diffusers (its name ends in "
                    "/), or a file of models/checkpoints.",
                ),
                io.Combo.Input(
                    "image_encoder",
                    display_name="image encoder",
                    options=encoders(),
                    tooltip="A folder of models/clip_vision with a transformers model. The adapter will need this encoder.",
                ),
                io.Combo.Input(
                    "kind",
                    options=list(KINDS),
                    default=KINDS[0],
                    tooltip="plus: closer to the reference. base: smaller, and freer.",
                ),
                io.Int.Input(
                    "steps",
                    default=0,
                    min=0,
                    max=_MOST,
                    tooltip="Steps in all, those of earlier queues included. 0 is neutral: what fits your pictures.",
                ),
                io.Int.Input(
                    "resolution",
                    default=0,
                    min=0,
                    max=4096,
                    step=8,
                    tooltip="Side of the training pictures in pixels, a multiple of 8. 0 is neutral: what fits model and "
                    "pictures.",
                ),
                io.Float.Input(
                    "learning_rate",
                    display_name="learning rate",
                    default=0.0,
                    min=0.0,
                    max=10.0,
                    step=0.00001,
                    round=False,
                    tooltip="Size of a step; no unit. 0 is neutral: the recipe's, 0.0001 from nothing and 0.00002 from a "
                    "finished adapter.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=LARGEST_SEED,
                    control_after_generate=False,
                    tooltip="What is random follows from it; it cannot change between queues of one name.",
                ),
                io.String.Input(
                    "name",
                    default="my adapter",
                    tooltip="Name of the training and of the adapter's file; the same name goes on with the same training. "
                    "Neutral: as is.",
                ),
                io.Image.Input(
                    "images",
                    optional=True,
                    tooltip="Pictures to train on in place of a folder. Neutral: unconnected.",
                ),
                io.String.Input(
                    "captions",
                    default="",
                    multiline=True,
                    optional=True,
                    tooltip="What the connected images show: a line for each, or one line for all. Neutral: empty.",
                ),
                io.Combo.Input(
                    "start_from",
                    display_name="start from",
                    options=[NONE, *adapter_files()],
                    default=NONE,
                    optional=True,
                    tooltip="A finished adapter of this kind to go out from: with less than some thousand pictures, choose "
                    "a published one that fits model and encoder. Neutral: none.",
                ),
                io.Combo.Input(
                    "base_config",
                    display_name="base config",
                    options=[AUTO, *diffusers_folders()],
                    default=AUTO,
                    optional=True,
                    advanced=True,
                    tooltip="For a base model that is a single file: the folder of models/diffusers whose configs and "
                    "tokenizer describe it. Neutral: auto, one of the same kind.",
                ),
            ],
            outputs=[
                IPAAdapter.Output("adapter", tooltip="The finished adapter with its image encoder."),
                io.Image.Output("curve", tooltip="The losses by step."),
                io.Image.Output(
                    "samples", tooltip="References, and what was drawn from them last; grey if nothing was."
                ),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, folder: str | None = None, **_others: object) -> str:
        # of a linked input ComfyUI gives None
        return "" if folder in (None, NONE) else fingerprint(picture_files(folder))

    @classmethod
    @checked
    def execute(
        cls,
        folder: str,
        base_model: str,
        image_encoder: str,
        kind: str,
        steps: int,
        resolution: int,
        learning_rate: float,
        seed: int,
        name: str,
        images: Tensor | None = None,
        captions: str = "",
        start_from: str = NONE,
        base_config: str = AUTO,
    ) -> io.NodeOutput:
        place = place_of(name)
        base, described_by = _base_model(base_model, base_config)
        if (images is None) == (folder == NONE):
            raise BadInputError(
                "neither a folder nor images" if images is None else "a folder and images at once",
                expected="one of them",
                action="choose a folder, or connect images and set folder to 'none'",
            )
        asked = Asked(
            pictures=place.pictures if images is not None else picture_folder(folder),
            base=base,
            described_by=described_by,
            encoder=encoder(image_encoder),
            kind=kind,
            start_from=start_file(start_from),
            steps=steps,
            resolution=resolution,
            learning_rate=learning_rate,
            seed=seed,
        )
        if images is not None:
            images = check_image(images)
            with storage(place):
                write_batch(images, captions_of(captions, len(images)), place.pictures)
        outcome = train(asked, place, cls.hidden.unique_id if cls.hidden else None)
        adapter = open_adapter(outcome.adapter.name, image_encoder, 0)
        curve = _image(outcome.curve)
        samples = torch.full((1, _SIDE, _SIDE, 3), _GREY) if outcome.samples is None else _image(outcome.samples)
        shown = [curve] if outcome.samples is None else [curve, samples]
        previews = [preview for picture in shown for preview in ui.PreviewImage(picture, cls=cls).values]
        return io.NodeOutput(adapter, curve, samples, ui={"images": previews, "animated": (False,)})


_base_model = base_model  # execute has an input of that name


def _image(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(picture).astype(np.float32) / 255)[None]
