"""Reads a page back with html.parser: its elements, attributes, text, and whether every element was closed in order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = ("meta", "br")


@dataclass
class Element:
    """One element; `text` is what is directly and indirectly in it."""

    name: str
    attributes: dict[str, str | None]
    parent: Element | None
    children: list[Element] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """All text in it, in order."""
        return "".join(self.parts)

    def all(self, name: str) -> Iterator[Element]:
        """Yield every element called NAME in it, in order."""
        for child in self.children:
            if child.name == name:
                yield child
            yield from child.all(name)


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.root = Element("", {}, None)
        self.at = self.root
        self.attributes: set[tuple[str, str]] = set()
        self.elements: set[str] = set()
        self.other: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.add(tag)
        assert len({name for name, _ in attrs}) == len(attrs), f"an attribute of <{tag}> is there twice"
        self.attributes.update((tag, name) for name, _ in attrs)
        element = Element(tag, dict(attrs), self.at)
        self.at.children.append(element)
        if tag not in VOID:
            self.at = element

    def handle_endtag(self, tag: str) -> None:
        assert self.at.name == tag, f"</{tag}> closes <{self.at.name}>"
        assert self.at.parent is not None
        self.at = self.at.parent

    def handle_data(self, data: str) -> None:
        place: Element | None = self.at
        while place is not None:
            place.parts.append(data)
            place = place.parent

    def handle_comment(self, data: str) -> None:
        self.other.append(data)

    def handle_pi(self, data: str) -> None:
        self.other.append(data)

    def unknown_decl(self, data: str) -> None:
        self.other.append(data)


class Page:
    """One page as a browser would read it."""

    def __init__(self, text: str) -> None:
        reader = _Reader()
        reader.feed(text)
        reader.close()
        assert reader.at is reader.root, f"<{reader.at.name}> is not closed"
        assert not reader.other, "the page has comments or processing instructions"
        self.root = reader.root
        self.elements, self.attributes = reader.elements, reader.attributes

    @property
    def text(self) -> str:
        """All text but that of the style sheet and the script."""
        (body,) = self.root.all("body")
        script = "".join(element.text for element in body.all("script"))
        return body.text.replace(script, "")

    def one(self, name: str) -> Element:
        """Return the only element called NAME."""
        (element,) = self.root.all(name)
        return element

    def ids(self) -> list[str]:
        """Return every id, in order."""
        found = []

        def walk(element: Element) -> None:
            if element.attributes.get("id"):
                found.append(str(element.attributes["id"]))
            for child in element.children:
                walk(child)

        walk(self.root)
        return found
