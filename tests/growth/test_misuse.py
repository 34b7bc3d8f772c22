"""What a loop may do wrong with a growth object, and how it is told; each of these once trained on in silence."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from diffusers.training_utils import EMAModel
from torch import nn

from autoprog_diffusion import GrowthConfig, GrowthScheduler, GrowthWarning, OrderError
from autoprog_diffusion.growth.watch.folding import remind

from .looping import DIT, SD, SMALL, add_adapter, begin, begin_adapters, run, scheduler, train


# Optimizers that lack what will train


@pytest.mark.parametrize("embedding", [None, False], ids=["embedding", "plain"])
def test_misuse_an_optimizer_of_what_requires_grad_after_prepare(embedding: Any) -> None:
    model = DIT.build().train()
    growth = GrowthScheduler(model, GrowthConfig(direction="unfreeze", stage_embedding=embedding))
    growth.prepare(model, num_training_steps=8)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    with pytest.raises(OrderError, match=r"no optimizer holds \d+ of the \d+ .*growth.parameters\(\)"):
        run((model, growth, optimizer), 1, DIT)


def test_misuse_an_optimizer_outside_of_the_accelerator_that_lacks_parameters(accelerator: Any) -> None:
    model = SMALL.build()
    config = GrowthConfig(direction="unfreeze", stage_embedding=False)
    growth = GrowthScheduler(model, config, accelerator, blocks=SMALL.patterns)
    model = accelerator.prepare(model)
    growth.prepare(model, num_training_steps=8)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    with pytest.raises(OrderError, match="no optimizer holds"):
        run((model, growth, optimizer), 1)


def test_misuse_an_optimizer_that_is_replaced_by_a_smaller_one() -> None:
    model, growth, optimizer = begin(known=False)
    run((model, growth, optimizer), 4)
    assert growth.stage == 1
    del optimizer
    optimizer = torch.optim.SGD(list(model.transformer_blocks[7].parameters()), lr=1e-3)
    with pytest.raises(OrderError, match="no optimizer holds"):
        run((model, growth, optimizer), 1)


def test_misuse_a_copy_of_the_model_is_trained() -> None:
    model, growth, optimizer = begin(known=False)
    del optimizer
    other = copy.deepcopy(model)
    with pytest.raises(OrderError, match=r"no optimizer holds (\d+) of the \1"):
        run((other, growth, torch.optim.AdamW(other.parameters())), 1)


def test_misuse_an_optimizer_of_some_adapters() -> None:
    model, growth, optimizer = begin_adapters(direction="unfreeze")
    del optimizer
    some = [parameter for name, parameter in model.named_parameters() if parameter.requires_grad]
    with pytest.raises(OrderError, match="no optimizer holds .*lora_"):
        run((model, growth, torch.optim.AdamW(some)), 1, SD)


# Flags that somebody else sets


@pytest.mark.parametrize("flag", [True, False])
@pytest.mark.parametrize("steps", [0, 1, 5], ids=["before", "first", "second stage"])
def test_misuse_requires_grad_is_flipped(flag: bool, steps: int) -> None:
    model, growth, optimizer = begin(direction="freeze", order="suffix")
    run((model, growth, optimizer), steps)
    if flag and growth.stage == 0:
        model.transformer_blocks[0].requires_grad_(False)
    else:
        model.transformer_blocks.requires_grad_(flag)
    train(model, optimizer, steps) if flag else None
    with pytest.raises(OrderError, match=r"requires_grad of \d+ parameters.*first \['.*no_grad"):
        growth.step()


def test_misuse_a_flag_changes_between_construction_and_prepare() -> None:
    model = SMALL.build()
    growth = scheduler(model, GrowthConfig(direction="unfreeze", stage_embedding=False))
    model.transformer_blocks[2].requires_grad_(False)
    with pytest.raises(OrderError, match=r"requires_grad of \d+ parameters was changed between .*blocks.2"):
        growth.prepare(model, num_training_steps=8)


def test_misuse_adapters_are_switched_off_and_on() -> None:
    model, growth, optimizer = begin_adapters(direction="unfreeze")
    run((model, growth, optimizer), 1, SD)
    model.disable_adapters()
    model.enable_adapters()
    with pytest.raises(OrderError, match="lora_.*enable_adapters"):
        growth.step()


# Weights that move although they are frozen


def decay(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.data.mul_(1 - 1e-6)


def edit(model: nn.Module) -> None:
    with torch.no_grad():
        model.transformer_blocks[0].to_q.weight.add_(0.1)


def load(model: nn.Module) -> None:
    model.load_state_dict({name: value + 0.1 for name, value in model.state_dict().items()})


def copy_average(model: nn.Module) -> None:
    average = EMAModel(model.parameters(), foreach=False)
    average.shadow_params = [value + 0.1 for value in average.shadow_params]
    average.optimization_step = 0
    average.copy_to(model.parameters())


@pytest.mark.parametrize("move", [decay, edit, load, copy_average], ids=lambda move: move.__name__)
@pytest.mark.parametrize("settings", [{}, {"direction": "freeze"}], ids=["unfreeze", "freeze"])
def test_misuse_frozen_weights_move(move: Callable[[nn.Module], None], settings: dict[str, Any]) -> None:
    model, growth, optimizer = begin(steps=16, **settings)
    run((model, growth, optimizer), 9 if settings else 3)
    assert bool(settings) == (growth.stage == 1)
    move(model)
    with pytest.raises(OrderError, match=r"frozen parameters have moved .*first \["):
        run((model, growth, optimizer), 7)


class EagerDecay(torch.optim.SGD):
    """Decays whatever it holds, with or without a gradient."""

    def step(self, closure: Any = None) -> None:
        super().step(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data.mul_(0.999)


def test_misuse_an_optimizer_decays_frozen_weights() -> None:
    model, growth, _ = begin(known=False)
    with pytest.raises(OrderError, match=r"frozen parameters have moved .*an optimizer that moves"):
        run((model, growth, EagerDecay(growth.parameters(), lr=1e-3)), 2)


# Calls of `growth.step`


@pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])
@pytest.mark.parametrize("accumulation", [2, 4])
def test_misuse_a_step_per_micro_batch(accumulation: int, known: bool) -> None:
    model, growth, optimizer = begin(steps=32, known=known)
    calls: list[int] = []

    def loop() -> None:
        for micro in range(32):
            calls.append(micro)
            SMALL.loss(model, micro).backward()
            if (micro + 1) % accumulation == 0:
                optimizer.step()
                optimizer.zero_grad()
            growth.step()

    with pytest.raises(OrderError, match="more than once per optimizer step"):
        loop()
    assert len(calls) == 6


def test_misuse_two_calls_per_step() -> None:
    model, growth, optimizer = begin(steps=32)

    def loop() -> None:
        for step in range(16):
            train(model, optimizer, step)
            growth.step()
            growth.step()

    with pytest.raises(OrderError, match="more than once per optimizer step"):
        loop()


def test_misuse_a_step_per_micro_batch_under_accelerate() -> None:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=4)
    model = SMALL.build()
    growth = GrowthScheduler(model, GrowthConfig(stage_embedding=False), accelerator, blocks=SMALL.patterns)
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(growth.parameters()))
    growth.prepare(model, num_training_steps=8)
    with accelerator.accumulate(model):
        accelerator.backward(SMALL.loss(model, 0))
        optimizer.step()
        optimizer.zero_grad()
    with pytest.raises(OrderError, match="sync_gradients is False"):
        growth.step()
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def test_misuse_step_is_never_called() -> None:
    model, growth, optimizer = begin()
    for step in range(3):
        train(model, optimizer, step)
    with pytest.warns(GrowthWarning, match="after 3 optimizer steps, but growth.step never was"):
        growth.fold(model)


@pytest.mark.parametrize("ending", ["neither", "fold", "folded"])
def test_misuse_fold_is_never_called(ending: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what other tests of this process left open
        remind()
    model, growth, optimizer = begin(2, family=DIT, stage_embedding=True)
    run((model, growth, optimizer), 2, DIT)
    if ending == "neither":
        with pytest.warns(GrowthWarning, match="growth.fold was never called: the stage embedding is not in"):
            remind()
        growth.fold(model)
    elif ending == "fold":
        growth.fold(model)
    else:
        with growth.folded(model):
            pass
    remind()  # a warning is an error


def test_misuse_step_is_not_called_for_a_hundred_steps() -> None:
    model = nn.Sequential(*[nn.Linear(2, 2) for _ in range(4)])
    growth = GrowthScheduler(model, GrowthConfig(num_stages=2, stage_embedding=False), blocks=["*"])
    optimizer = torch.optim.SGD(growth.parameters(), lr=0.1)
    growth.prepare(model, num_training_steps=200, optimizer=optimizer)
    for _ in range(99):
        optimizer.step()
    with pytest.warns(GrowthWarning, match="growth.step was never called"):
        optimizer.step()


def test_misuse_steps_after_the_end(caplog: pytest.LogCaptureFixture) -> None:
    parts = begin(steps=4)
    run(parts, 4)
    assert "after the last step" not in caplog.text
    run(parts, 2)
    assert caplog.text.count("after the last step of the plan") == 1


# The end


def test_misuse_fold_in_the_middle() -> None:
    model, growth, optimizer = begin(steps=100)
    run((model, growth, optimizer), 8)
    with pytest.warns(GrowthWarning, match="step 8 of 100"):
        growth.fold(model)
    assert all(parameter.requires_grad for parameter in model.parameters())


# Another model


def add_trained_adapter(model: Any) -> None:
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    add_adapter(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(flags.get(name.replace(".base_layer", ""), True))


def resize(model: Any) -> None:
    old = model.time_embedding.linear_1
    model.time_embedding.linear_1 = nn.Linear(old.in_features, old.out_features)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (add_adapter, "parameters changed after growth.prepare.*add_adapter"),
        (add_trained_adapter, "parameters changed after growth.prepare.*add_adapter"),
        (resize, "replaced by others.*linear_1"),
    ],
    ids=["add_adapter", "add_trained_adapter", "resize"],
)
@pytest.mark.parametrize("steps", [0, 1], ids=["before", "after a step"])
def test_misuse_the_model_is_changed(change: Callable[[Any], None], said: str, steps: int) -> None:
    model, growth, optimizer = begin(family=SD)
    run((model, growth, optimizer), steps, SD)
    change(model)
    with pytest.raises(OrderError, match=said):
        growth.step()


@pytest.mark.parametrize("steps", [0, 1], ids=["before", "after a step"])
def test_misuse_the_model_is_cast(steps: int) -> None:
    """A warning, since upstream scripts cast the model for validation and train on."""
    model, growth, optimizer = begin()
    run((model, growth, optimizer), steps)
    model.to(torch.bfloat16)
    with pytest.warns(GrowthWarning, match=r"cast after growth.prepare: 20 .*float32 to torch.bfloat16"):
        growth.step()
    growth.step()


# Names


def errors() -> Iterator[str]:
    import autoprog_diffusion

    yield from (name for name in autoprog_diffusion.__all__ if name.endswith(("Error", "Warning")))


def test_misuse_errors_are_importable_from_the_top() -> None:
    for name in sorted(errors()):
        import autoprog_diffusion

        error = getattr(autoprog_diffusion, name)
        assert issubclass(error, autoprog_diffusion.GrowthError) or name == "GrowthWarning"


def test_misuse_no_error_of_ours_is_missing_at_the_top() -> None:
    import autoprog_diffusion

    from ..density import sources

    defined = set()
    for path in sources():
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith("class ") and "Error(" in line:
                defined.add(line.removeprefix("class ").partition("(")[0])
    assert defined <= set(autoprog_diffusion.__all__)
    with pytest.raises(AttributeError, match="NoSuchError"):
        getattr(autoprog_diffusion, "NoSuchError")  # noqa: B009
