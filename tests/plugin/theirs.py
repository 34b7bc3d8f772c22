"""Diffusers' own tests of its scripts, run where nothing can be downloaded: names of the Hub become local folders."""

from __future__ import annotations

import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import pipelines
from .scripts import BY_NAME, CHECKOUT, Workshop, patched


# What their tests load from the Hub -> what makes a tiny pipeline of the same class.
PIPELINES: dict[str, Callable[[], Any]] = {
    "hf-internal-testing/tiny-stable-diffusion-torch": pipelines.stable_diffusion,
    "hf-internal-testing/tiny-stable-diffusion-xl-pipe": pipelines.sdxl,
    "hf-internal-testing/tiny-if-pipe": pipelines.deepfloyd,
    "hf-internal-testing/tiny-sd3-pipe": pipelines.sd3,
    "hf-internal-testing/tiny-flux-pipe": pipelines.flux,
}
MODEL_CONFIG = "diffusers/ddpm_dummy"
# Data sets, with the number of pictures that their tests count on.
DATASETS = {"hf-internal-testing/dummy_image_text_data": 8, "hf-internal-testing/dummy_image_class_data": 6}
# Script -> the file in `examples/`, and the class in it, that test it.
TESTS = {
    "train_text_to_image": ("text_to_image/test_text_to_image.py", "TestTextToImage"),
    "train_text_to_image_sdxl": ("text_to_image/test_text_to_image.py", "TestTextToImageSDXL"),
    "train_dreambooth": ("dreambooth/test_dreambooth.py", "TestDreamBooth"),
    "train_dreambooth_lora_sd3": ("dreambooth/test_dreambooth_lora_sd3.py", "TestDreamBoothLoRASD3"),
    "train_dreambooth_lora_flux": ("dreambooth/test_dreambooth_lora_flux.py", "TestDreamBoothLoRAFlux"),
    "train_unconditional": ("unconditional_image_generation/test_unconditional.py", "TestUnconditional"),
}


@dataclass(frozen=True)
class Results:
    """Names of their tests, and what pytest printed."""

    passed: frozenset[str]
    failed: frozenset[str]
    log: str


class TheirTests:
    """A folder laid out as a checkout, with their tests, and their scripts patched or not.

    Args:
        workshop: Pipelines on disk, and the environment of the processes.
        folder: Made by this.
    """

    def __init__(self, workshop: Workshop, folder: Path) -> None:
        assert CHECKOUT is not None
        self._workshop = workshop
        self._folder = folder
        self._checkout = Path(CHECKOUT)
        self._examples = folder / "examples"
        self._examples.mkdir(parents=True)
        shutil.copy(Path(__file__).with_name("stand_in_utils.py"), self._examples / "test_examples_utils.py")
        # Their own conftest.py is left out; an empty one puts `examples` on the path.
        (self._examples / "conftest.py").touch()
        (folder / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
        # The pictures that DreamBooth trains on.
        (folder / "docs").symlink_to(self._checkout / "docs")

    def run(self, name: str, *, grown: bool, select: str = "") -> Results:
        """The results of the tests of one script, patched (`grown`) or as it is; `select` is pytest's -k."""
        script = BY_NAME[name]
        file, test_class = TESTS[name]
        (self._examples / file).parent.mkdir(parents=True, exist_ok=True)
        text = (self._checkout / "examples" / file).read_text(encoding="utf-8")
        for hub_name, place in self._places().items():
            text = text.replace(hub_name, str(place))
        (self._examples / file).write_text(text, encoding="utf-8")
        if grown:
            patched(script, self._folder)
        else:
            shutil.copy(self._checkout / script.path, self._folder / script.path)
        report = self._folder / f"{name}.xml"
        flags = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", f"--junitxml={report}", "-k", select]
        command = [sys.executable, "-m", "pytest", *flags, f"examples/{file}::{test_class}"]
        done = subprocess.run(
            command,
            cwd=self._folder,
            env=self._workshop.environment,
            capture_output=True,
            text=True,
            timeout=3600,
            check=False,
        )
        return _results(report, done.stdout + done.stderr)

    def _places(self) -> dict[str, Path]:
        """Names of the Hub -> folders, which are made once."""
        places = {}
        for hub_name, build in PIPELINES.items():
            folder = self._workshop.folder / build.__name__
            places[hub_name] = folder if folder.exists() else pipelines.save_pipeline(build, folder)
        unconditional = self._workshop.pipeline(BY_NAME["train_unconditional"])
        places[MODEL_CONFIG] = unconditional / "unet"
        for hub_name, count in DATASETS.items():
            folder = self._workshop.folder / hub_name.rpartition("/")[2]
            places[hub_name] = folder if folder.exists() else pipelines.write_images(folder, True, count)
        return places


def _results(report: Path, log: str) -> Results:
    assert report.exists(), log[-6000:]
    passed = set()
    failed = set()
    for case in ET.parse(report).getroot().iter("testcase"):
        bad = case.find("failure") is not None or case.find("error") is not None
        (failed if bad else passed).add(case.attrib["name"])
    return Results(frozenset(passed), frozenset(failed), log)
