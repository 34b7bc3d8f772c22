"""Diffusers' own tests of its scripts, run where nothing can be downloaded: names of the Hub become local folders."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autoprog_diffusion.patching.analyse import analyse
from autoprog_diffusion.patching.source import read_source
from autoprog_diffusion.patching.transform import patch

from . import latest_pipelines as latest
from . import more_pipelines as more
from . import pipelines
from .data_folders import write_conditioned
from .scripts import CHECKOUT


def _folder(build: Callable[[], Any]) -> Callable[[Path], Path]:
    return lambda folder: pipelines.save_pipeline(build, folder)


# Names of the Hub in their tests -> what makes something tiny of the same class, in a folder.
PLACES: dict[str, Callable[[Path], Path]] = {
    "hf-internal-testing/tiny-stable-diffusion-torch": _folder(pipelines.stable_diffusion),
    "hf-internal-testing/tiny-stable-diffusion-xl-pipe": _folder(pipelines.sdxl),
    "hf-internal-testing/tiny-playground-v2-5-pipe": _folder(more.sdxl_edm),
    "hf-internal-testing/tiny-if-pipe": _folder(pipelines.deepfloyd),
    "hf-internal-testing/tiny-sd3-pipe": _folder(pipelines.sd3),
    "hf-internal-testing/tiny-sd35-pipe": _folder(pipelines.sd3),
    "DavyMorgan/tiny-sd3-pipe": _folder(pipelines.sd3),
    "hf-internal-testing/tiny-flux-pipe": _folder(pipelines.flux),
    "hf-internal-testing/tiny-flux-kontext-pipe": _folder(pipelines.flux),
    "hf-internal-testing/tiny-flux2": _folder(latest.flux2),
    "hf-internal-testing/tiny-flux2-klein": _folder(more.flux2_klein),
    "hf-internal-testing/tiny-hidream-i1-pipe": _folder(latest.hidream),
    "hf-internal-testing/tiny-random-LlamaForCausalLM": _folder(latest.llama_with_tokenizer),
    "hf-internal-testing/tiny-lumina2-pipe": _folder(more.lumina2),
    "hf-internal-testing/tiny-qwenimage-pipe": _folder(more.qwen_image),
    "hf-internal-testing/tiny-sana-pipe": _folder(more.sana),
    "hf-internal-testing/tiny-controlnet": _folder(more.controlnet),
    "hf-internal-testing/tiny-controlnet-sdxl": _folder(more.controlnet_sdxl),
    "DavyMorgan/tiny-controlnet-sd3": _folder(more.controlnet_sd3),
    "DavyMorgan/tiny-controlnet-sd35": _folder(more.controlnet_sd3),
    "diffusers/ddpm_dummy": _folder(pipelines.unconditional_model),
    # Data sets, with the number of pictures that their tests count on.
    "hf-internal-testing/dummy_image_text_data": lambda folder: pipelines.write_images(folder, True, 8),
    "hf-internal-testing/dummy_image_class_data": lambda folder: pipelines.write_images(folder, True, 6),
    "hf-internal-testing/fill10": lambda folder: write_conditioned(folder, 10),
    "hf-internal-testing/instructpix2pix-10-samples": lambda folder: write_conditioned(folder, 10),
}
# ControlNets of Stable Diffusion are made for latents of an eighth of the size.
EIGHTHS = {
    "hf-internal-testing/tiny-stable-diffusion-torch": _folder(more.stable_diffusion_eighths),
    "hf-internal-testing/tiny-stable-diffusion-xl-pipe": _folder(more.sdxl_eighths),
}


@dataclass(frozen=True)
class Theirs:
    """Their tests of one script.

    Attributes:
        script: Below `examples/`.
        file: That tests it, in the same folder.
        classes: In that file.
        places: Other folders for some names of the Hub.
    """

    script: str
    file: str
    classes: tuple[str, ...]
    places: dict[str, Callable[[Path], Path]] = field(default_factory=dict)


DREAMBOOTH = "dreambooth/train_dreambooth"
CONTROLNET = "controlnet/train_controlnet"
THEIRS = [
    Theirs("text_to_image/train_text_to_image.py", "test_text_to_image.py", ("TestTextToImage",)),
    Theirs("text_to_image/train_text_to_image_sdxl.py", "test_text_to_image.py", ("TestTextToImageSDXL",)),
    Theirs("text_to_image/train_text_to_image_lora.py", "test_text_to_image_lora.py", ("TestTextToImageLoRA",)),
    Theirs("text_to_image/train_text_to_image_lora_sdxl.py", "test_text_to_image_lora.py",
           ("TestTextToImageLoRASDXL",)),
    Theirs("unconditional_image_generation/train_unconditional.py", "test_unconditional.py", ("TestUnconditional",)),
    Theirs("instruct_pix2pix/train_instruct_pix2pix.py", "test_instruct_pix2pix.py", ("TestInstructPix2Pix",)),
    Theirs(f"{CONTROLNET}.py", "test_controlnet.py", ("TestControlNet",), EIGHTHS),
    Theirs(f"{CONTROLNET}_sdxl.py", "test_controlnet.py", ("TestControlNetSDXL",), EIGHTHS),
    Theirs(f"{CONTROLNET}_sd3.py", "test_controlnet.py", ("TestControlNetSD3", "TestControlNetSD35")),
    Theirs(f"{CONTROLNET}_flux.py", "test_controlnet.py", ("TestControlNetflux",)),
    Theirs(f"{DREAMBOOTH}.py", "test_dreambooth.py", ("TestDreamBooth",)),
    Theirs(f"{DREAMBOOTH}_sd3.py", "test_dreambooth_sd3.py", ("TestDreamBoothSD3",)),
    Theirs(f"{DREAMBOOTH}_flux.py", "test_dreambooth_flux.py", ("TestDreamBoothFlux",)),
    Theirs(f"{DREAMBOOTH}_lora.py", "test_dreambooth_lora.py", ("TestDreamBoothLoRA",)),
    Theirs(f"{DREAMBOOTH}_lora_sdxl.py", "test_dreambooth_lora.py", ("TestDreamBoothLoRASDXL",)),
    Theirs(f"{DREAMBOOTH}_lora_sdxl.py", "test_dreambooth_lora_edm.py", ("TestDreamBoothLoRASDXLWithEDM",)),
    Theirs(f"{DREAMBOOTH}_lora_sd3.py", "test_dreambooth_lora_sd3.py", ("TestDreamBoothLoRASD3",)),
    Theirs(f"{DREAMBOOTH}_lora_flux.py", "test_dreambooth_lora_flux.py", ("TestDreamBoothLoRAFlux",)),
    Theirs(f"{DREAMBOOTH}_lora_flux_kontext.py", "test_dreambooth_lora_flux_kontext.py",
           ("TestDreamBoothLoRAFluxKontext",)),
    Theirs(f"{DREAMBOOTH}_lora_flux2.py", "test_dreambooth_lora_flux2.py", ("TestDreamBoothLoRAFlux2",)),
    Theirs(f"{DREAMBOOTH}_lora_flux2_klein.py", "test_dreambooth_lora_flux2_klein.py",
           ("TestDreamBoothLoRAFlux2Klein",)),
    Theirs(f"{DREAMBOOTH}_lora_hidream.py", "test_dreambooth_lora_hidream.py", ("TestDreamBoothLoRAHiDreamImage",)),
    Theirs(f"{DREAMBOOTH}_lora_lumina2.py", "test_dreambooth_lora_lumina2.py", ("TestDreamBoothLoRAlumina2",)),
    Theirs(f"{DREAMBOOTH}_lora_qwen_image.py", "test_dreambooth_lora_qwenimage.py", ("TestDreamBoothLoRAQwenImage",)),
    Theirs(f"{DREAMBOOTH}_lora_sana.py", "test_dreambooth_lora_sana.py", ("TestDreamBoothLoRASANA",)),
    Theirs("advanced_diffusion_training/train_dreambooth_lora_flux_advanced.py",
           "test_dreambooth_lora_flux_advanced.py", ("TestDreamBoothLoRAFluxAdvanced",)),
]  # fmt: skip


@dataclass(frozen=True)
class Results:
    """Names of their tests, and what pytest printed."""

    passed: frozenset[str]
    failed: frozenset[str]
    log: str


class TheirTests:
    """A folder laid out as a checkout, with their tests, and their scripts patched or not.

    Args:
        shared: Folder of the tiny pipelines and data sets, made once for all.
        folder: Made by this.
        environment: Of the processes.
    """

    def __init__(self, shared: Path, folder: Path, environment: dict[str, str]) -> None:
        assert CHECKOUT is not None
        self._shared = shared
        self._folder = folder
        self._environment = environment
        self._checkout = Path(CHECKOUT)
        self._examples = folder / "examples"
        self._examples.mkdir(parents=True)
        shutil.copy(Path(__file__).with_name("stand_in_utils.py"), self._examples / "test_examples_utils.py")
        # Their own conftest.py is left out; an empty one puts `examples` on the path.
        (self._examples / "conftest.py").touch()
        (folder / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
        # The pictures that DreamBooth trains on.
        (folder / "docs").symlink_to(self._checkout / "docs")

    def run(self, theirs: Theirs, *, grown: bool, select: str = "") -> Results:
        """The results of their tests, on a script that is patched (`grown`) or as it is; `select` is pytest's -k."""
        original = self._checkout / "examples" / theirs.script
        script = self._examples / theirs.script
        script.parent.mkdir(parents=True, exist_ok=True)
        text = original.with_name(theirs.file).read_text(encoding="utf-8")
        places = {name: self._place(name, make) for name, make in (PLACES | theirs.places).items() if name in text}
        # A name may begin as another one does.
        for name in sorted(places, key=len, reverse=True):
            text = text.replace(name, str(places[name]))
        test = script.with_name(theirs.file)
        test.write_text(text, encoding="utf-8")
        for path in scripts_of(text, theirs):
            self._write_script(path, grown=grown)
        report = self._folder / f"{script.stem}-{test.stem}.xml"
        flags = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", f"--junitxml={report}", "-k", select]
        tests = [f"examples/{test.relative_to(self._examples)}::{name}" for name in theirs.classes]
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *flags, *tests],
            cwd=self._folder,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=7200,
            check=False,
        )
        return _results(report, done.stdout + done.stderr)

    def _write_script(self, path: str, *, grown: bool) -> None:
        """Write a script of theirs, by its path below `examples/`, patched or as it is."""
        original = self._checkout / "examples" / path
        script = self._examples / path
        script.parent.mkdir(parents=True, exist_ok=True)
        script.write_bytes(patch(analyse(read_source(original))) if grown else original.read_bytes())

    def _place(self, name: str, make: Callable[[Path], Path]) -> Path:
        """The folder of a name of the Hub, made once."""
        kind = "eighths" if make in EIGHTHS.values() else "whole"
        folder = self._shared / "hub" / kind / name.replace("/", "_")
        return folder if folder.exists() else make(folder)


def scripts_of(text: str, theirs: Theirs) -> set[str]:
    """Paths of the scripts that the classes of a test file run: one may run those of another one too."""
    classes = [part for part in text.split("\nclass ") if part.startswith(theirs.classes)]
    return {theirs.script, *re.findall(r"examples/([\w/]+/train_\w+\.py)", "".join(classes))}


def _results(report: Path, log: str) -> Results:
    assert report.exists(), log[-6000:]
    passed = set()
    failed = set()
    for case in ET.parse(report).getroot().iter("testcase"):
        bad = case.find("failure") is not None or case.find("error") is not None
        (failed if bad else passed).add(f"{case.attrib['classname'].rpartition('.')[2]}.{case.attrib['name']}")
    return Results(frozenset(passed), frozenset(failed), log)
