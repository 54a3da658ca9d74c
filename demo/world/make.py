"""Make the demo's models from nothing, within 4 hours on 2 CPU cores. Cut off at any moment, it goes on where it was.

Examples:
  demo/make.sh                 everything, into demo/assets
  demo/make.sh base            the base model, and what it needs
  demo/make.sh --work /data    keep what is half made there
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from functools import cached_property, partial
from pathlib import Path

import torch
from diffusers import AutoencoderTiny, UNet2DConditionModel
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm
from transformers import CLIPImageProcessor, CLIPTokenizer, CLIPVisionModelWithProjection

from demo.assemble import (
    ADAPTERS,
    ASSETS,
    AUTOENCODER_FILE,
    ENCODER_FOLDER,
    UNET_FILE,
    assemble_base,
)
from demo.models import DIFFUSERS, ENCODER
from ipadapter_core.file.container import write_aside, write_safetensors
from ipadapter_trainer.config_file import read_config

from . import pictures as emoji
from .adapter_start import start_adapter
from .autoencoder import latents_of, train_autoencoder, train_decoder
from .base import train_base
from .encoder import train_encoder
from .lessons import captions_of
from .pack import pack
from .packages import PackageError
from .pairs import write_pairs
from .text import build_text_encoder, encode, load_tokenizer

ROOT = Path(__file__).parents[2]
TEXT_SHARD = 512  # captions
EXPORTED = "adapter.safetensors"  # of a finished run


class World:
    """Everything that is made, each part when it is first asked for.

    Args:
        work: folder for what is half made; nothing in it is needed afterwards.
    """

    def __init__(self, work: Path) -> None:
        self.work = work

    @cached_property
    def pictures(self) -> list[emoji.Picture]:
        return emoji.write_pictures(self.work / "pictures", self.work / "packages")

    @cached_property
    def pixels(self) -> Tensor:
        pixels = torch.from_numpy(emoji.read_pixels(self.work / "pictures", self.pictures))
        return pixels.permute(0, 3, 1, 2).contiguous()

    @cached_property
    def tokenizer(self) -> CLIPTokenizer:
        return load_tokenizer(Path(os.environ["COMFYUI_PATH"]))

    @cached_property
    def _encoding(self) -> AutoencoderTiny:
        """The autoencoder, of which only the decoder still changes."""
        return train_autoencoder(self.pixels, self.work / "autoencoder")

    @cached_property
    def latents(self) -> Tensor:
        return latents_of(self._encoding, self.pixels)

    @cached_property
    def autoencoder(self) -> AutoencoderTiny:
        return train_decoder(self._encoding, self.pixels, self.latents, self.work / "autoencoder")

    @cached_property
    def text(self) -> dict[str, Tensor]:
        """Caption to (77, 768), float16."""
        captions = sorted({text for picture in self.pictures for text in captions_of(picture).values()})
        folder = self.work / "text"
        folder.mkdir(parents=True, exist_ok=True)
        model = None
        states = []
        for start in tqdm(range(0, len(captions), TEXT_SHARD), desc="captions"):
            path = folder / f"{start:05}.safetensors"
            if not path.exists():
                model = model or build_text_encoder()
                some = captions[start : start + TEXT_SHARD]
                encoded = [encode(model, self.tokenizer, some[i : i + 16]) for i in range(0, len(some), 16)]
                _write(path, {"states": torch.cat(encoded).half()})
            states.append(load_file(path)["states"])
        return dict(zip(captions, torch.cat(states), strict=True))

    @cached_property
    def base(self) -> UNet2DConditionModel:
        return train_base(self.pictures, self.latents, self.text, self.work / "base")

    @cached_property
    def encoder(self) -> CLIPVisionModelWithProjection:
        return train_encoder(self.pictures, self.pixels, self.tokenizer, self.work / "encoder")

    @cached_property
    def models(self) -> Path:
        """Assets of base and encoder, and what `ipadapter train` reads of them."""
        ASSETS.mkdir(exist_ok=True)
        _write(ASSETS / UNET_FILE, pack(self.base.state_dict()))
        _write(ASSETS / AUTOENCODER_FILE, {name: value.half() for name, value in self.autoencoder.state_dict().items()})
        self.encoder.half().save_pretrained(ASSETS / ENCODER_FOLDER)
        CLIPImageProcessor(size=emoji.SIZE, crop_size=emoji.SIZE).save_pretrained(ASSETS / ENCODER_FOLDER)
        assemble_base(self.work / "models", ASSETS)
        return self.work / "models"

    @cached_property
    def adapters(self) -> list[Path]:
        """Trained by the program that users train with, from recipes they can read."""
        write_pairs(self.pictures, "pictures", self.work / "pairs.jsonl")
        made = []
        for name in ADAPTERS:
            recipe = ROOT / "trainer" / "configs" / f"{Path(name).stem}.toml"
            run = self.work / "runs" / recipe.stem
            places = {
                "base.model": self.models / DIFFUSERS,
                "encoder.model": self.models / ENCODER,
                "data.path": self.work / "pairs.jsonl",
                "cache.path": self.work / "cache",
                "train.output": run,
            }
            if not (run / EXPORTED).exists():
                if read_config(recipe).adapter.pretrained is not None:
                    places["adapter.pretrained"] = self._start(recipe, places)
                settings = [text for setting in _settings(places) for text in ("--set", setting)]
                for command in ("cache", "train"):
                    subprocess.run(
                        [sys.executable, "-m", "ipadapter_trainer", command, recipe, *settings], cwd=ROOT, check=True
                    )
            made.append(Path(shutil.copyfile(run / EXPORTED, ASSETS / Path(name).name)))
        return made

    def _start(self, recipe: Path, places: Mapping[str, Path]) -> Path:
        """What an adapter starts from."""
        path = self.work / f"{recipe.stem}_start.safetensors"
        encode = partial(latents_of, self.autoencoder)
        start_adapter(recipe, _settings(places), self.pictures, self.pixels, encode, path)
        return path


PARTS = ("pictures", "autoencoder", "text", "base", "encoder", "models", "adapters")


def _settings(places: Mapping[str, Path]) -> list[str]:
    """As `ipadapter --set` takes them."""
    return [f'{key}="{place.resolve()}"' for key, place in places.items()]


def _write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    write_aside(path, lambda part: write_safetensors(part, tensors, {}))


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="demo/make.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", nargs="?", choices=PARTS, help="only this, and what it needs (default: all)")
    parser.add_argument("--work", type=Path, default=Path("out/world"), help="for what is half made")
    args = parser.parse_args()
    torch.set_flush_denormal(True)  # averages of dead channels fade to numbers that CPUs are very slow with
    world = World(args.work)
    start = time.monotonic()
    try:
        for part in (args.part,) if args.part else PARTS:
            getattr(world, part)
            print(f"{part}: made ({time.monotonic() - start:.0f} s)", file=sys.stderr)
    except PackageError as error:
        print(f"make.sh: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
