"""Threads of a run: who chose them, and what a resumed run says of another number."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from autoprog_diffusion.growth import ConfigError
from autoprog_diffusion.training import threads
from autoprog_diffusion.training.threads import available_cores, idle_cores, take_threads, threads_of_user


VARIABLE = "OMP_NUM_THREADS"


@pytest.fixture(autouse=True)
def _one_thread_after() -> Iterator[None]:
    yield
    torch.set_num_threads(1)


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody has chosen a number, and three of four cores are idle."""
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setattr(threads, "available_cores", lambda: 4)
    monkeypatch.setattr(threads, "idle_cores", lambda cores: cores - 1)


def test_the_flag_counts_first_then_the_variable(accelerator: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "2")
    assert str(take_threads("auto", accelerator, [])) == "2 CPU threads (OMP_NUM_THREADS is set)"
    assert torch.get_num_threads() == 2
    assert str(take_threads("1", accelerator, [])) == "1 CPU thread (--cpu_threads 1)"
    assert torch.get_num_threads() == 1


@pytest.mark.usefixtures("nobody")
def test_nobody_s_choice_is_the_idle_cores(accelerator: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert str(take_threads("auto", accelerator, [])) == "3 CPU threads (the idle ones of 4 cores)"
    monkeypatch.setattr(threads, "idle_cores", lambda cores: cores)
    assert str(take_threads("auto", accelerator, [])) == "4 CPU threads (all cores)"


@pytest.mark.usefixtures("nobody")
def test_a_resumed_run_keeps_its_number_and_says_another_one(
    accelerator: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert take_threads("auto", accelerator, [{"cpu_threads": 2}]).count == 2
    # A start of a version that noted nothing.
    assert take_threads("auto", accelerator, [{"step": 0}]).count == 3
    assert capsys.readouterr().out == ""
    # More than there are.
    assert take_threads("auto", accelerator, [{"cpu_threads": 64}]).count == 3
    assert "resumed with 3 CPU threads" in capsys.readouterr().out
    take_threads("1", accelerator, [{"cpu_threads": 2}])
    assert "(was 2): sums are added in another order" in capsys.readouterr().out


def test_several_processes_keep_what_they_have(accelerator: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(accelerator), "num_processes", property(lambda self: 2))
    torch.set_num_threads(1)
    assert take_threads("auto", accelerator, []).count == 1


@pytest.mark.parametrize("flag", ["0", "-1", "two", "", "1.5"])
def test_other_values_are_refused(accelerator: Any, flag: str) -> None:
    with pytest.raises(ConfigError, match="--cpu_threads .* is not allowed: use auto, or a number above 0"):
        take_threads(flag, accelerator, [])


def test_cores_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cores = available_cores()
    assert 1 <= idle_cores(cores) <= cores <= len(os.sched_getaffinity(0))
    quota = tmp_path / "cpu.max"
    monkeypatch.setattr(threads, "QUOTA", quota)
    quota.write_text("50000 100000\n")
    assert available_cores() == 1  # half a core is one
    for text in ("max 100000\n", "nonsense"):
        quota.write_text(text)
        assert available_cores() == cores


LAUNCH = """
from autoprog_diffusion.training.threads import threads_of_user
if __name__ == "__main__":
    print(f"user: {threads_of_user()}")
"""
CASES = {
    "nobody": ({}, (), "None"),
    "variable": ({VARIABLE: "1"}, (), "1"),
    "launcher's flag": ({}, ("--num_cpu_threads_per_process", "1"), "1"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_what_accelerate_launch_chose_is_no_choice_of_the_user(tmp_path: Path, name: str) -> None:
    variables, words, wanted = CASES[name]
    script = tmp_path / "script.py"
    script.write_text(LAUNCH)
    environment = {key: value for key, value in os.environ.items() if key != VARIABLE}
    command = [sys.executable, "-m", "accelerate.commands.launch", *words, str(script)]
    done = subprocess.run(command, env=environment | variables, capture_output=True, text=True, timeout=600)
    assert f"user: {wanted}" in done.stdout, done.stderr


def test_without_a_launcher_the_variable_is_the_user_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "launcher_command", lambda: None)
    for value, wanted in (("3", 3), ("", None), ("0", None), ("2,1", None)):
        monkeypatch.setenv(VARIABLE, value)
        assert threads_of_user() == wanted
