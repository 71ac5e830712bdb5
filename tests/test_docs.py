"""Every block of Python and shell in the README and the pages of docs/ runs, top to bottom, as a reader would run it.

A page has a folder of its own with the files that it names, made by its function in ``doc_pages.py``. A block that
cannot run in a test stands under a comment ``<!-- not run: REASON -->``.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from doc_pages import PAGES, Page
from warm_python import WarmPython

ROOT = Path(__file__).parent.parent
FENCE = re.compile(
    r"(?:^<!-- not run: (?P<reason>[^\n]+) -->\n+)?^```(?P<language>\w+)[^\n]*\n(?P<code>.*?)^```", re.M | re.S
)
SHELLS = ("bash", "sh", "console")


class Block(NamedTuple):
    line: int
    language: str
    code: str
    reason: str | None  # why it is not run


def pages() -> list[Path]:
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = [
        Block(text.count("\n", 0, match.start("language")) + 1, match["language"], match["code"], match["reason"])
        for match in FENCE.finditer(text)
    ]
    return [block for block in found if block.language in ("python", *SHELLS)]


def test_every_block_names_its_language() -> None:
    """A block without one is neither run nor marked, whatever it holds."""
    bare = []
    for page in [*pages(), *ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        fences = [
            (line, text.strip())
            for line, text in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1)
            if text.lstrip().startswith("```")
        ]
        bare += [f"{page.relative_to(ROOT)}:{line}" for line, fence in fences[::2] if fence == "```"]
        assert all(fence == "```" for _, fence in fences[1::2]), page
    assert not bare


def test_every_page_is_found_from_the_first() -> None:
    home = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    names = {page.name for page in (ROOT / "docs").glob("*.md")} - {"index.md"}
    assert sorted(name for name in names if f"]({name})" not in home) == []


def test_every_page_with_code_has_its_files() -> None:
    with_code = {str(page.relative_to(ROOT)) for page in pages() if any(not b.reason for b in blocks(page))}
    assert with_code == set(PAGES)


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Runs ``-c CODE`` and ``-m MODULE`` as Python does."""
    with WarmPython(tmp_path_factory.mktemp("warm")) as warm:
        yield warm.client


@pytest.mark.slow
@pytest.mark.parametrize("name", PAGES)
def test_the_blocks_of_a_page_run(name: str, tmp_path: Path, python: Path, request: pytest.FixtureRequest) -> None:
    page: Page = PAGES[name]
    page.prepare(tmp_path, request.getfixturevalue)
    code, waiting = page.preamble, False  # Python runs once, before the next block of a shell and at the end
    for block in blocks(ROOT / name):
        if block.reason:
            continue
        if block.language == "python":
            code += f"\n# {name}:{block.line}\n{block.code}"
            waiting = True
            continue
        if waiting:
            run([str(python), "-c", code], python, tmp_path, f"{name}, to line {block.line}")
            waiting = False
        run(["bash", "-euo", "pipefail", "-c", block.code], python, tmp_path, f"{name}:{block.line}")
    if waiting:
        run([str(python), "-c", code], python, tmp_path, name)


def run(command: list[str], python: Path, where: Path, what: str) -> None:
    scripts = Path(sys.executable).parent
    pope = where / ".bin" / "pope"  # the checkout's, whether or not it is installed
    pope.parent.mkdir(exist_ok=True)
    pope.write_text(f'#!/bin/sh\nexec "{python}" -m pope_align.cli "$@"\n', encoding="utf-8")
    pope.chmod(0o755)
    environment = {**os.environ, "PATH": f"{pope.parent}:{scripts}:{os.environ['PATH']}", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=where, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{what}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
