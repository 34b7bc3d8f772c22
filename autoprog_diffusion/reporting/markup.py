"""HTML from Python: whatever is not marked as markup is escaped."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable


# Characters that no text of a page needs: control characters, and those that turn the order of what follows.
_UNWANTED = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufffe\uffff]")
_EMPTY = {"meta", "img", "br", "path", "line", "rect"}


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


Child = str | None | Iterable["Child"]


def escaped(text: object) -> Html:
    """Text as markup: `&`, `<`, `>` and quotes are escaped; what is no character of a page becomes U+FFFD.

    Example:
        >>> escaped("<b> & 'c'")
        '&lt;b&gt; &amp; &#x27;c&#x27;'
    """
    # A file's name may hold bytes that are no text.
    whole = str(text).encode("utf-8", "replace").decode("utf-8")
    return Html(html.escape(_UNWANTED.sub("\ufffd", whole), quote=True))


def element(tag: str, *children: Child, **attributes: object) -> Html:
    """An element with its children.

    Args:
        tag: Its name.
        children: `Html` is taken as it is, other text is escaped, None is left out, and lists are unpacked.
        attributes: `class_` is `class`, and an underscore inside of a name is a hyphen; None leaves one out.

    Example:
        >>> element("p", "a < b", element("br"), class_="note")
        '<p class="note">a &lt; b<br></p>'
    """
    words = [tag]
    for name, value in attributes.items():
        if value is not None:
            plain = name.rstrip("_").replace("_", "-")
            words.append(f'{plain}="{escaped(value)}"')
    start = f"<{' '.join(words)}>"
    if tag in _EMPTY and not children:
        # SVG wants its elements closed; HTML has no end tag for its own.
        return Html(start if tag in ("meta", "img", "br") else f"{start[:-1]}/>")
    return Html(f"{start}{joined(children)}</{tag}>")


def joined(children: Iterable[Child]) -> Html:
    """Children one after another, as `element` takes them."""
    parts: list[str] = []
    for child in children:
        if isinstance(child, Html):
            parts.append(child)
        elif isinstance(child, str):
            parts.append(escaped(child))
        elif child is not None:
            parts.append(joined(child))
    return Html("".join(parts))


def table(head: Iterable[Child], rows: Iterable[Iterable[Child]], *, caption: str, numbers: bool = True) -> Html:
    """A table whose first column names the rows; it scrolls sideways where it is wider than the page.

    Args:
        head: Titles of the columns.
        rows: Cells of every row.
        caption: What it shows.
        numbers: Whether all cells but the first are numbers, which are set to the right.
    """
    titles = [element("th", title, scope="col") for title in head]
    body = []
    for first, *others in rows:
        cells = [element("td", cell) for cell in others]
        body.append(element("tr", element("th", first, scope="row"), cells))
    content = element(
        "table",
        element("caption", caption),
        element("thead", element("tr", titles)),
        element("tbody", body),
        class_="numbers" if numbers else None,
    )
    return element(
        "div",
        content,
        class_="scroll",
        tabindex=0,
        role="region",
        aria_label=caption,
    )


def details(title: str, *children: Child) -> Html:
    """Children that are folded away until a reader asks for them."""
    return element("details", element("summary", title), *children)
