"""Batches of a command's own work in other processes: scores and embeddings, the same as in this one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from .lazy import LazyModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..metrics.embeddings import Embedder, Vectors
    from ..propensity.scoring import Batch, BatchScorer, ScoredPart


class Pool(Protocol):
    """Processes that do the same work on one item after another, such as `ray_engine.RayEngine`."""

    def each(self, work: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        """The number and the result of every item, in any order.

        Args:
            work: picklable; what it loads at its first call in a process it keeps.
        """


@dataclass
class PolicyWorker(LazyModel):
    """Scores batches of `propensity.scoring` under a model that is loaded by name.

    Args:
        model: hub name, folder or GGUF file.
        fingerprint: of the model in the process that makes the batches.
        share_prompt: whether a prompt is computed once for several responses.
        dtype: of the weights.
        adapter: folder of an adapter that is merged into the weights.
    """

    model: str
    fingerprint: str
    share_prompt: bool
    dtype: str = "float32"
    adapter: str | None = None

    def __call__(self, batch: Batch) -> list[ScoredPart]:
        """The batch's totals.

        Raises:
            ValueError: the name stands for other weights in this process.
        """
        import torch

        from ..models.modes import evaluation_mode

        self.load()
        with evaluation_mode(self._loaded.model), torch.no_grad():
            return list(self._loaded(batch))

    def loaded(self) -> BatchScorer:
        from ..models.loading import best_device
        from ..propensity.scoring import BatchScorer, model_fingerprint

        model = load_policy(self.model, self.dtype, self.adapter)
        if (found := model_fingerprint(model)) != self.fingerprint:
            raise ValueError(
                f"policy: expected the same weights of {self.model} for all workers ({self.fingerprint}), got {found}"
            )
        return BatchScorer(model.to(best_device()), self.share_prompt)


def load_policy(model: str, dtype: str, adapter: str | None) -> PreTrainedModel:
    """A model by name in the memory of the CPU, with its adapter merged, if it has one."""
    from ..generation.generate import load_adapter
    from ..models.loading import load_model

    loaded = load_model(model, dtype=dtype)
    return loaded if adapter is None else load_adapter(loaded, adapter)


@dataclass(frozen=True)
class PoolScorer:
    """Scores the batches of `propensity.scoring.score_responses` with a pool.

    Args:
        model, fingerprint, dtype, adapter: as in `PolicyWorker`.
    """

    pool: Pool
    model: str
    fingerprint: str
    dtype: str = "float32"
    adapter: str | None = None

    def __call__(self, batches: Sequence[Batch], share_prompt: bool) -> Iterator[ScoredPart]:
        """The totals of all batches, in any order."""
        work = PolicyWorker(self.model, self.fingerprint, share_prompt, self.dtype, self.adapter)
        for _, parts in self.pool.each(work, batches):
            yield from parts


@dataclass
class EmbeddingWorker(LazyModel):
    """Embeds chunks of texts with a model that is loaded by name.

    Args:
        model: a name or folder, or None, as in `metrics.embeddings.Embedder`.
        batch_size: as in `metrics.embeddings.Embedder`.
        settings: `metrics.embeddings.model_settings` in the process that makes the chunks.
    """

    model: Any
    batch_size: int
    settings: str

    def __call__(self, texts: list[str]) -> Vectors:
        """The model's vectors of the texts.

        Raises:
            ValueError: the name stands for another model in this process.
        """
        self.load()
        vectors: Vectors = self._loaded.encoded(texts)
        return vectors

    def loaded(self) -> Embedder:
        from ..metrics.embeddings import Embedder, model_settings

        embedder = Embedder(self.model, batch_size=self.batch_size)
        if (found := model_settings(embedder.model)) != self.settings:
            raise ValueError(
                f"embedding_model: expected {embedder.report.model} to be the same for all workers ({self.settings}), "
                f"got {found}"
            )
        return embedder
