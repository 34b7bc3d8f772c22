"""The diffs in `docs/diffs`: small, in order, and what the README and `docs/integrate.md` say."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

from autoprog_diffusion import GrowthConfig, GrowthScheduler, PowerAverage
from autoprog_diffusion.patching.analyse import analyse
from autoprog_diffusion.patching.options import Options
from autoprog_diffusion.patching.source import read_source
from autoprog_diffusion.patching.transform import patch

from .scripts import (
    BY_NAME,
    CHECKOUT,
    DIFFS,
    ROOT,
    Line,
    Script,
    every_script,
    needs_checkout,
    parse_diff,
    patched,
)


IMPORT = "from autoprog_diffusion import GrowthConfig, GrowthScheduler"
AVERAGE = "average = PowerAverage({model}, growth=growth, accelerator=accelerator)"
KNOWN = {"GrowthScheduler": GrowthScheduler, "GrowthConfig": GrowthConfig, "PowerAverage": PowerAverage}
METHODS = {"growth": GrowthScheduler, "average": PowerAverage}
# What may stand above an added line.
ABOVE = {
    "growth.prepare": ("args.num_train_epochs = math.ceil(", "max_train_steps = args.num_epochs"),
    "average = ": ("growth.prepare(",),
    "average.step": ("global_step += 1",),
    "growth.step": ("global_step += 1", "average.step()"),
    "average.copy_to": ("accelerator.wait_for_everyone()",),
    "growth.fold": ("ema_unet.copy_to(", "average.copy_to()"),
    "with growth.folded": ("",),
}


def changed(text: str, sign: str) -> list[str]:
    """Code of the lines of a diff that begin with `sign`."""
    lines = [line[1:].strip() for line in text.splitlines() if line.startswith(sign)]
    return [line for line in lines if not line.startswith(("-- ", "++ "))]


def signed(script: Script, sign: str) -> list[Line]:
    return [line for line in parse_diff(script.diff) if line.sign == sign]


def blocks(document: str) -> list[str]:
    text = (ROOT / document).read_text(encoding="utf-8")
    return re.findall(r"^```diff\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def test_every_script_has_a_diff_and_a_mention() -> None:
    assert sorted(path.name for path in DIFFS.iterdir()) == sorted(f"{name}.diff" for name in BY_NAME)
    text = (ROOT / "docs" / "integrate.md").read_text(encoding="utf-8")
    assert not [name for name in BY_NAME if f"(diffs/{name}.diff)" not in text]


def test_the_documents_quote_the_diffs() -> None:
    quoted = BY_NAME["train_text_to_image"].diff
    assert blocks("docs/integrate.md")[0] == quoted[quoted.index("--- a/") :]
    known = {(sign, line) for script in BY_NAME.values() for sign in "+-" for line in changed(script.diff, sign)}
    fragments = "\n".join(blocks("docs/integrate.md"))
    optional = {
        ("+", 'batch["pixel_values"] = growth.resize(batch["pixel_values"])'),
        ("-", "accelerator.clip_grad_norm_(unet.parameters(), args.max_grad_norm)"),
        ("+", "growth.step_in_backward(optimizer, max_norm=args.max_grad_norm)"),
        (
            "+",
            "held_out = HeldOut(held_out_loss, held_out_batches, accelerator=accelerator, average=average, "
            "growth=growth)",
        ),
        ("+", "if global_step % 50 == 0:"),
        ("+", 'accelerator.log({"held_out": held_out.evaluate(unet).loss}, step=global_step)'),
    }
    assert {(sign, line) for sign in "+-" for line in changed(fragments, sign)} - known == optional
    # The README has a loop of its own, with the same calls in the same order, beside an average.
    calls = [re.search(r"growth\S*\(|= GrowthScheduler\(.*\)", line) for line in changed(quoted, "+")]
    wanted = [call.group() for call in calls if call is not None and "ema" not in call.group()]
    given = [line for line in changed(blocks("README.md")[0], "+") if not line.startswith("average")]
    assert [call in line for call, line in zip(wanted, given, strict=True)] == [True] * len(given)


@every_script
def test_a_diff_is_of_one_file_at_the_stated_commit(script: Script) -> None:
    assert "58eb52c080" in script.diff.splitlines()[0]
    heads = re.findall(r"^(?:---|\+\+\+) (\S+)", script.diff, flags=re.MULTILINE)
    assert heads == [f"a/{script.path}", f"b/{script.path}"]


@every_script
def test_the_lines_are_the_same_in_every_script_and_in_order(script: Script) -> None:
    old, *others = (line.text.strip() for line in signed(script, "-"))
    average = [line for line in others if ".step(" in line]
    new = old.replace(f"{script.model}.parameters()", "growth.parameters()")
    assert new != old
    model, last, steps = script.model, [f"growth.fold({script.model})"], "args.max_train_steps"
    if script.name == "train_unconditional":
        # It saves in the loop.
        (save,) = (line for line in others if line not in average)
        last, steps = [f"with growth.folded({model}):", save], "max_train_steps"
    assert [line.endswith(f".step({model}.parameters())") for line in average] == [True] * bool(script.ema_flags)
    added = [line.text.strip() for line in signed(script, "+")]
    if script.averages:
        own = [AVERAGE.format(model=model), "average.step()", "average.copy_to()"]
        assert [line for line in added if line.startswith("average")] == own
        added = [line.removesuffix(", PowerAverage") for line in added if line not in own]
    assert added == [
        IMPORT,
        f"growth = GrowthScheduler({model}, {script.config}, accelerator)",
        new,
        f"growth.prepare({model}, num_training_steps={steps})",
        *[line.replace(f"{model}.parameters()", "growth.ema_parameters()") for line in average],
        "growth.step()",
        *last,
    ]


@every_script
def test_every_call_fits_the_library(script: Script) -> None:
    bound = []
    for line in signed(script, "+"):
        code = line.text.strip()
        calls = ast.walk(ast.parse(code)) if code.startswith(("growth", "average")) else []
        for call in (node for node in calls if isinstance(node, ast.Call)):
            name = call.func.attr if isinstance(call.func, ast.Attribute) else ast.unparse(call.func)
            owner = ast.unparse(call.func).rpartition(".")[0]
            function = KNOWN.get(name) or getattr(KNOWN.get(owner) or METHODS[owner], name)
            self = (None,) if owner in METHODS else ()
            keywords = {str(keyword.arg): keyword.value for keyword in call.keywords}
            bound.append(inspect.signature(function).bind(*self, *call.args, **keywords))
    assert len(bound) >= 5


@every_script
def test_a_line_stands_below_the_right_one(script: Script) -> None:
    lines = [line for line in parse_diff(script.diff) if line.sign != "-"]
    seen = []
    for above, line in zip(lines, lines[1:]):
        for start, allowed in ABOVE.items():
            if line.sign == "+" and line.text.strip().startswith(start):
                assert above.number == line.number - 1
                assert above.text.strip().startswith(allowed)
                seen.append(start)
    end = "with growth.folded" if script.name == "train_unconditional" else "growth.fold"
    assert {"growth.prepare", "growth.step", end} <= set(seen)


def places(text: str, *starts: str) -> list[int]:
    """Numbers of the lines whose code begins with one of `starts`, or assigns it."""
    lines = enumerate(text.splitlines())
    return [n for n, line in lines if line.strip().startswith(starts) or line.partition("= ")[2].startswith(starts)]


@needs_checkout
@every_script
def test_the_patched_script_keeps_the_order(script: Script, tmp_path: Path) -> None:
    text = patched(script, tmp_path).read_text(encoding="utf-8")
    main = text.index("\ndef main(")
    text = "\n" * text[:main].count("\n") + text[main:]
    (built,) = places(text, "GrowthScheduler(")
    (prepared,) = places(text, "growth.prepare(")
    (stepped,) = places(text, "growth.step(")
    (folded,) = places(text, "growth.fold(", "with growth.folded(")
    shaped = places(text, "EMAModel(", f"{script.model}.add_adapter(", "cast_training_params(")
    assert shaped or script.name == "train_dreambooth"
    assert all(n < built for n in shaped)
    assert built < min(places(text, "optimizer_cls(", "optimizer_class(", "torch.optim.AdamW("))
    assert max(places(text, "accelerator.prepare(")) < prepared < min(places(text, "accelerator.load_state("))
    assert all(n < stepped for n in places(text, "ema_unet.step(", "ema_model.step("))
    assert max(places(text, "optimizer.step(")) < stepped < min(places(text, "accelerator.save_state("))
    assert all(n < folded for n in places(text, "ema_unet.copy_to(", "ema_model.copy_to("))
    saved = places(text, "pipeline.save_pretrained(args.output_dir", "get_peft_model_state_dict(transformer)")
    assert folded < saved[-1]


@needs_checkout
@every_script
def test_the_command_writes_the_same_lines(script: Script, tmp_path: Path) -> None:
    expected = patched(script, tmp_path / "by hand").read_bytes()
    assert patch(analyse(read_source(Path(CHECKOUT or "") / script.path)), Options(comments=False)) == expected


@needs_checkout
@every_script
def test_the_patched_script_has_no_unknown_name(script: Script, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "F811,F821"]
    done = subprocess.run([*command, str(patched(script, tmp_path))], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout
