"""What is given away holds names, no folders of the machine it was made on."""

import json
from pathlib import Path

import pytest

from ipadapter_core.file.container import read_tensors, write_safetensors
from ipadapter_trainer.convert.conversion import Hints, convert_file
from ipadapter_trainer.files.export import export_adapter
from ipadapter_trainer.files.facts import Preprocess, RunCounts, run_facts, without_folders
from support.training_states import run_config, tiny_ipadapter

CLIP = Preprocess(encoder_kind="CLIP", crop="center", size=32, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.2))
HOME = "/home/ada/secret"


def test_an_exported_file_and_its_card_name_no_folder_here(tmp_path: Path) -> None:
    (tmp_path / "encoder").mkdir()
    config = run_config(
        Path(HOME, "runs", "cats"),
        tmp_path / "encoder",
        base=f"{HOME}/models/sd15/",
        data={
            "more": ({"path": f"{HOME}/others", "image_root": "ada/secret/root"},),
            "path": f"{HOME}/pictures",
            "reference": "folder",
            "reference_folder": rf"C:\Users\ada{HOME}\crops",
        },
        cache={"path": "~/secret/cache"},
        adapter={"pretrained": "../secret/start.safetensors"},
        validation={"path": f"{HOME}/shards/{{00..09}}.tar", "prompts": ("either/or",), "references": f"{HOME}/mine"},
        export={"title": "Cats", "license": "CC0/1.0"},
    )
    facts = run_facts(config, CLIP, RunCounts(step=20, samples=160, uses_ema=False))
    path = tmp_path / "cats.safetensors"
    report = export_adapter(tiny_ipadapter(), path, precision=None, facts=facts)
    stated, card = read_tensors(path).metadata, report.card.read_text()
    for hidden in ("secret", "Users", str(tmp_path)):
        assert hidden not in json.dumps(stated)
        assert hidden not in card
    training = json.loads(stated["ipadapter.training"])
    assert (training["base_model"], training["encoder"]) == ("sd15", "encoder")
    assert "| base model | sd15" in card
    recipe = training["recipe"]
    assert recipe["data"]["path"] == "pictures"
    assert recipe["data"]["reference_folder"] == "crops"
    assert (recipe["data"]["more"][0]["path"], recipe["data"]["more"][0]["image_root"]) == ("others", "root")
    assert (recipe["train"]["output"], recipe["cache"]["path"]) == ("cats", "cache")
    assert recipe["adapter"]["pretrained"] == "start.safetensors"
    assert recipe["validation"]["path"] == "{00..09}.tar"
    assert recipe["validation"]["references"] == "mine"
    assert (recipe["validation"]["prompts"], recipe["export"]["license"]) == (["either/or"], "CC0/1.0"), "are no places"


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ("laion/CLIP-ViT-H-14", "laion/CLIP-ViT-H-14"),  # a hub repository says where anyone finds it
        ("tests/trainer", "trainer"),  # looks like one, and is a folder here
        ("sd15", "sd15"),
        ("h94/IP-Adapter/models/image_encoder", "h94/IP-Adapter/models/image_encoder"),
        ("owner/name/sub/x.safetensors@refs/pr/3", "owner/name/sub/x.safetensors@refs/pr/3"),
        ("tests/trainer/gone/files", "files"),  # of a folder that is here
        ("ada/../secret/files", "files"),
        ("/", "/"),
    ],
)
def test_repositories_of_the_hub_keep_their_names(given: str, named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    assert without_folders({"base_model": given}) == {"base_model": named}


def test_what_no_hub_has_is_none_of_its_places() -> None:
    places = {"output": "ada/secret/run", "image_root": "ada/secret"}
    stated = {"recipe": {"train": places, "cache": {"path": "ada/secret/cache"}, "data": {"path": "owner/data@v1"}}}
    assert without_folders(stated)["recipe"] == {
        "train": {"output": "run", "image_root": "secret"},
        "cache": {"path": "cache"},
        "data": {"path": "owner/data@v1"},
    }


def test_a_converted_file_names_no_folder_that_it_was_made_in(tmp_path: Path) -> None:
    adapter = tiny_ipadapter()
    counts = {"step": 3, "samples": 24, "seed": 0, "uses_ema": False, "trained_blocks": "all", "pairs": 9, "skipped": 0}
    stated = {"ipadapter.training": json.dumps({**counts, "recipe": {"base": {"model": f"{HOME}/sd15"}}})}
    write_safetensors(tmp_path / "old.safetensors", adapter.state_dict(), adapter.spec.to_metadata() | stated)
    convert_file(
        tmp_path / "old.safetensors",
        tmp_path / "new.safetensors",
        state=None,
        hints=Hints(encoder=f"{HOME}/clip", layer=None, negative=None),
        precision=None,
    )
    metadata = read_tensors(tmp_path / "new.safetensors").metadata
    assert "secret" not in json.dumps(metadata)
    assert json.loads(metadata["ipadapter.training"])["recipe"]["base"]["model"] == "sd15"
    assert json.loads(metadata["ipadapter.spec"])["encoder"]["name"] == "clip"
