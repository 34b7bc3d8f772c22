"""Diffusers' own tests of its scripts: what passes on a script passes on the patched one."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from .scripts import Workshop, needs_checkout
from .theirs import THEIRS, Theirs, TheirTests


pytestmark = [needs_checkout, pytest.mark.slow]


@pytest.mark.parametrize("theirs", THEIRS, ids=lambda theirs: theirs.classes[0])
def test_what_the_script_passes_the_patched_one_passes(theirs: Theirs, workshop: Workshop, tmp_path: Path) -> None:
    try:
        importlib.import_module("torchvision.transforms")
    except (ImportError, RuntimeError):
        # Diffusers' scripts import it, and the stand-in of these tests does not have all that they use.
        pytest.skip("their scripts need a torchvision that can be imported")
    grown = TheirTests(workshop.folder, tmp_path / "grown", workshop.environment).run(theirs, grown=True)
    print(f"{theirs.script}: patched {len(grown.passed)} of {len(grown.passed | grown.failed)}")
    if grown.passed and not grown.failed:
        return  # so the script itself need not be asked
    plain = TheirTests(workshop.folder, tmp_path / "plain", workshop.environment).run(theirs, grown=False)
    print(f"{theirs.script}: unpatched {len(plain.passed)} of {len(plain.passed | plain.failed)}")
    assert plain.passed, plain.log[-6000:]
    assert plain.passed <= grown.passed, grown.log[-6000:]
