"""Shards and batches on Ray: a pool of actors, each with the model loaded once."""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from .._extras import require
from ..data.shards import Shard
from .run import Task
from .worker import ShardWorker


@dataclass(frozen=True)
class RayEngine:
    """A pool of actors of Ray Data's ``map_batches``; a dead one is replaced, and what it was doing is done again.

    Args:
        workers: number of actors.
        gpus_per_worker: GPUs of each; 0 for none.
        address: of a running cluster, "auto" for the one of this machine; None starts Ray here, or uses what runs.

    Raises:
        ValueError: ``workers < 1`` or negative GPUs.
    """

    workers: int = 1
    gpus_per_worker: float = 0
    address: str | None = None

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ValueError(f"workers: expected an integer >= 1, got {self.workers}")
        if self.gpus_per_worker < 0:
            raise ValueError(f"gpus_per_worker: expected a number >= 0, got {self.gpus_per_worker}")

    def __call__(self, worker: ShardWorker, tasks: Sequence[Task]) -> Iterator[Shard]:
        """Make shards, and yield each when it is there, in any order."""
        for _, shard in self.each(worker, tasks):
            yield shard

    def each(self, work: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        """Do the work on every item, and yield its number and result when it is there, in any order.

        Args:
            work: picklable; what it loads at its first call an actor keeps.

        Raises:
            ValueError, OSError, MemoryError: as the work does.
            RuntimeError: an actor died at the same item, again and again.
        """
        if not items:
            return
        ray = self.started()
        rows = [{"number": number, "item": pickle.dumps(item)} for number, item in enumerate(items)]
        data = ray.data.from_items(rows, override_num_blocks=min(len(rows), _BLOCKS))
        done = data.map_batches(
            _Actor,
            fn_constructor_kwargs={"work": work},
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=min(self.workers, len(rows))),  # dead actors are restarted
            num_gpus=self.gpus_per_worker,
            num_cpus=1,
            max_task_retries=_RETRIES,
        )
        try:
            for row in done.iter_rows():
                result = pickle.loads(row["result"])
                if isinstance(result, _Refused):
                    raise result.error
                yield int(row["number"]), result
        except ray.exceptions.RayActorError as error:
            raise RuntimeError(
                f"a worker died {_RETRIES + 1} times at the same work; the system ends processes for which memory is "
                "short: use fewer workers on a machine, smaller batches, or a smaller dtype"
            ) from error

    def started(self) -> ModuleType:
        """Ray, running."""
        ray = require("ray", extra="ray", purpose="for --engine ray")
        require("ray.data", extra="ray", purpose="for --engine ray")
        if not ray.is_initialized():
            ray.init(address=self.address, include_dashboard=None if self.address else False, log_to_driver=True)
        return ray


#: How often an item is done again after the death of its actor: one that is too large for the memory always ends so.
_RETRIES = 3

#: Items are handed to actors in this many blocks at most; a block is repeated if its actor dies.
_BLOCKS = 10_000


@dataclass(frozen=True)
class _Refused:
    """An error of the work itself, which a repeat would have again."""

    error: Exception


class _Actor:
    """What an actor runs."""

    def __init__(self, work: Callable[[Any], Any]) -> None:
        self.work = work

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        results = [pickle.dumps(self._done(pickle.loads(item))) for item in batch["item"]]
        return {"number": list(batch["number"]), "result": results}

    def _done(self, item: Any) -> Any:
        try:
            return self.work(item)
        except (ValueError, OSError, MemoryError) as error:
            error.add_note(traceback.format_exc())  # an exception that is pickled loses where it was raised
            return _Refused(error)
