"""An adapter for an SD3 whose first blocks attend to the picture once more: for our nodes, and not for diffusers."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from diffusers import StableDiffusion3Pipeline

from ipadapter_core.errors import UnreadableFileError
from ipadapter_core.file.container import read_tensors, write_safetensors
from ipadapter_core.file.sd3 import base_of_blocks
from ipadapter_core.file.spec import SPEC_KEY
from ipadapter_core.network.adapter import load_adapter
from ipadapter_trainer.config import Config
from ipadapter_trainer.files.checkpoint_export import export_checkpoint
from ipadapter_trainer.files.inspection import inspect_path
from ipadapter_trainer.files.portability import NATIVE_ONLY
from ipadapter_trainer.loop import train
from support.tiny_sd3_base import sd3_transformer, write_sd3_base
from support.training import make_config, write_pictures

pytestmark = pytest.mark.usefixtures("no_report")


@pytest.fixture
def config(tmp_path: Path, encoder_folder: Callable[[str], Path]) -> Config:
    return make_config(
        write_sd3_base(tmp_path / "base", transformer=sd3_transformer(dual=(0,))),
        encoder_folder("siglip"),
        write_pictures(tmp_path / "pictures", 4),
        tmp_path / "run",
        encoder={"crop": "stretch"},
        adapter={"kind": "plus", "tokens": 4, "resampler_dim": 64},
        train={"steps": 1, "batch_size": 2, "log_every": 1, "trackers": []},
    )


def test_nobody_is_told_that_diffusers_loads_it(config: Config, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        train(config)
    assert "for our nodes only" in caplog.text
    report = export_checkpoint(config.run, None)
    assert report.portability.label == NATIVE_ONLY
    assert "second attentions" in report.portability.reasons[0]
    card = report.card.read_text(encoding="utf-8")
    assert NATIVE_ONLY in card
    assert "load_ip_adapter" not in card
    assert inspect_path(report.path)["loads_in"] == {
        "native nodes": True,
        "diffusers": False,
        "other ComfyUI nodes": False,
        "InvokeAI": False,
    }
    pipeline = StableDiffusion3Pipeline.from_pretrained(config.base.model)
    pipeline.load_ip_adapter(
        str(report.path.parent), subfolder="", weight_name=report.path.name, image_encoder_folder=None
    )
    lost = {name for name, tensor in pipeline.transformer.named_parameters() if tensor.is_meta}
    assert lost, "diffusers has mended its loader: look again at what is said of it"


def test_what_a_file_states_is_held_against_its_blocks(config: Config, tmp_path: Path) -> None:
    train(config)
    content = read_tensors(export_checkpoint(config.run, None).path)
    assert load_adapter(config.run / "adapter.safetensors").spec.second_attentions == 1
    stated = json.loads(content.metadata[SPEC_KEY])
    for wrong in (3, -1, "all"):
        file = tmp_path / f"{wrong}.safetensors"
        write_safetensors(file, content.tensors, {SPEC_KEY: json.dumps(stated | {"second_attentions": wrong})})
        with pytest.raises(UnreadableFileError, match="second_attentions"):
            load_adapter(file)


def test_medium_is_called_by_its_name() -> None:
    assert base_of_blocks((1536,) * 24, 13) == "SD3.5-Medium"
    assert base_of_blocks((2432,) * 38) == "SD3.5-Large"


def test_a_resampler_that_diffusers_does_not_build_is_said_in_words(config: Config) -> None:
    one = config.adapter.model_copy(update={"resampler_depth": 1})
    train(config.model_copy(update={"adapter": one}))
    reasons = export_checkpoint(config.run, None).portability.reasons
    assert "it builds a resampler of 4 layers with heads of 64, this has 1 of 64" in reasons[0]
