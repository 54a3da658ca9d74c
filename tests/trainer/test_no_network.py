"""A training whose config names folders alone asks the network for nothing, from the first file to the report."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ipadapter_trainer.config_file import write_config
from support.network import PROGRAM, run_watched
from support.training import make_config, write_pictures


def test_a_training_from_folders_asks_nobody(
    tmp_path: Path, small_base_folder: Callable[..., Path], encoder_folder: Any
) -> None:
    pictures = write_pictures(tmp_path / "pictures")
    config = make_config(small_base_folder(), encoder_folder("clip"), pictures, tmp_path / "run", train={"steps": 2})
    write_config(config, tmp_path / "my.toml")
    assert run_watched(PROGRAM, "train", str(tmp_path / "my.toml")) == (0, [])
    assert (tmp_path / "run" / "report.html").is_file()
    assert (tmp_path / "run" / "adapter.safetensors").is_file()
