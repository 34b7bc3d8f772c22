"""The report of runs: what it says, and that nothing in a run's files can become part of the page."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from autoprog_diffusion.growth import GrowthPlan
from autoprog_diffusion.reporting import ReportError, read_run, write_page
from autoprog_diffusion.reporting.markup import element, escaped, table
from autoprog_diffusion.reporting.page import page

from .made import Made, make_run
from .page_parser import Page


HOSTILE = (
    "<script>alert(1)</script>",
    "</style><style>*{display:none}</style>",
    "</title><img src=x onerror=alert(1)>",
    "\"' onload='alert(1)",
    "<!-- --><svg/onload=alert(1)>",
    "&lt;b&gt; &amp; &#60;",
    "]]> {{7*7}} ${7} %(x)s",
    "javascript:alert(1)",
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "whole")


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "cut", Made(done=40))


def parsed(*folders: Path) -> Page:
    file = write_page(list(folders), folders[0].parent / "page.html")
    return Page(file.read_text(encoding="utf-8"))


def change(folder: Path, name: str, edit: Callable[[dict], object]) -> None:
    """Edit a JSON file of a run."""
    values = json.loads((folder / name).read_text())
    edit(values)
    (folder / name).write_text(json.dumps(values))


def check_closed(found: Page) -> None:
    """Nothing is loaded or run, and every picture and table can be read aloud."""
    names = {name for name, _ in found.elements}
    assert not names & {
        "script",
        "link",
        "iframe",
        "object",
        "embed",
        "base",
        "form",
        "video",
        "audio",
        "foreignobject",
    }
    for name, attributes in found.elements:
        assert not [key for key in attributes if key.startswith("on")], (name, attributes)
        for key in ("src", "href", "xlink:href", "action", "srcset", "poster"):
            value = attributes.get(key) or ""
            assert value.startswith(("data:image/png;base64,", "#")) or not value
        assert "url(" not in (attributes.get("style") or "")
    assert all(attributes["alt"] for attributes in found.all("img"))
    assert all(attributes["role"] == "img" and attributes["aria-label"] for attributes in found.all("svg"))
    assert all(attributes["scope"] in ("row", "col") for attributes in found.all("th"))
    assert len(found.all("table")) == len(found.all("caption"))
    assert len(found.all("h1")) == len(found.all("main")) == 1
    identifiers = [attributes["id"] for _, attributes in found.elements if "id" in attributes]
    assert len(set(identifiers)) == len(identifiers)


def test_a_whole_run_is_told_from_summary_to_settings(whole: Path) -> None:
    found = parsed(whole)
    check_closed(found)
    parts = ["Report of whole", "whole", "What it was", "What it did", "What it cost", "What to do next", "Timeline"]
    parts += ["Blocks", "Held-out loss", "Costs against the plan", "Pictures", "Data", "Settings"]
    assert found.headings == parts
    words = found.words
    assert "Complete: 64 of 64 steps." in words
    assert "It freezes blocks in 4 stages over 64 steps: 6, 5, 3, 2 of 6 train." in words
    assert (
        "finetune_sd.py trained the default model of finetune_sd.py (Denoiser, 120 parameters) on 100 images" in words
    )
    assert "Lowest held-out loss" in words
    assert "hidden" in words  # left out of the data
    assert len(found.all("img")) == 2
    text = (whole.parent / "page.html").read_text(encoding="utf-8")
    assert not re.search(r"https?://|//cdn|@import", text)
    assert len(text) < 300_000


def test_the_page_is_the_same_every_time_but_for_its_date(whole: Path) -> None:
    run = read_run(whole)
    pages = [re.sub(r"\d+-\d+-\d+ \d+:\d+ UTC", "", page([run])) for _ in range(2)]
    assert pages[0] == pages[1]


@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_words_stay_words(tmp_path: Path, hostile: str) -> None:
    """In captions, names of files and folders, flags, commands, the search and the reason of a stop."""
    name = hostile.replace("/", "_")
    decision = {
        "stage": 1,
        "search": hostile,
        "choice": hostile,
        "candidates": [{"name": hostile, "blocks": [0], "kappa": hostile}, {"name": "b", "depth": hostile}],
    }
    made = Made(
        captions=(hostile, name),
        source=hostile,
        model=hostile,
        decisions=[decision],
        command=(hostile, "--flag", hostile),
    )
    folder = make_run(tmp_path / name, made)

    def stop(values: dict) -> None:
        values["stopped"] = {"step": hostile, "of": 64, "reason": hostile, hostile: hostile}

    def blocks(values: dict) -> None:
        values["history"][0]["blocks"] = [hostile] * 6
        values["device"] = hostile

    change(folder, "held_out.json", stop)
    change(folder, "growth.json", blocks)
    other = make_run(tmp_path / "other")
    found = parsed(folder, other)
    check_closed(found)
    plain = parsed(other, make_run(tmp_path / "plain"))
    assert {name for name, _ in found.elements} == {name for name, _ in plain.elements} | {"strong"}
    assert found.words.count(" ".join(hostile.split())) > 10


def test_characters_that_are_no_text_are_replaced(tmp_path_factory: pytest.TempPathFactory) -> None:
    for text in ("\0\x1b[31m", "\u202eevil", "\udcff\udc00", "a\u2066b"):
        tmp_path = tmp_path_factory.mktemp("case")
        folder = make_run(tmp_path / "run", Made(source=text))
        words = write_page([folder]).read_text(encoding="utf-8")
        assert not re.search("[\0\x1b\u202e\u2066\udcff\udc00]", words)
        assert escaped("a\tb\n\u0627\U0001f600") == "a\tb\n\u0627\U0001f600"  # those that are stay


def test_elements_are_escaped_whatever_they_hold() -> None:
    assert (
        element("p", "<", ["&", None, element("b", '"')], title='"<')
        == '<p title="&quot;&lt;">&lt;&amp;<b>&quot;</b></p>'
    )
    assert element("img", alt=None, src="x") == '<img src="x">'
    assert element("path", d="M0 0") == '<path d="M0 0"/>'
    markup = table(["a", "<b>"], [["<c>", "1"]], caption="&")
    assert '<th scope="col">&lt;b&gt;</th>' in markup
    assert '<th scope="row">&lt;c&gt;</th><td>1</td>' in markup


def test_a_run_that_was_cut_off_is_told_by_its_newest_complete_checkpoint(cut: Path) -> None:
    found = parsed(cut)
    check_closed(found)
    words = found.words
    assert "The newest complete checkpoint, checkpoint-40, has 40 of 64 steps." in words
    assert "accelerate launch recipes/finetune_sd.py --max_train_steps 64 --resume_from_checkpoint latest" in words
    assert len(found.all("rect", class_="veil")) == 1


def test_a_checkpoint_that_lost_a_file_is_passed_over(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", Made(done=40))
    make_run(tmp_path / "earlier", Made(done=20))
    (tmp_path / "earlier" / "checkpoints" / "checkpoint-20").rename(folder / "checkpoints" / "checkpoint-20")
    (folder / "checkpoints" / "checkpoint-40" / "growth.json").unlink()
    assert read_run(folder).measured == folder / "checkpoints" / "checkpoint-20"
    (folder / "checkpoints" / "checkpoint-20" / "complete.json").unlink()
    run = read_run(folder)
    assert run.measured is None
    assert "nothing of it was measured" in parsed(folder).words
    assert run.plan == GrowthPlan.load(folder / "growth_plan.json")


def test_a_run_that_goes_on_after_its_end_is_told_by_the_newer_checkpoint(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    longer = make_run(tmp_path / "longer", Made(steps=128, done=100))
    (longer / "checkpoints").rename(folder / "checkpoints")
    run = read_run(folder)
    assert run.measured == folder / "checkpoints" / "checkpoint-100"
    assert not run.ended
    assert run.steps_done == 100


def test_a_run_of_an_older_version_is_told_as_far_as_its_files_go(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", Made(held_out=False))
    (folder / "metrics.json").unlink()

    def without_history(values: dict) -> None:
        del values["starts"], values["data_report"]

    change(folder, "run.json", without_history)
    found = parsed(folder, make_run(tmp_path / "new"))
    check_closed(found)
    assert "An older version wrote it" in found.words
    assert "No held-out loss was measured" in found.words
    assert "without a curve: run." in found.words


def test_what_was_planned_stands_beside_what_was_measured(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", Made(stages=2))
    assert "Predictions are there once" in parsed(folder).words
    stages = [{"blocks": 6, "seconds": 0.5, "peak": 3 * 2**30}, {"blocks": 2, "seconds": None, "peak": 2**30}]
    (folder / "planned.json").write_text(json.dumps({"stages": stages}))
    words = parsed(folder).words
    assert re.search("stage 1 32 6 of 6 100.% 64 px [0-9.]+ 600 ms 500 ms 100.% 100.% 1 GiB 3 GiB", words)
    assert re.search("stage 2 32 2 of 6 33.% 64 px [0-9.]+ [0-9]+ ms \u2013 ", words)
    stages[1]["blocks"] = 3
    (folder / "planned.json").write_text(json.dumps({"stages": stages}))
    assert "planned.json is of other stages" in parsed(folder).words
    (folder / "planned.json").write_text("{}")
    with pytest.raises(ReportError, match="planned.json is damaged: it lacks 'stages'"):
        read_run(folder)


def test_runs_side_by_side_are_compared_and_those_of_other_models_kept_apart(tmp_path: Path, whole: Path) -> None:
    fast = make_run(tmp_path / "fast", Made(speed=3.0, learning_rate=5e-4))
    other = make_run(tmp_path / "other", Made(blocks=9))
    words = parsed(whole, fast).words
    assert "Held-out loss against wall time" in words
    assert "Held-out loss against CPU time" in words
    assert "--learning_rate 0.0001 0.0005" in words
    assert "which are not compared" not in words
    apart = parsed(whole, other, fast)
    check_closed(apart)
    assert "The runs trained 2 different models, which are not compared" in apart.words
    assert "(Denoiser of 6 blocks): whole and fast and" in apart.words
    assert "(Denoiser of 9 blocks): other" in apart.words
    assert len([title for title in apart.headings if title.startswith("Side by side")]) == 1
    alone = parsed(whole, other)
    assert not [title for title in alone.headings if title.startswith("Side by side")]


def test_runs_of_one_name_are_told_apart_and_one_named_twice_is_read_once(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / name / "out") for name in ("a", "b")]
    found = parsed(*folders, tmp_path / "a" / ".." / "a" / "out")
    names = ["a/out", "b/out"]
    assert [title for title in found.headings if title in names] == names
    assert found.headings[0] == "Report of 2 runs"


def test_many_grids_are_thinned_and_broken_ones_named(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    good = (folder / "validation-16.png").read_bytes()
    for step in range(1, 14):
        (folder / f"validation-{step}.png").write_bytes(good)
    (folder / "before_after.png").write_bytes(good[:-20])
    (folder / "validation-x.png").write_text("not drawn by a run")
    found = parsed(folder)
    assert len(found.all("img")) == 8
    assert "8 of 15 grids, evenly spread" in found.words
    assert "before_after.png is damaged, and is not shown" in found.words
    assert "After step 1 " in found.words
    assert "After step 32 " in found.words
