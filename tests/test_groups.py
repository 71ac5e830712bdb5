"""``--group`` means the same in every command, and ids of groups and clusters are never confused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from letters import Letters
from pope_align.cli import app
from pope_align.cli.command import CLUSTER_PREFIX, modern
from pope_align.data import Slate, read_slates, write_slates
from pope_align.data.split import grouping
from pope_align.generation.generations import Generation, GenerationSet, slate_keys, write_generations
from pope_align.metrics import embeddings, figures
from pope_align.metrics.evaluate import PromptMetrics
from pope_align.metrics.summary import summarize
from pope_align.ope import LoggedSlates, subgroup_values
from pope_align.stats.clusters import codes_of
from typer.testing import CliRunner

#: ``--group`` and the number of groups that it makes of `log`; prompts are twelve, ids up to ``#`` twelve.
GROUPS = {"prefix:/": 6, "regex:^reddit/p([0-2])": 3, "column:origin.user": 4}


def log() -> list[Slate]:
    return [
        Slate(
            f"Question {at}?",
            ["green tea", "black tea", "no idea"],
            [float(at % 3), 1.0, 0.5],
            slate_id=f"reddit/p{at % 3}{at % 2}/c{at}",
            logging_logprobs=[-60.0, -61.0, -62.0],
            logging_policy={"how": "recorded"},
            origin={"user": f"u{at // 3}"},
        )
        for at in range(12)
    ]


@pytest.fixture(scope="module")
def work(tmp_path_factory, make_tiny_model, tiny_tokenizer) -> Path:
    """A folder with a log, a model and answers."""
    folder = tmp_path_factory.mktemp("groups")
    make_tiny_model().save_pretrained(folder / "model")
    tiny_tokenizer.save_pretrained(folder / "model")
    write_slates(log(), folder / "log.jsonl")
    answers = [
        Generation(key, slate.prompt, [f"tea {at % 5}" * (1 + at % 4), "black tea"])
        for at, (key, slate) in enumerate(zip(slate_keys(log()), log()))
    ]
    write_generations(GenerationSet("m", tuple(answers)), folder / "gens.jsonl")
    return folder


def run(*arguments: object) -> None:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output


def counts(work: Path, folder: Path, source: Path, *options: str) -> list[int]:
    """Groups as inspect, evaluate and metrics count them."""
    model = f"--policy=m={work / 'model'}"
    run("inspect", source, "--json", folder / "inspect.json", *options)
    run("evaluate", source, model, "--out", folder / "evaluate.json", "--cache", work / "cache", *options)
    run("metrics", work / "gens.jsonl", "--refs", source, "-o", folder / "metrics", *options)
    files = ("inspect.json", "evaluate.json", "metrics/metrics.json")
    inspected, evaluated, measured = (json.loads((folder / name).read_text()) for name in files)
    return [inspected["groups"], evaluated["log"]["clusters"], measured["models"]["m"]["clusters"]]


@pytest.mark.parametrize(("group", "count"), GROUPS.items())
def test_one_group_option_makes_the_same_groups_in_every_command(group, count, work, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(embeddings, "Embedder", Letters)
    assert counts(work, tmp_path, work / "log.jsonl", "--group", group) == [count] * 3
    run("convert", "--from", "slates", work / "log.jsonl", "-o", tmp_path / "grouped.jsonl", "--group", group)
    grouped = read_slates(tmp_path / "grouped.jsonl")
    assert [slate.origin["group"] for slate in grouped] == list(map(grouping(group), log()))
    (tmp_path / "found").mkdir()
    assert counts(work, tmp_path / "found", tmp_path / "grouped.jsonl") == [count] * 3  # without being told again


def test_metrics_draw_groups_and_check_them_before_they_embed(work, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(embeddings, "Embedder", Letters)
    run("metrics", work / "gens.jsonl", "--refs", work / "log.jsonl", "-o", tmp_path / "m", "--group", "prefix:/")
    written = json.loads((tmp_path / "m" / "metrics.json").read_text())["models"]["m"]["metrics"]["diversity"]
    assert "6 groups" in (tmp_path / "m" / "index.html").read_text()
    run("metrics", work / "gens.jsonl", "--refs", work / "log.jsonl", "-o", tmp_path / "p")
    alone = json.loads((tmp_path / "p" / "metrics.json").read_text())["models"]["m"]["metrics"]["diversity"]
    assert alone["value"] == written["value"]
    assert (alone["low"], alone["high"]) != (written["low"], written["high"])
    monkeypatch.setattr(Letters, "__call__", lambda *_, **__: pytest.fail("embedded before the check"))
    with pytest.raises(ValueError, match=r"group: expected a value of column:origin\.team for every slate"):
        run(
            "metrics",
            work / "gens.jsonl",
            "--refs",
            work / "log.jsonl",
            "-o",
            tmp_path / "q",
            "--group=column:origin.team",
        )
    for command in (
        ["inspect"],
        ["evaluate", f"--policy=m={work / 'model'}"],
        ["metrics", "--refs", work / "log.jsonl"],
    ):
        with pytest.raises(ValueError, match="group: expected column:NAME, prefix:SEPARATOR or regex:PATTERN, got 'x'"):
            run(*command, work / "log.jsonl", "--group", "x")


def test_a_figure_that_fails_loses_no_metrics(work, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(embeddings, "Embedder", Letters)
    monkeypatch.setattr(figures, "bars", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run("metrics", work / "gens.jsonl", "--refs", work / "log.jsonl", "-o", tmp_path / "m")
    assert {path.name for path in (tmp_path / "m").iterdir()} == {"metrics.json", "per_slate.parquet", "covered.jsonl"}


@pytest.mark.parametrize("text", ["#", "(.", "/"])
def test_a_cluster_prefix_is_translated_into_the_same_groups(text, capsys) -> None:
    old = ["--cluster-prefix", text]
    (option,) = modern(old, {"--cluster-prefix": CLUSTER_PREFIX}, {"--group"})
    assert modern([f"--cluster-prefix={text}"], {"--cluster-prefix": CLUSTER_PREFIX}, {"--group"}) == [option]
    assert "--cluster-prefix is now --group regex:" in capsys.readouterr().err
    group = grouping(option.partition("=")[2])
    for name in ("a#1#2", "b\n(.c(.d", "a/b/c", "plain"):
        slate = replace(log()[0], slate_id=name)
        assert group(slate) == name.partition(text)[0]


IDS = [
    ([1, "1"], 2),
    ([1, 1.0, np.int64(1), "1", True], 3),
    (["a", "a\0"], 2),
    ([2**53, 2**53 + 1, 0.5], 3),
    (np.array([3, 1, 3]), 2),
    ([("a", 1), ("a", "1"), ("a", 1)], 2),
]


@pytest.mark.parametrize(("ids", "distinct"), IDS)
def test_ids_that_differ_are_different_clusters(ids, distinct) -> None:
    names, codes = codes_of(ids)
    assert len(names) == distinct == len(set(codes.tolist()))
    assert all(names[code] == each for code, each in zip(codes, ids))
    logged = LoggedSlates.from_arrays([0.5] * len(ids), [-1.0] * len(ids), {"new": [-1.0] * len(ids)}, clusters=ids)
    assert logged.num_clusters == distinct
    values = np.arange(len(ids), dtype=float)
    table = PromptMetrics(
        "m",
        list(map(str, range(len(ids)))),
        [""] * len(ids),
        dict.fromkeys(("pl_score", "diversity"), values),
        1,
        0,
        0,
        0,
        clusters=list(ids),
    )
    assert summarize([table], draws=50).to_json()["models"]["m"]["clusters"] == distinct


@pytest.mark.parametrize("missing", [None, float("nan"), ["list"]])
def test_an_id_that_is_none_is_refused(missing) -> None:
    with pytest.raises(ValueError, match="clusters: expected an id, a text or number, at 1, got"):
        LoggedSlates.from_arrays([0.5] * 3, [-1.0] * 3, {"new": [-1.0] * 3}, clusters=["a", missing, missing])


def test_subgroups_of_different_ids_stay_apart() -> None:
    rng = np.random.default_rng(0)
    count = 40
    logged = LoggedSlates.from_arrays(rng.random(count), -rng.random(count), {"new": -rng.random(count)})
    found = subgroup_values(logged, "new", [1, "1"] * (count // 2))
    assert sorted(found.groups) == ["'1'", "1"]
    assert found.groups["1"].value != found.groups["'1'"].value
