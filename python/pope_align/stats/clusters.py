"""Maps ids of clusters to integers; ids that differ in value or type stay different."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from numbers import Real
from typing import Any

import numpy as np
import numpy.typing as npt


def codes_of(ids: Sequence[Any] | npt.ArrayLike, name: str = "clusters") -> tuple[list[Any], npt.NDArray[np.int64]]:
    """The distinct ids, sorted, and the index of every element of ``ids`` among them.

    Like `np.unique` with ``return_inverse``, but ids keep their types: 1 and "1" differ, and so do texts that differ in
    a final NUL and integers that float64 would round to the same number. Equal numbers of different types (1 and
    1.0) are equal.

    Raises:
        ValueError: an id that is missing (None or NaN) or cannot be compared, with its place.
    """
    values = ids.tolist() if isinstance(ids, np.ndarray) else list(ids)  # type: ignore[arg-type]  # any iterable of ids
    keys = [_key(value, at, name) for at, value in enumerate(values)]
    distinct = dict(zip(keys, values))
    place = {key: code for code, key in enumerate(sorted(distinct))}
    return [distinct[key] for key in place], np.array([place[key] for key in keys], dtype=np.int64)


def _key(value: Any, at: int, name: str) -> tuple[str, Any]:
    """The key that defines equality and order of ids: numbers first, then texts and other types, each among
    themselves.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or not isinstance(value, Hashable) or value != value:
        raise ValueError(f"{name}: expected an id, a text or number, at {at}, got {value!r:.80}")
    if isinstance(value, Real) and not isinstance(value, bool):
        return "", value
    return type(value).__name__, value if isinstance(value, str) else repr(value)
