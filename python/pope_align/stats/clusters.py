"""Ids of clusters as numbers, so that different ids stay different whatever their types."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from numbers import Real
from typing import Any

import numpy as np
import numpy.typing as npt


def codes_of(ids: Sequence[Any] | npt.ArrayLike, name: str = "clusters") -> tuple[list[Any], npt.NDArray[np.int64]]:
    """The distinct ids, in order, and for every element of ``ids`` the place of its own among them.

    As `np.unique` with ``return_inverse`` does it, but ids keep their types: 1 and "1" are two, and so are texts that
    differ in a final NUL and whole numbers that float64 would round to one. Equal numbers of other types (1 and 1.0)
    are one.

    Raises:
        ValueError: an id that is missing (None or NaN) or cannot be compared, with its place.
    """
    values = ids.tolist() if isinstance(ids, np.ndarray) else list(ids)  # type: ignore[arg-type]  # any iterable of ids
    keys = [_key(value, at, name) for at, value in enumerate(values)]
    distinct = dict(zip(keys, values))
    place = {key: code for code, key in enumerate(sorted(distinct))}
    return [distinct[key] for key in place], np.array([place[key] for key in keys], dtype=np.int64)


def _key(value: Any, at: int, name: str) -> tuple[str, Any]:
    """By which ids are equal and ordered: numbers, then texts and whatever else, each among its kind."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or not isinstance(value, Hashable) or value != value:
        raise ValueError(f"{name}: expected an id, a text or number, at {at}, got {value!r:.80}")
    if isinstance(value, Real) and not isinstance(value, bool):
        return "", value
    return type(value).__name__, value if isinstance(value, str) else repr(value)
