"""Write the table of `patching.md` from `patching.json`: `python docs/make_patching.py`.

The JSON is what `tests/plugin/patch_table.py` measured; a test compares the page with it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any


HERE = Path(__file__).parent
BEGIN = "<!-- table -->\n"
END = "<!-- end of the table -->\n"
NOT_RUN = "no tiny pipeline or data set for it was made here"


def page(text: str, rows: list[dict[str, Any]]) -> str:
    """The page with its table written anew.

    Args:
        text: The page.
        rows: Of the JSON.
    """
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    return before + BEGIN + "\n" + "\n".join(table(rows)) + "\n\n" + END + after


def table(rows: list[dict[str, Any]]) -> Iterable[str]:
    """The lines of the summary and of the tables."""
    patched = [row for row in rows if row["patched"]]
    runs = [row["run"] for row in patched if row.get("run", {}).get("runs")]
    same = [run for run in runs if run["different"] == 0]
    again = [run for run in runs if run.get("resumed") == "equal"]
    loads = [run for run in runs if run.get("loads") == "yes"]
    asked = [run for run in runs if "loads" in run]
    yield (
        f"Of {len(rows)} scripts {len(patched)} are patched, and all of those compile. {len(runs)} of them were run "
        f"on tiny pipelines. {len(same)} equal the unpatched script bit for bit with growth off. {len(again)} that "
        f"were cut off and resumed end as the whole run, bit for bit. Of {len(asked)} whose result was read with "
        f"nothing but Diffusers, after blocks had frozen, {len(loads)} are whole."
    )
    yield ""
    yield "| patched | grows | average | tensors equal with growth off | resumed |"
    yield "|---|---|---|---|---|"
    for row in patched:
        yield patched_row(row)
    yield from tested(patched)
    yield from remarks(patched)
    yield ""
    yield "| refused | line | reason |"
    yield "|---|---:|---|"
    for row in rows:
        if not row["patched"]:
            line = "" if row["line"] is None else row["line"]
            yield f"| {name(row)} | {line} | {row['reason']} |"


def patched_row(row: dict[str, Any]) -> str:
    """One line of the first table."""
    grows = f"`{row['model']}`"
    if row["class"]:
        grows += f" ({row['class']})"
    if row["stage_embedding"] != "as the model has one":
        grows += f", no stage embedding: {row['stage_embedding']}"
    start = f"| {name(row)} | {grows} | {'added' if row['average'] else ''} |"
    run = row.get("run")
    if run is None:
        return f"{start} not run: {NOT_RUN} | |"
    if not run["runs"]:
        return f"{start} not run: {run['why']} | |"
    whole = run["equal"] + run["different"]
    return f"{start} {run['equal']} of {whole} | {run.get('resumed', '')} |"


def tested(patched: list[dict[str, Any]]) -> Iterable[str]:
    """The table of Diffusers' own tests."""
    found = [row for row in patched if row.get("tests")]
    if not found:
        return
    yield ""
    yield "| Diffusers' own tests of | run on the patched script | pass |"
    yield "|---|---:|---:|"
    for row in found:
        tests = row["tests"]
        same = f", {tests['unpatched']} on the script itself" if "unpatched" in tests else ""
        yield f"| {name(row)} | {tests['run']} | {tests['passed']}{same} |"


def remarks(patched: list[dict[str, Any]]) -> Iterable[str]:
    """Changes to scripts and packages replaced before a run, patched or not, and what plain Diffusers says of it."""
    lines = []
    for row in patched:
        run = row.get("run", {})
        found = [*run.get("changes", ())]
        if run.get("stand_ins"):
            found.append(f"a stand-in for the package {', '.join(run['stand_ins'])}")
        if run.get("loads", "yes") != "yes":
            found.append(f"its result does not load: {run['loads']}")
        if found:
            lines.append(f"* {name(row)}: {'; '.join(found)}.")
    if lines:
        yield ""
        yield "Before these could run here, patched or not, a line was changed or a package replaced:"
        yield ""
        yield from lines


def name(row: dict[str, Any]) -> str:
    """A script's path below `examples/`, without its ending."""
    return row["script"].removesuffix(".py")


if __name__ == "__main__":
    path = HERE / "patching.md"
    measured = json.loads((HERE / "patching.json").read_text(encoding="utf-8"))["rows"]
    path.write_text(page(path.read_text(encoding="utf-8"), measured), encoding="utf-8")
