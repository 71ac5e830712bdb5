"""`evaluate_policies` and ``pope evaluate``: scored where needed, compared in pairs, refused where due."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pope_align
import pytest
import torch
from objectives import asked
from pope_align.cli import app
from pope_align.data import Slate, encode_slates, write_slates
from pope_align.generation.generations import Generation, GenerationSet, slate_keys, write_generations
from pope_align.generation.labelled import labelled_slates
from pope_align.generation.sampling import sampled_with
from pope_align.models import loading
from pope_align.ope import (
    LoggedSlates,
    Predictions,
    Scoring,
    evaluate_policies,
    fit_predictions,
    pope_value,
    predict_with,
)
from pope_align.ope.scoring import FreshTexts, score_policies
from pope_align.propensity import scores
from pope_align.propensity.logging_policy import score_slates
from pope_align.propensity.scoring import score_responses
from typer.testing import CliRunner


@pytest.fixture(scope="module")
def slates(make_slates) -> list[Slate]:
    return [replace(slate, prompt=f"Colour {index}?") for index, slate in enumerate(make_slates(60, scored=False))]


@pytest.fixture(scope="module")
def models(make_tiny_model, tiny_tokenizer) -> dict:
    """The logger, and one that was moved a little."""
    base, new = make_tiny_model(0), make_tiny_model(0)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in new.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.005)
    return {"base": (base, tiny_tokenizer), "new": (new, tiny_tokenizer)}


@pytest.fixture(scope="module")
def scored(slates, models) -> list[Slate]:
    return score_slates(slates, *models["base"], how="recorded", max_length=128)


def test_policies_are_scored_like_the_log_and_their_estimates_are_the_estimators(scored, models, tmp_path) -> None:
    calls: list[tuple[str, int, int]] = []
    evaluation = evaluate_policies(
        scored,
        models,
        **asked(diversity_weight=0.3, length_normalize=True),
        scoring=Scoring(cache_dir=tmp_path),
        report=lambda *call: calls.append(call),
    )
    own = score_slates(scored, *models["new"], how="recorded", max_length=128, overwrite=True)
    log = LoggedSlates.from_slates(
        scored,
        {
            "base": [slate.logging_logprobs for slate in scored],
            "new": [slate.logging_logprobs for slate in own],
        },
    )
    for name in ("base", "new"):
        expected = pope_value(log, name, **asked(diversity_weight=0.3, length_normalize=True))
        assert evaluation.of(name).value == pytest.approx(expected.value, abs=1e-6)
        assert evaluation.of(name).high == pytest.approx(expected.high, abs=1e-6)
    assert evaluation.of("base").diagnostics.mean_weight == 1.0
    assert {name for name, _, _ in calls} == {"base", "new"}
    (comparison,) = evaluation.comparisons
    assert (comparison.policy, comparison.baseline) == ("new", "base")
    assert evaluation.log.logging.provenance["how"] == "recorded"
    assert "how" not in evaluation.log.policies["new"].provenance


def test_the_public_name_is_found() -> None:
    assert pope_align.evaluate_policies is evaluate_policies


def test_totals_may_be_given_and_files_read(scored, tmp_path) -> None:
    write_slates(scored, tmp_path / "log.parquet")
    totals = [slate.logging_logprobs for slate in scored]
    evaluation = evaluate_policies(tmp_path / "log.parquet", {"same": totals})
    assert evaluation.estimators == ["pope", "ips"]
    assert evaluation.meets("reliable")
    assert evaluation.of("same", "ips").utility.value == pytest.approx(
        np.mean([np.mean(part) for part in np.split(evaluation.log.utility, evaluation.log.slate_offsets[1:-1])])
    )


def wide(scored: list[Slate], factor: float) -> list[list[float]]:
    """Totals of a policy far from the log: every ratio is raised to a power."""
    rng = np.random.default_rng(0)
    return [[min(total + factor * rng.normal(), -1e-3) for total in slate.logging_logprobs or []] for slate in scored]


def test_a_refused_policy_is_never_ranked_first_and_fails_the_requirement(scored) -> None:
    policies = {"far": wide(scored, 9.0), "near": wide(scored, 0.05)}
    low = [replace(slate, scores=[9 - score for score in slate.scores]) for slate in scored]
    values = []
    for slates in (scored, low):
        evaluation = evaluate_policies(slates, policies)
        assert evaluation.of("far").verdict == "refuse"
        assert evaluation.of("near").verdict == "caution"  # no fresh responses: support is not checked
        assert [estimate.policy for estimate in evaluation.ranking()] == ["near", "far"]
        assert [estimate.policy for estimate in evaluation.ranking(by="lower_bound")] == ["near", "far"]
        assert not evaluation.meets("caution")
        assert evaluation.to_dict()["ranking"] == ["near"]
        assert evaluation.comparisons[0].verdict == "refuse"
        values.append(evaluation.of("far").value - evaluation.of("near").value)
    assert max(values) > 0  # else no test


def test_json_holds_everything_and_no_numbers_that_json_lacks(scored, tmp_path) -> None:
    paper = asked(length_normalize=True, diversity_weight=0.1)
    evaluation = evaluate_policies(scored, {"far": wide(scored, 9.0), "near": wide(scored, 0.05)}, **paper)
    evaluation.write_json(tmp_path / "evaluation.json")
    content = json.loads((tmp_path / "evaluation.json").read_text())
    first = content["estimates"][0]
    assert first["policy"] == "far"
    assert first["value"] == evaluation.of("far").value
    assert first["options"]["length_normalize"] is True
    assert first["labels"][0] == "biased, variance-reduced"
    assert first["diagnostics"]["ess"] == evaluation.of("far").diagnostics.ess
    assert first["diagnostics"]["mean_weight_z"] is None  # unknown for length-normalised weights
    assert content["estimates"][0]["verdict"] in ("index", "refuse")
    assert content["comparisons"][0]["probability"] is None  # an index has none
    assert content["ranking"] == []
    assert {each["weights"].partition(",")[0] for each in content["indices"]} == {"length-normalised", "tempered"}
    assert content["objective"]["length_normalize"] is True
    assert content["log"]["clusters"] == 60


def test_the_figure_shows_every_estimate_and_strikes_the_refused(scored, tmp_path) -> None:
    from pope_align.ope.figure import evaluation_figure

    evaluation = evaluate_policies(scored, {"far": wide(scored, 9.0), "near": wide(scored, 0.05)})
    values, *others = evaluation_figure(evaluation.estimates, evaluation.log).axes
    _, differences, *below = evaluation_figure(evaluation.estimates, evaluation.log, evaluation.comparisons).axes
    assert len(below) == len(others)
    drawn = [line for line in differences.lines if len(line.get_xdata()) == 2 and line.get_linewidth() == 2]
    assert len(drawn) == len(differences.get_yticklabels()) == len(evaluation.comparisons) > 0
    for line, each in zip(drawn, evaluation.comparisons, strict=True):
        left, right = differences.get_xlim()
        ends = [max(each.difference.low, left), min(each.difference.high, right)]
        assert line.get_xdata().tolist() == pytest.approx(ends)
        assert left < 0 < right  # zero is what the decision is about
    labels = [label.get_text() for label in values.get_yticklabels()]
    assert len(labels) == len(evaluation.estimates)
    struck = [label for label in labels if "\u0336" in label]
    assert len(struck) == sum(each.verdict == "refuse" for each in evaluation.estimates) > 0
    assert len(others) == 3
    evaluation.write_figure(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_names_of_policies_are_text_in_the_figure(scored, tmp_path) -> None:
    evaluation = evaluate_policies(scored, {"costs $5 or $\\frac{": wide(scored, 0.05)})
    evaluation.write_figure(tmp_path / "money.png")  # was a parse error of matplotlib's mathematics


def test_bad_requests_are_refused_before_anything_is_scored(scored, models) -> None:
    def never(*_: object) -> None:
        raise AssertionError("scored")

    with pytest.raises(ValueError, match="policies: expected at least one policy"):
        evaluate_policies(scored, {})
    with pytest.raises(ValueError, match=r"policies\['short'\]: expected 60 slates, got 1"):
        evaluate_policies(scored, {**models, "short": [[-1.0]]}, report=never)
    with pytest.raises(ValueError, match="samples: expected names among base, new, got old"):
        evaluate_policies(scored, models, samples={"old": [["x"]] * 60}, report=never)
    with pytest.raises(ValueError, match=r"slate 0 .*: logging_logprobs: expected one per response, got none"):
        evaluate_policies([replace(s, logging_logprobs=None) for s in scored], models, report=never)
    with pytest.raises(ValueError, match=r"slate 0: completion_tokens\[0\]: expected the \d+ tokens"):
        evaluate_policies(scored, models, scoring=Scoring(max_length=12), report=never)
    small = {"samples": {"new": SAMPLES[:40]}, "embed": letters, "report": never}
    with pytest.raises(ValueError, match="lam: expected a finite number > 0 for 'clip', got -1"):
        evaluate_policies(scored, models, estimators=["clipped_ips"], lam=-1.0, report=never)
    with pytest.raises(ValueError, match=r"lam: expected None, because none of pope, snips has .* got 3"):
        evaluate_policies(scored, models, estimators=["pope", "snips"], lam=3.0, report=never)
    with pytest.raises(ValueError, match="lam: expected None, because none of pope, ips has"):
        evaluate_policies(scored, models, lam=3.0, report=never)
    with pytest.raises(ValueError, match=r"lam: expected a number, got None; SLOPE .* this log has 40"):
        evaluate_policies(scored[:40], models, estimators=["clipped_ips"], report=never)
    with pytest.raises(ValueError, match=r"'model_first' needs samples of every policy but .*, got none for base, new"):
        evaluate_policies(scored, models, estimators=["model_first"], report=never)
    with pytest.raises(ValueError, match="5 folds and needs as many independent queries, this log has 4"):
        evaluate_policies(scored[:40], models, cluster=lambda slate: str(int(slate.prompt[7:-1]) % 4), **small)
    with pytest.raises(ValueError, match=r"predictions.logged: expected \d+ numbers, one per response, got \[1\]"):
        evaluate_policies(scored, models, predictions={"new": Predictions(np.ones(1), np.ones(60))}, report=never)
    with pytest.raises(ValueError, match="reward: expected 60 numbers, one per slate"):
        evaluate_policies(scored, models, set_rewards={"size": [1.0]}, report=never)
    uncounted = [replace(slate, completion_tokens=None) for slate in scored]
    with pytest.raises(ValueError, match=r"tokens: expected the number of tokens .*\(policy 'far'\)"):
        evaluate_policies(uncounted, {**models, "far": wide(scored, 9.0)}, report=never, **asked(length_normalize=True))
    log = LoggedSlates.from_arrays([0.1, 0.9], [-3.0, -4.0], {"new": [-2.0, -4.5]})
    with pytest.raises(ValueError, match="LoggedSlates already holds its policies"):
        evaluate_policies(log, models)
    with pytest.raises(ValueError, match="baseline: expected one of new, got 'base'"):
        evaluate_policies(log, baseline="base")


def test_without_the_library_for_embeddings_nothing_is_scored(scored, models, monkeypatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("scored")

    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ImportError, match="sentence_transformers is needed"):
        evaluate_policies(scored, models, samples={"new": SAMPLES}, report=never)
    assert evaluate_policies(scored, models, samples={"new": SAMPLES}, estimators=["pope"]).estimators == ["pope"]


def test_a_model_is_loaded_and_hashed_once_whatever_it_is_called(files, scored, monkeypatch) -> None:
    calls: list[str] = []

    def counted(module, name: str) -> None:
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, **k: (calls.append(name), real(*a, **k))[1])

    counted(loading, "load_model")
    counted(scores, "model_fingerprint")
    (files / "link").symlink_to("new")
    policies = {"base": files / "base", "new": str(files / "new"), "again": str(files / "link")}
    once = evaluate_policies(
        scored, policies, samples={"again": SAMPLES}, embed=letters, logging_policy=str(files / "base") + "/"
    )
    assert sorted(calls) == ["load_model"] * 2 + ["model_fingerprint"] * 2
    assert once.of("again").value == once.of("new").value != once.of("base").value
    assert once.log.rescored_gap == pytest.approx(0.0, abs=1e-5)
    assert once.log.fresh["again"].logging is not None
    assert list(once.log.policies) == ["base", "new", "again"]


# --- reward models --------------------------------------------------------------------------------------------------


def letters(texts: list[str]) -> np.ndarray:
    """A small embedding: how often some letters occur."""
    return np.array([[text.count(letter) / len(text) for letter in "redgnblu 1"] for text in texts])


SAMPLES = [["red 3", "green 14"], ["blue"]] * 30


def test_samples_bring_the_direct_and_doubly_robust_estimates(scored, models) -> None:
    evaluation = evaluate_policies(scored, models, samples={"new": SAMPLES}, embed=letters)
    methods = [each.estimator for each in evaluation.estimates if each.policy == "new"]
    assert methods == ["model_first", "pope", "ips", "dm", "dr", "sndr"]
    assert {each.estimator for each in evaluation.comparisons} == {"model_first"}
    direct = evaluation.of("new", "dm")
    assert direct.verdict == "refuse"  # ratings here are noise, and the model says that it has learnt nothing
    assert any("explains" in reason for reason in direct.reasons)
    assert direct.diagnostics is None
    assert "r2" in direct.chosen
    fresh = score_slates(
        [Slate(slate.prompt, texts, [0.0] * len(texts)) for slate, texts in zip(scored, SAMPLES, strict=True)],
        *models["new"],
        how="recorded",
        max_length=128,
    )
    surprise = [-np.mean(slate.logging_logprobs) for slate in fresh]
    assert direct.diversity.value == pytest.approx(np.mean(surprise), abs=1e-6)
    robust = evaluation.of("new", "dr")  # a response's diversity is known, so its part needs no weights
    assert robust.diversity.value == pytest.approx(np.mean(surprise), abs=1e-6)


def logged(scored: list[Slate], scores: np.ndarray) -> LoggedSlates:
    sizes = [len(slate.completions) for slate in scored]
    parts = np.split(scores, np.cumsum(sizes)[:-1])
    rated = [replace(slate, scores=part.tolist()) for slate, part in zip(scored, parts, strict=True)]
    totals = [slate.logging_logprobs for slate in scored]
    return LoggedSlates.from_slates(rated, {"new": totals}, utility_transform="none")


def test_predictions_of_a_query_never_depend_on_its_own_feedback(scored) -> None:
    rng = np.random.default_rng(0)
    scores = rng.random(sum(len(slate.completions) for slate in scored))
    before = fit_predictions(logged(scored, scores), SAMPLES, letters)
    changed = scores.copy()
    changed[:2] = 1 - changed[:2]  # the responses of the first slate
    after = fit_predictions(logged(scored, changed), SAMPLES, letters)
    np.testing.assert_array_equal(after.logged[:2], before.logged[:2])
    assert after.target[0] == before.target[0]
    assert not np.array_equal(after.logged, before.logged)


def test_the_ridge_finds_a_reward_that_the_embedding_shows_and_owns_up_to_noise(scored) -> None:
    texts = [text for slate in scored for text in slate.completions]
    truth = np.array([0.2 + 0.6 * ("red" in text) for text in texts])
    found = fit_predictions(logged(scored, truth), SAMPLES, letters)
    assert found.quality["r2"] > 0.9
    assert found.target[0] == pytest.approx((0.8 + 0.2) / 2, abs=0.1)
    noise = fit_predictions(logged(scored, np.random.default_rng(0).random(len(texts))), SAMPLES, letters)
    assert noise.quality["r2"] < 0.1


def test_your_own_reward_model_sees_prompts_and_responses(scored) -> None:
    log = logged(scored, np.full(sum(len(slate.completions) for slate in scored), 0.5))
    own = predict_with(
        log, SAMPLES, lambda prompts, texts: [len(p) + len(t) for p, t in zip(prompts, texts)], source="length"
    )
    first = scored[0]
    assert own.logged[0] == len(first.prompt) + len(first.completions[0])
    assert own.target[0] == len(first.prompt) + (len("red 3") + len("green 14")) / 2
    assert own.source == "length"
    with pytest.raises(ValueError, match="samples: slate 1: expected at least one fresh response"):
        predict_with(log, [["x"], []] * 30, lambda p, t: np.zeros(len(t)), source="zero")
    given = evaluate_policies(log, predictions={"new": Predictions(own.logged / 100, own.target / 100)})
    assert given.of("new", "dm").value == pytest.approx((own.target / 100).mean())


# --- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(scored, models, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("evaluate")
    write_slates(scored, folder / "scored.jsonl")
    for name, (model, tokenizer) in models.items():
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


def run(files: Path, *options: str, policies: tuple[str, ...] = ("base", "new")) -> tuple[int, str]:
    given = [f"--policy={name}={files / name}" for name in policies]
    arguments = ["evaluate", str(files / "scored.jsonl"), *given, f"--cache={files / 'cache'}", *options]
    result = CliRunner().invoke(app, arguments)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def test_the_command_prints_tables_and_writes_files(files: Path) -> None:
    written = (f"--out={files / 'out.json'}", f"--figure={files / 'out.svg'}")
    code, output = run(files, "--interval=bayesian", *written)
    assert code == 0, output
    lines = [line.split("\t") for line in output.splitlines()]
    assert ["policy", "estimator", "V_CU", "low", "high", "ESS", "verdict"] in lines
    content = json.loads((files / "out.json").read_text())
    row = next(line for line in lines if line[:2] == ["base", "pope"])
    assert row[2] == f"{content['estimates'][0]['utility']['value']:.4g}"
    assert float(row[3]) <= float(row[2]) <= float(row[4])  # plain numbers where no terminal strikes them
    assert "one unit of V_CU is 9 of the score (0 to 9, least and greatest of this log)" in output
    assert any(line[:2] == ["new", "length-normalised"] for line in lines)
    assert content["estimates"][0]["confidence"]["method"] == "bayesian"
    assert "<svg" in (files / "out.svg").read_text()
    with pytest.raises(ValueError, match="exists already; pass --overwrite"):
        run(files, *written)
    code, output = run(files, *written, "--overwrite", "--json=-", "--diversity-weight=0.2", "--clip=3")
    start = output.index("{\n")  # progress goes to standard error, which the runner mixes in
    content = json.JSONDecoder().raw_decode(output[start:])[0]
    assert content["objective"] == {**content["objective"], "diversity_weight": 0.2, "clip": 3.0}


def test_a_figure_that_fails_loses_nothing(files: Path, monkeypatch) -> None:
    def fail(*_: object) -> None:
        raise ValueError("no picture")

    monkeypatch.setattr("pope_align.ope.evaluation.evaluation_figure", fail)
    with pytest.raises(ValueError, match="no picture"):
        run(files, f"--out={files / 'kept.json'}", f"--figure={files / 'never.png'}")
    assert json.loads((files / "kept.json").read_text())["baseline"] == "base"
    assert not (files / "never.png").exists()


def test_the_old_spellings_work_with_a_warning(files: Path) -> None:
    old = [f"--log={files / 'scored.jsonl'}", f"--policy=base={files / 'base'}", f"--output={files / 'old.json'}"]
    result = CliRunner().invoke(app, ["evaluate", *old, f"--cache={files / 'cache'}"])
    assert result.exit_code == 0, result.output
    assert "--log is now the first argument" in result.output
    assert "--output is now --out" in result.output
    assert (files / "old.json").exists()


def test_the_command_exits_1_when_a_verdict_falls_short(files: Path) -> None:
    assert run(files, "--require=reliable", policies=("base",))[0] == 0  # the logging policy itself
    code, output = run(files, "--require=reliable")
    assert code == 1
    assert "not every policy is reliable by pope" in output
    code, _ = run(files, "--require=caution", "--length-normalize", policies=("base",))
    assert code == 1  # an index meets nothing


def test_the_command_refuses_policies_it_cannot_name(files: Path) -> None:
    with pytest.raises(ValueError, match="--policy: expected NAME=MODEL, got 'nonsense'"):
        run(files, "--policy=nonsense")
    with pytest.raises(ValueError, match="--policy: expected distinct names, got 'base' twice"):
        run(files, "--policy=base=other")


def test_the_command_takes_generations_as_samples(files: Path, scored, monkeypatch) -> None:
    keys = slate_keys(scored)
    rows = [Generation(key, slate.prompt, texts) for key, slate, texts in zip(keys, scored, SAMPLES, strict=True)]
    write_generations(GenerationSet("new", tuple(rows)), files / "new.jsonl")
    monkeypatch.setattr("pope_align.metrics.embeddings.Embedder", lambda: letters)
    code, output = run(files, f"--samples=new={files / 'new.jsonl'}", f"--logging-policy={files / 'base'}")
    assert code == 0
    rows = [line.split("\t") for line in output.splitlines()]
    assert [row[1] for row in rows if row[0] == "new" and len(row) == 7] == [
        *["model_first", "pope", "ips", "dm", "dr", "sndr"]
    ]
    assert "new: diversity" in output
    assert "support not checked" not in output  # the samples were scored under the log's model
    generated = [Generation(key, slate.prompt, texts) for key, slate, texts in zip(keys, scored, SAMPLES, strict=True)]
    cold = GenerationSet("new", tuple(generated), {"temperature": 0.7})
    write_generations(cold, files / "cold.jsonl")
    with pytest.raises(
        ValueError, match=r"drawn from the policy itself \(temperature 1, no truncation\), got temperature 0.7"
    ):
        run(files, f"--samples=new={files / 'cold.jsonl'}")
    ours = GenerationSet("new", tuple(generated), {"sampling": {"temperature": 1.0, "top_p": 0.9, "top_k": 0}})
    write_generations(ours, files / "ours.jsonl")  # as `pope generate --top-p 0.9` writes them
    with pytest.raises(ValueError, match=r"drawn from the policy itself .*, got top_p 0.9"):
        run(files, f"--samples=new={files / 'ours.jsonl'}")
    write_generations(GenerationSet("new", tuple(generated[1:])), files / "short.jsonl")
    with pytest.raises(ValueError, match=f"expected responses to every slate, got none for 1, e.g. '{keys[0]}'"):
        run(files, f"--samples=new={files / 'short.jsonl'}")


def test_an_answer_that_a_limit_cut_is_scored_without_an_end_of_turn(
    files: Path, scored, models, tiny_tokenizer, monkeypatch
) -> None:
    ended = [[(index + number) % 2 == 0 for number in range(len(texts))] for index, texts in enumerate(SAMPLES)]
    keys = slate_keys(scored)
    rows = [
        Generation(key, slate.prompt, texts, None, whole)
        for key, slate, texts, whole in zip(keys, scored, SAMPLES, ended, strict=True)
    ]
    write_generations(GenerationSet("new", tuple(rows)), files / "cut.jsonl")
    seen: dict[str, list] = {}
    real = score_policies

    def noted(*arguments, **options):
        seen["scored"] = real(*arguments, **options)
        return seen["scored"]

    monkeypatch.setattr("pope_align.ope.evaluate.score_policies", noted)
    monkeypatch.setattr("pope_align.metrics.embeddings.Embedder", lambda: letters)
    code, output = run(files, f"--samples=new={files / 'cut.jsonl'}", f"--logging-policy={files / 'base'}")
    assert code == 0, output
    fresh = [
        Slate(slate.prompt, texts, [0.0] * len(texts), finished=whole)
        for slate, texts, whole in zip(scored, SAMPLES, ended, strict=True)
    ]
    encoded, _ = encode_slates(fresh, tiny_tokenizer, max_length=128)
    for found, policy in ((seen["scored"].fresh, "new"), (seen["scored"].under_logging, "base")):
        assert found["new"].tokens == [[len(ids) for ids in slate.completion_ids] for slate in encoded]
        expected = score_responses(encoded, models[policy][0])
        for totals, exact in zip(found["new"].totals, expected, strict=True):
            assert totals == pytest.approx(exact, abs=1e-4)
    whole = seen["scored"].fresh["new"].tokens
    uncut = tuple(replace(row, finished=None) for row in rows)
    write_generations(GenerationSet("new", uncut), files / "uncut.jsonl")
    run(files, f"--samples=new={files / 'uncut.jsonl'}", f"--logging-policy={files / 'base'}")
    every = seen["scored"].fresh["new"].tokens
    assert every == [[n + (not end) for n, end in zip(*each)] for each in zip(whole, ended)]
    with pytest.raises(ValueError, match=r"samples_finished\['new'\]: expected true or false for each of samples"):
        evaluate_policies(
            scored, models, samples={"new": SAMPLES}, samples_finished={"new": [[True] * 9] * len(scored)}
        )
    with pytest.raises(ValueError, match="samples_finished: expected names among new, got old"):
        evaluate_policies(scored, models, samples={"new": SAMPLES}, samples_finished={"old": ended})


def test_a_log_that_was_not_sampled_from_the_model_says_so(slates, models, caplog) -> None:
    """Propensities of the model at temperature 1 are not those with which top-p drew the responses."""
    generations = GenerationSet(
        "base",
        tuple(Generation(f"g{at}", slate.prompt, slate.completions) for at, slate in enumerate(slates)),
        {"sampling": {"max_new_tokens": 9, "temperature": 1.0, "top_p": 0.9, "top_k": 0}},
    )
    labelled, _ = labelled_slates(generations, [slate.scores for slate in slates], {"labeller": "x"})
    with caplog.at_level("WARNING"):
        wrong = score_slates(labelled, *models["base"], how="recorded", max_length=128)
    assert "60 of 60 slates were sampled with top_p 0.9, but are scored without" in caplog.text
    assert wrong[0].logging_policy["sampled_with"] == {"top_p": 0.9}
    caplog.clear()
    with caplog.at_level("WARNING"):
        evaluation = evaluate_policies(wrong, models, samples={"new": SAMPLES}, embed=letters)
    assert "the log was sampled with top_p 0.9, which no model is scored with" in caplog.text
    reasons = evaluation.of("new").reasons
    assert any(
        "sampled with top_p 0.9, and its propensities are those of the model without" in each for each in reasons
    )
    assert any("support not checked" in each for each in evaluation.of("new", "pope").reasons)
    proxy = score_slates(labelled, *models["base"], how="proxy", max_length=128)
    assert "sampled_with" not in proxy[0].logging_policy  # a proxy stands for the sampler, whatever that did
    recorded = [
        replace(slate, logging_policy={**slate.logging_policy, "sampling": {"temperature": 0.7, "top_k": 5}})
        for slate in score_slates(slates, *models["base"], how="recorded", max_length=128)
    ]
    evaluation = evaluate_policies(recorded, models, samples={"new": SAMPLES}, embed=letters)
    reasons = evaluation.of("new").reasons
    assert any("sampled with top_k 5: it holds no response that this leaves out" in each for each in reasons)
    assert not any("temperature" in each for each in reasons)  # recorded as it was sampled: nothing is wrong
    assert not any("recorded and rescored" in each for each in reasons)


def test_what_sampling_differs_in() -> None:
    assert sampled_with(None) == sampled_with({"sampling": {"temperature": 1, "top_p": 1.0, "top_k": 0}}) == {}
    assert sampled_with({"top_k": -1, "min_p": None, "temperature": 1.0}) == {}
    assert sampled_with({"sampling": {"temperature": 0.5}, "min_p": 0.1}) == {"temperature": 0.5, "min_p": 0.1}
    assert sampled_with({"sampled_with": {"top_p": 0.9}, "temperature": 1.0}) == {"top_p": 0.9}


def test_a_response_that_was_cut_before_any_text_is_left_out_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    texts, ended = [["", "x", " "], ["", "y"]], [[False, False, True], [True, True]]
    fresh = FreshTexts({"new": texts, "old": [["", ""], [""]]}, {"new": ended}).with_tokens()
    assert fresh.texts["new"] == [["x", " "], ["", "y"]]
    assert fresh.finished["new"] == [[False, True], [True, True]]
    assert fresh.texts["old"] == [["", ""], [""]]  # ended by the policy, as far as is known
    assert "new: 1 fresh responses without text, cut at their limit, are left out" in caplog.text
    with pytest.raises(ValueError, match=r"samples\['new'\]: slate 1: every fresh response was cut"):
        FreshTexts({"new": [["x"], [""]]}, {"new": [[True], [False]]}).with_tokens()
