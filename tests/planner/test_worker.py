"""A process that trains plans by another one, and is left as it was."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from autoprog_diffusion.planner.errors import PlannerError
from autoprog_diffusion.planner.models import ModelSource, model_source
from autoprog_diffusion.planner.shapes import Shape
from autoprog_diffusion.planner.worker import profile_elsewhere

from ..settings import BY_ID


# No `if __name__ == "__main__"`: many scripts, and notebooks, have none.
SCRIPT = """
import torch
from diffusers import DiTTransformer2DModel
import autoprog_diffusion

model = DiTTransformer2DModel(num_layers=2, num_attention_heads=2, attention_head_dim=8, sample_size=8)
torch.ones(1, requires_grad=True).sum().backward()
planned = autoprog_diffusion.plan(model, steps=8, memory_gb=1.0)
assert len(planned.stages) == 2, planned.stages
assert all(stage.exact for stage in planned.stages)
assert planned.source.cls == "DiTTransformer2DModel"
torch.ones(1, requires_grad=True).sum().backward()
assert torch.accelerator.current_accelerator() is None or torch.cuda.is_available()
print("planned")
"""


@pytest.mark.slow
def test_a_script_that_has_run_a_backward_pass_plans(tmp_path: Path) -> None:
    file = tmp_path / "script.py"
    file.write_text(SCRIPT)
    command = [sys.executable, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == "planned\n"


@pytest.mark.slow
def test_what_is_wrong_with_a_model_is_told_here() -> None:
    source = ModelSource("mine", "DiTTransformer2DModel", {"num_layers": "two"})
    with pytest.raises(PlannerError, match="mine: DiTTransformer2DModel cannot be built"):
        profile_elsewhere(source, Shape())


def test_a_model_that_is_there_is_known_by_its_class_and_configuration() -> None:
    model = BY_ID["dit"].build()
    wrapped = nn.Module()
    wrapped.module = model  # as DistributedDataParallel has it
    source = model_source(wrapped)
    assert source.cls == "DiTTransformer2DModel"
    with torch.device("meta"):
        assert [each.shape for each in source.build().parameters()] == [each.shape for each in model.parameters()]
    assert json.dumps(source.config, default=str)


def test_a_model_that_is_no_denoiser_is_refused() -> None:
    with pytest.raises(PlannerError, match="Linear has no configuration of Diffusers"):
        model_source(nn.Linear(1, 1))
