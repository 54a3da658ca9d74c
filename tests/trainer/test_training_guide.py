"""What docs/training.md says is so: its config reads, its commands run in their order, its tables are the code's."""

import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch
from typer.testing import CliRunner

from ipadapter_trainer.cli import COMMANDS, app
from ipadapter_trainer.config_file import parse_config
from ipadapter_trainer.resume.identify import deciding_settings
from support.published import write_bin
from support.training import write_pictures
from support.training_states import write_accelerate_state

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
NOT_RUN = """
git clone --depth 1 https://github.com/ipadapter-studio/ipadapter-studio
cd ipadapter-studio
pip install -e '.[train]'
hf download stable-diffusion-v1-5/stable-diffusion-v1-5 --local-dir models/sd15
hf download laion/CLIP-ViT-H-14-laion2B-s32B-b79K --local-dir models/encoder --include "*.json" "*.txt" "model.safetensors"
tensorboard --logdir runs/mine
accelerate launch --config_file trainer/configs/accelerate/ddp_8gpu.yaml -m ipadapter_trainer train my.toml
accelerate launch -m ipadapter_trainer cache my.toml
"""
SMALL: dict[str, dict[str, Any]] = {
    "data": {"resolution": 64, "workers": 0},
    "train": {"steps": 2, "batch_size": 2, "log_every": 1},
    "checkpoint": {"every": 2},
    "validation": {"every": 2, "images": 4, "timesteps": [500], "sample_every": 2, "samples": 1, "sampler_steps": 1},
}
SMALLER_WORDS = {
    "train.steps=6000": "train.steps=3",
    "min_snr_gamma=5": "min_snr_gamma=5 --set train.steps=1",
    "step-00005000": "step-00000002",
}
SMALLER_OPTIONS = {"sample": ["--size", "64", "--steps", "1"]}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", GUIDE, re.DOTALL | re.MULTILINE)


def commands(language: str) -> list[str]:
    return "".join(blocks(language)).splitlines()


def as_written() -> dict[str, Any]:
    (text,) = blocks("toml")
    return tomllib.loads(text)


@pytest.fixture
def place(
    tmp_path: Path,
    small_base_folder: Callable[..., Path],
    encoder_folder: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """A folder with everything where the guide says it is, but small."""
    monkeypatch.chdir(tmp_path)
    Path("models").mkdir()
    Path("models/sd15").symlink_to(small_base_folder())
    Path("models/encoder").symlink_to(encoder_folder())
    write_pictures(Path("pictures"), 8)
    Path("pictures/0.png").rename("pictures/cat.jpg")
    Path("pictures/0.txt").rename("pictures/cat.txt")
    for folder in ("ipadapter", "clip_vision"):
        Path("ComfyUI/models", folder).mkdir(parents=True)
    official = write_accelerate_state(Path("checkpoint-10000"))
    only_projection = {n.removeprefix("image_proj."): t for n, t in official.expected.items() if n.startswith("image_")}
    write_bin(Path("ip_adapter.bin"), {"image_proj": only_projection, "ip_adapter": {}})
    config = as_written()
    small = {name: {**config.get(name, {}), **SMALL.get(name, {})} for name in {*config, *SMALL}}
    Path("my.toml").write_text(tomli_w.dumps(small), encoding="utf-8")
    return tmp_path


def run(command: str) -> None:
    for full, small in SMALLER_WORDS.items():
        command = command.replace(full, small)
    program, *arguments = shlex.split(command)
    if program != "ipadapter":
        subprocess.run([program, *arguments], check=True, timeout=30)
        return
    result = CliRunner().invoke(app, [*arguments, *SMALLER_OPTIONS.get(arguments[0], [])])
    assert result.exit_code == 0, f"{command}\n{result.output}\n{result.exception!r}"


def promised_in_run_folder() -> set[str]:
    table, _, _ = GUIDE.partition("| in `runs/mine/` |")[2].partition("\n## ")
    named = " ".join(row.split("|")[1] for row in table.splitlines() if row.startswith("| `"))
    return {re.sub("step-[0-9]+", "step-00000002", name) for name in re.findall("`([^`]+)`", named)}


@pytest.mark.slow
def test_the_guide_works_from_pictures_to_pictures(place: Path) -> None:
    listed = commands("sh")
    assert {line.split()[1] for line in listed if line.startswith("ipadapter")} == COMMANDS.keys()
    for command in listed:
        run(command)
    missing = {name for name in promised_in_run_folder() if not Path("runs/mine", name).exists()}
    assert missing == {"skipped.jsonl"}  # no picture is broken
    assert Path("ComfyUI/models/ipadapter/mine.safetensors").is_file()
    assert Path("ComfyUI/models/clip_vision/encoder/config.json").is_file()
    (code,) = blocks("python")
    Path("guide.py").write_text(
        code.replace('pipe("", ', 'pipe("", height=64, width=64, ').replace("steps=30", "steps=1")
    )
    with torch.no_grad():
        scope = runpy.run_path("guide.py")
    assert scope["image"].size == (64, 64)
    assert Path("out/sheet.png").is_file()


def test_only_what_needs_a_network_a_gpu_or_a_browser_is_not_run() -> None:
    assert commands("console") == NOT_RUN.strip().splitlines()


def test_the_config_shown_is_one() -> None:
    config = parse_config(as_written(), "the guide")
    assert (config.base.model, config.data.path, config.train.output) == ("models/sd15", "pictures", "runs/mine")


def test_the_tables_of_settings_are_those_of_the_code() -> None:
    script = runpy.run_path(str(ROOT / "docs" / "config_table.py"))
    _, _, rest = GUIDE.partition(script["BEGIN"])
    written, end, _ = rest.partition(script["END"])
    assert end
    assert written == f"\n{script['render']()}\n", "run: scripts/env.sh python docs/config_table.py"


def test_what_must_stay_and_what_may_change_is_what_the_code_says() -> None:
    (must, may) = re.search(r"These must\nstay: (.*?)All else may change(.*?)With `schedule", GUIDE, re.DOTALL).groups()
    config = parse_config(as_written(), "the guide")
    settings = {f"{section}.{key}" for section, keys in config.model_dump().items() for key in keys}
    products = {"train.batch_size", "train.accumulate", "data.workers"}
    of_models = {"encoder.feature", "encoder.layer", "encoder.crop"}
    decides = deciding_settings(config, is_stream=True).keys() | products | of_models
    named = set(re.findall(r"`([a-z_]+\.[a-z_]+)`", must))
    assert named == {name for name in decides if not name.startswith(("objective.", "data."))} | (
        {"data.workers", "data.shuffle_buffer"}
    )
    free = set(re.findall(r"`([a-z_]+\.[a-z_]+)`", may))
    assert free <= settings - decides
    assert free > {"optimizer.learning_rate", "base.precision", "cache.path"}


def test_links_lead_somewhere() -> None:
    headings = re.findall(r"^#+ (.+)$", GUIDE, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
    for target in re.findall(r"\]\(([^)]+)\)", GUIDE):
        place, _, anchor = target.partition("#")
        if target.startswith("https:"):
            continue
        assert (ROOT / "docs" / place).exists(), target
        assert place or anchor in anchors, target
