"""As-ViT: search a vision transformer without training, grow it into a family, and train one of the family.

    python vit/asvit.py search --preset cpu --output_dir out/search
    python vit/asvit.py scale --preset cpu --genotype out/search --output_dir out/family
    python vit/asvit.py train --preset cpu --genotype out/family --output_dir out/trained

Each takes a few minutes on 2 CPU cores, on emoji that pip installs. Without `--preset` the published settings hold
(224 pixels, 500 steps); `--train_data` takes an image folder, a `datasets` data set, parquet or npz. `search --method
reinforce` is the published search, `train --retokenization off` ordinary training. `<sub-command> --help` lists every
flag.
"""

from __future__ import annotations

import sys

# By its installed name: a script that lies in a package has no relative imports.
from autoprog_diffusion.vit.asvit.commands import main  # pyright: ignore[reportMissingImports]


if __name__ == "__main__":
    main(sys.argv[1:], __doc__)
