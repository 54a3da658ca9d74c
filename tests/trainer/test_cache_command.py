"""`ipadapter cache` says what it did, finds damage, and deletes what no config reads any more."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from ipadapter_core.errors import IPAdapterError
from ipadapter_trainer.commands.cache import cache
from support.pictures import write_folder

PICTURES = 3
CONFIG = """
[base]
model = '{base}'
precision = "fp32"
[encoder]
model = '{encoder}'
precision = "fp32"
[data]
path = '{folder}/data'
resolution = 16
workers = 0
[train]
output = '{folder}/run'
steps = 1
[cache]
path = '{folder}/cache'
shard_size = 2
"""


@pytest.fixture
def config(tmp_path: Path, base_folder: Callable[..., Path], encoder_folder: Callable[..., Path]) -> Path:
    write_folder(tmp_path / "data", PICTURES)
    path = tmp_path / "config.toml"
    path.write_text(CONFIG.format(base=base_folder(), encoder=encoder_folder("clip"), folder=tmp_path))
    return path


def _run(config: Path, *options: str) -> tuple[str, str]:
    app = typer.Typer()
    app.command()(cache)
    result = CliRunner().invoke(app, [str(config), *options])
    if result.exception is not None:
        raise result.exception
    return result.stdout, result.stderr


def _json(config: Path, *options: str) -> dict[str, object]:
    result: dict[str, object] = json.loads(_run(config, "--json", *options)[0])
    return result


def test_it_counts_what_it_made_and_what_it_found(config: Path) -> None:
    first, second = _json(config), _json(config)
    assert first["latents"] == {"computed": PICTURES, "reused": 0, "failed": 0, "bytes": _bytes(config, "latents")}
    assert second["latents"] == {"computed": 0, "reused": PICTURES, "failed": 0, "bytes": _bytes(config, "latents")}
    assert (first["skipped"], first["unused_bytes"]) == (0, 0)
    assert "latents: computed" in _run(config)[0]


def test_what_other_settings_made_is_said_and_deleted_when_asked(config: Path) -> None:
    _json(config)
    unused = _bytes(config, "latents")
    out, err = _run(config, "--json", "--set", "data.resolution=24")
    assert json.loads(out)["unused_bytes"] == unused
    assert "--prune deletes it" in err
    assert len(list((config.parent / "cache").glob("latents-*"))) == 2
    assert _json(config, "--set", "data.resolution=24", "--prune")["freed_bytes"] == unused
    assert len(list((config.parent / "cache").glob("latents-*"))) == 1


def test_check_finds_a_flipped_bit_and_makes_the_shard_again(config: Path) -> None:
    _json(config)
    shard = next((config.parent / "cache").glob("features-*/*.safetensors"))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 64
    shard.write_bytes(content)
    assert _json(config)["features"]["computed"] == 0  # type: ignore[index]
    result = _json(config, "--check")
    assert result["damaged"] == [str(shard)]
    assert 0 < result["features"]["computed"] <= 2  # type: ignore[index]
    assert _json(config, "--check")["damaged"] == []


def test_a_config_without_a_cache_is_said_before_anything_is_loaded(config: Path) -> None:
    config.write_text(config.read_text().partition("[cache]")[0].replace("model = '", "model = '/nowhere"))
    with pytest.raises(IPAdapterError, match=r"without cache\.path.*--set cache\.path=cache"):
        _run(config)


def _bytes(config: Path, kind: str) -> int:
    (folder,) = (config.parent / "cache").glob(f"{kind}-*")
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
