"""Print pyproject.toml's lower bounds as pip constraints: `python .ci/lower_bounds.py [NAME==VERSION ...]`.

A requirement given on the command line replaces the bound of that name.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import tomllib


PYPROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"


def lower_bounds(pyproject: str) -> dict[str, str]:
    """Lowest version of every requirement `name>=version`, of the project and of its extras, by name."""
    project = tomllib.loads(pyproject)["project"]
    requirements = [*project["dependencies"]]
    for extra in project["optional-dependencies"].values():
        requirements.extend(extra)
    matches = (re.fullmatch(r"([\w-]+)>=([\w.]+)", requirement) for requirement in requirements)
    return {match[1]: match[2] for match in matches if match}


if __name__ == "__main__":
    bounds = lower_bounds(PYPROJECT.read_text(encoding="utf-8"))
    bounds.update(requirement.split("==") for requirement in sys.argv[1:])
    print("\n".join(f"{name}=={version}" for name, version in sorted(bounds.items())))
