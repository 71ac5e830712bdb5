"""Optional libraries: imported where they are used; if one is missing, the error names the pip extra to install."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType


def check_installed(module: str, *, extra: str, purpose: str) -> None:
    """As `require`, without importing anything.

    Raises:
        ImportError: the module is not installed.
    """
    if importlib.util.find_spec(module) is None:
        raise ImportError(f"{module} is needed {purpose}; install it with: pip install 'pope-core[{extra}]'")


def require(module: str, *, extra: str, purpose: str) -> ModuleType:
    """Import ``module``, or raise with the extra to install.

    Args:
        module: dotted name, e.g. ``"pyarrow.parquet"``.
        extra: the extra of ``pope-core`` that installs it, e.g. ``"train"``.
        purpose: what needs it, in the words of the error, e.g. ``"to read Parquet files"``.

    Raises:
        ImportError: the module's package is not installed. If an installed package lacks a dependency of its own, its
            error is raised unchanged.
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
