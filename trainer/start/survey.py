"""What a data set and a machine are, as far as a first config asks."""

import json
import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from ipadapter_core.encoder.known import read_encoder_folder
from ipadapter_core.errors import BadInputError
from ipadapter_core.file.container import read_json
from ipadapter_core.file.spec import Feature

from ..config import DataConfig
from ..data.pictures import BrokenPictureError, upright_size
from ..data.records import DataError, Records
from ..data.sources import open_source
from ..hub import HubPlace

_LOOKED_AT = 1000  # pictures, spread evenly
_PERCENTILE = 4  # the side that three in four pictures have
_INDEXES = ("model_index.json", "modular_model_index.json")
_TRANSFORMERS = {  # pattern of their names, and of their pipelines' in diffusers: in words, and a recipe
    r"(?<![a-z])flux": ("FLUX.1", "flux_base"),
    r"(?<![a-z])sd[-_ ]?3|stable[-_ ]?diffusion[-_ ]?3": ("SD3.5", "sd35_large"),
    r"z[-_ ]?image": ("Z-Image", "z_image_plus"),
    r"qwen[-_ ]?image": ("Qwen-Image", "qwen_image_plus"),
    r"(?<![a-z])anima(?![a-z])|^animamodular": ("Anima", "anima_plus"),
}
_PUBLISHED_TEXT = {768: "SD1.5", 2048: "SDXL"}


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """A data set.

    Attributes:
        count, captioned: pictures, and how many of them have a caption.
        side: of a square of the area that three in four pictures have at least.
        cut: share of a picture that a square leaves out, on average.
        groups: sub-folders with at least two pictures, if most pictures lie in such ones; else 0.
        broken: of those looked at, what cannot be read.
    """

    count: int
    captioned: int
    side: int
    cut: float
    groups: int
    broken: int


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Attributes: memory: bytes of the GPU; None without one. cores: of the processor."""

    memory: int | None
    has_bf16: bool
    cores: int


@dataclass(frozen=True, kw_only=True)
class Models:
    """What is trained for.

    Attributes:
        is_sdxl: by the model's files or, on the hub, by its name.
        fits_published: the published plus adapters read this encoder and act on this base.
    """

    base: str
    encoder: str
    is_sdxl: bool
    fits_published: bool


def survey(path: str) -> Pictures:
    """Look at the captions of all pictures and at the headers of some.

    Raises:
        DataError: no data set, a stream, or nothing in it that can be read.
    """
    records = open_source(DataConfig(path=path, caption=""))
    if not isinstance(records, Records):
        raise DataError(
            f"{path} is streamed, and its pictures cannot be looked at beforehand",
            expected="a folder, a list file or a Hugging Face dataset",
            action="start from trainer/configs/sd15_base.toml and set data.path",
        )
    chosen = range(0, len(records), max(1, len(records) // _LOOKED_AT))
    sizes, broken = [], []
    for index in chosen:
        try:
            sizes.append(upright_size(records[index].image))
        except BrokenPictureError as error:
            broken.append(error)
    if not sizes:
        raise DataError(
            f"none of {len(chosen)} pictures can be read, the first {broken[0].name} ({broken[0].reason})",
            expected="pictures",
            action="name another folder",
        )
    sides = sorted(round((height * width) ** 0.5) for height, width in sizes)
    groups = Counter(record.group for record in records)
    several = [name for name, count in groups.items() if name and count > 1]
    is_grouped = len(several) > 1 and sum(groups[name] for name in several) > len(records) / 2
    return Pictures(
        count=len(records),
        captioned=sum(bool(record.caption) for record in records),
        side=sides[len(sides) // _PERCENTILE],
        cut=sum(1 - min(size) / max(size) for size in sizes) / len(sizes),
        groups=len(several) if is_grouped else 0,
        broken=len(broken),
    )


def this_machine() -> Machine:
    import torch

    cores = os.cpu_count() or 1
    if not torch.cuda.is_available():
        return Machine(memory=None, has_bf16=False, cores=cores)
    memory = torch.cuda.get_device_properties(0).total_memory
    return Machine(memory=memory, has_bf16=torch.cuda.is_bf16_supported(including_emulation=False), cores=cores)


def find_models(base: str, encoder: str) -> Models:
    """What base and encoder are, from their folders; the hub's are judged by their names.

    Raises:
        UnreadableFileError: an encoder's folder that holds none.
        BadInputError: a transformer, for which nothing is suggested.
    """
    _check_is_unet(base)
    unet = Path(base) / "unet" / "config.json"
    if unet.is_file():
        text_width = json.loads(unet.read_text(encoding="utf-8")).get("cross_attention_dim")
        is_sdxl = (Path(base) / "text_encoder_2").is_dir()
        fits_base = _PUBLISHED_TEXT.get(text_width) == ("SDXL" if is_sdxl else "SD1.5")
    else:
        place = HubPlace.of(base)
        is_sdxl = "xl" in Path(place.repository if place else base).name.lower()
        fits_base = "2-1" not in base and "stable-diffusion-2" not in base
    width = read_encoder_folder(Path(encoder)).dim(Feature.HIDDEN_STATES) if Path(encoder).is_dir() else None
    fits_encoder = width == _PUBLISHED_WIDTH if width is not None else "CLIP-ViT-H-14" in encoder
    return Models(base=base, encoder=encoder, is_sdxl=is_sdxl, fits_published=fits_base and fits_encoder)


def _check_is_unet(base: str) -> None:
    place = HubPlace.of(base)
    name, known_by = Path(place.unpinned if place else base).name, "name"
    for index in _INDEXES:
        if (file := Path(base) / index).is_file():
            stated = read_json(file, "index")
            name, known_by = str(stated.get("_class_name") if isinstance(stated, dict) else None), "files"
    for pattern, (words, recipe) in _TRANSFORMERS.items():
        if re.search(pattern, name.lower()):
            raise BadInputError(
                f"--base {base}, which is {words} by its {known_by}",
                expected="SD1.5, SDXL or what is made from them: for others nothing is suggested",
                action=f"copy trainer/configs/{recipe}.toml and set base.model, data.path, data.format and train.output",
            )


_PUBLISHED_WIDTH = 1280  # of CLIP ViT-H's hidden states
