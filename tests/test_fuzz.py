"""The fuzz script finds nothing in a few seconds; `python tests/fuzz.py` looks for longer."""

from __future__ import annotations

import logging
import random
from pathlib import Path

import pytest

from . import fuzz


def test_reader_and_resume_end_in_an_error_of_ours_or_in_what_they_report() -> None:
    with fuzz.silence():
        fuzzer = fuzz.fuzz(seconds=5, seed=0)
    assert not fuzzer.findings, "\n".join(fuzzer.findings)
    assert sum(fuzzer.counts.values()) >= len(fuzz.TARGETS)


@pytest.mark.parametrize("error", [RuntimeError("foreign"), fuzz.HangError("slow"), KeyError("missing")])
def test_what_is_not_ours_is_a_finding_with_the_words_that_repeat_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException
) -> None:
    class Bad:
        def __init__(self, folder: Path) -> None:
            del folder

        def case(self, chance: random.Random) -> str:
            raise error

    monkeypatch.setattr(fuzz, "TARGETS", {"bad": Bad})
    fuzzer = fuzz.Fuzzer(tmp_path, 5)
    fuzzer.run(2)
    assert len(fuzzer.findings) == 1
    assert "tests/fuzz.py --seed 5 --case 2" in capsys.readouterr().out
    monkeypatch.setattr(logging, "disable", lambda level: None)
    assert fuzz.main(["--seed", "5", "--case", "2"]) == 1
