"""What every page must be, whatever it shows."""

from __future__ import annotations

from collections import Counter
from html.parser import HTMLParser

__all__ = ["well_formed"]

VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}


class _Parser(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: Counter[str] = Counter()
        self.anchors: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self._look(attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._look(attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, (
            f"line {self.getpos()[0]}: </{tag}> closes {self.open[-3:]}"
        )
        self.open.pop()

    def _look(self, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if name := found.get("id"):
            self.ids[name] += 1
        for address in (found.get("href"), found.get("xlink:href")):
            if address and address.startswith("#"):
                self.anchors.add(address[1:])
        if (clip := found.get("clip-path")) is not None:
            self.anchors.add(clip.removeprefix("url(#").removesuffix(")"))


def well_formed(html: str) -> None:
    """Every element is closed in its turn, no id is there twice, and whatever is referred to is there."""
    parser = _Parser()
    parser.feed(html)
    parser.close()
    assert parser.open == []
    assert [name for name, count in parser.ids.items() if count > 1] == []
    assert parser.anchors <= parser.ids.keys(), parser.anchors - parser.ids.keys()
