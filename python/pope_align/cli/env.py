"""``pope env``."""

from __future__ import annotations


def env() -> None:
    """Versions, devices, and the backend that every operation takes on this machine, with the reason."""
    from pope_core.env import report

    print(report())
