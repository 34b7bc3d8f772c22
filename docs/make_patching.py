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
    """The lines of the summary and of both tables."""
    patched = [row for row in rows if row["patched"]]
    runs = [row["run"] for row in patched if row.get("run", {}).get("runs")]
    same = [run for run in runs if run["different"] == 0]
    again = [run for run in runs if run.get("resumed") == "equal"]
    yield (
        f"Of {len(rows)} scripts {len(patched)} are patched, and all of those compile. {len(runs)} of them were run "
        f"on tiny pipelines. {len(same)} equal the unpatched script bit for bit with growth off. {len(again)} that "
        "were cut off and resumed end as the whole run, bit for bit."
    )
    yield ""
    yield "| patched | grows | tensors equal with growth off | resumed |"
    yield "|---|---|---|---|"
    for row in patched:
        yield patched_row(row)
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
    run = row.get("run")
    if run is None:
        return f"| {name(row)} | {grows} | not run: {NOT_RUN} | |"
    if not run["runs"]:
        return f"| {name(row)} | {grows} | not run: {run['why']} | |"
    whole = run["equal"] + run["different"]
    return f"| {name(row)} | {grows} | {run['equal']} of {whole} | {run.get('resumed', '')} |"


def name(row: dict[str, Any]) -> str:
    """A script's path below `examples/`, without its ending."""
    return row["script"].removesuffix(".py")


if __name__ == "__main__":
    path = HERE / "patching.md"
    measured = json.loads((HERE / "patching.json").read_text(encoding="utf-8"))["rows"]
    path.write_text(page(path.read_text(encoding="utf-8"), measured), encoding="utf-8")
