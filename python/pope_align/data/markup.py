"""Converts HTML to the text that a reader sees: code as posted, table cells and list items separated."""

from __future__ import annotations

import html
import re
from typing import Any

from .._extras import require

#: Maximum nesting of elements; real pages have a few dozen levels.
MAX_ELEMENTS_DEEP = 250

_SPACE = re.compile(r"[ \t\r\n\f]+")
_PARAGRAPHS = {"p", "div", "ul", "ol", "dl", "pre", "h1", "h2", "h3", "h4", "h5", "h6", "blockquote", "table", "hr"}
_LINES = {"tr", "dt", "dd", "caption", "br"}
_UNSEEN = {"script", "style", "head", "title", "template"}
#: Characters that do not belong in a page and at which libxml2 stops.
_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0e-\x1f]")
#: ``&#`` with more digits than any character has.
_LONG_REFERENCE = re.compile(r"&(?=#[xX]?[0-9a-fA-F]{8})")


def unescaped(text: str) -> str:
    """Text with HTML entities replaced by characters, and line ends by ``\\n``."""
    text = html.unescape(_LONG_REFERENCE.sub("&amp;", text)) if "&" in text else text
    return text.replace("\r\n", "\n").replace("\r", "\n")


def html_to_text(markup: str) -> str:
    """The text of a post written in HTML.

    Paragraphs stand apart by a blank line, list items and table rows on lines of their own, cells by `` | ``. What is
    in ``<pre>`` stays as it is; white space elsewhere is one space, as in a browser.

    Raises:
        ValueError: elements stand more than `MAX_ELEMENTS_DEEP` inside each other.
    """
    if not markup.strip():
        return ""
    parser = require("lxml.html", extra="train", purpose="to read posts written in HTML")
    etree = require("lxml.etree", extra="train", purpose="to read posts written in HTML")
    page = _CONTROLS.sub("", _LONG_REFERENCE.sub("&amp;", markup)).replace("\r\n", "\n").replace("\r", "\n")
    options = {"encoding": "utf-8", "remove_comments": True, "remove_pis": True, "huge_tree": True}
    try:
        root = parser.document_fromstring(page.encode(), parser=parser.HTMLParser(**options))
    except etree.ParserError:  # only comments
        return ""
    text = _Text()
    for event, element in etree.iterwalk(root, events=("start", "end")):
        if event == "start":
            text.open(element.tag, element.text, element.get("start"))
        else:
            text.close(element.tag, element.tail)
    return text.finished()


class _Text:
    """Collects the text while walking through a page."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.newlines = 0  # wanted before the next text
        self.space = False  # wanted before the next text, if no newline is
        self.depth = self.preformatted = self.unseen = 0
        self.lists: list[int | None] = []  # the number of the next item; None for bullets
        self.mark = ""  # of a list item whose text has not come yet
        self.cells = 0  # of the row so far

    def open(self, tag: Any, text: str | None, start: str | None) -> None:
        self.depth += 1
        if self.depth > MAX_ELEMENTS_DEEP:
            raise ValueError(f"elements that stand more than {MAX_ELEMENTS_DEEP} inside each other")
        self.unseen += tag in _UNSEEN
        self.edge(tag)
        if tag in ("ul", "ol"):
            number = int(start) if start is not None and start.isdecimal() and len(start) < 10 else 1
            self.lists.append(number if tag == "ol" else None)
        elif tag == "li":
            self.item()
        elif tag == "tr":
            self.cells = 0
        elif tag in ("td", "th"):
            if self.cells:
                self.write(" | ")
            self.cells += 1
        elif tag == "pre":
            self.preformatted += 1
            text = (text or "").removeprefix("\n")  # HTML ignores it there
        self.write(text)

    def close(self, tag: Any, tail: str | None) -> None:
        self.depth -= 1
        self.unseen -= tag in _UNSEEN
        self.preformatted -= tag == "pre"
        if tag in ("ul", "ol"):
            self.lists.pop()
        if tag == "li":
            self.newlines, self.mark = max(self.newlines, 1), ""
        elif tag != "br":
            self.edge(tag)
        self.write(tail)

    def edge(self, tag: Any) -> None:
        """A block begins or ends."""
        if self.mark:  # the first paragraph of a list item is on the line of its mark
            return
        if tag == "br":
            self.newlines += 1
        elif tag in _PARAGRAPHS:
            self.newlines = max(self.newlines, 1 if tag in ("ul", "ol") and self.lists else 2)
        elif tag in _LINES:
            self.newlines = max(self.newlines, 1)

    def item(self) -> None:
        self.newlines = max(self.newlines, 1)
        number = self.lists[-1] if self.lists else None
        if number is not None:
            self.lists[-1] = number + 1
        self.mark = "  " * max(len(self.lists) - 1, 0) + ("- " if number is None else f"{number}. ")

    def write(self, text: str | None) -> None:
        if not text or self.unseen:
            return
        if self.preformatted:
            self.begin()
            self.parts.append(text)
            return
        words = _SPACE.sub(" ", text)
        self.space = self.space or words.startswith(" ")
        if not words.strip(" "):
            return
        self.begin()
        self.parts.append(words.strip(" "))
        self.space = words.endswith(" ")

    def begin(self) -> None:
        """Add the separator between the text so far and the next text."""
        if self.parts and self.newlines:
            self.parts[-1] = self.parts[-1].rstrip("\n")  # of preformatted text
            self.parts.append("\n" * min(self.newlines, 2))
        elif self.parts and self.space and not self.parts[-1].endswith("\n"):
            self.parts.append(" ")
        self.parts.append(self.mark)
        self.newlines, self.space, self.mark = 0, False, ""

    def finished(self) -> str:
        """The text without blank lines around it; the first line keeps its indentation."""
        lines = "".join(self.parts).rstrip().split("\n")
        first = next((number for number, line in enumerate(lines) if line.strip()), 0)
        return "\n".join(lines[first:])
