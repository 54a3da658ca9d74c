"""Whole runs of face adapters: what is read of pictures, skipped, cached, resumed, exported and drawn."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from typer.testing import CliRunner

from ipadapter_core.errors import IPAdapterError, MismatchError
from ipadapter_core.file.container import write_safetensors
from ipadapter_core.file.detect import face_crop_size
from ipadapter_core.network.adapter import load_adapter
from ipadapter_trainer.cache.fill import fill
from ipadapter_trainer.cli import app
from ipadapter_trainer.config import AdapterConfig, AugmentConfig, BaseModelConfig, Config
from ipadapter_trainer.config_file import ConfigError, write_config
from ipadapter_trainer.data.pictures import BrokenPictureError
from ipadapter_trainer.data.records import DataError
from ipadapter_trainer.data.skips import SKIPPED, read_skipped
from ipadapter_trainer.data.sources import open_sources
from ipadapter_trainer.files.checkpoint_export import export_checkpoint
from ipadapter_trainer.loop import train
from ipadapter_trainer.metrics_log import read_records
from ipadapter_trainer.models.face_network import face_read
from ipadapter_trainer.models.loading import load_base
from ipadapter_trainer.models.network import new_adapter
from ipadapter_trainer.planning import make_plan
from ipadapter_trainer.readers.faces import FaceReader, open_face_reader
from ipadapter_trainer.readers.opening import open_reader
from ipadapter_trainer.run import open_run
from ipadapter_trainer.watch.sampling import Sampler, SampleSettings, encode_prompt, encode_reference, sample_grid
from support.face_files import EMBEDDING, write_pack
from support.faces import (
    FACE_KINDS,
    READS_PICTURES,
    face_picture,
    image,
    picture,
    two_faces,
    write_people,
)
from support.tiny_flux_base import write_flux_base
from support.tiny_sd3_base import write_sd3_base
from support.tiny_studio_base import write_studio_base

CPU = torch.device("cpu")
NOTHING = torch.Generator()


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pack(tmp_path_factory.mktemp("faces") / "pack")


@pytest.fixture
def config(face_runs: Callable[..., Config]) -> Callable[..., Config]:
    return face_runs


def identity_of(reader: FaceReader, picture: Image.Image) -> torch.Tensor:
    return reader.preparation.prepare(picture, AugmentConfig(), NOTHING)["identity"]


def test_the_largest_face_is_read_as_a_vector_of_length_1(pack: Path) -> None:
    reader = open_face_reader(str(pack), face_read(16), None, CPU)
    both, large = identity_of(reader, two_faces()), two_faces().crop((110, 110, 310, 310))
    assert both.norm() == pytest.approx(1)
    assert torch.dot(both, identity_of(reader, large)) > 0.999
    assert torch.dot(both, identity_of(reader, two_faces().crop((0, 0, 110, 110)))) < 0.99


def test_a_picture_without_a_face_is_broken(pack: Path) -> None:
    reader = open_face_reader(str(pack), face_read(16), None, CPU)
    with pytest.raises(BrokenPictureError, match=r"me\.png.*no face found"):
        reader.preparation.prepare(image(picture()), AugmentConfig(), NOTHING, name="me.png")
    with pytest.raises(BrokenPictureError, match="a strip"):
        reader.preparation.prepare(Image.new("RGB", (900, 9)), AugmentConfig(), NOTHING)


@pytest.mark.parametrize("kind", FACE_KINDS)
def test_a_run_of_every_kind_ends_in_a_file_that_reads_back(config: Callable[..., Config], kind: str) -> None:
    watched = {"every": 4, "images": 2, "timesteps": [500], "sample_every": 4, "samples": 1, "sampler_steps": 1}
    settings = config(kind, validation=watched)
    outcome = train(settings)
    assert outcome.is_finished
    assert {record["kind"] for record in read_records(settings.run)} >= {"train", "validation", "samples"}
    report = export_checkpoint(settings.run, None)
    best = export_checkpoint(settings.run, settings.run / "best of all.safetensors", weights="best")
    adapter = load_adapter(report.path)
    assert best.parameters == report.parameters
    assert (best.lora is None) == (kind == "portrait")
    face, rank = adapter.spec.face, 0 if kind == "portrait" else 3
    assert face is not None
    assert (face.identity_dim, face.hidden_dim, face.crop_size) == (512, 1024, face_crop_size(16))
    assert face.has_shortcut == {"faceid_plus": False, "faceid_plus_v2": True}.get(kind)
    assert adapter.spec.num_tokens == (16 if kind == "portrait" else 4)
    assert len(adapter.lora) == (2 * 4 * 2 * adapter.spec.num_sites if rank else 0)
    assert report.portability.weights_load
    assert bool(report.portability.reasons) == (kind in READS_PICTURES)
    if not rank:
        assert report.lora is None
        return
    assert all(tensor.any() for tensor in adapter.lora.values()), "down and up have moved"
    assert report.lora is not None
    apart = load_file(report.lora)
    assert sum(name.endswith(".alpha") for name in apart) == len(adapter.lora) // 2
    with safe_open(report.path, "pt") as file:
        layers = json.loads(file.metadata()["ipadapter.lora_layers"])
    name = layers[1].replace(".", "_")
    assert torch.equal(
        apart[f"lora_unet_{name}_to_out_0.lora_up.weight"], adapter.lora["ip_adapter.1.to_out_lora.up.weight"]
    )


def test_pictures_without_faces_are_skipped_and_counted(tmp_path: Path, config: Callable[..., Config]) -> None:
    people = write_people(tmp_path / "some", 3, empty=1)
    settings = config("faceid", people, data={"max_skipped": 0.5})
    train(settings)
    (skipped,) = read_skipped(settings.run / SKIPPED)
    assert Path(skipped.path).parent.name == "nobody0"
    assert skipped.reason == "no face found in it"
    with pytest.raises(DataError, match="no face found in it"):
        train(config("faceid", people, run="strict", data={"max_skipped": 0.0}))


def test_pictures_of_no_face_at_all_are_said_before_models_are_loaded(
    tmp_path: Path, config: Callable[..., Config]
) -> None:
    walls = write_people(tmp_path / "walls", 0, empty=2)
    with pytest.raises(IPAdapterError, match=r"none of 2 references.*no face found"):
        train(config("faceid", walls, base={"model": "nowhere"}))
    with pytest.raises(IPAdapterError, match=r"none of 2 references.*no embedding.*identity_column"):
        train(config("faceid", walls, base={"model": "nowhere"}, encoder={"face_model": None}))


@pytest.mark.parametrize("kind", [pytest.param("faceid", marks=pytest.mark.long), "faceid_plus_v2"])
def test_a_cache_holds_what_is_read_and_changes_nothing(config: Callable[..., Config], kind: str) -> None:
    plain, cached = config(kind, run="plain"), None
    cached = config(kind, run="cached", cache={"path": str(plain.run.parent / "cache"), "precision": "fp32"})
    train(plain)
    base = load_base(cached.base, CPU)
    report = fill(cached, base, open_reader(cached, CPU, 16), open_sources(cached))
    assert report.shares["features"].computed == 4
    (shard,) = (report.folder).glob("features-*/*.safetensors")
    parts = {name.partition("/")[2] for name in load_file(shard)}
    assert parts == {"identity", "features"} if kind in READS_PICTURES else {"identity"}
    train(cached)
    losses = [
        [record["loss"] for record in read_records(each.run) if record["kind"] == "train"] for each in (plain, cached)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize("kind", ["faceid_plus_v2", pytest.param("portrait", marks=pytest.mark.long)])
def test_a_run_goes_on_exactly(config: Callable[..., Config], kind: str) -> None:
    together = {"data": {"reference": "group", "references_together": 2}} if kind == "portrait" else {}
    more = {"objective": {"drop_identity": 0.3}, "optimizer": {"ema_decay": 0.5, "learning_rate": 0.01}, **together}
    train(config(kind, run="whole", **more))
    half = config(kind, run="halves", train={"steps": 2}, **more)
    train(half)
    train(config(kind, run="halves", **more))
    for name in ("adapter.safetensors", "ema.safetensors"):
        whole, halves = (
            load_file(half.run.parent / run / "checkpoints" / "step-00000004" / name) for run in ("whole", "halves")
        )
        assert whole.keys() == halves.keys()
        assert all(torch.equal(whole[key], halves[key]) for key in whole)
    assert any("lora" in key for key in whole) == (kind != "portrait")


def test_pictures_at_half_strength_are_those_of_half_the_weights(small_base_folder: Callable[[str], Path]) -> None:
    """The LoRA's too; at strength 0 nothing is left of either."""
    base = load_base(BaseModelConfig(model=str(small_base_folder("sd15")), precision="fp32"), CPU)
    network = new_adapter(AdapterConfig(kind="faceid", lora_rank=3), base, None)
    reader = open_face_reader(None, face_read(base.token_dim), None, CPU)
    base.install()
    torch.manual_seed(0)
    assert network.lora is not None
    ups = [weight for name, weight in network.lora.named_parameters() if ".up." in name]
    values = [network.adapter.site(index).to_v_ip.weight for index in range(network.spec.num_sites)]
    with torch.no_grad():
        for weight in ups:
            weight.normal_()
    reference = encode_reference(face_picture(0), "me", base=base, reader=reader, identity=torch.randn(EMBEDDING))

    def drawn(strength: float) -> np.ndarray[Any, Any]:
        settings = SampleSettings(strengths=(strength,), steps=2, size=(64, 64))
        sampler = Sampler(base, settings, encode_prompt(base, ""))
        grid = sample_grid(sampler, network, reader.no_image(network.spec.negative), [reference])
        return np.asarray(grid.rows[0][0])

    nothing, half = drawn(0.0), drawn(0.5)
    for weights in (ups, values):
        assert not np.array_equal(half, drawn(1.0))
        with torch.no_grad():
            for weight in weights:
                weight.mul_(0.5)
    assert np.array_equal(half, drawn(1.0))
    with torch.no_grad():
        for weight in (*ups, *values):
            weight.zero_()
    assert np.array_equal(nothing, drawn(1.0))


def test_a_lora_is_not_lost_from_where_a_run_starts(tmp_path: Path, small_base_folder: Callable[[str], Path]) -> None:
    base = load_base(BaseModelConfig(model=str(small_base_folder("sd15")), precision="fp32"), CPU)
    first = new_adapter(AdapterConfig(kind="faceid", lora_rank=3), base, None)
    assert first.lora is not None
    start = tmp_path / "start.safetensors"
    tensors = {**first.adapter.state_dict(), **first.lora.state_dict()}
    write_safetensors(start, tensors, first.spec.to_metadata())
    with pytest.raises(MismatchError, match=r"adapter\.lora_rank = 0 .*start\.safetensors.*set adapter\.lora_rank"):
        new_adapter(AdapterConfig(kind="faceid", lora_rank=0, pretrained=str(start)), base, None)
    taken = new_adapter(AdapterConfig(kind="faceid", lora_rank=3, pretrained=str(start)), base, None)  # the advice
    assert taken.lora is not None
    assert all(torch.equal(taken.lora.state_dict()[name], each) for name, each in first.lora.state_dict().items())


def test_a_run_does_not_go_on_as_another_kind(config: Callable[..., Config]) -> None:
    train(config("faceid_plus"))
    with pytest.raises(IPAdapterError, match=r"what adapter.kind adds to the identity"):
        train(config("faceid_plus_v2"))
    with pytest.raises(IPAdapterError, match=r"adapter.lora_rank"):
        train(config("faceid_plus", adapter={"lora_rank": 2}))


def test_several_pictures_of_a_person_are_read_together(tmp_path: Path, config: Callable[..., Config]) -> None:
    people = write_people(tmp_path / "albums", 3, each=3)
    data = {"reference": "group", "references_together": 4}
    run = open_run(config("portrait", people, data=data, objective={"drop_identity": 0.5}))
    batch = next(run.batches(0))
    assert batch.references is not None
    assert batch.drop_identity is not None
    identity = batch.references["identity"]
    assert identity.shape == (2, 4, EMBEDDING)
    assert batch.drop_identity.shape == (2, 4)
    for number, key in enumerate(batch.keys):
        own = {path.name for path in (people / Path(key).parent).glob("*.png")} - {Path(key).name}
        allowed = torch.stack([identity_of(run.reader, Image.open(people / Path(key).parent / name)) for name in own])
        like = identity[number] @ allowed.T
        assert (like.amax(dim=1) > 0.9999).all(), "pictures of the same person, not the target"
        assert like[:2].argmax(dim=1).unique().numel() == 2, "each once before one comes again"
        assert like[2:].argmax(dim=1).tolist() == like[:2].argmax(dim=1).tolist()
    condition = run.objective.condition(batch)
    kept = ~(batch.drop_identity | batch.drop_image[:, None])
    assert torch.equal(condition.features["identity"].norm(dim=-1) > 0.5, kept)
    assert run.adapter(condition.features).kv[0][0].shape[1] == 4 * 16


def test_a_plan_counts_the_lora(config: Callable[..., Config]) -> None:
    with_lora, without = (make_plan(config("faceid", adapter={"lora_rank": rank})).to_json() for rank in (3, 0))
    assert with_lora["trained"]["adapter"].endswith("FaceID")
    assert with_lora["trained"]["encoder"] == "pack"
    assert with_lora["trained"]["parameters"] > without["trained"]["parameters"]
    assert with_lora["memory"]["adapter"] > without["memory"]["adapter"]


def test_commands_work_on_a_face_adapter(tmp_path: Path, config: Callable[..., Config]) -> None:
    settings = config("faceid_plus_v2", train={"steps": 2}, validation={"every": 2, "images": 2, "sampler_steps": 1})
    write_config(settings, tmp_path / "config.toml")
    face_picture(0).save(tmp_path / "me.png")
    image(picture()).save(tmp_path / "wall.png")
    file, pack = settings.run / "adapter.safetensors", settings.encoder.face_model
    encoder = settings.encoder.model
    sample = ["sample", "--base", settings.base.model, "--adapter", str(file), "--encoder", encoder, "--steps", "1"]
    sample += ["--face-model", str(pack), "--size", "64", "--json"]

    def run(*arguments: str) -> Any:
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout[result.stdout.index("{") :])

    def refused(*arguments: str) -> str:
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code != 0
        return f"{result.output}{result.exception}"

    assert run("train", str(tmp_path / "config.toml"), "--json")["step"] == 2
    assert Path(run("export", str(settings.run), "--json")["lora"]).is_file()
    about = run("inspect", str(file), "--json")
    assert about["lora_rank"] == 3
    assert about["face"]["has_shortcut"] is True
    assert run(*sample, "--image", str(tmp_path / "me.png"), "-o", str(tmp_path / "drawn"))["adapter"].startswith(
        "a base"
    )
    assert "losses" in run(
        "eval", str(tmp_path / "config.toml"), "--adapter", str(file), "-o", str(tmp_path / "eval"), "--json"
    )
    none = ["--image", str(tmp_path / "wall.png"), "-o", str(tmp_path / "none")]
    assert "no face found in it" in refused(*sample, *none)
    at = sample.index("--face-model")
    assert "without --face-model" in refused(*sample[:at], *sample[at + 2 :], *none)
    assert "--face-model = 'nowhere'" in refused(*sample[: at + 1], "nowhere", *sample[at + 2 :], *none)
    card = file.with_suffix(".md").read_text()
    assert "Encode Face for IP-Adapter" in card
    assert "adapter_lora.safetensors" in card


@pytest.mark.parametrize(
    "write",
    [write_flux_base, write_sd3_base, partial(write_studio_base, family="z_image")],
    ids=["flux", "sd3", "z_image"],
)
def test_face_adapters_are_for_unets(
    tmp_path: Path, config: Callable[..., Config], write: Callable[[Path], Path]
) -> None:
    folder = write(tmp_path / "base")
    with pytest.raises(MismatchError, match=r'adapter\.kind = "faceid" with.*set adapter\.kind = "plus"'):
        open_run(config("faceid", base={"model": str(folder)}))


@pytest.mark.parametrize(
    ("kind", "changes", "found"),
    [
        ("faceid_plus", {"encoder": {"model": ""}}, "encoder.model is missing"),
        ("faceid", {"encoder": {"model": "clip"}}, "reads no picture"),
        ("faceid", {"adapter": {"blocks": "style"}}, "all layers"),
        ("faceid", {"adapter": {"negative": "noise"}}, "embedding of zeros"),
        ("faceid", {"data": {"augment": {"flip": 0.5}}}, "no picture"),
        ("portrait", {"data": {"references_together": 3}}, 'data.reference = "group"'),
        ("faceid", {"encoder": {"face_model": None}, "cache": {"path": "cache"}}, "come ready"),
    ],
)
def test_contradictions_are_refused(
    config: Callable[..., Config], kind: str, changes: dict[str, Any], found: str
) -> None:
    with pytest.raises(ConfigError, match=found):
        config(kind, **changes)


def test_a_pack_that_is_not_there_is_said_before_models_are_loaded(
    tmp_path: Path, config: Callable[..., Config]
) -> None:
    (tmp_path / "buffalo_l").mkdir()
    with pytest.raises(IPAdapterError, match=r"a folder without ONNX files.*unpacked face pack"):
        train(config("faceid", encoder={"face_model": str(tmp_path / "buffalo_l")}, base={"model": "nowhere"}))
