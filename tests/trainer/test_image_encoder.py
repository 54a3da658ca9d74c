"""Every kind of encoder gives the features of the layer that was asked for, and says who it is."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ipadapter_core.errors import MismatchError
from ipadapter_core.file.spec import Feature, Negative
from ipadapter_trainer.config import EncoderConfig
from ipadapter_trainer.hub import ModelNotFoundError
from ipadapter_trainer.models.image_encoder import ImageEncoder, load_image_encoder
from support.encoders import EMBED_DIM, FOLDERS, LAYERS, WIDTH, write_folder

CPU = torch.device("cpu")


def load(folder: Path, kind: str = "plus", **settings: Any) -> ImageEncoder:
    return load_image_encoder(EncoderConfig(model=str(folder), precision="fp32", **settings), kind, CPU)


@pytest.mark.parametrize("name", FOLDERS)
@pytest.mark.parametrize("layer", [-1, -2])
def test_hidden_states_of_the_layer(encoder_folder: Callable[[str], Path], name: str, layer: int) -> None:
    folder = encoder_folder(name)
    encoder = load(folder, layer=layer)
    pixels = encoder.format.pixels(torch.rand(2, 40, 30, 3))
    features = encoder.features(pixels)
    assert features.shape[0] == 2
    assert features.shape[2] == encoder.width == WIDTH
    assert features.dtype == torch.float32
    if name in ("clip", "siglip", "dinov2", "dinov3"):
        wanted = encoder.vision.model(pixels, output_hidden_states=True).hidden_states[layer]
        assert torch.equal(features, wanted)
    assert (encoder.feature, encoder.layer, encoder.name) == (Feature.HIDDEN_STATES, layer, folder.name)


@pytest.mark.parametrize("name", FOLDERS)
def test_pooled_embedding(encoder_folder: Callable[[str], Path], name: str) -> None:
    encoder = load(encoder_folder(name), "base")
    features = encoder.features(encoder.format.pixels(torch.rand(3, 40, 30, 3)))
    assert features.shape == (3, encoder.width)
    assert encoder.width == (EMBED_DIM if name.endswith("clip") else WIDTH)


def test_what_stands_for_no_image(encoder_folder: Callable[[str], Path]) -> None:
    encoder = load(encoder_folder("clip"))
    size = encoder.format.pixel_format.size
    assert not encoder.no_image(Negative.ZERO_FEATURES).any()
    zeros = encoder.no_image(Negative.ZERO_PIXELS)
    assert torch.equal(zeros, encoder.features(torch.zeros(1, 3, size, size)))
    assert zeros.any()
    assert zeros.shape == encoder.no_image(Negative.ZERO_FEATURES).shape


def test_identity_tells_weights_and_layer_but_not_the_folder(
    tmp_path: Path, encoder_folder: Callable[[str], Path]
) -> None:
    folder = encoder_folder("clip")
    first = load(folder)
    copy = write_folder("clip", tmp_path / "copy") and tmp_path / "copy"
    other = write_folder("clip", tmp_path / "other", seed=1) and tmp_path / "other"
    assert load(copy).identity == first.identity
    assert load(other).identity != first.identity
    assert load(folder, layer=-3).identity != first.identity
    assert load(folder, "base").identity != first.identity
    assert load(folder, "base", layer=-3).identity == load(folder, "base").identity


@pytest.mark.parametrize("layer", [-LAYERS - 2, -99])
def test_layer_it_does_not_have(encoder_folder: Callable[[str], Path], layer: int) -> None:
    with pytest.raises(MismatchError, match=f"a layer from {-LAYERS - 1} to -1"):
        load(encoder_folder("dinov2"), layer=layer)


def test_model_that_is_nowhere(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"encoder.model = 'nobody/nothing'.*a folder with config.json"):
        load_image_encoder(EncoderConfig(model="nobody/nothing"), "base", CPU)
    with pytest.raises(ModelNotFoundError, match=r"no folder here.*correct encoder.model"):
        load(tmp_path / "missing")
