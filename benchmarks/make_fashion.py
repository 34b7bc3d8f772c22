"""Make fashion_train.parquet and fashion_test.parquet, which vit_growth and vit_finetune read, from a Debian package.

    python benchmarks/make_fashion.py                                              # fetches 31 MB with apt-get
    python benchmarks/make_fashion.py --folder /usr/share/datasets/fashion-mnist   # where the package is installed

Fashion-MNIST (Zalando SE, 2017, MIT; Debian's `dataset-fashion-mnist`): 60,000 and 10,000 grey images of 28 pixels
in ten classes. Columns `image` (PNG) and `label`; the names of the classes are in the schema's metadata. The four
files are compared with checksums of their content, so a copy from elsewhere does as well. The files that are written
are inputs of benchmarks: do not commit them.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import subprocess
import tempfile
import zlib
from pathlib import Path

import numpy as np
from make_data import DATA, DataError


PACKAGE = "dataset-fashion-mnist"
INSTALLED = Path("usr/share/datasets/fashion-mnist")
NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
# File -> SHA-256 of what is in it, unpacked: a package that is built again packs the same content otherwise.
SHA256 = {
    "train-images-idx3-ubyte.gz": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte.gz": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte.gz": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte.gz": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
# Part of the data -> how its files begin.
PARTS = {"train": "train", "test": "t10k"}
HEADERS = {"images": 16, "labels": 8}
SIDE = 28


def download(folder: Path) -> Path:
    """Fetch the package with apt-get and unpack it, without installing it; returns the folder of its four files."""
    try:
        subprocess.run(["apt-get", "download", PACKAGE], check=True, cwd=folder, stdout=subprocess.DEVNULL)
        (archive,) = folder.glob("*.deb")
        subprocess.run(["dpkg", "-x", archive, folder], check=True)
    except (OSError, subprocess.CalledProcessError, ValueError) as error:
        raise DataError(f"apt-get could not fetch {PACKAGE}: {error}; give --folder, with {list(SHA256)}.") from error
    return folder / INSTALLED


def content(file: Path) -> bytes:
    """The unpacked bytes of one of the four files.

    Raises:
        DataError: It is not there, no gzip file, or another file.
    """
    try:
        data = gzip.decompress(file.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{file} cannot be read: {error}; it is part of Debian's {PACKAGE}.") from error
    digest = hashlib.sha256(data).hexdigest()
    expected = SHA256[file.name]
    if digest != expected:
        raise DataError(
            f"{file} is not that of Debian's {PACKAGE}: the SHA-256 of its content begins with {digest[:16]}, not "
            f"{expected[:16]}."
        )
    return data


def arrays(folder: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 28, 28) uint8 and labels (N,) uint8 of `train` or `test`."""
    found = {}
    for kind, dimensions in (("images", 3), ("labels", 1)):
        data = content(folder / f"{PARTS[part]}-{kind}-idx{dimensions}-ubyte.gz")
        found[kind] = np.frombuffer(data, np.uint8, offset=HEADERS[kind])
    return found["images"].reshape(-1, SIDE, SIDE), found["labels"]


def png(pixels: np.ndarray) -> bytes:
    """A grey image (H, W) uint8 as PNG."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def write(folder: Path, part: str, target: Path) -> int:
    """Write one part as a parquet file; returns the number of rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    images, labels = arrays(folder, part)
    columns = {
        "image": [png(image) for image in images],
        "label": labels.astype(np.int64),
    }
    rows = pa.table(columns).replace_schema_metadata({"names": ",".join(NAMES)})
    target.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(rows, target)
    return len(labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, default=DATA, help="where the files are written")
    parser.add_argument("--folder", type=Path, help="of the four files, where they are there already")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or download(Path(temporary))
        for part in PARTS:
            target = args.data_dir / f"fashion_{part}.parquet"
            print(f"written: {write(folder, part, target)} images, {target}", flush=True)


if __name__ == "__main__":
    main()
