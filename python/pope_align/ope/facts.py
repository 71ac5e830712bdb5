"""`LogFacts`: what verdicts and reports need of a log, which is never its rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from .logging_policies import LoggingOrigin, LoggingSource, WrittenBy
from .utility import UtilityScale


class LogFacts(Protocol):
    """The counts and origins of a log: of `LoggedSlates`, and of a log that was read once and not kept."""

    @property
    def num_responses(self) -> int: ...
    @property
    def num_slates(self) -> int: ...
    @property
    def num_clusters(self) -> int: ...
    @property
    def scale(self) -> UtilityScale: ...
    @property
    def utility_range(self) -> tuple[float, float]: ...
    @property
    def how(self) -> LoggingOrigin: ...
    @property
    def sources(self) -> tuple[LoggingSource, ...]: ...
    @property
    def written_by(self) -> WrittenBy: ...
    @property
    def in_sample(self) -> int: ...
    @property
    def rescored_gap(self) -> float | None: ...
    @property
    def fresh(self) -> Mapping[str, Any]: ...
    @property
    def logging_provenance(self) -> Mapping[str, Any]: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def clusters_fingerprint(self) -> str: ...

    def provenance(self, policy: str) -> Mapping[str, Any] | None:
        """Of the policy's log-probabilities; None: not known."""

    def provenances(self) -> Mapping[str, Mapping[str, Any]]:
        """Of every policy, in order."""

    def utilities_equal(self) -> float | None:
        """The utility of every response, if they have but one."""

    def equal_within_slates(self) -> bool:
        """Whether all utilities of a slate are equal, in every slate."""

    def is_logging_policy(self, policy: str) -> bool:
        """Whether the policy gives every logged response the logging policy's own probability, up to rounding."""
