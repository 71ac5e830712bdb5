"""From files to a decision by one command: plan, stages, resuming."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pope_align.cli import app
from pope_align.cli._stages import command_line
from pope_align.cli.command import debugging
from pope_align.compare.plan import Options, estimators, look, stages
from pope_align.compare.run import prepare
from pope_align.compare.stages import STAMPS, Stage, replaced, run_stage
from pope_align.data import Slate, write_slates

EXAMPLES = Path(__file__).parents[1] / "examples" / "raw"


def pope(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pope_align.cli", *arguments], capture_output=True, text=True, cwd=cwd, check=False
    )


# --- the plan -------------------------------------------------------------------------------------------------------


def slates_of(count: int, text: str, **fields: object) -> list[Slate]:
    return [Slate(f"Question {i}?", [text, text + "!"], [1.0, 0.0], slate_id=f"q{i}", **fields) for i in range(count)]


def found_in(slates: Sequence[Slate]):
    return look(slates, source=["log.jsonl"], format="slates")


def names(slates: Sequence[Slate], **options: object) -> list[str]:
    policies = {"old": "a", "new": "b"}
    plan = stages(found_in(slates), Options(policies, **options), Path("run/slates.jsonl"), Path("run"))
    return [" ".join(stage.argv[:1]) for stage in plan]


def test_propensities_are_taken_fitted_or_scored() -> None:
    bare = slates_of(60, "yes")
    rest = ["generate", "generate", "evaluate", "metrics"]
    assert names(bare) == ["fit-logger", *rest]
    assert names(bare, logging_policy="writer") == ["score", *rest]
    recorded = slates_of(60, "yes", logging_logprobs=[-1.0, -2.0], completion_tokens=[1, 2])
    assert names(recorded) == rest


def test_the_estimator_that_decides_suits_the_log() -> None:
    slates = slates_of(60, "yes")
    assert estimators(found_in(slates))[0] == "model_first"
    assert "model_first" not in estimators(found_in(slates[:20]))  # needs 50 queries


def test_a_log_that_is_recorded_in_part_is_refused_unless_its_writer_is_named() -> None:
    recorded = slates_of(60, "yes", logging_logprobs=[-1.0, -2.0], completion_tokens=[1, 2])
    some = [*recorded[:59], replace(recorded[59], logging_logprobs=None, completion_tokens=None)]
    with pytest.raises(ValueError, match="in every slate or in none, got them in 59 of 60"):
        names(some)
    assert names(some, logging_policy="writer")[0] == "score"
    policies = {"old": "a", "new": "b"}
    plan = stages(found_in(some), Options(policies, logging_policy="writer"), Path("run/slates.jsonl"), Path("run"))
    assert "--overwrite" in plan[0].argv


def test_too_few_prompts_are_told_before_any_stage() -> None:
    with pytest.raises(ValueError, match="expected at least 5 different prompts, got 4"):
        names(slates_of(4, "yes"))


def test_what_was_found_is_counted_by_hand() -> None:
    slates = slates_of(3, "12345678", origin={"format": "reddit", "written_by": "people"})
    found = found_in([*slates, slates[0]])
    assert (found.slates, found.responses, found.prompts) == (4, 8, 3)
    assert found.tokens == round(4 * (8 + 9) / 4)
    assert found.people
    assert found.recorded == 0


# --- stages ---------------------------------------------------------------------------------------------------------


def stage_of(folder: Path, *, arguments: Sequence[str] = ("copy",)) -> Stage:
    reads, writes, work = ((str(folder / name),) for name in ("in", "out", "half"))
    return Stage("copy", "", "", tuple(arguments), reads, writes, work, resume=("--resume",))


def copying(folder: Path, calls: list[list[str]]) -> Callable[[Sequence[str]], None]:
    def run(argv: Sequence[str]) -> None:
        calls.append(list(argv))
        print("copied")
        shutil.copy(folder / "in", folder / "out")

    return run


def test_a_stage_runs_once_and_again_when_its_input_or_its_command_changes(tmp_path: Path) -> None:
    (tmp_path / "in").write_text("one")
    calls: list[list[str]] = []
    run = copying(tmp_path, calls)
    assert run_stage(stage_of(tmp_path), tmp_path, run)
    assert not run_stage(stage_of(tmp_path), tmp_path, run)
    (tmp_path / "in").write_text("two")
    assert run_stage(stage_of(tmp_path), tmp_path, run)
    assert (tmp_path / "out").read_text() == "two"
    assert run_stage(stage_of(tmp_path, arguments=("copy", "--fast")), tmp_path, run)
    (tmp_path / "out").unlink()
    assert run_stage(stage_of(tmp_path, arguments=("copy", "--fast")), tmp_path, run)
    assert len(calls) == 4
    assert (tmp_path / "logs" / "copy.txt").read_text() == "copied\n"


def test_a_stage_that_was_killed_goes_on_and_one_with_other_input_begins_anew(tmp_path: Path) -> None:
    (tmp_path / "in").write_text("one")

    def killed(argv: Sequence[str]) -> None:
        (tmp_path / "half").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_stage(stage_of(tmp_path), tmp_path, killed)
    seen: list[tuple[list[str], bool]] = []

    def run(argv: Sequence[str]) -> None:
        seen.append((list(argv), (tmp_path / "half").exists()))
        (tmp_path / "half").unlink(missing_ok=True)
        (tmp_path / "out").write_text("whole")

    run_stage(stage_of(tmp_path), tmp_path, run)
    with pytest.raises(KeyboardInterrupt):
        run_stage(stage_of(tmp_path, arguments=("copy", "--fast")), tmp_path, killed)
    (tmp_path / "in").write_text("other")
    run_stage(stage_of(tmp_path, arguments=("copy", "--fast")), tmp_path, run)
    assert seen == [(["copy", "--resume"], True), (["copy", "--fast"], False)]


def test_what_a_failed_stage_wrote_is_removed_before_it_runs_again(tmp_path: Path) -> None:
    (tmp_path / "in").write_text("one")

    def full_disk(argv: Sequence[str]) -> None:
        (tmp_path / "out").write_text("half")
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space"):
        run_stage(stage_of(tmp_path), tmp_path, full_disk)

    def run(argv: Sequence[str]) -> None:
        assert not (tmp_path / "out").exists()
        (tmp_path / "out").write_text("whole")

    assert run_stage(stage_of(tmp_path), tmp_path, run)


def test_a_result_that_was_replaced_by_hand_is_kept_and_told(tmp_path: Path) -> None:
    (tmp_path / "in").write_text("one")
    run_stage(stage_of(tmp_path), tmp_path, copying(tmp_path, []))
    assert not replaced(stage_of(tmp_path), tmp_path)
    (tmp_path / "out").write_text("my own")
    assert not run_stage(stage_of(tmp_path), tmp_path, copying(tmp_path, []))
    assert replaced(stage_of(tmp_path), tmp_path)


def test_a_folder_of_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "evaluation.json").write_text("{}")
    options = Options({"old": "a", "new": "b"})
    with pytest.raises(ValueError, match="holds files that no comparison made"):
        prepare(["log.jsonl"], options, tmp_path / "mine", most_slates=9, run=lambda argv: pytest.fail("ran"))


# --- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, make_tiny_model, tiny_tokenizer) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("old", "new")):
        make_tiny_model(seed, max_position_embeddings=1024).save_pretrained(folder / name)
        tiny_tokenizer.save_pretrained(folder / name)
    return {name: str(folder / name) for name in ("old", "new")}


@pytest.mark.slow
def test_from_a_forum_to_a_sentence_and_back_without_work(models: dict[str, str], tmp_path: Path) -> None:
    source = EXAMPLES / "tea.stackexchange.com" / "Posts.xml"
    command = ["compare", str(source), "-o", "report.html", "--answers", "2", "--max-new-tokens", "4"]
    command += [f"--policy={name}={folder}" for name, folder in models.items()]
    dry = pope(*command, "--dry-run", cwd=tmp_path)
    assert dry.returncode == 0, dry.stderr
    assert "pope fit-logger report.run/slates.jsonl" in dry.stdout
    assert "people wrote it" in dry.stdout
    assert not (tmp_path / "report.html").exists()

    first = pope(*command, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert "This log cannot tell whether new is better than old" in first.stdout  # 8 slates
    assert "What would tell: " in first.stdout
    page = (tmp_path / "report.html").read_text()
    assert "How long should Sencha steep?" in page

    changed = json.loads((tmp_path / "report.run" / STAMPS).read_text())
    again = pope(*command, "--overwrite", "--json", "-", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("there already") == 5
    (decision,) = json.loads(again.stdout)["decisions"]
    assert decision["outcome"] == "cannot tell"
    assert json.loads((tmp_path / "report.run" / STAMPS).read_text()) == changed


@given(st.lists(st.text(min_size=1, max_size=30).filter(lambda text: "\0" not in text), min_size=1, max_size=12))
def test_a_command_that_is_shown_can_be_copied_into_a_shell(argv: list[str]) -> None:
    assert shlex.split(command_line(argv, 60).replace(" \\\n", " ")) == argv


def test_mistakes_are_told_before_the_log_is_read(tmp_path: Path) -> None:
    write_slates(slates_of(12, "yes"), tmp_path / "log.jsonl")
    (tmp_path / "there.md").write_text("mine")
    for arguments, message in (
        (["log.jsonl", "-o", "r.html"], "--policy: expected a value"),
        (["log.jsonl", "--policy", "a=x", "-o", "r.html"], "--policy: expected at least two"),
        (["log.jsonl", "--policy", "a=x", "--policy", "a=y", "-o", "r.html"], "expected distinct names"),
        (["log.jsonl", "--policy", "a/b=x", "--policy", "c=y", "-o", "r.html"], "expected names of letters"),
        (["log.jsonl", "--policy", "a=x", "--policy", "b=y"], "--out: expected a value"),
        (["log.jsonl", "--policy", "a=x", "--policy", "b=y", "-o", "r.pdf"], "expected a file ending in .html"),
        (["log.jsonl", "--policy", "a=x", "--policy", "b=y", "-o", "there.html"], "there.md: exists already"),
        (["log.jsonl", "--policy", "a=x", "--policy", "b=y", "-o", "r.html", "--json", "no/x.json"], "json: no/x.json"),
        (["log.jsonl", "--policy", "a=x", "--policy", "b=y", "-o", "r.html", "--json", "log.jsonl"], "exists already"),
        (["no.jsonl", "--policy", "a=x", "--policy", "b=y", "-o", "r.html"], "log: expected a file that exists"),
        (["log.jsonl", "--policy", "a=./x", "--policy", "b=y", "-o", "r.html"], "--policy a: expected a model"),
    ):
        result = pope("compare", *arguments, cwd=tmp_path)
        assert result.returncode == 2
        assert message in result.stderr, result.stderr
        assert not (tmp_path / "r.run").exists()


def test_an_unknown_transform_is_told_before_the_log_is_read(models: dict[str, str], tmp_path: Path) -> None:
    write_slates(slates_of(12, "yes"), tmp_path / "log.jsonl")
    given = [f"--policy={name}={folder}" for name, folder in models.items()]
    result = pope("compare", "log.jsonl", *given, "-o", "r.html", "--utility-transform", "bogus", cwd=tmp_path)
    assert result.returncode == 2
    assert "utility_transform: expected one of calibrated" in result.stderr
    assert not (tmp_path / "r.run").exists()


def test_a_log_of_no_known_format_is_to_be_converted_first(models: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("question,answer,stars\nq,a,1\n")
    given = [f"--policy={name}={folder}" for name, folder in models.items()]
    result = pope("compare", "log.csv", *given, "-o", "r.html", cwd=tmp_path)
    assert result.returncode == 2
    assert "log: log.csv: expected records of a known format" in result.stderr
    assert "convert it first" in result.stderr
    file = pope("compare", "log.csv", *given, "-o", "r.html", "--run-dir", "log.csv", cwd=tmp_path)
    assert "--run-dir: expected a folder, got the file" in file.stderr


def run_here(argv: Sequence[str]) -> None:
    app(list(argv), standalone_mode=False)


def test_answers_that_were_begun_with_another_seed_begin_again(models: dict[str, str], tmp_path: Path) -> None:
    """`pope generate` keeps a journal beside its output, and refuses one of other settings."""
    slates = slates_of(12, "yes", logging_logprobs=[-1.0, -2.0], completion_tokens=[1, 2])
    write_slates(slates, tmp_path / "slates.jsonl")
    options = Options(models, answers=2, max_new_tokens=2)
    (tmp_path / "answers").mkdir()

    def answers(seed: int) -> Stage:
        return stages(found_in(slates), replace(options, seed=seed), tmp_path / "slates.jsonl", tmp_path)[0]

    def killed(argv: Sequence[str]) -> None:
        run_here(argv)
        shutil.copy(answers(0).writes[0], f"{answers(0).writes[0]}.journal")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_stage(answers(0), tmp_path, killed)
    assert run_stage(answers(1), tmp_path, run_here)
    assert len(Path(answers(1).writes[0]).read_text().splitlines()) == 13  # what made them, and a row a slate


def test_a_traceback_is_shown_of_nested_commands_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(debugging, "on", True)
    with pytest.raises(ValueError, match="expected --out FILE"):
        run_here(["convert", "x.jsonl"])
    assert debugging["on"]
