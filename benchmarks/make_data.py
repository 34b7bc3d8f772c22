"""Make the input files of the benchmarks from public packages.

    python benchmarks/make_data.py                       # emoji_styles_64.parquet; fetches 104 MB with npm
    python benchmarks/make_data.py --styles noto         # only what time_to_quality's case `sd_noto` needs, a minute
    python benchmarks/make_data.py --archive iconify-json-2.2.535.tgz  # of `npm pack`

Emoji of seven styles, 64 pixels on white: columns `image` (PNG), `caption`, `category`, `style`. With the
same version of resvg-py the pixels are the same, bit for bit. Licences: noto, noto-v1 Apache-2.0; fluent MIT; twemoji,
emojione CC BY 4.0; openmoji CC BY-SA 4.0. The files are inputs of benchmarks: do not commit them.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from PIL import Image

PACKAGE = "@iconify/json@2.2.535"
SHA512 = (
    "9c057ad00094487c27b1be9fb29fa57ad1e5364af03b8bf306d702e81e040c71"
    "2b4107dece4ec4de725d9f0263bdee8e09f30d3b4b954f956b8276bdfcd0a65f"
)
SIZE = 64
# Style -> number of emoji; another number means another package.
COUNTS = {
    "openmoji": 4544,
    "twemoji": 3988,
    "noto": 3729,
    "fluent-emoji-flat": 3139,
    "fluent-emoji": 3120,
    "noto-v1": 2162,
    "emojione": 1834,
}
DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


class DataError(SystemExit):
    """An input is not the one that the benchmarks were run with."""


def download(folder: Path) -> Path:
    """Fetch the package with npm."""
    try:
        subprocess.run(["npm", "pack", "--silent", PACKAGE], check=True, cwd=folder, stdout=subprocess.DEVNULL)
    except (OSError, subprocess.CalledProcessError) as error:
        raise DataError(f"npm could not fetch {PACKAGE}: {error}; install npm, or give --archive.") from error
    (archive,) = folder.glob("*.tgz")
    return archive


def check(archive: Path) -> None:
    """Compare the archive with the published checksum.

    Raises:
        DataError: It is another file.
    """
    digest = hashlib.sha512(archive.read_bytes()).hexdigest()
    if digest != SHA512:
        raise DataError(f"{archive} is not {PACKAGE}: its SHA-512 begins with {digest[:16]}, not {SHA512[:16]}.")


def icon_set(archive: Path, style: str) -> dict[str, Any]:
    """The JSON file of one icon set."""
    with tarfile.open(archive) as package:
        file = package.extractfile(f"package/json/{style}.json")
        assert file is not None
        return json.load(file)


def emoji(icons: dict[str, Any], style: str) -> Iterator[dict[str, Any]]:
    """One row per icon that is not hidden: old names and parts of emoji are. Without a category, that is empty."""
    categories = icons.get("categories", {})
    category_of = {name: category for category, names in categories.items() for name in names}
    for name, icon in icons["icons"].items():
        if not icon.get("hidden"):
            yield {
                "image": render({**icons, **icon}),
                "caption": name.replace("-", " "),
                "category": category_of.get(name, ""),
                "style": style,
            }


def render(icon: dict[str, Any]) -> bytes:
    """An icon on white as PNG."""
    buffer = io.BytesIO()
    draw(icon, SIZE).convert("RGB").save(buffer, format="PNG")
    return buffer.getvalue()


def draw(icon: dict[str, Any], size: int, margin: float = 0.0) -> Image.Image:
    """An icon on a white square.

    Args:
        icon: `body` and its box, as iconify's JSON has them.
        size: Side of the square in pixels.
        margin: White on every side, as a fraction of the icon's longer side.
    """
    import resvg_py
    from PIL import Image

    width = icon.get("width", 16)
    height = icon.get("height", 16)
    longer = max(width, height)
    side = longer + 2 * margin * longer
    left = icon.get("left", 0) - (longer - width) / 2 - margin * longer
    top = icon.get("top", 0) - (longer - height) / 2 - margin * longer
    names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    box = f'viewBox="{left} {top} {side} {side}" width="{size}" height="{size}"'
    svg = f"<svg {names} {box}>{icon['body']}</svg>"
    drawn = resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size, background="white")
    return Image.open(io.BytesIO(bytes(drawn)))


def write(archive: Path, styles: Sequence[str], target: Path) -> int:
    """Render the styles into one parquet file; returns the number of rows.

    Raises:
        DataError: A style has another number of emoji than the benchmarks were run with.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows: list[dict[str, Any]] = []
    for style in styles:
        found = list(emoji(icon_set(archive, style), style))
        if len(found) != COUNTS[style]:
            raise DataError(f"{style} has {len(found)} emoji, not {COUNTS[style]}: {archive} is not {PACKAGE}.")
        rows += found
        print(f"{style}: {len(found)} emoji", flush=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), target)
    return len(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, default=DATA)
    parser.add_argument("--styles", nargs="+", choices=COUNTS, default=list(COUNTS))
    parser.add_argument("--archive", type=Path, help="the package, already downloaded")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        archive = args.archive or download(Path(folder))
        check(archive)
        count = write(archive, args.styles, args.data_dir / "emoji_styles_64.parquet")
    print(f"written: {count} emoji, {args.data_dir / 'emoji_styles_64.parquet'}")


if __name__ == "__main__":
    main()
