"""Coverage of opinions: references that say the same count as one, where nobody rated them by group."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .._arrays import Floats
from .similarity import covered


def opinions(references: Floats, threshold: float = 0.8) -> npt.NDArray[np.int64]:
    """The opinion of each reference, ``[M]`` numbers from 0, in the order in which opinions first occur.

    Two references are one opinion if their cosine is at least ``threshold``, the similarity at which an answer covers a
    reference, or if a chain of such references connects them.

    Args:
        references: ``[M, d]`` unit vectors.
    """
    near = references @ references.T >= threshold - 1e-9
    labels = np.full(len(references), -1)
    for start in range(len(references)):
        if labels[start] >= 0:
            continue
        reached = np.zeros(len(references), dtype=bool)
        reached[start] = True
        while True:
            more = reached | near[reached].any(0)
            if (more == reached).all():
                break
            reached = more
        labels[reached] = labels.max() + 1
    return labels


def opinion_coverage(similarity: Floats, of: npt.NDArray[np.int64], threshold: float = 0.8) -> float:
    """The share of opinions of which an answer covers a reference, in [0, 1]; NaN without references.

    Unlike coverage of references, it does not grow with the number of people who say the same.

    Args:
        similarity: ``[n, M]`` cosines of answers and references.
        of: ``[M]`` the opinion of each reference; see `opinions`.
    """
    if len(of) == 0:
        return float("nan")
    met = covered(similarity, threshold)
    return float(np.mean([met[of == opinion].any() for opinion in np.unique(of)]))
