"""Whole SD3.5 runs: cache, training, samples, resume, export, evaluation; on one device, on a pretended GPU, in processes."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ipadapter_core.errors import MismatchError
from ipadapter_core.file.container import read_tensors
from ipadapter_trainer.cache.fill import fill
from ipadapter_trainer.config import Config
from ipadapter_trainer.data.sources import open_sources
from ipadapter_trainer.evaluation import evaluate
from ipadapter_trainer.files.checkpoint_export import export_checkpoint
from ipadapter_trainer.files.inspection import inspect_path
from ipadapter_trainer.files.portability import EVERYWHERE
from ipadapter_trainer.loop import train
from ipadapter_trainer.metrics_log import read_records
from ipadapter_trainer.models.image_encoder import load_image_encoder
from ipadapter_trainer.models.loading import load_base
from ipadapter_trainer.planning import make_plan
from ipadapter_trainer.readers.pictures import PictureReader
from ipadapter_trainer.run import open_run
from ipadapter_trainer.state import find_checkpoints
from support.pretend_device import pretend_device
from support.rank_work import train_and_note
from support.ranks import run_ranks
from support.runs import WATCHED
from support.tiny_sd3_base import write_sd3_base
from support.training import make_config, write_pictures

pytestmark = pytest.mark.usefixtures("no_report")
CPU = torch.device("cpu")
KIND = {"kind": "plus", "tokens": 4, "resampler_dim": 64}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sd3_base(tmp_path_factory.mktemp("sd3") / "base")


@pytest.fixture
def config(tmp_path: Path, base: Path, encoder_folder: Callable[[str], Path]) -> Callable[..., Config]:
    pictures = write_pictures(tmp_path / "pictures", 6)

    def make(run: str, steps: int = 4, **changes: dict[str, Any]) -> Config:
        given = {name: {**values, **changes.pop(name, {})} for name, values in DEFAULTS.items()}
        given["train"] |= {"steps": steps}
        return make_config(base, encoder_folder("siglip"), pictures, tmp_path / run, **given, **changes)

    return make


DEFAULTS: dict[str, dict[str, Any]] = {
    "adapter": KIND,
    "encoder": {"crop": "stretch", "precision": "fp32"},
    "train": {"batch_size": 2, "log_every": 1, "trackers": []},
    "objective": {"timestep_sampling": "sigmoid", "drop_image": 0.3},
    "optimizer": {"ema_decay": 0.9},
}


def fill_cache(config: Config, device: torch.device = CPU) -> None:
    parts = frozenset({"vae", "text"}) if "text" in config.cache.parts else frozenset({"vae"})
    reader = PictureReader(load_image_encoder(config.encoder, config.adapter.kind, device))
    fill(config, load_base(config.base, device, only=parts), reader, open_sources(config))


def final_tensors(config: Config) -> dict[str, torch.Tensor]:
    folder = find_checkpoints(config.run)[-1]
    files = folder.glob("*.safetensors")
    return {f"{file.name}/{name}": tensor for file in files for name, tensor in read_tensors(file).tensors.items()}


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(config: Callable[..., Config]) -> None:
    train(config("whole"))
    for steps in (2, 4):
        train(config("parts", steps))
    given, wanted = final_tensors(config("parts")), final_tensors(config("whole"))
    assert given.keys() == wanted.keys()
    assert all(torch.equal(given[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize(
    "parts", [["latents", "text", "features"], pytest.param(["text"], marks=pytest.mark.long)], ids=str
)
def test_losses_with_a_cache_are_those_without(config: Callable[..., Config], tmp_path: Path, parts: list[str]) -> None:
    """The text encoders, which are larger than the model, leave the device."""
    cached = config("cached", cache={"path": str(tmp_path / "cache"), "precision": "fp32", "parts": parts})
    fill_cache(cached)
    run = open_run(cached)
    run.release_encoders()
    assert run.base.texts == ()
    assert train(cached).losses == pytest.approx(train(config("plain")).losses, rel=1e-4)


def test_the_file_says_what_it_is_and_loads_everywhere(config: Callable[..., Config]) -> None:
    one = config("run", 2, validation=WATCHED)
    plan = make_plan(one).to_json()
    assert plan["trained"]["adapter"] == "InstantX SD3.5"
    assert plan["trained"]["prediction_type"] == "flow"
    assert plan["memory"]["frozen_encoders"] > 0
    assert train(one).is_finished
    report = export_checkpoint(one.run, None)
    assert report.portability.label == EVERYWHERE
    assert report.portability.difference < 1e-5
    card = report.card.read_text(encoding="utf-8")
    assert "StableDiffusion3Pipeline" in card
    assert "SiglipVisionModel" in card
    said = json.loads(json.dumps(inspect_path(report.path), default=str))
    assert said["family"] == "InstantX SD3.5"
    assert said["loads_in"] == {
        "native nodes": True,
        "diffusers": True,
        "other ComfyUI nodes": False,
        "InvokeAI": False,
    }
    assert said["metadata"]["implementation"].endswith("InstantX/SD3.5-Large-IP-Adapter")
    result = evaluate(one, report.path, one.run, images=1)
    assert math.isfinite(result["losses"]["true"])


def test_a_run_goes_on_from_a_file(config: Callable[..., Config]) -> None:
    """With its number of tokens and width."""
    one = config("run", 2)
    train(one)
    file = export_checkpoint(one.run, None).path
    start = {"kind": "plus", "pretrained": str(file), "tokens": None, "resampler_dim": None}
    later = config("later", 1, adapter=start)
    network = open_run(later).network
    assert (network.spec.num_tokens, network.spec.resampler.dim) == (4, 64)
    assert all(torch.equal(network.adapter.state_dict()[name], x) for name, x in read_tensors(file).tensors.items())
    with pytest.raises(MismatchError, match=r"tokens 4, not 5.*set adapter.tokens = 4"):
        open_run(config("other", 1, adapter=start | {"tokens": 5}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": {"min_snr_gamma": 5.0}}, "min_snr_gamma.*flow model"),
        ({"data": {"resolution": 272}}, "272.*Expected: at most 192"),
        ({"data": {"resolution": 72}}, "72.*multiples of 16"),
        ({"adapter": {"kind": "base", "tokens": None, "resampler_dim": None}}, 'set adapter.kind = "plus"'),
        ({"adapter": {"blocks": "first half"}}, 'adapter.blocks = "first half".*"all"'),
    ],
)
def test_what_cannot_be_is_said(config: Callable[..., Config], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(MismatchError, match=message):
        open_run(config("run", 1, **changes))


@pytest.mark.parametrize(
    ("precision", "is_cached"), [pytest.param("fp16", False, marks=pytest.mark.long), ("bf16", True)]
)
def test_a_whole_run_on_a_gpu_that_is_not_there(
    config: Callable[..., Config], tmp_path: Path, precision: str, is_cached: bool
) -> None:
    """In half precision without a T5, which then looks at numbers as no pretended device shows them."""
    base = write_sd3_base(tmp_path / "base", absent=("text_encoder_3",) if precision == "fp16" else ())
    models = {"base": {"model": str(base), "precision": precision}, "encoder": {"precision": precision}}
    more: dict[str, Any] = {"train": {"gradient_checkpointing": True}} if is_cached else {}
    cache = {"cache": {"path": str(tmp_path / "cache"), "precision": "fp32"}} if is_cached else {}
    with pretend_device("cuda") as cuda:
        for steps in (1, 2):
            one = config("run", steps, validation=WATCHED, **models, **more, **cache)
            if is_cached:
                fill_cache(one, cuda)
            outcome = train(one)
            assert outcome.is_finished
            assert all(map(math.isfinite, outcome.losses))
        assert [record["step"] for record in read_records(one.run) if record["kind"] == "samples"] == [0, 1, 2]
        export_checkpoint(one.run, None)


@pytest.mark.slow
@pytest.mark.long
def test_two_processes_do_what_one_does_with_twice_the_batch(config: Callable[..., Config], tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    two = config("two", train={"batch_size": 1}, validation=WATCHED)
    assert run_ranks(2, train_and_note, two, notes) == [0, 0]
    one = config("one", validation=WATCHED)
    alone = train(one).losses
    losses = [record["loss"] for record in read_records(two.run) if record["kind"] == "train"]
    assert losses == pytest.approx(list(alone), rel=1e-3)
    given, wanted = final_tensors(two), final_tensors(one)
    for name, tensor in wanted.items():
        torch.testing.assert_close(given[name], tensor, rtol=1e-3, atol=1e-5, msg=name)
