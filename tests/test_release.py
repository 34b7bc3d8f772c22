"""What is released: all packages and their files, one version everywhere, and lists that the repository keeps."""

from __future__ import annotations

import re
from pathlib import Path

import tomllib
import yaml

import autoprog_diffusion


ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SETUPTOOLS = PROJECT["tool"]["setuptools"]


def folder_of(package: str) -> Path:
    """Where the sources of a package lie: those of `package-dir` elsewhere than their name says."""
    for name, folder in SETUPTOOLS["package-dir"].items():
        if package == name or package.startswith(f"{name}."):
            return ROOT / folder / package[len(name) + 1 :].replace(".", "/")
    return ROOT / package.replace(".", "/")


def test_every_package_is_in_the_wheel() -> None:
    listed = {folder_of(package) for package in SETUPTOOLS["packages"]}
    tops = ("autoprog_diffusion", "recipes", "vit")
    found = {path.parent for top in tops for path in (ROOT / top).rglob("__init__.py")}
    assert listed == found
    assert not [path for top in tops for path in (ROOT / top).rglob("*.py") if path.parent not in listed | BUILDING]


# Scripts that made what is bundled: they need the repository.
BUILDING = {ROOT / "recipes" / "assets" / "build"}


def test_every_file_that_code_reads_is_in_the_wheel() -> None:
    kept: set[Path] = set()
    for package, patterns in SETUPTOOLS["package-data"].items():
        for pattern in patterns:
            found = [path for path in folder_of(package).glob(pattern) if path.is_file()]
            # `**` of the build means files in sub-folders, too.
            found += [path for path in folder_of(package).glob(f"{pattern}/*") if path.is_file()]
            assert found, f"{package}: {pattern} matches nothing"
            kept.update(found)
    for package in SETUPTOOLS["packages"]:
        for path in folder_of(package).iterdir():
            if path.suffix in (".json", ".css", ".typed", ".yaml"):
                assert path in kept, path
    models = [path for path in (ROOT / "recipes" / "assets").rglob("*.safetensors")]
    assert models
    assert set(models) <= kept


def test_the_version_is_one() -> None:
    version = PROJECT["project"]["version"]
    assert autoprog_diffusion.__version__ == version
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == version
    assert citation["license"] == PROJECT["project"]["license"]
    releases = re.findall(r"^## \[([\d.]+)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert releases[0] == version
    assert len(set(releases)) == len(releases)


def test_forms_for_issues_are_read() -> None:
    forms = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
    assert {"bug.yml", "config.yml", "family.yml", "question.yml"} <= {path.name for path in forms}
    for path in forms:
        form = yaml.safe_load(path.read_text(encoding="utf-8"))
        if path.name != "config.yml":
            assert {"name", "description", "body"} <= set(form)
            kinds = {"markdown", "textarea", "input", "dropdown", "checkboxes"}
            assert {part["type"] for part in form["body"]} <= kinds
