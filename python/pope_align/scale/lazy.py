"""The base of what is sent to other processes: settings in the pickle, the model loaded where it is used."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any


class LazyModel(ABC):
    """Something picklable that holds settings only; each process loads the model once, when it is first used."""

    def load(self) -> None:
        """Load the model, unless this process has."""
        if getattr(self, "_loaded", None) is None:
            self._loaded: Any = self.loaded()

    @abstractmethod
    def loaded(self) -> Any:
        """The model and what belongs to it."""

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_loaded"}
