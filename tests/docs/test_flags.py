"""Every flag that a page names, in its text too, is one of this repository's programs, or a known one of others."""

from __future__ import annotations

import re

from .pages import PAGES, ROOT


CODE = ("autoprog_diffusion", "vit", "benchmarks", "recipes", "docs", "tests/plugin")
# Of Accelerate's launcher, Slurm, pytest and Diffusers' scripts.
OTHERS = {
    "config_file",
    "cpus-per-task",
    "dynamo_backend",
    "ema_power",
    "gpus-per-node",
    "machine_rank",
    "main_process_ip",
    "main_process_port",
    "multi_gpu",
    "ntasks-per-node",
    "num_cpu_threads_per_process",
    "num_machines",
    "pdb",
}


def is_flag(name: str, code: str) -> bool:
    """Whether code has a field, an argument or a literal flag of this name; `--no-x` switches `x` off."""
    field = name.removeprefix("no-").replace("-", "_")
    return re.search(rf"\b{field}\b\s*[:=]|[\"']--{name}[\"']", code) is not None


def test_flags_in_pages_exist() -> None:
    files = [path for folder in CODE for path in sorted((ROOT / folder).glob("**/*.py"))]
    code = "\n".join(path.read_text(encoding="utf-8") for path in files)
    unknown = []
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        names = set(re.findall(r"(?<![\w-])--([a-z][\w-]*)", text))
        unknown += [f"{page}: --{name}" for name in sorted(names - OTHERS) if not is_flag(name, code)]
    assert unknown == []


def test_a_flag_that_is_no_ones_is_seen() -> None:
    assert not is_flag("early_stopping", "stop_patience: int = 0\nname = 'early_stopping'")
    assert is_flag("stop_patience", "stop_patience: int = 0")
    assert is_flag("no-comments", "comments: bool = True")
