"""Slates in files: what is read is what was written, every bad row is named, and splits keep groups whole."""

from __future__ import annotations

import json
import math
import pickle
import string
from pathlib import Path

import datasets
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pope_align._extras import require
from pope_align.data import (
    Slate,
    SlateError,
    group_split,
    read_slates,
    write_slates,
)

quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

GOOD = {"prompt": "Why?", "completions": ["Because.", "No idea."], "scores": [3, 1.5]}

unicode_text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
written_text = unicode_text.filter(str.strip)
finite = st.floats(allow_nan=False, allow_infinity=False)
turns = st.lists(st.fixed_dictionaries({"role": written_text, "content": unicode_text}), min_size=1, max_size=3)


@st.composite
def logs(draw: st.DrawFn) -> list[Slate]:
    """Slates of one kind (text or turns on either side, as a Parquet column must be), with any optional fields."""
    prompt = draw(st.sampled_from([unicode_text, turns]))
    assistant = st.fixed_dictionaries({"role": st.just("assistant"), "content": written_text})
    completion = draw(st.sampled_from([written_text, st.lists(assistant, min_size=1, max_size=1)]))
    slates = []
    for k in draw(st.lists(st.integers(1, 5), min_size=1, max_size=3)):

        def each(entries: st.SearchStrategy, k: int = k) -> st.SearchStrategy:
            return st.lists(entries, min_size=k, max_size=k)

        slates.append(
            Slate(
                prompt=draw(prompt),
                completions=draw(each(completion)),
                scores=draw(each(finite)),
                logging_logprobs=draw(st.none() | each(st.floats(-1e6, 0))),
                completion_tokens=draw(st.none() | each(st.integers(1, 2**40))),
                ranks=draw(st.none() | each(st.integers(1, 64))),
                slate_id=draw(st.none() | unicode_text),
                responders=draw(st.none() | each(unicode_text)),
                logging_policy=draw(
                    st.none() | st.dictionaries(unicode_text, unicode_text | st.integers() | st.none(), max_size=3)
                ),
                group_scores=draw(st.none() | each(st.dictionaries(unicode_text, finite, max_size=2))),
                origin=draw(st.none() | st.dictionaries(unicode_text, unicode_text | st.integers(), max_size=2)),
            )
        )
    return slates


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
@quick
@given(slates=logs())
def test_a_written_log_reads_back_equal(tmp_path: Path, ending: str, slates: list[Slate]) -> None:
    path = tmp_path / f"log.{ending}"
    write_slates(slates, path)
    log = read_slates(path)
    assert list(log) == slates
    assert (log.source, log.skipped, log.ignored_fields) == (str(path), 0, ())


def test_rows_come_from_datasets_and_lists_too() -> None:
    turn_row = {
        "prompt": [{"role": "user", "content": "Hi"}],
        "completions": [[{"role": "assistant", "content": "Hello"}]],
        "scores": [1.0],
        "domain": "chat",
    }
    for rows in ([turn_row], datasets.Dataset.from_list([turn_row])):
        log = read_slates(rows)
        assert log[0] == Slate(turn_row["prompt"], turn_row["completions"], [1.0])
        assert log.ignored_fields == ("domain",)
    ragged = datasets.Dataset.from_list(
        [{**GOOD, "ranks": None}, {"prompt": "x", "completions": ["y"], "scores": [0], "ranks": [2]}]
    )
    log = read_slates(ragged)
    assert [slate.ranks for slate in log] == [None, [2]]
    assert read_slates([GOOD])[:] == [Slate("Why?", ["Because.", "No idea."], [3.0, 1.5])]


BAD_ROWS = [
    # what is wrong, the field named, a part of what was expected or came
    ({"prompt": None}, "prompt", "got nothing"),
    ({"prompt": ""}, "prompt", "non-empty text, got ''"),
    ({"prompt": 7}, "prompt", "got 7"),
    ({"prompt": []}, "prompt", "at least one turn"),
    ({"prompt": [{"role": "user"}]}, "prompt[0]", "{'role': ..., 'content': ...}, got {'role': 'user'}"),
    ({"prompt": [{"role": "user", "content": "a"}, {"role": "user", "content": 3}]}, "prompt[1].content", "got 3"),
    ({"prompt": [{"role": "", "content": "a"}]}, "prompt[0].role", "non-empty text"),
    ({"prompt": "half a pair \ud800"}, "prompt", "UTF-8"),
    ({"completions": None}, "completions", "got nothing"),
    ({"completions": "Because."}, "completions", "a list of responses"),
    ({"completions": [], "scores": []}, "completions", "at least one response, got []"),
    ({"completions": ["Because.", ""]}, "completions[1]", "got ''"),
    ({"completions": ["Because.", " \n"]}, "completions[1]", "not blank"),
    ({"completions": ["Because.", None]}, "completions[1]", "got None"),
    ({"completions": ["Because.", [{"role": "assistant", "content": "No."}]]}, "completions[1]", "non-empty text"),
    ({"completions": [[{"role": "assistant", "content": "a"}], "b"]}, "completions[1]", "one assistant turn"),
    ({"completions": [[{"role": "user", "content": "a"}]], "scores": [1]}, "completions[0][0].role", "'assistant'"),
    ({"completions": [[{"role": "assistant", "content": ""}]], "scores": [1]}, "completions[0][0].content", "got ''"),
    ({"completions": [[]], "scores": [1]}, "completions[0]", "one assistant turn"),
    ({"scores": None}, "scores", "got nothing"),
    ({"scores": 3}, "scores", "a list of 2"),
    ({"scores": [1]}, "scores", "2 entries, one per completion, got 1 entries"),
    ({"scores": [1, "2"]}, "scores[1]", "a finite number, got '2'"),
    ({"scores": [1, True]}, "scores[1]", "got True"),
    ({"scores": [math.nan, 1]}, "scores[0]", "got nan"),
    ({"scores": [1, -math.inf]}, "scores[1]", "got -inf"),
    ({"scores": [1, 10**400]}, "scores[1]", "a finite number"),
    ({"logging_logprobs": [-1.0]}, "logging_logprobs", "2 entries"),
    ({"logging_logprobs": [-1.0, 0.5]}, "logging_logprobs[1]", "<= 0 (nats, the total over the response), got 0.5"),
    ({"logging_logprobs": [math.nan, -1.0]}, "logging_logprobs[0]", "got nan"),
    ({"completion_tokens": [0, 4]}, "completion_tokens[0]", "an integer >= 1, got 0"),
    ({"completion_tokens": [3.0, 4]}, "completion_tokens[0]", "got 3.0"),
    ({"ranks": [1, False]}, "ranks[1]", "got False"),
    ({"slate_id": 12}, "slate_id", "got 12"),
    ({"responders": ["me", 5]}, "responders[1]", "got 5"),
    ({"logging_policy": {"how": "recordd"}}, "logging_policy.how", "one of recorded, behaviour_cloned, proxy, unknown"),
    ({"logging_policy": 4}, "logging_policy", "describing the logging policy, got 4"),
    ({"logging_policy": "{"}, "logging_policy", "JSON"),
    ({"origin": 4}, "origin", "where the slate came from, got 4"),
    ({"group_scores": [{"a": 1.0}]}, "group_scores", "2 entries"),
    ({"group_scores": [{"a": 1.0}, 3]}, "group_scores[1]", "a number for each group, got 3"),
    ({"group_scores": [{"a": 1.0}, {"a": "x"}]}, "group_scores[1].a", "a finite number"),
]


@pytest.mark.parametrize(("change", "field", "told"), BAD_ROWS, ids=[f"{i}-{row[1]}" for i, row in enumerate(BAD_ROWS)])
def test_a_bad_row_is_named_by_file_row_and_field(tmp_path: Path, change: dict, field: str, told: str) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(json.dumps(GOOD) + "\n\n" + json.dumps({**GOOD, **change}) + "\n" + json.dumps(GOOD))
    with pytest.raises(SlateError) as caught:
        read_slates(path)
    error = caught.value
    assert (error.source, error.row, error.field) == (str(path), 3, field)  # the blank line counts: 3 is the file's
    assert str(error).startswith(f"{path}, row 3: {field}: expected ")
    assert told in str(error)

    log = read_slates(path, skip_bad_rows=True)
    assert (len(log), log.skipped, log.skip_reasons) == (2, 1, (str(error),))
    assert "1 rows skipped" in str(log)


@pytest.mark.parametrize("name", ["nemo-rl", "community-alignment", "helpsteer2", "openai", "otel"])
def test_a_log_of_another_form_is_told_to_be_converted(name: str) -> None:
    log = sorted((Path(__file__).parent / "formats" / name).glob("*.jsonl"))[0]
    with pytest.raises(SlateError, match=r"row 1: row: expected a slate, .*`pope convert` makes slates"):
        read_slates(log)


def test_fields_without_a_value_are_named(tmp_path: Path) -> None:
    """Such as slates that nobody has rated yet."""
    path = tmp_path / "log.jsonl"
    path.write_text('{"prompt": "a", "completions": null, "scores": null}\n')
    with pytest.raises(SlateError, match="row 1: completions: expected a value"):
        read_slates(path)


@pytest.mark.parametrize("line", [b"{not json", b"[1, 2]", b'"text"', b'{"prompt": "\xff"}'])
def test_a_line_that_is_no_object_is_a_bad_row(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(line + b"\n")
    with pytest.raises(SlateError, match=r"row 1: row: expected "):
        read_slates(path)


def test_a_log_without_a_good_row_is_an_error_even_when_skipping(tmp_path: Path) -> None:
    with pytest.raises(SlateError, match=r"list: log: expected at least one slate, got none"):
        read_slates([])
    with pytest.raises(SlateError, match=r"got 2 bad rows, the first: list, row 1: scores: "):
        read_slates([{**GOOD, "scores": []}, 3], skip_bad_rows=True)


def test_sources_that_are_no_log_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"ending in \.jsonl, \.json or \.parquet, got 'log\.csv'"):
        read_slates("log.csv")
    with pytest.raises(TypeError, match="pass one of its splits"):
        read_slates(datasets.DatasetDict({"train": datasets.Dataset.from_list([GOOD])}))
    with pytest.raises(FileNotFoundError):
        read_slates(tmp_path / "missing.jsonl")
    with pytest.raises(ValueError, match=r"\.jsonl or \.parquet"):
        write_slates([], tmp_path / "log.json")


def test_parquet_refuses_to_mix_text_and_turns(tmp_path: Path) -> None:
    mixed = [Slate("a", ["b"], [1.0]), Slate([{"role": "user", "content": "a"}], ["b"], [1.0])]
    with pytest.raises(ValueError, match=r"prompt: expected all text or all turns .* write \.jsonl"):
        write_slates(mixed, tmp_path / "log.parquet")
    write_slates(mixed, tmp_path / "log.jsonl")
    assert list(read_slates(tmp_path / "log.jsonl")) == mixed


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    write_slates([Slate("a", ["b"], [1.0])], path)
    with pytest.raises(ValueError, match="JSON"):
        write_slates([Slate("a", ["b"], [math.nan])], path)
    assert len(read_slates(path)) == 1


def test_a_slate_error_survives_a_worker_process() -> None:
    error = SlateError("log.jsonl", 4, "scores", "a number", "'x'")
    assert (
        str(pickle.loads(pickle.dumps(error))) == str(error) == "log.jsonl, row 4: scores: expected a number, got 'x'"
    )


@quick
@given(
    groups=st.lists(st.text(string.ascii_lowercase, min_size=1, max_size=3), min_size=2).filter(
        lambda g: len(set(g)) > 1
    ),
    fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 5),
    data=st.data(),
)
def test_group_split_keeps_groups_whole_and_depends_on_names_alone(
    groups: list[str], fraction: float, seed: int, data: st.DataObject
) -> None:
    slates = [Slate("q", ["a"], [1.0], slate_id=f"{group}#{i}") for i, group in enumerate(groups)]

    def key(slate: Slate) -> str:
        return (slate.slate_id or "").partition("#")[0]

    train, heldout = group_split(slates, key, fraction, seed)
    train_groups, held_groups = set(map(key, train)), set(map(key, heldout))
    assert train_groups
    assert held_groups
    assert not train_groups & held_groups
    assert sorted(train + heldout, key=slates.index) == slates
    expected = min(max(round(fraction * len(set(groups))), 1), len(set(groups)) - 1)
    assert len(held_groups) == expected
    shuffled = data.draw(st.permutations(slates))
    assert set(map(key, group_split(shuffled, key, fraction, seed)[1])) == held_groups


def test_group_split_is_the_same_on_every_machine_and_refuses_what_it_cannot_split() -> None:
    slates = [Slate("q", ["a"], [1.0], slate_id=name) for name in "abcdefgh"]
    assert [slate.slate_id for slate in group_split(slates, lambda s: s.slate_id or "", 0.25, 0)[1]] == ["f", "h"]
    with pytest.raises(ValueError, match="at least two groups"):
        group_split(slates, lambda s: "one", 0.5, 0)
    with pytest.raises(ValueError, match="holdout_fraction"):
        group_split(slates, lambda s: s.slate_id or "", 1.0, 0)


def test_a_missing_library_is_named_with_its_extra() -> None:
    assert require("json", extra="train", purpose="to test") is json
    with pytest.raises(ImportError, match=r"no_such_library is needed to test; .* pip install 'pope-core\[train\]'"):
        require("no_such_library.part", extra="train", purpose="to test")
    with pytest.raises(ModuleNotFoundError, match=r"json\.missing"):
        require("json.missing", extra="train", purpose="to test")


def test_a_weight_of_a_slate_is_a_column_like_any_other() -> None:
    log = read_slates([{**GOOD, "weight": 2.0}])
    assert log.ignored_fields == ("weight",)
    assert not hasattr(log[0], "weight")


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_means_become_totals_when_they_are_read(tmp_path: Path, ending: str) -> None:
    row = {**GOOD, "logging_means": [-0.5, -2], "completion_tokens": [4, 3]}
    path = tmp_path / f"log.{ending}"
    if ending == "jsonl":
        path.write_text(json.dumps(row) + "\n")
    else:
        datasets.Dataset.from_list([{**row, "logging_means": [-0.5, -2.0], "scores": [3.0, 1.5]}]).to_parquet(path)
    log = read_slates(path)
    assert log[0].logging_logprobs == [-2.0, -6.0]
    assert log.ignored_fields == ()
    write_slates(log, tmp_path / "totals.jsonl")
    assert "logging_means" not in (tmp_path / "totals.jsonl").read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"completion_tokens": None},
            r"completion_tokens: expected the tokens of .* None",
        ),
        ({"logging_means": [-0.5, 2]}, r"logging_means\[1\]: expected a log-probability <= 0 \(nats per token"),
        ({"logging_means": [-0.5]}, "logging_means: expected 2 entries, one per completion, got 1"),
        ({"logging_logprobs": [-1, -1]}, r"logging_means: expected totals \(logging_logprobs\) or means, not both"),
    ],
)
def test_means_without_their_tokens_are_refused_by_row(change: dict, message: str) -> None:
    good = {**GOOD, "logging_means": [-0.5, -2], "completion_tokens": [4, 3]}
    with pytest.raises(SlateError, match=f"row 2: {message}"):
        read_slates([good, {**good, **change}])
    assert len(read_slates([good, {**good, **change}], skip_bad_rows=True)) == 1
