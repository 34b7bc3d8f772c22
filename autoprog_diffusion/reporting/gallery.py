"""The pictures that a run drew, over its steps."""

from __future__ import annotations

from .markup import Html, element
from .pictures import MOST_GRIDS, figure, spread
from .run_folder import Run


def pictures_section(run: Run) -> Html:
    """What the run drew in the middle of training, and at its end."""
    if not run.pictures:
        return element("p", "No pictures are in the folder.", class_="note")
    final = []
    grids = []
    for picture in run.pictures:
        if picture.step is None:
            final.append(picture)
        else:
            grids.append(picture)
    figures = []
    for picture in [*spread(grids), *final]:
        figures.append(figure(picture, run.name))
    left = None
    if len(grids) > MOST_GRIDS:
        text = f"{MOST_GRIDS} of {len(grids)} grids, evenly spread; all are in the folder."
        left = element("p", text, class_="note")
    return element("div", figures, left)
