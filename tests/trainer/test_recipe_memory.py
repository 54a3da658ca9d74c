"""`ipadapter plan` says the memory of every kind of base and adapter there is a recipe for, also in few bits."""

from pathlib import Path

import pytest

from ipadapter_trainer.config import Config
from ipadapter_trainer.plan_words import plan_in_words
from ipadapter_trainer.planning import make_plan
from support.recipe_models import TinyWorld

CONFIGS = Path(__file__).parents[2] / "trainer" / "configs"
RECIPES = ("face_outline", "flux_base", "sd35_large", "z_image_plus", "qwen_image_plus", "anima_plus", "sdxl_plus")
LONG = {"face_outline", "flux_base", "z_image_plus", "qwen_image_plus", "sd35_large", "sdxl_plus"}
FEWER = ("fp8", "nf4")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> TinyWorld:
    return TinyWorld(tmp_path_factory.mktemp("recipes"))


def planned(config: Config, quantization: str) -> dict[str, int]:
    config = config.model_copy(update={"base": config.base.model_copy(update={"quantization": quantization})})
    plan = make_plan(config).to_json()
    memory = plan["memory"]
    assert isinstance(memory, dict)
    assert memory["total"] == sum(bytes_ for name, bytes_ in memory.items() if name != "total")
    assert "frozen model" in str(plan_in_words(plan, config, memory=None, file="my.toml")["memory"])
    return memory


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.long] * (name in LONG)) for name in RECIPES])
@pytest.mark.usefixtures("bitsandbytes", "tiny_pe_core")
def test_memory_of_a_recipe(world: TinyWorld, name: str) -> None:
    config = world.config(CONFIGS / f"{name}.toml")
    whole = planned(config, "none")
    assert whole["adapter"] > 0
    assert whole["activations"] > 0
    for quantization in FEWER:
        fewer = planned(config, quantization)
        assert 0 < fewer["frozen_model"] < whole["frozen_model"]
        assert all(fewer[part] == whole[part] for part in ("adapter", "gradients", "optimizer", "moving_average"))


def test_networks_for_faces_are_in_the_memory_of_the_computer(world: TinyWorld) -> None:
    config = world.config(CONFIGS / "face_outline.toml")
    plan = make_plan(config).to_json()
    pack = world.root / "face_pack"
    assert plan["host"] == {"face_networks": sum(file.stat().st_size for file in pack.glob("*.onnx")), "processes": 1}
    said = str(plan_in_words(plan, config, memory=None, file="my.toml")["memory"])
    assert said.endswith("in the computer's memory for one process")
    several = plan | {"host": {"face_networks": 190 * 10**6, "processes": 4}}
    said = str(plan_in_words(several, config, memory=None, file="my.toml")["memory"])
    assert said.endswith("; face networks of 190 MB in the computer's memory for each of 4 data workers")
    pictures = make_plan(world.config(CONFIGS / "sd15_base.toml")).to_json()
    assert "host" not in pictures
