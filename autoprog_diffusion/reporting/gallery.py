"""The pictures that a run drew, over its steps."""

from __future__ import annotations

from .markup import Html, element
from .pictures import MOST_GRIDS, figure, spread
from .run_folder import Run


def pictures_section(run: Run) -> Html:
    """What the run drew."""
    if not run.pictures:
        return element("p", "No pictures are in the folder.", class_="note")
    final = [picture for picture in run.pictures if picture.step is None]
    grids = [picture for picture in run.pictures if picture.step is not None]
    shown = spread(grids)
    left = None
    if len(shown) < len(grids):
        text = f"{MOST_GRIDS} of {len(grids)} grids, evenly spread; all are in the folder."
        left = element("p", text, class_="note")
    return element("div", [figure(picture, run.name) for picture in [*shown, *final]], left)
