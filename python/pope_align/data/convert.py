"""Converts logs of any format to slates: reads, gathers, filters, samples and splits in one pass, and counts."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from .._extras import require
from .._files import check_output, claim_output, replacing_together, report_path
from .._paths import address, exists
from .assemble import Assembler, OnRecords
from .formats import FORMATS, Format, Source
from .formats.detect import detect, foreign
from .options import SPLITS, ConvertOptions, ConvertReport, SplitBy
from .pairs import PAIRS
from .ranked import RANKED
from .readers import ENDINGS as READ
from .shards import input_files
from .split import group_column
from .streams import COMPRESSED
from .write import ENDINGS, SLATES, RowFormat, Writer

__all__ = ["SPLITS", "ConvertOptions", "ConvertReport", "SplitBy", "To", "convert"]

To = Literal["slates", "preference", "nemo-rl"]

_ROWS: dict[str, RowFormat] = {"slates": SLATES, "preference": PAIRS, "nemo-rl": RANKED}


def convert(
    format: str,
    inputs: Sequence[str | Path],
    output: str | Path,
    options: ConvertOptions | None = None,
    *,
    to: To = "slates",
    overwrite: bool = False,
    progress: OnRecords | None = None,
) -> ConvertReport:
    """Convert files of a known format into slates, preference pairs or ranked completions, in constant memory.

    ``output`` ends in ``.jsonl`` or ``.parquet``; with ``split_by`` it becomes three files, ``NAME.train.ENDING`` and
    so on, which replace older ones together. A report is written next to it, as ``NAME.ENDING.report.json``. Everything
    that can be checked without reading a record is checked first.

    Args:
        format: a name in ``pope_align.data.formats.FORMATS``, or "auto" to detect it from the first records.
        inputs: files, folders of files, globs, or addresses of these (``s3://``, ``gs://``, ``hf://``); or
            ``hub:NAME@SPLIT`` for a dataset of the Hugging Face hub.
        output: the file to write, which may be remote.
        options: see `ConvertOptions`; None for its defaults.
        to: "slates", "preference" for TRL's prompt, chosen and rejected, or "nemo-rl" for NeMo-RL's ranked completions.
        overwrite: whether existing files may be replaced.
        progress: called now and then with the number of records read.

    Raises:
        SlateError: a bad row (unless these are skipped), or a truncated archive.
        ValueError: an unknown format or feedback, an invalid option, an output that cannot be written or exists, no
            slate to keep.
    """
    options = options or ConvertOptions()
    if to not in _ROWS:
        raise ValueError(f"to: expected one of {', '.join(_ROWS)}, got {to!r}")
    paths = _inputs(inputs, options, format)
    kind = _format(format, paths)
    feedback = options.feedback or kind.feedback[0]
    if feedback not in kind.feedback:
        raise ValueError(f"feedback: expected one of {', '.join(kind.feedback)} for {kind.name}, got {feedback!r}")
    _check_mapping(kind, options)
    _check_libraries(kind, Path(output), options)
    report = ConvertReport(kind.name, [str(path) for path in inputs], feedback, options=asdict(options))
    source = Source(
        paths,
        options.skip_bad_rows,
        dict(options.mapping),
        options.sql,
        group_column(options.group),
        foreign(kind, list(FORMATS.values())),
    )
    files = {split: _split_path(Path(output), split) for split in options.files}
    with ExitStack() as stack:
        for path in files.values():
            stack.enter_context(claim_output(path, overwrite=overwrite, endings=ENDINGS, remote=True))
        check_output(report_path(output), overwrite=True, remote=True)  # a report is useless without its file
        *fresh, fresh_report = stack.enter_context(replacing_together([*files.values(), report_path(output)]))
        writing = stack.enter_context(ExitStack())
        writers: dict[str | None, Writer] = {
            split: writing.enter_context(_ROWS[to].write_to(path)) for split, path in zip(files, fresh, strict=True)
        }
        for split, slate in Assembler(kind, feedback, source, options, report, progress).slates():
            writers[split].write(slate)
        report.records_read, report.without_response = source.records_read, source.nothing
        report.without_propensity = source.without_propensity
        report.bad_row_count, report.bad_rows = source.bad_row_count, source.bad_rows
        if not report.slates_kept:
            raise ValueError(_nothing_kept(report, options))
        report.outputs = [str(path) for path in files.values()]
        writing.close()
        report.write(fresh_report)
    return report


def _inputs(inputs: Sequence[str | Path], options: ConvertOptions, format: str) -> list[Path]:
    if options.sql is not None:
        if format != "table" or inputs:
            raise ValueError("sql: expected with the format 'table' and no input files, which the query itself names")
        return []
    if not inputs:
        raise ValueError("inputs: expected at least one file, got none")
    return [path for given in inputs for path in _files_of(given, format)]


def _files_of(given: str | Path, format: str) -> list[Path]:
    """A folder is its files, unless it is an export of Polis."""
    if str(given).startswith("hub:"):
        return [Path(given)]
    if not glob.has_magic(str(given)) and not exists(given):
        raise ValueError(f"inputs: expected a file or folder, got {address(given)!r}, which does not exist")
    if format == "polis" or Path(given, "comments.csv").is_file():
        return [Path(given)]
    return input_files(given, tuple(f"{ending}{packed}" for ending in READ for packed in ("", *COMPRESSED)), "inputs")


def _format(name: str, paths: Sequence[Path]) -> Format:
    if name == "auto":
        return detect(paths, list(FORMATS.values()))
    if name not in FORMATS:
        raise ValueError(f"format: expected auto or one of {', '.join(FORMATS)}, got {name!r}")
    return FORMATS[name]


def _check_mapping(kind: Format, options: ConvertOptions) -> None:
    if unknown := sorted(set(options.mapping) - set(kind.maps)):
        names = f"names among {', '.join(kind.maps)}" if kind.maps else f"none, which {kind.name} has no use for"
        raise ValueError(f"mapping: expected {names}, got {', '.join(unknown)}")


def _check_libraries(kind: Format, output: Path, options: ConvertOptions) -> None:
    """Fail now if a library is missing that is needed only at the end."""
    if kind.scattered or options.sql is not None:
        require("duckdb", extra="train", purpose="to join and group files that may be larger than memory")
    if kind.scattered or output.suffix == ".parquet":
        require("pyarrow", extra="train", purpose="to write Parquet files")
    if options.language is not None:
        require("py3langid", extra="train", purpose="to filter by language")


def _split_path(output: Path, split: str | None) -> Path:
    return output if split is None else output.with_name(f"{output.stem}.{split}{output.suffix}")


def _nothing_kept(report: ConvertReport, options: ConvertOptions) -> str:
    """The message if nothing was kept: what was dropped, and what would help."""
    text = f"input: expected at least one slate to keep, got none; {report.records_read} records read"
    if not report.records_read:
        return f"{text}: nothing stands in {', '.join(report.inputs) or 'the result of the query'}"
    reasons = {**report.slates_dropped, **report.without_response, "bad rows": report.bad_row_count}
    text += "".join(f", {reason}: {count}" for reason, count in reasons.items() if count)
    if any(reason.startswith("no prompt") for reason in report.slates_dropped) and options.missing_prompt is None:
        text += ". Give the file with the items, posts or questions as well, or --missing-prompt 'Item {key}'"
    return text
