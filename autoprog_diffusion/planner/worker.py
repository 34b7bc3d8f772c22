"""A profile from a process of its own.

A device without memory becomes the accelerator of its process, and PyTorch makes no threads for its backward passes
where others ran before. So a process that trains asks another one. That starts from nothing rather than by
`multiprocessing`, which would run the user's script again.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

from autoprog_diffusion.growth.errors import GrowthError

from .errors import PlannerError
from .models import ModelSource
from .profile import Profile, StageRequest, make_profile
from .shapes import Shape


def profile_elsewhere(source: ModelSource, shape: Shape, *, stages: StageRequest | None = None) -> Profile:
    """`make_profile` in a new process.

    Args:
        source: The model.
        shape: Of one image.
        stages: Stages whose FLOPs are to be counted exactly.

    Raises:
        PlannerError: The model cannot be built, or the process ended without an answer.
        UnitError: The model's blocks cannot be named.
    """
    done = subprocess.run(
        [sys.executable, "-m", __name__],
        input=pickle.dumps((source, shape, stages)),
        capture_output=True,
        env=environment(),
        check=False,
    )
    if done.returncode != 0:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise PlannerError(
            f"the process that plans ended with exit code {done.returncode}: {' '.join(last) or 'it said nothing'}. "
            f"`autoprog-diffusion plan` does the same and shows all of it."
        )
    answer: Any = pickle.loads(done.stdout)
    if isinstance(answer, GrowthError):
        raise answer
    return answer


def environment() -> dict[str, str]:
    """Environment of the process: what can be imported here can be there, and GPUs are left alone."""
    # What a parent set for its children comes first: it need not be on this process's own path.
    given = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    paths = [*given, *(str(Path(path).absolute()) for path in sys.path)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "CUDA_VISIBLE_DEVICES": ""}


def main() -> None:
    """Read a request from the standard input, and write a profile, or what is wrong with the request."""
    # What libraries print must not come between.
    output = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    source, shape, stages = pickle.load(sys.stdin.buffer)
    try:
        answer: Profile | GrowthError = make_profile(source, shape, stages=stages, parallel=True)
    except GrowthError as error:
        answer = error
    with os.fdopen(output, "wb") as file:
        pickle.dump(answer, file)


if __name__ == "__main__":
    main()
