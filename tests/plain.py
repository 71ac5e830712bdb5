"""Options of the objective as keywords, over the plain estimator: no normalisation, no maximum weight, -l."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from pope_core import Objective

PLAIN = Objective(normalization="none", clip=None, diversity_form="neg_log_prob")
_NAMES = {field.name for field in fields(Objective)}


def plain(**options: Any) -> dict[str, Any]:
    """Keyword arguments of a loss: the objective's options gathered in ``objective``, all others as they are."""
    own = {name: value for name, value in options.items() if name in _NAMES}
    others = {name: value for name, value in options.items() if name not in _NAMES}
    return {"objective": replace(PLAIN, **own), **others}
