"""Logs of any format to slates: read, gathered, filtered, sampled and split in one pass, with everything counted."""

from __future__ import annotations

import hashlib
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from .._extras import require
from .._files import report_path, write_json
from .feedback import age_corrected
from .formats import FORMATS, Format, Source
from .gather import gather
from .merge import content, merge, text_of
from .pairs import pair_writer
from .pieces import Piece, Response
from .schema import Slate, parse_row
from .write import Writer, slate_writer

SplitBy = Literal["slate", "item", "user"]
To = Literal["slates", "preference"]

SPLITS = ("train", "validation", "test")

#: Called with the number of records read so far.
Reading = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class ConvertOptions:
    """What is kept of a log, and in which form.

    Attributes:
        feedback: which of the format's kinds of feedback becomes the score; None for its first.
        min_k, max_k: slates with fewer or more responses are dropped.
        sample_k: of a slate with more responses keep so many, drawn without replacement; the slate's ``origin`` says
            how many there were.
        fraction: share of the slates to keep, decided by their ids.
        seed: of sampling and splits, which go by hashes: the same log gives the same result in any order.
        split_by: write train, validation and test files and keep together a "slate", an "item" (what comes before
            ``#`` in the id), or a "user" (who asked).
        splits: shares of the three.
        min_chars, max_chars: responses that are shorter or longer are dropped.
        language: two-letter code; responses in other languages are dropped (py3langid tells).
        missing_prompt: text, with ``{key}`` where the item's or post's id goes, that stands for a prompt that is not in
            the log; None drops such slates.
        prompt_template: text around the prompt, with ``{prompt}`` where it goes; for prompts that are text.
        age_scale_days, as_of: correct votes for the age of their response (`age_corrected`), seen from the time
            ``as_of`` (seconds since 1970).
        keep_users: copy user identifiers into ``responders`` where the format has nobody else to name.
        mapping: of the table format: slate field to column.
        sql: of the table format: the rows are those of this DuckDB query.
        skip_bad_rows: count bad rows instead of stopping at the first.

    Raises:
        ValueError: an option out of range.
    """

    feedback: str | None = None
    min_k: int = 2
    max_k: int | None = None
    sample_k: int | None = None
    fraction: float = 1.0
    seed: int = 0
    split_by: SplitBy | None = None
    splits: tuple[float, float, float] = (0.8, 0.1, 0.1)
    min_chars: int = 1
    max_chars: int | None = None
    language: str | None = None
    missing_prompt: str | None = None
    prompt_template: str = "{prompt}"
    age_scale_days: float | None = None
    as_of: float | None = None
    keep_users: bool = False
    mapping: dict[str, str] = field(default_factory=dict)
    sql: str | None = None
    skip_bad_rows: bool = False

    def __post_init__(self) -> None:
        for name in ("min_k", "max_k", "sample_k", "min_chars", "max_chars", "age_scale_days"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name}: expected a number > 0, got {value!r}")
        if not 0 < self.fraction <= 1:
            raise ValueError(f"fraction: expected a number in (0, 1], got {self.fraction!r}")
        if self.split_by is not None and self.split_by not in get_args(SplitBy):
            raise ValueError(f"split_by: expected one of {', '.join(get_args(SplitBy))}, got {self.split_by!r}")
        if len(self.splits) != 3 or min(self.splits) < 0 or abs(sum(self.splits) - 1) > 1e-9:
            raise ValueError(f"splits: expected three shares that sum to 1, got {self.splits!r}")
        if self.sample_k is not None and self.sample_k < self.min_k:
            raise ValueError(f"sample_k: expected at least min_k = {self.min_k}, got {self.sample_k}")
        if "{prompt}" not in self.prompt_template:
            raise ValueError(f"prompt_template: expected text with {{prompt}} in it, got {self.prompt_template!r}")
        if (self.age_scale_days is None) != (self.as_of is None):
            raise ValueError("age_scale_days: expected together with as_of, the time of the log; got only one of them")


@dataclass(slots=True)
class ConvertReport:
    """What was read, kept and dropped; every response that was read is kept or counted once in ``dropped``."""

    format: str
    inputs: list[str]
    feedback: str
    records_read: int = 0
    bad_rows: list[str] = field(default_factory=list)
    without_response: Counter[str] = field(default_factory=Counter)  # records by the reason why they hold none
    responses_read: int = 0
    responses_kept: int = 0
    responses_dropped: Counter[str] = field(default_factory=Counter)
    slates_kept: int = 0
    slates_dropped: Counter[str] = field(default_factory=Counter)
    prompts_missing: int = 0  # replaced by missing_prompt
    slates_sampled: int = 0  # kept slates whose responses are a sample
    constant: int = 0  # kept slates whose scores are all equal
    splits: Counter[str] = field(default_factory=Counter)  # slates by file
    options: dict[str, Any] = field(default_factory=dict)

    def drop(self, reason: str, responses: int) -> None:
        """Count a slate that is dropped, with its responses."""
        self.slates_dropped[reason] += 1
        self.responses_dropped[f"of a slate: {reason}"] += responses

    def write(self, path: Path) -> None:
        content = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        write_json(path, content)


def convert(
    format: str,
    inputs: Sequence[str | Path],
    output: str | Path,
    options: ConvertOptions | None = None,
    *,
    to: To = "slates",
    progress: Reading | None = None,
) -> ConvertReport:
    """Convert files of a known format into slates, or into preference pairs, in constant memory.

    ``output`` ends in ``.jsonl`` or ``.parquet``; with ``split_by`` it becomes three files, ``NAME.train.ENDING`` and
    so on. A report is written beside it, as ``NAME.ENDING.report.json``.

    Args:
        format: a name in ``pope_align.data.formats.FORMATS``.
        inputs: files or folders, or ``hub:NAME@SPLIT`` for a dataset of the Hugging Face hub.
        output: where to.
        options: see `ConvertOptions`; None for its defaults.
        to: "slates", or "preference" for TRL's prompt, chosen and rejected.
        progress: called now and then with the number of records read.

    Raises:
        SlateError: a bad row (unless they are skipped), or an archive or array that breaks off.
        ValueError: an unknown format or feedback, an option that does not fit, nothing left to keep.
    """
    options = options or ConvertOptions()
    kind = _format(format)
    feedback = options.feedback or kind.feedback[0]
    if feedback not in kind.feedback:
        raise ValueError(f"feedback: expected one of {', '.join(kind.feedback)} for {format}, got {feedback!r}")
    output = Path(output)
    report = ConvertReport(format, [str(path) for path in inputs], feedback, options=asdict(options))
    with ExitStack() as stack:
        paths = _inputs(inputs, options, kind, stack)
        source = Source(paths, options.skip_bad_rows, dict(options.mapping))
        slates = _slates(kind, source, feedback, options, report, progress)
        make = pair_writer if to == "preference" else slate_writer
        writers: dict[str | None, Writer] = {}
        for split in SPLITS if options.split_by else (None,):
            writers[split] = stack.enter_context(make(_split_path(output, split)))
        for split, slate in slates:
            writers[split].write(slate)
        report.records_read, report.bad_rows = source.records_read, source.bad_rows
        report.without_response = source.nothing
        if not report.slates_kept:
            raise ValueError(f"input: expected at least one slate to keep, got none; {_reasons(report)}")
    report.write(report_path(output))
    return report


def _format(name: str) -> Format:
    if name not in FORMATS:
        raise ValueError(f"format: expected one of {', '.join(FORMATS)}, got {name!r}")
    return FORMATS[name]


def _inputs(inputs: Sequence[str | Path], options: ConvertOptions, kind: Format, stack: ExitStack) -> list[Path]:
    if options.sql is None:
        if not inputs:
            raise ValueError("inputs: expected at least one file, got none")
        return [Path(path) for path in inputs]
    if kind.name != "table" or inputs:
        raise ValueError("sql: expected with the format 'table' and no input files, which the query itself names")
    duckdb = require("duckdb", extra="train", purpose="for sql")
    rows = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pope-sql-")), "query.parquet")
    with duckdb.connect() as connection:
        try:
            connection.execute(f"COPY ({options.sql}) TO '{rows}' (FORMAT parquet)")
        except duckdb.Error as error:
            raise ValueError(f"sql: expected a query that DuckDB can run, got {error}") from error
    return [rows]


def _split_path(output: Path, split: str | None) -> Path:
    return output if split is None else output.with_name(f"{output.stem}.{split}{output.suffix}")


def _reasons(report: ConvertReport) -> str:
    reasons = {**report.slates_dropped, **report.without_response, "bad rows": len(report.bad_rows)}
    return f"{report.records_read} records read, " + ", ".join(f"{reason}: {n}" for reason, n in reasons.items() if n)


# --- from pieces to slates ------------------------------------------------------------------------------------------


def _slates(
    kind: Format,
    source: Source,
    feedback: str,
    options: ConvertOptions,
    report: ConvertReport,
    progress: Reading | None,
) -> Iterator[tuple[str | None, Slate]]:
    pieces = _counted(kind.read(source, feedback), source, report, progress)
    groups: Iterable[list[Piece]] = gather(pieces) if kind.scattered else ([piece] for piece in pieces)
    for group in groups:
        whole, copies = merge(group, kind.repeats)
        report.responses_dropped["blank"] += sum(not text_of(r.completion).strip() for p in group for r in p.responses)
        report.responses_dropped["repeated in its slate"] += copies
        slate = _slate(whole, kind, feedback, options, report)
        if slate is not None:
            split = _split(slate, whole, options)
            report.splits[split or "all"] += 1
            yield split, slate


def _counted(
    pieces: Iterable[Piece], source: Source, report: ConvertReport, progress: Reading | None
) -> Iterator[Piece]:
    for number, piece in enumerate(pieces):
        report.responses_read += len(piece.responses)
        if progress is not None and number % 1000 == 0:
            progress(source.records_read)
        yield piece
    if progress is not None:
        progress(source.records_read)


def _slate(piece: Piece, kind: Format, feedback: str, options: ConvertOptions, report: ConvertReport) -> Slate | None:
    """The slate of one key, or None with the reason counted."""
    if piece.prompt is None and options.missing_prompt is not None:
        piece = replace(piece, prompt=options.missing_prompt.replace("{key}", piece.key))
        report.prompts_missing += 1
    if piece.prompt is None or not content(piece.prompt).strip():
        report.drop("no prompt: its item, post or question is missing", len(piece.responses))
        return None
    if options.fraction < 1 and _unit(options.seed, "fraction", piece.key) >= options.fraction:
        report.drop("not in the fraction", len(piece.responses))
        return None
    responses = [response for response in piece.responses if _wanted(response, options, report)]
    logged = len(responses)
    if logged < options.min_k:
        report.drop(f"fewer than {options.min_k} responses", logged)
        return None
    if options.max_k is not None and logged > options.max_k:
        report.drop(f"more than {options.max_k} responses", logged)
        return None
    if options.sample_k is not None and logged > options.sample_k:
        responses = _sample(piece.key, responses, options)
        report.responses_dropped["not sampled"] += logged - len(responses)
        report.slates_sampled += 1
    slate = _checked(piece, responses, logged, kind, feedback, options)
    report.slates_kept += 1
    report.responses_kept += len(responses)
    report.constant += len(set(slate.scores)) == 1
    return slate


def _wanted(response: Response, options: ConvertOptions, report: ConvertReport) -> bool:
    text = text_of(response.completion)
    if len(text) < options.min_chars:
        reason = f"shorter than {options.min_chars} characters"
    elif options.max_chars is not None and len(text) > options.max_chars:
        reason = f"longer than {options.max_chars} characters"
    elif options.language is not None and _language(text) != options.language:
        reason = f"not in language {options.language}"
    else:
        return True
    report.responses_dropped[reason] += 1
    return False


def _language(text: str) -> str:
    langid = require("py3langid", extra="train", purpose="to filter by language")
    return str(langid.classify(text)[0])


def _sample(key: str, responses: list[Response], options: ConvertOptions) -> list[Response]:
    """A uniform sample without replacement that does not depend on the order of the responses, which it keeps."""
    ranked = sorted(responses, key=lambda response: _unit(options.seed, "sample", key, content(response.completion)))
    kept = {id(response) for response in ranked[: options.sample_k]}
    return [response for response in responses if id(response) in kept]


def _checked(
    piece: Piece, responses: list[Response], logged: int, kind: Format, feedback: str, options: ConvertOptions
) -> Slate:
    origin: dict[str, Any] = {"format": kind.name, "feedback": feedback, "responses": logged}
    if len(responses) < logged:
        origin["sample_seed"] = options.seed
    scores = [response.score for response in responses]
    if options.age_scale_days is not None and options.as_of is not None:
        scores = _corrected(piece.key, responses, options.age_scale_days, options.as_of)
        origin["age_scale_days"] = options.age_scale_days
    prompt = piece.prompt
    if isinstance(prompt, str):
        prompt = options.prompt_template.replace("{prompt}", prompt)
    row = {
        "prompt": prompt,
        "completions": [response.completion for response in responses],
        "scores": scores,
        "logging_logprobs": _all([response.logprob for response in responses]),
        "completion_tokens": _all([response.tokens for response in responses]),
        "ranks": _all([response.rank for response in responses]),
        "slate_id": piece.key,
        "responders": _responders(responses, options),
        "group_scores": _groups(responses),
        "origin": origin,
    }
    if row["logging_logprobs"] is not None:
        row["logging_policy"] = piece.logging_policy
    return parse_row(f"slate {piece.key}", 1, row)


def _corrected(key: str, responses: list[Response], scale_days: float, as_of: float) -> list[float]:
    ages = []
    for index, response in enumerate(responses):
        if response.timestamp is None or response.timestamp > as_of:
            raise ValueError(
                f"as_of: expected a time after every response, and a format with times; slate {key}, "
                f"completions[{index}] has {response.timestamp}"
            )
        ages.append((as_of - response.timestamp) / 86_400)
    return age_corrected([response.score for response in responses], ages, scale=scale_days).tolist()


def _responders(responses: list[Response], options: ConvertOptions) -> list[str] | None:
    names = [response.responder or (response.user if options.keep_users else None) for response in responses]
    return _all(names)


def _groups(responses: list[Response]) -> list[dict[str, float]] | None:
    groups = [response.group_scores for response in responses]
    return [group or {} for group in groups] if any(groups) else None


def _all(values: list[Any]) -> list[Any] | None:
    """A column of a slate: every response has a value, or the slate has none."""
    return None if any(value is None for value in values) else values


def _split(slate: Slate, piece: Piece, options: ConvertOptions) -> str | None:
    if options.split_by is None:
        return None
    group = piece.key if options.split_by == "slate" else piece.key.partition("#")[0]
    if options.split_by == "user":
        if piece.user is None:
            raise ValueError(f"split_by: expected a format that says who asked, got none for slate {piece.key}")
        group = piece.user
    at = _unit(options.seed, "split", group)
    for name, share in zip(SPLITS, options.splits, strict=True):
        if at < share:
            return name
        at -= share
    return SPLITS[-1]


def _unit(seed: int, *names: str) -> float:
    """A number in [0, 1) that follows from names alone."""
    digest = hashlib.sha256("\0".join([str(seed), *names]).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
