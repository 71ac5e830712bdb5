"""What training with several processes needs: the hooks of wrappers, and vectors of all processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather


def call_as_forward(
    wrapper: torch.nn.Module, module: torch.nn.Module, function: Callable[..., Any], *inputs: Any
) -> Any:
    """``function(*inputs)`` where ``wrapper(*inputs)`` would have run ``module.forward``.

    DDP, FSDP and DeepSpeed prepare parameters before a module's ``forward`` and their gradients after it. A loss that
    needs no logits does not call ``forward``; through here it still runs between those hooks. (Lightning calls this
    forward redirection.)

    Args:
        wrapper: ``module``, or what wraps it.
    """
    own = vars(module).get("forward")

    def restore() -> None:
        if own is None:
            vars(module).pop("forward", None)
        else:
            vars(module)["forward"] = own

    def redirected(*args: Any) -> Any:
        restore()  # the function may run the module itself
        return function(*args)

    vars(module)["forward"] = redirected
    try:
        return wrapper(*inputs)
    finally:
        restore()


def gather_ragged(values: torch.Tensor) -> list[torch.Tensor]:
    """One vector of each process, in the order of the processes; lengths may differ.

    Args:
        values: ``[N]``, of this process; what is returned in its place is the same, with its gradient.
    """
    state = PartialState()
    if state.num_processes == 1:
        return [values]
    lengths = gather(torch.tensor([values.shape[0]], device=values.device)).tolist()
    padded = torch.nn.functional.pad(values.detach(), (0, max(lengths) - values.shape[0]))
    rows = gather(padded[None])
    pieces = [row[:length] for row, length in zip(rows, lengths, strict=True)]
    pieces[state.process_index] = values
    return pieces


def from_main_process(compute: Callable[[], Any]) -> Any:
    """The value of ``compute()`` on the main process, on every process; so are the errors it raises.

    With FSDP's loading that spares memory, only the main process has a model to look at.

    Raises:
        ValueError: as ``compute`` does.
    """
    state = PartialState()
    outcome: list[Any] = [None, None]
    if state.is_main_process:
        try:
            outcome[0] = compute()
        except ValueError as error:
            outcome[1] = error
    broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]
