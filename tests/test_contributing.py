"""What CONTRIBUTING.md and docs/versioning.md name is there."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from pope_core import backends

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
#: Lists of files, by what is added.
LISTS = {
    "an op": {"pope_core/reference.py", "pope_core/_ops.py"},
    "an option of the objective, or a value of one": {"pope_core/objective.py"},
    "a backend": {"pope_core/backends.py", "pope_core/devices.py"},
    "an estimator": {"python/pope_align/ope/estimators.py", "docs/evaluation.md"},
    "a reader of logs": {"python/pope_align/data/formats/__init__.py", "docs/data.md"},
    "a training method": {"python/pope_align/training/methods.py", "docs/training.md"},
    "a metric": {"python/pope_align/metrics/registry.py", "docs/metrics.md"},
}


def paths(text: str) -> set[str]:
    """What stands in backquotes or in links and is a path: it has a slash, or the ending of a file."""
    named = re.findall(r"`([^`\s]+)`|\]\(([^)#]+)", text)
    each = {path for pair in named for path in pair if path and not path.startswith(".") and "NAME" not in path}
    ending = re.compile(r"\.(py|pyi|md|json|toml|txt|h|cpp|cu|cuh|ya?ml)$")
    return {path for path in each if "/" in path or ending.search(path)}


def exists(path: str) -> bool:
    """From the root; a name alone is that of a source in one of the layers."""
    layers = ("csrc", "kernels/pope_kernels", "pope_core", "python/pope_align")
    return (ROOT / path).exists() or ("/" not in path and any(any((ROOT / at).rglob(path)) for at in layers))


def test_every_path_that_contributing_names_exists() -> None:
    found = paths(PAGE)
    assert len(found) > 40
    assert not [path for path in sorted(found) if not exists(path)]


def test_a_path_that_does_not_exist_is_found() -> None:
    (path,) = paths("see `pope_core/backend.py` and `NAME` and `tests/formats/NAME`")
    assert not exists(path)


@pytest.mark.parametrize("what", LISTS)
def test_there_is_a_list_of_files_for(what: str) -> None:
    (section,) = re.findall(rf"^## Adding {what}\n(.*?)^## ", PAGE, re.MULTILINE | re.DOTALL)
    assert "\n1. " in section
    assert LISTS[what] <= paths(section)


def private_uses(file: Path) -> Iterator[str]:
    """Names with an underscore that a source reaches for in other libraries."""
    own, named_tuples = {"self", "cls", "_C"}, {"_fields", "_replace"}
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Attribute) or not re.match(r"_[^_]", node.attr) or node.attr in named_tuples:
            continue
        if not (isinstance(node.value, ast.Name) and node.value.id in own):
            yield node.attr


def test_every_private_name_of_torch_is_on_the_page() -> None:
    page = (ROOT / "docs" / "versioning.md").read_text(encoding="utf-8")
    files = [*(ROOT / "pope_core").rglob("*.py"), *(ROOT / "kernels" / "pope_kernels").rglob("*.py")]
    used = {(name, str(file.relative_to(ROOT))) for file in files for name in private_uses(file)}
    assert len(used) >= 6
    rows = [line for line in page.splitlines() if line.startswith("| ")]
    assert not [use for use in used if not any(use[0] in row and use[1] in row for row in rows)]


def test_the_versions_of_every_backend_are_on_the_page() -> None:
    page = (ROOT / "docs" / "versioning.md").read_text(encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in backends.names():
        assert re.search(rf"^\| .*`{name}`.*\| 2\.\d", page, re.MULTILINE), name
        assert re.search(rf"^\| `{name}` \|", readme, re.MULTILINE), name
