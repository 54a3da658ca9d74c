"""Faces whose embeddings come with the data: from a list, a table, or files beside the pictures."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ipadapter_core.errors import IPAdapterError
from ipadapter_trainer.config import Config
from ipadapter_trainer.data.records import DataError
from ipadapter_trainer.data.skips import SKIPPED, read_skipped
from ipadapter_trainer.loop import train
from ipadapter_trainer.run import open_run
from support.face_files import EMBEDDING
from support.faces import face_picture, write_list


@pytest.fixture
def config(face_runs: Callable[..., Config]) -> Callable[..., Config]:
    return face_runs


@pytest.mark.parametrize("place", ["jsonl", "csv", "npy in a list", "beside"])
def test_ready_embeddings_are_read_without_a_pack(tmp_path: Path, config: Callable[..., Config], place: str) -> None:
    folder = tmp_path / "ready"
    folder.mkdir()
    vectors = np.random.default_rng(0).standard_normal((4, EMBEDDING)).astype(np.float32)
    rows: list[dict[str, Any]] = []
    for number, vector in enumerate(vectors):
        face_picture(number).save(folder / f"{number}.png")
        rows.append({"file_name": f"{number}.png", "text": "a"})
        if place == "jsonl":
            rows[-1]["face"] = vector.tolist()
        elif place == "csv":
            rows[-1]["face"] = json.dumps(vector.tolist())
        else:
            np.save(folder / f"{number}.npy", vector)
            rows[-1]["face"] = f"{number}.npy"
            (folder / f"{number}.txt").write_text("a")
    data: dict[str, Any] = {"identity_column": "face"}
    source = folder
    if place == "beside":
        data = {}
    elif place == "csv":
        source = folder / "list.csv"
        lines = ["file_name,text,face"] + [f'{row["file_name"]},{row["text"]},"{row["face"]}"' for row in rows]
        source.write_text("\n".join(lines))
    else:
        source = write_list(folder, rows)
    run = open_run(config("faceid", source, data=data, encoder={"face_model": None}))
    batch = next(run.batches(0))
    assert batch.references is not None
    wanted = torch.nn.functional.normalize(torch.from_numpy(vectors), dim=1)
    numbers = [int(Path(key).stem) for key in batch.keys]
    torch.testing.assert_close(batch.references["identity"], wanted[numbers])


def test_broken_ready_embeddings_are_skipped(tmp_path: Path, config: Callable[..., Config]) -> None:
    good = np.ones(EMBEDDING, np.float32).tolist()
    broken = {"none": None, "zeros": [0.0] * EMBEDDING, "words": ["a"], "missing": "gone.npy"}
    rows = []
    for name, value in {"good": good, **broken}.items():
        face_picture(0).save(tmp_path / f"{name}.png")
        rows.append({"file_name": f"{name}.png", "text": "a", "face": value})
    data = {"identity_column": "face", "max_skipped": 1.0}
    settings = config("faceid", write_list(tmp_path, rows), data=data, encoder={"face_model": None})
    train(settings)
    assert {Path(each.path).stem for each in read_skipped(settings.run / SKIPPED)} == broken.keys()
    rows = [{"file_name": "good.png", "text": "a", "face": [1.0] * 7}]
    short = config("faceid", write_list(tmp_path, rows), run="short", data=data, encoder={"face_model": None})
    with pytest.raises(IPAdapterError, match=r"shape \[7\].*512 numbers"):
        train(short)


def test_shards_have_no_ready_embeddings(tmp_path: Path, config: Callable[..., Config]) -> None:
    shards = tmp_path / "0.tar"
    shards.touch()
    with pytest.raises(DataError, match=r"identity_column.*face_model"):
        train(config("faceid", shards, data={"identity_column": "face"}, encoder={"face_model": None}))
