"""Steps on columns, folders of shards, Ray and object stores: the same numbers, nothing lost and nothing doubled."""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from object_store import Proxy, s3_server
from pope_align import _paths
from pope_align.cli import app
from pope_align.data import Slate, read_slates, write_slates
from pope_align.data.shards import MANIFEST, Manifest, changed_shards
from pope_align.generation.generate import generate_for_slates, load_engine
from pope_align.generation.generations import read_generations
from pope_align.generation.sampling import Sampling
from pope_align.models.loading import load_model, load_tokenizer
from pope_align.ope import Scoring
from pope_align.ope.scoring import FreshTexts, score_policies
from pope_align.propensity.logging_policy import score_slates
from pope_align.scale import Generator, Scorer, TextEmbedder
from pope_align.scale.pool import PolicyWorker
from pope_align.scale.ray_engine import RayEngine
from pope_align.scale.run import local_engine, run_shards
from pope_align.scale.worker import ShardWorker
from typer.testing import CliRunner

pq = pytest.importorskip("pyarrow.parquet")

needs_s3 = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("moto", "flask", "s3fs"))), reason="moto, flask or s3fs is not installed"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, make_tiny_model, tiny_tokenizer) -> str:
    folder = tmp_path_factory.mktemp("model")
    make_tiny_model().save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory, make_slates) -> Path:
    """A folder of two files: 24 slates in Parquet, 16 in JSON lines."""
    folder = tmp_path_factory.mktemp("log")
    slates = [
        replace(slate, prompt=f"Question {at}?", slate_id=f"s{at}")
        for at, slate in enumerate(make_slates(40, scored=False))
    ]
    write_slates(slates[:24], folder / "a.parquet")
    write_slates(slates[24:], folder / "b.jsonl")
    return folder


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """Ray on this machine, with two workers and little memory, started once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_raylet_start_wait_time_s", "300")  # read when Ray is imported; a busy machine is slow
        library = pytest.importorskip("ray")
        library.init(num_cpus=2, include_dashboard=False, object_store_memory=100 << 20, log_to_driver=False)
        library.data.DataContext.get_current().enable_progress_bars = False
        yield library
        library.shutdown()


@pytest.fixture(scope="module")
def store() -> Iterator[Proxy]:
    """A bucket behind a connection that tests cut and restore; one for all, because s3fs keeps the address."""
    with pytest.MonkeyPatch.context() as patch, s3_server() as proxy:
        for name, value in {
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_MAX_ATTEMPTS": "1",  # a cut is final at once
            "AWS_ENDPOINT_URL": proxy.address,
        }.items():
            patch.setenv(name, value)
        yield proxy


def scorer(model: str) -> Scorer:
    return Scorer(model, how="proxy", max_length=128)


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.suffix == ".parquet"}


# --- steps on columns -----------------------------------------------------------------------------------------------


def test_a_scorer_gives_a_batch_what_score_slates_gives_and_survives_a_pickle(model: str, log: Path) -> None:
    slates = list(read_slates(log))
    rows = pq.read_table(log / "a.parquet").to_pylist()
    step = scorer(model)
    step.load()
    result = pickle.loads(pickle.dumps(step))({name: [row[name] for row in rows] for name in rows[0]})
    expected = score_slates(slates[:24], load_model(model), load_tokenizer(model), how="proxy", max_length=128)
    assert result["logging_logprobs"] == [slate.logging_logprobs for slate in expected]
    assert result["completion_tokens"] == [slate.completion_tokens for slate in expected]
    assert json.loads(result["logging_policy"][0]) == expected[0].logging_policy
    assert result["slate_id"] == [slate.slate_id for slate in expected]
    assert result["error"] == [None] * 24


def test_one_bad_row_of_a_thousand_is_in_the_error_column_and_counted(model: str, tmp_path: Path) -> None:
    rows = [{"prompt": f"Q{at}", "completions": ["yes"], "scores": [1.0]} for at in range(1000)]
    rows[617]["completions"] = [""]
    lines = [json.dumps(row) for row in rows]
    lines[3] = lines[3][:-5]
    (tmp_path / "log.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    manifest = run_shards(scorer(model), tmp_path / "log.jsonl", tmp_path / "out", shard_rows=500)
    assert [(shard.rows, shard.errors) for shard in manifest.shards] == [(500, 1), (500, 1)]
    read = read_slates(tmp_path / "out")
    assert len(read) == 998
    assert read.skipped == 2
    assert "row 4: row: expected JSON" in read.skip_reasons[0]
    assert "row 618: completions[0]: expected" in read.skip_reasons[1]
    assert {slate.prompt for slate in read} == {row["prompt"] for row in rows} - {"Q3", "Q617"}


def test_a_row_that_is_too_long_for_the_model_does_not_end_the_job(
    make_tiny_model, tiny_tokenizer, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=257, n_positions=64, n_embd=16, n_layer=1, n_head=2)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    slates = [Slate(f"Q{at}", ["yes" if at != 5 else "no " * 40], [1.0], slate_id=f"s{at}") for at in range(9)]
    batch = {name: [getattr(slate, name) for slate in slates] for name in ("prompt", "completions", "scores")}
    result = Scorer(str(tmp_path / "model"), how="proxy", max_length=512)(batch)
    assert [at for at, error in enumerate(result["error"]) if error] == [5]
    assert "at most 64 tokens" in result["error"][5]
    assert result["completions"][5] == slates[5].completions
    assert all(totals for at, totals in enumerate(result["logging_logprobs"]) if at != 5)


def test_cut_responses_are_counted(model: str, tmp_path: Path) -> None:
    write_slates([Slate("Q", ["a" * 300, "b"], [1.0, 0.0]), Slate("R", ["c"], [1.0])], tmp_path / "log.jsonl")
    manifest = run_shards(scorer(model), tmp_path / "log.jsonl", tmp_path / "out")
    assert [(shard.rows, shard.errors, shard.cut) for shard in manifest.shards] == [(2, 0, 1)]


def test_text_and_turns_of_one_shard_become_turns(model: str, tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Q"}]
    write_slates([Slate("Q", ["a"], [1.0]), Slate(turns, ["a"], [1.0])], tmp_path / "log.jsonl")
    run_shards(scorer(model), tmp_path / "log.jsonl", tmp_path / "out")
    first, second = read_slates(tmp_path / "out")
    assert first.prompt == second.prompt == turns
    assert first.logging_logprobs == second.logging_logprobs


def test_generations_in_shards_are_those_of_one_file(model: str, log: Path, tmp_path: Path) -> None:
    sampling = Sampling(max_new_tokens=6)
    run_shards(Generator(model, name="tiny", n=2, sampling=sampling, seed=3), log, tmp_path / "gens", shard_rows=16)
    expected = generate_for_slates(
        load_engine(model), list(read_slates(log)), name="tiny", n=2, sampling=sampling, seed=3
    )
    read = read_generations(tmp_path / "gens")
    assert read.rows == expected.rows
    assert read.model == "tiny"


def test_equal_prompts_without_ids_get_different_answers_in_different_shards(model: str, tmp_path: Path) -> None:
    write_slates([Slate("Q", ["a"], [1.0])] * 4, tmp_path / "log.jsonl")
    step = Generator(model, n=1, sampling=Sampling(max_new_tokens=12))
    run_shards(step, tmp_path / "log.jsonl", tmp_path / "gens", shard_rows=1)
    read = read_generations(tmp_path / "gens")
    assert len({row.texts[0] for row in read.rows}) == 4
    assert len({row.key for row in read.rows}) == 4


def test_a_text_embedder_gives_the_vectors_of_the_embedder() -> None:
    pytest.importorskip("sentence_transformers")
    from pope_align.metrics.embeddings import default_model, embed

    if not Path(default_model()).is_dir():
        pytest.skip("no embedding model is installed")
    result = TextEmbedder()({"text": ["a cat", None, "a dog"]})
    assert result["embedding"][::2] == embed(["a cat", "a dog"]).tolist()
    assert result["embedding"][1] is None
    assert result["error"][1] == "text: expected text, got None"


# --- folders of shards ----------------------------------------------------------------------------------------------


class Stopped(Exception):
    """What a test raises in the middle of a run."""


def stopping_after(count: int) -> Any:
    def engine(worker: ShardWorker, tasks: Sequence[Any]) -> Iterator[Any]:
        for number, shard in enumerate(local_engine(worker, tasks)):
            if number == count:
                raise Stopped  # the shard is written, the manifest does not know
            yield shard

    return engine


def test_a_repeat_makes_only_what_is_missing_and_ends_with_the_same_bytes(
    model: str, log: Path, tmp_path: Path
) -> None:
    run_shards(scorer(model), log, tmp_path / "whole", shard_rows=8)
    whole = bytes_of(tmp_path / "whole")
    assert list(whole) == [
        f"part-{file:05d}-{start:09d}.parquet" for file, start in ((0, 0), (0, 8), (0, 16), (1, 0), (1, 8))
    ]
    out = tmp_path / "out"
    with pytest.raises(Stopped):
        run_shards(scorer(model), log, out, shard_rows=8, engine=stopping_after(2))
    assert len(bytes_of(out)) == 3
    with pytest.raises(ValueError, match="unfinished run"):
        read_slates(out)
    times = {name: (out / name).stat().st_mtime_ns for name in bytes_of(out)}
    run_shards(scorer(model), log, out, shard_rows=8)
    assert bytes_of(out) == whole
    assert all((out / name).stat().st_mtime_ns == time for name, time in times.items())

    (out / "part-00000-000000008.parquet").unlink()
    with pytest.raises(ValueError, match=r"missing or of another size, e\.g\. part-00000-000000008"):
        read_slates(out)
    run_shards(scorer(model), log, out, shard_rows=8)
    assert bytes_of(out) == whole
    assert changed_shards(out) == []
    manifest = Manifest.read(out)
    assert sum(shard.rows for shard in manifest.shards) == 40


def test_a_changed_byte_is_found_by_the_hash(model: str, log: Path, tmp_path: Path) -> None:
    manifest = run_shards(scorer(model), log, tmp_path / "out", shard_rows=40)
    name = manifest.shards[0].name
    content = bytearray((tmp_path / "out" / name).read_bytes())
    content[100] ^= 1
    (tmp_path / "out" / name).write_bytes(content)
    assert changed_shards(tmp_path / "out") == [name]


def test_files_that_are_added_come_after_the_others_and_changed_ones_are_refused(
    model: str, log: Path, tmp_path: Path
) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    slates = list(read_slates(log))
    write_slates(slates[:4], source / "m.jsonl")
    run_shards(scorer(model), source, out)
    write_slates(slates[4:6], source / "a.jsonl")  # sorts before the first
    run_shards(scorer(model), source, out)
    assert [slate.slate_id for slate in read_slates(out)] == [f"s{at}" for at in range(6)]
    write_slates(slates[:3], source / "m.jsonl")
    with pytest.raises(ValueError, match=r"m\.jsonl: expected the file of the run so far, and it is changed"):
        run_shards(scorer(model), source, out)
    run_shards(scorer(model), source, out, overwrite=True)
    assert len(read_slates(out)) == 5


def test_results_of_another_run_are_not_mixed_in(model: str, log: Path, tmp_path: Path) -> None:
    run_shards(scorer(model), log, tmp_path / "out")
    with pytest.raises(ValueError, match=r"another run \(max_length 128 -> 64\)"):
        run_shards(Scorer(model, how="proxy", max_length=64), log, tmp_path / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep me", encoding="utf-8")
    with pytest.raises(ValueError, match="holds files already"):
        run_shards(scorer(model), log, tmp_path / "mine")


def test_a_log_of_which_no_row_can_be_scored_is_an_error(model: str, tmp_path: Path) -> None:
    slate = Slate("Q", ["a"], [1.0], logging_logprobs=[-1.0])
    write_slates([slate] * 3, tmp_path / "log.jsonl")
    with pytest.raises(ValueError, match="errors in all 3"):
        run_shards(scorer(model), tmp_path / "log.jsonl", tmp_path / "out")


# --- Ray ------------------------------------------------------------------------------------------------------------


@pytest.mark.integrations
def test_two_workers_of_ray_give_the_bytes_of_the_local_engine_although_one_is_killed(
    ray: Any, model: str, log: Path, tmp_path: Path
) -> None:
    class Dying(Scorer):
        """Kills its own process while it works on the second shard, once."""

        def process(self, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
            marker = tmp_path / "died"
            if rows[0]["slate_id"] == "s8" and not marker.exists():
                marker.write_text(str(os.getpid()), encoding="utf-8")
                os.kill(os.getpid(), signal.SIGKILL)
            return super().process(rows)

    run_shards(scorer(model), log, tmp_path / "local", shard_rows=8)
    dying = Dying(model, how="proxy", max_length=128)
    manifest = run_shards(dying, log, tmp_path / "ray", shard_rows=8, engine=RayEngine(2))
    assert int((tmp_path / "died").read_text(encoding="utf-8")) != os.getpid()
    assert bytes_of(tmp_path / "ray") == bytes_of(tmp_path / "local")
    assert manifest.shards == Manifest.read(tmp_path / "local").shards


@pytest.mark.integrations
def test_the_same_object_runs_in_map_batches(ray: Any, model: str, log: Path) -> None:
    slates = list(read_slates(log))
    rows = [
        {name: getattr(slate, name) for name in ("slate_id", "prompt", "completions", "scores")} for slate in slates
    ]
    step = scorer(model)

    class Actor:
        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            return step(batch)

    pool = ray.data.ActorPoolStrategy(size=1)
    done = ray.data.from_items(rows).map_batches(Actor, batch_size=20, compute=pool).take_all()
    expected = score_slates(slates, load_model(model), load_tokenizer(model), how="proxy", max_length=128)
    by_id = {row["slate_id"]: row for row in done}
    assert len(done) == 40
    for slate in expected:
        assert list(by_id[slate.slate_id]["logging_logprobs"]) == pytest.approx(slate.logging_logprobs, abs=1e-3)


class DyingOnce:
    """Doubles a number; kills its own process at 7, once."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __call__(self, item: int) -> int:
        if item == 7 and not self.marker.exists():
            self.marker.write_text("died", encoding="utf-8")
            os.kill(os.getpid(), signal.SIGKILL)
        return 2 * item


def deadly(item: int) -> int:
    if item == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def refusing(item: int) -> int:
    if item == 3:
        raise ValueError("item: expected another than 3")
    return item


@pytest.mark.integrations
def test_a_pool_does_every_item_once_although_a_worker_is_killed_and_its_errors_are_those_of_the_work(
    ray: Any, tmp_path: Path
) -> None:
    work = pickle_by_value(DyingOnce)(tmp_path / "died")
    done = list(RayEngine(2).each(work, list(range(20))))
    assert (tmp_path / "died").exists()
    assert sorted(done) == [(number, 2 * number) for number in range(20)]
    with pytest.raises(ValueError, match=r"(?m)^item: expected another than 3$"):
        list(RayEngine(1).each(pickle_by_value(refusing), list(range(5))))
    with pytest.raises(RuntimeError, match="a worker died 4 times at the same work"):
        list(RayEngine(1).each(pickle_by_value(deadly), list(range(5))))


def pickle_by_value(value: Any) -> Any:
    """Something of this file, which Ray's workers cannot import."""
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    return value


@pytest.mark.integrations
def test_two_workers_of_ray_give_the_evaluation_of_this_process(
    ray: Any, model: str, log: Path, tmp_path: Path, make_tiny_model, tiny_tokenizer
) -> None:
    make_tiny_model(1).save_pretrained(tmp_path / "new")
    tiny_tokenizer.save_pretrained(tmp_path / "new")
    run("score", log, "--model", model, "--how", "recorded", "-o", tmp_path / "scored.jsonl", "--cache", tmp_path / "c")
    for name in ("base", "new"):
        folder = model if name == "base" else tmp_path / "new"
        run("generate", log, "--model", folder, "-n", "2", "--max-new-tokens", "6", "-o", tmp_path / f"{name}.jsonl")
    policies = ["--policy", f"base={model}", "--policy", f"new={tmp_path / 'new'}"]
    samples = ["--samples", f"base={tmp_path / 'base.jsonl'}", "--samples", f"new={tmp_path / 'new.jsonl'}"]
    written = {}
    for engine in (["local"], ["ray", "--workers", "2"]):
        out, cache = tmp_path / f"{engine[0]}.json", tmp_path / f"cache-{engine[0]}"
        options = ["--batch-tokens", "256", "--estimator", "pope", "--cache", cache, "-o", out, "--engine", *engine]
        run("evaluate", tmp_path / "scored.jsonl", *policies, *samples, *options)
        totals = [line for path in sorted(cache.glob("logprobs-*")) for line in path.read_text("utf-8").splitlines()]
        written[engine[0]] = out.read_bytes(), sorted(totals)
    assert written["local"] == written["ray"]
    assert len(written["local"][1]) > 10  # batches of several policies, in any order


@pytest.mark.integrations
def test_two_workers_of_ray_give_the_metrics_of_this_process(ray: Any, model: str, log: Path, tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers")
    from pope_align.metrics.embeddings import default_model

    if not Path(default_model()).is_dir():
        pytest.skip("no embedding model is installed")
    run("generate", log, "--model", model, "-n", "2", "--max-new-tokens", "6", "-o", tmp_path / "answers.jsonl")
    written = {}
    for engine in (["local"], ["ray", "--workers", "2"]):
        out = tmp_path / engine[0]
        options = ["--policy", model, "--cache", tmp_path / f"cache-{engine[0]}", "-o", out, "--engine", *engine]
        run("metrics", f"tiny={tmp_path / 'answers.jsonl'}", "--refs", log, "--draws", "100", *options)
        names = ("metrics.json", "per_slate.parquet", "covered.jsonl", "index.html")
        written[engine[0]] = {name: (out / name).read_bytes() for name in names}
    assert written["local"] == written["ray"]


def run(*command: Any) -> None:
    result = CliRunner().invoke(app, [str(word) for word in command])
    assert result.exit_code == 0, result.output


class Backwards:
    """A pool in this process that pickles what it is given, and returns the last result first."""

    def each(self, work: Any, items: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        copy = pickle.loads(pickle.dumps(work))
        for number in reversed(range(len(items))):
            yield number, pickle.loads(pickle.dumps(copy(pickle.loads(pickle.dumps(items[number])))))


def test_policies_are_scored_by_a_pool_as_in_this_process(model: str, log: Path) -> None:
    slates = list(read_slates(log))
    expected = score_policies(slates, {"m": model}, fresh=FreshTexts(), scoring=Scoring(batch_tokens=256))
    pooled = Scoring(batch_tokens=256, pool=Backwards())
    assert score_policies(slates, {"m": model}, fresh=FreshTexts(), scoring=pooled) == expected
    loaded = load_model(model), load_tokenizer(model)
    with pytest.raises(ValueError, match=r"policies\['m'\]: expected a name or folder"):
        score_policies(slates, {"m": loaded}, fresh=FreshTexts(), scoring=pooled)


def test_a_worker_with_other_weights_than_the_process_that_asks_refuses(model: str) -> None:
    with pytest.raises(ValueError, match=r"expected the same weights of .* for all workers \(0000\), got"):
        PolicyWorker(model, "0000", share_prompt=True)([])


def test_texts_are_embedded_by_a_pool_as_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sentence_transformers")
    from pope_align.metrics import embeddings

    if not Path(embeddings.default_model()).is_dir():
        pytest.skip("no embedding model is installed")
    monkeypatch.setattr(embeddings, "_CHUNK", 4)
    texts = [f"a text of {count} words" * count for count in range(1, 11)]
    expected = embeddings.Embedder()(texts)
    embedder = embeddings.Embedder(pool=Backwards())
    assert embedder(texts).tolist() == expected.tolist()
    with pytest.raises(ValueError, match="model: expected a name or folder"):
        embeddings.Embedder(embedder.model, pool=Backwards())


def test_ray_is_named_with_its_extra_where_it_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from pope_align.cli._engine_options import SHARD_ROWS, engine_of, is_folder_output

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ray" else find(name))
    with pytest.raises(ImportError, match=r"pip install 'pope-core\[ray\]'"):
        engine_of("ray", 1, 0, None)
    with pytest.raises(ValueError, match="--workers: expected with --engine ray only"):
        engine_of("local", 2, 0, None)
    with pytest.raises(ValueError, match="expected a folder with --engine ray"):
        is_folder_output(tmp_path / "out.parquet", "ray", SHARD_ROWS)


def test_options_without_effect_on_files_or_folders_are_refused(log: Path, tmp_path: Path) -> None:
    from pope_align.cli.score import score

    with pytest.raises(ValueError, match="--shard-rows: expected with a folder"):
        score(log, "m", "proxy", tmp_path / "out.parquet", shard_rows=7)
    with pytest.raises(ValueError, match="--cache: expected none with a folder"):
        score(log, "m", "proxy", tmp_path / "out", cache=tmp_path)


# --- object stores --------------------------------------------------------------------------------------------------


@needs_s3
def test_a_log_on_s3_is_read_as_a_file_a_folder_and_a_glob_and_written_there(store: Proxy, log: Path) -> None:
    slates = list(read_slates(log))
    write_slates(slates[:3], "s3://bucket/log/a.parquet")
    write_slates(slates[3:5], Path("s3://bucket/log/b.jsonl"))
    for source in ("s3://bucket/log", "s3://bucket/log/*.*", Path("s3://bucket/log/")):
        assert list(read_slates(source)) == slates[:5]
    assert list(read_slates("s3://bucket/log/a.parquet")) == slates[:3]
    with pytest.raises(FileNotFoundError, match=r"s3://bucket/log/none\.jsonl"):
        read_slates("s3://bucket/log/none.jsonl")


@needs_s3
def test_a_run_over_shards_on_s3_goes_on_after_a_cut(store: Proxy, model: str, log: Path, tmp_path: Path) -> None:
    for path in log.iterdir():
        _paths.upload(path, f"s3://bucket/in/{path.name}")

    def cutting(worker: ShardWorker, tasks: Sequence[Any]) -> Iterator[Any]:
        for number, shard in enumerate(local_engine(worker, tasks)):
            if number == 2:
                store.cut()
            yield shard

    with pytest.raises(OSError, match=r"s3://bucket/.* cannot be reached|cannot be reached.*s3://bucket/"):
        run_shards(scorer(model), "s3://bucket/in", "s3://bucket/out", shard_rows=8, engine=cutting)
    store.restore()
    made = {name for name in _paths.sizes("s3://bucket/out") if name != MANIFEST}
    assert len(made) == 3
    remade: list[str] = []

    def noting(worker: ShardWorker, tasks: Sequence[Any]) -> Iterator[Any]:
        for shard in local_engine(worker, tasks):
            remade.append(shard.name)
            yield shard

    run_shards(scorer(model), "s3://bucket/in", "s3://bucket/out", shard_rows=8, engine=noting)
    assert changed_shards("s3://bucket/out") == []
    run_shards(scorer(model), log, tmp_path / "local", shard_rows=8)
    assert [s.logging_logprobs for s in read_slates("s3://bucket/out")] == [
        s.logging_logprobs for s in read_slates(tmp_path / "local")
    ]
    assert [s.slate_id for s in read_slates("s3://bucket/out")] == [f"s{at}" for at in range(40)]


@needs_s3
def test_a_connection_that_is_cut_in_the_middle_of_a_file_is_an_error_not_a_short_log(store: Proxy) -> None:
    write_slates([Slate(os.urandom(2000).hex(), ["a"], [1.0]) for _ in range(1500)], "s3://bucket/big.jsonl")
    store.cut_after = store.passed + (1 << 20)
    with pytest.raises(OSError, match="cannot be reached"):
        read_slates("s3://bucket/big.jsonl")
    store.restore()
    assert len(read_slates("s3://bucket/big.jsonl")) == 1500


def test_an_address_is_kept_by_a_path() -> None:
    for address in ("s3://bucket/a/b.parquet", "gs://bucket/x", "hf://datasets/me/it/data.jsonl"):
        assert _paths.address(Path(address)) == address
        assert _paths.is_remote(Path(address))
    assert not _paths.is_remote("s3/bucket")
    assert _paths.address(Path("data/log.jsonl")) == "data/log.jsonl"


def test_a_command_without_s3fs_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "s3fs" else find(name))
    with pytest.raises(ImportError, match=r"pip install 'pope-core\[s3\]'"):
        read_slates("s3://bucket/log.jsonl")
