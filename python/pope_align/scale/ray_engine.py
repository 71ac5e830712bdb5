"""Shards and columns on Ray: a pool of actors, each with the model loaded once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
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
        if not tasks:
            return
        ray = self.started()
        rows = [{"path": path, **_range(shard)} for path, shard in tasks]
        data = ray.data.from_items(rows, override_num_blocks=min(len(rows), _BLOCKS))
        made = data.map_batches(
            _ShardActor,
            fn_constructor_kwargs={"worker": worker},
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=min(self.workers, len(rows))),  # dead actors are restarted
            num_gpus=self.gpus_per_worker,
            num_cpus=1,
        )
        for row in made.iter_rows():
            yield Shard(**row)

    def started(self) -> ModuleType:
        """Ray, running."""
        ray = require("ray", extra="ray", purpose="for --engine ray")
        require("ray.data", extra="ray", purpose="for --engine ray")
        if not ray.is_initialized():
            ray.init(address=self.address, include_dashboard=None if self.address else False, log_to_driver=True)
        return ray


#: Tasks are handed to actors in this many blocks at most; a block is repeated if its actor dies.
_BLOCKS = 10_000


def _range(shard: Shard) -> dict[str, Any]:
    return {name: getattr(shard, name) for name in ("name", "input", "start", "stop")}


class _ShardActor:
    """What an actor runs."""

    def __init__(self, worker: ShardWorker) -> None:
        self.worker = worker

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        tasks = [{name: values[at] for name, values in batch.items()} for at in range(len(batch["name"]))]
        made = [self._make(**task) for task in tasks]
        return {name: [each[name] for each in made] for name in made[0]}

    def _make(self, path: Any, name: Any, input: Any, start: Any, stop: Any) -> dict[str, Any]:
        return asdict(self.worker.make(str(path), Shard(str(name), int(input), int(start), int(stop))))
