"""How the studies of this package split a log, so that reported slates influence no choice.

`defaults` compares settings on the validation part, `methods` reports on the test part, and `pope demo` too, with the
same seed. To use less of a log, sample it beforehand (``pope convert --fraction --sample-k``).
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from ..data import Slate, group_split, read_slates, slate_group

#: Share of groups in the test part, and share of the others in the validation part; as in the demo.
HOLDOUT = 0.35


class Parts(NamedTuple):
    """Slates of disjoint groups."""

    train: list[Slate]
    validation: list[Slate]
    test: list[Slate]


def three_parts(log: Path, seed: int) -> Parts:
    """The slates of ``log``, split by `slate_group`; depends on the seed and the groups, not on the order of rows."""
    rest, test = group_split(read_slates(log), slate_group, HOLDOUT, seed)
    return Parts(*group_split(rest, slate_group, HOLDOUT, seed), test)
