"""A run that a signal ends: the step is finished, a checkpoint written, the printed command goes on bit for bit."""

from __future__ import annotations

import os
import resource
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from autoprog_diffusion.training.checkpoints import TrainingError
from autoprog_diffusion.training.ends import GRACE, Ends, Stopped, shortened
from autoprog_diffusion.training.run import ready, run

from ..tasks.conftest import forget
from .conftest import Script, load_recipe


SD = load_recipe("finetune_sd").FinetuneSD()
FLAGS = (
    "--max_train_steps", 24, "--train_batch_size", 4, "--use_ema", "--lr_scheduler", "cosine", "--lr_warmup_steps", 2,
    "--checkpointing_steps", 2, "--validation_prompts", "a", "--num_stages", 2,
)  # fmt: skip


@pytest.fixture(autouse=True)
def interrupts_are_heard() -> Iterator[None]:
    """Tests that run in the background start with SIGINT ignored, and so would their children."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def launch(script: Script, output: Path, ranks: int) -> tuple[subprocess.Popen[bytes], Path]:
    """A run that has written its first checkpoint, and its log."""
    log = output.parent / "log"
    environment = {**script.environment, "PYTHONUNBUFFERED": "1"}
    with open(log, "wb") as stream:
        process = subprocess.Popen(
            script.command(output, FLAGS, ranks), env=environment, cwd=output.parent, stdout=stream, stderr=stream
        )
    deadline = time.monotonic() + 900
    while not (output / "checkpoints" / "checkpoint-2").exists():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process, log


def finish_from(log: Path, script: Script, output: Path, ranks: int) -> None:
    """Run the command that the log ends with, in forked processes; it is the run's own and the flag that resumes."""
    (line,) = [line for line in log.read_text().splitlines() if line.startswith("go on with: ")]
    words = shlex.split(line.removeprefix("go on with: "))
    expected = script.command(output, FLAGS, ranks)
    assert words[0] == "python"
    assert words[1:] == [*expected[1:], "--resume_from_checkpoint", "latest"]
    script.run_bare((*words[words.index(str(FLAGS[0])) - len(script.flags(output)) :],), ranks)


@pytest.mark.parametrize(
    ("ranks", "number"), [pytest.param(1, signal.SIGINT, marks=pytest.mark.slow), (2, signal.SIGTERM)]
)
@pytest.mark.distributed
def test_a_signal_ends_with_a_checkpoint_and_the_run_goes_on_bit_for_bit(
    script: Script, tmp_path: Path, unet_bytes: Callable[[Path], bytes], ranks: int, number: int
) -> None:
    output = tmp_path / "out"
    process, log = launch(script, output, ranks)
    told = process.pid
    if ranks > 1:
        # Only the second rank hears it; the first one agrees.
        children = psutil.Process(process.pid).children()
        (told,) = [child.pid for child in children if child.environ().get("RANK") == "1"]
    os.kill(told, number)
    status = process.wait(timeout=600)
    text = log.read_text()
    assert status == (128 + number if ranks == 1 else 1), text
    name = signal.Signals(number).name
    (line,) = [line for line in text.splitlines() if "stopped by" in line]
    assert f"stopped by {name} after step " in line
    assert "is complete." in line
    if ranks == 1:
        assert "Traceback" not in text
    step = int(line.split("after step ")[1].split()[0])
    assert step < 24, "the run had ended before the signal came"
    assert (output / "checkpoints" / f"checkpoint-{step}" / "complete.json").exists()
    assert not (output / "model_index.json").exists()
    finish_from(log, script, output, ranks)
    whole = tmp_path / "whole"
    script.run(whole, *FLAGS, ranks=ranks)
    assert unet_bytes(output) == unet_bytes(whole)


@pytest.fixture
def recipe(script: Script, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Arguments of a short run in this process."""

    def parse(*more: object) -> Any:
        forget()
        flags = [*script.flags(tmp_path / "out"), "--cache_dir", script.model.parent / "hub", *FLAGS]
        return SD.parse([str(word) for word in (*flags, "--max_train_steps", 6, *more)])

    yield parse
    forget()


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1"])
def test_resume_after_a_signal_at_any_step(
    recipe: Callable[..., Any], tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    number = getattr(signal, name)
    trainer = ready(SD, recipe())

    def tell(step: int) -> None:
        if step == 3:
            os.kill(os.getpid(), number)

    with Ends() as trainer.ends, pytest.raises(Stopped) as caught:
        trainer.train(tell)
    assert caught.value.code == 128 + number
    assert trainer.step == 3
    assert f"stopped by {name} after step 3 of 6: {tmp_path}/out/checkpoints/checkpoint-3 is complete." in (
        capsys.readouterr().out
    )
    assert ready(SD, recipe("--resume_from_checkpoint", "latest")).step == 3


def test_a_signal_before_the_first_step_ends_at_once_and_leaves_no_checkpoint(
    recipe: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = load_recipe("finetune_sd").FinetuneSD()
    load = script.load

    def interrupted(args: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return load(args)

    monkeypatch.setattr(script, "load", interrupted)
    with pytest.raises(Stopped) as caught:
        run(script, recipe())
    assert caught.value.code == 143
    assert "stopped by SIGTERM before the first step: run the same command again." in capsys.readouterr().out
    assert not (tmp_path / "out" / "checkpoints").exists()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_signal_while_the_result_is_saved_does_not_cost_it(
    recipe: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = load_recipe("finetune_sd").FinetuneSD()
    save = script.save

    def interrupted(*args: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        save(*args)

    monkeypatch.setattr(script, "save", interrupted)
    run(script, recipe("--max_train_steps", 2))
    assert (tmp_path / "out" / "model_index.json").exists()
    assert (tmp_path / "out" / "checkpoints" / "checkpoint-2").exists()


def test_a_second_signal_ends_at_once() -> None:
    pid = os.fork()
    if pid == 0:
        with Ends() as ends:
            ends.defer()
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGINT)  # a launcher passes on what the terminal sent already
            time.sleep(GRACE + 0.2)
            os.kill(os.getpid(), signal.SIGINT)
            os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 130


def test_what_a_shell_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Ends() as ends:
            ends.defer()
            os.kill(os.getpid(), signal.SIGHUP)
            assert ends.asked == 0
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


THE_LAUNCHER = [
    (
        "/env/bin/python3 /env/bin/accelerate launch --num_processes 2 a.py -x",
        "accelerate launch --num_processes 2 a.py -x",
    ),
    ("/env/bin/python3 -m torch.distributed.run a.py -x", "/env/bin/python3 -m torch.distributed.run a.py -x"),
    ("/env/bin/python3 /env/bin/torchrun a.py -x", "torchrun a.py -x"),
    ("bash run.sh", None),
    ("bash a.py -x", None),
]


def test_the_launcher_is_found_by_the_script_s_own_words() -> None:
    for words, short in THE_LAUNCHER:
        assert shortened(words.split(), ["a.py", "-x"]) == (None if short is None else short.split())


def test_a_disk_that_is_full_at_the_final_save_loses_nothing(
    recipe: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = load_recipe("finetune_sd").FinetuneSD()
    save = script.save
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def full(*args: Any) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
        save(*args)

    monkeypatch.setattr(script, "save", full)
    try:
        with pytest.raises(TrainingError, match=r"cannot be written to .*checkpoint-2 holds it. Free space, and run"):
            run(script, recipe("--max_train_steps", 2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    forget()
    run(SD, recipe("--max_train_steps", 2, "--resume_from_checkpoint", "latest"))
    assert (tmp_path / "out" / "model_index.json").exists()
