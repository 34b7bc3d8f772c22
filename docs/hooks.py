"""Makes a site of the pages that people read in the repository: `mkdocs build` calls these functions.

README, the pages of vit/, the cards of benchmarks/ and the changelog become pages as they are. A link to another file
of the repository leads to a copy of that file in the site. The pages of the API come from the public names.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from posixpath import normpath, relpath
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
DOCS = "docs/"
# Pages outside of docs/ -> their place in the site.
MOVED = {"README.md": "index.md", "CHANGELOG.md": "CHANGELOG.md", "CONTRIBUTING.md": "CONTRIBUTING.md"}
OUTSIDE = ("recipes/README.md", "vit/**/*.md", "benchmarks/**/*.md")
SOURCES = "source/"  # where copies of other files lie
# `[text](target)`, and `[name]: target "title"`.
LINK = re.compile(r"\[(?P<text>[^\[\]]*)\](?P<before>\(|: +)(?P<target>[^)\s]+)(?P<after>\)| |$)", re.MULTILINE)
CODE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
PUBLIC = (
    "autoprog_diffusion",
    "autoprog_diffusion.growth",
    "autoprog_diffusion.search",
    "autoprog_diffusion.adapters",
    "autoprog_diffusion.planner",
    "autoprog_diffusion.reporting",
    "autoprog_diffusion.vit",
)

copied: dict[str, str] = {}  # files of the repository that pages link to -> their place in the site


@cache
def outside() -> dict[str, str]:
    """Pages outside of docs/, and where they go; every link of every page asks."""
    found = (path.relative_to(ROOT).as_posix() for pattern in OUTSIDE for path in sorted(ROOT.glob(pattern)))
    return MOVED | {path: path for path in found}


def place_of(path: str) -> str | None:
    """Where a page of the repository is in the site; None for what is no page."""
    if path.startswith(DOCS) and path.endswith(".md"):
        return path.removeprefix(DOCS)
    return outside().get(path)


def target_of(path: str) -> str | None:
    """Where a link to a path of the repository leads in the site: a folder to its README, without one nowhere."""
    if (ROOT / path).is_dir():
        path = f"{path}/README.md"
    if not (ROOT / path).is_file():
        return None
    page = place_of(path)
    if page is not None:
        return page
    if path.startswith(f"{DOCS}images/"):
        return path.removeprefix(DOCS)
    # Pictures stay beside their cards; other files are shown as text.
    copied[path] = path if path.endswith(".png") else f"{SOURCES}{path}.txt"
    return copied[path]


def rewritten(markdown: str, path: str, place: str) -> str:
    """A page with the links of the repository turned into links of the site.

    Args:
        markdown: The page.
        path: Of the page in the repository.
        place: Of the page in the site.
    """
    code = [found.span() for found in CODE.finditer(markdown)]

    def link(found: re.Match[str]) -> str:
        target, _, anchor = found["target"].partition("#")
        inside = any(start <= found.start() < end for start, end in code)
        if inside or not target or ":" in target:
            return found[0]
        whole = normpath(f"{Path(path).parent.as_posix()}/{target}")
        new = target_of(whole)
        if new is None:  # a folder; what does not exist stays, and the build says so
            return found["text"] if (ROOT / whole).is_dir() else found[0]
        local = relpath(new, Path(place).parent.as_posix())
        return f"[{found['text']}]{found['before']}{local}{'#' * bool(anchor)}{anchor}{found['after']}"

    return LINK.sub(link, markdown)


def public_names() -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Packages with their public names, each with where it is defined."""
    for package in PUBLIC:
        module = importlib.import_module(package)
        # Errors last: a page begins with what people look for.
        names = sorted(module.__all__, key=lambda name: (name.endswith(("Error", "Warning")), name))
        yield package, [(name, defined(package, name, getattr(module, name))) for name in names]


def defined(package: str, name: str, value: object) -> str:
    """Where a public name is defined."""
    home: Any = getattr(value, "__module__", None)
    where = home if isinstance(home, str) and hasattr(value, "__qualname__") else package
    # As the folders of the repository are: `vit/` stands at the top.
    return f"{where}.{name}".replace("autoprog_diffusion.vit.", "vit.")


def api_pages() -> Iterator[tuple[str, str]]:
    """Pages of the API: one per package, and their index."""
    index = ["# API", "", "Everything that is public, by package. What is not listed here may change.", ""]
    seen: set[str] = set()
    for package, names in public_names():
        page = [f"# `{package}`", ""]
        index += [f"## [`{package}`]({package}.md)", ""]
        for name, home in names:
            index.append(f"* `{name}`")
            module = isinstance(getattr(importlib.import_module(package), name), type(importlib))
            if home in seen or module or name.startswith("__"):
                page += [f"## `{name}`", "", f"`{home}`", ""]
            else:
                page += [f"::: {home}", ""]
            seen.add(home)
        index.append("")
        yield f"api/{package}.md", "\n".join(page)
    yield "api/index.md", "\n".join(index)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages from outside of docs/, those of the API, and the files that pages link to."""
    from mkdocs.structure.files import File

    copied.clear()
    outside.cache_clear()  # `mkdocs serve` builds again in one process
    for path, place in outside().items():
        text = rewritten((ROOT / path).read_text(encoding="utf-8"), path, place)
        files.append(File.generated(config, place, content=text))
    for path in sorted((ROOT / "docs").glob("*.md")):
        rewritten(path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix(), path.name)
    for path, place in sorted(copied.items()):
        files.append(File.generated(config, place, abs_src_path=str(ROOT / path)))
    for place, text in api_pages():
        files.append(File.generated(config, place, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn the links of a page in docs/; the others were turned when they were added."""
    del config, files
    place = page.file.src_uri
    if not (ROOT / DOCS / place).is_file():
        return markdown
    return rewritten(markdown, f"{DOCS}{place}", place)
