"""From logged slates to training batches: examples, their order, and batches that know their slates."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from accelerate.logging import get_logger
from transformers import PreTrainedTokenizerBase

from ..data.collate import ResponseExample, SlateExample
from ..data.schema import Slate
from ..data.tokenize import reads_clock, today
from ..distributed import from_main_process
from ..propensity.logging_policy import check_token_counts
from ..propensity.scores import encode_log
from .checkpoint import checkpoint_date
from .config import SlateConfig
from .options import TrainingTransform
from .utilities import log_transform, utilities_of

logger = get_logger(__name__)  # of the main process alone

#: The index of padding, which fills the last batches of an epoch so that all processes have equal numbers.
PADDING = -1

#: A batch with only padding still runs the model, because other processes wait for it; its loss is multiplied by 0.
_STAND_IN = SlateExample(prompt_ids=[0], completion_ids=[[0]], utility=[0.0], logging_logprobs=[0.0])


#: From the examples of some slates to a batch with the entries of `SlateCollator`'s.
Collator = Callable[[Sequence[SlateExample]], dict[str, Any]]


class Item(NamedTuple):
    """One slate for a data loader; padding has no example."""

    position: int
    example: ResponseExample | None
    start_logprobs: list[float] | None  # [k] TOTAL log-probability under the model before training, nats


@dataclass
class SlateDataset:
    """Examples with their positions, and their slates for errors and tables.

    ``start_logprobs`` is set where a KL penalty, a loss that compares with the start, or early stopping needs it.
    ``lacks_policy`` says that the model before training will score the slates in the place of the logging policy, and
    ``by_start`` that it has.
    """

    examples: Sequence[ResponseExample]
    slates: Sequence[Slate]
    title: str = "slates"  # in errors
    start_logprobs: list[list[float]] | None = None
    epoch: int = 0
    lacks_policy: bool = False
    by_start: bool = False

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Item:
        if index == PADDING:
            return Item(index, None, None if self.start_logprobs is None else [])
        start = None if self.start_logprobs is None else self.start_logprobs[index]
        return Item(index, self.examples[index], start)

    def name(self, index: int) -> str:
        """The id of a slate, or its number."""
        return self.slates[index].slate_id or str(index + 1)

    def utility(self, index: int) -> list[float]:
        """``[k]`` utilities of a slate."""
        return cast(SlateExample, self.examples[index])["utility"]

    def set_policy(self, slates: Sequence[Slate]) -> None:
        """The same slates with the log-probabilities of the logging policy."""
        examples = cast("Sequence[SlateExample]", self.examples)
        for example, slate in zip(examples, slates, strict=True):
            assert slate.logging_logprobs is not None
            example["logging_logprobs"] = slate.logging_logprobs
        self.slates, self.lacks_policy, self.by_start = slates, False, True

    def set_epoch(self, epoch: int) -> None:
        """Called by the data loader of accelerate, which does not always reach the sampler."""
        self.epoch = epoch

    def fingerprint(self) -> str:
        """A hash of all examples, in order; without propensities that were computed here, which may differ in rounding
        where a run is resumed.
        """
        digest = hashlib.sha256()
        for example in self.examples:
            values = {**example, "logging_logprobs": None} if self.by_start else example
            digest.update(repr(list(values.values())).encode())
        return digest.hexdigest()[:32]


class SlateSampler(torch.utils.data.Sampler[int]):
    """An order of slates that depends on the seed and the epoch only.

    It does not depend on a global random state or the number of processes.

    Args:
        multiple: the order is padded to a multiple of this, or cut with ``drop_last``.
        seed: of the shuffle; None keeps the order of the data.
    """

    def __init__(self, dataset: SlateDataset, *, multiple: int, seed: int | None, drop_last: bool = False) -> None:
        self.dataset, self.seed = dataset, seed
        batches = len(dataset) / multiple
        self.length = multiple * (int(batches) if drop_last else -int(-batches // 1))

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        count = len(self.dataset)
        order: Iterable[int] = range(count)
        if self.seed is not None:
            generator = torch.Generator().manual_seed(self.seed + self.dataset.epoch)
            order = torch.randperm(count, generator=generator).tolist()
        return itertools.islice(itertools.chain(order, itertools.repeat(PADDING)), self.length)

    def set_epoch(self, epoch: int) -> None:
        self.dataset.set_epoch(epoch)


@dataclass(frozen=True)
class IndexedCollator:
    """`RowCollator`, `SlateCollator` or a user's collator for items of `SlateDataset`.

    Adds ``slate_index`` ``[S]``, the slates' positions in the data, and ``start_logprobs`` ``[R]``, totals in float64,
    if items have them. Padding is left out; a batch with only padding has a stand-in slate without ``slate_index``.
    """

    collate: Collator

    def __call__(self, items: Sequence[Item]) -> dict[str, Any]:
        real = [item for item in items if item.example is not None]
        examples = cast("list[SlateExample]", [item.example for item in real])
        batch = self.collate(examples or [_STAND_IN])
        batch["slate_index"] = torch.tensor([item.position for item in real], dtype=torch.int64)
        if all(item.start_logprobs is not None for item in items):
            totals = [total for item in real for total in item.start_logprobs or ()] or [0.0]  # of the stand-in
            batch["start_logprobs"] = torch.tensor(totals, dtype=torch.float64)
        return batch


def num_slates(batch: Mapping[str, Any]) -> int:
    """The number of slates of a batch; 0 for a stand-in."""
    return int(batch["slate_index"].shape[0])


def fix_template_date(args: SlateConfig, tokenizer: PreTrainedTokenizerBase, slates: Sequence[Slate]) -> None:
    """Set ``args.template_date`` if a chat template writes today's date and the slates have no date.

    It is the day on which the run in ``output_dir`` began, so that a run resumed after midnight has the same prompts.
    """
    if args.template_date is not None or not reads_clock(tokenizer):
        return
    if not all((slate.logging_policy or {}).get("template_date") for slate in slates):
        args.template_date = from_main_process(lambda: checkpoint_date(args.output_dir) or today())
        logger.info("template_date: %s, which the chat template is given for every slate", args.template_date)


def slate_dataset(
    name: str, slates: Sequence[Slate], tokenizer: PreTrainedTokenizerBase, args: SlateConfig
) -> SlateDataset:
    """Slates as a data set; ``name`` is used in errors and reports."""
    lacks_policy = args.needs_propensities and slates[0].logging_logprobs is None
    return SlateDataset(slate_examples(name, slates, tokenizer, args), slates, name, lacks_policy=lacks_policy)


def slate_examples(
    name: str, slates: Sequence[Slate], tokenizer: PreTrainedTokenizerBase, args: SlateConfig
) -> list[SlateExample]:
    """Tokens, utilities and log-probabilities of slates, ready for `SlateCollator`.

    ``logging_logprobs`` are NaN where a slate has none.

    Args:
        name: of the slates, in errors and reports.

    Raises:
        ValueError: log-probabilities of other tokens than these; a negative utility, where the loss allows none.
    """
    transform = log_transform(name, slates, args.utility_transform)
    encoded = encode_log(slates, tokenizer, max_length=args.max_length, template_date=args.template_date, name=name)
    examples = []
    for number, (slate, ids) in enumerate(zip(slates, encoded, strict=True), start=1):
        place = place_of(name, number, slate)
        if slate.logging_logprobs is not None:
            check_token_counts(slate, ids, place)
        examples.append(
            SlateExample(
                prompt_ids=ids.prompt_ids,
                completion_ids=ids.completion_ids,
                utility=_utility(place, slate, transform, args),
                logging_logprobs=slate.logging_logprobs or [math.nan] * len(slate.scores),
            )
        )
    return examples


def _utility(place: str, slate: Slate, transform: TrainingTransform, args: SlateConfig) -> list[float]:
    utility = utilities_of(slate, transform)
    if args.needs_utility_from_zero and min(utility) < 0:
        raise ValueError(
            f"{place}: scores: expected utilities >= 0, because this loss has no minimum otherwise, got "
            f"{min(utility):g} with utility_transform={transform!r}; use 'minmax', or another method"
        )
    return utility


def place_of(name: str, number: int, slate: Slate) -> str:
    return f"{name}: slate {number}" + (f" ({slate.slate_id})" if slate.slate_id else "")
