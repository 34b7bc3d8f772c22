"""The report as one page of HTML that needs nothing else: no script, no font, no address."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timezone
from importlib.resources import files
from pathlib import Path

import autoprog_diffusion
from autoprog_diffusion.files import write_text_atomically

from .blocks import draw_blocks
from .compare import comparison, groups_of, model_words
from .costs import costs_section
from .decisions import decisions_section
from .errors import ReportError
from .gallery import pictures_section
from .held_out_section import held_out_section
from .markup import Child, Html, element
from .run_folder import Run, read_run
from .settings import data_section, settings_section
from .summary import summary
from .timeline import timeline
from .words import count, listed


PAGE_FILE = "report.html"
# A browser must load nothing, whatever a caption holds.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def write_page(folders: Sequence[Path], output: Path | None = None) -> Path:
    """Write the report of one or several runs.

    Args:
        folders: Output folders of runs.
        output: File to write; None is `report.html` in the first folder.

    Returns:
        The file.

    Raises:
        ReportError: A folder holds no run, a file of it is damaged, or the page cannot be written.
    """
    runs = named([read_run(folder) for folder in unrepeated(folders)])
    file = output or runs[0].folder / PAGE_FILE
    if file.is_dir():
        raise ReportError(f"--output {file} is a folder: name a file in it, for example {file / PAGE_FILE}.")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text_atomically(file, page(runs))
    except OSError as error:
        raise ReportError(f"the report cannot be written to {file}: {error}. Choose another --output.") from error
    return file


def unrepeated(folders: Sequence[Path]) -> list[Path]:
    """Folders without those that are named twice.

    Raises:
        ReportError: None is named.
    """
    if not folders:
        raise ReportError("no run is named: give the --output_dir of one run or of several.")
    found: dict[Path, Path] = {}
    for folder in folders:
        found.setdefault(folder.resolve(), folder)
    return list(found.values())


def named(runs: Sequence[Run]) -> list[Run]:
    """The runs under names that tell them apart: more of their path where the last part is the same."""
    names = [run.name for run in runs]
    depth = 1
    paths = [run.folder.resolve() for run in runs]
    while len(set(names)) < len(names):
        depth += 1
        names = ["/".join(path.parts[-depth:]) for path in paths]
    return [replace(run, name=name) for run, name in zip(runs, names)]


def page(runs: Sequence[Run]) -> str:
    """The whole page of some runs, as text."""
    title = f"Report of {runs[0].name}" if len(runs) == 1 else f"Report of {len(runs)} runs"
    anchors = [f"run-{number}" for number, _ in enumerate(runs, start=1)]
    style = files("autoprog_diffusion.reporting").joinpath("style.css").read_text(encoding="utf-8")
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element(
            "meta",
            name="viewport",
            content="width=device-width, initial-scale=1",
        ),
        element(
            "meta",
            http_equiv="Content-Security-Policy",
            content=POLICY,
        ),
        element(
            "meta",
            name="color-scheme",
            content="light dark",
        ),
        element("title", title),
        element("style", Html(style)),
    )
    articles = [_run(run, anchor) for run, anchor in zip(runs, anchors)]
    body = element("body", _header(title, dict(zip(anchors, runs))), element("main", _comparisons(runs), articles))
    return f"<!DOCTYPE html>\n{element('html', head, body, lang='en')}\n"


def _header(title: str, runs: dict[str, Run]) -> Html:
    now = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    made = f"Made by autoprog_diffusion {autoprog_diffusion.__version__} on {now} from the folders alone."
    links = []
    if len(runs) > 1:
        links = [element("li", element("a", run.name, href=f"#{anchor}")) for anchor, run in runs.items()]
    navigation = element("nav", element("ul", links), aria_label="Runs") if links else None
    return element(
        "header",
        element("h1", title),
        element("p", made, class_="note"),
        navigation,
    )


def _comparisons(runs: Sequence[Run]) -> Html | None:
    """Runs of one model side by side; those of different models apart, with a word on why."""
    if len(runs) < 2:
        return None
    groups = groups_of(runs)
    warning = None
    if len(groups) > 1:
        models = listed([f"{model_words(group[0])}: {listed([run.name for run in group])}" for group in groups])
        text = f"The runs trained {count(len(groups), 'different model')}, which are not compared: {models}."
        warning = element("p", text, class_="status open")
    parts = []
    for group in groups:
        title = "Side by side" if len(groups) == 1 else f"Side by side: {model_words(group[0])}"
        if len(group) > 1:
            parts.append(element("section", element("h2", title), comparison(group)))
    return element("div", warning, parts)


def _run(run: Run, anchor: str) -> Html:
    """All sections of a run."""
    return element(
        "article",
        element("h2", run.name),
        summary(run),
        _section("Timeline", timeline(run)),
        _section("Blocks", draw_blocks(run)),
        _section("Held-out loss", held_out_section(run.held_out)),
        _section("Decisions of the search", decisions_section(run)),
        _section("Costs against the plan", costs_section(run)),
        _section("Pictures", pictures_section(run)),
        _section("Data", data_section(run)),
        _section("Settings", settings_section(run)),
        id=anchor,
    )


def _section(title: str, content: Child) -> Html | None:
    return None if content is None else element("section", element("h3", title), content)
