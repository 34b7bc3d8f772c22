"""The site's pages: links lead somewhere, every public name has its place, every row of the method card is real."""

from __future__ import annotations

import importlib
import re
from typing import Any

import pytest

from .pages import ROOT, module_at


@pytest.fixture(scope="module")
def hooks() -> Any:
    return module_at("docs/hooks.py")


def test_every_public_name_has_its_page(hooks: Any) -> None:
    pages = dict(hooks.api_pages())
    for package, names in hooks.public_names():
        assert sorted(name for name, _ in names) == sorted(importlib.import_module(package).__all__)
        page = pages[f"api/{package}.md"]
        for name, _ in names:
            assert f"* `{name}`" in pages["api/index.md"]
            assert re.search(rf"\b{name}$|`{name}`", page, re.MULTILINE), f"{package}.{name}"


def test_links_of_the_repository_become_links_of_the_site(hooks: Any) -> None:
    page = "[a](docs/memory.md#what-fits) [b](recipes/minimal.py) [c](docs/diffs) [d](https://x.org) ![e](docs/x.png)"
    found = hooks.rewritten(page, "README.md", "index.md")
    assert found == (
        "[a](memory.md#what-fits) [b](source/recipes/minimal.py.txt) c [d](https://x.org) ![e](docs/x.png)"
    )
    card = hooks.rewritten('[n]: summary.json "a as {}"', "benchmarks/memory/README.md", "benchmarks/memory/README.md")
    assert card == '[n]: summary.json "a as {}"'  # there is no such file: it stays, and the build says so
    code = "```bash\n[a](docs/memory.md)\n```"
    assert hooks.rewritten(code, "README.md", "index.md") == code


def test_every_row_of_the_card_is_real() -> None:
    rows = re.findall(r"^\|.*\| `([\w.]+)` \| `([\w/.]+)` \|", (ROOT / "docs" / "card.md").read_text(), re.MULTILINE)
    assert len(rows) > 15
    for function, test in rows:
        module, _, name = function.rpartition(".")
        assert callable(getattr(importlib.import_module(module), name)), function
        text = (ROOT / test).read_text(encoding="utf-8")
        assert name in text or module.rpartition(".")[2] in text, f"{test} does not speak of {function}"
