"""Parts of scripts/gpu_check.py that need no GPU."""

from __future__ import annotations

import importlib.util
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "scripts" / "gpu_check.py"


def test_wheels_that_came_in_pieces_are_put_together(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("gpu_check", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    gpu_check = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(gpu_check)
    for name, content in (("a.whl.part-00", b"one "), ("a.whl.part-01", b"two"), ("b.whl", b"whole")):
        (tmp_path / name).write_bytes(content)
    assert gpu_check.join_parts(tmp_path) == [tmp_path / "a.whl"]
    assert (tmp_path / "a.whl").read_bytes() == b"one two"
    assert sorted(path.name for path in tmp_path.glob("*.whl")) == ["a.whl", "b.whl"]
