"""Several processes share a run, leave it and go on with it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ipadapter_core.file.container import read_tensors
from ipadapter_trainer.config import Config
from ipadapter_trainer.loop import train
from ipadapter_trainer.metrics_log import read_records
from ipadapter_trainer.state import ADAPTER, find_checkpoints
from support.faces import face_config, write_people
from support.rank_work import train_and_note, train_sharded, train_with_deepspeed
from support.ranks import run_ranks
from support.training import make_config, train_with_one_thread, write_pictures

pytestmark = [pytest.mark.slow, pytest.mark.long]


@pytest.fixture
def config(
    tmp_path: Path, small_base_folder: Callable[[str], Path], encoder_folder: Callable[[str], Path]
) -> Callable[..., Config]:
    pictures = write_pictures(tmp_path / "pictures", 6)

    def make(run: str, steps: int, batch_size: int = 1, **changes: dict[str, Any]) -> Config:
        return make_config(
            small_base_folder("sd15"),
            encoder_folder("clip"),
            pictures,
            tmp_path / run,
            train={"steps": steps, "batch_size": batch_size, "log_every": 1, "trackers": []},
            validation={"images": 2, "sample_every": 2, "samples": 2, "sampler_steps": 1, "strengths": [1.0]},
            **changes,
        )

    return make


def weights(config: Config) -> dict[str, torch.Tensor]:
    folder = find_checkpoints(config.run)[-1]
    return {
        f"{file.name}/{name}": tensor
        for file in folder.glob("*.safetensors")
        for name, tensor in read_tensors(file).tensors.items()
    }


def test_two_processes_go_on_as_if_nothing_had_been(config: Callable[..., Config], tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    averaged = {"optimizer": {"ema_decay": 0.9}}
    for run, steps in (("whole", 4), ("part", 2), ("part", 4)):
        assert run_ranks(2, train_and_note, config(run, steps, **averaged), notes) == [0, 0]
    given, wanted = weights(config("part", 4)), weights(config("whole", 4))
    assert given.keys() == wanted.keys()
    assert all(torch.equal(given[name], wanted[name]) for name in wanted)
    # each draws one of the two pictures: nobody waits for one that draws all
    assert {note.name[:3] for note in notes.iterdir()} == {"0 1", "1 1"}
    one = config("one", 5, batch_size=2, **averaged)
    alone = train(one).losses
    # one process goes on with what two have begun, if a step stays a step
    assert train(config("part", 5, batch_size=2, **averaged)).step == 5
    losses = [record["loss"] for record in read_records(config("part", 5).run) if record["kind"] == "train"]
    assert losses == pytest.approx(list(alone), rel=1e-3)
    names = [path.relative_to(one.run) for path in (one.run / "samples" / "step-00000000").rglob("*.png")]
    assert names
    assert all((one.run / name).read_bytes() == (tmp_path / "whole" / name).read_bytes() for name in names)


def trained_alike(config: Callable[..., Config], work: Callable[[Config], None]) -> Config:
    """Two processes train, leave and resume, one does with twice the batch: the same weights. The config of the one."""
    for steps in (2, 4):
        assert run_ranks(2, work, config("parts", steps)) == [0, 0]
    one = config("one", 4, batch_size=2)
    train(one)
    given, wanted = weights(config("parts", 4)), weights(one)
    assert given.keys() == wanted.keys()
    assert all(torch.allclose(given[name], wanted[name], atol=1e-5) for name in wanted)
    return one


def test_parts_of_the_weights_train_like_the_whole(config: Callable[..., Config]) -> None:
    """FSDP2: also saved, left and resumed; to the rounding of sums. Then again with layers of it that are frozen."""
    one = trained_alike(config, train_sharded)
    start = find_checkpoints(one.run)[-1] / ADAPTER
    frozen = {"adapter": {"pretrained": str(start), "blocks": "composition", "other_blocks": "frozen"}}
    assert run_ranks(2, train_sharded, config("frozen", 1, **frozen)) == [0, 0]
    again = config("again", 1, batch_size=2, **frozen)
    train(again)
    before, given, wanted = read_tensors(start).tensors, weights(config("frozen", 1)), weights(again)
    assert all(torch.allclose(given[name], wanted[name], atol=1e-5) for name in wanted)
    unchanged = {name for name in before if torch.equal(before[name], given[f"{ADAPTER}/{name}"])}
    assert unchanged == {name for name in before if torch.equal(before[name], wanted[f"{ADAPTER}/{name}"])}
    assert 0 < len(unchanged) < len(before)


@pytest.mark.parametrize("work", [train_with_one_thread, train_sharded, train_with_deepspeed])
def test_faces_and_their_lora_train_like_one(
    tmp_path: Path,
    small_base_folder: Callable[[str], Path],
    encoder_folder: Callable[[str], Path],
    work: Callable[[Config], None],
) -> None:
    """Also saved, left and resumed."""
    if work is train_with_deepspeed:
        pytest.importorskip("deepspeed", reason="pip install deepspeed")
    people = write_people(tmp_path / "people", 4)
    models = small_base_folder("sd15"), encoder_folder("clip"), people

    def of(run: str, steps: int, batch_size: int) -> Config:
        train = {"steps": steps, "batch_size": batch_size, "log_every": 1, "trackers": []}
        return face_config(*models, tmp_path / run, "faceid_plus_v2", train=train, objective={"drop_identity": 0.3})

    for steps in (2, 4):
        assert run_ranks(2, work, of("parts", steps, 1)) == [0, 0]
    train(of("one", 4, 2))
    given, wanted = weights(of("parts", 4, 1)), weights(of("one", 4, 2))
    assert given.keys() == wanted.keys()
    lora = [name for name in wanted if "_lora." in name]
    assert lora
    assert all(wanted[name].any() for name in lora)
    # AdamW moves a weight whose gradient is next to nothing by the sign of its rounding
    far = {name: ((given[name] - wanted[name]).abs() > 1e-5).float().mean() for name in wanted}
    assert all(share < 1e-3 for share in far.values())


def test_deepspeed_trains_like_the_whole(config: Callable[..., Config]) -> None:
    """ZeRO-2 of version 0.19; also saved, left and resumed; to the rounding of sums."""
    pytest.importorskip("deepspeed", reason="pip install deepspeed")
    trained_alike(config, train_with_deepspeed)
