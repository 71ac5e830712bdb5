"""`SlateTrainer`: transformers' training loop on slates, for any loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from accelerate.logging import get_logger
from accelerate.utils import send_to_device
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, EvalLoopOutput, EvalPrediction, TrainOutput

from .._files import named_writes, replacing
from ..data.collate import RowCollator
from ..data.rows import Tree
from ..distributed import from_main_process, gather_ragged, own_part, whole_while_called
from ..models.causal_lm import check_head, compile_body
from ..models.limits import check_limits
from ..models.sharing import sharing_obstacle
from .checkpoint import STATE_FILE, check_checkpoint, last_checkpoint, note_files
from .examples import Collator, IndexedCollator, SlateDataset, SlateSampler
from .options import PromptSharing

if TYPE_CHECKING:
    from peft import PeftModel

logger = get_logger(__name__)  # of the main process alone

#: An optimizer and its scheduler, as `transformers.Trainer` takes them; None for those of the arguments.
Optimizers = tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None]


class SlateTrainer(Trainer):
    """transformers' loop on tokenised slates; `PopeTrainer` and the fit of a logging policy add their losses.

    The order of slates depends on the seed only, prompts are computed once for their responses if the model allows it,
    the loss of a step is divided by the total of its micro-batches, errors name slates, and a killed run resumes
    bit-identically.

    Args:
        model: on any device; a causal language model of transformers, or a ``PeftModel`` around one.
        collator: makes batches of examples. Of a `RowCollator` the trainer sets whether prompts are shared; any other
            function is used as it is.
        train_data: examples for the collator.
        eval_data: the same, or several by name.
        compute_metrics, optimizers: as in `transformers.Trainer`.
        max_tokens_per_row: as in `pope_align.data.lay_out`.

    Raises:
        ValueError: several GPUs in one process; a model whose head or logits are not supported, or that cannot share
            prompts with ``prompt_sharing="on"``; tokens or positions beyond its tables.
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        args: TrainingArguments,
        collator: RowCollator | Collator,
        train_data: SlateDataset,
        eval_data: SlateDataset | dict[str, SlateDataset] | None = None,
        *,
        processing_class: PreTrainedTokenizerBase | None = None,
        compute_metrics: Callable[[EvalPrediction], dict[str, Any]] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: Optimizers = (None, None),
        prompt_sharing: PromptSharing = "auto",
        max_tokens_per_row: int | None = None,
    ) -> None:
        refuse_several_gpus(args)
        trees: list[Tree] = []
        evaluated = eval_data.values() if isinstance(eval_data, dict) else filter(None, [eval_data])
        for data in [train_data, *evaluated]:
            of_data = [Tree(slate["prompt_ids"], slate["completion_ids"]) for slate in data.examples]
            check_limits(model, of_data, name=f"{data.title}: slate")
            trees += of_data
        super().__init__(
            model=model,
            args=args,
            data_collator=IndexedCollator(collator),
            train_dataset=train_data,
            eval_dataset=eval_data,
            processing_class=processing_class,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        # The loss is already that of the accumulation window: Trainer must not divide it again.
        self.model_accepts_loss_kwargs = True
        sharing: PromptSharing = prompt_sharing if isinstance(collator, RowCollator) else "off"
        with whole_while_called(model):
            share_prompt = from_main_process(lambda: shares_prompt(self.model, trees, sharing, max_tokens_per_row))
        if isinstance(collator, RowCollator):
            collator = replace(collator, share_prompt=share_prompt, max_tokens_per_row=max_tokens_per_row)
            self.data_collator = IndexedCollator(collator)
        if args.torch_compile:
            # accelerate compiles the model's own forward, which a loss without logits does not call.
            compile_body(self.model, args.torch_compile_backend, args.torch_compile_mode)

    def count_items(self, batch: Mapping[str, Any]) -> int:
        """The contribution of one micro-batch to the denominator of a step's loss; 0 for a stand-in."""
        raise NotImplementedError

    def own_state(self) -> dict[str, Any]:
        """The state of this process that a checkpoint needs in addition to Trainer's."""
        raise NotImplementedError

    def restore_own_state(self, state: Mapping[str, Any]) -> None:
        """The inverse of `own_state`."""
        raise NotImplementedError

    def unwrapped(self) -> PreTrainedModel | PeftModel:
        """The model without accelerate's wrappers, such as autocast."""
        return cast("PreTrainedModel", self.accelerator.unwrap_model(self.model_wrapped, keep_fp32_wrapper=False))

    def train(self, resume_from_checkpoint: str | bool | None = None, **options: Any) -> TrainOutput:
        """As `transformers.Trainer.train`; ``resume_from_checkpoint`` may be "last".

        Args:
            resume_from_checkpoint: a folder, or "last" (or True): the newest complete checkpoint in ``output_dir``. If
                there is none, "last" starts from scratch and True is an error.

        Raises:
            ValueError: the folder is a damaged checkpoint.
        """
        if resume_from_checkpoint is True or resume_from_checkpoint == "last":
            found = from_main_process(lambda: last_checkpoint(self.args.output_dir))
            resume_from_checkpoint = found or resume_from_checkpoint is True
        elif resume_from_checkpoint:
            folder = resume_from_checkpoint
            from_main_process(lambda: check_checkpoint(folder))
        return super().train(resume_from_checkpoint, **options)

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, Any]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], torch.Tensor | int | None]:
        """The micro-batches of one optimizer step, and their number of items over all processes."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        own = torch.tensor([sum(map(self.count_items, batches))], device=device)
        return batches, int(torch.cat(gather_ragged(own)).sum())

    def prediction_step(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[torch.Tensor | None, None, None]:
        """One evaluation batch; the loss keeps its numbers, from which `evaluation_loop` computes metrics."""
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
        """As Trainer's, without changing the random state of training."""
        self.evaluated = cast(SlateDataset, dataloader.dataset)
        devices = [self.args.device] if self.args.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            return super().evaluation_loop(dataloader, description, True, ignore_keys, metric_key_prefix)

    def _prepare_input(self, data: Any) -> Any:
        """Move to the device; under DeepSpeed Trainer would round log-probabilities to 16 bits."""
        return send_to_device(data, self.args.device)

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

    # Trainer calls the next two on every process: after the weights and before its own state are written, and when the
    # data loader is at the position of the checkpoint.

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        folder = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        with named_writes(Path(str(self.args.output_dir), folder)):
            super()._save_checkpoint(model, trial)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        state = {"data": self.train_dataset.fingerprint(), **self.own_state()}
        with replacing(self._state_path(output_dir)) as partial:
            torch.save(state, partial)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            note_files(output_dir)  # before the trainer's state, which marks the checkpoint as complete

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
        self.restore_own_state(state)

    def _state_path(self, checkpoint: str) -> Path:
        return Path(checkpoint) / STATE_FILE.format(self.args.process_index)

    @contextmanager
    def naming(self, batch: Mapping[str, Any]) -> Iterator[None]:
        """Add the slates to errors of the loss."""
        try:
            yield
        except ValueError as error:
            dataset = self.train_dataset if self.model.training else self.evaluated
            names = [dataset.name(index) for index in batch["slate_index"].tolist()]
            where = f"step {self.state.global_step + 1}, slates {', '.join(names) or '(none: padding)'}"
            parameters = self.model.named_parameters()
            spoilt = [name for name, weight in parameters if not torch.isfinite(own_part(weight)).all()]
            if spoilt:
                error.args = (
                    f"{error}; {len(spoilt)} parameters ({spoilt[0]}, ...) are NaN or infinite since an earlier step: "
                    "go back to a checkpoint before it, with a lower learning_rate, clip or max_grad_norm",
                )
            raise ValueError(f"{where}: {error}") from error


def shares_prompt(
    model: PreTrainedModel | PeftModel, trees: list[Tree], prompt_sharing: PromptSharing, max_tokens_per_row: int | None
) -> bool:
    """Decide whether prompts are computed once per slate; also check that model and head are supported.

    Raises:
        ValueError: a head or logits that are not supported; "on" for a model that does not allow it.
    """
    check_head(model, min(trees, key=len))
    if prompt_sharing == "off" or all(len(tree.response_ids) == 1 for tree in trees):
        return False
    obstacle = sharing_obstacle(model, trees, max_tokens_per_row=max_tokens_per_row)
    if obstacle is not None:
        if prompt_sharing == "on":
            raise ValueError(f"prompt_sharing: {obstacle}")
        logger.warning("prompt_sharing: off, every response computes its prompt again: %s", obstacle)
    return obstacle is None


def pad_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Any id works: padding is masked and has no label."""
    for token_id in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if isinstance(token_id, int):
            return token_id
    return 0


def refuse_several_gpus(args: TrainingArguments) -> None:
    """Refuse ``DataParallel``, which would split batches along their first dimension."""
    if args.n_gpu > 1:
        raise ValueError(
            f"args: expected one device per process, got {args.n_gpu} GPUs in one; start a process for each with "
            "`accelerate launch`, or set CUDA_VISIBLE_DEVICES to one of them"
        )
