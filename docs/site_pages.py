"""What mkdocs makes the site of: pages stay where they are read elsewhere, and their links lead on within the site.

A hook of mkdocs, see mkdocs.yml; `scripts/docs.sh` builds it.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
REPOSITORY = "https://github.com/ipadapter-studio/ipadapter-studio/blob/main/"
RAW = "https://raw.githubusercontent.com/ipadapter-studio/ipadapter-studio/main/"
HELP = "nodes/web/docs"
GUIDES = ("training", "migrating", "formats", "scaling")
NOTES = ("CHANGELOG", "CONTRIBUTING", "SECURITY")
LINK = re.compile(r'(?P<before>\]\(|\b(?:src|href)=")(?P<target>[^)"\s]+)')


class MissingFileError(Exception):
    """A page links a file that is not in the checkout."""


def pages() -> dict[str, str]:
    """Address on the site by path in the checkout."""
    notes = {f"{name}.md": f"{name.lower()}.md" for name in NOTES}
    guides = {f"docs/{path.name}": path.name for path in sorted((ROOT / "docs").glob("*.*")) if path.suffix != ".py"}
    files = sorted(path.relative_to(ROOT / HELP).as_posix() for path in (ROOT / HELP).rglob("*.*"))
    help_pages = {f"{HELP}/{name}": f"nodes/{name}" for name in files}
    return {"README.md": "index.md", "demo/ASSETS.md": "demo-assets.md", **notes, **guides, **help_pages}


def native_nodes() -> list[str]:
    """Ids, in the order of the README."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.findall(rf"^\| \[`(\w+)`\]\({HELP}/", readme, re.MULTILINE)


def navigation() -> list[Any]:
    """Every page once."""
    native = native_nodes()
    others = sorted(path.stem for path in (ROOT / HELP).glob("*.md") if path.stem not in native)
    return [
        "index.md",
        {"Nodes": [f"nodes/{name}.md" for name in native]},
        {"Guides": [f"{name}.md" for name in GUIDES]},
        {"Nodes of other packs": [f"nodes/{name}.md" for name in others]},
        {"Project": [*(f"{name.lower()}.md" for name in NOTES), "demo-assets.md"]},
    ]


def linked(path: str, markdown: str) -> str:
    """The text of a page of the checkout with links that lead on from its place on the site.

    Raises:
        MissingFileError: a link leads to no file.
    """
    places = pages()
    here = posixpath.dirname(places[path])

    def replaced(found: re.Match[str]) -> str:
        target = found["target"].removeprefix(REPOSITORY).removeprefix(RAW)
        if target.startswith(("#", "http:", "https:", "mailto:")):
            return found[0]
        file, mark, anchor = target.partition("#")
        if target == found["target"]:
            file = posixpath.normpath(posixpath.join(posixpath.dirname(path), file))
        if not (ROOT / file).exists():
            raise MissingFileError(f"{path} links {found['target']}, which is not there")
        place = posixpath.relpath(places[file], here or ".") if file in places else f"{REPOSITORY}{file}"
        return f"{found['before']}{place}{mark}{anchor}"

    return LINK.sub(replaced, markdown)


def on_config(config: Any) -> Any:
    """mkdocs asks for changes of its settings."""
    config.nav = navigation()
    return config


def on_files(files: Any, config: Any) -> Any:
    """mkdocs asks for the files of the site; those of docs/ it has found."""
    from mkdocs.structure.files import File

    for path, place in pages().items():
        if not path.startswith("docs/"):
            files.append(File.generated(config, place, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """mkdocs asks for the text of a page."""
    from mkdocs.exceptions import PluginError

    (path,) = (path for path, place in pages().items() if place == page.file.src_uri)
    try:
        return linked(path, markdown)
    except MissingFileError as error:
        raise PluginError(str(error)) from None  # without a traceback
