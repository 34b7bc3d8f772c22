"""The `autoprog-diffusion` command: it finds subcommands, tells errors in one line, and has useful exit codes."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

from autoprog_diffusion.commands import main as program
from autoprog_diffusion.growth.errors import ConfigError


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        program.main(words)
    return ended.value.code


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A subcommand called `tell`, which returns the number of its words."""
    module = ModuleType("autoprog_diffusion.commands.tell")
    module.run = len
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(program.COMMANDS, "tell", "tells")
    return module


def test_a_subcommand_gets_its_words_and_says_the_exit_code(command: ModuleType) -> None:
    assert run("tell") == 0
    assert run("tell", "a", "--b", "c") == 3


def test_the_overview_names_every_subcommand(command: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    assert "tell        tells" in capsys.readouterr().out
    assert run() == program.USAGE


def test_an_unknown_name_is_refused_with_the_nearest_one(
    command: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("tel") == program.USAGE
    assert "there is no command 'tel'" in (error := capsys.readouterr().err)
    assert "Did you mean tell?" in error


def test_an_error_of_ours_is_one_line(command: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(words: list[str]) -> int:
        raise ConfigError("memory_gb=0 is not allowed: use a number above 0.")

    command.run = fail
    assert run("tell") == program.FAILED
    assert capsys.readouterr().err == "error: memory_gb=0 is not allowed: use a number above 0.\n"
