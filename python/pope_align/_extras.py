"""Optional libraries: imported where they are needed, and missed by the name of the pip extra that brings them."""

from __future__ import annotations

import importlib
from types import ModuleType


def require(module: str, *, extra: str, purpose: str) -> ModuleType:
    """Import ``module``, or say which extra to install and what for.

    Args:
        module: dotted name, e.g. ``"pyarrow.parquet"``.
        extra: the extra of ``pope-core`` that installs it, e.g. ``"train"``.
        purpose: what needs it, in the words of the error, e.g. ``"to read Parquet files"``.

    Raises:
        ImportError: the module's package is not installed. A package that is installed and fails on its own missing
            dependency raises its own error.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if error.name != package:
            raise
        raise ImportError(
            f"{package} is needed {purpose}; install it with: pip install 'pope-core[{extra}]'"
        ) from error
