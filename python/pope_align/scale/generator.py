"""`pope generate` as a step on columns."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

from ..data.schema import ERROR, Slate
from ..data.tokenize import today
from ..generation.generations import Generation, generation_schema, prompt_key
from ..generation.sampling import Sampling
from .columns import WHERE, ColumnStep, Row, results_of, slates_of


class Generator(ColumnStep):
    """Answers of a model to the prompts of slates.

    The columns of a batch are those of a file of slates; those of the result are ``key``, ``prompt``, ``texts``,
    ``tokens``, ``finished``, ``propensities`` and ``error``, as in a file of generations. Equivalent:
    `pope_align.generation.generate.generate_for_slates`. The seed of an answer comes from ``seed``, the ``slate_id``
    and the answer's number; without a ``slate_id``, from the prompt and the place of its row, if there is a column
    ``where`` with it (else equal prompts of different batches get equal answers).

    Args:
        model: hub name, folder or GGUF file.
        name: the model's name in tables and figures; default: the last part of ``model``.
        n: answers per prompt.
        sampling, seed: as in `generate_for_slates`; None: `Sampling()`.
        adapter: folder of an adapter for the model.
        batch_size, logprobs, template_date: as in `TransformersEngine`.
        dtype: of the weights.
    """

    adds = ("key", "prompt", "texts", "tokens", "finished", "propensities", ERROR)

    def __init__(
        self,
        model: str,
        *,
        name: str | None = None,
        n: int = 10,
        sampling: Sampling | None = None,
        seed: int = 0,
        adapter: str | None = None,
        batch_size: int = 16,
        dtype: Literal["float32", "bfloat16", "float16", "auto"] = "float32",
        logprobs: bool = False,
        template_date: str | None = None,
    ) -> None:
        if n < 1:
            raise ValueError(f"n: expected an integer >= 1, got {n}")
        sampling = sampling or Sampling()
        if logprobs:
            sampling.check_logprobs()
        self.model, self.name, self.n, self.sampling, self.seed = model, name or Path(model).stem, n, sampling, seed
        self.adapter, self.batch_size, self.dtype, self.logprobs = adapter, batch_size, dtype, logprobs
        self.template_date = template_date
        self.day = today()

    def __call__(self, batch: Any) -> dict[str, list[Any]]:
        """The generations of a batch, with the same rows in the same order."""
        result = super().__call__(batch)
        return {name: result[name] for name in self.adds}

    def settings(self) -> dict[str, Any]:
        """What results depend on."""
        return {
            "step": "generate",
            "model": self.model,
            "name": self.name,
            "n": self.n,
            "sampling": asdict(self.sampling),
            "seed": self.seed,
            "adapter": self.adapter,
            "dtype": self.dtype,
            "logprobs": self.logprobs,
            "template_date": self.template_date,
        }

    def process(self, rows: Sequence[Row]) -> list[Row]:
        """The generations of every row."""
        self.load()
        found = slates_of(rows)
        wheres = {id(slate): row.get(WHERE) for row, slate in zip(rows, found, strict=True)}

        def answer(slates: list[Slate]) -> list[Row]:
            return self._answer(slates, [wheres[id(slate)] for slate in slates])

        return results_of(rows, found, answer, lambda slate: {"prompt": slate.prompt}, {"prompt": None})

    def schema(self, pa: Any, rows: Sequence[Row]) -> dict[str, Any]:
        """The types of a file of generations, and of ``error``."""
        return {**generation_schema(pa, rows), ERROR: pa.string()}

    def metadata(self) -> dict[str, str]:
        """The model and the settings, as in a file of generations."""
        settings = {**self._loaded.about, "sampling": asdict(self.sampling), "seed": self.seed, "n": self.n}
        return {"pope_generations": json.dumps({"model": self.name, "settings": settings})}

    @property
    def fingerprint(self) -> str:
        """The hash of the model's weights, once it is loaded."""
        return str(self._loaded.about["model_fingerprint"])

    def loaded(self) -> Any:
        """The engine on the best device of this process."""
        from ..generation.generate import load_engine

        return load_engine(
            self.model,
            adapter=self.adapter,
            dtype=self.dtype,
            batch_size=self.batch_size,
            logprobs=self.logprobs,
            template_date=self.template_date or self.day,
        )

    def _answer(self, slates: list[Slate], wheres: list[str | None]) -> list[Row]:
        from ..generation.generate import generate_for_slates

        named = [
            replace(slate, slate_id=slate.slate_id or prompt_key(slate.prompt) + (f"@{where}" if where else ""))
            for slate, where in zip(slates, wheres, strict=True)
        ]
        made = generate_for_slates(
            self._loaded, named, name=self.name, n=self.n, sampling=self.sampling, seed=self.seed
        )
        return [_columns(row, slate) for row, slate in zip(made.rows, slates, strict=True)]


def _columns(generation: Generation, slate: Slate) -> Row:
    """Without a ``slate_id`` there is no key: whoever reads all shards numbers equal prompts over all of them."""
    row = asdict(generation)
    return row if slate.slate_id else {**row, "key": None}
