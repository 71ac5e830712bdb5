"""`pope inspect`: every number by hand, and a picture that shows them."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pope_align.cli import app
from pope_align.data import Slate, write_slates
from pope_align.inspect import inspect_slates, plot_inspection, quantiles
from typer.testing import CliRunner

FITTED = {"how": "behaviour_cloned", "model": "dir/gpt2", "fit": {"in_sample": 1, "folds": None}}
LOG = [
    Slate(
        "Name a fruit.",
        ["Pear", "Tomato"],
        [12, 3],
        slate_id="fruit#0",
        logging_logprobs=[-2.0, -6.0],
        completion_tokens=[2, 2],
        logging_policy=FITTED,
        origin={"format": "reddit", "feedback": "votes"},
    ),
    Slate("Name a fruit.", ["Pear", "Pear ", "Fig"], [1, 1, 1], slate_id="fruit#1"),
    Slate([{"role": "user", "content": "Hi"}], [[{"role": "assistant", "content": "Hello"}]], [0.5], slate_id="hi"),
]


def test_a_log_in_numbers() -> None:
    seen = inspect_slates(LOG, against=[LOG[1], Slate("Hi", ["x"], [0.0], slate_id="hi#7")])
    assert (seen.slates, seen.responses, seen.groups, seen.constant, seen.unscored) == (3, 6, 2, 2, 2)
    assert (seen.repeated_prompts, seen.repeated_responses, seen.repeated_in_slate) == (1, 2, 1)
    assert (seen.shared_prompts, seen.shared_groups) == (2, 3)
    assert seen.k.tolist() == [2, 3, 1]
    assert seen.prompt_chars.tolist() == [13, 13, 2]
    assert seen.utilities.tolist() == [1, 0, 0.5, 0.5, 0.5, 0.5]
    assert seen.origins == {"unknown: unknown": 2, "reddit: votes": 1}
    (policy,) = seen.propensities
    assert (policy.how, policy.model, policy.responses, policy.in_sample) == ("behaviour_cloned", "dir/gpt2", 2, 1)
    assert policy.nats_per_token == 2
    assert policy.perplexity == pytest.approx(math.e**2)
    assert not policy.cross_fitted
    assert quantiles(np.arange(101.0)) == (0, 5, 50, 95, 100)


def test_cross_fitting_and_missing_token_counts_are_told() -> None:
    crossed = replace(LOG[0], logging_policy={**FITTED, "fit": {"in_sample": 0, "folds": 5}})
    (policy,) = inspect_slates([crossed]).propensities
    assert policy.cross_fitted
    (policy,) = inspect_slates([replace(LOG[0], completion_tokens=None, logging_policy=None)]).propensities
    assert (policy.how, policy.nats_per_token, policy.perplexity) == ("recorded", None, None)
    with pytest.raises(ValueError, match="slates: expected at least one slate"):
        inspect_slates([])


def test_the_page_and_the_picture(tmp_path: Path) -> None:
    write_slates(LOG, tmp_path / "log.jsonl")
    write_slates(LOG[1:2], tmp_path / "train.jsonl")
    arguments = ["inspect", str(tmp_path / "log.jsonl"), "--against", str(tmp_path / "train.jsonl")]
    result = CliRunner().invoke(app, [*arguments, "-o", str(tmp_path / "log.png")])
    assert result.exit_code == 0, result.output
    for line in (
        "slates with equal scores\t2 (66.7%)",
        "slates whose prompt is in the other log\t2 (66.7%)",
        "responses per slate\t1\t1.1\t2\t2.9\t3",
        "# propensities: behaviour_cloned",
        "model\tgpt2",
        "  fitted to\t1",
        "nats per token\t2.0000",
        "perplexity\t7.39",
        "  5% of responses below, nats per token\t-2.900",
        "  5% of responses below, nats\t-5.8",
    ):
        assert line in result.output
    assert (tmp_path / "log.png").read_bytes().startswith(b"\x89PNG")
    plot_inspection(inspect_slates(LOG[1:]), tmp_path / "unscored.svg")
    assert "no log-probabilities per token" in (tmp_path / "unscored.svg").read_text()


def test_splits_that_leak_by_group_or_by_a_prompt_in_other_words_are_told(tmp_path: Path) -> None:
    """Ids ``POST/COMMENT`` hold a post that the default group does not see."""
    asked = "Which tea is the best one to drink early in the morning, and why is that so?"
    train = [Slate(asked, ["Green.", "Black."], [1, 0], slate_id="reddit/p1/c1")]
    test = [
        Slate("Another comment of the post?", ["Yes.", "No."], [1, 0], slate_id="reddit/p1/c2"),
        Slate(asked.lower().replace(",", "") + "!", ["a", "b"], [1, 0], slate_id="reddit/p2/c1"),
        Slate("Nothing of the kind, and long enough to have triples.", ["a", "b"], [1, 0], slate_id="reddit/p3/c1"),
    ]
    blind = inspect_slates(test, against=train)
    assert (blind.shared_prompts, blind.shared_groups, blind.near_prompts) == (0, 0, 1)
    for group in ("prefix:/", "regex:^reddit/([^/]+)/", "regex:p\\d"):
        seen = inspect_slates(test, against=train, group=group)
        assert (seen.groups, seen.shared_groups) == (3, 1)
    marked = [replace(slate, origin={"group": slate.slate_id.split("/")[1]}) for slate in [*train, *test]]
    assert inspect_slates(marked[1:], against=marked[:1]).shared_groups == 1
    assert inspect_slates(marked[1:], against=marked[:1], group="column:origin.group").shared_groups == 1
    write_slates(test, tmp_path / "test.jsonl")
    write_slates(train, tmp_path / "train.jsonl")
    arguments = ["inspect", str(tmp_path / "test.jsonl"), "--against", str(tmp_path / "train.jsonl")]
    result = CliRunner().invoke(app, [*arguments, "--group", "prefix:/"])
    assert "warning: 1 of 3 slates share their group with the other log" in result.output
    assert "warning: 1 of 3 slates have a prompt that is nearly one of the other log" in result.output


def test_votes_with_a_heavy_tail_suggest_another_transform() -> None:
    heavy = [Slate("q", [f"a{i}" for i in range(9)], [0, 1, 2, 3, 4, 5, 6, 7, 9000])]
    (hint,) = inspect_slates(heavy).hints
    assert "log1p_minmax" in hint
    assert not inspect_slates(heavy, transform="log1p_minmax").hints
    assert not inspect_slates([Slate("q", ["a", "b", "c"], [1, 2, 3])]).hints


def test_the_numbers_come_as_json_and_a_picture_is_not_overwritten(tmp_path: Path) -> None:
    write_slates(LOG, tmp_path / "log.jsonl")
    result = CliRunner().invoke(app, ["inspect", str(tmp_path / "log.jsonl"), "--json", "-"])
    numbers = json.loads(result.stdout)
    assert (numbers["slates"], numbers["distributions"]["k"]["greatest"]) == (3, 3)
    assert numbers["propensities"][0]["perplexity"] == pytest.approx(math.e**2)
    (tmp_path / "a.png").write_text("mine")
    result = CliRunner().invoke(app, ["inspect", str(tmp_path / "log.jsonl"), "-o", str(tmp_path / "a.png")])
    assert "exists already; pass --overwrite" in str(result.exception)
    assert (tmp_path / "a.png").read_text() == "mine"


@pytest.mark.parametrize("scores", [[0.0, 0.0], [1.0, 2.0], [0.0, 9e5], [-400.0, 3.0]])
@pytest.mark.parametrize("text", ["a", "ab", "a" * 5000])
def test_no_panel_repeats_a_mark_or_counts_halves(scores: list[float], text: str, tmp_path: Path, monkeypatch) -> None:
    figures = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, path, **_: figures.append(figure))
    plot_inspection(
        inspect_slates([Slate("Why?", ["b", text + "c"], scores)]), tmp_path / "a.png", name="my $log$.jsonl"
    )
    (figure,) = figures
    assert "my " in figure.get_suptitle()
    for panel in figure.axes:
        if panel.axison:
            figure.canvas.draw()
            for axis in (panel.xaxis, panel.yaxis):
                low, high = axis.get_view_interval()
                labels = zip(axis.get_ticklocs(), axis.get_ticklabels(), strict=True)
                marks = [label.get_text() for at, label in labels if low <= at <= high]
                assert len(marks) == len(set(marks)), (panel.get_title(), marks)
            assert all("." not in label.get_text() for label in panel.yaxis.get_ticklabels())
            assert panel.get_ylim()[0] == 0
            assert any(patch.get_height() > 0 for patch in panel.patches)
