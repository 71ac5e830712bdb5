"""Fits a logging policy in the project's training loop: maximum likelihood, stopped on held-out responses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_utils import EvalLoopOutput

from ..data.collate import RowCollator
from ..data.rows import TokenRows
from ..distributed import call_as_forward, gather_ragged, own_part
from ..models.causal_lm import response_logprobs
from ..training.examples import SlateDataset, num_slates
from ..training.slate_trainer import SlateTrainer
from .fit_report import BehaviourConfig, HeldOutScore
from .scoring import OnProgress

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

#: The metric of evaluations.
NATS_PER_TOKEN = "eval_nats_per_token"


class BehaviourTrainer(SlateTrainer):
    """Maximise the likelihood of all responses, with equal token weights; keep the best weights on held-out responses.

    Args:
        model: trained in place.
        config: see `BehaviourConfig`.
        folder: for checkpoints; nothing else is written there.
        save: write a checkpoint at every evaluation, to resume from.
        progress: called with the slates trained on so far and at most.

    Raises:
        ValueError: ``batch_slates`` cannot be divided among the processes; a loss or gradient that is not finite.
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        config: BehaviourConfig,
        folder: str,
        train_data: SlateDataset,
        heldout_data: SlateDataset,
        *,
        save: bool = False,
        template_date: str | None = None,
        progress: OnProgress | None = None,
    ) -> None:
        steps = -(-len(train_data) // config.batch_slates) * config.epochs
        args = TrainingArguments(
            folder,
            learning_rate=config.learning_rate,
            lr_scheduler_type="linear",
            warmup_steps=steps // 10,
            weight_decay=0.0,
            max_grad_norm=1.0,
            optim="adamw_torch",
            num_train_epochs=config.epochs,
            per_device_train_batch_size=config.micro_batch_slates,
            per_device_eval_batch_size=config.micro_batch_slates,
            **({"gradient_checkpointing": True} if config.gradient_checkpointing else {}),
            bf16=config.bf16,
            seed=config.seed,
            use_cpu=next(model.parameters()).device.type == "cpu",
            dataloader_pin_memory=next(model.parameters()).device.type != "cpu",
            remove_unused_columns=False,
            logging_strategy="no",
            save_strategy="no",
            save_total_limit=1,
            report_to="none",
            disable_tqdm=True,
        )
        args.gradient_accumulation_steps = _micro_batches(config, args.world_size)
        self.config = config
        self.template_date = template_date
        self.held_out = HeldOut(self, config, steps, save, progress)
        self.nats, self.tokens = _zero(args.device), 0  # of the training responses since the last evaluation
        self.heldout_nats, self.heldout_tokens = _zero(args.device), 0
        super().__init__(model, args, RowCollator(0), train_data, heldout_data, callbacks=[self.held_out])
        self.remove_callback(PrinterCallback)  # the progress and the report show the same

    def count_items(self, batch: Mapping[str, Any]) -> int:
        """The number of response tokens; all have the same weight in a step."""
        return int(batch["labels"].shape[0]) if num_slates(batch) else 0

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """The contribution of one micro-batch to the loss of its step: its nats divided by the step's response tokens.

        Multiplied by the number of processes, because DDP averages gradients.
        """
        policy = cast("PreTrainedModel", self.accelerator.unwrap_model(model))
        count = self.count_items(inputs)

        def nats_of_batch() -> torch.Tensor:
            with self.accelerator.autocast():
                nats = -response_logprobs(policy, cast(TokenRows, inputs)).sum()
            return nats if count else 0.0 * nats  # padding

        with self.naming(inputs):
            nats = cast(torch.Tensor, call_as_forward(model, policy, nats_of_batch))
            if not torch.isfinite(nats):
                raise self._diverged(f"a loss of {float(nats)}")
        if model.training:
            self.nats, self.tokens = self.nats + nats.detach(), self.tokens + count
        else:
            self.heldout_nats, self.heldout_tokens = self.heldout_nats + nats.detach(), self.heldout_tokens + count
        loss = nats / int(num_items_in_batch or max(count, 1))
        loss = loss * (self.accelerator.num_processes if num_items_in_batch else 1)
        return (loss, nats) if return_outputs else loss

    def evaluation_loop(
        self,
        dataloader: torch.utils.data.DataLoader[Any],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """The cross-entropy of the held-out responses per token, over all processes."""
        self.heldout_nats, self.heldout_tokens = _zero(self.args.device), 0
        output = super().evaluation_loop(dataloader, description, True, ignore_keys, metric_key_prefix)
        output.metrics[NATS_PER_TOKEN] = self._mean(self.heldout_nats, self.heldout_tokens)
        return output

    def train_nats_per_token(self) -> float | None:
        """The mean over the steps since the last call; None without any. To be called on all processes."""
        mean = self._mean(self.nats, self.tokens)
        self.nats, self.tokens = _zero(self.args.device), 0
        return mean

    def own_state(self) -> dict[str, Any]:
        return {"template_date": self.template_date, "held_out": self.held_out.state_dict()}

    def restore_own_state(self, state: Mapping[str, Any]) -> None:
        self.held_out.load_state_dict(state["held_out"])

    def _mean(self, nats: torch.Tensor, tokens: int) -> float | None:
        of_all = torch.stack(gather_ragged(torch.stack([nats, nats.new_tensor(tokens)]))).sum(0)
        return float(of_all[0] / of_all[1]) if of_all[1] else None

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm)
        if norm is not None and not torch.isfinite(torch.as_tensor(norm)):
            raise self._diverged(f"norm {float(norm)}")
        return norm

    def _diverged(self, what: str) -> ValueError:
        return ValueError(
            f"learning_rate: expected finite gradients, got {what} in step {self.state.global_step + 1}; lower it (now "
            f"{self.config.learning_rate:g})"
        )


class HeldOut(TrainerCallback):
    """Evaluates at equal intervals within an epoch, keeps the best weights, and stops when they no longer improve.

    Attributes:
        scores: the first before any step.
        best: index into ``scores``.
    """

    def __init__(
        self, trainer: BehaviourTrainer, config: BehaviourConfig, steps: int, save: bool, progress: OnProgress | None
    ) -> None:
        self.trainer, self.config, self.save = trainer, config, save
        self.progress = progress or (lambda done, of: None)
        self.steps, self.per_epoch = steps, steps // config.epochs
        looks = config.evaluations_per_epoch
        self.marks = {round(part * self.per_epoch / looks) for part in range(1, looks + 1)} - {0}
        self.scores: list[HeldOutScore] = []
        self.best = 0
        self.kept: list[torch.Tensor] = []  # this process's part of the best weights, on the CPU

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any
    ) -> None:
        if state.global_step == 0:
            self.trainer.evaluate()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any) -> None:
        epochs, in_epoch = divmod(state.global_step - 1, self.per_epoch)
        slates = len(cast(SlateDataset, self.trainer.train_dataset))
        seen = min((in_epoch + 1) * self.config.batch_slates, slates)
        self.progress(epochs * slates + seen, slates * self.config.epochs)
        if in_epoch + 1 in self.marks:
            control.should_evaluate = True
            control.should_save = self.save and state.global_step < self.steps

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float],
        **rest: Any,
    ) -> None:
        score = metrics[NATS_PER_TOKEN]
        self.scores.append(HeldOutScore(state.global_step, self.trainer.train_nats_per_token(), score))
        if len(self.scores) == 1 or score < self.scores[self.best].heldout_nats_per_token:
            self.best = len(self.scores) - 1
            self.kept = [own_part(weight).detach().cpu().clone() for weight in self._weights()]
        elif len(self.scores) - 1 - self.best >= self.config.patience:
            control.should_training_stop = True
            control.should_save = False  # a run resumed from an earlier checkpoint stops here again

    def restore_best(self) -> None:
        """Load the best weights into the model."""
        with torch.no_grad():
            for weight, kept in zip(self._weights(), self.kept, strict=True):
                own_part(weight).copy_(kept)

    def state_dict(self) -> dict[str, Any]:
        scores = [(score.step, score.train_nats_per_token, score.heldout_nats_per_token) for score in self.scores]
        return {"scores": scores, "best": self.best, "kept": self.kept}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.scores = [HeldOutScore(*score) for score in state["scores"]]
        self.best, self.kept = state["best"], [weight.cpu() for weight in state["kept"]]

    def _weights(self) -> list[torch.nn.Parameter]:
        return [parameter for parameter in self.trainer.model.parameters() if parameter.requires_grad]


def _micro_batches(config: BehaviourConfig, processes: int) -> int:
    """The number of micro-batches per process and step."""
    together = config.micro_batch_slates * processes
    if config.batch_slates % together:
        raise ValueError(
            f"batch_slates: expected a multiple of micro_batch_slates x processes "
            f"({config.micro_batch_slates} x {processes}), got {config.batch_slates}"
        )
    return config.batch_slates // together


def _zero(device: torch.device) -> torch.Tensor:
    return torch.zeros((), dtype=torch.float64, device=device)
