"""Golden runs: hashes of the final weights of short runs of every recipe, to show that a change moves no number.

    python tests/golden.py write before.json
    python tests/golden.py check before.json

runs each recipe as a user would, with one thread a process, and hashes every tensor that it leaves. A change without
numerical intent leaves the hashes equal; another one says in its commit which runs it changes. Hashes belong to one
kind of processor and one version of torch: write the file before the change, on the same machine. About 8 minutes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from safetensors import safe_open


ROOT = Path(__file__).parents[1]
STEPS = ["--max_train_steps", "8", "--max_train_samples", "32", "--train_batch_size", "4", "--lr_warmup_steps", "2"]
STEPS += ["--num_inference_steps", "2", "--validation_prompts", "cat face", "--no-held_out"]
PAPER = ["--direction", "unfreeze", "--order", "interleaved", "--stage_embedding_init", "normal"]
DREAMBOOTH = ["--max_train_steps", "8", "--num_class_images", "4", "--train_batch_size", "2", "--no-held_out"]
VIT = ["--preset", "cpu", "--max_train_steps", "24", "--batch_size", "16", "--checkpointing_steps", "14"]
VIT += ["--search", "one_shot", "--max_train_samples", "600"]
# Name -> the script, its flags, the number of processes; several lists of flags run one after the other.
RUNS: dict[str, tuple[str, list[list[str]], int]] = {
    "sd_freeze": ("recipes/finetune_sd.py", [[*STEPS, "--direction", "freeze", "--order", "suffix"]], 1),
    "sd_freeze_two_ranks": ("recipes/finetune_sd.py", [[*STEPS, "--direction", "freeze", "--order", "suffix"]], 2),
    "sd_interleaved": ("recipes/finetune_sd.py", [[*STEPS, *PAPER]], 1),
    "sdxl": ("recipes/finetune_sdxl.py", [STEPS], 1),
    "dit": ("recipes/finetune_dit.py", [[*STEPS[:-3], "--no-held_out"]], 1),
    "flow": ("recipes/finetune_flow.py", [STEPS], 1),
    "lora": ("recipes/finetune_lora.py", [STEPS], 1),
    "dreambooth": ("recipes/dreambooth.py", [[*DREAMBOOTH, "--num_inference_steps", "2"]], 1),
    "vit_one_shot_resumed": ("vit/pretrain.py", [VIT, ["--resume_from_checkpoint", "checkpoint-14", *VIT]], 1),
    "vit_one_shot_two_ranks": ("vit/pretrain.py", [VIT], 2),
    "vit_finetune": ("vit/finetune.py", [["--max_train_steps", "9", "--batch_size", "16"]], 1),
    "retokenization": ("vit/asvit.py", [["--preset", "cpu", "--max_train_steps", "16", "--batch_size", "16"]], 1),
}


def main() -> int:
    """Write hashes to a file, or compare with a file's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("write", "check"))
    parser.add_argument("file", type=Path)
    parser.add_argument("names", nargs="*", help=f"some of {', '.join(RUNS)}; all by default")
    args = parser.parse_args()
    known = json.loads(args.file.read_text()) if args.action == "check" or args.file.exists() else {}
    names = args.names or list(RUNS)
    wrong = []
    for name in names:
        found = golden_run(name)
        same = known.get(name) == found
        wrong += [] if same else [name]
        print(f"{name}: {found[:16]} {'equal' if same else 'was ' + str(known.get(name))[:16]}", flush=True)
        if args.action == "write":
            known[name] = found
            args.file.write_text(json.dumps(known, indent=2) + "\n")
    if args.action == "check" and wrong:
        print(f"{len(wrong)} of {len(names)} runs differ: {', '.join(wrong)}")
        return 1
    return 0


def golden_run(name: str) -> str:
    """Run one recipe in a folder of its own, and hash the tensors it leaves outside its checkpoints."""
    script, runs, processes = RUNS[name]
    work = Path(tempfile.mkdtemp(prefix="golden-"))
    try:
        for flags in runs:
            _launch(script, _prepare(name, flags, work), processes, work / "out")
        return hash_weights(work / "out")
    finally:
        shutil.rmtree(work)


def hash_weights(folder: Path) -> str:
    """SHA-256 over the names and bits of every tensor in a folder's safetensors files; checkpoints are left out."""
    files = sorted(path for path in folder.rglob("*.safetensors") if "checkpoints" not in path.parts)
    if not files:
        raise FileNotFoundError(f"no weights in {folder}")
    digest = hashlib.sha256()
    for path in files:
        digest.update(str(path.relative_to(folder)).encode())
        with safe_open(path, framework="pt") as tensors:
            for key in sorted(tensors.keys()):
                digest.update(key.encode())
                digest.update(tensors.get_tensor(key).contiguous().numpy().tobytes())
    return digest.hexdigest()


def _prepare(name: str, flags: list[str], work: Path) -> list[str]:
    """The flags of a run, after what it starts from was made: a genotype, or a pretrained model."""
    if name == "retokenization":
        search = ["search", "--preset", "cpu", "--output_dir", str(work / "genotype"), "--steps", "2"]
        _run([sys.executable, str(ROOT / "vit/asvit.py"), *search], work / "search.log")
        return ["train", "--genotype", str(work / "genotype"), *flags]
    if name == "vit_finetune":
        first = ["--preset", "cpu", "--growth", "off", "--max_train_steps", "2", "--max_train_samples", "64"]
        _launch("vit/pretrain.py", [*first, "--batch_size", "16"], 1, work / "pretrained")
        return ["--model", str(work / "pretrained"), *flags]
    return flags


def _launch(script: str, flags: list[str], processes: int, output: Path) -> None:
    command = [sys.executable, str(ROOT / script)]
    if processes > 1:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        command.append(str(ROOT / script))
    _run([*command, *flags, "--output_dir", str(output)], output.with_suffix(".log"))


def _run(command: list[str], log: Path) -> None:
    # torchvision's CUDA build breaks Diffusers on a machine without CUDA; tests/torchvision_shim says why and how.
    shim = str(ROOT / "tests" / "torchvision_shim")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONPATH": shim}
    with log.open("w") as stream:
        result = subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT, env=environment, check=False)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {result.returncode}:\n{log.read_text()[-2000:]}")


if __name__ == "__main__":
    sys.exit(main())
