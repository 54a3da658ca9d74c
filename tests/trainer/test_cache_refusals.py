"""What `ipadapter train` refuses, `cache` and `eval` refuse before anything is encoded."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from ipadapter_core.errors import IPAdapterError
from ipadapter_core.network.adapter import save_adapter
from ipadapter_trainer.commands.cache import cache
from ipadapter_trainer.config import AdapterConfig, Config
from ipadapter_trainer.config_file import write_config
from ipadapter_trainer.evaluation import evaluate
from ipadapter_trainer.models.image_encoder import load_image_encoder
from ipadapter_trainer.models.loading import load_base
from ipadapter_trainer.models.network import new_adapter
from ipadapter_trainer.run import open_run
from support.faces import face_config, write_people
from support.ldm_names import write_single_file
from support.tiny_anima_base import write_anima_base
from support.tiny_flux_base import write_flux_base
from support.tiny_sd3_base import write_sd3_base
from support.tiny_studio_base import write_studio_base
from support.training import make_config, write_pictures

CPU = torch.device("cpu")
PLUS = {"kind": "plus", "tokens": 4, "resampler_dim": 64}
TRANSFORMERS: dict[str, Callable[[Path], Path]] = {
    "flux": write_flux_base,
    "sd3": write_sd3_base,
    "z_image": partial(write_studio_base, family="z_image"),
    "qwen_image": partial(write_studio_base, family="qwen_image"),
    "anima": write_anima_base,
}
Sections = dict[str, dict[str, Any]]
CASES: dict[str, tuple[str, Sections]] = {  # family, and what a config of a good run is given
    "side of a token": ("qwen_image", {"data": {"resolution": 72}}),
    "largest side": ("sd3", {"data": {"resolution": 272}}),
    "kind": ("z_image", {"adapter": {"kind": "base"}}),
    "weights of a schedule": ("flux", {"objective": {"min_snr_gamma": 5.0}}),
    "feature": ("anima", {"encoder": {"feature": "hidden_states"}}),
    "zero terminal SNR": ("sd15", {"objective": {"zero_terminal_snr": True}}),
    "preset": ("sd15", {"adapter": {"kind": "base", "blocks": "stile"}}),
    "width of a resampler": ("sd15", {"adapter": {"kind": "plus", "resampler_dim": 65}}),
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def of(family: str) -> Path:
        if family not in made:
            made[family] = TRANSFORMERS[family](tmp_path_factory.mktemp("base") / family)
        return made[family]

    return of


@pytest.fixture
def encoding_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a check that comes after it shows."""

    def no_encoding(*_: Any, **__: Any) -> None:
        raise AssertionError("something is encoded")

    monkeypatch.setattr("ipadapter_trainer.cache.fill.fill", no_encoding)
    monkeypatch.setattr("ipadapter_trainer.evaluation.build_grid", no_encoding)
    monkeypatch.setattr("ipadapter_trainer.evaluation.open_drawing", no_encoding)


def refusal(run: Callable[[], object]) -> str:
    with pytest.raises(IPAdapterError) as caught:
        run()
    return str(caught.value)


def assert_cache_refuses_what_train_does(config: Config, folder: Path) -> None:
    config = config.model_copy(update={"cache": config.cache.model_copy(update={"path": str(folder / "cache")})})
    write_config(config, folder / "config.toml")
    wanted = refusal(lambda: open_run(config, lacking="fill"))
    assert refusal(lambda: cache(folder / "config.toml")) == wanted
    assert not (folder / "cache").exists()


@pytest.mark.parametrize("family", TRANSFORMERS)
@pytest.mark.parametrize("kind", ["faceid", "faceid_plus_v2"])
@pytest.mark.usefixtures("encoding_fails")
def test_faces_with_a_transformer(
    bases: Callable[[str], Path], encoder_folder: Callable[[str], Path], tmp_path: Path, family: str, kind: str
) -> None:
    people, parts = write_people(tmp_path / "people"), {"cache": {"parts": ["latents", "text"]}}
    config = face_config(bases(family), encoder_folder("clip"), people, tmp_path / "run", kind, **parts)
    assert_cache_refuses_what_train_does(config, tmp_path)


@pytest.fixture
def config(
    bases: Callable[[str], Path],
    small_base_folder: Callable[[str], Path],
    encoder_folder: Callable[[str], Path],
    tmp_path: Path,
) -> Callable[[str], Config]:
    def make(case: str) -> Config:
        family, changes = CASES[case]
        base = small_base_folder(family) if family == "sd15" else bases(family)
        good: Sections = {"adapter": PLUS, "validation": {"images": 2}}
        if family == "anima":
            good["encoder"] = {"feature": "last_hidden_state"}
        pictures = write_pictures(tmp_path / "pictures", 4)
        return make_config(base, encoder_folder("clip"), pictures, tmp_path / "run", **good | changes)

    return make


@pytest.mark.parametrize("case", CASES)
@pytest.mark.usefixtures("encoding_fails")
def test_settings_that_no_run_has(config: Callable[[str], Config], tmp_path: Path, case: str) -> None:
    assert_cache_refuses_what_train_does(config(case), tmp_path)


@pytest.mark.parametrize("case", ["side of a token", "largest side", "weights of a schedule", "zero terminal SNR"])
@pytest.mark.usefixtures("encoding_fails")
def test_eval_of_a_run_that_cannot_be(config: Callable[[str], Config], tmp_path: Path, case: str) -> None:
    asked = config(case)
    file = tmp_path / "adapter.safetensors"
    encoder = load_image_encoder(asked.encoder, asked.adapter.kind, CPU)
    save_adapter(new_adapter(asked.adapter, load_base(asked.base, CPU), encoder).adapter, file)
    wanted = refusal(lambda: open_run(asked))
    assert refusal(lambda: evaluate(asked, file, tmp_path / "eval", images=None)) == wanted


@pytest.mark.usefixtures("encoding_fails")
def test_a_start_that_does_not_fit(config: Callable[[str], Config], tmp_path: Path) -> None:
    file, asked = tmp_path / "adapter.safetensors", config("preset")
    encoder = load_image_encoder(asked.encoder, "plus", CPU)
    save_adapter(new_adapter(AdapterConfig.model_validate(PLUS), load_base(asked.base, CPU), encoder).adapter, file)
    wrong = AdapterConfig.model_validate(PLUS | {"tokens": 5, "pretrained": str(file)})
    assert_cache_refuses_what_train_does(asked.model_copy(update={"adapter": wrong}), tmp_path)


@pytest.mark.usefixtures("encoding_fails")
def test_a_single_file(single_file: tuple[Path, Path], config: Callable[[str], Config], tmp_path: Path) -> None:
    """Whose layers are those of base.config."""
    file, folder = single_file
    asked = config("preset")
    base = asked.base.model_copy(update={"model": str(file), "config": str(folder)})
    assert_cache_refuses_what_train_does(asked.model_copy(update={"base": base}), tmp_path)


@pytest.fixture
def single_file(small_base_folder: Callable[[str], Path], tmp_path: Path) -> tuple[Path, Path]:
    folder, file = small_base_folder("sd15"), tmp_path / "one.safetensors"
    write_single_file(folder, file)
    return file, folder
