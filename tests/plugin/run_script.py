"""Runs a training script with a fixed seed: `python run_script.py SCRIPT ARGUMENTS...`."""

from __future__ import annotations

import importlib
import random
import runpy
import sys
import types
from pathlib import Path


def provide_torchvision() -> None:
    """Where torchvision cannot be imported, put the stand-in in its place."""
    try:
        importlib.import_module("torchvision.transforms")
        return
    except (ImportError, RuntimeError):  # not there, or built for another torch
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
    # The host libraries look for torchvision once, and must see neither a broken one nor the stand-in.
    sys.modules["torchvision"] = None  # type: ignore[assignment]
    for host in ("transformers", "diffusers", "datasets", "peft"):
        importlib.import_module(host)
    assert not sys.modules["transformers"].utils.is_torchvision_available()
    sys.path.insert(0, str(Path(__file__).parent))
    transforms = importlib.import_module("torchvision_stand_in")
    package = types.ModuleType("torchvision")
    package.transforms = transforms  # type: ignore[attr-defined]
    names = ("torchvision", "torchvision.transforms", "torchvision.transforms.functional")
    sys.modules.update(zip(names, (package, transforms, transforms)))


def main() -> None:
    import numpy as np
    import torch

    provide_torchvision()
    torch.set_num_threads(1)
    # train_unconditional.py has no --seed.
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
