"""Code that lies in a model's folder is not run, and nobody is asked whether to: the folder is refused."""

import io
import json
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ipadapter_core.errors import IPAdapterError
from ipadapter_trainer.config import BaseModelConfig, EncoderConfig, ValidationConfig
from ipadapter_trainer.models.image_encoder import load_image_encoder
from ipadapter_trainer.models.loading import ModelNotFoundError, load_base
from ipadapter_trainer.readers.pictures import PictureReader
from ipadapter_trainer.watch.metrics import load_judge

CPU = torch.device("cpu")
RAN, PRINTS = "ran", "this"  # a module of Python's that prints when it is imported


class RunsCode:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return open, (str(self.path), "x")


def write_module(folder: Path) -> None:
    (folder / "own.py").write_text(f"open({str(folder.parent / RAN)!r}, 'x')\nclass Own: pass\n")


def edit(file: Path, **values: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | values), encoding="utf-8")


def own_pipeline(folder: Path) -> None:
    write_module(folder)
    shutil.copy(folder / "own.py", folder / "pipeline.py")
    edit(folder / "model_index.json", _class_name=["own", "Own"])


def own_part(folder: Path) -> None:
    write_module(folder)
    shutil.copy(folder / "own.py", folder / "unet")
    edit(folder / "model_index.json", unet=["own", "Own"])


def installed_module(folder: Path) -> None:
    edit(folder / "model_index.json", unet=[PRINTS, "Own"])


def own_text_encoder(folder: Path) -> None:
    write_module(folder)
    shutil.copy(folder / "own.py", folder / "text_encoder")
    edit(folder / "model_index.json", text_encoder=["transformers", "AutoModel"])
    edit(folder / "text_encoder" / "config.json", model_type="own", auto_map={"AutoConfig": "own.Own"})


def pickled_weights(folder: Path) -> None:
    for file in (folder / "unet").glob("*.safetensors"):
        file.unlink()
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps(RunsCode(folder.parent / RAN)))


@pytest.mark.parametrize(
    ("plant", "message"),
    [
        (own_pipeline, "cannot be loaded"),
        (own_part, "takes its unet from 'own'.*importing another module runs it"),
        (installed_module, "takes its unet from 'this'"),
        (own_text_encoder, "cannot be loaded"),
        (pickled_weights, "cannot be loaded"),
    ],
)
def test_no_code_of_a_base(
    plant: Callable[[Path], None],
    message: str,
    tmp_path: Path,
    base_folder: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))
    folder = shutil.copytree(base_folder(), tmp_path / "base")
    plant(folder)
    with pytest.raises(IPAdapterError, match=message):
        load_base(BaseModelConfig(model=str(folder), precision="fp32"), CPU)
    assert not (tmp_path / RAN).exists()
    assert PRINTS not in sys.modules


def test_no_code_of_an_evaluation_encoder(
    tmp_path: Path, encoder_folder: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))
    folder = shutil.copytree(encoder_folder("dinov2"), tmp_path / "judge")
    write_module(folder)
    own = dict.fromkeys(("AutoConfig", "AutoModel", "AutoImageProcessor"), "own.Own")
    edit(folder / "config.json", model_type="own", auto_map=own)
    trained = load_image_encoder(EncoderConfig(model=str(encoder_folder("clip")), precision="fp32"), "base", CPU)
    with pytest.raises(ModelNotFoundError, match="custom code"):
        load_judge(ValidationConfig(dino_model=str(folder)), PictureReader(trained), CPU)
    assert not (tmp_path / RAN).exists()
    assert "[y/N]" not in capsys.readouterr().out
