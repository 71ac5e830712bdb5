"""What models answered: the row, its file, and the key that joins it to the slate it answers."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .._extras import require
from .._files import replacing, write_text
from ..data.schema import Slate, Turn, text_of


@dataclass(frozen=True, slots=True)
class Generation:
    """The ``n`` answers of one model to one prompt."""

    key: str  # of the slate, see `slate_keys`
    prompt: str | list[Turn]
    texts: list[str]  # [n]
    tokens: list[int] | None = None  # [n] generated tokens, the end-of-turn token included
    finished: list[bool] | None = None  # [n] ended by the model, not by the limit


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

    def __str__(self) -> str:
        answers = [text for row in self.rows for text in row.texts]
        empty = sum(not text.strip() for text in answers)
        cut = sum(not done for row in self.rows for done in row.finished or [])
        return f"{self.model}: {len(self)} prompts, {len(answers)} answers, {empty} empty, {cut} cut at the limit"


def slate_keys(slates: Sequence[Slate]) -> list[str]:
    """One distinct name per slate: its ``slate_id``, else a hash of its prompt; repeats are numbered.

    They do not change when other slates are added, as long as repeats keep their order.
    """
    names = [slate.slate_id or prompt_key(slate.prompt) for slate in slates]
    seen: Counter[str] = Counter()
    keys = []
    for name in names:
        seen[name] += 1
        keys.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return keys


def prompt_key(prompt: str | list[Turn]) -> str:
    """A short hash of a prompt: equal for equal prompts, in whatever slates they stand."""
    return hashlib.sha256(json.dumps(prompt, sort_keys=True).encode()).hexdigest()[:16]


prompt_text = completion_text = text_of


def write_generations(generations: GenerationSet, path: str | os.PathLike[str]) -> None:
    """Write to ``.jsonl`` or ``.parquet`` so that `read_generations` gives an equal set back.

    In JSON lines the first line is ``{"model": ..., "settings": ...}``; in Parquet they are metadata of the file, and
    the prompts must be all text or all turns. The file appears complete or not at all.

    Raises:
        ValueError: the ending is neither of the two, or Parquet prompts of both kinds.
    """
    path = Path(path)
    check_path(path)
    head = {"model": generations.model, "settings": generations.settings}
    rows = [asdict(row) for row in generations.rows]
    if path.suffix == ".jsonl":
        lines = [json.dumps(line, ensure_ascii=False) + "\n" for line in [head, *rows]]
        write_text(path, "".join(lines))
    else:
        pa = require("pyarrow", extra="train", purpose="to write Parquet files")
        parquet = require("pyarrow.parquet", extra="train", purpose="to write Parquet files")
        kinds = {isinstance(row["prompt"], list) for row in rows}
        if len(kinds) > 1:
            raise ValueError("prompt: expected all text or all turns in a Parquet file, got both; write .jsonl instead")
        turns = pa.list_(pa.struct({"role": pa.string(), "content": pa.string()}))
        schema = pa.schema(
            {
                "key": pa.string(),
                "prompt": turns if kinds == {True} else pa.string(),
                "texts": pa.list_(pa.string()),
                "tokens": pa.list_(pa.int64()),
                "finished": pa.list_(pa.bool_()),
            },
            metadata={"pope_generations": json.dumps(head)},
        )
        with replacing(path) as partial:
            parquet.write_table(pa.Table.from_pylist(rows, schema=schema), partial)


def read_generations(path: str | os.PathLike[str], *, model: str | None = None) -> GenerationSet:
    """Read a set of generations, checking every row.

    Rows of another origin are welcome: a ``.jsonl`` or ``.parquet`` file whose rows have ``prompt`` and ``texts`` is
    enough, ``key`` being made from the prompt as `slate_keys` does for slates without an id.

    Args:
        model: name of the model, instead of the one in the file; without either it is the file's name.

    Raises:
        ValueError: not such a file; a row without prompt or texts, or with none of them text; a key that comes twice.
    """
    path = Path(path)
    check_path(path)
    head, rows = _read_jsonl(path) if path.suffix == ".jsonl" else _read_parquet(path)
    seen: Counter[str] = Counter()
    read = []
    for number, row in rows:
        generation = _row(row, f"{path}, row {number}")
        seen[generation.key] += 1
        if seen[generation.key] > 1:
            if row.get("key"):
                raise ValueError(f"{path}, row {number}: key: expected a new one, got {generation.key!r} again")
            generation = Generation(
                f"{generation.key}#{seen[generation.key]}",
                generation.prompt,
                generation.texts,
                generation.tokens,
                generation.finished,
            )
        read.append(generation)
    if not read:
        raise ValueError(f"{path}: expected at least one row of generations, got none")
    return GenerationSet(model or head.get("model") or path.stem, tuple(read), head.get("settings") or {})


def check_path(path: str | os.PathLike[str]) -> None:
    """Refuse a file that is neither JSON lines nor Parquet, before anything is computed for it."""
    if Path(path).suffix not in (".jsonl", ".parquet"):
        raise ValueError(f"path: expected a file ending in .jsonl or .parquet, got {str(path)!r}")


def _read_jsonl(path: Path) -> tuple[Mapping[str, Any], Iterable[tuple[int, Any]]]:
    rows = []
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    rows.append((number, json.loads(line)))
                except (json.JSONDecodeError, UnicodeDecodeError) as error:
                    raise ValueError(f"{path}, row {number}: expected a JSON object, got {error}") from error
    is_head = bool(rows) and isinstance(rows[0][1], Mapping) and "settings" in rows[0][1]
    return (rows[0][1], rows[1:]) if is_head else ({}, rows)


def _read_parquet(path: Path) -> tuple[Mapping[str, Any], Iterable[tuple[int, Any]]]:
    parquet = require("pyarrow.parquet", extra="train", purpose="to read Parquet files")
    table = parquet.read_table(path)
    head = json.loads((table.schema.metadata or {}).get(b"pope_generations", b"{}"))
    return head, enumerate(table.to_pylist(), start=1)


def _row(row: Any, where: str) -> Generation:
    if not isinstance(row, Mapping):
        raise ValueError(f"{where}: expected an object with prompt and texts, got {row!r:.80}")
    prompt, texts = row.get("prompt"), row.get("texts")
    if not isinstance(prompt, str) and not (
        isinstance(prompt, list)
        and prompt
        and all(isinstance(turn, Mapping) and isinstance(turn.get("content"), str) for turn in prompt)
    ):
        raise ValueError(f"{where}: prompt: expected text or a list of turns, got {prompt!r:.80}")
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{where}: texts: expected a list of at least one text, got {texts!r:.80}")
    for name in ("tokens", "finished"):
        if row.get(name) is not None and len(row[name]) != len(texts):
            raise ValueError(f"{where}: {name}: expected {len(texts)} entries, one per text, got {len(row[name])}")
    return Generation(row.get("key") or prompt_key(prompt), prompt, texts, row.get("tokens"), row.get("finished"))
