"""PE-Core and single files as image encoders of a run."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ipadapter_core.encoder import pe
from ipadapter_core.errors import MismatchError
from ipadapter_core.file.spec import Feature, Negative
from ipadapter_trainer.config import EncoderConfig
from ipadapter_trainer.files.inspection import inspect_path
from ipadapter_trainer.hub import ModelNotFoundError
from ipadapter_trainer.models.encoder_files import find_encoder
from ipadapter_trainer.models.image_encoder import ImageEncoder, load_image_encoder
from ipadapter_trainer.optimizer import MissingPackageError
from support.encoders import published_names
from support.tiny_pe import KEY, NAME, SIZE, WIDTH, meta_names, tiny_pe, write_pe_folder

CPU = torch.device("cpu")
FEATURE = "last_hidden_state"


@pytest.fixture
def reference(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setitem(pe.TIMM_NAMES, KEY, NAME)
    return tiny_pe()


def load(model: Path | str, feature: str = FEATURE, precision: str = "fp32") -> ImageEncoder:
    config = EncoderConfig.model_validate({"model": str(model), "feature": feature, "precision": precision})
    return load_image_encoder(config, "plus", CPU)


def save_timms(model: Any, path: Path) -> Path:
    save_file({name: tensor.clone() for name, tensor in model.state_dict().items()}, path)
    return path


def save_metas(model: Any, path: Path) -> Path:
    save_file(meta_names({name: tensor.clone() for name, tensor in model.state_dict().items()}), path)
    return path


def save_metas_own(model: Any, path: Path) -> Path:
    """As Meta publishes it, a pickle."""
    torch.save(meta_names(dict(model.state_dict())), path.with_suffix(".pt"))
    return path.with_suffix(".pt")


def save_folder(_model: Any, folder: Path) -> Path:
    write_pe_folder(folder)
    return folder


@pytest.mark.parametrize("save", [save_timms, save_metas, save_metas_own, save_folder])
def test_features_are_timms(reference: Any, tmp_path: Path, save: Callable[[Any, Path], Path]) -> None:
    place = save(reference, tmp_path / "pe.safetensors")
    encoder = load(place)
    pixels = encoder.format.pixels(torch.rand(2, 40, 30, 3))
    assert pixels.shape == (2, 3, SIZE, SIZE)
    assert pixels.min() < -0.5, "of 0.5 as mean and deviation"
    features = encoder.features(pixels)
    assert features.shape == (2, 5, WIDTH)
    torch.testing.assert_close(features, reference.forward_features(pixels), rtol=1e-5, atol=1e-5)
    assert (encoder.spec.kind, encoder.feature, encoder.width) == ("PE-Core", Feature.LAST_HIDDEN_STATE, WIDTH)
    assert encoder.no_image(Negative.ZERO_PIXELS).shape == (1, 5, WIDTH)
    assert find_encoder(str(place), "encoder.model").pixel_format() == encoder.format.pixel_format


def test_a_folder_of_timms_is_called_by_its_own_name(reference: Any, tmp_path: Path) -> None:
    """And `ipadapter inspect` says what it is, as of any folder that encoder.model may name."""
    place = save_folder(reference, tmp_path / "pe-core")
    assert load(place).name == "pe-core"
    found: Any = inspect_path(place)
    assert (found["kind"], found["encoder"]["kind"]) == ("image encoder", "PE-Core")
    assert found["next"] == f'encoder.model = "{place}"'


def test_a_file_in_half_precision(reference: Any, tmp_path: Path) -> None:
    encoder = load(save_timms(reference, tmp_path / "pe.safetensors"), precision="bf16")
    assert encoder.features(torch.zeros(1, 3, SIZE, SIZE)).isfinite().all()


def test_it_is_the_same_encoder_under_either_name(reference: Any, tmp_path: Path) -> None:
    """So that a cache made with one serves the other."""
    one, other = (save(reference, tmp_path / f"{save.__name__}.safetensors") for save in (save_timms, save_metas))
    assert load(one).identity == load(other).identity
    assert load(one).identity != load(save_timms(tiny_pe(seed=1), tmp_path / "other.safetensors")).identity


@pytest.mark.parametrize("feature", ["auto", "image_embeds", "hidden_states"])
def test_it_has_one_feature(reference: Any, tmp_path: Path, feature: str) -> None:
    with pytest.raises(MismatchError, match=r"encoder\.feature"):
        load(save_timms(reference, tmp_path / "pe.safetensors"), feature)


def test_without_timm_the_message_says_what_to_install(
    reference: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_timms(reference, tmp_path / "pe.safetensors")
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(
        MissingPackageError, match=r"pe\.safetensors, a PE-Core.*pip install timm, or set encoder\.model"
    ):
        load(path)


def test_siglip_of_a_single_file_is_that_of_its_folder(siglip_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = siglip_folder / "model.safetensors"
    one, other = load(file), load(siglip_folder)
    pixels = one.format.pixels(torch.rand(2, 40, 30, 3))
    assert one.format == other.format
    assert torch.equal(one.features(pixels), other.features(pixels))
    assert (one.identity, one.name) == (other.identity, "model.safetensors")


@pytest.fixture
def siglip_folder(tmp_path: Path) -> Path:
    """With heads of 64, as published ones have them."""
    import transformers

    settings = {"hidden_size": 128, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = transformers.SiglipVisionConfig(**settings, image_size=28, patch_size=14)
    folder = tmp_path / "siglip"
    model = transformers.SiglipVisionModel(config)
    model.save_pretrained(folder)
    save_file(published_names(model), folder / "model.safetensors")
    return folder


def test_a_single_file_that_needs_a_folder_is_refused(encoder_folder: Callable[[str], Path], tmp_path: Path) -> None:
    """And the advice, a folder with the file and its config, is followed."""
    folder = encoder_folder("clip")
    with pytest.raises(
        MismatchError, match=r"encoder\.model = .*a single file of .*name a folder that holds the file as"
    ):
        load(folder / "model.safetensors", "hidden_states")
    load(folder, "hidden_states")
    save_file({"a": torch.zeros(1)}, tmp_path / "something.safetensors")
    with pytest.raises(MismatchError, match="no encoder that is known"):
        load(tmp_path / "something.safetensors")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"encoder\.model.*of PE-Core and SigLIP a single file as well"):
        load(tmp_path / "pe.safetensors")


def test_a_file_with_a_tensor_less_is_refused(reference: Any, tmp_path: Path) -> None:
    path = save_timms(reference, tmp_path / "pe.safetensors")
    save_file({name: tensor for name, tensor in load_file(path).items() if name != "blocks.1.norm2.bias"}, path)
    with pytest.raises(Exception, match=r"timm cannot load.*What to do: download it again") as caught:
        load(path)
    assert type(caught.value).__name__ == "UnreadableFileError"
