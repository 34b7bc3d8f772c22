"""The stand-in operators let libraries import a torchvision that was built for another torch, and do nothing else."""

from __future__ import annotations

import _ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


def python(code: str, folder: Path, *paths: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([os.environ["PYTHONPATH"], *map(str, paths)])}
    command = [sys.executable, "-W", "error::RuntimeWarning", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, env=environment, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_timm_and_diffusers_import_beside_it(tmp_path: Path) -> None:
    pytest.importorskip("timm", reason="needs timm, the extra vit")
    looked_for = "import importlib.util; importlib.util.find_spec('torchvision')"  # as transformers does
    code = f"{looked_for}; import timm, diffusers; print(timm.is_model('volo_d1_224'))"
    assert python(code, tmp_path) == "True"


def test_it_waits_for_an_import_of_torchvision(tmp_path: Path) -> None:
    code = "import sys, json; print('torch' in sys.modules, [type(f).__name__ for f in sys.meta_path[:1]])"
    assert python(code, tmp_path) == "False ['Watcher']"


def test_an_environments_own_sitecustomize_still_runs(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import builtins\nbuiltins.CUSTOMISED = 1\n")
    assert python("print(CUSTOMISED)", tmp_path, tmp_path) == "1"


def test_a_torchvision_whose_binary_loads_is_left_alone(tmp_path: Path) -> None:
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").touch()
    shutil.copy(_ctypes.__file__, package / "_C.so")  # any library that loads
    code = "import torchvision, torch; print(torchvision.__file__, hasattr(torch.ops.torchvision, 'nms'))"
    assert python(code, tmp_path, tmp_path) == f"{package / '__init__.py'} False"
    (package / "_C.so").write_bytes(b"built for another torch")
    assert python(code, tmp_path, tmp_path) == f"{package / '__init__.py'} True"
