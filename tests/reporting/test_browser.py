"""The page in a real browser: nothing to complain of, nothing loaded, readable in light and dark, narrow and wide."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from autoprog_diffusion.reporting import write_page

from .browser import Browser, browsing, find_browser
from .made import Made, make_run


BROWSER = find_browser()
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed (Debian's package: chromium)")

# Elements that stick out of the page on the right, but for those inside of what scrolls by itself.
STICKING_OUT = """
[...document.querySelectorAll('body *')].filter(e => {
  if (e.closest('.scroll') && !e.matches('.scroll')) return false;
  return e.getBoundingClientRect().right > document.documentElement.clientWidth + 1;
}).map(e => e.outerHTML.slice(0, 200))
"""
# Text whose contrast with what lies behind it is below 4.5, as WCAG AA asks.
HARD_TO_READ = """
(() => {
  const numbers = c => c.match(/[\\d.]+/g).map(Number);
  const light = c => {
    const [r, g, b] = c.map(v => v / 255).map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = e => {
    const layers = [];
    for (let at = e; at; at = at.parentElement) {
      const c = numbers(getComputedStyle(at).backgroundColor);
      const alpha = c.length > 3 ? c[3] : 1;
      if (alpha > 0) layers.push([c, alpha]);
      if (alpha === 1) break;
    }
    let colour = [255, 255, 255];
    for (const [c, alpha] of layers.reverse()) colour = colour.map((v, i) => v * (1 - alpha) + c[i] * alpha);
    return colour;
  };
  const bad = [];
  for (const e of document.querySelectorAll('body, body *')) {
    if (![...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())) continue;
    if (e.closest('svg') || !e.getClientRects().length) continue;
    const [a, b] = [light(numbers(getComputedStyle(e).color).slice(0, 3)), light(behind(e))];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (contrast < 4.5) bad.push([contrast, e.outerHTML.slice(0, 120)]);
  }
  return bad;
})()
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    assert BROWSER is not None
    with browsing(BROWSER, tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a whole run, of one that was cut off, and of one of another model, with hostile words."""
    folder = tmp_path_factory.mktemp("runs")
    hostile = "<script>alert(1)</script>"
    runs = [
        make_run(folder / "whole", Made(captions=(hostile, "\"'><img src=x onerror=alert(1)>"))),
        make_run(folder / "cut", Made(done=40, speed=2.0, source=f"{hostile} " * 20)),
        make_run(folder / ("a_long_name_" * 8), Made(model="another/model", blocks=57, held_out=False)),
    ]
    return write_page(runs, folder / "report.html")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [400, 1200, 2000])
def test_a_browser_finds_nothing_to_complain_of(browser: Browser, file: Path, width: int, dark: bool) -> None:
    browser.open(file, width=width, dark=dark)
    browser.evaluate("document.querySelectorAll('details').forEach(e => e.open = true)")
    assert browser.evaluate("document.title") == "Report of 3 runs"
    assert browser.complaints == []
    assert {url.split(":")[0] for url in browser.loaded} == {"file", "data"}
    assert len([url for url in browser.loaded if url.startswith("file:")]) == 1
    assert browser.evaluate(STICKING_OUT) == []
    assert browser.evaluate(HARD_TO_READ) == []
    background = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, background[4:-1].split(","))) < 200) == dark


def test_every_picture_is_decoded(browser: Browser, file: Path) -> None:
    browser.open(file)
    widths = browser.evaluate("[...document.images].map(image => image.naturalWidth)")
    assert len(widths) == 2 + 2 + 2
    assert min(widths) > 100


def test_it_can_be_printed(browser: Browser, file: Path) -> None:
    browser.open(file, dark=True)
    assert browser.printed().startswith(b"%PDF")


def test_the_checks_find_what_is_wrong(browser: Browser, tmp_path: Path) -> None:
    file = tmp_path / "bad.html"
    file.write_text(
        "<!DOCTYPE html><title>x</title><body style='background:#fff;color:#ccc'>pale"
        "<div style='width:3000px'>wide</div><script>undefinedName()</script>"
        "<img src='http://127.0.0.1:9/x.png'><svg><path d='nonsense'/></svg>"
    )
    browser.open(file, width=400)
    assert len(browser.complaints) >= 3
    assert "http://127.0.0.1:9/x.png" in browser.loaded
    assert browser.evaluate(STICKING_OUT)
    assert len(browser.evaluate(HARD_TO_READ)) == 2
