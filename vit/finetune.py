"""Fine-tune a pretrained vision transformer progressively: blocks freeze stage by stage.

    accelerate launch vit/finetune.py --model pretrained --train_data my_classes --output_dir out

where `pretrained` is the folder that vit/pretrain.py left (or a folder or name of timm or transformers), and
my_classes holds a folder of images per class, or train/ and val/ with such. `--help` lists every flag; they carry
timm's names. `--growth off` is full fine-tuning in the same loop, `--growth autoprog_zero` the paper's method.
Results: a checkpoint of the model's own library in the output folder, timeline.png, growth.json (plan, decisions,
measurements) and printed tables.
"""

from __future__ import annotations

import sys

from autoprog_diffusion.training.run import main
from autoprog_diffusion.vit.training.finetuning import Finetuning  # pyright: ignore[reportMissingImports]


if __name__ == "__main__":
    main(Finetuning(), sys.argv[1:], __doc__)
