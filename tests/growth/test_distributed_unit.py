"""What can be said about many processes inside one: unwrapping, checksums, the rebuilt reducer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.distributed.optim import _apply_optimizer_in_backward
from torch.nn.parallel import DistributedDataParallel

from autoprog_diffusion import GrowthConfig, GrowthScheduler
from autoprog_diffusion.growth.backends.ddp import rebuild_reducer
from autoprog_diffusion.growth.backends.ranks import (
    average_gradient,
    check_ranks_equal,
    checksums,
    find_ddp,
    unwrap,
    world_size,
)
from autoprog_diffusion.growth.errors import OrderError
from autoprog_diffusion.growth.search_session import RunParts, SearchSession, first_plan
from autoprog_diffusion.growth.units import layout_from_patterns


def chain() -> nn.Sequential:
    return nn.Sequential(*[nn.Linear(3, 3) for _ in range(4)])


def count_gradients(calls: list[int], bucket):  # no annotation: DDP refuses one that is a string
    """A communication hook that reduces nothing and notes how many gradients it was given."""
    calls.append(len(bucket.gradients()))
    future = torch.futures.Future()
    future.set_result(bucket.buffer())
    return future


@pytest.fixture
def one_rank() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_without_a_process_group_there_is_one_rank() -> None:
    assert world_size() == 1
    check_ranks_equal([("weight", torch.zeros(2))], "now")


@pytest.mark.usefixtures("one_rank")
def test_unwrap_and_find_ddp_look_through_every_wrapper() -> None:
    model = chain()
    ddp = DistributedDataParallel(model)
    compiled = torch.compile(ddp, backend="eager")
    inner = DistributedDataParallel(torch.compile(model, backend="eager"))
    for wrapped in (model, ddp, compiled, inner, nn.DataParallel(model)):
        assert unwrap(wrapped) is model
    assert find_ddp(compiled) is ddp
    assert find_ddp(inner) is inner
    assert find_ddp(model) is None


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.uint8]
)
def test_checksums_see_one_bit(dtype: torch.dtype) -> None:
    value = torch.arange(12).to(dtype).view(3, 4)
    flipped = value.clone()
    width = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[value.element_size()]
    flipped.view(width)[1, 2] ^= 1
    ours, theirs, same = checksums([value, flipped, value.clone()]).tolist()
    assert ours == same
    assert ours != theirs


def test_checksums_read_values_and_not_memory() -> None:
    value = torch.randn(4, 6)
    assert checksums([value.t()]).item() == checksums([value.t().contiguous()]).item()


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("unused", [False, True])
@pytest.mark.parametrize("view", [False, True])
def test_a_rebuilt_reducer_keeps_what_the_user_chose(unused: bool, view: bool) -> None:
    model = chain()
    ddp = DistributedDataParallel(model, find_unused_parameters=unused, gradient_as_bucket_view=view, bucket_cap_mb=3)
    calls: list[int] = []
    ddp.register_comm_hook(calls, count_gradients)
    seen: list[str] = []
    ddp.register_forward_pre_hook(lambda module, args: seen.append("forward"))
    ddp.eval()
    for parameter in model[:2].parameters():
        parameter.requires_grad_(False)
    reducer = ddp.reducer
    rebuild_reducer(ddp)
    assert ddp.reducer is not reducer
    assert ddp.module is model
    assert not ddp.training
    assert (ddp.find_unused_parameters, ddp.gradient_as_bucket_view) == (unused, view)
    assert ddp.bucket_bytes_cap == 3 * 1024 * 1024
    ddp(torch.randn(2, 3)).sum().backward()
    assert seen == ["forward"]
    assert sum(calls) == 4  # the gradients of two of four layers
    assert len(ddp._comm_hooks) == 1


@pytest.mark.usefixtures("one_rank")
def test_a_rebuilt_reducer_keeps_what_it_was_doing() -> None:
    model = chain()
    ddp = DistributedDataParallel(model, bucket_cap_mb_list=[1, 2], batched_grad_copy=True)
    with ddp.no_sync():
        rebuild_reducer(ddp)
        assert not ddp.require_backward_grad_sync
    assert ddp.require_backward_grad_sync
    assert ddp.bucket_bytes_cap_list == [1024**2, 2 * 1024**2]
    assert ddp.batched_grad_copy
    ddp._register_builtin_comm_hook(dist.BuiltinCommHookType.FP16_COMPRESS)
    for _ in range(2):
        rebuild_reducer(ddp)
        assert ddp._get_ddp_logging_data()["comm_hook"] == "BuiltinCommHookType.FP16_COMPRESS"


class Named:
    """A state of a communication hook that is not the buckets' own."""

    names = ("first", "second")


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("state", [None, [1], {"count": 2}, Named(), chain()], ids=lambda s: type(s).__name__)
def test_states_without_tensors_are_carried_over(state: object) -> None:
    ddp = DistributedDataParallel(chain())
    ddp.register_comm_hook(state, default_hooks.allreduce_hook)
    rebuild_reducer(ddp)
    assert ddp._comm_hooks == [(default_hooks.allreduce_hook, state)]


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("state", [torch.zeros(1), [torch.zeros(1)], {"a": {"b": (torch.zeros(1),)}}])
def test_states_with_tensors_are_refused(state: object) -> None:
    ddp = DistributedDataParallel(chain())
    ddp.register_comm_hook(state, default_hooks.allreduce_hook)
    with pytest.raises(OrderError, match=f"allreduce_hook, a {type(state).__name__}, holds tensors.*powerSGD_hook"):
        rebuild_reducer(ddp)


@pytest.mark.usefixtures("one_rank")
def test_an_optimizer_that_steps_inside_the_backward_pass_is_refused() -> None:
    model = chain()
    _apply_optimizer_in_backward(torch.optim.SGD, model.parameters(), {"lr": 0.1})
    ddp = DistributedDataParallel(model)
    with pytest.raises(OrderError, match="an optimizer that steps inside the backward pass cannot grow"):
        rebuild_reducer(ddp)


@pytest.mark.usefixtures("one_rank")
def test_power_sgd_forgets_its_buckets() -> None:
    state = PowerSGDState(None, start_powerSGD_iter=5)
    ddp = DistributedDataParallel(chain())
    ddp.register_comm_hook(state, powerSGD_hook)
    state.iter, state.p_memory_dict[0] = 9, torch.zeros(1)
    rebuild_reducer(ddp)
    assert (state.iter, state.p_memory_dict) == (3, {})
    state.iter = 1
    rebuild_reducer(ddp)
    assert state.iter == 1  # it has not begun


@pytest.mark.usefixtures("one_rank")
def test_growth_rebuilds_the_reducer_for_what_trains() -> None:
    model = chain()
    config = GrowthConfig(num_stages=2, min_trainable=0.5, order="suffix", stage_embedding=False, direction="unfreeze")
    growth = GrowthScheduler(model, config, blocks=["*"])
    ddp = DistributedDataParallel(model)
    calls: list[int] = []
    ddp.register_comm_hook(calls, count_gradients)
    growth.prepare(ddp, num_training_steps=2)
    for trained in (4, 8):
        calls.clear()
        ddp(torch.randn(2, 3)).sum().backward()
        assert sum(calls) == trained
        growth.step()
    growth.fold(ddp)


def test_calls_of_ranks_that_are_gone_are_removed(tmp_path: Path) -> None:
    for number in (0, 1, 10):
        torch.save(["old"], tmp_path / f"growth_calls_{number}.pt")
    layout = layout_from_patterns(chain(), ["*"])
    config = GrowthConfig(search="zero_shot")
    plan, model = first_plan(config, layout, 40), chain()
    search = SearchSession(config)
    search.start(plan, None, RunParts(model, model, layout))
    search.save_calls(None, None, str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["growth_calls_0.pt"]
    search.load_calls(None, str(tmp_path))


def test_an_averaged_gradient_has_a_removable_hook() -> None:
    asked: list[bool] = []
    parameter = nn.Parameter(torch.ones(2))
    handle = average_gradient(parameter, lambda: bool(asked.append(True)))
    parameter.sum().backward()
    handle.remove()
    assert torch.equal(parameter.grad, torch.ones(2))
    assert not asked  # one rank: nothing to average
