"""Generations: the row, its file format, and the key that joins it to a slate."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from glob import has_magic
from pathlib import Path
from typing import Any, TypeGuard

from .._extras import require
from .._files import replacing, write_text
from .._paths import StrPath, address, is_folder, open_binary
from .._text import utf8
from ..data.schema import ERROR, Slate, Turn, text_of
from ..data.shards import input_files


@dataclass(frozen=True, slots=True)
class Propensity:
    """Log-probabilities of one sampled answer in nats, per token and in total.

    ``logging`` is under the distribution that the tokens were drawn from, including temperature, top-k and top-p;
    ``model`` is under the model itself, at temperature 1 without truncation. The end-of-turn token counts if the model
    wrote one; an answer that was cut at the limit has the probability of its tokens.
    """

    logging_logprob: float  # total: the sum over tokens
    model_logprob: float  # total
    token_ids: list[int]  # [t]
    token_logging_logprobs: list[float]  # [t]
    token_model_logprobs: list[float]  # [t]
    candidates: list[int]  # [t] vocabulary entries kept by top-k and top-p; others had probability 0
    exact: bool  # tokenising the text as in training gives the same tokens


@dataclass(frozen=True, slots=True)
class RecordedTotal:
    """The log-probability of one answer under the distribution that an endpoint drew it from."""

    logprob: float  # nats, the sum over tokens
    tokens: int
    ends: bool  # whether the end-of-turn token is one of them


@dataclass(frozen=True, slots=True)
class Generation:
    """The ``n`` answers of one model to one prompt."""

    key: str  # of the slate, see `slate_keys`
    prompt: str | list[Turn]
    texts: list[str]  # [n]
    tokens: list[int] | None = None  # [n] generated tokens, the end-of-turn token included
    finished: list[bool] | None = None  # [n] ended by the model, not at the limit
    propensities: list[Propensity] | None = None  # [n] if recorded
    recorded: list[RecordedTotal | None] | None = None  # [n] by an endpoint; None: its tokens are not those of the text


@dataclass(frozen=True)
class GenerationSet(Sequence[Generation]):
    """The answers of one model, and how they were made."""

    model: str
    rows: tuple[Generation, ...]
    settings: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, index: Any) -> Any:
        return self.rows[index]

    def __len__(self) -> int:
        return len(self.rows)

    def counts(self) -> dict[str, Any]:
        """The numbers of prompts, answers, empty answers and cut answers."""
        answers = [text for row in self.rows for text in row.texts]
        return {
            "model": self.model,
            "prompts": len(self),
            "answers": len(answers),
            "empty": sum(not text.strip() for text in answers),
            "cut": sum(not done for row in self.rows for done in row.finished or []),
        }

    def __str__(self) -> str:
        return "{model}: {prompts} prompts, {answers} answers, {empty} empty, {cut} cut at the limit".format(
            **self.counts()
        )


def slate_keys(slates: Sequence[Slate]) -> list[str]:
    """One distinct name per slate: its ``slate_id``, else a hash of its prompt; repeats are numbered.

    They do not change when slates are added, as long as repeats keep their order.
    """
    names = [slate.slate_id or prompt_key(slate.prompt) for slate in slates]
    seen: Counter[str] = Counter()
    keys = []
    for name in names:
        seen[name] += 1
        keys.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return keys


def prompt_key(prompt: str | list[Turn]) -> str:
    """A short hash of a prompt, equal for equal prompts."""
    return hashlib.sha256(json.dumps(prompt, sort_keys=True).encode()).hexdigest()[:16]


prompt_text = completion_text = text_of


def of_slates(slates: Sequence[Slate], name: str) -> GenerationSet:
    """Logged responses as generations, one row per slate."""
    rows = [
        Generation(key, slate.prompt, list(map(completion_text, slate.completions)))
        for key, slate in zip(slate_keys(slates), slates)
    ]
    return GenerationSet(name, tuple(rows))


def holds_slates(path: str | os.PathLike[str]) -> bool:
    """Whether a file has the column ``completions`` of slates rather than the ``texts`` of generations."""
    path = _files(path)[0]
    check_path(path)
    if path.suffix == ".parquet":
        parquet = require("pyarrow.parquet", extra="train", purpose="to read Parquet files")
        try:
            with open_binary(path) as file:
                return "completions" in parquet.read_schema(file).names
        except ValueError:  # its reader raises the error
            return False
    with open_binary(path) as file:
        first = next((line for line in file if line.strip()), b"")
    try:
        row = json.loads(first)
    except (ValueError, RecursionError):
        return False
    return isinstance(row, Mapping) and "completions" in row


def join_slates(generations: GenerationSet, slates: Sequence[Slate]) -> list[tuple[Generation, int]]:
    """Every generation that belongs to a slate (by key, or by prompt if it comes from elsewhere), with the slate's
    index.
    """
    by_key = {key: index for index, key in enumerate(slate_keys(slates))}
    seen: Counter[str] = Counter()
    for index, slate in enumerate(slates):  # the key that `read_generations` gives to rows without one
        name = prompt_key(slate.prompt)
        seen[name] += 1
        by_key.setdefault(name if seen[name] == 1 else f"{name}#{seen[name]}", index)
    return [(generation, by_key[generation.key]) for generation in generations.rows if generation.key in by_key]


def write_generations(generations: GenerationSet, path: str | os.PathLike[str]) -> None:
    """Write to ``.jsonl`` or ``.parquet``; `read_generations` returns an equal set.

    In JSON lines the first line is ``{"model": ..., "settings": ...}``; in Parquet they are metadata of the file, and
    the prompts must be all text or all turns. The write is atomic.

    Raises:
        ValueError: the ending is neither of the two, or Parquet prompts of both kinds.
    """
    path = Path(path)
    check_path(path)
    head = {"model": generations.model, "settings": generations.settings}
    rows = [{name: value for name, value in asdict(row).items() if value is not None} for row in generations.rows]
    if path.suffix == ".jsonl":
        lines = [json.dumps(line, ensure_ascii=False) + "\n" for line in [head, *rows]]
        write_text(path, "".join(lines))
    else:
        pa = require("pyarrow", extra="train", purpose="to write Parquet files")
        parquet = require("pyarrow.parquet", extra="train", purpose="to write Parquet files")
        schema = pa.schema(generation_schema(pa, rows), metadata={"pope_generations": json.dumps(head)})
        with replacing(path) as partial:
            parquet.write_table(pa.Table.from_pylist(rows, schema=schema), partial)


def generation_schema(pa: Any, rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The columns of a Parquet file of these rows, of which some may have no prompt.

    Raises:
        ValueError: some prompts are text and others turns.
    """
    kinds = {isinstance(row["prompt"], list) for row in rows if row["prompt"] is not None}
    if len(kinds) > 1:
        raise ValueError("prompt: expected all text or all turns in a Parquet file, got both; write .jsonl instead")
    turns = pa.list_(pa.struct({"role": pa.string(), "content": pa.string()}))
    return {
        "key": pa.string(),
        "prompt": turns if kinds == {True} else pa.string(),
        "texts": pa.list_(pa.string()),
        "tokens": pa.list_(pa.int64()),
        "finished": pa.list_(pa.bool_()),
        "propensities": pa.list_(_propensity_type(pa)),
        "recorded": pa.list_(pa.struct({"logprob": pa.float64(), "tokens": pa.int64(), "ends": pa.bool_()})),
    }


def _propensity_type(pa: Any) -> Any:
    numbers, whole = pa.list_(pa.float64()), pa.list_(pa.int64())
    kinds = {"logging_logprob": pa.float64(), "model_logprob": pa.float64(), "token_ids": whole}
    kinds |= {"token_logging_logprobs": numbers, "token_model_logprobs": numbers, "candidates": whole}
    return pa.struct({**kinds, "exact": pa.bool_()})


def read_generations(path: str | os.PathLike[str], *, model: str | None = None) -> GenerationSet:
    """Read a set of generations, checking every row.

    The path is a file, a folder of files of one set, a glob, or an address of one of these (``s3://``, ``gs://``,
    ``hf://``). A row with a text in the column ``error`` is left out. Files from elsewhere work if their rows have
    ``prompt`` and ``texts``; ``key`` is then made from the prompt as in `slate_keys`.

    Args:
        model: name of the model, instead of the one in the file; without either it is the file's name.

    Raises:
        ValueError: an invalid file; a row without valid prompt or texts; a repeated key.
    """
    head: dict[str, Any] = {}
    seen: Counter[str] = Counter()
    read = []
    for file, number, row in _all_rows(_files(path), head):
        if isinstance(row, Mapping) and row.get(ERROR):
            continue
        generation = _row(row, f"{file}, row {number}")
        seen[generation.key] += 1
        if seen[generation.key] > 1:
            if row.get("key"):
                raise ValueError(f"{file}, row {number}: key: expected a new one, got {generation.key!r} again")
            generation = replace(generation, key=f"{generation.key}#{seen[generation.key]}")
        read.append(generation)
    if not read:
        raise ValueError(f"{address(path)}: expected at least one row of generations, got none")
    return GenerationSet(model or head.get("model") or Path(path).stem, tuple(read), head.get("settings") or {})


def check_path(path: str | os.PathLike[str]) -> None:
    """Refuse a file that is neither JSON lines nor Parquet, before anything is computed for it."""
    if Path(path).suffix not in (".jsonl", ".parquet"):
        raise ValueError(f"path: expected a file ending in .jsonl or .parquet, got {str(path)!r}")


def _files(path: StrPath) -> list[Path]:
    """The files that a path of generations stands for."""
    if Path(path).suffix and not is_folder(path) and not has_magic(os.fspath(path)):
        check_path(path)
        return [Path(path)]
    return input_files(path, (".jsonl", ".parquet"))


def _all_rows(files: Sequence[Path], head: dict[str, Any]) -> Iterable[tuple[str, int, Any]]:
    """The rows of all files, with file and number; ``head`` gets the model and settings, which must be the same."""
    for at, path in enumerate(files):
        check_path(path)
        its, rows = _read_jsonl(path) if path.suffix == ".jsonl" else _read_parquet(path)
        _check_head(its, path)
        if at and dict(its) != head:
            raise ValueError(f"{address(path)}: expected the model and settings of {address(files[0])}, got others")
        head.update(its)
        yield from ((address(path), number, row) for number, row in rows)


def _read_jsonl(path: Path) -> tuple[Mapping[str, Any], Iterable[tuple[int, Any]]]:
    rows = []
    with open_binary(path) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    rows.append((number, json.loads(line)))
                except (ValueError, RecursionError) as error:  # also integers of 5,000 digits, and 20,000 brackets
                    raise ValueError(f"{address(path)}, row {number}: expected a JSON object, got {error}") from None
    is_head = bool(rows) and isinstance(rows[0][1], Mapping) and "settings" in rows[0][1]
    return (rows[0][1], rows[1:]) if is_head else ({}, rows)


def _check_head(head: Any, path: Path) -> None:
    """The model and its settings, if the file has them."""
    if not isinstance(head, Mapping) or not isinstance(head.get("settings") or {}, dict):
        raise ValueError(f"{path}: settings: expected an object, got {head!r:.80}")
    if not isinstance(head.get("model") or "", str):
        raise ValueError(f"{path}: model: expected text, got {head['model']!r:.80}")


def _read_parquet(path: Path) -> tuple[Mapping[str, Any], Iterable[tuple[int, Any]]]:
    parquet = require("pyarrow.parquet", extra="train", purpose="to read Parquet files")
    try:
        with open_binary(path) as file:
            table = parquet.read_table(file)
        head = json.loads((table.schema.metadata or {}).get(b"pope_generations", b"{}"))
    except (ValueError, RecursionError) as error:  # pyarrow's errors of content are ValueErrors
        raise ValueError(f"{address(path)}: expected a Parquet file of generations, got {error}") from None
    return head, enumerate(table.to_pylist(), start=1)


def _row(row: Any, where: str) -> Generation:
    if not isinstance(row, Mapping):
        raise ValueError(f"{where}: expected an object with prompt and texts, got {row!r:.80}")
    prompt, texts = row.get("prompt"), row.get("texts")
    if not _is_prompt(prompt):
        raise ValueError(f"{where}: prompt: expected text or a list of turns, got {prompt!r:.80}")
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{where}: texts: expected a list of at least one text, got {texts!r:.80}")
    for index, text in enumerate(texts):
        _check_utf8(text, f"{where}: texts[{index}]")
    key = row.get("key")
    if key is not None and not isinstance(key, str):
        raise ValueError(f"{where}: key: expected text, got {key!r:.80}")
    count = len(texts)
    return Generation(
        key or prompt_key(prompt),
        [{"role": turn["role"], "content": turn["content"]} for turn in prompt] if isinstance(prompt, list) else prompt,
        texts,
        _each(row, "tokens", count, where, "an integer >= 0", _is_count),
        _each(row, "finished", count, where, "true or false", lambda value: isinstance(value, bool)),
        _read_propensities(row, count, where),
        _read_recorded(row, count, where),
    )


def _is_prompt(prompt: Any) -> TypeGuard[str | list[Turn]]:
    return isinstance(prompt, str) or (
        isinstance(prompt, list)
        and bool(prompt)
        and all(
            isinstance(turn, Mapping) and isinstance(turn.get("content"), str) and isinstance(turn.get("role"), str)
            for turn in prompt
        )
    )


def _check_utf8(text: str, where: str) -> None:
    if utf8(text) != text:
        raise ValueError(f"{where}: expected text that UTF-8 can hold, got {text!r:.80}")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _each(
    row: Mapping[str, Any], name: str, count: int, where: str, expected: str, fits: Callable[[Any], bool]
) -> list[Any] | None:
    """An optional column with one entry per text."""
    values = row.get(name)
    if values is None:
        return None
    if not isinstance(values, list):
        raise ValueError(f"{where}: {name}: expected a list of {count}, one per text, got {values!r:.80}")
    if len(values) != count:
        raise ValueError(f"{where}: {name}: expected {count} entries, one per text, got {len(values)}")
    for index, value in enumerate(values):
        if not fits(value):
            raise ValueError(f"{where}: {name}[{index}]: expected {expected}, got {value!r:.80}")
    return values


def _read_propensities(row: Mapping[str, Any], count: int, where: str) -> list[Propensity] | None:
    values = _each(row, "propensities", count, where, "an object", lambda value: isinstance(value, Mapping))
    return values and [_propensity(value, f"{where}: propensities[{index}]") for index, value in enumerate(values)]


def _read_recorded(row: Mapping[str, Any], count: int, where: str) -> list[RecordedTotal | None] | None:
    names = {field.name for field in fields(RecordedTotal)}

    def fits(value: Any) -> bool:
        if value is None:
            return True
        whole = isinstance(value, Mapping) and set(value) == names and _is_count(value["tokens"])
        return whole and _is_number(value["logprob"]) and value["logprob"] <= 0 and isinstance(value["ends"], bool)

    expected = "a total log-probability <= 0, its tokens, and whether it ends"
    values = _each(row, "recorded", count, where, expected, fits)
    return values and [None if value is None else RecordedTotal(**value) for value in values]


def _propensity(value: Mapping[str, Any], where: str) -> Propensity:
    if set(value) != {field.name for field in fields(Propensity)}:
        raise ValueError(f"{where}: expected the fields of a recorded propensity, got {sorted(value)!r:.200}")
    read = Propensity(**value)
    size = len(read.token_ids) if isinstance(read.token_ids, list) else -1
    for name in ("token_logging_logprobs", "token_model_logprobs", "candidates"):
        of_tokens = getattr(read, name)
        if not isinstance(of_tokens, list) or len(of_tokens) != size or not all(map(_is_number, of_tokens)):
            raise ValueError(f"{where}: {name}: expected {size} numbers, one per token, got {of_tokens!r:.80}")
    for total, name in (("logging_logprob", "token_logging_logprobs"), ("model_logprob", "token_model_logprobs")):
        given, expected = getattr(read, total), math.fsum(getattr(read, name))
        if not _is_number(given) or abs(given - expected) > 1e-6 * max(1, abs(expected)):
            raise ValueError(f"{where}: {total}: expected {expected}, the sum over the tokens, got {given!r:.80}")
    return read


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
