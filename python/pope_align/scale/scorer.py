"""`pope score` as a step on columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

from ..data.schema import ERROR, FIELDS, Slate
from ..data.tokenize import encode_slates, today
from ..data.write import columns_of, slate_schema
from .columns import ColumnStep, Row, results_of, slates_of


class Scorer(ColumnStep):
    """Log-probabilities of logged responses under the logging policy, for batches of slates.

    The columns of a batch are those of a file of slates. The result adds ``logging_logprobs`` (totals, nats),
    ``completion_tokens``, ``logging_policy`` (JSON text), ``cut_tokens`` (tokens of prompt and responses beyond
    ``max_length``, which were cut) and ``error``. Equivalent, for slates without errors:
    `pope_align.propensity.logging_policy.score_slates`.

    Args:
        model: hub name, folder or GGUF file.
        how, max_length, batch_tokens, template_date, overwrite: as in `score_slates`.
        dtype: of the weights.

    Raises:
        ValueError: an unknown ``how``; a model with the report of a fit that does not go with the other arguments.
    """

    adds = ("logging_logprobs", "completion_tokens", "logging_policy", "cut_tokens", ERROR)

    def __init__(
        self,
        model: str,
        *,
        how: Literal["recorded", "behaviour_cloned", "proxy"],
        max_length: int = 1024,
        batch_tokens: int = 8192,
        dtype: Literal["float32", "bfloat16", "float16", "auto"] = "float32",
        template_date: str | None = None,
        overwrite: bool = False,
    ) -> None:
        from ..propensity.fit_report import FitReport
        from ..propensity.logging_policy import check_how

        self.model, self.how, self.max_length, self.batch_tokens = model, how, max_length, batch_tokens
        self.dtype, self.overwrite = dtype, overwrite
        self.fit = FitReport.read(model) if how == "behaviour_cloned" else None
        self.template_date = check_how(how, self.fit, max_length, template_date)
        self.day = today()

    def settings(self) -> dict[str, Any]:
        """What results depend on."""
        return {
            "step": "score",
            "model": self.model,
            "how": self.how,
            "max_length": self.max_length,
            "batch_tokens": self.batch_tokens,
            "dtype": self.dtype,
            "template_date": self.template_date,
        }

    def process(self, rows: Sequence[Row]) -> list[Row]:
        """The new columns of every row."""
        self.load()
        return results_of(rows, slates_of(rows), self._score, columns_of, dict.fromkeys(FIELDS))

    def schema(self, pa: Any, rows: Sequence[Row]) -> dict[str, Any]:
        """The types of slates, and of the two columns beside them."""
        return {**slate_schema(pa, rows), "cut_tokens": pa.int64(), ERROR: pa.string()}

    @property
    def fingerprint(self) -> str:
        """The hash of the model's weights, once it is loaded."""
        return str(self._loaded.provenance["model_fingerprint"])

    def loaded(self) -> Any:
        """The model on the best device of this process."""
        from ..models.loading import best_device, load_model, load_tokenizer
        from ..propensity.scores import model_provenance

        tokenizer = load_tokenizer(self.model)
        model = load_model(self.model, dtype=self.dtype).to(best_device())
        return _Loaded(model, tokenizer, model_provenance(model, tokenizer, self.max_length))

    def _score(self, slates: list[Slate]) -> list[Row]:
        from ..propensity.logging_policy import fill_in
        from ..propensity.unscored import check_unscored

        if not self.overwrite:
            check_unscored(slates)
        model, tokenizer, provenance = self._loaded
        dated = [_with_day(slate, self.day) for slate in slates]
        encoded, _ = encode_slates(dated, tokenizer, max_length=self.max_length, template_date=self.template_date)
        scored = fill_in(
            slates,
            encoded,
            model,
            tokenizer,
            how=self.how,
            max_length=self.max_length,
            batch_tokens=self.batch_tokens,
            provenance=provenance,
            fit=self.fit,
        )
        cut = [each.prompt_tokens_dropped + sum(each.completion_tokens_dropped) for each in encoded]
        return [{**columns_of(slate), "cut_tokens": tokens} for slate, tokens in zip(scored, cut, strict=True)]


class _Loaded(NamedTuple):
    model: Any
    tokenizer: Any
    provenance: dict[str, Any]


def _with_day(slate: Slate, day: str) -> Slate:
    """The day of the run, for chat templates that write one, where the log has none of its own."""
    policy = slate.logging_policy or {}
    return slate if policy.get("template_date") else replace(slate, logging_policy={**policy, "template_date": day})
