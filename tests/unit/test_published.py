"""Messages about a missing file tell where it can be had: the table is whole, and its lines are commands comfy-cli takes."""

import shlex
from urllib.parse import urlsplit

import pytest
from comfy_cli.command.models.models import app
from typer.main import get_command

from ipadapter_core.encoder import choice
from ipadapter_core.encoder.known import COMMON_NAMES
from ipadapter_core.errors import MismatchError, UnreadableFileError
from ipadapter_core.file.published import PUBLISHED, USUAL_ADAPTER, way_to

FOLDERS = {"ipadapter", "clip_vision", "loras", "insightface/models"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_line_is_one_that_comfy_cli_understands(name: str) -> None:
    page, line = way_to(name).split("\n")
    assert page.partition(": ")[0] == name
    words = shlex.split(line.partition(": ")[2])
    assert words[:3] == ["comfy", "model", "download"]
    given = get_command(app).commands["download"].make_context("download", words[3:]).params  # type: ignore[attr-defined]
    assert given["filename"] == name
    assert given["relative_path"].removeprefix("models/") in FOLDERS
    assert (urlsplit(given["url"]).scheme, urlsplit(given["url"]).netloc) == ("https", urlsplit(page.split()[1]).netloc)
    assert given["url"].startswith(page.split()[1])


@pytest.mark.parametrize("name", [f"sub/folder/{USUAL_ADAPTER}", f"Sub\\{USUAL_ADAPTER.upper()}"])
def test_a_file_is_known_in_any_folder(name: str) -> None:
    assert way_to(name) == way_to(USUAL_ADAPTER)


def test_nobody_knows_where_another_file_is() -> None:
    assert way_to("my own adapter.safetensors") == ""


def test_every_usual_encoder_can_be_had() -> None:
    wanted = {*choice.USUAL_ENCODERS.values(), *(key for key in COMMON_NAMES if key[3] == 336)}
    assert wanted <= choice._FILES.keys()
    assert {PUBLISHED[name].folder for name in choice._FILES.values()} == {"clip_vision"}


def test_what_is_to_be_copied_stands_on_lines_of_its_own() -> None:
    error = UnreadableFileError("a", expected="b", action="c", more="https://d\ncomfy e")
    assert str(error).split("\n") == ["Found: a. Expected: b. What to do: c.", "https://d", "comfy e"]
    assert str(MismatchError("a", expected="b", action="c")) == "Found: a. Expected: b. What to do: c."
