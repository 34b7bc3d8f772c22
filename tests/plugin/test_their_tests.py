"""Diffusers' own tests of the six scripts: what passes on a script passes on the patched one."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from .scripts import Workshop, needs_checkout
from .theirs import TESTS, TheirTests


pytestmark = [needs_checkout, pytest.mark.slow]


@pytest.mark.parametrize("name", TESTS)
def test_what_the_script_passes_the_patched_one_passes(name: str, workshop: Workshop, tmp_path: Path) -> None:
    try:
        importlib.import_module("torchvision.transforms")
    except (ImportError, RuntimeError):
        # Diffusers' scripts import it, and the stand-in of these tests does not have all that they use.
        pytest.skip("their scripts need a torchvision that can be imported")
    plain = TheirTests(workshop, tmp_path / "plain").run(name, grown=False)
    grown = TheirTests(workshop, tmp_path / "grown").run(name, grown=True)
    print(f"{name}: unpatched {len(plain.passed)} of {len(plain.passed | plain.failed)}, patched {len(grown.passed)}")
    assert plain.passed, plain.log[-6000:]
    assert not plain.failed, plain.log[-6000:]
    assert plain.passed <= grown.passed, grown.log[-6000:]
