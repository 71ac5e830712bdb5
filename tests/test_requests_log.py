"""Requests, answers and feedback that stand apart; and when token log-probabilities are propensities."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pope_align.data import SlateError, read_slates, requests_log
from pope_align.data.convert import ConvertOptions, convert
from pope_align.data.token_logprobs import ENGINES, NOT_LOGGED, left_out, recorded
from pope_align.data.untemplate import Untemplate
from pope_align.models.loading import load_tokenizer
from pope_align.ope import evaluate_policies
from pope_align.propensity.scores import encode_log, score_model

CHATML = Path(__file__).parent / "golden" / "chatml"
NEUTRAL = {"temperature": 1.0, "top_p": 1.0, "top_k": -1}
HOT = {**NEUTRAL, "temperature": 0.7}
CUT = {**NEUTRAL, "top_p": 0.9}
UNKNOWN = dict.fromkeys(("temperature", "top_p", "top_k"), NOT_LOGGED)


@pytest.mark.parametrize(
    ("engine", "settings", "missing"),
    [
        ("openai", {}, {}),  # the API's defaults are neutral
        ("openai", HOT, {"temperature": 0.7}),
        ("openai", {"logit_bias": {"50256": -100}}, {"logit_bias": {"50256": -100}}),
        ("openai", {"response_format": {"type": "text"}}, {}),
        ("openai", {"response_format": {"type": "json_object"}}, {"response_format": {"type": "json_object"}}),
        ("vllm", {}, {}),  # SamplingParams has neutral defaults
        ("vllm", HOT, {"temperature": 0.7}),
        ("vllm-server", {}, UNKNOWN),  # its defaults are those of the model's generation_config.json
        ("vllm-server", NEUTRAL, {}),
        ("vllm-processed", {**HOT, **CUT, "top_k": 20, "min_p": 0.1}, {}),
        ("vllm-server-processed", {}, {}),  # whatever was set is in the values
        ("vllm-processed", {"temperature": 0}, {"temperature": 0}),  # greedy: no draw
        ("sglang", HOT, {}),
        ("sglang", {**HOT, **CUT, "temperature": 0.7}, {"top_p": 0.9}),
        ("sglang-original", HOT, {"temperature": 0.7}),
        ("sglang-server", {"temperature": 0.7}, {"top_p": NOT_LOGGED, "top_k": NOT_LOGGED}),
        ("tinker", NEUTRAL, {}),
        ("tinker", HOT, {"temperature": 0.7}),
        ("tinker-unknown", {}, UNKNOWN),
    ],
)
def test_a_total_is_a_propensity_only_if_nothing_that_shaped_the_draw_is_left_out(
    engine: str, settings: dict[str, Any], missing: dict[str, Any]
) -> None:
    assert left_out(ENGINES[engine], settings) == missing
    found = recorded(ENGINES[engine], [-0.5, -0.25], settings)
    assert (found.total, found.tokens, found.is_propensity) == (-0.75, 2, not missing)


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def batch(number: int, answer: str) -> list[dict[str, Any]]:
    body = {"model": "m", "messages": [{"role": "user", "content": "Tea?"}]}
    choices = [{"index": 0, "message": {"role": "assistant", "content": answer}, "finish_reason": "stop"}]
    response = {"status_code": 200, "body": {"id": f"c{number}", "model": "m", "choices": choices}}
    return [
        {"custom_id": f"r{number}", "method": "POST", "url": "/v1/chat/completions", "body": body},
        {"custom_id": f"r{number}", "response": response, "error": None},
        {"response_id": f"c{number}", "score": number},
    ]


def test_the_rows_of_a_request_may_come_in_any_order_and_in_any_file(tmp_path: Path) -> None:
    rows = [*batch(1, "Yes."), *batch(2, "No.")]
    found = []
    for order in ([0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0], [2, 5, 1, 0, 4, 3]):
        files = [write(tmp_path / f"{at}.jsonl", [rows[index]]) for at, index in enumerate(order)]
        convert("openai", files, tmp_path / "out.jsonl", overwrite=True)
        (slate,) = read_slates(tmp_path / "out.jsonl")
        found.append(
            {answer[0]["content"]: score for answer, score in zip(slate.completions, slate.scores, strict=True)}
        )
    assert found == [{"Yes.": 1.0, "No.": 2.0}] * 3


@pytest.mark.parametrize("other_spells", [True, False])
def test_an_answer_counts_as_cut_only_where_its_recorded_total_lacks_the_end(
    other_spells: bool, tmp_path: Path
) -> None:
    """The API returns no log-probability of the end-of-turn token, so that no policy's total may have it."""
    rows = [*batch(1, "Yes."), *batch(2, "No.")]
    for at, tokens in ((1, ["Yes", "."]), (4, ["No", "." if other_spells else "!"])):
        (choice,) = rows[at]["response"]["body"]["choices"]
        choice["logprobs"] = {"content": [{"token": t, "logprob": -1.0, "bytes": list(t.encode())} for t in tokens]}
    convert("openai", [write(tmp_path / "log.jsonl", rows)], tmp_path / "out.jsonl")
    (slate,) = read_slates(tmp_path / "out.jsonl")
    assert slate.logging_logprobs == ([-2.0, -2.0] if other_spells else None)
    assert slate.finished == [not other_spells] * 2


def test_a_log_that_does_not_fit_into_memory_gives_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = list(itertools.chain(*(batch(number, f"Answer {number}.") for number in range(9))))
    log = write(tmp_path / "log.jsonl", rows)
    convert("openai", [log], tmp_path / "one.jsonl")
    monkeypatch.setattr("pope_align.data.gather._FEW", 4)
    monkeypatch.setattr("pope_align.data.gather._BATCH", 5)
    convert("openai", [log], tmp_path / "two.jsonl")
    assert (tmp_path / "one.jsonl").read_text() == (tmp_path / "two.jsonl").read_text()
    assert len(read_slates(tmp_path / "two.jsonl")[0].scores) == 9


def test_a_part_survives_the_way_through_a_file() -> None:
    asked = requests_log.Asked("Tea?", {"temperature": 0.5}, "m", "u", "openai")
    answer = requests_log.Answer("Yes", True, "m", 1.0, ["Yes"], [-0.5], False)
    part = requests_log.Part("k", "a", None, asked, [answer], [(None, 1.0), (0, 2.0)], "g")
    assert requests_log.Part.from_json(part.to_json()) == part


def test_several_evaluations_without_a_choice_are_refused_with_their_names(tmp_path: Path) -> None:
    event = {"event_name": "gen_ai.evaluation.result", "trace_id": "0xa", "span_id": "0x1"}
    rows = [
        {**event, "attributes": {"gen_ai.evaluation.name": name, "gen_ai.evaluation.score.value": 1.0}}
        for name in ("Tone", "Relevance")
    ]
    with pytest.raises(ValueError, match=r"mapping: expected score.*Relevance, Tone; choose one with --map score=Rel"):
        convert("otel", [write(tmp_path / "log.jsonl", rows)], tmp_path / "out.jsonl")


def test_captures_of_token_ids_need_a_tokenizer_and_modes_must_be_known(tmp_path: Path) -> None:
    log = write(tmp_path / "log.jsonl", [{"prompt_tokens": [1], "samples": []}])
    with pytest.raises(ValueError, match=r"mapping: expected tokenizer.*--map tokenizer="):
        convert("tinker", [log], tmp_path / "out.jsonl")
    with pytest.raises(ValueError, match=r"logprobs_mode: expected one of raw_logprobs, processed_logprobs, got 'raw'"):
        convert("vllm", [log], tmp_path / "out.jsonl", ConvertOptions(mapping={"logprobs_mode": "raw"}))


def test_the_mode_that_was_set_decides(tmp_path: Path) -> None:
    fixture = Path(__file__).parent / "formats" / "vllm" / "outputs.jsonl"
    options = ConvertOptions(mapping={"logprobs_mode": "processed_logprobs"})
    report = convert("vllm", [fixture], tmp_path / "out.jsonl", options)
    drawn_hot = next(
        slate for slate in read_slates(tmp_path / "out.jsonl") if slate.completions[0][0]["content"] == "Hot"
    )
    assert drawn_hot.logging_logprobs == pytest.approx([-0.6, -0.35])
    assert drawn_hot.logging_policy["sampling"]["temperature"] == 0.7
    assert report.with_propensity == 4


def test_what_the_log_has_of_each_response_stays_with_it(tmp_path: Path) -> None:
    fixture = Path(__file__).parent / "formats" / "openai" / "log.jsonl"
    convert("openai", [fixture], tmp_path / "one.jsonl")
    convert("slates", [tmp_path / "one.jsonl"], tmp_path / "two.jsonl", ConvertOptions(sample_k=2, min_k=2))
    whole, part = ({s.slate_id: s for s in read_slates(tmp_path / name)} for name in ("one.jsonl", "two.jsonl"))
    for key, slate in part.items():
        for name in ("sampled_tokens", "model_logprobs"):
            given = (whole[key].origin or {}).get(name)
            assert (given is None) == (name not in slate.origin)
            if given is not None:
                expected = [given[whole[key].completions.index(answer)] for answer in slate.completions]
                assert slate.origin[name] == expected
    assert any("sampled_tokens" in slate.origin for slate in part.values())
    rows = [json.loads(line) for line in (tmp_path / "one.jsonl").read_text().splitlines()]
    changed = next(row for row in rows if "sampled_tokens" in row["origin"])
    changed["origin"]["sampled_tokens"].pop()
    with pytest.raises(SlateError, match=r"origin.sampled_tokens: expected \d entries, one per completion"):
        convert("slates", [write(tmp_path / "bad.jsonl", [changed])], tmp_path / "three.jsonl")


def test_turns_are_recovered_from_token_ids_only_if_they_give_the_same_ids() -> None:
    tokenizer = load_tokenizer(str(CHATML))
    texts = Untemplate(tokenizer)

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    talks = [["user"], ["system", "user"], ["user", "assistant", "user"], ["system", "user", "assistant", "user"]]
    for roles in talks:
        turns = [{"role": role, "content": f"{role} says é\n{at}"} for at, role in enumerate(roles)]
        rendered = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        assert texts.prompt(ids(rendered)) == turns
        assert texts.prompt(ids(rendered)[:-1]) is None
    assert texts.prompt(ids("plain text")) is None
    assert texts.response(ids("yes")) == "yes"
    (end,) = ids("<|im_end|>")
    assert texts.is_end(end)
    assert not texts.is_end(ids("y")[0])


@pytest.mark.parametrize(("factor", "low", "high"), [(1.0, 0.0, 1e-5), (1.3, 0.2, 9.0)])
def test_recorded_propensities_are_checked_against_the_model_that_wrote_the_log(
    factor: float, low: float, high: float, make_tiny_model: Any, tiny_tokenizer: Any, make_slates: Any, tmp_path: Path
) -> None:
    """A log of vLLM with the model's own log-probabilities, and one of a temperature that it does not tell."""
    model = make_tiny_model(0)
    drawn = make_slates(8, scored=False, sizes=(2, 3))
    slates = [replace(s, prompt=[{"role": "user", "content": f"{s.prompt} {at}"}]) for at, s in enumerate(drawn)]
    encoded = encode_log(slates, tiny_tokenizer, max_length=64)
    totals = score_model(encoded, model, tiny_tokenizer, max_length=64).totals
    rows = []
    for slate, ids, of_slate in zip(slates, encoded, totals, strict=True):
        outputs = [
            {
                "text": text,
                "token_ids": tokens,
                "logprobs": [{str(token): {"logprob": factor * total / len(tokens)}} for token in tokens],
                "finish_reason": "stop",
            }
            for text, tokens, total in zip(slate.completions, ids.completion_ids, of_slate, strict=True)
        ]
        rows.append({"messages": slate.prompt, "outputs": outputs, "sampling_params": NEUTRAL, "scores": slate.scores})
    convert("vllm", [write(tmp_path / "log.jsonl", rows)], tmp_path / "slates.jsonl", ConvertOptions(min_k=1))
    log = list(read_slates(tmp_path / "slates.jsonl"))
    policies = {"old": (model, tiny_tokenizer), "new": (make_tiny_model(1), tiny_tokenizer)}
    found = evaluate_policies(log, policies, logging_policy=policies["old"])
    assert found.log.how == "recorded"
    assert low <= found.log.rescored_gap <= high
