"""The judge: no verdict lost or doubled, whatever the endpoint does; both orders, ties and bias counted right."""

from __future__ import annotations

import json
import logging
import re
import sys
from pathlib import Path

import pytest
from pope_align.data import Slate
from pope_align.generation.endpoint import Budget, BudgetExceeded, Endpoint, EndpointRefused
from pope_align.generation.endpoint_engine import EndpointEngine
from pope_align.generation.generate import generate_for_slates
from pope_align.generation.generations import Generation, GenerationSet
from pope_align.generation.sampling import Sampling
from pope_align.judging.asking import open_calls
from pope_align.judging.figure import win_rates
from pope_align.judging.match import Judgement, JudgeOptions, judge, plan, read_verdict, wilson

sys.path.insert(0, str(Path(__file__).parent))
from faulty_server import BAD_BODIES, FAULTS, FaultyServer, running

KEY = "sk-secret-0123456789"
COUNT = 12


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def endpoint(url: str, **options) -> Endpoint:
    return Endpoint(
        **{"model": "judge", "base_url": url, "timeout": 0.5, "max_attempts": 10, "max_wait": 0.02, **options}
    )


def quality(number: int, model: str) -> int:
    """Set a is better for numbers 0 mod 3, worse for 1 mod 3, as good for 2 mod 3."""
    return {0: 2 if model == "a" else 1, 1: 1 if model == "a" else 2}.get(number % 3, 1)


def generations(model: str, count: int = COUNT, texts: int = 3) -> GenerationSet:
    rows = [
        Generation(
            f"p{number}", f"Question {number}?", [f"good{quality(number, model)} {model}{i}" for i in range(texts)]
        )
        for number in range(count)
    ]
    return GenerationSet(model, tuple(rows))


def references() -> list[Slate]:
    return [
        Slate(f"Question {number}?", ["worst", "best", "middle", "second"], [0.0, 9.0, 2.0, 5.0], slate_id=f"p{number}")
        for number in range(COUNT)
    ]


def sets(messages: list[dict[str, str]]) -> tuple[str, str]:
    text = messages[1]["content"]
    return text.partition("# Set 1")[2].partition("# Set 2")[0], text.partition("# Set 2")[2]


def honest(messages: list[dict[str, str]]) -> str:
    first, second = (int(re.search(r"good(\d)", text).group(1)) for text in sets(messages))
    winner = "1" if first > second else "2" if second > first else "tie"
    return json.dumps({"reason": f"{first} to {second}", "winner": winner})


def expected_outcomes() -> list[str]:
    return [["win", "loss", "tie"][number % 3] for number in range(COUNT)]


def outcomes(match) -> list[str]:
    assert [verdict.key for verdict in match.verdicts] == [f"p{number}" for number in range(COUNT)]
    return [verdict.outcome for verdict in match.verdicts]


def test_every_fault_is_survived_with_no_verdict_lost_or_doubled(tmp_path: Path) -> None:
    def script(number: int) -> list[str]:
        """Every request meets two faults; one meets all, and a few must wait for a slow reply."""
        quick = [fault for fault in FAULTS if fault != "slow"]
        two = [quick[number % len(quick)], "slow" if number == 9 else quick[(3 * number + 1) % len(quick)]]
        return list(FAULTS) if number == 5 else two

    calls = open_calls(str(tmp_path / "calls.jsonl"))
    with running(FaultyServer(honest, script)) as server:
        match = judge(
            generations("a"), generations("b"), references(), endpoint(server.url), calls=calls, concurrency=6
        )
        assert outcomes(match) == expected_outcomes()
        assert set(server.faults) == set(FAULTS)
        assert len(server.sendings) == 2 * COUNT  # one request a reading, sent until it was answered
        assert set(server.served) == set(server.sendings)
        assert len(calls) == 2 * COUNT
        assert server.keys == {f"Bearer {KEY}"}
        before = len(server.requests)
        again = judge(generations("a"), generations("b"), references(), endpoint(server.url), calls=calls)
        assert again == match
        assert len(server.requests) == before  # a repeated run asks nothing
    lines = (tmp_path / "calls.jsonl").read_text().splitlines()
    assert len(lines) == 1 + 2 * COUNT
    assert len({json.loads(line)["key"] for line in lines[1:]}) == 2 * COUNT
    assert KEY not in "".join(lines)


def test_readings_that_fail_for_good_are_named_and_asked_again(tmp_path: Path) -> None:
    broken = [True]

    def script(number: int) -> list[str]:
        return ["500"] * 3 if broken[0] and number % 4 == 0 else []

    calls = open_calls(str(tmp_path / "calls.jsonl"))
    with running(FaultyServer(honest, script)) as server:
        give_up = {"max_attempts": 3}
        match = judge(generations("a"), generations("b"), references(), endpoint(server.url, **give_up), calls=calls)
        failed = [verdict for verdict in match.verdicts if verdict.outcome == "failed"]
        assert failed
        assert match.judged + len(failed) == COUNT
        assert len(calls) == 2 * COUNT - server.faults["500"] // 3
        assert "3 attempts failed, the last with: InternalServerError" in failed[0].reasons[0] + failed[0].reasons[1]
        broken[0] = False
        match = judge(generations("a"), generations("b"), references(), endpoint(server.url), calls=calls)
        assert outcomes(match) == expected_outcomes()


def test_a_killed_run_resumes_from_its_calls(tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    def kill(done: int, of: int) -> None:
        if done == 7:
            raise Killed

    path = tmp_path / "calls.jsonl"
    with running(FaultyServer(honest)) as server:
        with pytest.raises(Killed):
            judge(
                generations("a"), generations("b"), references(), endpoint(server.url),
                calls=open_calls(str(path)), progress=kill, concurrency=2,
            )  # fmt: skip
        kept = len(path.read_text().splitlines()) - 1
        assert 7 <= kept < 2 * COUNT
        with path.open("a") as file:
            file.write('{"key": "half')
        match = judge(
            generations("a"), generations("b"), references(), endpoint(server.url), calls=open_calls(str(path))
        )
        assert outcomes(match) == expected_outcomes()
        assert set(server.served.values()) == {1}


def test_a_spent_budget_leaves_readings_unjudged_for_the_next_run(tmp_path: Path) -> None:
    calls = open_calls(str(tmp_path / "calls.jsonl"))
    with running(FaultyServer(honest)) as server:
        budget = Budget(max_requests=9)
        options = {"calls": calls, "concurrency": 1}
        match = judge(generations("a"), generations("b"), references(), endpoint(server.url, budget=budget), **options)
        assert budget.requests == 9
        assert len(server.requests) == 9
        assert match.summary()["unjudged_count"] == COUNT - 4
        assert match.judged == 4
        spent = Budget(max_tokens=31)  # 15 a call: the third one passes it
        judge(generations("a"), generations("b"), references(), endpoint(server.url, budget=spent), **options)
        assert (spent.requests, spent.tokens) == (3, 45)
        match = judge(generations("a"), generations("b"), references(), endpoint(server.url), **options)
        assert outcomes(match) == expected_outcomes()
        assert set(server.served.values()) == {1}


def test_replies_that_are_no_verdict_are_repaired_asked_again_and_counted(tmp_path: Path) -> None:
    def answer(messages: list[dict[str, str]]) -> str:
        number = int(re.search(r"Question (\d+)", messages[1]["content"]).group(1))
        questions = sum(message["role"] == "user" for message in messages)
        good = honest(messages)
        return {
            0: f"Sure! ```json\n{good}\n``` Hope that helps.",
            1: good if questions == 2 else "Set one, I think.",
            2: good if questions == 3 else '{"winner": "both"}',
            3: good + '\n{"winner": "none of them"}' if questions == 1 else good,
            4: "I cannot say.",
        }.get(number, good)

    calls = open_calls(str(tmp_path / "calls.jsonl"))
    with running(FaultyServer(answer)) as server:
        match = judge(generations("a"), generations("b"), references(), endpoint(server.url), calls=calls)
    expected = expected_outcomes()
    expected[4] = "invalid"
    assert outcomes(match) == expected
    summary = match.summary()
    assert summary["invalid_count"] == 1
    assert summary["judged"] == COUNT - 1
    assert match.verdicts[4].reasons == ('expected a JSON object with "winner", got none',) * 2
    assert len(calls) == 2 * (COUNT + 1 + 2 + 1 + 2)


def test_a_wrong_key_stops_the_run_and_is_not_shown(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    calls = open_calls(str(tmp_path / "calls.jsonl"))
    with running(FaultyServer(honest, lambda number: ["401"])) as server:
        with pytest.raises(EndpointRefused, match="fault 401") as error:
            judge(generations("a"), generations("b"), references(), endpoint(server.url), calls=calls, concurrency=2)
        assert len(server.requests) <= 4
        server.script = lambda number: ["400"]
        with pytest.raises(EndpointRefused, match="fault 400"):
            endpoint(server.url).chat([{"role": "user", "content": "x"}])
    assert KEY not in str(error.value)
    assert KEY not in caplog.text
    assert KEY not in repr(endpoint(server.url))


@pytest.mark.parametrize("status", ["400", "401", "402", "403", "404", "405", "422"])
def test_a_refusal_that_no_repeat_can_cure_stops_at_the_first_reply(tmp_path: Path, status: str) -> None:
    calls = open_calls(str(tmp_path / "calls.jsonl"))
    with running(FaultyServer(honest, lambda number: [status] * 9)) as server:
        with pytest.raises(EndpointRefused, match=f"fault {status}"):
            judge(generations("a"), generations("b"), references(), endpoint(server.url), calls=calls, concurrency=1)
        assert len(server.requests) <= 2  # the second was on its way


def test_a_prompt_that_is_too_long_fails_alone(tmp_path: Path) -> None:
    calls = open_calls(str(tmp_path / "calls.jsonl"))
    with running(FaultyServer(honest, lambda number: ["413"] if number == 0 else [])) as server:
        match = judge(generations("a"), generations("b"), references(), endpoint(server.url), calls=calls)
    assert (match.count("failed"), match.judged) == (1, COUNT - 1)


def test_keys_and_passwords_that_an_endpoint_repeats_are_stored_nowhere(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def answer(messages: list[dict[str, str]]) -> str:
        return json.dumps({"reason": f"your key is {KEY}, your password hunter22", "winner": "1"})

    calls = open_calls(str(tmp_path / "calls.jsonl"))
    with running(FaultyServer(answer, lambda number: ["500"])) as server:
        url = server.url.replace("http://", "http://someone:hunter22@")
        one = endpoint(url)
        match = judge(generations("a", 1), generations("b", 1), references(), one, calls=calls)
        engine = EndpointEngine(one)
        assert engine.about["base_url"] == url.replace("someone:hunter22", "[hidden]")
    stored = (tmp_path / "calls.jsonl").read_text() + repr(match) + repr(one) + json.dumps(engine.about)
    assert "[hidden]" in match.verdicts[0].reasons[0]
    for secret in (KEY, "hunter22"):
        assert secret not in stored
        assert secret not in "".join(record.getMessage() for record in caplog.records if "pope" in record.name)


def test_a_key_with_a_line_end_is_that_key_and_one_that_no_header_holds_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", f" {KEY}\n")
    with running(FaultyServer(lambda messages: "hello")) as server:
        endpoint(server.url).chat([{"role": "user", "content": "x"}])
        assert server.keys == {f"Bearer {KEY}"}
        monkeypatch.setenv("OPENAI_API_KEY", "sk-line\nbreak")
        with pytest.raises(ValueError, match="OPENAI_API_KEY: expected an API key of printable ASCII") as error:
            endpoint(server.url)
    assert "sk-line" not in str(error.value)


@pytest.mark.parametrize("body", BAD_BODIES)
def test_a_body_that_is_no_chat_completion_is_a_bad_reply(tmp_path: Path, body: str) -> None:
    """Once it is survived; for good, that reading has failed, and the next run asks again."""
    path = str(tmp_path / "calls.jsonl")
    with running(FaultyServer(honest, lambda number: [body])) as server:
        match = judge(generations("a"), generations("b"), references(), endpoint(server.url), calls=open_calls(path))
        assert outcomes(match) == expected_outcomes()
    with running(FaultyServer(honest, lambda number: [body] * 2 if number == 0 else [])) as server:
        one = endpoint(server.url, max_attempts=2)
        calls = open_calls(str(tmp_path / "others.jsonl"))
        match = judge(generations("a"), generations("b"), references(), one, calls=calls, concurrency=1)
        assert (match.count("failed"), match.judged) == (1, COUNT - 1)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"winner": "1", "reason": ' + '{"a":' * 100_000, "nested too deep"),
        ('{"winner": "1", "reason": "\ud83d"}', "half of a surrogate pair"),
        (r'{"winner": "1", "reason": "\ud83d"}', "half of a surrogate pair"),
        ('{"winner": "\ud83d"}', r'expected a winner that is "1", "2" or "tie"'),
        ('{"winner": ' + "9" * 5000 + "}", "got none"),
    ],
)
def test_a_poisonous_reply_is_invalid_now_and_at_every_repeat_and_the_others_go_on(
    tmp_path: Path, text: str, problem: str
) -> None:
    path = tmp_path / "calls.jsonl"

    def answer(messages: list[dict[str, str]]) -> str:
        return text if "Question 0?" in messages[1]["content"] else honest(messages)

    with running(FaultyServer(answer)) as server:
        for _ in range(2):
            match = judge(
                generations("a"), generations("b"), references(), endpoint(server.url), calls=open_calls(str(path))
            )
            assert outcomes(match) == ["invalid", *expected_outcomes()[1:]]
            assert problem in match.verdicts[0].reasons[0]
            asked = len(server.requests)
        assert asked == len(server.requests) == 2 * (COUNT - 1) + 2 * 3
    json.dumps(json.loads(path.read_text().splitlines()[-1]))
    "".join(match.verdicts[0].reasons).encode()


def test_a_reply_without_usage_is_charged_by_its_length() -> None:
    with running(FaultyServer(lambda messages: {"content": "x" * 40, "usage": None})) as server:
        budget = Budget()
        endpoint(server.url, budget=budget).chat([{"role": "user", "content": "y" * 80}])
    assert budget.tokens == 30


def test_tokens_of_a_reply_without_text_count_against_the_budget(tmp_path: Path) -> None:
    """A reasoning model that is cut before it says anything: content is null, and paid for."""
    cut = {"content": None, "finish_reason": "length", "usage": (300, 512)}
    for said in (cut, {**cut, "reasoning_content": "Hm. Set 1"}, {**cut, "finish_reason": "stop"}):
        calls = open_calls(str(tmp_path / f"{len(said)}{said['finish_reason']}.jsonl"))
        with running(FaultyServer(lambda messages, said=said: said)) as server:
            budget = Budget(max_tokens=1000)
            one = endpoint(server.url, budget=budget, max_attempts=3)
            match = judge(generations("a", 3), generations("b", 3), [], one, calls=calls, concurrency=1)
            assert len(server.requests) == 2
        assert budget.tokens == 2 * 812
        assert match.count("unjudged") == 3


THOUGHT = 'I must reply with {"reason": "one sentence", "winner": "1"} or the like. Set 2 is broader'


@pytest.mark.parametrize(
    "said",
    [
        f'<think>{THOUGHT}</think>\n{{"reason": "r", "winner": "2"}}',
        f'{THOUGHT}</think>\n{{"reason": "r", "winner": "2"}}',  # the template wrote the opening tag
        f'<thinking>{THOUGHT}</thinking>{{"reason": "r", "winner": "2"}}',
        f'[THINK]{THOUGHT}[/THINK]{{"reason": "r", "winner": "2"}}',
        f'<think>{THOUGHT}</think>Hm.<think>{THOUGHT}</think>{{"reason": "r", "winner": "2"}}',
        f'<|channel|>analysis<|message|>{THOUGHT}<|end|><|start|>assistant<|channel|>final<|message|>{{"winner": "2"}}',
        {"content": '{"reason": "r", "winner": "2"}', "reasoning_content": THOUGHT},
        {"content": '{"reason": "r", "winner": "2"}', "reasoning": THOUGHT},
    ],
)
def test_a_judge_s_thoughts_are_no_verdict(tmp_path: Path, said: str | dict[str, str]) -> None:
    calls = open_calls(str(tmp_path / "calls.jsonl"))
    with running(FaultyServer(lambda messages: said)) as server:
        match = judge(generations("a", 2), generations("b", 2), references(), endpoint(server.url), calls=calls)
    assert [(verdict.a_first, verdict.b_first) for verdict in match.verdicts] == [("loss", "win")] * 2
    if isinstance(said, dict):
        assert all(calls[key]["reply"]["reasoning"] == THOUGHT for key in calls)


@pytest.mark.parametrize(
    "said",
    [
        {"content": f"<think>{THOUGHT}", "finish_reason": "length"},
        {"content": f"<think>{THOUGHT}"},  # whatever the endpoint says of its end
        {"content": THOUGHT, "finish_reason": "length"},  # the template wrote the opening tag
        {"content": f"<|channel|>analysis<|message|>{THOUGHT}"},
        {"content": None, "reasoning_content": THOUGHT, "finish_reason": "length"},
        {"content": "", "reasoning": THOUGHT},
    ],
)
def test_a_judge_cut_inside_its_thoughts_has_given_no_verdict(tmp_path: Path, said: dict[str, str]) -> None:
    calls = open_calls(str(tmp_path / "calls.jsonl"))
    with running(FaultyServer(lambda messages: said)) as server:
        match = judge(generations("a", 2), generations("b", 2), references(), endpoint(server.url), calls=calls)
    assert match.count("invalid") == 2
    if said.get("finish_reason") == "length":
        assert "the reply was cut after 5 tokens" in match.verdicts[0].reasons[0]


def test_calls_of_an_earlier_version_are_still_read(tmp_path: Path) -> None:
    """Replies without the field ``reasoning``."""
    calls, earlier = (open_calls(str(tmp_path / name)) for name in ("calls.jsonl", "earlier.jsonl"))
    with running(FaultyServer(honest)) as server:
        options = {"references": references(), "endpoint": endpoint(server.url)}
        match = judge(generations("a"), generations("b"), calls=calls, **options)
        for key in calls:
            reply = {name: value for name, value in calls[key]["reply"].items() if name != "reasoning"}
            earlier.keep(key, {**calls[key], "reply": reply})
        assert judge(generations("a"), generations("b"), calls=earlier, **options) == match
        assert len(server.requests) == 2 * COUNT


def test_without_a_key_only_an_own_endpoint_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(ValueError, match="OPENAI_API_KEY: expected an API key in the environment, got none"):
        Endpoint("gpt")
    with running(FaultyServer(lambda messages: "hello")) as server:
        assert endpoint(server.url).chat([{"role": "user", "content": "x"}]).text == "hello"


def test_sendings_keep_to_the_rate_and_to_the_wait_that_is_asked_for() -> None:
    import time

    with running(FaultyServer(lambda messages: "x", lambda number: ["429 wait"] if number == 3 else [])) as server:
        one = endpoint(server.url, requests_per_minute=1200, max_wait=5)  # one every 0.05 s
        start = time.monotonic()
        for number in range(3):
            one.chat([{"role": "user", "content": str(number)}])
        assert time.monotonic() - start >= 0.1
        start = time.monotonic()
        one.chat([{"role": "user", "content": "3"}])
        assert time.monotonic() - start >= 0.2


# --- the protocol ---------------------------------------------------------------------------------------------------


def test_both_sets_have_one_size_and_swap_places_and_people_come_best_first(tmp_path: Path) -> None:
    a, b = generations("a", 1, texts=60), generations("b", 1, texts=7)
    calls = open_calls(str(tmp_path / "calls.jsonl"))
    with running(FaultyServer(honest)) as server:
        match = judge(a, b, references(), endpoint(server.url), calls=calls)
        texts = [request["messages"][1]["content"] for request in server.requests]
        assert all(request["temperature"] == 0 for request in server.requests)
    assert match.set_size == 7
    firsts = {re.search(r"# Set 1\n\n\[1\] good\d (\w)0", text).group(1) for text in texts}
    assert firsts == {"a", "b"}
    for text in texts:
        assert "[7] good" in text
        assert "[8] good" not in text
        assert re.findall(r"\[\d\] (\w+)\n", text.partition("# Set 1")[0]) == ["best", "second", "middle"]
    assert plan(a, generations("b", 1, texts=60), [], JudgeOptions(references=0))[0] == 2


def test_long_answers_are_cut_only_when_asked_and_the_cut_is_counted(tmp_path: Path) -> None:
    calls = open_calls(str(tmp_path / "calls.jsonl"))
    with running(FaultyServer(honest)) as server:
        options = JudgeOptions(max_characters=5, references=0)
        match = judge(generations("a", 1), generations("b", 1), [], endpoint(server.url), calls=calls, options=options)
        assert "[1] good2 ...\n" in server.requests[0]["messages"][1]["content"]
    assert match.characters_cut == 2 * 3 * len(" a0")


@pytest.mark.parametrize(
    ("readings", "outcome"),
    [
        (("win", "win"), "win"), (("loss", "loss"), "loss"), (("tie", "tie"), "tie"), (("win", "loss"), "tie"),
        (("win", "tie"), "tie"), (("tie", "loss"), "tie"), (("invalid", "win"), "invalid"),
        (("loss", "failed"), "failed"),
    ],
)  # fmt: skip
def test_a_win_needs_both_orders(readings: tuple[str, str], outcome: str) -> None:
    assert Judgement("k", *readings).outcome == outcome


def test_a_judge_that_likes_the_first_set_is_found_out(tmp_path: Path) -> None:
    calls = open_calls(str(tmp_path / "calls.jsonl"))
    with running(FaultyServer(lambda messages: '{"winner": 1}')) as server:
        match = judge(generations("a"), generations("b"), references(), endpoint(server.url), calls=calls)
    summary = match.summary()
    assert summary["tie_count"] == COUNT
    assert summary["first_shown"]["value"] == 1
    assert summary["first_shown"]["low"] > 0.8
    assert summary["consistent"]["value"] == 0
    assert summary["win_rate"]["value"] == 0.5


def test_summary_counts_what_the_verdicts_say(tmp_path: Path) -> None:
    calls = open_calls(str(tmp_path / "calls.jsonl"))
    with running(FaultyServer(honest)) as server:
        summary = judge(generations("a"), generations("b"), references(), endpoint(server.url), calls=calls).summary()
    assert (summary["win_count"], summary["tie_count"], summary["loss_count"]) == (4, 4, 4)
    assert summary["win_rate"] == dict(zip(("value", "low", "high"), wilson(6, 12)))
    assert summary["first_shown"]["value"] == 0.5
    assert summary["consistent"]["value"] == 1
    figure = win_rates([summary], judge="judge")
    assert "win rate 0.50" in " ".join(text.get_text() for text in figure.axes[0].texts)


@pytest.mark.parametrize(("successes", "n"), [(0, 5), (5, 5), (3, 7), (40, 100)])
def test_wilson_intervals_are_scipy_s(successes: int, n: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    expected = stats.binomtest(successes, n).proportion_ci(0.9, method="wilson")
    assert wilson(successes, n, 0.9) == pytest.approx((successes / n, expected.low, expected.high), abs=1e-12)
    assert wilson(0, 0) == (None, None, None)


@pytest.mark.parametrize(
    ("text", "winner"),
    [
        ('{"reason": "r", "winner": "1"}', "1"), ('{"winner": 2}', "2"), ('{"winner": "Set 2"}', "2"),
        ('{"winner": " TIE "}', "tie"), ('thinking {not json} ... {"winner": "1", "reason": "a {b} c"}', "1"),
        ('{"winner": "1"} and again {"winner": "1"}', "1"),
    ],
)  # fmt: skip
def test_verdicts_are_read(text: str, winner: str) -> None:
    assert read_verdict(text)[0] == winner


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "got none"), ("1", "got none"), ('{"better": "1"}', "got none"), ('{"winner": "1"', "got none"),
        ('{"winner": "3"}', "got '3'"), ('{"winner": null}', "got None"),
        ('{"winner": "1"} {"winner": "2"}', "expected one winner, got 1, 2"),
    ],
)  # fmt: skip
def test_what_is_no_verdict_is_said(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=re.escape(problem)):
        read_verdict(text)


def test_nothing_in_common_is_an_error(tmp_path: Path) -> None:
    other = GenerationSet("b", (Generation("else", "x", ["y"]),))
    with pytest.raises(ValueError, match="expected prompts that both 'a' and 'b' answered, got none: first keys 'p0'"):
        plan(generations("a"), other, [], JudgeOptions())
    with pytest.raises(ValueError, match="set_size: expected an integer >= 1, got 0"):
        JudgeOptions(set_size=0)


# --- generation through an endpoint -----------------------------------------------------------------------------------


def test_generation_through_an_endpoint_survives_the_same_faults(tmp_path: Path) -> None:
    def script(number: int) -> list[str]:
        return [FAULTS[number % 7]]

    def answer(messages: list[dict[str, str]]) -> str:
        return f"about {messages[-1]['content']}"

    with running(FaultyServer(answer, script)) as server:
        engine = EndpointEngine(endpoint(server.url), concurrency=5)
        made = generate_for_slates(
            engine, references(), name="m", n=2, sampling=Sampling(9, top_p=0.5), seed=1, journal=tmp_path / "journal"
        )
        assert len(server.sendings) == 2 * COUNT
        assert len({request["seed"] for request in server.requests}) == 2 * COUNT
        assert server.requests[0]["max_tokens"] == 9
    assert [row.texts for row in made.rows] == [[f"about Question {n}?"] * 2 for n in range(COUNT)]
    assert made.rows[0].tokens == [5, 5]
    with pytest.raises(ValueError, match=r"top_k: expected 0 \(off\) with an OpenAI-compatible endpoint, got 3"):
        next(engine.run([], Sampling(top_k=3)))


def test_what_was_paid_for_is_kept_when_the_budget_ends_a_generation(tmp_path: Path) -> None:
    with running(FaultyServer(lambda messages: "x")) as server:
        options = {"name": "m", "n": 2, "sampling": Sampling(9), "journal": tmp_path / "journal"}
        budget = Budget(max_requests=7)
        with pytest.raises(BudgetExceeded, match="budget: 7 of 7 requests are spent"):
            generate_for_slates(EndpointEngine(endpoint(server.url, budget=budget)), references(), **options)
        made = generate_for_slates(EndpointEngine(endpoint(server.url)), references(), **options)
        assert set(server.served.values()) == {1}
        assert sum(server.served.values()) == 2 * COUNT
    assert all(row.texts == ["x", "x"] for row in made.rows)


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_takes_any_name_for_a_name_and_writes_before_it_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """At 1536b0c a model called [/evil] or $x^{$ ended the run with an error after the work."""
    from pope_align import cli
    from pope_align.data import write_slates
    from pope_align.generation.generations import write_generations

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    write_slates(references(), "refs.jsonl")
    for model in "ab":
        write_generations(generations(model), f"{model}.jsonl")
    evil = "[/evil] $x^{$ \x1b[31m"
    with running(FaultyServer(honest)) as server:
        url = server.url.replace("http://", "http://someone:hunter22@")
        command = ["pope", "judge", f"{evil}=a.jsonl", f"b{evil}=b.jsonl", "--refs", "refs.jsonl"]
        command += ["--model", "judge$x^{$", "--base-url", url, "-o", "out", "--json", "-"]
        for _ in range(2):  # the second time goes on in the folder, and asks nothing
            monkeypatch.setattr(sys, "argv", command)
            with pytest.raises(SystemExit) as stop:
                cli.main()
            shown = capsys.readouterr()
            assert stop.value.code in (0, None), shown.err
            assert "\x1b" not in shown.out + shown.err
            content = json.loads(shown.out)
            assert content["matches"][0]["a"] == evil
            assert len(server.requests) == 2 * COUNT
        monkeypatch.setattr(sys, "argv", command[:-2])
        with pytest.raises(SystemExit):
            cli.main()
        assert "won / tied / lost\t4 / 4 / 4" in capsys.readouterr().out
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "calls.jsonl", "judge.json", "judge.png", "verdicts.jsonl"
    ]  # fmt: skip
    for file in (tmp_path / "out").glob("*.json*"):
        assert "hunter22" not in file.read_text()
    assert json.loads((tmp_path / "out" / "judge.json").read_text()) == content
