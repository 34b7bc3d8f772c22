"""A page as its elements and text, for tests."""

from __future__ import annotations

from html.parser import HTMLParser


VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Elements, attributes and text of a page; elements that are not closed in order raise.

    Attributes:
        elements: Name and attributes of every element, in order.
        text: All text, one piece after another.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.headings: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), (tag, attrs)
        self.elements.append((tag, dict(attrs)))
        if tag in ("h1", "h2", "h3"):
            self.headings.append("")
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] != "style":
            self.text.append(data)
        if self._open and self._open[-1] in ("h1", "h2", "h3"):
            self.headings[-1] += data

    def all(self, tag: str, **attributes: str) -> list[dict[str, str | None]]:
        """Attributes of all elements of a name; `class_` is one of its classes."""
        found = []
        for name, values in self.elements:
            classes = (values.get("class") or "").split()
            wanted = attributes.get("class_")
            if name == tag and (wanted is None or wanted in classes):
                found.append(values)
        return found

    @property
    def words(self) -> str:
        """All text of the page in one line."""
        return " ".join(" ".join(self.text).split())
