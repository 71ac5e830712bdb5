"""`pope inspect`: every number by hand, and a picture that shows them."""

from __future__ import annotations

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
    result = CliRunner().invoke(app, [*arguments, "--plot", str(tmp_path / "log.png")])
    assert result.exit_code == 0, result.output
    for line in (
        "slates whose scores are all equal\t2 (66.7%)",
        "slates whose prompt is in the other log\t2 (66.7%)",
        "responses per slate\t1\t1.1\t2\t2.9\t3",
        "behaviour_cloned\t2\t2.0000\t7.39\t-2.900\t-5.8\t1\tgpt2",
    ):
        assert line in result.output
    assert (tmp_path / "log.png").read_bytes().startswith(b"\x89PNG")
    plot_inspection(inspect_slates(LOG[1:]), tmp_path / "unscored.svg")
    assert "no log-probabilities per token" in (tmp_path / "unscored.svg").read_text()
