"""Models, encoders, adapters and data sets by their place on the hub: repository, sub-folder, file and revision."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors.torch import load_file, save_file

from ipadapter_core.network.adapter import save_adapter
from ipadapter_trainer.backbones.unet import UNetBackbone
from ipadapter_trainer.config import AdapterConfig, BaseModelConfig, DataConfig, EncoderConfig, ValidationConfig
from ipadapter_trainer.data.records import DataError
from ipadapter_trainer.data.sources import load_records
from ipadapter_trainer.hub import HubPlace, ModelNotFoundError
from ipadapter_trainer.models.image_encoder import load_image_encoder
from ipadapter_trainer.models.loading import load_base
from ipadapter_trainer.models.network import new_adapter
from ipadapter_trainer.preflight import check_before_models
from ipadapter_trainer.readers.pictures import PictureReader
from ipadapter_trainer.resume.identity import Keys
from ipadapter_trainer.run import open_run
from ipadapter_trainer.watch.metrics import load_judge
from support.encoders import write_folder
from support.hub_cache import FIRST, SECOND, put, use_cache
from support.ldm_names import write_single_file
from support.recipe_models import write_judge
from support.training import make_config, write_pictures

CPU = torch.device("cpu")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return use_cache(tmp_path / "hub", monkeypatch)


def base_of(model: str, *only: str, **settings: Any) -> UNetBackbone:
    config = BaseModelConfig(model=model, precision="fp32", **settings)
    return load_base(config, CPU, only=frozenset(only or ("text",)))


def encoder_id(model: str) -> str:
    return load_image_encoder(EncoderConfig(model=model, precision="fp32"), "plus", CPU).identity


WRITTEN: dict[str, HubPlace | None] = {
    "owner/name": HubPlace("owner/name"),
    "owner/name@v1.0": HubPlace("owner/name", "", "v1.0"),
    "owner/name@refs/pr/3": HubPlace("owner/name", "", "refs/pr/3"),
    "h94/IP-Adapter/models/image_encoder": HubPlace("h94/IP-Adapter", "models/image_encoder"),
    f"o/n/sub@{FIRST}": HubPlace("o/n", "sub", FIRST),
    "o/n/x_vit-h.safetensors@main": HubPlace("o/n", "x_vit-h.safetensors", "main"),
    "name": None,
    "/owner/name": None,
    "./owner/name": None,
    "../owner/name": None,
    "~/owner/name": None,
    "owner/../name": None,
    "owner/name/../up": None,
    "owner/name/": None,
    "owner/name@": None,
    "a@b/c": None,
    r"C:\owner\name": None,
    "hf://owner/name": None,
    "pictures/{0..9}.tar": None,
    "": None,
}


@pytest.mark.parametrize("text", WRITTEN)
def test_what_is_written_as_a_place(text: str) -> None:
    assert HubPlace.of(text) == WRITTEN[text]
    if WRITTEN[text] is not None:
        assert str(WRITTEN[text]) == text


def test_what_lies_here_is_none_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("owner/name@v1", "models/sd15"):
        Path(name).mkdir(parents=True)
        assert HubPlace.of(name) is None
    assert HubPlace.of("owner/name@v2") is not None
    assert HubPlace.of("models/sd15/unte") is None, "a mistyped folder of this machine"


def test_an_encoder_in_a_sub_folder_at_a_revision(cache: Path, tmp_path: Path) -> None:
    ids = []
    for seed, commit, refs in ((0, FIRST, ("v1",)), (1, SECOND, ("main", "v2"))):
        write_folder("clip", tmp_path / str(seed), seed=seed)
        put(cache, "owner/name", {"models/image_encoder": tmp_path / str(seed)}, commit=commit, refs=refs)
        ids.append(encoder_id(str(tmp_path / str(seed))))
    place = "owner/name/models/image_encoder"
    assert ids[0] != ids[1]
    found = [encoder_id(f"{place}{revision}") for revision in ("@v1", f"@{FIRST}", "", "@main", f"@{SECOND}")]
    assert found == [ids[0], ids[0], ids[1], ids[1], ids[1]], "weights by what they are, whatever their name"
    encoder = load_image_encoder(EncoderConfig(model=f"{place}@v1"), "plus", CPU)
    assert encoder.name == f"{place}@v1"


def test_a_folder_with_an_at_in_its_name(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_folder("clip", Path("owner/name@v1"))
    write_folder("clip", Path("other"), seed=1)
    put(cache, "owner/name", {"": Path("other")}, refs=("v1",))
    assert encoder_id("owner/name@v1") != encoder_id("other")


@pytest.mark.parametrize("inside", ["", "diffusers/half"])
def test_a_base_at_a_revision(cache: Path, small_base_folder: Callable[[str], Path], inside: str) -> None:
    made = {}
    for layout, commit, refs in (("sd15", FIRST, ("v1",)), ("sdxl", SECOND, ("main",))):
        put(cache, "owner/base", {inside: small_base_folder(layout)}, commit=commit, refs=refs)
        made[layout] = base_of(str(small_base_folder(layout))).text_id
    place = f"owner/base/{inside}".removesuffix("/")
    assert base_of(f"{place}@v1").text_id == base_of(f"{place}@{FIRST}").text_id == made["sd15"]
    assert base_of(place).text_id == made["sdxl"]
    assert base_of(place).is_sdxl


def test_the_parts_of_a_base_each_from_their_place(
    cache: Path, tmp_path: Path, small_base_folder: Callable[[str], Path]
) -> None:
    folder = small_base_folder("sd15")
    write_single_file(folder, tmp_path / "one.safetensors")
    put(cache, "owner/files", {"sub/one.safetensors": tmp_path / "one.safetensors", "layout": folder})
    put(cache, "owner/vae", {"vae": folder / "vae"}, refs=("v1",))
    whole = base_of(str(folder), "vae", "text")
    given = base_of(
        "owner/files/sub/one.safetensors", "vae", "text", config="owner/files/layout@main", vae="owner/vae/vae@v1"
    )
    assert (given.vae_id, given.text_id) == (whole.vae_id, whole.text_id)


def test_a_judge_in_a_sub_folder(cache: Path, tmp_path: Path, encoder_folder: Callable[[str], Path]) -> None:
    write_judge(tmp_path / "judge")
    put(cache, "owner/judges", {"clip": tmp_path / "judge"}, refs=("v1",))
    encoder = load_image_encoder(EncoderConfig(model=str(encoder_folder("clip"))), "plus", CPU)
    judge = load_judge(ValidationConfig(clip_model="owner/judges/clip@v1"), PictureReader(encoder), CPU)
    assert judge is not None
    assert judge.clip is not None


def test_start_from_a_published_adapter_by_its_name(
    cache: Path, tmp_path: Path, small_base_folder: Callable[[str], Path], encoder_folder: Callable[[str], Path]
) -> None:
    base = base_of(str(small_base_folder("sd15")), "model")
    encoder = load_image_encoder(EncoderConfig(model=str(encoder_folder("clip")), precision="fp32"), "base", CPU)
    ones = new_adapter(AdapterConfig(), base, encoder, 7)
    save_adapter(ones.adapter, tmp_path / "published.safetensors")
    put(cache, "h94/IP-Adapter", {"models/adapter.safetensors": tmp_path / "published.safetensors"})
    place = "h94/IP-Adapter/models/adapter.safetensors"
    for named in (place, f"{place}@main", f"{place}@{FIRST}"):
        started = new_adapter(AdapterConfig(pretrained=named), base, encoder, 0).state_dict()
        assert all(torch.equal(tensor, started[name]) for name, tensor in ones.state_dict().items())
    pictures = write_pictures(tmp_path / "pictures", 2)
    config = make_config(tmp_path, encoder_folder("clip"), pictures, tmp_path / "run", adapter={"pretrained": place})
    check_before_models(config, load_records(config.data), load_records(config.data))
    config = make_config(
        tmp_path, encoder_folder("clip"), pictures, tmp_path / "run", adapter={"pretrained": f"{place}@v9"}
    )
    with pytest.raises(ModelNotFoundError, match=r"adapter\.pretrained = .*adapter\.safetensors@v9.*no file here"):
        check_before_models(config, load_records(config.data), load_records(config.data))


OPENERS: dict[str, Callable[[str], object]] = {
    "base.model": base_of,
    "base.vae": lambda place: base_of("unread", "vae", vae=place),
    "encoder.model": encoder_id,
}
NOT_CACHED = ["nobody/nothing", "owner/name@v9", f"owner/name@{SECOND}", "owner/name/elsewhere"]


@pytest.mark.parametrize("key", OPENERS)
@pytest.mark.parametrize("place", NOT_CACHED)
def test_offline_and_not_in_the_cache(
    cache: Path, small_base_folder: Callable[[str], Path], key: str, place: str
) -> None:
    put(cache, "owner/name", {"": small_base_folder("sd15")})
    with pytest.raises(ModelNotFoundError) as caught:
        OPENERS[key](place)
    said = str(caught.value)
    assert f"{key} = {place!r}, which is no folder here, and HF_HUB_OFFLINE is set" in said
    revision = f" --revision {place.partition('@')[2]}" if "@" in place else ""
    assert f"run hf download {'/'.join(place.partition('@')[0].split('/')[:2])}{revision} without" in said


ANSWER = SimpleNamespace(headers={}, request=None)
# what huggingface_hub raises where there is a network: what is said
ANSWERS: list[tuple[Exception, str]] = [
    (
        GatedRepoError("", response=ANSWER),
        r"only to those who accept its terms.*page of owner/name and run hf auth login",
    ),
    (RepositoryNotFoundError("", response=ANSWER), r"no model repository owner/name, or hides it.*correct some\.key"),
    (RevisionNotFoundError("", response=ANSWER), r"owner/name on the hub has no revision v9.*behind @ in some\.key"),
    (EntryNotFoundError("x"), r"owner/name on the hub has no sub.*correct the part behind the name in some\.key"),
    (LocalEntryNotFoundError("x"), r"the hub cannot be reached and .*when there is a network"),
    (OSError("disk full"), r"the hub gives nothing by that name \(disk full\)"),
]


@pytest.mark.parametrize(("error", "said"), ANSWERS, ids=[type(error).__name__ for error, _ in ANSWERS])
def test_what_the_hub_answers(error: Exception, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    assert re.search(said, " ".join(HubPlace("owner/name", "sub", "v9").explain(error, "some.key")))


def as_dataset(folder: Path, words: str) -> Path:
    """Pictures with captions as the hub has them."""
    pictures = sorted(folder.glob("*.png"))
    lines = [json.dumps({"file_name": path.name, "text": f"{words} {path.stem}"}) for path in pictures]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    for path in folder.glob("*.txt"):
        path.unlink()
    return folder


def test_a_data_set_in_a_sub_folder_at_a_revision(cache: Path, tmp_path: Path) -> None:
    pictures = write_pictures(tmp_path / "pictures", 3)
    for commit, refs, words in ((FIRST, ("v1",), "old"), (SECOND, ("main",), "new")):
        folder = as_dataset(shutil.copytree(pictures, tmp_path / commit), words)
        put(cache, "owner/data", {"small": folder}, commit=commit, refs=refs, kind="dataset")
    old, same, new = (load_records(DataConfig(path=f"owner/data/small@{name}")) for name in ("v1", FIRST, "main"))
    assert [record.caption for record in old] == ["old 0", "old 1", "old 2"]
    assert new[1].caption == "new 1"
    assert new[0].image.read() == (pictures / "0.png").read_bytes()
    assert (old.version, same.version, new.version) == (FIRST, FIRST, SECOND)
    assert old[0].image.identity == same[0].image.identity, "one commit by two names has one cache"
    assert old[0].image.identity != new[0].image.identity
    assert FIRST in old[0].image.identity, "wherever the hub's cache lies"
    assert load_records(DataConfig(path=str(pictures))).version is None
    with pytest.raises(DataError, match=r"data\.path = 'owner/data/large@v1'.*HF_HUB_OFFLINE.*--repo-type dataset"):
        load_records(DataConfig(path="owner/data/large@v1"))


def test_a_run_knows_the_commit_of_its_data(
    cache: Path, tmp_path: Path, small_base_folder: Callable[[str], Path], encoder_folder: Callable[[str], Path]
) -> None:
    pictures = as_dataset(write_pictures(tmp_path / "pictures", 4), "shape")
    put(cache, "owner/data", {"small": pictures}, refs=("v1",), kind="dataset")
    config = make_config(
        small_base_folder("sd15"), encoder_folder("clip"), Path("owner/data/small@v1"), tmp_path / "run"
    )
    run = open_run(config)
    assert run.state.identity().data.version == FIRST


def test_a_base_that_lacks_weights_of_its_text_encoder(
    cache: Path, tmp_path: Path, small_base_folder: Callable[[str], Path]
) -> None:
    folder = shutil.copytree(small_base_folder("sd15"), tmp_path / "base")
    weights = folder / "text_encoder" / "model.safetensors"
    tensors = load_file(weights)
    save_file({name: tensors[name] for name in list(tensors)[1:]}, weights, {"format": "pt"})
    put(cache, "owner/base", {"": folder}, refs=("v1",))
    with pytest.raises(ModelNotFoundError, match=r"owner/base@v1, whose text_encoder lacks"):
        base_of("owner/base@v1")


def test_another_commit_of_a_data_set_is_another_one() -> None:
    old, new, unknown = (Keys.of("pictures", "ab", 2, version) for version in ("v1", "v2", None))
    assert new.unlike(old, "to train on") == "pictures to train on are those of commit v2 on the hub, not of v1"
    assert old.unlike(old, "") is old.unlike(unknown, "") is unknown.unlike(old, "") is None
