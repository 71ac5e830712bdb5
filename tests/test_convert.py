"""Conversion: nothing is lost uncounted; gathering, filters, samples and splits do what they say, in any order."""

from __future__ import annotations

import errno
import itertools
import json
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pope_align import _files
from pope_align.data import Slate, group_split, read_slates, slate_group, write_slates
from pope_align.data import gather as gather_module
from pope_align.data.convert import ConvertOptions, ConvertReport, convert
from pope_align.data.gather import gather
from pope_align.data.markup import html_to_text
from pope_align.data.merge import merge
from pope_align.data.options import SPLITS
from pope_align.data.pairs import preference_pair
from pope_align.data.pieces import Piece, Response
from pope_align.data.schema import FIELDS
from pope_align.data.write import _Parquet

quick = settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def write_table(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows_of(k: int, keys: int, seed: int = 0) -> list[dict[str, Any]]:
    rows = [
        {"prompt": f"Question {key}?", "completion": f"answer {i} to {key}", "score": i, "key": f"item{key // 3}#{key}"}
        for key in range(keys)
        for i in range(k)
    ]
    random.Random(seed).shuffle(rows)
    return rows


def converted(rows: list[dict[str, Any]], folder: Path, **options: Any) -> tuple[ConvertReport, list[Slate]]:
    path = write_table(folder / "log.jsonl", rows)
    report = convert("table", [path], folder / "out.jsonl", ConvertOptions(**options), overwrite=True)
    assert report.responses_read == report.responses_kept + sum(report.responses_dropped.values())
    return report, list(read_slates(folder / "out.jsonl"))


# --- gathering and merging ------------------------------------------------------------------------------------------

responses = st.builds(Response, completion=st.text("ab ", max_size=3), score=st.floats(-9, 9))
pieces = st.builds(
    Piece,
    key=st.sampled_from(["a", "b", "ä", "B", "a#1"]),
    prompt=st.none() | st.text(min_size=1, max_size=3),
    responses=st.lists(responses, max_size=3),
)


@quick
@given(log=st.lists(pieces, max_size=12))
def test_gathering_is_a_stable_sort_by_the_bytes_of_the_key(log: list[Piece]) -> None:
    ordered = sorted(log, key=lambda piece: piece.key.encode())
    expected = [list(group) for _, group in itertools.groupby(ordered, key=lambda piece: piece.key)]
    assert list(gather(log, Piece)) == expected
    with pytest.MonkeyPatch.context() as patch:  # more than are sorted in memory
        patch.setattr(gather_module, "_FEW", 2)
        assert list(gather(log, Piece)) == expected


@given(group=st.lists(st.builds(Piece, key=st.just("a"), responses=st.lists(responses, max_size=3)), min_size=1))
@settings(max_examples=50, deadline=None)
def test_merging_keeps_every_text_once_and_counts_the_rest(group: list[Piece]) -> None:
    texts = [r.completion.strip() for piece in group for r in piece.responses if r.completion.strip()]
    best, copies = merge(group, "best")
    mean, same_copies = merge(group, "mean")
    assert copies == same_copies == len(texts) - len(set(texts))
    assert [r.completion.strip() for r in best.responses] == list(dict.fromkeys(texts))
    for kept, average in zip(best.responses, mean.responses, strict=True):
        scores = [
            r.score for piece in group for r in piece.responses if r.completion.strip() == kept.completion.strip()
        ]
        assert kept.score == max(scores)
        assert average.score == pytest.approx(np.mean(scores))


def test_files_are_joined_whatever_their_order(tmp_path: Path) -> None:
    folder = Path(__file__).parent / "formats" / "amazon-2014"
    paths = sorted(folder.iterdir())
    outputs = []
    for number, order in enumerate((paths, paths[::-1])):
        convert("amazon-2014", order, tmp_path / f"{number}.jsonl")
        outputs.append((tmp_path / f"{number}.jsonl").read_bytes())
    assert outputs[0] == outputs[1]


# --- filters and samples --------------------------------------------------------------------------------------------


def test_slates_too_small_or_too_large_are_dropped_and_counted(tmp_path: Path) -> None:
    rows = [row for k, key in ((1, 0), (3, 1), (6, 2)) for row in rows_of(k, 3) if row["prompt"] == f"Question {key}?"]
    report, slates = converted(rows, tmp_path, min_k=2, max_k=5)
    assert [len(slate.completions) for slate in slates] == [3]
    assert dict(report.slates_dropped) == {"fewer than 2 responses": 1, "more than 5 responses": 1}
    assert report.responses_dropped["of a slate: more than 5 responses"] == 6
    with pytest.raises(
        ValueError, match="at least one slate to keep, got none; 10 records read, fewer than 9 responses"
    ):
        converted(rows, tmp_path, min_k=9)


def test_a_sample_is_recorded_uniform_and_the_same_in_any_order(tmp_path: Path) -> None:
    rows = rows_of(10, 300)
    report, slates = converted(rows, tmp_path, sample_k=3)
    assert report.slates_sampled == 300
    assert report.responses_dropped["not sampled"] == 300 * 7
    assert all(slate.origin["responses"] == 10 and slate.origin["sample_seed"] == 0 for slate in slates)
    random.Random(1).shuffle(rows)
    again = converted(rows, tmp_path, sample_k=3)[1]
    assert [set(slate.completions) for slate in again] == [set(slate.completions) for slate in slates]
    other = converted(rows, tmp_path, sample_k=3, seed=1)[1]
    assert sum(set(a.completions) == set(b.completions) for a, b in zip(slates, other, strict=True)) < 30
    chosen = Counter(int(score) for slate in slates for score in slate.scores)
    assert all(60 < chosen[i] < 120 for i in range(10))  # 90 expected; five standard deviations are 40


def test_a_fraction_of_the_slates_is_kept_by_name(tmp_path: Path) -> None:
    report, slates = converted(rows_of(2, 300), tmp_path, fraction=0.25)
    assert 45 < len(slates) < 105
    assert report.slates_dropped["not in the fraction"] == 300 - len(slates)
    fewer = converted(rows_of(2, 300), tmp_path, fraction=0.1)[1]
    assert {slate.slate_id for slate in fewer} < {slate.slate_id for slate in slates}


def test_length_and_language_filters_count_what_they_drop(tmp_path: Path) -> None:
    texts = [
        "This answer is written in plain English, and it is long enough to tell.",
        "Diese Antwort ist auf Deutsch geschrieben und lang genug, um sie zu erkennen.",
        "Yes, it is the second answer in English, and no other language is in it.",
        "No.",
        "long " * 100,
    ]
    rows = [{"prompt": "Which language?", "completion": text, "score": i} for i, text in enumerate(texts)]
    report, (slate,) = converted(rows, tmp_path, min_chars=10, max_chars=200, language="en")
    assert slate.scores == [0, 2]
    dropped = {reason: n for reason, n in report.responses_dropped.items() if n}
    assert dropped == {"shorter than 10 characters": 1, "longer than 200 characters": 1, "not in language en": 1}


def test_votes_are_corrected_for_age_as_of_the_time_of_the_log(tmp_path: Path) -> None:
    day = 86_400.0
    rows = [
        {"prompt": "p", "completion": "old", "score": 10, "timestamp": 0.0},
        {"prompt": "p", "completion": "new", "score": 10, "timestamp": 990 * day},
    ]
    _, (slate,) = converted(rows, tmp_path, age_scale_days=10.0, as_of=1000 * day)
    assert slate.scores == pytest.approx([10, 10 / (1 - np.exp(-1))])
    assert slate.origin["age_scale_days"] == 10
    with pytest.raises(ValueError, match="expected a time before as_of"):
        converted(rows, tmp_path, age_scale_days=10.0, as_of=500 * day)
    with pytest.raises(ValueError, match="age_scale_days: expected together with as_of"):
        ConvertOptions(age_scale_days=10)


def test_people_are_named_only_when_asked_for(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "completion": text, "score": 1, "user": f"user-{text}"} for text in "ab"]
    _, (slate,) = converted(rows, tmp_path)
    assert slate.responders is None
    assert b"user-" not in (tmp_path / "out.jsonl").read_bytes() + (tmp_path / "out.jsonl.report.json").read_bytes()
    _, (slate,) = converted(rows, tmp_path, keep_users=True)
    assert slate.responders == ["user-a", "user-b"]


def test_missing_prompts_can_be_replaced_and_prompts_framed(tmp_path: Path) -> None:
    reviews = Path(__file__).parent / "formats" / "amazon-2018" / "reviews.json"
    with pytest.raises(ValueError, match="no prompt: its item, post or question is missing: 1"):
        convert("amazon-2018", [reviews], tmp_path / "out.jsonl")
    options = ConvertOptions(missing_prompt="item {key}", prompt_template="Review this: {prompt}")
    report = convert("amazon-2018", [reviews], tmp_path / "out.jsonl", options)
    assert (report.prompts_missing, read_slates(tmp_path / "out.jsonl")[0].prompt) == (1, "Review this: item 0001")


def test_bad_rows_stop_the_conversion_or_are_counted(tmp_path: Path) -> None:
    rows = [*rows_of(2, 2), {"prompt": "p", "completion": "c", "score": "many"}]
    path = write_table(tmp_path / "log.jsonl", rows)
    with pytest.raises(ValueError, match=r"log\.jsonl, row 5: score: expected a finite number, got 'many'"):
        convert("table", [path], tmp_path / "out.jsonl")
    assert not list(tmp_path.glob("out*"))
    report = convert("table", [path], tmp_path / "out.jsonl", ConvertOptions(skip_bad_rows=True))
    assert (report.slates_kept, len(report.bad_rows), report.records_read) == (2, 1, 5)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"min_k": 0}, "min_k: expected an integer > 0"),
        ({"fraction": 1.5}, r"fraction: expected a number in \(0, 1\]"),
        ({"splits": (0.5, 0.1, 0.1)}, "splits: expected three shares that sum to 1"),
        ({"split_by": "week"}, "split_by: expected one of slate, group, item, user, got 'week'"),
        ({"sample_k": 1}, "sample_k: expected at least min_k = 2, got 1"),
        ({"prompt_template": "Review"}, r"prompt_template: expected text with \{prompt\}"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        ConvertOptions(**options)


def test_bad_requests_are_named(tmp_path: Path) -> None:
    path = write_table(tmp_path / "log.jsonl", rows_of(2, 2))
    with pytest.raises(ValueError, match=r"format: expected auto or one of amazon-2014, .*, got 'csv'"):
        convert("csv", [path], tmp_path / "out.jsonl")
    with pytest.raises(ValueError, match="feedback: expected one of score for table, got 'votes'"):
        convert("table", [path], tmp_path / "out.jsonl", ConvertOptions(feedback="votes"))
    with pytest.raises(ValueError, match=r"out: expected a file ending in \.jsonl or \.parquet"):
        convert("table", [path], tmp_path / "out.csv")
    with pytest.raises(ValueError, match="inputs: expected at least one file"):
        convert("table", [], tmp_path / "out.jsonl")
    with pytest.raises(ValueError, match="split_by: expected a format that says who asked"):
        convert("table", [path], tmp_path / "out.jsonl", ConvertOptions(split_by="user"))


# --- splits ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split_by", ["slate", "item"])
def test_splits_keep_groups_whole_lose_nothing_and_do_not_move(split_by: str, tmp_path: Path) -> None:
    rows = rows_of(2, 300)
    options = ConvertOptions(split_by=split_by, splits=(0.6, 0.2, 0.2))
    report = convert("table", [write_table(tmp_path / "log.jsonl", rows)], tmp_path / "out.jsonl", options)
    parts = {name: list(read_slates(tmp_path / f"out.{name}.jsonl")) for name in ("train", "validation", "test")}
    assert {name: len(part) for name, part in parts.items()} == report.splits
    assert sum(map(len, parts.values())) == 300
    assert 140 < len(parts["train"]) < 220
    items = {name: {slate_group(slate) for slate in part} for name, part in parts.items()}
    overlap = (items["train"] & items["validation"]) | (items["train"] & items["test"])
    assert bool(overlap) == (split_by == "slate")
    grown = [*rows, *({**row, "key": "new" + row["key"]} for row in rows[:100])]  # a log that grew
    convert("table", [write_table(tmp_path / "log.jsonl", grown)], tmp_path / "grown.jsonl", options)
    for name, part in parts.items():
        ids = {slate.slate_id for slate in read_slates(tmp_path / f"grown.{name}.jsonl")}
        assert {slate.slate_id for slate in part} <= ids


def split_table(folder: Path, tag: str, ending: str, **options: Any) -> None:
    rows = [{**row, "key": f"{tag}{row['key']}"} for row in rows_of(2, 60)]
    split = ConvertOptions(split_by="slate", splits=(0.6, 0.2, 0.2))
    convert("table", [write_table(folder / "log.jsonl", rows)], folder / f"out.{ending}", split, **options)


#: Converts, and dies when the file of a number takes its place.
KILLED = """
import itertools, os, sys
from pope_align.data.convert import ConvertOptions, convert
folder, number = sys.argv[1], int(sys.argv[2])
replace, count = os.replace, itertools.count(1)
to_new = lambda paths: not os.path.basename(paths[1]).startswith(".")
os.replace = lambda *paths: os._exit(9) if to_new(paths) and next(count) == number else replace(*paths)
options = ConvertOptions(split_by="slate", splits=(0.6, 0.2, 0.2))
convert("table", [f"{folder}/log.jsonl"], f"{folder}/out.jsonl", options, overwrite=True)
"""


@pytest.mark.parametrize("number", [1, 3])
def test_a_conversion_killed_between_its_files_leaves_no_old_part_beside_a_new_one(number: int, tmp_path: Path) -> None:
    """Old test slates beside new training slates may be the same ones."""
    split_table(tmp_path, "old", "jsonl")
    rows = [{**row, "key": f"new{row['key']}"} for row in rows_of(2, 60)]
    write_table(tmp_path / "log.jsonl", rows)
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), str(number)], check=False)
    assert killed.returncode == 9
    there = [path for name in SPLITS if (path := tmp_path / f"out.{name}.jsonl").exists()]
    kinds = {slate.slate_id[:3] for path in there for slate in read_slates(path)}
    assert (len(there), kinds) == ((1, {"old"}) if number == 1 else (number - 1, {"new"}))
    assert not (tmp_path / "out.jsonl.report.json").exists()
    split_table(tmp_path, "new", "jsonl", overwrite=True)
    (tmp_path / "other").mkdir()
    split_table(tmp_path / "other", "new", "jsonl")
    for name in SPLITS:
        assert (tmp_path / f"out.{name}.jsonl").read_bytes() == (tmp_path / "other" / f"out.{name}.jsonl").read_bytes()
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize("fails", [1, 2, 4])
@pytest.mark.parametrize(
    "error", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt()], ids=["EIO", "Ctrl-C"]
)
def test_an_error_while_parts_take_their_places_brings_all_old_ones_back(
    old: bool, fails: int, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if old:
        split_table(tmp_path, "old", "jsonl")
    before = {path.name: path.read_bytes() for path in tmp_path.glob("out.*")}
    replace, count = os.replace, itertools.count(1)

    def failing(source: Path, target: Path) -> None:
        if not target.name.startswith(".") and target.name.startswith("out.") and next(count) == fails:
            raise error
        replace(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(type(error)):
        split_table(tmp_path, "new", "jsonl", overwrite=True)
    monkeypatch.undo()
    assert {path.name: path.read_bytes() for path in tmp_path.glob("out.*")} == before
    assert not list(tmp_path.glob(".*"))


def test_old_parts_that_cannot_be_brought_back_keep_their_other_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that fails twice may not be answered by deleting what is left."""
    split_table(tmp_path, "old", "jsonl")
    before = {path.read_bytes() for path in tmp_path.glob("out.*")}
    replace = os.replace

    def failing(source: Path, target: Path) -> None:
        if target.name.startswith("out."):
            raise OSError(errno.EIO, "broken")
        replace(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(OSError, match="broken"):
        split_table(tmp_path, "new", "jsonl", overwrite=True)
    assert before <= {path.read_bytes() for path in tmp_path.iterdir()}


def test_a_full_disk_at_the_end_leaves_old_parts_and_their_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split_table(tmp_path, "old", "jsonl")
    before = {path.name: path.read_bytes() for path in tmp_path.glob("out.*")}

    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(_files, "_sync", full)
    with pytest.raises(OSError, match="No space left"):
        split_table(tmp_path, "new", "jsonl", overwrite=True)
    assert {path.name: path.read_bytes() for path in tmp_path.glob("out.*")} == before


def test_a_part_that_cannot_be_written_leaves_all_old_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split_table(tmp_path, "old", "parquet")
    before = {path.name: path.read_bytes() for path in tmp_path.glob("out.*")}
    finish, finished = _Parquet.finish, []

    def full(writer: _Parquet) -> None:
        finished.append(writer)
        if len(finished) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        finish(writer)

    monkeypatch.setattr(_Parquet, "finish", full)
    with pytest.raises(OSError, match="No space left"):
        split_table(tmp_path, "new", "parquet", overwrite=True)
    assert {path.name: path.read_bytes() for path in tmp_path.glob("out.*")} == before
    assert not list(tmp_path.glob(".*"))


def test_conversations_split_by_who_asked(tmp_path: Path) -> None:
    (prism,) = (Path(__file__).parent / "formats" / "prism").iterdir()
    conversation = json.loads(prism.read_text())
    path = write_table(
        tmp_path / "log.jsonl",
        [{**conversation, "conversation_id": f"c{i}", "user_id": f"u{i % 20}"} for i in range(60)],
    )
    convert("prism", [path], tmp_path / "out.jsonl", ConvertOptions(split_by="user", splits=(0.5, 0.25, 0.25)))
    users = [
        {int(slate.slate_id.partition("#")[0][1:]) % 20 for slate in read_slates(tmp_path / f"out.{name}.jsonl")}
        for name in ("train", "validation", "test")
    ]
    assert sum(map(len, users)) == len(set.union(*users)) == 20


# --- other doors ----------------------------------------------------------------------------------------------------


def test_a_query_and_a_dataset_are_read_like_files(tmp_path: Path) -> None:
    path = write_table(tmp_path / "log.jsonl", rows_of(2, 4))
    convert("table", [path], tmp_path / "file.jsonl")
    sql = f"SELECT prompt AS q, completion, score, key FROM read_json('{path}')"
    convert("table", [], tmp_path / "query.jsonl", ConvertOptions(sql=sql, mapping={"prompt": "q"}))
    (tmp_path / "hub").mkdir()
    write_table(tmp_path / "hub" / "train.jsonl", rows_of(2, 4))
    convert("table", [f"hub:{tmp_path / 'hub'}@train"], tmp_path / "hub.jsonl")
    assert (tmp_path / "file.jsonl").read_bytes() == (tmp_path / "query.jsonl").read_bytes()
    assert (tmp_path / "file.jsonl").read_bytes() == (tmp_path / "hub.jsonl").read_bytes()
    with pytest.raises(ValueError, match="sql: expected a query that DuckDB can run, got "):
        convert("table", [], tmp_path / "out.jsonl", ConvertOptions(sql="SELECT nothing"))
    with pytest.raises(ValueError, match="sql: expected with the format 'table' and no input files"):
        convert("table", [path], tmp_path / "out.jsonl", ConvertOptions(sql=sql))


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_slates_become_preference_pairs_that_read_back_as_slates(ending: str, tmp_path: Path) -> None:
    slates = [
        Slate("Name a fruit.", ["Pear", "Tomato", "Stone"], [12, 3, 0], slate_id="a"),
        Slate("Equal?", ["x", "y"], [1, 1], slate_id="b"),
    ]
    write_slates(slates, tmp_path / "log.jsonl")
    convert("slates", [tmp_path / "log.jsonl"], tmp_path / f"pairs.{ending}", to="preference")
    convert("preference", [tmp_path / f"pairs.{ending}"], tmp_path / "back.jsonl")
    (back,) = read_slates(tmp_path / "back.jsonl")
    assert (back.prompt, back.completions, back.scores) == ("Name a fruit.", ["Pear", "Stone"], [12, 0])
    turns = Slate([{"role": "user", "content": "Hi"}], ["a", "b"], [0, 1])
    assert preference_pair(turns)["chosen"] == [{"role": "assistant", "content": "b"}]


def test_a_converted_log_goes_straight_into_a_split(tmp_path: Path) -> None:
    _, slates = converted(rows_of(2, 12), tmp_path)
    train, heldout = group_split(slates, slate_group, 0.25, 0)
    assert {slate_group(slate) for slate in heldout} == {"item" + g for g in "0123"} - {slate_group(s) for s in train}


def test_html_becomes_the_text_that_a_reader_sees() -> None:
    markup = (
        '<p>a <b>bold</b> x &lt; y</p>\n\n<ul>\n<li>one</li>\n<li>two</li>\n</ul><p>z<br>w <img alt="x>y" src="q"></p>'
    )
    assert html_to_text(markup) == "a bold x < y\n\n- one\n- two\n\nz\nw"


# --- groups, outputs, hints -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", ["prefix:/", "regex:^reddit/([^/]+)/", "column:post"])
def test_ids_of_posts_and_comments_are_split_by_post(group: str, tmp_path: Path) -> None:
    """By what comes before ``#`` every comment's slate would be a group of its own."""
    rows = [
        {**row, "key": f"reddit/p{key // 3}/c{key}", "post": f"p{key // 3}"}
        for key in range(90)
        for row in rows_of(2, key + 1)
        if row["prompt"] == f"Question {key}?"
    ]
    path = write_table(tmp_path / "log.jsonl", rows)
    leaky = ConvertOptions(split_by="item", splits=(0.5, 0, 0.5))
    convert("table", [path], tmp_path / "leaky.jsonl", leaky)
    options = ConvertOptions(split_by="group", group=group, splits=(0.5, 0, 0.5))
    report = convert("table", [path], tmp_path / "out.jsonl", options)
    assert not (tmp_path / "out.validation.jsonl").exists()
    assert report.outputs == [str(tmp_path / f"out.{name}.jsonl") for name in ("train", "test")]

    def posts(name: str) -> list[set[str]]:
        parts = [read_slates(tmp_path / f"{name}.{part}.jsonl") for part in ("train", "test")]
        return [{slate.slate_id.split("/")[1] for slate in part} for part in parts]

    assert set.intersection(*posts("leaky"))
    assert not set.intersection(*posts("out"))
    assert len(set.union(*posts("out"))) == 30
    for slate in read_slates(tmp_path / "out.train.jsonl"):
        assert slate_group(slate) == slate.origin["group"]
        assert slate.slate_id.split("/")[1] in slate.origin["group"]


def test_a_slate_without_its_group_is_a_bad_row(tmp_path: Path) -> None:
    rows = [*rows_of(2, 1), *({**row, "key": "other", "team": "a"} for row in rows_of(2, 1))]
    path = write_table(tmp_path / "log.jsonl", rows)
    with pytest.raises(ValueError, match=r"log\.jsonl, row 1: group: expected a value in the column team, got None"):
        convert("table", [path], tmp_path / "out.jsonl", ConvertOptions(group="column:team"))
    report = convert("table", [path], tmp_path / "out.jsonl", ConvertOptions(group="column:team", skip_bad_rows=True))
    assert (report.slates_kept, report.bad_row_count) == (1, 1)


@pytest.mark.parametrize("name", ["min_k", "max_k", "sample_k", "seed", "min_chars", "max_chars"])
@pytest.mark.parametrize("value", [2.5, True, float("nan"), "3"])
def test_whole_numbers_are_whole(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name}: expected an integer"):
        ConvertOptions(**{name: value})


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"splits": (float("nan"),) * 3}, "splits: expected three shares"),
        ({"splits": (1.5, -0.5, 0.0)}, "splits: expected three shares"),
        ({"splits": (0.5, 0.5)}, "splits: expected three shares"),
        ({"fraction": float("nan")}, "fraction: expected a number in"),
        ({"fraction": True}, "fraction: expected a number in"),
        ({"age_scale_days": float("inf"), "as_of": 0.0}, "age_scale_days: expected a number > 0"),
        ({"age_scale_days": 1.0, "as_of": float("nan")}, "as_of: expected seconds"),
        ({"missing_prompt": "Movie {id}"}, r"missing_prompt: expected no placeholder but \{key\}, got \{id\}"),
        ({"prompt_template": "{prompt} {title}"}, r"prompt_template: expected no placeholder but \{prompt\}"),
        ({"group": "post"}, "group: expected column:NAME, prefix:SEPARATOR or regex:PATTERN, got 'post'"),
        ({"group": "regex:("}, "group: expected a regular expression"),
    ],
)
def test_options_have_types_and_ranges(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        ConvertOptions(**options)


def test_the_output_is_checked_before_the_input_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_table(tmp_path / "log.jsonl", rows_of(2, 2))
    monkeypatch.setattr("pope_align.data.assemble.Assembler.slates", lambda self: pytest.fail("the work began"))
    (tmp_path / "there.test.jsonl").write_text("old")
    for output, told in (
        ("none/out.jsonl", "out: .*expected a folder that exists"),
        ("out.txt", "out: expected a file ending in .jsonl or .parquet"),
        ("there.jsonl", r"out: .*there\.test\.jsonl: exists already; pass --overwrite"),
    ):
        with pytest.raises(ValueError, match=told):
            convert("table", [path], tmp_path / output, ConvertOptions(split_by="slate"))
    with pytest.raises(ValueError, match=r"inputs: expected a file or folder, got '.*', which does not exist"):
        convert("table", [tmp_path / "nothing.jsonl"], tmp_path / "out.jsonl")
    assert (tmp_path / "there.test.jsonl").read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["log.jsonl", "there.test.jsonl"]


def test_votes_with_a_heavy_tail_suggest_another_transform(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "completion": f"a{i}", "score": 10.0**i, "key": "k"} for i in range(8)]
    report, _ = converted(rows, tmp_path)
    assert "log1p_minmax" in report.hints[0]
    assert json.loads((tmp_path / "out.jsonl.report.json").read_text())["hints"] == report.hints
    assert not converted(rows_of(3, 3), tmp_path)[0].hints


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_pairs_of_text_and_of_turns_cannot_share_a_parquet_file(ending: str, tmp_path: Path) -> None:
    turns = [[{"role": "assistant", "content": text}] for text in "ab"]
    write_slates([Slate("q", ["x", "y"], [1, 0]), Slate("r", turns, [1, 0])], tmp_path / "log.jsonl")
    arguments = ("slates", [tmp_path / "log.jsonl"], tmp_path / f"pairs.{ending}")
    if ending == "jsonl":
        convert(*arguments, to="preference")
    else:
        with pytest.raises(ValueError, match="expected all text or all turns in a Parquet file"):
            convert(*arguments, to="preference")
        assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]


def test_slates_that_are_converted_again_keep_every_field(tmp_path: Path) -> None:
    slate = Slate(
        "q", ["a", "b"], [1.0, 0.0], logging_logprobs=[-1.0, -2.0], completion_tokens=[1, 2], ranks=[1, 2],
        finished=[True, False], slate_id="s", responders=["x", "y"], logging_policy={"how": "recorded"},
        group_scores=[{"g": 1.0}, {}], origin={"format": "reddit", "feedback": "votes", "responses": 5},
        completion_ids=[[5], [6, 7]],
    )  # fmt: skip
    write_slates([slate], tmp_path / "log.jsonl")
    convert("slates", [tmp_path / "log.jsonl"], tmp_path / "out.jsonl")
    (again,) = read_slates(tmp_path / "out.jsonl")
    assert all(getattr(again, name) == getattr(slate, name) for name in FIELDS)
