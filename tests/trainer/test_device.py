"""A device lint: whole runs on a GPU that is not there, where a tensor left on the wrong side is an error."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from ipadapter_trainer.config import Config, EncoderConfig
from ipadapter_trainer.config_file import parse_config
from ipadapter_trainer.evaluation import evaluate
from ipadapter_trainer.files.checkpoint_export import export_checkpoint
from ipadapter_trainer.loop import Outcome, train
from ipadapter_trainer.metrics_log import read_records
from ipadapter_trainer.models.image_encoder import load_image_encoder
from ipadapter_trainer.planning import make_plan
from ipadapter_trainer.run import open_run
from support.encoders import FOLDERS
from support.faces import face_config, write_people
from support.pretend_device import PEAK_BYTES, OtherDeviceError, pretend_device
from support.recipe_models import write_judge
from support.runs import fill_cache
from support.training import make_config, write_pictures

pytestmark = pytest.mark.usefixtures("no_report")
WATCHED = {"every": 2, "images": 2, "timesteps": [500]} | {
    "sample_every": 2,
    "samples": 1,
    "sampler_steps": 1,
    "strengths": [1.0],
}
OTHER_OBJECTIVE = {
    "debiased": True,
    "huber_c": 0.1,
    "huber_schedule": "exponential",
    "pyramid_noise": 0.9,
    "input_perturbation": 0.1,
    "timestep_sampling": "later",
}
RUNS: dict[str, tuple[str, str, bool, dict[str, dict[str, Any]]]] = {  # layout, precision, whether cached, settings
    "sd15 fp32, average": ("sd15", "fp32", False, {"optimizer": {"ema_decay": 0.9}, "train": {"accumulate": 2}}),
    "sdxl fp16, scaled gradients": ("sdxl", "fp16", False, {"optimizer": {"ema_decay": 0.9, "schedule": "cosine"}}),
    "sd15 fp16, cache": (
        "sd15",
        "fp16",
        True,
        {"adapter": {"kind": "plus", "resampler_dim": 64, "negative": "noise"}, "objective": OTHER_OBJECTIVE},
    ),
    "sdxl bf16, cache, checkpointing": (
        "sdxl",
        "bf16",
        True,
        {"train": {"gradient_checkpointing": True}, "objective": {"min_snr_gamma": 5.0, "noise_offset": 0.1}},
    ),
}

SHORT = ("sdxl fp16, scaled gradients", "sd15 fp16, cache")  # between them: all that the others do, but for precisions


@pytest.fixture
def config(
    tmp_path: Path, small_base_folder: Callable[[str], Path], encoder_folder: Callable[[str], Path]
) -> Callable[..., Config]:
    """Of a run that does everything; `layout`, the frozen models' precision, with a cache or not."""

    def make(layout: str, precision: str, *, is_cached: bool = False, **changes: dict[str, Any]) -> Config:
        write_judge(tmp_path / "judge")
        models = {"base": {"precision": precision}, "encoder": {"precision": precision}}
        whole = {"validation": WATCHED | {"clip_model": str(tmp_path / "judge")}, **models, **changes}
        kept = {"path": str(tmp_path / "cache"), "precision": "fp32", **changes.get("cache", {})}
        whole["cache"] = kept if is_cached else {}
        whole["train"] = {"steps": 2, "log_every": 1, "batch_size": 2, "trackers": [], **changes.get("train", {})}
        pictures = write_pictures(tmp_path / "pictures", 4)
        return make_config(small_base_folder(layout), encoder_folder("clip"), pictures, tmp_path / "run", **whole)

    return make


@pytest.fixture
def cuda() -> Iterator[torch.device]:
    with pretend_device("cuda") as device:
        yield device


def with_steps(config: Config, steps: int) -> Config:
    return parse_config(config.model_dump() | {"train": config.train.model_dump() | {"steps": steps}}, "test")


def finished(outcome: Outcome) -> bool:
    return outcome.is_finished and all(map(math.isfinite, outcome.losses))


def test_the_lint_refuses_what_a_gpu_does(cuda: torch.device) -> None:
    layer, here = torch.nn.Linear(2, 2).to(cuda), torch.ones(1, 2)
    layer(here.to(cuda)).sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.device == cuda
    with pytest.raises(OtherDeviceError, match="cuda:0 and cpu"):
        layer(here)
    with pytest.raises(OtherDeviceError, match="generator"):
        torch.randn(2, device=cuda, generator=torch.Generator())
    with pytest.raises(RuntimeError, match="numpy"):
        layer.weight.detach().numpy()
    assert layer.weight.tolist() == layer.weight.cpu().tolist()


@pytest.mark.parametrize(
    "call",
    [
        lambda ours, _: functional.scaled_dot_product_attention(query=ours, key=ours, value=ours),
        lambda ours, _: pad_sequence([ours, ours[:1]]),
        lambda ours, _: ours.float().type_as(ours),
        lambda ours, here: here.type_as(ours),
    ],
)
def test_what_torch_makes_beside_a_tensor_is_on_its_device(cuda: torch.device, call: Callable[..., Tensor]) -> None:
    """However it is told of it: by name, in a list, as the second of two."""
    here = torch.ones(2, 3, 4, dtype=torch.bfloat16)
    made, expected = call(here.to(cuda), here), call(here, here)
    assert made.device == cuda
    assert torch.equal(made.cpu(), expected)


@pytest.mark.parametrize(
    "name", [name if name in SHORT else pytest.param(name, marks=pytest.mark.long) for name in RUNS]
)
def test_a_whole_run(config: Callable[..., Config], cuda: torch.device, name: str) -> None:
    """Cache, training, validation, pictures and their judge; resume; export; evaluation."""
    layout, precision, is_cached, changes = RUNS[name]
    one = config(layout, precision, is_cached=is_cached, **changes)
    if is_cached:
        fill_cache(one, cuda)
    sessions = [2] if is_cached else [1, 2]  # the last resumes
    assert all(finished(train(with_steps(one, steps))) for steps in sessions)
    drawn = [record["step"] for record in read_records(one.run) if record["kind"] == "samples"]
    assert drawn == [0, *sessions]
    export_checkpoint(one.run, None)
    if is_cached and layout == "sd15":  # what it does is the same everywhere
        evaluate(one, one.run / "adapter.safetensors", one.run, images=1)


@pytest.mark.parametrize(
    ("kind", "precision"),
    [
        ("faceid_plus_v2", "bf16"),
        pytest.param("faceid", "fp16", marks=pytest.mark.long),
        pytest.param("portrait", "fp32", marks=pytest.mark.long),
    ],
)
def test_a_whole_run_of_faces(
    tmp_path: Path,
    small_base_folder: Callable[[str], Path],
    encoder_folder: Callable[[str], Path],
    cuda: torch.device,
    kind: str,
    precision: str,
) -> None:
    """With the LoRA, a cache and checkpointing for one, scaled gradients or several faces for others."""
    changes: dict[str, dict[str, Any]] = {
        "faceid_plus_v2": {"cache": {"path": str(tmp_path / "cache"), "precision": "fp32"}},
        "portrait": {"data": {"reference": "group", "references_together": 2}},
    }.get(kind, {})
    changes |= {"base": {"precision": precision}, "encoder": {"precision": precision}, "validation": WATCHED}
    changes |= {"objective": {"drop_identity": 0.3}, "optimizer": {"ema_decay": 0.9}}
    changes["train"] = {"steps": 2, "gradient_checkpointing": kind == "faceid_plus_v2"}
    people = write_people(tmp_path / "people", 3, each=2)
    one = face_config(small_base_folder("sd15"), encoder_folder("clip"), people, tmp_path / "run", kind, **changes)
    assert all(finished(train(with_steps(one, steps))) for steps in (1, 2))  # the last resumes
    assert [record["step"] for record in read_records(one.run) if record["kind"] == "samples"] == [0, 1, 2]
    export_checkpoint(one.run, None)
    if kind == "faceid_plus_v2":
        evaluate(one, one.run / "adapter.safetensors", one.run, images=1)


def test_a_run_with_a_part_of_a_cache(config: Callable[..., Config], cuda: torch.device) -> None:
    part = config("sdxl", "bf16", is_cached=True, cache={"parts": ["latents"]}, train={"steps": 1})
    assert finished(train(part))


def test_a_mac_which_has_no_float64(config: Callable[..., Config]) -> None:
    with pretend_device("mps") as mps:
        one = config("sdxl", "fp32", is_cached=True, optimizer={"ema_decay": 0.9})
        fill_cache(one, mps)
        assert finished(train(one))


def test_float16_without_a_scaler_is_warned_of(config: Callable[..., Config], caplog: pytest.LogCaptureFixture) -> None:
    """accelerate has one for CUDA alone."""
    with pretend_device("mps"):
        open_run(config("sd15", "fp16"))
    assert 'small gradients become 0; "bf16" has no such limit' in caplog.text


@pytest.mark.parametrize("kind", FOLDERS)
def test_encoders(kind: str, encoder_folder: Callable[[str], Path], cuda: torch.device) -> None:
    """Also one that a cache has sent away and that is asked again."""
    config = EncoderConfig(model=str(encoder_folder(kind)), feature="hidden_states")
    encoder = load_image_encoder(config, "plus", cuda)
    size = encoder.format.pixel_format.size
    before = encoder.features(torch.zeros(1, 3, size, size))
    assert before.device == cuda
    encoder.vision.model.to("cpu")
    assert torch.equal(encoder.features(torch.zeros(1, 3, size, size)), before)
    assert encoder.vision.model.device.type == "cpu"


def test_a_step_that_float16_skips_moves_nothing(config: Callable[..., Config], cuda: torch.device) -> None:
    run = open_run(config("sd15", "fp16", optimizer={"ema_decay": 0.9, "schedule": "cosine", "warmup_steps": 2}))
    batches = run.batches(0)
    run.accelerator.scaler._init_scale = 2.0**100  # every gradient leaves float16's range
    before = [parameter.detach().clone() for parameter in run.network.trained_parameters()]
    run.step(batches)
    assert all(map(torch.equal, before, run.network.trained_parameters()))
    assert (run.schedule.last_epoch, run.ema.optimization_step) == (0, 0)
    run.accelerator.scaler.update(1.0)
    for _ in range(2):
        run.step(batches)
    assert (run.schedule.last_epoch, run.ema.optimization_step) == (2, 2)
    assert not all(map(torch.equal, before, run.network.trained_parameters()))
    assert (run.state.counters.step, run.state.counters.samples) == (3, 6), "pictures were seen"


@pytest.mark.parametrize("is_cached", [False, True])
def test_plan(config: Callable[..., Config], cuda: torch.device, is_cached: bool) -> None:
    one = config("sd15", "bf16", is_cached=is_cached)
    if is_cached:
        fill_cache(one, cuda)
    plan = make_plan(one)
    assert (plan.measured["is_cached"], plan.measured["peak_bytes"]) == (is_cached, PEAK_BYTES)
