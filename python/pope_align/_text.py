"""Showing and storing untrusted text safely: no control characters on a terminal or page, no secrets in a file.

For text from data, models, endpoints or file names call:

- `printable` before a text is shown: `cli.console` calls it for everything that it prints; pages and cards call it
  before they escape for their own syntax. `in_figure` does it for a title or label of matplotlib, `in_markdown` for a
  line of a Markdown page.
- `redact` before a message or reply is stored, because an endpoint may repeat our key.
- `without_password` before an address is shown or stored.
- `utf8` before a text from JSON is stored: JSON can contain half of a surrogate pair, which UTF-8 cannot encode.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

#: Characters that move the cursor, start an escape sequence, break a line or change the writing direction; and halves
#: of surrogate pairs, which a terminal cannot write.
_UNSEEN = r"\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff"
_IN_LINES = re.compile(f"[{_UNSEEN}]")
_IN_A_LINE = re.compile(f"[{_UNSEEN}\t\n]")

#: The replacement of a secret.
HIDDEN = "[hidden]"


def printable(text: str, *, lines: bool = False) -> str:
    r"""``text`` with every control character written out: a raw ESC becomes the four characters ``\x1b``.

    Args:
        text: from anywhere.
        lines: keep line ends and tabs, for a text of several lines. CR LF becomes LF.
    """
    if lines:
        return _IN_LINES.sub(_written_out, text.replace("\r\n", "\n"))
    return _IN_A_LINE.sub(_written_out, text)


def _written_out(match: re.Match[str]) -> str:
    code = ord(match[0])
    short = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}.get(match[0])
    return short or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")


def in_figure(text: str, *, lines: bool = False) -> str:
    """`printable` text for matplotlib, which would read text between two dollar signs as a formula."""
    return printable(text, lines=lines).replace("$", r"\$")


def in_markdown(text: str) -> str:
    """``text`` as one line, escaped so that Markdown shows it as it is."""
    return re.sub(r"([\\`*_\[\]<>|#!~])", r"\\\1", printable(text))


def utf8(text: str) -> str:
    r"""``text`` with half surrogate pairs written out (``\ud83d``), so that UTF-8 can hold it."""
    return text.encode("utf-8", "backslashreplace").decode()


def redact(text: str, secrets: Iterable[str]) -> str:
    """``text`` with every occurrence of a secret replaced.

    Secrets of fewer than six characters are kept: keys such as ``x`` or ``EMPTY`` are placeholders for servers that
    accept any key.
    """
    for secret in sorted(secrets, key=len, reverse=True):  # a longer one may contain a shorter one
        if len(secret) >= 6:
            text = text.replace(secret, HIDDEN)
    return text


def without_password(url: str) -> str:
    """A URL to show or store, with user name, password and keys in the query replaced."""
    parts = urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    query = parts.query
    if _secret_items(query):
        items = parse_qsl(query, keep_blank_values=True)
        query = urlencode([(name, HIDDEN if _SECRET_NAME.search(name) else value) for name, value in items], safe="[]")
    return urlunsplit(parts._replace(netloc=f"{HIDDEN}@{host}" if user or at else host, query=query))


def passwords(url: str) -> list[str]:
    """The secrets in a URL, for `redact`."""
    parts = urlsplit(url)
    user, _, _ = parts.netloc.rpartition("@")
    password = user.partition(":")[2] or user
    return [secret for secret in (user, password, *_secret_items(parts.query)) if secret]


_SECRET_NAME = re.compile(r"key|token|secret|passw|auth|sig", re.IGNORECASE)


def _secret_items(query: str) -> list[str]:
    return [value for name, value in parse_qsl(query, keep_blank_values=True) if _SECRET_NAME.search(name) and value]
