"""A training run in a process of its own, for tests that kill it or start several of it.

    python tests/training_process.py run.json

The JSON is a list of runs: the folder of the model, the slates, the options of `PopeConfig`, how to die, and where the
results go.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any

import torch
from accelerate import DistributedType, PartialState
from pope_align.data import read_slates
from pope_align.training.config import PopeConfig
from pope_align.training.trainer import PopeTrainer
from transformers import TrainerCallback


class DieAfter(TrainerCallback):
    """SIGKILL after an optimizer step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def die_writing(name: str) -> None:
    """SIGKILL half way through the ``torch.save`` that is to become a path that ends with ``name``."""
    save, (folder, file) = torch.save, name.rsplit("/", 1)

    def half(content: Any, path: Any, *rest: Any) -> None:
        save(content, path, *rest)
        if os.path.dirname(path).endswith(folder) and os.path.basename(path).startswith(f".{file.split('.')[0]}."):
            os.truncate(path, os.path.getsize(path) // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    torch.save = half


def shard_on_cpus() -> None:
    """Let accelerate shard over gloo as it does over NCCL: it leaves FSDP out where processes have no accelerator."""
    PartialState().distributed_type = DistributedType.MULTI_GPU


def count_gathers(gathers: list[list[str]]) -> None:
    """Note the parameters of every gathering of FSDP2."""
    from torch.distributed.fsdp._fully_shard import _fsdp_param_group as groups

    gather = groups.foreach_all_gather

    def noted(parameters: Any, *rest: Any, **options: Any) -> Any:
        gathers.append([parameter._param_fqn for parameter in parameters])
        return gather(parameters, *rest, **options)

    groups.foreach_all_gather = noted


def shard_all_the_time(args: PopeConfig) -> None:
    """ZeRO-3 leaves small parameters whole, and larger ones while they are needed soon: all of a small model."""
    thresholds = ("param_persistence_threshold", "max_live_parameters", "max_reuse_distance", "prefetch_bucket_size")
    args.deepspeed_plugin.deepspeed_config["zero_optimization"].update({f"stage3_{name}": 0 for name in thresholds})


def count_gathers_of_zero3(trainer: PopeTrainer, gathers: list[list[str]]) -> None:
    """Note the parameters of every gathering of ZeRO-3."""
    from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator as Coordinator

    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    fetch = Coordinator.fetch_sub_module

    def noted(self: Any, module: torch.nn.Module, forward: bool) -> None:
        missing = [weight for weight in module.parameters(recurse=False) if not weight.numel()]
        if missing and id(missing[0]) in names:  # not of a later run
            gathers.append([names[id(weight)] for weight in missing])
        fetch(self, module, forward)

    Coordinator.fetch_sub_module = noted


def train(run: dict[str, Any]) -> None:
    args = PopeConfig(**run["options"])
    gathers: list[list[str]] = []
    if os.environ.get("ACCELERATE_USE_FSDP"):
        shard_on_cpus()
        count_gathers(gathers)
    zero3 = args.deepspeed_plugin is not None and args.deepspeed_plugin.zero_stage == 3
    if zero3:
        shard_all_the_time(args)
    slates = read_slates(run["slates"])
    if "die_writing" in run:
        die_writing(run["die_writing"])
    trainer = PopeTrainer(
        run["model"],
        args,
        train_dataset=slates,
        eval_dataset=slates if args.do_eval else None,
        callbacks=[DieAfter(run["die_after"])] if "die_after" in run else None,
    )
    if zero3:
        count_gathers_of_zero3(trainer, gathers)
    trainer.train(args.resume_from_checkpoint)
    trainer.save_model(run["saved"])
    if trainer.is_world_process_zero():
        with open(run["history"], "w", encoding="utf-8") as file:
            json.dump({"history": trainer.state.log_history, "gathers": gathers}, file)


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as file:
        runs = json.load(file)
    for run in runs:
        train(run)
    # Everything is written once all are here. On a busy machine the threads of gloo now and then abort the interpreter
    # while it is taken down, which is not what is tested.
    PartialState().wait_for_everyone()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
