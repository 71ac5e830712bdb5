"""The report of a run: its sentence, its tables, its safety, and what a browser and a screen reader make of it."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pope_align.data import Slate, write_slates
from pope_align.generation.generations import Generation, GenerationSet, slate_keys, write_generations
from pope_align.metrics.evaluate import evaluate_generations
from pope_align.metrics.summary import summarize, write_covered, write_json
from pope_align.ope import evaluate_policies
from pope_align.ope.rules import RULES
from pope_align.report import page
from pope_align.report.charts import Interval, plane, whiskers
from pope_align.report.decision import MISSING, decide, spoken
from pope_align.report.page import write_report
from pope_align.report.run import COVERED, EVALUATION, METRICS, SLATES, read_run

from pope_core import Objective

HOSTILE = "</script><script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def log_of(
    count: int, *, liked: float, rates: tuple[float, float] = (0.8, 0.3)
) -> tuple[list[Slate], dict[str, list[list[float]]]]:
    """Slates of two answers, "yes" or "no" with even odds, liked at two rates; "new" says yes ``liked`` more often.

    The true difference in utility is ``liked`` times the difference of the rates.
    """
    rng = np.random.default_rng(0)
    slates, new = [], []
    for index in range(count):
        yes = rng.random(2) < 0.5
        scores = [float(rng.random() < rates[0 if each else 1]) for each in yes]
        texts = [f"{'yes' if each else 'no'} {at}" for at, each in enumerate(yes)]
        even = [float(np.log(0.5))] * 2
        recorded = {"how": "recorded"}
        slates.append(
            Slate(f"Question {index}?", texts, scores, even, [1, 1], slate_id=f"q{index}", logging_policy=recorded)
        )
        new.append([float(np.log(0.5 + liked if each else 0.5 - liked)) for each in yes])
    return slates, {"old": [slate.logging_logprobs or [] for slate in slates], "new": new}


def evaluated(count: int, liked: float, **options: Any) -> dict[str, Any]:
    slates, policies = log_of(count, liked=liked, **options)
    evaluation = evaluate_policies(slates, policies, score_range=(0.0, 1.0))
    return json.loads(json.dumps(evaluation.to_dict()))


class Words:
    """Texts to unit vectors without a model: letters counted."""

    def __call__(self, texts: list[str], progress: Any = None) -> Any:
        counts = np.array([[1.0 + text.lower().count(letter) for letter in "abcdefgh"] for text in texts])
        return counts / np.linalg.norm(counts, axis=1, keepdims=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run's folder with every part, hostile texts in each."""
    run = tmp_path / "run"
    (run / "answers").mkdir(parents=True)
    (run / "metrics").mkdir()
    slates, policies = log_of(60, liked=0.2)
    slates[0] = replace(slates[0], prompt=f"Which? {HOSTILE}", completions=[f"yes {HOSTILE}", "no"])
    slates = [replace(slate, group_scores=[{"a": 1.0, "b": 0.5}, {"a": 0.0, "b": 1.0}]) for slate in slates]
    write_slates(slates, run / SLATES)
    evaluate_policies(slates, policies, score_range=(0.0, 1.0)).write_json(run / EVALUATION)
    sets = []
    for name in policies:
        rows = [Generation(key, s.prompt, [f"{name} {HOSTILE}", "yes"]) for key, s in zip(slate_keys(slates), slates)]
        sets.append(GenerationSet(name, tuple(rows)))
        write_generations(sets[-1], run / "answers" / f"{name}.jsonl")
    tables = [evaluate_generations(each, slates, embedder=Words()) for each in sets]
    write_json(summarize(tables, draws=50), run / METRICS)
    write_covered(tables, run / COVERED)
    plan = {"found": {"log": f"{HOSTILE}.xml"}, "policies": {}, "stages": [{"argv": ["convert", f"--x={HOSTILE}"]}]}
    (run / "run.json").write_text(json.dumps(plan))
    return run


# --- the sentence ---------------------------------------------------------------------------------------------------


def test_a_clear_difference_is_called_by_its_name() -> None:
    (better,) = decide(evaluated(800, 0.2))
    assert better.outcome == "better"
    assert better.sentence.startswith("new is better than old: +")
    assert better.would_tell == ()
    (worse,) = decide(evaluated(800, -0.2))
    assert worse.outcome == "worse"
    assert worse.sentence.startswith("new is worse than old: -")


@pytest.mark.parametrize(("value", "advice"), [(0.01, "needs about 1,100 more"), (0.001, "about 400 fresh")])
def test_what_is_told_neither_way_would_be_told_by_more_slates_or_by_ratings(value: float, advice: str) -> None:
    """A half-width of 0.02 shows 0.02 * 2.8 / 1.96 with 80% power: (0.0286 / 0.01)^2 times the 150 slates."""
    evaluation = evaluated(150, 0.2)
    evaluation["comparisons"][0]["utility"].update(value=value, low=value - 0.02, high=value + 0.02)
    (decision,) = decide(evaluation)
    assert decision.outcome == "cannot tell"
    assert decision.sentence.startswith("This log cannot tell new and old apart")
    assert advice in " ".join(decision.would_tell)
    assert "a difference of 0.029 would show on 150 slates" in decision.would_tell[0]


def test_a_refused_difference_is_never_called_a_gain() -> None:
    evaluation = evaluated(8, 0.2)
    (difference,) = evaluation["comparisons"]
    assert difference["verdict"] == "refuse"
    (decision,) = decide(evaluation)
    assert decision.outcome == "cannot tell"
    assert decision.sentence.startswith("This log cannot tell whether new is better than old: 8 independent queries")
    assert any("more slates" in each for each in decision.would_tell)


def test_an_index_is_no_gain() -> None:
    slates, policies = log_of(800, liked=0.2)
    objective = replace(Objective.evaluation(), length_normalize=True)
    evaluation = evaluate_policies(slates, policies, objective=objective, score_range=(0.0, 1.0)).to_dict()
    assert evaluation["comparisons"][0]["verdict"] == "index"
    (decision,) = decide(evaluation)
    assert decision.outcome == "cannot tell"
    assert "a direction, not a value" in decision.sentence
    assert decision.would_tell


def test_a_caution_goes_into_the_sentence() -> None:
    slates, policies = log_of(800, liked=0.2)
    slates = [replace(slate, logging_policy={"how": "proxy"}) for slate in slates]
    evaluation = evaluate_policies(slates, policies, score_range=(0.0, 1.0)).to_dict()
    (decision,) = decide(evaluation)
    assert decision.outcome == "better"
    assert "to be read with caution: the logging policy is a proxy" in decision.sentence


def test_every_rule_of_a_verdict_has_advice() -> None:
    assert set(MISSING) == set(RULES)
    for rule in RULES:
        evaluation = evaluated(30, 0.2)
        finding = {"rule": rule, "verdict": "refuse", "reason": "so"}
        evaluation["comparisons"][0].update(verdict="refuse", findings=[finding])
        (decision,) = decide(evaluation)
        assert decision.outcome == "cannot tell"
        assert decision.would_tell


def test_one_policy_is_compared_with_nothing() -> None:
    slates, policies = log_of(20, liked=0.1)
    assert decide(evaluate_policies(slates, {"old": policies["old"]}, score_range=(0.0, 1.0)).to_dict()) == []


def test_what_the_answers_say_stands_beside_it() -> None:
    def metrics(low: float, high: float) -> dict[str, Any]:
        energy = {"value": (low + high) / 2, "low": low, "high": high, "n": 5, "undefined": 0}
        return {"comparisons": [{"a": "old", "b": "new", "differences": {"energy": energy}}]}

    assert "new is nearer to what people wrote than old" in spoken(metrics(-0.2, -0.1))[0]
    assert "new is farther from what people wrote than old" in spoken(metrics(0.1, 0.2))[0]
    assert "as near" in spoken(metrics(-0.1, 0.1))[0]
    assert spoken(None) == []


# --- the page -------------------------------------------------------------------------------------------------------


def test_a_page_and_its_twin_hold_the_numbers_of_the_files(folder: Path) -> None:
    written = write_report(folder, folder / "report.html")
    assert [path.name for path in written] == ["report.html", "report.md"]
    text, twin = (path.read_text() for path in written)
    evaluation = json.loads((folder / EVALUATION).read_text())
    energy = json.loads((folder / METRICS).read_text())["models"]["new"]["metrics"]["energy"]["value"]
    (difference,) = evaluation["comparisons"]
    for content in (text, twin):
        assert f"{difference['utility']['value']:+.3g}" in content
        assert f"{energy:.3g}" in content
        assert decide(evaluation)[0].sentence.split(" [")[0] in content.replace("\\", "")
    assert "http" not in re.sub(r"<pre.*?</pre>", "", text, flags=re.DOTALL).replace("http-equiv", "")


def test_texts_stay_texts(folder: Path) -> None:
    write_report(folder, folder / "report.html")
    text, twin = (folder / "report.html").read_text(), (folder / "report.md").read_text()
    assert "<img src=x" not in text
    assert len(re.findall(r"<script\b", text)) == len(re.findall(r"</script>", text)) == 2  # data and program
    assert HOSTILE.partition("<img")[0] not in twin.partition("```bash")[0]
    embedded = json.loads(re.search(r'<script id="prompts"[^>]*>(.*?)</script>', text, re.DOTALL)[1])
    assert embedded[0]["prompt"] == f"Which? {HOSTILE}"
    assert embedded[0]["answers"]["old"][0]["text"] == f"old {HOSTILE}"


def test_references_that_an_answer_covers_are_those_of_the_metric(folder: Path) -> None:
    run = read_run(folder)
    per_prompt = [run.covered["new", key] for key in run.answers["new"]]
    shares = [len({at for answer in covered for at in answer}) / 2 for covered in per_prompt]
    metrics = json.loads((folder / METRICS).read_text())
    assert np.mean(shares) == pytest.approx(metrics["models"]["new"]["metrics"]["coverage"]["value"])


def test_many_prompts_lie_in_a_file_beside_the_page(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "EMBEDDED", 20)
    written = write_report(folder, folder / "report.html")
    assert [path.name for path in written] == ["report.html", "report.md", "report.prompts.js"]
    inside = json.loads(re.search(r'<script id="prompts"[^>]*>(.*?)</script>', written[0].read_text(), re.DOTALL)[1])
    beside = json.loads(re.fullmatch(r"popePrompts\((.*)\);\n", written[2].read_text(), re.DOTALL)[1])
    assert [each["key"] for each in [*inside, *beside]] == [f"q{index}" for index in range(60)]


@pytest.mark.parametrize("missing", [EVALUATION, METRICS, COVERED, SLATES, "answers", "run.json"])
def test_what_is_missing_is_left_out(folder: Path, missing: str) -> None:
    path = folder / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    text = write_report(folder, folder / "report.html")[0].read_text()
    assert ("Slates side by side" in text) == (missing != SLATES)
    assert ("Differences, paired" in text) == (missing != EVALUATION)


def test_a_report_is_refused_before_work(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"run: expected evaluation.json or metrics/metrics.json"):
        write_report(tmp_path / "empty", tmp_path / "r.html")
    with pytest.raises(ValueError, match=r"run: expected a folder"):
        write_report(tmp_path / "nowhere", tmp_path / "r.html")
    with pytest.raises(ValueError, match=r"expected a file ending in .html"):
        write_report(folder, tmp_path / "r.pdf")
    write_report(folder, tmp_path / "r.html")
    with pytest.raises(ValueError, match="exists already"):
        write_report(folder, tmp_path / "r.html")
    write_report(folder, tmp_path / "r.html", overwrite=True)


def test_training_curves_of_a_policy_that_was_trained(folder: Path, tmp_path: Path) -> None:
    trained = tmp_path / "trained"
    trained.mkdir()
    history = [{"step": step, "loss": 1.0 / step, "eval_loss": 1.1 / step} for step in (1, 2, 3)]
    (trained / "metrics.json").write_text(json.dumps({"history": history}))
    plan = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**plan, "policies": {"new": str(trained)}}))
    text = write_report(folder, folder / "report.html")[0].read_text()
    assert "training: from 1 to 0.333; held out: from 1.1 to 0.367" in text


# --- pictures -------------------------------------------------------------------------------------------------------


def test_strips_share_a_scale_and_show_zero() -> None:
    first, second, none = whiskers([Interval(1, 0.5, 1.5), Interval(-1, -1.5, -0.5, True), Interval(np.nan, 0, 1)])
    assert "believed" in first
    assert "refused" in second
    assert none == ""
    zeros = [re.search(r'class="zero" x1="([\d.]+)"', each)[1] for each in (first, second)]
    assert zeros[0] == zeros[1] == "50.0"


def test_the_band_runs_from_the_front_of_lower_ends_to_that_of_upper_ends() -> None:
    a, b = (Interval(1, 0.9, 1.1), Interval(3, 2.9, 3.1)), (Interval(2, 1.9, 2.1), Interval(1, 0.9, 1.1))
    svg = plane([("a", *a), ("b", *b)], x="x", y="y")
    corners = re.search(r'class="band" d="M([^Z]+) Z"', svg)[1].split(" L")
    assert len(corners) == len(set(corners)) >= 8
    assert 'aria-label="y against x. a: x 1, y 3; b: x 2, y 1"' in svg


# --- in a browser ---------------------------------------------------------------------------------------------------

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")


def rendered(path: Path, *options: str) -> str:
    """The page as Chromium has it after its scripts ran."""
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command += [f"--user-data-dir={path.parent / 'profile'}", "--virtual-time-budget=8000", *options]
    result = subprocess.run(
        [*command, "--dump-dom", path.as_uri()], capture_output=True, text=True, check=True, timeout=120
    )
    return result.stdout


def probe(folder: Path, script: str, *, size: str = "1000,900") -> Any:
    """What a script finds on the page: it fills ``document.body`` with JSON."""
    text = (folder / "report.html").read_text()
    (folder / "probe.html").write_text(text.replace("</body>", f"<script>{script}</script></body>"))
    dom = rendered(folder / "probe.html", f"--window-size={size}")
    found = re.search(r'<pre id="found">(.*?)</pre>', dom, re.DOTALL)
    assert found is not None, dom[-2000:]
    return json.loads(found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))


REPLY = """
const reply = (value) => {
  const p = document.createElement('pre');
  p.id = 'found'; p.textContent = JSON.stringify(value);
  document.body.append(p);
};
"""


@needs_chromium
def test_a_browser_shows_texts_as_texts_and_finds_prompts(folder: Path) -> None:
    write_report(folder, folder / "report.html")
    script = (
        REPLY
        + """
    const first = document.getElementById('slate').textContent;
    const search = document.getElementById('search');
    search.value = 'question 7?'; search.dispatchEvent(new Event('input'));
    const found = document.getElementById('slate').textContent;
    const count = document.getElementById('count').textContent;
    search.value = ''; search.dispatchEvent(new Event('input'));
    document.getElementById('after').click();
    reply({first, found, count, second: document.getElementById('slate').textContent, title: document.title,
           images: document.images.length});
    """
    )
    shown = probe(folder, script)
    assert f"Which? {HOSTILE}" in shown["first"]
    assert f"old {HOSTILE}" in shown["first"]
    assert "Question 7?" in shown["found"]
    assert shown["count"] == "1 of 60 prompts"
    assert "Question 1?" in shown["second"]
    assert shown["title"] != "taken"
    assert shown["images"] == 0


@needs_chromium
def test_a_missing_file_of_prompts_is_a_plain_message(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "EMBEDDED", 20)
    write_report(folder, folder / "report.html")
    script = (
        REPLY
        + """
    document.getElementById('more').click();
    setTimeout(() => reply({count: document.getElementById('count').textContent,
                            missing: document.getElementById('missing').textContent}), 3000);
    """
    )
    assert probe(folder, script) == {"count": "60 of 60 prompts", "missing": ""}
    (folder / "report.prompts.js").unlink()
    shown = probe(folder, script)
    assert shown["count"] == "20 of 20 prompts"
    assert shown["missing"] == "The other prompts are in the file report.prompts.js, which is not beside this page."


@needs_chromium
@pytest.mark.skipif(importlib.util.find_spec("axe_core_python") is None, reason="needs axe-core-python")
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("size", ["1000,900", "390,844"])
def test_axe_finds_nothing_serious(folder: Path, theme: str, size: str) -> None:
    write_report(folder, folder / "report.html")
    spec = importlib.util.find_spec("axe_core_python")
    axe = (Path(spec.origin).parent / "axe.min.js").read_text()
    text = (folder / "report.html").read_text()
    if theme == "dark":
        text = text.replace("@media (prefers-color-scheme: dark)", "@media all")
    (folder / "report.html").write_text(text)
    script = (
        REPLY
        + """
    axe.run(document, {resultTypes: ['violations']}).then((result) =>
      reply(result.violations.map((v) => [v.impact, v.id, v.nodes.map((n) => n.html.slice(0, 120))])));
    """
    )
    (folder / "axe.js").write_text(axe)
    text = (folder / "report.html").read_text()
    (folder / "report.html").write_text(text.replace("</body>", '<script src="axe.js"></script></body>'))
    violations = probe(folder, script, size=size)
    assert [each for each in violations if each[0] in ("serious", "critical")] == []


@needs_chromium
def test_nothing_runs_over_the_edge_of_a_phone(folder: Path) -> None:
    write_report(folder, folder / "report.html")
    script = REPLY + "reply([document.documentElement.scrollWidth, window.innerWidth]);"
    width, screen = probe(folder, script, size="390,844")
    assert width <= screen
