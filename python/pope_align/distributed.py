"""Helpers for training with several processes: hooks of wrappers, sharded parameters, gathering vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather
from torch.distributed.tensor import DTensor
from transformers.integrations import is_deepspeed_zero3_enabled


def call_as_forward(
    wrapper: torch.nn.Module, module: torch.nn.Module, function: Callable[..., Any], *inputs: Any
) -> Any:
    """Run ``function(*inputs)`` in place of ``module.forward`` inside a call of ``wrapper``.

    DDP, FSDP and DeepSpeed have hooks before and after a module's ``forward`` that prepare parameters and gradients. A
    loss that needs no logits does not call ``forward``; this function runs it between those hooks all the same.
    (Lightning calls this forward redirection.)

    Args:
        wrapper: ``module``, or the wrapper around it.
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
    """The vectors of all processes, in the order of the processes; lengths may differ.

    Args:
        values: ``[N]``, of this process; returned unchanged, with its gradient, at this process's index.
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
    """Run ``compute()`` on the main process and return its value, or raise its error, on every process.

    With FSDP's memory-efficient loading only the main process has a model. With DeepSpeed every process has a part of
    it, and all of them compute.

    Raises:
        ValueError: as ``compute`` does.
    """
    state = PartialState()
    outcome: list[Any] = [None, None]
    if state.is_main_process or is_deepspeed_zero3_enabled():
        try:
            outcome[0] = compute()
        except ValueError as error:
            outcome[1] = error
    broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


@contextmanager
def whole_while_called(model: torch.nn.Module) -> Iterator[None]:
    """Gather each module's own parameters while it is called, so that the model runs before DeepSpeed has wrapped it.

    ZeRO-3 shards parameters as they are loaded; the hooks that gather them come with the wrapper. All processes must
    call the same modules.
    """
    if not is_deepspeed_zero3_enabled():
        yield
        return
    import deepspeed

    entered: list[deepspeed.zero.GatheredParameters] = []  # one for each call that has not returned

    def gather_own(module: torch.nn.Module, *_: Any) -> None:
        entered.append(deepspeed.zero.GatheredParameters(list(module.parameters(recurse=False))))
        entered[-1].__enter__()

    def release(*_: Any) -> None:
        entered.pop().__exit__(None, None, None)

    with ExitStack() as hooks:
        for module in model.modules():
            hooks.callback(module.register_forward_pre_hook(gather_own).remove)
            hooks.callback(module.register_forward_hook(release, always_call=True).remove)
        yield


def own_part(parameter: torch.Tensor) -> torch.Tensor:
    """This process's part of a parameter: all of it, or its shard under FSDP2 or ZeRO-3."""
    if isinstance(parameter, DTensor):
        return parameter.to_local()
    return getattr(parameter, "ds_tensor", parameter)
