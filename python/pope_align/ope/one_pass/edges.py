"""Clusters that may continue in another shard: their rows wait until all shards are read."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from .shards import Key, Rows


@dataclass(frozen=True, eq=False)
class Edges:
    """The first and last cluster of every shard read so far, and the slates between which each shard lies."""

    parts: tuple[Rows, ...]  # of one cluster each
    spans: tuple[tuple[tuple[Key, Key], tuple[Key, Key], str], ...]  # cluster and query at both ends of a shard; path

    @classmethod
    def of_shard(cls, parts: list[Rows]) -> Edges:
        """Of one shard; no parts if it has no rows."""
        if not parts:
            return cls((), ())
        first, last = parts[0], parts[-1]
        ends = ((first.clusters[0], first.queries[0]), (last.clusters[0], last.queries[-1]))
        return cls(tuple(parts), ((*ends, first.pieces[0][1]),))

    def merge(self, other: Edges) -> Edges:
        return Edges(self.parts + other.parts, self.spans + other.spans)

    def joined(self) -> Rows | None:
        """All clusters, each in one piece; None without any.

        Raises:
            ValueError: shards that overlap, so that a cluster within one may be in another, too.
        """
        for at, kind in enumerate(("clusters", "queries")):
            if len({type(first[at]) for first, *_ in self.spans}) > 1:
                raise ValueError(f"paths: expected integers or text as ids of {kind} in all shards, got both")
        spans = sorted(self.spans)
        for (_, last, path), (first, _, other) in itertools.pairwise(spans):
            if last > first:
                raise ValueError(
                    f"paths: {path} ends with {last[1]!r} and {other} begins with {first[1]!r}: expected the whole log "
                    "sorted, so that shards share no query but the one that ends one of them and begins the next"
                )
        parts = sorted(self.parts, key=lambda part: (part.clusters[0], part.queries[0], part.pieces))
        return _join(parts) if parts else None


def _join(parts: list[Rows]) -> Rows:
    """The clusters of these parts, which are in order; a slate that was split is whole again."""
    names = [(part.clusters[0], query) for part in parts for query in part.queries]
    begins = [at for at, name in enumerate(names) if at == 0 or name != names[at - 1]]
    sizes = np.add.reduceat(np.concatenate([np.diff(part.slate_offsets) for part in parts]), begins)
    clusters = list(dict.fromkeys(names[at][0] for at in begins))
    code = {name: at for at, name in enumerate(clusters)}
    starts = np.cumsum([0] + [part.scores.size for part in parts])
    tokens = [part.tokens for part in parts if part.tokens is not None]
    return Rows(
        pieces=tuple(
            (int(start), path, first)
            for start, part in zip(starts, parts, strict=False)
            for _, path, first in part.pieces
        ),
        scores=np.concatenate([part.scores for part in parts]),
        logging=np.concatenate([part.logging for part in parts]),
        policies={name: np.concatenate([part.policies[name] for part in parts]) for name in parts[0].policies},
        tokens=np.concatenate(tokens) if tokens else None,
        slate_offsets=np.append(0, sizes.cumsum()),
        slate_clusters=np.array([code[names[at][0]] for at in begins]),
        clusters=clusters,
        queries=[names[at][1] for at in begins],
    )
