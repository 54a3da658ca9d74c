"""`ipadapter sample`."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ipadapter_core.errors import BadInputError
from ipadapter_core.numbers import parse_numbers

from ..config import Precision, Quantization
from .options import AsJson
from .output import emit

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..watch.sampling import Sampler

Pictures = Annotated[
    list[Path],
    typer.Option(
        "--image", help="Reference picture, or a folder of them; may be given several times.", show_default=False
    ),
]


def sample(
    base: Annotated[str, typer.Option(help="Model: folder, .safetensors file or hub id.", show_default=False)],
    adapter: Annotated[Path, typer.Option(help="Adapter file.", show_default=False)],
    image: Pictures,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the pictures.", show_default=False)],
    encoder: Annotated[
        str | None, typer.Option(help="Image encoder: folder, file or hub id. What the adapter names if not given.")
    ] = None,
    face_model: Annotated[
        str | None, typer.Option(help="Folder of a face pack (buffalo_l), for adapters that read faces.")
    ] = None,
    base_config: Annotated[
        str | None, typer.Option(help="For a single file: folder or hub id with its configs and tokenizer.")
    ] = None,
    prompt: Annotated[
        list[str] | None, typer.Option(help="Text of the pictures; of several, each reference is drawn with each.")
    ] = None,
    negative_prompt: Annotated[
        str, typer.Option(help="What the pictures should not be; needs guidance that compares.")
    ] = "",
    strength: Annotated[str, typer.Option(help="Strengths of the image prompt; 0 is the base alone.")] = "0,0.5,1",
    count: Annotated[int, typer.Option(min=1, help="Pictures per reference and strength.")] = 1,
    steps: Annotated[int, typer.Option(help="Denoising steps (DDIM; Euler for flow models).")] = 30,
    guidance: Annotated[
        float | None,
        typer.Option(
            help="Guidance, 1 is off. If not given: 7.5 for UNets, 3.5 for FLUX.1-dev, which has it built in, 1 for "
            "schnell, 7 for SD3, 6 for Z-Image, 4 for Qwen-Image and Anima."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Noise of the pictures.")] = 0,
    size: Annotated[str, typer.Option(metavar="N or WxH", help="Pixels; 1024 for SDXL and later models.")] = "512",
    blocks: Annotated[str, typer.Option(help="Layer preset, such as style or composition.")] = "all",
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures drawn at once.")] = 4,
    precision: Annotated[
        Precision | None, typer.Option(help="Of the models: bf16, or fp32 on a CPU, if not given.")
    ] = None,
    as_json: AsJson = False,
    quantization: Annotated[
        Quantization,
        typer.Option(
            help="Keep the model's linear layers in 8 (fp8, int8) or 4 bits (nf4), as base.quantization does."
        ),
    ] = "none",
) -> None:
    """Draw pictures with an adapter and reference pictures, without ComfyUI.

    Each reference is drawn at each strength from the same noise; `sheet.png` shows all side by side. Layer, crop and
    negative are those stated in the adapter file.

    Example: `ipadapter sample --base sd15 --adapter mine.safetensors --encoder clip-vit-h --image cat.png -o out`
    """
    from accelerate import PartialState
    from tqdm import tqdm

    from ..config import BaseModelConfig
    from ..data.pictures import BrokenPictureError
    from ..files.adapter_file import open_adapter, usual_precision
    from ..models.loading import load_base
    from ..preflight import check_pictures_folder
    from ..watch.contact_sheet import save_grid
    from ..watch.references import with_texts
    from ..watch.sampling import Sampler, SampleSettings, encode_prompt, encode_reference, sample_grid

    settings = SampleSettings(
        strengths=tuple(parse_numbers(strength, "--strength")),
        steps=steps,
        guidance=guidance,
        seed=seed,
        size=_size(size),
        blocks=blocks,
        count=count,
        batch_size=batch_size,
    )
    pictures = [(name, _picture(path)) for given in image for name, path in _in(given)]
    texts = tuple(dict.fromkeys(prompt or ("",)))
    check_pictures_folder(output)
    _check_adapter(adapter, face_model)  # what is wrong is said before the models are loaded
    device = PartialState().device
    used = precision or usual_precision(device)
    asked = BaseModelConfig(model=base, config=base_config, precision=used, quantization=quantization)
    model = load_base(asked, device)
    opened = open_adapter(adapter, model, encoder, used, face_model=face_model)
    sampler = Sampler(model, settings, encode_prompt(model, negative_prompt))
    if negative_prompt and not sampler.is_guided:
        raise _negative_lost(sampler)
    try:
        references = [
            each
            for name, picture in pictures
            for each in with_texts(
                encode_reference(picture, name, base=model, reader=opened.reader, prompt=texts[0]), texts, model
            )
        ]
    except BrokenPictureError as error:
        raise BadInputError(
            f"--image {error.name} ({error.reason})",
            expected=f"a picture as {opened.network.spec.family} reads it",
            action="name another picture",
        ) from error
    began = time.perf_counter()
    with tqdm(total=settings.total_steps(len(references)), desc="drawing", unit=" steps") as bar:
        grid = sample_grid(sampler, opened.network, opened.no_image, references, bar.update)
    sheet, *files = save_grid(grid, output)
    result: dict[str, object] = {
        "sheet": str(sheet),
        "pictures": [str(path) for path in files] if as_json else len(files),
        "adapter": opened.network.spec.family,
        "encoder": opened.reader.name,
        "guidance": sampler.guidance,
        "seconds": round(time.perf_counter() - began, 1),
    }
    emit(result, as_json)


def _negative_lost(sampler: "Sampler") -> BadInputError:
    if not sampler.base.has_uncond:
        return BadInputError(
            f"--negative-prompt with {sampler.base.name}, which has its guidance built in: nothing is drawn from another prompt",
            expected="no negative prompt",
            action="leave it out, and say with --prompt what the pictures should be",
        )
    return BadInputError(
        f"--negative-prompt with guidance {sampler.guidance:g}, at which nothing is compared with it",
        expected="guidance above 1",
        action="set --guidance higher, or leave --negative-prompt out",
    )


def _check_adapter(file: Path, face_model: str | None) -> None:
    """Raises what `read_spec`, `check_family` and `find_pack` do, and BadInputError for a file that reads faces without
    what finds them."""
    from ipadapter_core.network.adapter import read_spec

    from ..files.families import check_family
    from ..readers.faces import find_pack

    spec = read_spec(file)
    check_family(spec)
    if spec.face is None:
        return
    if face_model is None:
        raise BadInputError(
            f"{file.name}, a {spec.family}, without --face-model",
            expected="the folder of an unpacked face pack such as buffalo_l, which finds the faces that it reads",
            action="name it with --face-model",
        )
    find_pack(face_model, "--face-model")


def _size(text: str) -> tuple[int, int]:
    """Width and height."""
    sides = text.lower().split("x")
    if not all(side.isdecimal() for side in sides) or len(sides) > 2:
        raise BadInputError(f"--size {text}", expected="a number or WIDTHxHEIGHT", action="write for instance 768x512")
    return int(sides[0]), int(sides[-1])


def _in(given: Path) -> list[tuple[str, Path]]:
    """Names and paths of the pictures that a path stands for: one, or those of a folder by name."""
    from ..data.folders import contents
    from ..data.pictures import SUFFIXES

    if not given.is_dir():
        return [(given.name, given)]
    found = contents(given).ending_in(SUFFIXES)
    if not found:
        raise BadInputError(
            f"--image {given}, a folder with no pictures in it", expected="pictures", action="name another folder"
        )
    return [(path.relative_to(given).as_posix(), path) for path in found]


def _picture(path: Path) -> "Image":
    from ..data.pictures import BrokenPictureError, FilePicture, decode

    try:
        return decode(FilePicture(path))
    except BrokenPictureError as error:
        raise BadInputError(
            f"--image {path} ({error.reason})", expected="a picture file", action="name another file"
        ) from error
