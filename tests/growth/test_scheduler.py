"""The scheduler's contract with a training loop: order of calls, and what is refused."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from autoprog_diffusion import GrowthConfig, GrowthPlan, GrowthScheduler, Stage
from autoprog_diffusion.growth import OrderError, PlanError, StageRecord

from .preparing import DIT, UNET, prepared


pytestmark = pytest.mark.smoke


@pytest.fixture
def one_rank() -> Iterator[None]:
    """A gloo process group of this process alone: enough to build DistributedDataParallel."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


# The order of calls


def test_step_and_everything_else_need_prepare() -> None:
    growth = GrowthScheduler(DIT.build(), GrowthConfig(order="interleaved", direction="unfreeze"))
    calls = [
        growth.step,
        growth.state_dict,
        growth.print_trainable_parameters,
        lambda: growth.plan,
        lambda: growth.stage,
        lambda: growth.resolution,
        lambda: growth.resize(torch.zeros(1, 3, 8, 8)),
        lambda: growth.load_state_dict({}),
    ]
    for call in calls:
        with pytest.raises(OrderError, match="growth.prepare"):
            call()


def test_prepare_runs_once() -> None:
    model, growth = prepared()
    with pytest.raises(OrderError, match="prepare was called already"):
        growth.prepare(model, num_training_steps=6)


def test_prepare_refuses_another_model() -> None:
    growth = GrowthScheduler(DIT.build(), GrowthConfig(order="interleaved", direction="unfreeze"))
    with pytest.raises(OrderError, match="DiTTransformer2DModel that is not the model"):
        growth.prepare(DIT.build(), num_training_steps=6)
    with pytest.raises(OrderError, match="UNet2DModel that is not the model"):
        growth.prepare(UNET.build(), num_training_steps=6)


def test_prepare_comes_after_accelerator_prepare(accelerator: Any) -> None:
    model = DIT.build()
    growth = GrowthScheduler(model, GrowthConfig(order="interleaved", direction="unfreeze"), accelerator)
    optimizer = torch.optim.AdamW(growth.parameters())
    with pytest.raises(OrderError, match=r"call accelerator.prepare\(...\) first"):
        growth.prepare(model, num_training_steps=6)
    model, optimizer = accelerator.prepare(model, optimizer)
    growth.prepare(model, num_training_steps=6)
    assert growth.stage == 0


def test_an_optimizer_that_lacks_parameters_is_named(accelerator: Any) -> None:
    model = DIT.build()
    growth = GrowthScheduler(model, GrowthConfig(order="interleaved", direction="unfreeze"), accelerator)
    model, _ = accelerator.prepare(model, torch.optim.AdamW(model.parameters()))
    with pytest.raises(OrderError, match=r"lacks 1 parameters.*stage_embedding.table.*growth.parameters\(\)"):
        growth.prepare(model, num_training_steps=6)


def test_an_optimizer_prepared_late_is_checked_at_the_first_step(accelerator: Any) -> None:
    model = DIT.build()
    growth = GrowthScheduler(model, GrowthConfig(order="interleaved", direction="unfreeze"), accelerator)
    model = accelerator.prepare(model)
    growth.prepare(model, num_training_steps=6)
    accelerator.prepare(torch.optim.AdamW(model.parameters()))
    with pytest.raises(OrderError, match="stage_embedding.table"):
        growth.step()


def test_an_optimizer_given_to_prepare_is_checked() -> None:
    model = DIT.build()
    growth = GrowthScheduler(model, GrowthConfig(order="interleaved", direction="unfreeze"))
    some = [p for name, p in model.named_parameters() if name != "proj_out_1.bias"]
    with pytest.raises(OrderError, match=r"lacks 2 parameters.*'proj_out_1.bias', 'stage_embedding.table'"):
        growth.prepare(model, num_training_steps=6, optimizer=torch.optim.SGD(some, lr=0.1))
    # A refused call leaves no trace: the corrected one goes through.
    growth.prepare(model, num_training_steps=6, optimizer=torch.optim.SGD(growth.parameters(), lr=0.1))


def test_an_optimizer_may_leave_out_what_never_trains() -> None:
    model = DIT.build()
    model.proj_out_1.bias.requires_grad_(False)
    growth = GrowthScheduler(model, GrowthConfig(order="interleaved", direction="unfreeze"))
    some = [p for p in growth.parameters() if p is not model.proj_out_1.bias]
    growth.prepare(model, num_training_steps=6, optimizer=torch.optim.SGD(some, lr=0.1))


def test_a_wrapped_model_is_refused_at_construction(one_rank: None) -> None:
    with pytest.raises(OrderError, match="given a DistributedDataParallel.*bare model"):
        GrowthScheduler(DistributedDataParallel(DIT.build()), GrowthConfig())
    with pytest.raises(OrderError, match="given a DataParallel"):
        GrowthScheduler(nn.DataParallel(DIT.build()), GrowthConfig())
    with pytest.raises(OrderError, match="given a OptimizedModule"):
        GrowthScheduler(torch.compile(DIT.build(), backend="eager"), GrowthConfig())


@pytest.mark.parametrize("kind", ["DEEPSPEED", "MEGATRON_LM", "XLA"])
def test_backends_that_cannot_grow_are_refused(kind: str) -> None:
    from accelerate.utils import DistributedType

    accelerator = SimpleNamespace(distributed_type=DistributedType[kind], _models=[], _optimizers=[])
    with pytest.raises(OrderError, match=f"distributed_type={kind}"):
        GrowthScheduler(DIT.build(), GrowthConfig(), accelerator)


def test_a_plan_that_freezes_needs_the_optimizer() -> None:
    model = DIT.build()
    freezing = GrowthConfig(num_stages=2, min_trainable=0.5, direction="freeze", order="interleaved")
    with pytest.raises(OrderError, match="pass the optimizer"):
        GrowthScheduler(model, freezing).prepare(model, num_training_steps=4)
    # The same for a plan from a file: its stages say it.
    growth = GrowthScheduler(model, GrowthConfig(num_stages=2, order="interleaved", direction="unfreeze"))
    count = len(growth.layout.blocks)
    plan = GrowthPlan(count, 4, (Stage(0, tuple(range(count))), Stage(2, (count - 1,))))
    with pytest.raises(OrderError, match="pass the optimizer"):
        growth.prepare(model, num_training_steps=4, plan=plan)


def test_fold_runs_once_on_its_own_model_after_prepare() -> None:
    model = DIT.build()
    growth = GrowthScheduler(model, GrowthConfig(order="interleaved", direction="unfreeze"))
    with pytest.raises(OrderError, match="nothing to fold"):
        growth.fold(model)
    growth.prepare(model, num_training_steps=6)
    with pytest.raises(OrderError, match="does not hold"):
        growth.fold(DIT.build())
    growth.fold(model)
    with pytest.raises(OrderError, match="once"):
        growth.fold(model)


def test_a_step_after_fold_leaves_the_folded_model_alone() -> None:
    model, growth = prepared(order="suffix", steps=3)
    growth.fold(model)
    with pytest.raises(OrderError, match="fold"):
        growth.step()
    assert all(p.requires_grad for p in model.parameters())


# Plans


def stages(*blocks: tuple[int, ...]) -> tuple[Stage, ...]:
    return tuple(Stage(index, chosen) for index, chosen in enumerate(blocks))


@pytest.mark.parametrize(
    ("plan", "named"),
    [
        (GrowthPlan(4, 6, stages((0,), (0, 1), (0, 1, 2, 3))), "model of 4 blocks, .* has 8"),
        (GrowthPlan(8, 9, stages((0,), (0, 1), tuple(range(8)))), r"for 9 steps, the run has 6.*rescaled\(6\)"),
        (GrowthPlan(8, 6, stages((0,), tuple(range(8)))), "2 stages, the stage embedding num_stages=3"),
    ],
    ids=["blocks", "steps", "stages"],
)
def test_a_plan_that_does_not_fit_is_refused(plan: GrowthPlan, named: str) -> None:
    model = DIT.build()
    growth = GrowthScheduler(model, GrowthConfig(num_stages=3, order="interleaved", direction="unfreeze"))
    with pytest.raises(PlanError, match=named):
        growth.prepare(model, num_training_steps=6, plan=plan)
    growth.prepare(model, num_training_steps=6)


def test_a_given_plan_is_followed() -> None:
    model = DIT.build()
    growth = GrowthScheduler(model, GrowthConfig(num_stages=2, order="interleaved", direction="unfreeze"))
    growth.prepare(model, num_training_steps=6, plan=GrowthPlan(8, 6, (Stage(0, (3, 5), 32), Stage(4, (1, 3, 5), 64))))
    seen = []
    for _ in range(6):
        seen.append((growth.stage, growth.resolution, growth.step()))
    assert [stage for stage, _, _ in seen] == [0, 0, 0, 0, 1, 1]
    assert [size for _, size, _ in seen] == [32] * 4 + [64] * 2
    assert [grew for _, _, grew in seen] == [False, False, False, True, False, False]
    assert [record.blocks for record in growth.history] == [
        ("transformer_blocks.3", "transformer_blocks.5"),
        ("transformer_blocks.1", "transformer_blocks.3", "transformer_blocks.5"),
    ]


def test_steps_beyond_the_plan_stay_in_the_last_stage() -> None:
    _, growth = prepared(steps=3)
    for _ in range(9):
        growth.step()
    assert growth.stage == 2
    assert growth.trainable_fraction == 1.0


# What trains


@pytest.mark.parametrize("order", ["interleaved", "suffix", "prefix"])
def test_what_the_user_froze_stays_frozen(order: Any) -> None:
    model = DIT.build()
    frozen = {"transformer_blocks.2.ff.net.2.weight", "transformer_blocks.7.attn1.to_q.weight", "proj_out_2.bias"}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    growth = GrowthScheduler(model, GrowthConfig(order=order, direction="unfreeze"))
    optimizer = torch.optim.AdamW(growth.parameters(), lr=0.1, weight_decay=0.5)
    growth.prepare(model, num_training_steps=4, optimizer=optimizer)
    before = copy.deepcopy(model.state_dict())
    for step in range(4):
        assert not [name for name, p in model.named_parameters() if p.requires_grad and name in frozen]
        DIT.loss(model, step).backward()
        optimizer.step()
        optimizer.zero_grad()
        growth.step()
    growth.fold(model)
    assert {name for name, p in model.named_parameters() if not p.requires_grad} == frozen
    same = {name for name, value in model.state_dict().items() if torch.equal(value, before[name])}
    assert same & dict(model.named_parameters()).keys() == frozen


def test_parameters_are_the_models_then_the_embeddings() -> None:
    model = DIT.build()
    growth = GrowthScheduler(
        model, GrowthConfig(num_stages=3, stage_dropout=0.1, order="interleaved", direction="unfreeze")
    )
    ours, theirs = list(growth.parameters()), list(model.parameters())
    assert len(ours) == len(theirs) + 1
    assert all(a is b for a, b in zip(ours, theirs))
    assert ours[-1].shape == (4, 8)
    growth = GrowthScheduler(model, GrowthConfig(stage_embedding=False, order="interleaved", direction="unfreeze"))
    assert len(list(growth.parameters())) == len(theirs)


def test_history_log_and_report_agree(caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture) -> None:
    caplog.set_level(logging.INFO, "autoprog_diffusion")
    model, growth = prepared(num_stages=4, steps=8)
    for _ in range(8):
        growth.step()
    assert [(record.stage, record.step) for record in growth.history] == [(0, 0), (1, 2), (2, 4), (3, 6)]
    assert [len(record.blocks) for record in growth.history] == [2, 4, 6, 8]
    total = sum(p.numel() for p in model.parameters())
    assert growth.history[-1].trainable_parameters == total
    for record in growth.history:
        assert record.trainable_fraction == record.trainable_parameters / total
        assert StageRecord.from_dict(record.to_dict()) == record
    assert len(caplog.records) == 4
    assert "stage 4 of 4 at step 6: 8 of 8 blocks, 100.0 %" in caplog.messages[-1]
    growth.print_trainable_parameters()
    assert f"trainable params: {total:,} || all params: {total:,}" in capsys.readouterr().out
