"""Batches that do not fit in memory: halves of them are tried, and a warning says so."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

import torch

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory, of a GPU or of the machine, was not enough."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator: " in str(error)


class FittingBatches(Generic[Item, Result]):
    """Runs batches; one that does not fit in memory is halved, and so is every later one that is not smaller.

    Args:
        size: what memory depends on, of a batch.
        what: is being done, for the warning.
        halves: the two parts of a batch; None if it cannot be divided.
    """

    def __init__(
        self,
        *,
        size: Callable[[list[Item]], int],
        what: str,
        halves: Callable[[list[Item]], tuple[list[Item], list[Item]] | None] | None = None,
    ) -> None:
        self.size, self.what, self.halves = size, what, halves or in_two
        self.too_large: int | None = None  # the smallest size that did not fit

    def run(self, batch: list[Item], work: Callable[[list[Item]], Result]) -> Iterator[tuple[list[Item], Result]]:
        """The parts of a batch, in order, each with the result of ``work`` as soon as it is there.

        Raises:
            MemoryError: a batch that cannot be divided does not fit.
        """
        if self.too_large is None or self.size(batch) < self.too_large or self.halves(batch) is None:
            try:
                result = work(batch)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                self._note(batch, error)
            else:
                yield batch, result
                return
            # Here the error is gone, and with it the tensors of its frames.
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        for half in self.halves(batch) or ():
            yield from self.run(half, work)

    def _note(self, batch: list[Item], error: Exception) -> None:
        size = self.size(batch)
        if self.halves(batch) is None:
            raise MemoryError(
                f"{self.what}: expected memory for a batch of {size} tokens, which cannot be divided: {_line(error)}"
            ) from error
        self.too_large = size if self.too_large is None else min(size, self.too_large)
        logger.warning(
            "%s: a batch of %d tokens does not fit in memory; going on with halves (%s)", self.what, size, _line(error)
        )


def in_two(batch: list[Item]) -> tuple[list[Item], list[Item]] | None:
    """The two halves of a list; None for one item."""
    middle = len(batch) // 2
    return (batch[:middle], batch[middle:]) if middle else None


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
