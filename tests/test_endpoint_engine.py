"""Sampling from an OpenAI-compatible endpoint: several answers to a request, faults, recorded log-probabilities."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
from faulty_server import FaultyServer, running
from pope_align.cli import main
from pope_align.data import Slate, read_slates, write_slates
from pope_align.generation.endpoint import Budget, BudgetExceeded, Endpoint, EndpointError
from pope_align.generation.endpoint_engine import EndpointEngine
from pope_align.generation.generate import generate_for_slates
from pope_align.generation.generations import GenerationSet, RecordedTotal, read_generations, write_generations
from pope_align.generation.labelled import labelled_slates
from pope_align.generation.sampling import Sampling

SLATES = [Slate(f"Question {n}?", ["x"], [0.0], slate_id=f"q{n}") for n in range(6)]


class Logprobs(FaultyServer):
    """Answers in tokens of one letter, each with probability 1/4; ``tokens`` may say something else than the text."""

    def __init__(self, text: str = "tea", tokens: str | None = None, end: bool = False, **options) -> None:
        super().__init__(lambda messages: text, **options)
        self.text, self.tokens, self.end = text, text if tokens is None else tokens, end

    def answers(self, body: dict) -> list:
        tokens = [*self.tokens, *["<end>"] * self.end]
        content = [{"token": token, "logprob": math.log(0.25), "bytes": [*token.encode()]} for token in tokens]
        given = {"logprobs": {"content": content}} if body.get("logprobs") else {}
        return [{"content": self.text, **given} for _ in range(body.get("n", 1))]


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "k")


def engine(where: FaultyServer, /, *, budget: Budget | None = None, **options) -> EndpointEngine:
    endpoint = Endpoint("m", where.url, max_wait=0.05, timeout=2.0, budget=budget or Budget())
    return EndpointEngine(endpoint, **options)


def sampled(made: EndpointEngine, n: int = 5, **options) -> GenerationSet:
    return generate_for_slates(made, SLATES, name="m", n=n, sampling=Sampling(9), **options)


def test_answers_to_one_prompt_are_asked_for_at_once_through_every_fault() -> None:
    faults = ("429", "429 wait", "500", "503", "broken body", "no choices", "cut")
    with running(
        FaultyServer(lambda messages: f"on {messages[-1]['content']}", lambda number: [faults[number % 7]])
    ) as server:
        made = sampled(engine(server, answers_per_request=3, concurrency=4))
        assert sorted(request.get("n", 1) for request in server.requests) == [2] * 12 + [3] * 12  # each sent twice
        assert set(server.faults) == set(faults)
        assert len(server.sendings) == 12  # not 30
    assert [row.texts for row in made.rows] == [[f"on Question {n}?"] * 5 for n in range(6)]
    assert made.settings["answers_per_request"] == 3
    assert made.rows[0].tokens == [5] * 5  # the API counts those of all answers together


def test_an_endpoint_that_gives_fewer_answers_is_asked_for_the_rest() -> None:
    class Miserly(FaultyServer):
        def answers(self, body: dict) -> list:
            return ["one", "two"][: body.get("n", 1)]

    with running(Miserly(lambda messages: "")) as server:
        made = sampled(engine(server, answers_per_request=5))
        assert [request.get("n", 1) for request in server.requests if "0" in request["messages"][0]["content"]] == [
            5,
            3,
            1,
        ]
    assert all(row.texts == ["one", "two", "one", "two", "one"] for row in made.rows)


def test_tokens_of_several_answers_are_charged_once_and_what_came_before_a_failure_is_kept(tmp_path: Path) -> None:
    budget = Budget(max_tokens=60)
    with running(FaultyServer(lambda messages: "x")) as server:
        made = engine(server, answers_per_request=2, concurrency=1, budget=budget)
        with pytest.raises(BudgetExceeded):
            sampled(made, n=2, journal=tmp_path / "journal")
        assert budget.tokens == 60  # three requests: 10 of the prompt and 10 of two answers each
        assert len(server.served) == 3
        sampled(engine(server, answers_per_request=2), n=2, journal=tmp_path / "journal")
        assert len(server.served) == 6


@pytest.mark.parametrize("end", [False, True])
def test_recorded_totals_become_the_propensities_of_a_log(end: bool, tmp_path: Path) -> None:
    with running(Logprobs(end=end)) as server:
        made = sampled(engine(server, answers_per_request=5, logprobs=True))
        assert all(request["logprobs"] is True for request in server.requests)
    count = 4 if end else 3
    for ending in ("jsonl", "parquet"):
        write_generations(made, tmp_path / f"g.{ending}")
        assert read_generations(tmp_path / f"g.{ending}").rows == made.rows
    assert made.rows[0].recorded[0] == RecordedTotal(pytest.approx(count * math.log(0.25)), count, end)
    slates, report = labelled_slates(made, [[1.0] * 5] * 6, {"labeller": "hand"})
    assert report.unrecorded == 0
    assert slates[0].logging_logprobs == pytest.approx([count * math.log(0.25)] * 5)
    assert slates[0].completion_tokens == [count] * 5
    assert slates[0].finished == (None if end else [False] * 5)  # the end-of-turn token is not in the total
    assert (slates[0].logging_policy["how"], slates[0].logging_policy["engine"]) == ("recorded", "openai")


def test_tokens_of_another_text_are_no_propensity_and_are_counted() -> None:
    with running(Logprobs(text="tea", tokens="hmm tea")) as server:
        made = sampled(engine(server, logprobs=True))
    assert made.rows[0].recorded == [None] * 5
    slates, report = labelled_slates(made, [[1.0] * 5] * 6, {"labeller": "hand"})
    assert (slates, report.unrecorded, report.empty_slates) == ([], 30, 6)
    assert "30 answers whose recorded tokens are not those of their text" in str(report)


def test_an_endpoint_without_log_probabilities_is_named() -> None:
    with (
        running(FaultyServer(lambda messages: "x")) as server,
        pytest.raises(EndpointError, match="logprobs: expected an endpoint that sends log-probabilities"),
    ):
        sampled(engine(server, logprobs=True))


def test_settings_that_a_server_may_take_from_its_model_are_sent() -> None:
    with running(Logprobs()) as server:
        sampled(engine(server, logprobs=True, server="vllm"), n=1)
        assert {(r["top_k"], r["min_p"], r["repetition_penalty"]) for r in server.requests} == {(-1, 0.0, 1.0)}
        sampled(engine(server, logprobs=True), n=1)
        assert "top_k" not in server.requests[-1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("--logprobs", "--temperature", "0.7"),
            "logprobs: expected settings that the log-probabilities of openai include",
        ),
        (("--logprobs", "--top-p", "0.9", "--server", "vllm"), "of vllm include, got top_p 0.9"),
        (("--logprobs", "--top-p", "0.9", "--server", "sglang"), "of sglang include, got top_p 0.9"),
        (("--logprobs", "--temperature", "0"), "temperature: expected > 0 with logprobs, got 0"),
        (("--engine", "transformers", "--answers-per-request", "2"), "expected with --engine openai only"),
    ],
)
def test_settings_without_propensities_are_refused_before_anything_is_asked(
    options, message, tmp_path: Path, monkeypatch, capsys
) -> None:
    write_slates(SLATES, tmp_path / "log.jsonl")
    given = ["generate", str(tmp_path / "log.jsonl"), "--model", "m", "-o", str(tmp_path / "g.jsonl")]
    monkeypatch.setattr(
        sys, "argv", ["pope", *given, "--engine", "openai", "--base-url", "http://127.0.0.1:9/v1", *options]
    )
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_the_command_writes_a_log_with_propensities(tmp_path: Path, monkeypatch) -> None:
    write_slates(SLATES, tmp_path / "log.jsonl")
    (tmp_path / "rate.py").write_text("def rate(prompt, texts):\n    return [float(len(text)) for text in texts]\n")
    monkeypatch.chdir(tmp_path)
    with running(Logprobs(end=True)) as server:
        sample = ["generate", "log.jsonl", "--model", "m", "-o", "g.parquet", "-n", "4", "--engine", "openai"]
        sample += ["--base-url", server.url, "--logprobs", "--answers-per-request", "4", "--server", "sglang"]
        sample += ["--temperature", "0.5"]  # SGLang's values are of the distribution after temperature
        for arguments in (
            sample,
            ["label", "g.parquet", "--with", "python", "--function", "rate:rate", "-o", "l.jsonl"],
        ):
            monkeypatch.setattr(sys, "argv", ["pope", *arguments])
            with pytest.raises(SystemExit) as ended:
                main()
            assert ended.value.code == 0
        assert len(server.served) == 6
    log = read_slates("l.jsonl")
    assert [slate.logging_logprobs for slate in log] == [[pytest.approx(4 * math.log(0.25))] * 4] * 6
    assert log[0].logging_policy["sampling"]["temperature"] == 0.5
