"""Features of logged responses and of a policy's fresh ones, for reward models, classifiers and kernels."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .._arrays import Floats, Integers
from .log import LoggedSlates

#: Quantiles of the log at which features are cut for models.
_ENDS = (0.01, 0.99)

#: Standard errors by which the share of fresh responses beyond the log must exceed chance, in the worst of all columns.
_DOUBT = 4.0


@dataclass(frozen=True, eq=False)
class Features:
    """One row for each logged response and one for each fresh response of the policy that is evaluated.

    Attributes:
        name: e.g. "embedding", "surface", "hidden states".
        logged: ``[R, d]``.
        target: ``[N, d]``.
        owner: ``[N]`` slate whose prompt each fresh response answers; every slate has at least one.
        beyond: of `within_log`: the largest share of fresh responses that lie beyond all logged ones in one column, 0
            if chance explains it; None if the features were not cut.
    """

    name: str
    logged: Floats
    target: Floats
    owner: Integers
    beyond: float | None = None

    def check(self, log: LoggedSlates) -> None:
        """Raises: ValueError: arrays that do not match the log or each other, or a number that is not finite."""
        if self.logged.ndim != 2 or len(self.logged) != log.num_responses:
            raise ValueError(
                f"features {self.name!r}: logged: expected [{log.num_responses}, d], got {list(self.logged.shape)}"
            )
        if self.target.ndim != 2 or self.target.shape[1] != self.logged.shape[1]:
            raise ValueError(
                f"features {self.name!r}: target: expected [N, {self.logged.shape[1]}], got {list(self.target.shape)}"
            )
        check_owner(log, self.owner, len(self.target))
        for name, rows in (("logged", self.logged), ("target", self.target)):
            bad = np.flatnonzero(~np.isfinite(rows).all(1))
            if bad.size:
                place = log.place(int(bad[0])) if name == "logged" else f"fresh response {bad[0]}"
                raise ValueError(f"features {self.name!r}: {name}: {place}: expected finite numbers, got NaN or inf")

    def within_log(self) -> Features:
        """Every column cut at the log's quantiles `_ENDS`, so that no model extrapolates, and none depends on a few
        responses with extreme values. What is cut from fresh responses is remembered in ``beyond``: no model sees it.
        """
        if self.beyond is not None:
            return self
        ends = np.quantile(self.logged, _ENDS, axis=0)
        cut = np.clip(self.logged, *ends), np.clip(self.target, *ends)
        return Features(self.name, *cut, self.owner, self._beyond())

    def _beyond(self) -> float:
        low, high = self.logged.min(0), self.logged.max(0)
        counts = np.bincount(self.owner)[self.owner]  # every slate counts the same
        share = (((self.target < low) | (self.target > high)) / counts[:, None]).sum(0) / np.unique(self.owner).size
        # A response from the log's own distribution exceeds n others in a column with a probability of 2 / (n + 1).
        chance = 2 / (len(self.logged) + 1)
        doubt = _DOUBT * np.sqrt(np.maximum(share, chance) / (int(self.owner.max()) + 1))
        clear = share > chance + doubt
        return float(share[clear].max()) if clear.any() else 0.0

    def beside(self, other: Features) -> Features:
        """The columns of both feature sets, for the same fresh responses."""
        if not np.array_equal(self.owner, other.owner):
            raise ValueError(
                f"other: expected the fresh responses of {self.name!r}, got those of {other.name!r}, which differ"
            )
        return Features(
            f"{self.name} + {other.name}",
            np.column_stack([self.logged, other.logged]),
            np.column_stack([self.target, other.target]),
            self.owner,
        )


def check_owner(log: LoggedSlates, owner: Integers, count: int) -> None:
    """Raises: ValueError: not one slate for each fresh response, or a slate without any."""
    if owner.shape != (count,) or owner.dtype.kind not in "iu":
        raise ValueError(f"owner: expected {count} slate numbers, got {owner.dtype} {list(owner.shape)}")
    if count == 0 or owner.min() < 0 or owner.max() >= log.num_slates:
        raise ValueError(f"owner: expected slates 0 to {log.num_slates - 1}, got {owner.min()} to {owner.max()}")
    empty = np.flatnonzero(np.bincount(owner, minlength=log.num_slates) == 0)
    if empty.size:
        raise ValueError(f"owner: slate {empty[0]}: expected at least one fresh response, got none")


def fresh_mean(log: LoggedSlates, owner: Integers, values: Floats) -> Floats:
    """``[N] -> [S]``: the mean over each slate's fresh responses."""
    counts = np.bincount(owner, minlength=log.num_slates)
    return np.asarray(np.bincount(owner, weights=values, minlength=log.num_slates) / counts)


def given_prompt(responses: Floats, prompts: Floats) -> Floats:
    """``[n, 2 d + 1]``: a response's embedding, its elementwise product with its prompt's, and their cosine.

    Args:
        responses, prompts: ``[n, d]`` unit vectors; the prompt's is repeated for each response.
    """
    product = responses * prompts
    return np.column_stack([responses, product * np.sqrt(responses.shape[1]), product.sum(1)])


#: The columns of `surface`.
SURFACE = (
    "log of words",
    "log of characters",
    "mean letters of a word",
    "share of words of seven letters and more",
    "share of words of three letters and less",
    "share of distinct words",
    "share of digits",
    "share of punctuation",
    "share of capital letters",
    "line breaks a word",
    "list items a word",
    "question marks a word",
)

_WORD = re.compile(r"[^\W\d_]+")


def surface(texts: Sequence[str]) -> Floats:
    """``[n, len(SURFACE)]``: properties of the words that sentence embeddings hardly capture."""
    return np.array([_surface(text) for text in texts], dtype=np.float64).reshape(len(texts), len(SURFACE))


def _surface(text: str) -> tuple[float, ...]:
    words = [len(word) for word in _WORD.findall(text)]
    count, size = max(len(words), 1), max(len(text), 1)
    sizes: npt.NDArray[np.int64] = np.array(words or [0])
    return (
        float(np.log1p(len(words))),
        float(np.log1p(len(text))),
        float(sizes.mean()),
        float((sizes >= 7).mean()),
        float((sizes <= 3).mean()),
        len({word.lower() for word in _WORD.findall(text)}) / count,
        sum(letter.isdigit() for letter in text) / size,
        sum(not letter.isalnum() and not letter.isspace() for letter in text) / size,
        sum(letter.isupper() for letter in text) / size,
        text.count("\n") / count,
        len(re.findall(r"(?m)^\s*(?:[-*\u2022]|\d+[.)])\s", text)) / count,
        text.count("?") / count,
    )
