"""The picture of docs/report.md: the top of the report of a run, as a browser shows it.

python docs/make_report.py RUN_DIR             # writes docs/images/report.png
python docs/make_report.py RUN_DIR report.png
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from autoprog_diffusion.reporting import write_page


BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
PICTURE = Path(__file__).parent / "images" / "report.png"
WIDTH = 1120
HEIGHT = 1880


def main(run: Path, picture: Path = PICTURE) -> None:
    """Draw the top of a run's report.

    Args:
        run: Output folder of the run.
        picture: PNG file.
    """
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        sys.exit(f"error: none of {BROWSERS} is installed: install one, for example Debian's package chromium.")
    with tempfile.TemporaryDirectory() as folder:
        page = write_page([run], Path(folder) / "report.html")
        command = [
            browser,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            f"--user-data-dir={folder}/profile",
            f"--window-size={WIDTH},{HEIGHT}",
            f"--screenshot={picture.resolve()}",
            page.as_uri(),
        ]
        subprocess.run(command, check=True, capture_output=True)
    print(picture)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
