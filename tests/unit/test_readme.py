"""What README.md says is so: its commands are run or it is said why not, its figures are measured, its links lead there."""

import ast
import json
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from comfy_cli.command.models.models import app as models_of_comfy
from PIL import Image
from typer.main import get_command

from demo.references import FILES
from legacy.facts import FACTS
from legacy.former_facts import FORMER
from support.package import is_packed
from support.published import PUBLISHED

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
OPENING = README[: README.index("\n## Nodes\n")]
REPOSITORY = "https://github.com/ipadapter-studio/ipadapter-studio"
RAW = "https://raw.githubusercontent.com/ipadapter-studio/ipadapter-studio/main/"
LARGEST_SCREENSHOT = 300_000  # bytes


@dataclass(frozen=True)
class RunBy:
    """A test, `file::function`, that runs the command."""

    test: str


@dataclass(frozen=True)
class NotRun:
    """Why no test runs the command."""

    why: str


NETWORK = NotRun("fetches from the network, and tests ask nobody")
RELEASE = NotRun("works when 0.1.0 is in the registry")
DOWNLOAD = NotRun("fetches gigabytes; that comfy-cli takes the line is test_comfy_cli_takes_the_downloads")
GUIDE = RunBy("tests/trainer/test_training_guide.py::test_the_guide_works_from_pictures_to_pictures")
DEMO = "tests/comfy/test_demo.py::"
BENCH = NotRun("takes minutes; run by hand when the sampling path or the training step changes")
COMMANDS: dict[str, RunBy | NotRun] = {
    "cd ComfyUI/custom_nodes": NotRun("every test in ComfyUI has the checkout there: scripts/comfyui.sh"),
    f"git clone --depth 1 {REPOSITORY}": NETWORK,
    f"git clone --depth 1 {REPOSITORY} ComfyUI_IPAdapter_plus": NETWORK,
    "rm -rf ComfyUI_IPAdapter_plus": NotRun("removes another pack; tests/legacy/test_hosts.py plays what comes after"),
    "comfy node install ipadapter-studio": RELEASE,
    "comfy --here model download": DOWNLOAD,
    "pip install -e '.[train]'": NotRun(
        "scripts/env.sh installs the project so, from its lock: tests/unit/test_set_up.py"
    ),
    "pip install timm": NETWORK,
    "pip install onnxruntime": NETWORK,
    "ipadapter new": GUIDE,
    "ipadapter plan": GUIDE,
    "ipadapter train": GUIDE,
    "ipadapter inspect": GUIDE,
    "scripts/demo.sh": RunBy(f"{DEMO}test_it_holds_and_writes_sheet_and_page"),
    "scripts/demo.sh --image": RunBy(f"{DEMO}test_a_bad_picture_is_named"),
    "scripts/demo.sh --serve": RunBy(f"{DEMO}test_serve_has_everything_in_place_and_ends_cleanly"),
    "COMFYUI_PATH=~/ComfyUI scripts/demo.sh --install": RunBy(f"{DEMO}test_install_asks_for_a_comfyui"),
    "COMFYUI_PATH=~/ComfyUI scripts/demo.sh --checkpoint": RunBy(
        f"{DEMO}test_an_unknown_name_is_answered_with_the_known_ones"
    ),
    "scripts/test.sh": RunBy("tests/unit/test_lanes.py::test_lanes_run_at_once_and_speak_one_after_the_other"),
    "scripts/env.sh COMMAND": RunBy(
        "tests/unit/test_set_up.py::test_what_the_lock_says_is_installed_once_and_again_when_it_changes"
    ),
    "scripts/env.sh python bench/": BENCH,
    "demo/make.sh": NotRun("takes hours; tests/demo runs its parts"),
    ".ci/run": NotRun("runs the tests itself"),
}
PROGRAM = r"(?:COMFYUI_PATH=\S+ )?(?:scripts/\w+\.sh|demo/make\.sh|\.ci/run|(?:comfy|pip|git|ipadapter) )"


def commands() -> list[str]:
    """Every line of a block of commands, and every command within a line."""
    blocks = "".join(re.findall(r"^```sh\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)).splitlines()
    prose = re.sub(r"^```.*?^```$", "", README, flags=re.DOTALL | re.MULTILINE)
    return [re.sub(r"\s+# .*", "", line) for line in blocks] + re.findall(rf"`({PROGRAM}[^`\n]*)`", prose)


def entry_of(command: str) -> str | None:
    """The longest beginning of a command that is in `COMMANDS`."""
    return max((known for known in COMMANDS if command.startswith(known)), key=len, default=None)


def test_every_command_is_run_by_a_test_or_says_why_not() -> None:
    assert len(commands()) > 25
    assert [command for command in commands() if entry_of(command) is None] == []
    assert set(COMMANDS) - {entry_of(command) for command in commands()} == set()


@pytest.mark.parametrize("entry", [entry for entry in COMMANDS.values() if isinstance(entry, RunBy)], ids=str)
def test_the_tests_named_are_there(entry: RunBy) -> None:
    file, _, name = entry.test.partition("::")
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def downloads() -> list[dict[str, Any]]:
    """What comfy-cli makes of each line; it raises where there is no such option."""
    lines = [shlex.split(command) for command in commands() if command.startswith("comfy --here model download ")]
    group: Any = get_command(models_of_comfy)
    return [group.commands["download"].make_context("download", line[4:]).params for line in lines]


def test_comfy_cli_takes_the_downloads() -> None:
    """Each file of the table of three, from the page it links, into the folder it names."""
    table = OPENING[OPENING.index("\n## Three files\n") :]
    rows = re.findall(r"^\|[^|]*\| \[[^\]]*\]\((\S+)\)[^|]*\| `(models/\w+)` \|$", table, re.MULTILINE)
    assert len(rows) == 3
    assert [(given["url"], given["relative_path"]) for given in downloads()] == rows
    assert {given["filename"].rpartition(".")[2] for given in downloads()} == {"safetensors"}


def test_the_first_template_loads_the_three_files() -> None:
    (title,) = re.findall(r"\*IP-Adapter Studio\*, \*([^*]+)\*", OPENING[OPENING.index("\n## First picture\n") :])
    workflow = json.loads((ROOT / "workflows" / f"{title}.json").read_text(encoding="utf-8"))
    models = [model for node in workflow["nodes"] for model in node.get("properties", {}).get("models", [])]
    assert {(model["url"], f"models/{model['directory']}") for model in models} == {
        (given["url"], given["relative_path"]) for given in downloads()
    }


def test_every_workflow_and_blueprint_is_named() -> None:
    section = " ".join(README.split("\n## Nodes\n")[1].partition("\n## ")[0].split())
    files = [*(ROOT / "workflows").glob("*.json"), *(ROOT / "subgraphs").glob("*.json")]
    names = {path.stem for path in files if not path.stem.endswith(".app")}
    assert len(names) > 15
    assert [name for name in names if f"*{name}*" not in section] == []


def assigned(file: str, name: str) -> Any:
    """The constant that a module assigns to a name."""
    for node in ast.parse((ROOT / file).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == [name]:
            return ast.literal_eval(node.value)
    raise AssertionError(f"{file} assigns nothing to {name}")


def bench(file: str, name: str) -> float:
    return json.loads((ROOT / "bench" / "figures.json").read_text(encoding="utf-8"))[file][name]


def layers(kind: str) -> float:
    return sum(name.endswith("to_k_ip.weight") for name in PUBLISHED[kind]())


def versions() -> list[str]:
    script = (ROOT / "scripts" / "comfyui.sh").read_text(encoding="utf-8")
    return sorted(re.findall(r"^    (\d+\.\d+\.\d+)\) carrier=", script, re.MULTILINE))


FIGURES: dict[str, Callable[[], list[Any]]] = {
    "workflows saved with IPAdapter_plus": lambda: [len(FACTS), len(FORMER)],
    "layers that get the image, SD1.5, SDXL": lambda: [layers("sd15_plus"), layers("sdxl_plus")],
    "equal to diffusers": lambda: [
        assigned("tests/parity/test_attention.py", "EXACT")["atol"],
        assigned("tests/comfy/test_parity.py", "RELATIVE"),
    ],
    "on the GPU while sampling, SDXL plus": lambda: [
        round(bench("resident_memory.py", "sdxl_plus_bytes") / 1e6, 1),
    ],
    "copies from GPU to host in a step": lambda: [bench("attention_overhead.py", "copies_per_step")],
    "after a change of strength, range, preset or mask": lambda: [bench("requeue.py", "encoder_calls_after_change")],
    "tested in": versions,
}


def facts() -> dict[str, tuple[str, str]]:
    """The rows of the table of facts: here, and in IPAdapter_plus."""
    section = OPENING.split("\n## Why instead of IPAdapter_plus\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \|([^|]*)\|$", section, re.MULTILINE)
    return {name: (here, there.strip()) for name, here, there in rows}


def figures(cell: str) -> list[Any]:
    """Its numbers, not those within names; versions as they are written."""
    found = re.findall(r"(?<![\w.-])\d+(?:\.\d+)*(?:e-\d+)?(?![\w.]*\w)", cell)
    return [number if number.count(".") > 1 else float(number) for number in found]


def test_figures_are_measured() -> None:
    stated = {name: figures(here) for name, (here, _) in facts().items()}
    assert {name: found for name, found in stated.items() if found} == {name: make() for name, make in FIGURES.items()}


def test_what_is_said_of_the_other_pack_names_its_source() -> None:
    """Or it is the pack's own list of nodes and models; what was not measured there is left empty."""
    assert len(facts()) > 12
    unsaid = {name for name, (_, there) in facts().items() if there and "](https://github.com/" not in there}
    assert unsaid == {"base models", "workflows saved with IPAdapter_plus"}


def test_the_share_that_the_demo_must_reach_is_that_of_the_test() -> None:
    limits = assigned("tests/comfy/test_meaning.py", "LIMITS")
    proof = README[README.index("**What the sheet proves.**") :].partition("\n\n")[0]
    stated = [int(number) for number in re.findall(r"(?<![\w/])\d+(?!\w)", proof)]
    assert stated == [round(100 * limits["retrieval"]), len(FILES), round(100 * limits["base"])]


def test_it_begins_with_what_a_newcomer_asks() -> None:
    order = re.findall(r"^(!\[|## .*)", OPENING, re.MULTILINE)
    assert order == ["![", "## Why instead of IPAdapter_plus", "## Install", "## Three files", "## First picture"]
    (screenshot,) = re.findall(rf"^!\[[^\]]+\]\({RAW}(\S+)\)$", OPENING, re.MULTILINE)
    assert (ROOT / screenshot).stat().st_size < LARGEST_SCREENSHOT
    with Image.open(ROOT / screenshot) as picture:
        assert picture.format == "JPEG"
        assert picture.width >= 1200


def headings(page: Path) -> set[str]:
    """Anchors as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_links_lead_somewhere_in_the_package_too() -> None:
    """A file that the package leaves out is linked where it is online."""
    links = re.findall(r'(?:\]\(|src="|href=")([^)"\s]+)', README)
    assert len(links) > 40
    for link in links:
        path, _, anchor = link.removeprefix(f"{REPOSITORY}/blob/main/").removeprefix(RAW).partition("#")
        if path.startswith("http"):
            continue
        page = ROOT / (path or "README.md")
        assert page.exists(), link
        assert is_packed(path or "README.md") or link.startswith("http"), f"{link}: not in the package"
        if anchor:
            assert anchor in headings(page), link


def test_what_needs_a_checkout_is_said_to() -> None:
    """The registry package has nodes, trainer and workflows alone."""
    for section in README.split("\n## ")[1:]:
        left_out = re.findall(r"`(?:COMFYUI_PATH=\S+ )?((?:scripts|demo|bench)/[^`\s]*)", section)
        left_out += re.findall(r"^(?:scripts|demo|bench)/\S+", section, re.MULTILINE)
        assert not left_out or "checkout" in section, section.partition("\n")[0]
