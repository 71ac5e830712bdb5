"""Reading other people's files: what is taken, what is refused with file and line, and how much it may cost."""

from __future__ import annotations

import json
import lzma
import os
import threading
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from pope_align.data import SlateError, read_slates
from pope_align.data import streams as streams_module
from pope_align.data.checks import as_integer, as_number
from pope_align.data.convert import ConvertOptions, ConvertReport, convert
from pope_align.data.formats import FORMATS
from pope_align.data.markup import html_to_text, unescaped
from pope_align.data.readers import read_records
from pope_align.data.records import Record

GOOD = {"prompt": "Which pen?", "completion": "Blue", "score": 1}
OTHER = {"prompt": "Which pen?", "completion": "Red", "score": 0}


def lines(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def converted(kind: str, path: Path, **options: Any) -> tuple[ConvertReport, list[Any]]:
    out = path.with_name("out.jsonl")
    report = convert(kind, [path], out, ConvertOptions(**options), overwrite=True)
    return report, list(read_slates(out))


# --- bad rows: each is named by file and line, and can be skipped -----------------------------------------------------

TURN = {"role": "assistant", "content": "y"}
PAIR = {"prompt": "Which tea?", "chosen": "Green", "rejected": "Black"}
BAD_PAIRS: dict[str, Any] = {
    "surrogate in a response": {**PAIR, "chosen": "Green \ud83d"},
    "surrogate in the prompt": {**PAIR, "prompt": "tea \ud83d?"},
    "role": {**PAIR, "chosen": [{"role": "user", "content": "x"}], "rejected": [TURN]},
    "text beside turns": {**PAIR, "rejected": [TURN]},
    "a turn with more": {**PAIR, "prompt": [{"role": "user", "content": "?", "name": "n"}]},
    "type": {**PAIR, "rejected": 7},
    "deep": '{"prompt": ' + "[" * 200_000,
    "deep and whole": '{"prompt": ' + "[" * 20_000 + "]" * 20_000 + "}",
    "digits": '{"prompt": "q", "score_chosen": ' + "9" * 5_000 + "}",
    "401 digits": {**PAIR, "score_chosen": 10**401, "score_rejected": 1},
    "twice": '{"prompt": "q", "prompt": "r", "chosen": "a", "rejected": "b"}',
    "not UTF-8": '{"prompt": "\udcff"}',
    "an array": "[1]",
}


@pytest.mark.parametrize("bad", BAD_PAIRS.values(), ids=list(BAD_PAIRS))
def test_a_bad_row_is_named_and_can_be_skipped(bad: Any, tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    text = [row if isinstance(row, str) else json.dumps(row) for row in (PAIR, bad, {**PAIR, "prompt": "Which pen?"})]
    path.write_bytes("".join(line + "\n" for line in text).encode("utf-8", "surrogateescape"))
    with pytest.raises(SlateError, match=r"in\.jsonl, row 2: ") as caught:
        converted("preference", path)
    assert (caught.value.source, caught.value.row) == (str(path), 2)
    report, slates = converted("preference", path, skip_bad_rows=True)
    assert (report.bad_row_count, report.records_read, len(slates)) == (1, 3, 2)
    assert report.bad_rows[0].startswith(f"{path}, row 2: ")


BAD_ANSWERS: dict[str, dict[str, Any]] = {
    "key": {"key": "\ud83d"},
    "tokens of zero": {"completion_tokens": 0, "logging_logprob": -1.0},
    "tokens in parts": {"completion_tokens": "2.9", "logging_logprob": -1.0},
    "underscore": {"score": "1_000"},
    "many digits": {"score": "9" * 401},
    "log-probability": {"logging_logprob": 0.5},
    "responder": {"responder": "\ud83d"},
    "time": {"timestamp": "yesterday"},
    "group": {"group": "\ud83d"},
    "turns where others are text": {"completion": [TURN]},
}


@pytest.mark.parametrize("change", BAD_ANSWERS.values(), ids=list(BAD_ANSWERS))
def test_a_bad_answer_of_a_slate_is_skipped_and_the_others_stay(change: dict[str, Any], tmp_path: Path) -> None:
    """Checks that fail when a slate is put together name the answer's own row."""
    rows = [{**row, "key": "k"} for row in (GOOD, OTHER)]
    path = lines(tmp_path / "in.jsonl", *rows, {**GOOD, "key": "k", "completion": "Green", **change})
    with pytest.raises(SlateError, match=r"in\.jsonl, row 3: "):
        converted("table", path)
    report, (slate,) = converted("table", path, skip_bad_rows=True)
    assert slate.completions == ["Blue", "Red"]
    assert report.bad_row_count == 1
    assert "in.jsonl, row 3: " in report.bad_rows[0]
    assert report.responses_read == report.responses_kept + sum(report.responses_dropped.values())


def test_what_an_option_asks_of_a_row_is_a_check_like_any_other(tmp_path: Path) -> None:
    rows = [{**GOOD, "timestamp": 0, "user": "u"}, {**OTHER, "timestamp": 9e9}, {**OTHER, "completion": "Green"}]
    path = lines(tmp_path / "in.jsonl", *rows, {**OTHER, "completion": "Grey", "timestamp": "1970-01-02"})
    with pytest.raises(SlateError, match="expected a time before as_of, 1000000, got 9000000000"):
        converted("table", path, age_scale_days=1.0, as_of=1e6)
    report, (slate,) = converted("table", path, age_scale_days=1.0, as_of=1e6, skip_bad_rows=True)
    assert (report.bad_row_count, slate.completions) == (2, ["Blue", "Grey"])
    with pytest.raises(ValueError, match="at least one slate to keep, got none; 4 records read, a bad row: 1"):
        converted("table", path, split_by="user", skip_bad_rows=True)


def test_ratings_so_large_that_their_sum_is_none_are_averaged(tmp_path: Path) -> None:
    rows = [{**PAIR, "score_chosen": 1.5e308, "score_rejected": 0}] * 2
    _, (slate,) = converted("preference", lines(tmp_path / "in.jsonl", *rows))
    assert slate.scores == [1.5e308, 0]


def test_of_very_many_bad_rows_a_thousand_messages_are_kept_and_all_are_counted(tmp_path: Path) -> None:
    path = lines(tmp_path / "in.jsonl", PAIR, *["x"] * 3_000)
    report, _ = converted("preference", path, skip_bad_rows=True)
    assert (report.bad_row_count, len(report.bad_rows), report.records_read) == (3_000, 1_000, 3_001)


# --- what people's tools write is taken -------------------------------------------------------------------------------


def test_null_is_absent_everywhere(tmp_path: Path) -> None:
    nulls = {"tool_calls": None, "name": None}
    turns = {"prompt": [{"role": "user", "content": "Name a fruit.", **nulls}]}
    row = {
        **turns,
        "chosen": [{**TURN, **nulls}],
        "rejected": [{**TURN, "content": "z", **nulls}],
        "score_chosen": None,
    }
    _, (slate,) = converted("preference", lines(tmp_path / "in.jsonl", row))
    assert slate.prompt == [{"role": "user", "content": "Name a fruit."}]
    assert slate.completions == [[TURN], [{**TURN, "content": "z"}]]
    rows = [{"prompt": "q", "completions": ["a", "b"], "scores": [1, 0], "group_scores": [{"y": 1.0}, {"o": 0.5}]}]
    assert read_slates(datasets.Dataset.from_list(rows))[0].group_scores == read_slates(rows)[0].group_scores


def test_whole_conversations_beside_a_prompt_are_read_as_trl_reads_them(tmp_path: Path) -> None:
    trl = pytest.importorskip("trl.data_utils")
    asked = {"role": "user", "content": "Name a warm colour."}
    sides = {"chosen": [asked, {**TURN, "content": "Red."}], "rejected": [asked, {**TURN, "content": "Blue."}]}
    row = {"prompt": asked["content"], **sides, "score_chosen": 8.0, "score_rejected": 3.5}
    _, (slate,) = converted("preference", lines(tmp_path / "in.jsonl", row))
    read = trl.maybe_extract_prompt(dict(row))
    assert (slate.prompt, slate.completions) == (read["prompt"], [read["chosen"], read["rejected"]])
    assert slate.scores == [8.0, 3.5]


SQL = """
SELECT 'q' AS prompt, col0 AS completion, col1::{type} AS score, uuid() AS responder,
       DATE '2020-01-02' AS "timestamp", 170141183460469231731687303715884105727::HUGEINT AS key, true AS "group"
FROM (VALUES ('a', 1), ('b', 0))
"""


@pytest.mark.parametrize("type", ["DECIMAL(10, 2)", "BOOLEAN", "HUGEINT", "TINYINT", "DOUBLE", "VARCHAR"])
def test_columns_of_a_query_are_taken_whatever_their_types(type: str, tmp_path: Path) -> None:
    options = ConvertOptions(sql=SQL.format(type=type), age_scale_days=1.0, as_of=1577923200.0 + 86_400)
    convert("table", [], tmp_path / "out.jsonl", options)
    (slate,) = read_slates(tmp_path / "out.jsonl")
    assert [score > 0 for score in slate.scores] == [True, False]
    assert slate.slate_id == "170141183460469231731687303715884105727"
    assert all(len(name) == 36 for name in slate.responders)


def test_typed_columns_of_parquet_are_taken(tmp_path: Path) -> None:
    columns = {
        "prompt": ["q", "q"],
        "completion": ["a", "b"],
        "score": pa.array([Decimal("1.50"), Decimal("0.25")], pa.decimal128(5, 2)),
        "key": pa.array([12.0, 12.0]),  # as pandas writes integers with gaps
        "timestamp": pa.array([0, 86_400_000_000], pa.timestamp("us")),
    }
    pq.write_table(pa.table(columns), tmp_path / "in.parquet")
    _, (slate,) = converted("table", tmp_path / "in.parquet", age_scale_days=1.0, as_of=2 * 86_400.0)
    assert slate.slate_id == "12"
    assert slate.scores == pytest.approx([1.5 / (1 - 2.718281828**-2), 0.25 / (1 - 2.718281828**-1)])


def test_a_table_of_pandas_has_labels_and_blank_answers(tmp_path: Path) -> None:
    (tmp_path / "kto.csv").write_text("prompt,completion,label\nq,a,True\nq,b,False\n")
    assert converted("unpaired", tmp_path / "kto.csv")[1][0].scores == [1, 0]
    (tmp_path / "in.csv").write_text("prompt,completion,score,group\nq,a,1,\nq,,2,\nq,b,3,\n")
    report, (slate,) = converted("table", tmp_path / "in.csv")
    assert (slate.completions, report.responses_dropped["blank"]) == (["a", "b"], 1)


# --- tables: refused by line ------------------------------------------------------------------------------------------

HEAD = "prompt,completion,score\nq,a,1\n"
TABLES: dict[str, tuple[str, str]] = {
    "quote to the end": (HEAD + 'q,"b,2\nq,c,3\n', r"row 3: row: expected a closing quote, got none .* \(line 4\)"),
    "text after a quote": (HEAD + 'q,"b"x,2\n', "row 3: row: expected CSV with quotes in their places"),
    "cut off": (HEAD + "q,b\n", "row 3: row: expected 3 columns, got 2"),
    "not UTF-8": (HEAD + "q,\udcff,2\n", "row 3: row: expected CSV in UTF-8"),
    "thousands": (HEAD + "q,b,1_000\n", "row 3: score: expected a finite number, got '1_000'"),
    "a blank number": (HEAD + "q,b,\n", r"row 3: score: expected a value \(it is required\)"),
}


@pytest.mark.parametrize(("text", "told"), TABLES.values(), ids=list(TABLES))
def test_a_bad_line_of_a_table_is_named_and_can_be_skipped(text: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(SlateError, match=told):
        converted("table", path)
    report, _ = converted("table", path, skip_bad_rows=True, min_k=1)
    assert report.bad_row_count == 1
    assert report.responses_kept == 1


def test_columns_must_be_there_and_once(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("prompt,prompt,completion,score\nq,q,a,1\n")
    with pytest.raises(SlateError, match=r"row 1: header: expected every column once, got 'prompt' twice"):
        converted("table", tmp_path / "in.csv")
    (tmp_path / "in.csv").write_text("question,completion,score\nq,a,1\n")
    with pytest.raises(SlateError, match=r"prompt: .* \(columns here: question, completion, score; --map prompt="):
        converted("table", tmp_path / "in.csv")


def test_numbers_are_spelled_as_numbers() -> None:
    assert [as_number(v) for v in (1, "2.5", " 3 ", "1e3", "-.5", Decimal(2))[:5]] == [1, 2.5, 3, 1000, -0.5]
    bad = (
        "1_000",
        "1,000",
        "inf",
        "nan",
        "",
        "0x10",
        "\uff19",
        True,
        None,
        [],
        10**401,
        "9" * 30_000 + "x",
        float("nan"),
    )
    assert [value for value in bad if as_number(value) is not None] == []
    assert [as_integer(v) for v in (3, "3", 3.0, "3.0", "-4", 2**70)] == [3, 3, 3, 3, -4, 2**70]
    assert [v for v in (2.9, "2.9", True, "1_0", "", None, float("inf"), 1e300) if as_integer(v) is not None] == []


# --- formats ----------------------------------------------------------------------------------------------------------


def test_texts_that_reddit_took_away_are_no_texts(tmp_path: Path) -> None:
    posts = [
        {"id": "p1", "title": "[deleted by user]", "selftext": ""},
        {"id": "p2", "title": "Which tea?", "selftext": "[ Removed by Reddit ]"},
        {"id": "p3", "title": "Which tea?", "selftext": ""},
    ]
    comments = [
        ("p3", "Green."),
        ("p3", "Black."),
        ("p3", "[ Removed by Reddit ]"),
        ("p3", "[removed]"),
        ("p1", "Yes."),
    ]
    rows = [{"id": f"c{i}", "parent_id": f"t3_{p}", "body": b, "score": i} for i, (p, b) in enumerate(comments)]
    report, (slate,) = converted("reddit", lines(tmp_path / "in.jsonl", *posts, *rows))
    assert slate.completions == ["Green.", "Black."]
    assert report.without_response == {"deleted or removed submission": 2, "deleted or removed comment": 2}


def test_comments_of_2023_are_joined_with_their_post(tmp_path: Path) -> None:
    post = {"id": "abd", "title": "Which tea?", "selftext": ""}
    root = {"parent_id": None, "link_id": "t3_abd", "score": 4}
    reply = {"id": "c3", "parent_id": 41497293111, "link_id": "t3_abd", "body": "Why green?", "score": 1}
    rows = [{"id": 7, "body": "Green.", **root}, {"id": "c2", "body": "Black.", **root}, reply]
    report, (slate,) = converted("reddit", lines(tmp_path / "in.jsonl", post, *rows))
    assert slate.completions == ["Green.", "Black."]
    assert report.without_response == {"reply to a comment": 1}
    assert slate.responders[0] == "reddit.com/comments/abd/_/7"


def test_page_script_is_no_title(tmp_path: Path) -> None:
    script = '<span class="x">var aPageStart = (new Date()).getTime();\nvar ue_t0=ue_t0||+new Date();</span>'
    item = {"asin": "B1", "title": script, "description": []}
    reviews = [{"asin": "B1", "reviewerID": f"u{i}", "reviewText": f"Cup {i}.", "overall": 5.0} for i in range(2)]
    path = lines(tmp_path / "in.jsonl", item, *reviews)
    with pytest.raises(ValueError, match=r"item without title.*: 1\. Give the file with the items.*--missing-prompt"):
        converted("amazon-2018", path)
    lines(path, {**item, "description": ["A cup."]}, *reviews)
    assert converted("amazon-2018", path)[1][0].prompt == "A cup."


FIXTURES = Path(__file__).parent / "formats"
#: Formats that ask for a choice before they read.
NEEDED: dict[str, Any] = {
    "otel": {"mapping": {"score": "thumb"}},
    "inspect": {"mapping": {"score": "includes"}},
    "lm-eval": {"mapping": {"filter": "none"}},
    "tinker": {"mapping": {"tokenizer": str(FIXTURES.parent / "golden" / "chatml")}},
}


def inputs(name: str) -> list[Path]:
    folder = FIXTURES / name
    if name == "polis":
        return sorted(folder.iterdir())
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "table"])  # whose columns are anything
def test_a_format_is_told_from_its_records(name: str, tmp_path: Path) -> None:
    options = ConvertOptions(min_k=1, **NEEDED.get(name, {}))
    report = convert("auto", inputs(name), tmp_path / "out.jsonl", options)
    assert report.format == name


@pytest.mark.parametrize("name", [name for name in FORMATS if name not in ("polis", "table")])
def test_records_of_another_format_are_refused_and_the_right_one_is_named(name: str, tmp_path: Path) -> None:
    """Every format's records as every other's: refused, or read because its fields are there as well."""
    for other in FORMATS.values():
        if other.name in (name, "polis", "table"):
            continue
        for path in inputs(name):
            for record in read_records(path):
                if isinstance(record, SlateError):
                    continue
                fields = frozenset(field for field, value in record.values.items() if value is not None)
                right, wrong = FORMATS[name].mark(fields), other.mark(fields)
                if not right > wrong or not FORMATS[name].looks(record.values):
                    continue
                one = lines(tmp_path / "one.jsonl", record.values)
                with pytest.raises(SlateError, match=rf"expected a record of {other.name}, .*--from {name}"):
                    converted(other.name, one, **NEEDED.get(other.name, {}))


def test_a_review_of_2014_read_as_one_of_2018_would_lose_its_votes(tmp_path: Path) -> None:
    review = {"asin": "B1", "reviewerID": "u", "reviewText": "Good.", "overall": 5.0, "helpful": [3, 5]}
    path = lines(tmp_path / "in.json", review)
    with pytest.raises(SlateError, match=r"expected a record of amazon-2018, got one with .*--from amazon-2014"):
        converted("amazon-2018", path)
    with pytest.raises(ValueError, match=r"missing_prompt: expected no placeholder but \{key\}, got \{id\}"):
        converted("amazon-2014", path, missing_prompt="Movie {id}")


# --- HTML -------------------------------------------------------------------------------------------------------------

HTML = {
    "code": ("<p>So:</p>\n<pre><code>    if x:\n\n        y\n</code></pre><p>z", "So:\n\n    if x:\n\n        y\n\nz"),
    "code first": ("<pre>\n    x\n  y</pre>", "    x\n  y"),
    "table": (
        "<table><tr><th>Tea<th>Min<tr><td>Green</td><td>2</td></tr></table>",
        "Tea | Min\nGreen | 2",
    ),
    "lists": ("<ul><li>a<ol><li>x</li><li>y</li></ol></li><li><p>b</p></li></ul>", "- a\n  1. x\n  2. y\n- b"),
    "entities": ("a &lt; b &amp;&amp; c &#8594; &eacute; &nope; AT&T", "a < b && c → é &nope; AT&T"),
    "white space": ("<p>one\n  two <b>three</b> ,</p>", "one two three ,"),
    "unseen": ("<script>var x</script><!-- c -->a<style>p {}</style>", "a"),
    "nothing": (" <!-- --> ", ""),
    "breaks": ("a<br>b<br/><br>c", "a\nb\n\nc"),
}


@pytest.mark.parametrize(("markup", "text"), HTML.values(), ids=list(HTML))
def test_html_is_read_as_it_is_seen(markup: str, text: str) -> None:
    assert html_to_text(markup) == text


def test_html_of_any_size_and_shape_is_read_in_linear_time() -> None:
    for piece in (" ", "\n", " \n", "&amp", "&", "<", "<!--", "&#", "<pre>\n", "a ", "<td>", "&#x110000;"):
        html_to_text("<p>" + piece * 50 + "x")
        unescaped(piece * 100_000 + "x")
    assert html_to_text("<pre>" + "\n" * 300_000 + "x") == "x"
    assert html_to_text(" " * 300_000 + "x") == "x"
    assert unescaped("&#" + "9" * 5_000 + ";") == "&#" + "9" * 5_000 + ";"
    assert html_to_text("&lt;" * 50_000) == "<" * 50_000
    with pytest.raises(ValueError, match="more than 250 inside each other"):
        html_to_text("<div>" * 20_000)
    record = Record("a.xml", 3, {"Body": "<b>" * 1_000 + "x"})
    with pytest.raises(SlateError, match=r"a\.xml, row 3: Body: expected HTML without elements that stand more"):
        record.html("Body")


# --- bounds -----------------------------------------------------------------------------------------------------------


def counted(path: Path) -> tuple[int, list[str]]:
    records = list(read_records(path))
    return sum(isinstance(r, Record) for r in records), [str(r) for r in records if isinstance(r, SlateError)]


def test_blank_lines_cost_nothing_and_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl.zst"
    path.write_bytes(
        zstandard.ZstdCompressor().compress(b'{"a": 1}\n' + b"\n" * 30_000_000 + b" \t\r\n" * 999 + b"x\n")
    )
    good, (bad,) = counted(path)
    assert good == 1
    assert f"row {1 + 30_000_000 + 999 + 1}: row: expected JSON" in bad


@pytest.mark.parametrize("pack", [zstandard.ZstdCompressor().compress, lzma.compress], ids=["zst", "xz"])
def test_an_archive_that_holds_far_more_than_its_size_is_refused(
    pack: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    path = tmp_path / f"in.jsonl.{'zst' if pack is not lzma.compress else 'xz'}"
    path.write_bytes(pack(b"\n" * 100_000_000))
    with pytest.raises(SlateError, match="expected an archive of at most 250 bytes for each of its own"):
        counted(path)


def test_a_line_and_an_element_beyond_the_limit_are_bad_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams_module, "MAX_RECORD_BYTES", 1000)
    long = json.dumps({"a": "x" * 2_000_000})
    for name, text in (
        ("in.jsonl", f'{{"a": 1}}\n{long}\n{{"a": 2}}\n'),
        ("in.json", f'[{{"a": 1}}, {long}, {{"a": 2}}]'),
    ):
        (tmp_path / name).write_text(text)
        good, (bad,) = counted(tmp_path / name)
        assert good == 2
        assert "row 2: row: expected at most 1000 bytes, got more" in bad


ARRAYS: dict[str, tuple[str, int, list[int]]] = {
    "strings that look like structure": ('[{"a": "],}{["}, {"b": "\\"]"}, {"c": "\\\\"}]', 3, []),
    "a bad element": ('[{"a": 1}, {"a": nope}, {"a": 2}]', 2, [2]),
    "not objects": ('[{"a": 1}, 7, null, [1], "x"]', 1, [2, 3, 4, 5]),
    "deep": ('[{"a": 1}, ' + "[" * 150 + "]" * 150 + ', {"a": 2}]', 2, [2]),
    "broken off": ('[{"a": 1}, {"a": 2', 1, [2]),
    "more after it": ('[{"a": 1}] {"a": 2}', 1, [2]),
    "empty": ("[ ]", 0, []),
    "lone surrogate and twice": ('[{"a": "\\ud83d"}, {"a": 1, "a": 2}]', 1, [2]),
}


@pytest.mark.parametrize("chunk", [1, 3, 1 << 20])
@pytest.mark.parametrize(("text", "good", "bad"), ARRAYS.values(), ids=list(ARRAYS))
def test_elements_of_an_array_are_rows(text: str, good: int, bad: list[int], chunk: int, tmp_path: Path) -> None:
    (tmp_path / "in.json").write_text("\n " + text + "\n")
    records = list(read_records(tmp_path / "in.json"))
    assert sum(isinstance(record, Record) for record in records) == good
    assert [record.row for record in records if isinstance(record, SlateError)] == bad
    scanner = streams_module._Scanner()  # the same whatever stands at the ends of chunks
    data = text.encode()
    found = [
        part for at in range(0, len(data), chunk) if not scanner.done for part in scanner.feed(data[at : at + chunk])
    ]
    whole = streams_module._Scanner()
    assert found == list(whole.feed(data))


def test_a_pipe_is_read_once_or_refused_by_name(tmp_path: Path) -> None:
    for ending, text in (("jsonl", '{"a": 1}\n{"a": 2}\n'), ("json", '[{"a": 1}, {"a": 2}]'), ("csv", "a\n1\n2\n")):
        pipe = tmp_path / f"pipe.{ending}"
        os.mkfifo(pipe)
        writer = threading.Thread(target=pipe.write_text, args=(text,))
        writer.start()
        assert counted(pipe) == (2, [])
        writer.join()
    for ending in ("parquet", "jsonl.gz"):
        os.mkfifo(tmp_path / f"pipe.{ending}")
        with pytest.raises(ValueError, match="got a pipe"):
            counted(tmp_path / f"pipe.{ending}")
    with pytest.raises(ValueError, match="got a pipe, which is read once: name its format"):
        convert("auto", [tmp_path / "pipe.jsonl"], tmp_path / "out.jsonl")


CORRUPT: dict[str, tuple[str, bytes]] = {
    "zst": ("in.jsonl.zst", b"\x28\xb5\x2f\xfdnothing of the kind"),
    "zst of nothing": ("in.jsonl.zst", b"plain text"),
    "gz": ("in.jsonl.gz", b"\x1f\x8bnothing"),
    "xz": ("in.jsonl.xz", b"plain"),
    "parquet": ("in.parquet", b"PAR1 no PAR1"),
    "empty parquet": ("in.parquet", b""),
    "xml encoding": ("Posts.xml", b'<?xml version="1.0" encoding="nope"?><posts/>'),
    "xml multi-byte": ("Posts.xml", b'<?xml version="1.0" encoding="shift_jis"?><posts/>'),
    "xml entities": ("Posts.xml", b'<!DOCTYPE p [<!ENTITY a "x">]><posts><row Id="&a;"/></posts>'),
    "nul": ("in.jsonl", b"\0\0\0"),
    "nul in csv": ("in.csv", b"a,b\n\0,1,2\n"),
}


@pytest.mark.parametrize(("name", "content"), CORRUPT.values(), ids=list(CORRUPT))
def test_a_corrupt_file_is_one_error_that_names_it(name: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)

    def read() -> None:
        for record in read_records(path):
            if isinstance(record, SlateError):
                raise record

    with pytest.raises(SlateError) as caught:
        read()
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
