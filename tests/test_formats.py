"""Every format on a few lines in its original form: golden slates, exact counts, and errors that name the place."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import zstandard
from pope_align.data import SlateError, read_slates
from pope_align.data.convert import ConvertOptions, convert
from pope_align.data.formats import FORMATS, Source
from pope_align.data.readers import read_records
from pope_align.ope import LoggedSlates

FIXTURES = Path(__file__).parent / "formats"
GOLDEN = json.loads((Path(__file__).parent / "golden" / "formats.json").read_text(encoding="utf-8"))
OPTIONS = {
    "table": {
        "mapping": {
            "prompt": "question",
            "completion": "answer",
            "score": "stars",
            "key": "ticket",
            "responder": "agent",
            "logging_logprob": "lp",
            "completion_tokens": "n",
        }
    },
    "otel": {"mapping": {"score": "thumb"}},
    "inspect": {"mapping": {"score": "includes"}},
    "lm-eval": {"mapping": {"filter": "none"}},
    "tinker": {"mapping": {"tokenizer": str(Path(__file__).parent / "golden" / "chatml")}},
}


def source_of(name: str, paths: list[Path], *, skip_bad_rows: bool = False) -> Source:
    return Source(paths, skip_bad_rows, dict(OPTIONS.get(name, {}).get("mapping", {})))


def inputs(name: str) -> list[Path]:
    (folder,) = [FIXTURES / name] if name != "stackexchange" else FIXTURES.glob("stackexchange/*")
    return sorted(folder.iterdir())


def test_every_format_has_an_example_and_golden_slates() -> None:
    assert {path.name for path in FIXTURES.iterdir()} == set(FORMATS), "one folder tests/formats/NAME per format"
    assert set(GOLDEN) == set(FORMATS), "tests/golden/formats.json has one entry per format"


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_gives_its_golden_slates_and_counts(name: str, tmp_path: Path) -> None:
    report = convert(name, inputs(name), tmp_path / "slates.jsonl", ConvertOptions(**OPTIONS.get(name, {})))
    rows = [json.loads(line) for line in (tmp_path / "slates.jsonl").read_text(encoding="utf-8").splitlines()]
    golden = GOLDEN[name]
    assert rows == golden["slates"]
    assert dict(report.without_response) == golden["without_response"]
    assert {reason: n for reason, n in report.responses_dropped.items() if n} == golden["responses_dropped"]
    assert report.responses_read == report.responses_kept + sum(report.responses_dropped.values())
    assert len(read_slates(tmp_path / "slates.jsonl")) == report.slates_kept
    written = json.loads((tmp_path / "slates.jsonl.report.json").read_text())
    assert (written["format"], written["responses_kept"]) == (name, report.responses_kept)


FEEDBACK = {
    ("amazon-2014", "shrunk_rate"): [2 / 3, 96 / 102, 3 / 6],
    ("amazon-2014", "stars"): [5, 3, 1],
    ("amazon-2018", "stars"): [5, 4, 2],
    ("amazon-2023", "stars"): [5, 1],
    ("ultrafeedback", "fine_grained"): [4.75, 1.5],
    ("ultrafeedback", "mean_aspect"): [4.75, 4 / 3],
    ("helpsteer2", "correctness"): [4, 0],
    ("helpsteer2", "coherence"): [4, 4],
    ("helpsteer2", "complexity"): [0, 0],
    ("helpsteer2", "verbosity"): [1, 1],
    ("nemo-rl", "reward"): [0.5, 2.0, 0.25],
    ("polis", "utilitarian"): [(3 / 4 + 2 / 4) / 2, (2 / 3 + 1 / 4) / 2],
    ("polis", "maximin"): [2 / 4, 1 / 4],
    ("polis", "nash"): [(3 / 4 * 2 / 4) ** 0.5, (2 / 3 * 1 / 4) ** 0.5],
}


def test_every_kind_of_feedback_is_checked_by_hand() -> None:
    offered = {(entry.name, kind) for entry in FORMATS.values() for kind in entry.feedback[1:]}
    assert offered == set(FEEDBACK)


@pytest.mark.parametrize(("name", "feedback"), FEEDBACK)
def test_other_feedback_by_hand(name: str, feedback: str, tmp_path: Path) -> None:
    convert(name, inputs(name), tmp_path / "slates.jsonl", ConvertOptions(feedback=feedback))
    slate = read_slates(tmp_path / "slates.jsonl")[0]
    assert slate.scores == pytest.approx(FEEDBACK[name, feedback])
    assert slate.origin["feedback"] == feedback


#: Formats whose responses people wrote: a log of these has no logging policy.
BY_PEOPLE = [
    *("amazon-2014", "amazon-2018", "amazon-2023", "polis", "reddit", "reddit-movie", "shp"),
    *("stackexchange", "stackexchange-pm"),
]


@pytest.mark.parametrize("name", FORMATS)
def test_an_evaluation_knows_which_logs_people_wrote(name: str, tmp_path: Path) -> None:
    convert(name, inputs(name), tmp_path / "once.jsonl", ConvertOptions(min_k=1, **OPTIONS.get(name, {})))
    convert("slates", [tmp_path / "once.jsonl"], tmp_path / "again.jsonl", ConvertOptions(min_k=1))
    for path in (tmp_path / "once.jsonl", tmp_path / "again.jsonl"):
        slate = read_slates(path)[0]
        scores = [-1.0] * len(slate.scores)
        log = [replace(slate, prompt=prompt, slate_id=prompt, logging_logprobs=scores) for prompt in ("one", "two")]
        assert (LoggedSlates.from_slates(log, {"it": [scores, scores]}).written_by == "people") == (name in BY_PEOPLE)


# --- bad input ------------------------------------------------------------------------------------------------------

#: Formats of records, which may stand in files of any kind. An export of Polis is a folder.
OF_RECORDS = [name for name in FORMATS if name != "polis"]


def records_of(name: str) -> Iterator[dict[str, Any]]:
    """The records of a format's fixtures, reviews and comments before what they belong to."""
    for path in sorted(inputs(name), key=lambda path: path.name.startswith(("meta", "sub"))):
        if path.suffix in (".jsonl", ".json", ".csv", ".xml"):
            yield from (dict(record.values) for record in read_records(path))


@pytest.mark.parametrize("name", OF_RECORDS)
def test_a_field_of_a_wrong_type_is_named_or_fine_but_never_a_crash(name: str, tmp_path: Path) -> None:
    """Every field of every record, replaced by values of every JSON type."""
    path = tmp_path / "changed.jsonl"
    errors: list[str] = []
    for record in records_of(name):
        for field in record:
            values = (None, 7, -0.5, True, "", "x", [], [1], ["a", "b"], [{}], {}, {"a": 1}, float("nan"))
            path.write_text("".join(json.dumps({**record, field: value}) + "\n" for value in values))
            for feedback in FORMATS[name].feedback:
                source = source_of(name, [path], skip_bad_rows=True)
                list(FORMATS[name].read(source, feedback))  # anything but a SlateError would come through
                errors += source.bad_rows
                assert source.records_read == len(values)
    assert len(errors) > 10
    assert all(
        re.match(rf"{re.escape(str(path))}, row \d+(, \w+, row \d+)?: \S.*: expected ", error) for error in errors
    )


@pytest.mark.parametrize("name", OF_RECORDS)
def test_a_broken_line_is_named_and_can_be_skipped(name: str, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    good = [json.dumps(record) for record in records_of(name)]
    path.write_text("\n".join([good[0], "", '{"half": "a li', *good[1:], "[1, 2]"]) + "\n")
    with pytest.raises(SlateError, match=rf"{re.escape(str(path))}, row 3: row: expected JSON \(.*\), got '") as caught:
        list(FORMATS[name].read(source_of(name, [path]), FORMATS[name].feedback[0]))
    assert caught.value.row == 3
    source = source_of(name, [path], skip_bad_rows=True)
    list(FORMATS[name].read(source, FORMATS[name].feedback[0]))
    assert [re.search(r"row (\d+)", reason).group(1) for reason in source.bad_rows] == ["3", str(len(good) + 3)]
    assert source.records_read == len(good) + 2


COMPRESS = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda data: zstandard.ZstdCompressor().compress(data),
}


@pytest.mark.parametrize("ending", COMPRESS)
def test_compressed_files_read_as_what_they_hold_and_truncated_ones_are_refused(ending: str, tmp_path: Path) -> None:
    plain = (FIXTURES / "amazon-2018" / "reviews.json").read_bytes() * 200
    path = tmp_path / f"reviews.json{ending}"
    path.write_bytes(COMPRESS[ending](plain))
    assert [r.values for r in read_records(path)] == [json.loads(line) for line in plain.splitlines()]
    path.write_bytes(COMPRESS[ending](plain)[:-12])
    with pytest.raises(SlateError, match=r"reviews\.json\.\w+, row \d+: row: expected a whole archive"):
        list(read_records(path))


def test_a_byte_order_mark_crlf_emoji_entities_and_a_line_of_ten_megabytes_are_read(tmp_path: Path) -> None:
    path = tmp_path / "reviews.json"
    long = "long \U0001f3b5 " * 1_100_000
    row = {"overall": 5.0, "reviewerID": "A1", "asin": "1", "reviewText": long + "&lt;3", "vote": "2"}
    path.write_bytes(
        b"\xef\xbb\xbf" + b"\r\n".join(json.dumps(row, ensure_ascii=False).encode() for _ in range(2)) + b"\r\n"
    )
    assert path.stat().st_size > 20_000_000
    first, second = FORMATS["amazon-2018"].read(Source([path]), "votes")
    assert first == second
    assert first.responses[0].completion == long + "<3"


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("log.jsonl", b'{"a": 1}\n{"a": "\xff"}\n', r"log\.jsonl, row 2: row: expected JSON \('utf-8' codec"),
        ("log.json", b'[{"a": 1}, {"a": 2', r"log\.json, row 2: row: expected JSON"),
        ("log.json", b'[{"a": 1}, 7]', r"log\.json, row 2: row: expected an object, got '7'"),
        ("log.csv", b"a,b\n1,2\n1,2,3\n", r"log\.csv, row 3: row: expected 2 columns, got 3"),
        ("log.csv", b"a,b\n1,\xff\n", r"log\.csv, row \d: row: expected CSV in UTF-8"),
        ("log.csv", b"", r"log\.csv: file: expected a header line, got an empty file"),
        ("log.xml", b'<posts><row Id="1"/><row Id=', r"log\.xml, row 2: row: expected XML"),
        ("log.jsonl", b"{'a': __import__('os').getcwd()}\n", r"log\.jsonl, row 1: row: expected JSON \(malformed"),
        ("log.txt", b"", r"expected a file ending in \.jsonl"),
    ],
)
def test_files_that_break_off_or_are_something_else_are_refused(
    name: str, content: bytes, told: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(content)

    def raised() -> None:
        for record in read_records(path):
            if isinstance(record, SlateError):
                raise record

    with pytest.raises(ValueError, match=told):
        raised()


BAD = [
    ("amazon-2014", {"helpful": [5, 3]}, "helpful: expected 0 <= up <= total, got [5, 3]"),
    ("amazon-2014", {"helpful": [3]}, "helpful: expected [up, total], got [3]"),
    ("amazon-2018", {"vote": "many"}, "vote: expected a finite number, got 'many'"),
    ("amazon-2018", {"asin": None}, "asin: expected a value (it is required), got nothing"),
    ("amazon-2023", {"helpful_vote": "NaN"}, "helpful_vote: expected a finite number, got 'NaN'"),
    ("alpaca-eval", {"preference": 3}, "preference: expected a number from 1 to 2 (or 0 and 1.5 for a tie), got 3.0"),
    ("unpaired", {"label": "good"}, "label: expected true or false, got 'good'"),
    ("rewards", {"all_rm_scores": [1]}, "all_rm_scores: expected 3 rewards, one per response, got [1]"),
    (
        "helpsteer-preference",
        {"overall_preference": 4},
        "overall_preference: expected a number from -3 (the first is much better) to 3, got 4.0",
    ),
    (
        "openai",
        {"response": {"id": "c", "choices": [{"text": "a"}, {"text": "b"}]}, "scores": [1]},
        "scores: expected 2 numbers or nulls, one for each response, got [1]",
    ),
    (
        "openai",
        {"response": {"id": "c", "choices": [{"text": "a", "logprobs": {"tokens": ["a"], "token_logprobs": [0.5]}}]}},
        "response.choices[0].logprobs.token_logprobs[0]: expected a log-probability <= 0 (nats), got 0.5",
    ),
    (
        "vllm",
        {"outputs": [{"text": "a", "token_ids": [1, 2], "logprobs": [{"1": {"logprob": -1.0}}]}]},
        "outputs[0].logprobs: expected 2 entries, one for each of token_ids, got [{'1': {'logprob': -1.0}}]",
    ),
    (
        "sglang",
        {"response": {"text": "a", "meta_info": {"output_token_logprobs": [[-1.0]]}}},
        "response.meta_info.output_token_logprobs[0]: expected [log-probability, token id, text], got [-1.0]",
    ),
    (
        "tinker",
        {"samples": [{"tokens": [1, 2], "logprobs": [-1.0]}]},
        "samples[0].logprobs: expected 2 numbers, one for each token, got [-1.0]",
    ),
    (
        "otel",
        {"resourceSpans": [{"scopeSpans": [{"spans": [{"attributes": [{"key": "a", "value": 1}]}]}]}]},
        "resourceSpans[0].scopeSpans[0].spans[0].attributes[0].value: expected an object with one of stringValue",
    ),
    (
        "otel",
        {
            "resourceSpans": [
                {
                    "scopeSpans": [
                        {"spans": [{"attributes": [{"key": "a", "value": {"kvlistValue": {"values": [True]}}}]}]}
                    ]
                }
            ]
        },
        "resourceSpans[0].scopeSpans[0].spans[0].attributes[0].value: expected an object with one of stringValue",
    ),
    (
        "otel",
        {
            "resourceSpans": [
                {"scopeSpans": [{"spans": [{"attributes": [{"key": "a", "value": {"arrayValue": {"values": 7}}}]}]}]}
            ]
        },
        "resourceSpans[0].scopeSpans[0].spans[0].attributes[0].value: expected an object with one of stringValue",
    ),
    ("lm-eval", {"exact_match": [1.0]}, "exact_match: expected a number, or 2, one for each answer, got [1.0]"),
    ("lm-eval", {"metrics": ["a", "b"]}, "metrics: expected one metric, or --map score=NAME to choose, got 'a, b'"),
    (
        "inspect",
        {"scores": {"includes": {"value": {"a": 1, "b": 2}}}},
        "scores.includes.value: expected one value, or --map score=includes.KEY to choose one, got 'a, b'",
    ),
    (
        "inspect",
        {"scores": {"includes": {"value": "good"}}},
        "scores.includes.value: expected a finite number, got 'good'",
    ),
    ("nemo-rl", {"completions": [{"rank": -1}]}, "completions[0].rank: expected an integer >= 0 (0 is best), got -1"),
    ("nemo-rl", {"completions": [{"rank": 10**400}]}, "completions[0].rank: expected an integer of 64 bits, got 1000"),
    ("hh-rlhf", {"chosen": "Hello"}, "chosen: expected turns of Human and Assistant, the last by the Assistant"),
    ("reddit", {"score": "many"}, "score: expected a finite number, got 'many'"),
    ("reddit-movie", {"context": [1]}, "context[0]: expected text, got 1"),
    ("stackexchange", {"PostTypeId": None}, "PostTypeId: expected a value (it is required), got nothing"),
    ("stackexchange-pm", {"answers": [1]}, "answers[0]: expected an object, got 1"),
    ("alpaca", {"output": [1]}, "output[0]: expected text, got 1"),
    ("ultrafeedback", {"completions": [1]}, "completions[0]: expected an object, got 1"),
    ("helpsteer2", {"helpfulness": None}, "helpfulness: expected a value (it is required), got nothing"),
    ("shp", {"score_A": "many"}, "score_A: expected a finite number, got 'many'"),
    ("prism", {"conversation_history": [1]}, "conversation_history[0]: expected an object, got 1"),
    ("community-alignment", {"annotator_id": None}, "annotator_id: expected a value (it is required), got nothing"),
    (
        "community-alignment",
        {"first_turn_preferred_response": "b"},
        "first_turn_preferred_response: expected one of response_a, response_b, response_c, response_d, got 'b'",
    ),
    ("overton", {"representation_rating": "x"}, "representation_rating: expected a finite number, got 'x'"),
    ("preference", {"chosen": None}, "chosen: expected a value (it is required), got nothing"),
    ("table", {"lp": "0.5"}, "lp: expected a log-probability <= 0 (nats), got 0.5"),
    ("slates", {"completions": [1]}, "completions[0]: expected non-empty text, got 1"),
]


CHAT = {"model": "m", "messages": [{"role": "user", "content": "Tea?"}]}
CHOICES = [{"index": i, "message": {"role": "assistant", "content": text}} for i, text in enumerate(("Yes.", "No."))]


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("openai", {"request": CHAT, "response": {"id": "c", "choices": CHOICES}, "scores": [True, False]}),
        ("openai", {"request": CHAT, "response": {"id": "c", "choices": CHOICES}, "scores": ["True", "false"]}),
        ("vllm", {"prompt": "Tea?", "outputs": [{"text": "Yes."}, {"text": "No."}], "scores": [True, False]}),
        ("rewards", {"prompt": "Tea?", "responses": ["Yes.", "No."], "rewards": [True, False]}),
        (
            "nemo-rl",
            {
                "context": CHAT["messages"],
                "completions": [
                    {"rank": at, "completion": [choice["message"]], "reward": at == 0}
                    for at, choice in enumerate(CHOICES)
                ],
            },
        ),
    ],
)
def test_thumbs_are_feedback_alone_and_in_lists(name: str, row: dict, tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text(json.dumps(row) + "\n")
    feedback = "reward" if name == "nemo-rl" else None
    convert(name, [tmp_path / "log.jsonl"], tmp_path / "out.jsonl", ConvertOptions(feedback=feedback))
    (slate,) = read_slates(tmp_path / "out.jsonl")
    assert slate.scores == [1.0, 0.0]


def test_every_format_forbids_something() -> None:
    assert {name for name, _, _ in BAD} == set(OF_RECORDS), "a row of BAD for every format; polis has its own test"


@pytest.mark.parametrize(("name", "change", "told"), BAD, ids=[f"{bad[0]}-{next(iter(bad[1]))}" for bad in BAD])
def test_what_a_format_forbids_is_told_in_its_terms(name: str, change: dict, told: str, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(json.dumps({**next(records_of(name)), **change}) + "\n")
    with pytest.raises(SlateError, match=re.escape(f"{path}, row 1: {told}")):
        list(FORMATS[name].read(source_of(name, [path]), FORMATS[name].feedback[0]))


def test_a_polis_export_is_a_folder_with_a_topic(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected the folder of a Polis export"):
        convert("polis", [FIXTURES / "table" / "log.csv"], tmp_path / "out.jsonl")
    (tmp_path / "talk").mkdir()
    (tmp_path / "talk" / "summary.csv").write_text("topic,\nurl,x\n")
    with pytest.raises(SlateError, match=r"summary\.csv: topic: expected a value"):
        convert("polis", [tmp_path / "talk"], tmp_path / "out.jsonl")


def test_sites_that_number_their_posts_alike_are_kept_apart(tmp_path: Path) -> None:
    posts = (FIXTURES / "stackexchange" / "tea.example.com" / "Posts.xml").read_bytes()
    for site in ("a.example.com", "b.example.com"):
        (tmp_path / site).mkdir()
        (tmp_path / site / "Posts.xml").write_bytes(posts)
    paths = sorted(tmp_path.glob("*/Posts.xml"))
    convert("stackexchange", paths, tmp_path / "out.jsonl")
    slates = read_slates(tmp_path / "out.jsonl")
    assert [slate.slate_id for slate in slates] == ["a.example.com/q/1", "b.example.com/q/1"]
    assert [len(slate.completions) for slate in slates] == [2, 2]


def test_token_log_probabilities_are_summed(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    rows = [
        {"prompt": "Hi", "completion": "Hello", "score": 1, "token_logprobs": [-0.5, -0.25]},
        {"prompt": "Hi", "completion": "Hey", "score": 0, "token_logprobs": [-1.0]},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    convert("table", [path], tmp_path / "out.jsonl")
    (slate,) = read_slates(tmp_path / "out.jsonl")
    assert (slate.logging_logprobs, slate.completion_tokens) == ([-0.75, -1.0], [2, 1])
    assert slate.logging_policy["how"] == "recorded"
    path.write_text(json.dumps({**rows[0], "token_logprobs": [-0.5, 0.25]}) + "\n")
    with pytest.raises(SlateError, match="token_logprobs: expected log-probabilities <= 0, one per token"):
        convert("table", [path], tmp_path / "bad.jsonl")
    with pytest.raises(ValueError, match=r"mapping: expected names among prompt, .*, got question"):
        convert("table", [path], tmp_path / "bad.jsonl", ConvertOptions(mapping={"question": "prompt"}))


def test_the_page_on_data_lists_every_format_with_its_feedback_and_an_example() -> None:
    page = (Path(__file__).parents[1] / "docs" / "data.md").read_text(encoding="utf-8")
    rows = {
        row.split("`")[1]: row for row in page.splitlines() if row.startswith("| ") and "`pope convert --from " in row
    }
    assert set(rows) == set(FORMATS)
    for name, row in rows.items():
        cells = row.split(" | ")
        assert cells[-2] == ", ".join(f"`{kind}`" for kind in FORMATS[name].feedback)
        assert f"`pope convert --from {name} " in cells[-1]
