"""The field's terms in every docstring, help text, error and page; docs/glossary.md says which they are."""

from __future__ import annotations

import ast
import functools
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = [ROOT / "pope_core", ROOT / "kernels" / "pope_kernels", ROOT / "python" / "pope_align", ROOT / "scripts"]
TEMPLATES = ROOT / "python" / "pope_align" / "report" / "templates"
CODE = re.compile(r"^```.*?^```|``[^`]+``|`[^`]+`", re.M | re.S)

#: What a reader used to stop at, and the term to use.
OLD = {
    r"how often ours fits": "relative to ours",
    r"\brooms?\b": "memory, space, or layer",
    r"\b(un)?sound(ness)?\b": "valid",
    r"(?<!fit-)(?<!fit_)(?<!-o )\bloggers?\b": "logging policy",
    r"[Ll]eaving the start|penalty on leaving|penalty to (the|its) start": "KL penalty",
    r"[Ll]argest importance weights?\b": "maximum importance weight",
    r"\bmade whole\b|\bwhole modules?\b": "unsharded",
    r"\b(is a|128k|thousand) words?\b|words of the vocabulary|vocabulary words?": "vocabulary entry",
    r"\btrees? of (responses|a prompt)|\b(one|small|another) (tree|branch)\b": "shared prefix",
    r"\b(all|several|such|with|own|its|\*) ?(trees?|branch(es)?)\b": "shared prefix, prompt or response",
    r"\bat (every|the) door\b|\bpublic door\b|\bbehind the door\b": "everywhere, the public API, or private",
    r"\bgives? back\b": "return, or free",
    r"whole or not at all|to the (very )?(last )?(bit|tie)s?\b": "atomically, or bit-identical",
    r"requests? on (its|their) way": "concurrent requests",
    r"(there|are) already without|files? that (is|are) there": "existing files",
    r"as often as not": "the probability",
    r"worlds? that no|no (rule|threshold) was set on": "simulated logs that were not used to set thresholds",
    r"\bsees? the reward": "predicts the reward",
    r"to believe it|\b(be|may be) believed": "to trust",
    r"\b(every )?so many (as|of|after|evaluations|responses|slates|optimizer)": "this many",
    r"(model|parameters) in pieces": "sharded",
    r"\banew\b": "again",
    r"\bfloat64 twins?\b": "float64 version",
    r"the log never shows|the log has not met": "outside the log's support",
    r"\b(a|one) (row|line|slate|response|answer) a (row|line|slate|response|prompt|query)\b": "one per ...",
    r"what (this|a|the) model is to": "the relation of the model to the log",
    r"weigh(s|ed)? (slates|responses|references|rewards)\b": "weights",
    r"what (the|a) log brings": "logged data",
    r"where no response token stands": "outside the response",
    r"\bspares? (a|the) (GPU|device|host) a wait\b|never waited for|\bnothing waits\b": "no synchronisation",
    r"\bthe very (same|bits?|bytes|weights)\b": "bit-identical, or the same",
    r"\bgo(es)? on (from|with|in|where)\b|\bgone on\b": "continue",
    r"(?<!docs/)\bmethod\.md section": "docs/method.md and the heading",
    r"direction and no value": "a direction, not a value",
    r"\bfor want of\b": "because there is no",
}


def prose(page: Path) -> Iterator[tuple[str, str]]:
    """The text of a page, or the strings and comments of a source file, without code, with its place."""
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".md":
        yield str(page.relative_to(ROOT)), CODE.sub("", text)
        return
    name = page.relative_to(ROOT)
    if page.parent == TEMPLATES:
        yield str(name), re.sub(r"\{[{%#].*?[}%#]\}", "", text, flags=re.S)
        return
    if page.suffix != ".py":  # C++ and CUDA: comments
        yield str(name), "\n".join(line.partition("//")[2] for line in text.splitlines())
        return
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield f"{name}:{node.lineno}", CODE.sub("", node.value)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield f"{name}:{token.start[0]}", CODE.sub("", token.string)


def sources() -> list[Path]:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    modules = [file for package in PACKAGES for file in package.rglob("*.py")]
    native = [file for file in (ROOT / "csrc").rglob("*") if file.suffix in (".h", ".cpp", ".cu", ".cuh")]
    return sorted(pages + modules + native + list(TEMPLATES.iterdir()))


@functools.cache
def everything() -> list[tuple[str, str]]:
    """Every text with its place, read once for all phrases."""
    return [found for source in sources() for found in prose(source)]


@pytest.mark.parametrize("old", OLD)
def test_an_old_phrase_occurs_nowhere(old: str) -> None:
    pattern = re.compile(old, re.I)
    found = [f"{where}: {match[0]!r}" for where, text in everything() for match in pattern.finditer(text)]
    assert not found, f"write {OLD[old]!r}"
