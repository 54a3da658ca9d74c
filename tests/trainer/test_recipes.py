"""Every shipped recipe runs: it loads, plans and takes two steps with tiny models of the classes it names."""

from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser

from ipadapter_trainer.cache.fill import fill
from ipadapter_trainer.config import Config
from ipadapter_trainer.config_file import read_config
from ipadapter_trainer.data.sources import open_sources
from ipadapter_trainer.loop import train
from ipadapter_trainer.metrics_log import read_records
from ipadapter_trainer.models.loading import load_base
from ipadapter_trainer.planning import make_plan
from ipadapter_trainer.readers.opening import open_reader
from ipadapter_trainer.state import find_checkpoints
from support.recipe_models import TinyWorld

CONFIGS = Path(__file__).parents[2] / "trainer" / "configs"
RECIPES = sorted(CONFIGS.glob("*.toml"))
LAUNCHES = sorted((CONFIGS / "accelerate").glob("*.yaml"))
POKEMON = [recipe for recipe in RECIPES if recipe.stem.startswith("pokemon_")]
# By --long alone: each of its parts comes in another recipe; Z-Image in the runs of tests/trainer/test_studio_run.py.
LIKE_OTHERS = {
    "demo_base",
    "demo_plus",
    "pokemon_sdxl_base",
    "pokemon_sdxl_plus",
    "pokemon_sdxl_plus_dinov2",
    "pokemon_sdxl_plus_dinov2_giant_last_hidden",
    "pokemon_sdxl_plus_dinov2_large",
    "sd15_plus",
    "sdxl_base",
    "sdxl_plus",
    "z_image_plus",
}
FAMILIES = {
    "sd35_large": "InstantX SD3.5",
    "face_outline": "FaceID",
    "anima_time_gate": "Anima LuciferTC",
}  # where no kind is in the name
# What a recipe is about may not be replaced by the tiny world: (section, keys that it may change).
REPLACED = {
    "base": {"model", "vae", "precision"},
    "encoder": {"model", "face_model", "precision"},
    "adapter": {"pretrained", "resampler_dim"},
    "data": {"path", "reference_folder", "resolution", "bucket_step", "workers", "shuffle_buffer"},
    "objective": set(),
    "optimizer": set(),
    "cache": {"path"},
    "train": {"output", "steps"},
    "checkpoint": set(),
    "validation": {"images", "samples", "sampler_steps", "clip_model"},
    "export": set(),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> TinyWorld:
    return TinyWorld(tmp_path_factory.mktemp("recipes"))


@pytest.mark.parametrize(
    "recipe",
    [pytest.param(path, id=path.stem, marks=[pytest.mark.long] * (path.stem in LIKE_OTHERS)) for path in RECIPES],
)
@pytest.mark.usefixtures("tiny_pe_core")
def test_recipe_plans_and_takes_two_steps(world: TinyWorld, recipe: Path) -> None:
    asked, config = read_config(recipe), world.config(recipe)
    changed = {
        (section, key)
        for section, values in config
        for key, value in values
        if getattr(getattr(asked, section), key) != value
    }
    assert all(key in REPLACED[section] for section, key in changed)
    plan = make_plan(config).to_json()
    assert str(plan["trained"]["adapter"]).endswith(FAMILIES.get(recipe.stem, asked.adapter.kind))
    assert plan["data"]["steps"] == 2
    if config.cache.path is not None:
        cpu = torch.device("cpu")
        reader = open_reader(config, cpu)
        fill(config, load_base(config.base, cpu, only=frozenset({"vae", "text"})), reader, open_sources(config))
    outcome = train(config)
    assert (outcome.step, outcome.is_finished) == (2, True)
    assert len(find_checkpoints(config.run)) == 1
    kinds = {record["kind"] for record in read_records(config.run)}
    watched = {"validation": asked.validation.every, "samples": asked.validation.sample_every}
    assert kinds >= {kind for kind, every in watched.items() if every is not None}


@pytest.mark.parametrize("recipe", POKEMON, ids=lambda recipe: recipe.stem)
def test_diffengine_recipe_has_its_numbers(recipe: Path) -> None:
    config = read_config(recipe)
    pictures, per_step = 833, config.train.batch_size * config.train.accumulate
    epochs = {"pokemon_sdxl_base": 50, "pokemon_sdxl_plus_pretrained": 10}.get(recipe.stem, 100)
    assert (config.train.batch_size, config.train.accumulate) == (1, 4)
    assert config.train.steps == -(-epochs * pictures // per_step)
    assert config.checkpoint.every == pictures // per_step
    objective = config.objective
    assert objective.drop_text + objective.drop_both == pytest.approx(0.1)
    assert objective.drop_image + objective.drop_both == pytest.approx(0.1)
    assert objective.drop_both == pytest.approx(0.1 * 0.1)


def test_diffengine_recipes_differ_in_encoder_and_start_alone() -> None:
    def common(config: Config) -> dict[str, object]:
        values = config.model_dump(exclude={"encoder", "adapter"})
        values["train"] = {key: value for key, value in values["train"].items() if key not in ("output", "steps")}
        return values

    first, *others = map(read_config, POKEMON)
    assert len(others) == 7
    assert all(common(other) == common(first) for other in others)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_recipe_says_what_it_is_and_how_to_run_it(recipe: Path) -> None:
    header = recipe.read_text(encoding="utf-8").partition("\n\n")[0]
    assert all(line.startswith("#") for line in header.splitlines())
    command = f"train trainer/configs/{recipe.name}"
    assert command in " ".join(header.replace("#", "").replace("\\", "").split())
    assert read_config(recipe).train.output == f"runs/{recipe.stem}"


@pytest.mark.parametrize("launch", LAUNCHES, ids=lambda launch: launch.stem)
def test_accelerate_reads_launch_config(launch: Path) -> None:
    config = load_config_from_file(str(launch))
    assert config.num_processes == 8
    assert config.mixed_precision == "no"  # unquoted, YAML would take it for false
    options = vars(launch_command_parser().parse_args(["trainer"]))
    assert {*config.fsdp_config, *config.deepspeed_config} <= options.keys()
