"""`PopeTrainer`: the POPE objective in the training loop of transformers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.logging import get_logger
from accelerate.utils import send_to_device
from transformers import EarlyStoppingCallback, PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerCallback
from transformers.trainer_utils import EvalLoopOutput, TrainOutput

from .._extras import require
from ..data.collate import SlateCollator
from ..data.rows import Tree
from ..data.schema import Slate
from ..data.tokenize import EncodedSlate
from ..distributed import from_main_process, gather_ragged, own_part, whole_while_called
from ..limits import check_limits
from ..model import check_head, load_model, load_tokenizer
from ..propensity.scoring import score_responses
from ..sharing import sharing_obstacle
from .callbacks import OverlapWatch
from .card import model_card
from .checkpoint import STATE_FILE, last_checkpoint
from .config import PopeConfig
from .examples import (
    IndexedCollator,
    SlateDataset,
    SlateSampler,
    SlateSource,
    fix_template_date,
    num_slates,
    scored_slates,
    slate_dataset,
)
from .policy_loss import ShareOfStep, policy_loss
from .slate_table import SlateTable
from .window import SlateWindow

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel

logger = get_logger(__name__)  # of the main process alone


class PopeTrainer(Trainer):
    """Align a causal language model with logged slates.

    ::

        trainer = PopeTrainer("HuggingFaceTB/SmolLM2-135M-Instruct", PopeConfig("out"), "scored.jsonl")
        trainer.train()

    Hidden states of response tokens go to `pope_core.linear_pope_loss`; no logits of prompts or padding are computed,
    and those of responses take a buffer of a fixed size. The loss of a step is the exact mean over all its slates: a
    micro-batch of 1 accumulated 8 times equals a batch of 8.

    Args:
        model: a causal language model of transformers, a ``PeftModel`` around one, or what `load_model` takes.
        args: the run; see `PopeConfig`.
        train_dataset: scored slates: a list of `Slate`, a `SlateLog`, rows (dicts, a ``datasets.Dataset``) or a file.
        eval_dataset: the same, for evaluation; logged with the prefix ``eval_``.
        processing_class: the tokenizer; by default the one that belongs to the model's name.
        peft_config: put this adapter around the model and train it alone.
        callbacks: of transformers.

    Raises:
        ValueError: slates without ``logging_logprobs``, or whose log-probabilities belong to other tokens; a model
            whose head or logits are not supported; several GPUs in one process.
    """

    args: PopeConfig

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        args: PopeConfig,
        train_dataset: SlateSource,
        eval_dataset: SlateSource | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        peft_config: PeftConfig | None = None,
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
        if args.n_gpu > 1:
            raise ValueError(
                f"args: expected one device per process, got {args.n_gpu} GPUs in one; start a process for each with "
                "`accelerate launch`, or set CUDA_VISIBLE_DEVICES to one of them"
            )
        # Slates are read first: a mistake in the data should not wait for a model to load.
        train_slates = scored_slates("train_dataset", train_dataset)
        eval_slates = None if eval_dataset is None else scored_slates("eval_dataset", eval_dataset)
        _check_sizes(train_slates, args)
        name = model if isinstance(model, str) else model.config.name_or_path
        tokenizer = processing_class or load_tokenizer(name)
        fix_template_date(args, tokenizer, [*train_slates, *(eval_slates or [])])
        train_data = slate_dataset("train_dataset", train_slates, tokenizer, args)
        eval_data = None if eval_slates is None else slate_dataset("eval_dataset", eval_slates, tokenizer, args)
        if isinstance(model, str):
            model = load_model(model, dtype=args.model_dtype)
        trees = []
        for data_name, data in (("train_dataset", train_data), ("eval_dataset", eval_data)):
            of_data = [Tree(slate["prompt_ids"], slate["completion_ids"]) for slate in data.examples] if data else []
            check_limits(model, of_data, name=f"{data_name}: slate")
            trees += of_data
        if args.disable_dropout:
            disable_dropout(model)
        if peft_config is not None:
            model = require("peft", extra="train", purpose="for peft_config").get_peft_model(model, peft_config)
        collator = SlateCollator(_pad_token_id(tokenizer))
        super().__init__(
            model=model,
            args=args,
            data_collator=IndexedCollator(collator),
            train_dataset=train_data,
            eval_dataset=eval_data,
            processing_class=tokenizer,
            callbacks=callbacks,
        )
        self.base_name = name
        # The loss below is already the mean over the accumulation window: keep Trainer from dividing it once more.
        self.model_accepts_loss_kwargs = True
        self.add_callback(OverlapWatch(args.stop_if_ess_below))
        if args.early_stopping_patience is not None:
            self.add_callback(EarlyStoppingCallback(args.early_stopping_patience))
        self.slate_table = SlateTable(self, args.log_slates)
        if args.log_slates > 0 and eval_data is not None:
            self.add_callback(self.slate_table)
        self.train_window = SlateWindow(args.objective)
        self.eval_window = SlateWindow(args.objective)
        with whole_while_called(model):
            share_prompt = from_main_process(lambda: self._shares_prompt(trees))
            if args.kl_weight > 0:
                for data in filter(None, (train_data, eval_data)):
                    data.start_logprobs = from_main_process(partial(self._start_logprobs, data))
        self.data_collator = IndexedCollator(
            replace(collator, share_prompt=share_prompt, max_tokens_per_row=args.max_tokens_per_row)
        )

    def train(self, resume_from_checkpoint: str | bool | None = None, **options: Any) -> TrainOutput:
        """As `transformers.Trainer.train`; ``resume_from_checkpoint`` may be "last".

        Args:
            resume_from_checkpoint: a folder, or "last" (or True): the newest whole checkpoint in ``output_dir``. Where
                there is none, "last" begins from the start and True is an error.
        """
        if resume_from_checkpoint is True or resume_from_checkpoint == "last":
            resume_from_checkpoint = last_checkpoint(self.args.output_dir) or resume_from_checkpoint is True
        return super().train(resume_from_checkpoint, **options)

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, torch.Tensor]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, torch.Tensor]], torch.Tensor | int | None]:
        """The micro-batches of one optimizer step, and the number of slates in those of all processes."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        own = torch.tensor([sum(map(num_slates, batches))], device=device)
        return batches, int(torch.cat(gather_ragged(own)).sum())

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, ShareOfStep]:
        """The share of one micro-batch in the loss of its step; the shares of a step add up to its loss.

        Times the number of processes, over whose gradients DDP and FSDP take the mean.
        """
        window = self.train_window if model.training else self.eval_window
        window.start()
        slates_of_step = None if num_items_in_batch is None else int(num_items_in_batch)
        with self._naming(inputs):
            share = policy_loss(model, inputs, self.args, self.accelerator, slates_of_step)
            if not torch.isfinite(share.value):
                raise ValueError(f"loss: expected a finite number, got {float(share.value)}")
        window.add(share, inputs)
        loss = share.loss if slates_of_step is None else share.loss * self.accelerator.num_processes
        return (loss, share) if return_outputs else loss

    def _prepare_input(self, data: Any) -> Any:
        """To the device. Under DeepSpeed, Trainer would round floats to 16 bits; these are log-probabilities."""
        return send_to_device(data, self.args.device)

    def prediction_step(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[torch.Tensor | None, None, None]:
        """One batch of evaluation; its numbers go to the window, from which `evaluation_loop` takes the metrics."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad():
            loss = self.compute_loss(model, inputs)
        assert isinstance(loss, torch.Tensor)
        return loss, None, None

    def evaluation_loop(
        self,
        dataloader: torch.utils.data.DataLoader[Any],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Evaluation over all slates at once: no metric depends on the batches."""
        self.eval_window = SlateWindow(self.args.objective, self.state.global_step)
        self.evaluated = dataloader.dataset
        devices = [self.args.device] if self.args.device.type == "cuda" else []
        with torch.random.fork_rng(devices):  # training draws the same numbers whether it is evaluated or not
            output = super().evaluation_loop(dataloader, description, True, ignore_keys, metric_key_prefix)
        self.eval_window = self.eval_window.gathered()
        metrics = self.eval_window.metrics(self_normalized=True)
        output.metrics[f"{metric_key_prefix}_loss"] = -metrics["pope/value"]
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in metrics.items()})
        return output

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the metrics of the window to the training logs, and begin the next window."""
        if "loss" in logs:  # neither an evaluation nor the summary at the end
            window = self.train_window.gathered()
            # The loss of all steps in the window, also of those before a checkpoint that the run was resumed from.
            logs["loss"] = window.mean_loss(self.state.global_step)
            logs.update(window.metrics())
            self.train_window = SlateWindow(self.args.objective, self.state.global_step)
        super().log(logs, start_time)

    def create_model_card(self, **options: Any) -> None:
        """``README.md``: data, objective, training, and the held-out estimate with its verdict (see `model_card`)."""
        if self.is_world_process_zero():
            (Path(self.args.output_dir) / "README.md").write_text(model_card(self), encoding="utf-8")

    def _get_train_sampler(self, train_dataset: SlateDataset | None = None) -> SlateSampler:
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return SlateSampler(
            train_dataset or self.train_dataset,
            multiple=self.args.train_batch_size * self.args.world_size,
            seed=seed if self.args.train_sampling_strategy == "random" else None,
            drop_last=self.args.dataloader_drop_last,
        )

    def _get_eval_sampler(self, eval_dataset: SlateDataset) -> SlateSampler:
        return SlateSampler(eval_dataset, multiple=self.args.eval_batch_size * self.args.world_size, seed=None)

    # Trainer calls the next two on every process, after the weights are written and before its own state is; and when
    # the data loader stands where the checkpoint was made.

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        state = {
            "window": self.train_window.state_dict(),
            "data": self.train_dataset.fingerprint(),
            "slates_before": self.slate_table.before,
            "template_date": self.args.template_date,
        }
        torch.save(state, self._state_path(output_dir))
        self.accelerator.wait_for_everyone()  # the state of the trainer then says that all of it is there

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        if checkpoint is None:
            return
        path = self._state_path(checkpoint)
        if not path.exists():
            logger.warning("%s: written by fewer processes or without state; resuming from it is not exact", checkpoint)
            return
        state = torch.load(path, map_location=self.args.device, weights_only=True)
        if state["data"] != self.train_dataset.fingerprint():
            raise ValueError(
                f"resume_from_checkpoint: {checkpoint} was made while training on other slates (or with other "
                "max_length, utility_transform or tokenizer): expected the same ones"
            )
        self.train_window.load_state_dict(state["window"])
        self.slate_table.before = state["slates_before"]

    def _state_path(self, checkpoint: str) -> Path:
        return Path(checkpoint) / STATE_FILE.format(self.args.process_index)

    @contextmanager
    def _naming(self, batch: dict[str, torch.Tensor]) -> Iterator[None]:
        """Errors of the loss say which slates it was computed on."""
        try:
            yield
        except ValueError as error:
            dataset = self.train_dataset if self.model.training else self.evaluated
            assert isinstance(dataset, SlateDataset)
            names = [dataset.name(index) for index in batch["slate_index"].tolist()]
            where = f"step {self.state.global_step + 1}, slates {', '.join(names) or '(none: padding)'}"
            parameters = self.model.named_parameters()
            spoilt = [name for name, weight in parameters if not torch.isfinite(own_part(weight)).all()]
            if spoilt:
                error.args = (
                    f"{error}; {len(spoilt)} parameters ({spoilt[0]}, ...) are no numbers since an earlier step: go "
                    "back to a checkpoint before it, with a lower learning_rate, clip or max_grad_norm",
                )
            raise ValueError(f"{where}: {error}") from error

    def _start_logprobs(self, data: SlateDataset) -> list[list[float]]:
        """Total log-probabilities under the model as it is now; an adapter that was not trained changes nothing."""
        logger.info("kl_weight: computing %d slates under the model before training", len(data))
        slates = [EncodedSlate(example["prompt_ids"], example["completion_ids"]) for example in data.examples]
        return score_responses(slates, self.model)

    def _shares_prompt(self, trees: list[Tree]) -> bool:
        """Whether prompts are computed once per slate; on the way, check that model and head are understood."""
        check_head(self.model, min(trees, key=len))
        if self.args.prompt_sharing == "off" or all(len(tree.response_ids) == 1 for tree in trees):
            return False
        obstacle = sharing_obstacle(self.model, trees, max_tokens_per_row=self.args.max_tokens_per_row)
        if obstacle is not None:
            if self.args.prompt_sharing == "on":
                raise ValueError(f"prompt_sharing: {obstacle}")
            logger.warning("prompt_sharing: off, every response computes its prompt anew: %s", obstacle)
        return obstacle is None


def disable_dropout(model: torch.nn.Module) -> None:
    """Set every dropout probability in ``model`` to 0: of ``nn.Dropout`` modules, and those that layers keep as numbers
    (``attention_dropout`` and the like) for functional dropout.
    """
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def _check_sizes(slates: Sequence[Slate], args: PopeConfig) -> None:
    if args.normalization == "slate" and all(len(slate.completions) == 1 for slate in slates):
        raise ValueError(
            "train_dataset: expected slates of two or more responses with normalization='slate', got only slates of "
            "one, whose weight divides itself out; use normalization='none'"
        )


def _pad_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Any id will do: padding is masked and has no label."""
    for token_id in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if isinstance(token_id, int):
            return token_id
    return 0
