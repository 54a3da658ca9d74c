"""An adapter that the plain loop of `official_loop.py` trains as long as ours: as many steps, with the same batch size,
learning rate, base, encoder, pictures and captions. Written once for each state of these.

The loop takes the target picture as the reference, as the official tutorial does; our recipe's references of another
style cannot be told to it. Texts are few and their encoder is frozen, so each is encoded once: this changes the time
only.

    python bench/fidelity_official.py --models MODELS --pictures PICTURES --output FILE
"""

import argparse
import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from harness import ROOT
from official_loop import OfficialLoop, Settings, official_train
from torch import Tensor

from demo.models import DIFFUSERS, ENCODER
from demo.world.pairs import pairs
from demo.world.pictures import SIZE, read_list
from ipadapter_core.file.container import write_aside
from trainer.config import Config
from trainer.config_file import read_config

RECIPE = ROOT / "trainer" / "configs" / "demo_base.toml"


class TextOnceLoop(OfficialLoop):
    """The official loop with a memory for the states of each caption."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._states: dict[tuple[int, ...], Tensor] = {}

    def encode_text(self, tokens: Tensor) -> Tensor:
        keys = [tuple(row) for row in tokens.tolist()]
        for key, row in zip(keys, tokens, strict=True):
            if key not in self._states:
                self._states[key] = super().encode_text(row[None])
        return torch.cat([self._states[key] for key in keys])


def official_adapter(models: Path, pictures: Path, cache: Path) -> Path:
    """The file, trained in a process of its own if it is not there. Beside it FILE.json has the seconds."""
    recipe = read_config(RECIPE)
    files = sorted((models / DIFFUSERS / "unet").glob("*.safetensors")) + sorted(
        (models / ENCODER).glob("*.safetensors")
    )
    digest = hashlib.sha256(repr(_settings(recipe)).encode())
    for file in files:
        digest.update(file.read_bytes())
    path = cache / f"official-{digest.hexdigest()[:12]}.safetensors"
    if not path.exists():
        command = [sys.executable, __file__, "--models", str(models), "--pictures", str(pictures)]
        subprocess.run([*command, "--output", str(path)], check=True, stdout=sys.stderr)
    return path


def train(models: Path, pictures: Path, output: Path, steps: int | None = None) -> None:
    """Train; the file gets its name when it is whole."""
    recipe = read_config(RECIPE)
    output.parent.mkdir(parents=True, exist_ok=True)
    data = pictures / "official.json"
    rows = [{"image_file": target, "text": caption} for target, _, caption in pairs(read_list(pictures))]
    data.write_text(json.dumps(rows), encoding="utf-8")
    settings = Settings(models / DIFFUSERS, models / ENCODER, data, **_settings(recipe))
    steps = steps or recipe.train.steps
    start = time.monotonic()

    def make(path: Path) -> None:
        official_train(settings, path, steps, TextOnceLoop)
        facts = {"steps": steps, "seconds": round(time.monotonic() - start), **_settings(recipe)}
        output.with_name(f"{output.name}.json").write_text(json.dumps(facts), encoding="utf-8")

    write_aside(output, make)


def _settings(recipe: Config) -> dict[str, Any]:
    return {
        "resolution": SIZE,
        "batch_size": recipe.train.batch_size,
        "learning_rate": recipe.optimizer.learning_rate,
        "seed": recipe.train.seed,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--pictures", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, help="default: those of the recipe of our base adapter")
    args = parser.parse_args()
    train(args.models, args.pictures, args.output, args.steps)


if __name__ == "__main__":
    main()
