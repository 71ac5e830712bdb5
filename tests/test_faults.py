"""Full disks, damaged checkpoints, caches that cannot be written, too little memory, signals: each by injection."""

from __future__ import annotations

import logging
import os
import resource
import signal
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure
from pope_align._files import replacing, write_json
from pope_align._journal import Journal
from pope_align.cli import _ended_by_sigterm, app, main
from pope_align.cli._stages import run_stages
from pope_align.cli.checks import check_cache
from pope_align.compare.stages import Stage, is_done, run_stage
from pope_align.data import Slate, write_slates
from pope_align.data.gather import gather
from pope_align.data.tokenize import EncodedSlate
from pope_align.generation.generate import generate
from pope_align.generation.sampling import Sampling
from pope_align.metrics.embeddings import Embedder
from pope_align.models import memory
from pope_align.propensity import scoring
from pope_align.propensity.scoring import score_responses
from pope_align.training.checkpoint import check_checkpoint, damage, last_checkpoint, note_files
from pope_align.training.config import PopeConfig
from pope_align.training.trainer import PopeTrainer
from transformers import TrainerCallback
from typer.testing import CliRunner

# --- a full disk ----------------------------------------------------------------------------------------------------


@contextmanager
def full_disk(limit: int = 3000) -> Iterator[None]:
    """No file of this process can grow beyond ``limit`` bytes; the system says so as it says that a disk is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


SLATES = [Slate(f"Question {i} {os.urandom(99).hex()}?", ["yes", "no"], [1.0, 0.0]) for i in range(60)]


def save_figure(path: Path) -> None:
    figure = Figure()
    figure.subplots().plot([1, 2])
    with replacing(path) as partial:
        figure.savefig(partial, dpi=60)


def save_tensor(path: Path) -> None:
    with replacing(path) as partial:
        torch.save(torch.rand(5000), partial)


WRITERS: dict[str, Callable[[Path], None]] = {
    "out.jsonl": lambda path: write_slates(SLATES, path),
    "out.parquet": lambda path: write_slates(SLATES, path),
    "out.json": lambda path: write_json(path, list(range(5000))),
    "out.png": save_figure,
    "out.pt": save_tensor,
}


@pytest.mark.parametrize(("name", "write"), WRITERS.items(), ids=WRITERS)
def test_a_full_disk_is_an_error_that_names_the_file_and_leaves_the_old_one(
    name: str, write: Callable[[Path], None], tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(b"old")
    with full_disk(), pytest.raises(OSError, match=r".") as error:
        write(path)
    assert error.value.filename == str(path)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == [name]
    write(path)
    assert path.stat().st_size > 3000


def test_a_journal_on_a_full_disk_keeps_what_it_has_and_goes_on_when_there_is_space(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    journal = Journal(path, {"run": 1})
    journal.add("a", "x" * 2000)
    with full_disk(), pytest.raises(OSError, match="No space left on device") as error:
        journal.add("b", "y" * 2000)
    assert error.value.filename == str(path)
    assert list(journal) == ["a"]
    journal.add("b", "z" * 2000)
    again = Journal(path, {"run": 1})
    assert ({key: value[0] for key, value in again.items()}, again.bad_lines) == ({"a": "x", "b": "z"}, 0)


class Piece:
    def __init__(self, key: str) -> None:
        self.key = key

    to_json = property(lambda self: lambda: self.key * 20)
    from_json = staticmethod(lambda text: Piece(text[: len(text) // 20]))


def test_a_full_temporary_folder_is_named_and_emptied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    pieces = [Piece(os.urandom(20).hex()) for _ in range(3000)]
    with full_disk(), pytest.raises(OSError, match=r".") as error:
        list(gather(pieces, Piece))
    assert Path(error.value.filename).parent.parent == tmp_path
    assert os.listdir(tmp_path) == []
    assert len(list(gather(pieces, Piece))) == 3000


def options(folder: Path, **others: Any) -> PopeConfig:
    common = {"max_length": 64, "learning_rate": 1e-3, "report_to": "none", "use_cpu": True, "disable_tqdm": True}
    return PopeConfig(str(folder), **{**common, "max_steps": 2, "save_steps": 1, **others})


class FillDisk(TrainerCallback):
    """The disk is full from a step on."""

    def __init__(self, step: int) -> None:
        self.step, self.full = step, full_disk(20_000)

    def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        if state.global_step == self.step:
            self.full.__enter__()


def test_training_on_a_full_disk_names_the_checkpoint_and_goes_on_from_the_one_before(
    make_tiny_model, tiny_tokenizer, make_slates, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    filled, data = FillDisk(2), {"train_dataset": make_slates(4), "processing_class": tiny_tokenizer}
    try:
        with pytest.raises(OSError, match=r".") as error:
            PopeTrainer(make_tiny_model(), options(tmp_path), **data, callbacks=[filled]).train()
    finally:
        filled.full.__exit__(None, None, None)
    assert error.value.filename == str(tmp_path / "checkpoint-2")
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-1")
    assert PopeTrainer(make_tiny_model(1), options(tmp_path), **data).train("last").global_step == 2
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")
    assert "checkpoint-2: passed over, because writing it was interrupted" in caplog.text
    flip(tmp_path / "checkpoint-2" / "optimizer.pt")
    with pytest.raises(ValueError, match=r"checkpoint-2: expected a complete checkpoint, but optimizer.pt is not as"):
        PopeTrainer(make_tiny_model(), options(tmp_path), **data).train(str(tmp_path / "checkpoint-2"))


# --- damaged checkpoints --------------------------------------------------------------------------------------------


def checkpoint(folder: Path, step: int) -> Path:
    path = folder / f"checkpoint-{step}"
    (path / "shards").mkdir(parents=True)
    for name in ("model.safetensors", "optimizer.pt", "shards/0.bin"):
        (path / name).write_bytes(os.urandom(5000))
    note_files(path)
    (path / "trainer_state.json").write_text('{"global_step": 1}')
    return path


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "one bit": (lambda path: flip(path / "model.safetensors"), "model.safetensors is not as it was written"),
    "cut": (lambda path: os.truncate(path / "optimizer.pt", 100), "optimizer.pt is not as it was written"),
    "a shard": (lambda path: os.truncate(path / "shards/0.bin", 0), "shards/0.bin is not as it was written"),
    "missing": (lambda path: (path / "optimizer.pt").unlink(), "optimizer.pt is missing"),
    "state": (lambda path: os.truncate(path / "trainer_state.json", 5), "writing it was interrupted"),
    "not text": (lambda path: (path / "trainer_state.json").write_bytes(b"\xff"), "writing it was interrupted"),
    "list": (lambda path: os.truncate(path / "checkpoint_files.json", 5), "checkpoint_files.json is damaged"),
}


@pytest.mark.parametrize(("spoil", "reason"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_checkpoint_is_passed_over_and_refused_by_name(
    spoil: Callable[[Path], None], reason: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before, newest = checkpoint(tmp_path, 3), checkpoint(tmp_path, 12)
    assert damage(newest) is None
    assert last_checkpoint(tmp_path) == str(newest)
    spoil(newest)
    assert last_checkpoint(tmp_path) == str(before)
    assert f"checkpoint-12: passed over, because {reason}" in caplog.text
    with pytest.raises(ValueError, match=f"checkpoint-12: expected a complete checkpoint, but {reason}"):
        check_checkpoint(newest)
    check_checkpoint(before)


# --- caches ---------------------------------------------------------------------------------------------------------


def test_a_cache_that_cannot_be_written_is_told_before_a_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_slates
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"--cache: .*: expected a folder, got the file"):
        check_cache(tmp_path / "file" / "cache")
    write_slates(make_slates(2, scored=False), tmp_path / "log.jsonl")
    may = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: "locked" not in str(path) and may(path, mode))
    (tmp_path / "locked").mkdir()
    log, cache, out = (str(tmp_path / name) for name in ("log.jsonl", "locked/cache", "o.jsonl"))
    for command in (
        ["score", log, "--model", "no-model", "--how", "proxy", "--cache", cache, "-o", out],
        ["fit-logger", log, "--model", "no-model", "--folds", "2", "--cache", cache, "-o", out],
        ["evaluate", log, "--policy", "a=no-model", "--cache", cache],
        ["label", log, "--with", "energy", "--refs", log, "--cache", cache, "-o", out],
        ["metrics", log, "--refs", log, "--policy", "no-model", "--cache", cache, "-o", str(tmp_path / "report")],
    ):
        result = CliRunner().invoke(app, command)
        assert "--cache: " in str(result.exception), (command[0], result.exception, result.output)
        assert "expected a folder that can be written" in str(result.exception)
    assert sorted(os.listdir(tmp_path)) == ["file", "locked", "log.jsonl"]


class Counter:
    """In place of a sentence-embedding model; more than ``most`` texts at once do not fit in memory."""

    max_seq_length = None
    tokenizer = type("Tokenizer", (), {"tokenize": staticmethod(str.split), "model_max_length": 10**30})()

    def __init__(self, most: int = 1000) -> None:
        self.most, self.tried = most, []

    def __repr__(self) -> str:
        return "Counter"

    def named_parameters(self) -> list[tuple[str, torch.Tensor]]:
        return []

    def encode(self, texts: list[str], batch_size: int = 32, show_progress_bar: bool = True) -> list[list[float]]:
        self.tried.append(batch_size)
        if min(batch_size, len(texts)) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return [[float(len(text)), 1.0] for text in texts]


def test_a_full_or_read_only_or_damaged_cache_of_embeddings_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed = Embedder(Counter(), cache_dir=tmp_path)
    embed(["a"])
    (path,) = tmp_path.glob("*.sqlite")
    pages = embed.cache.database.execute("PRAGMA page_count").fetchone()[0]
    embed.cache.database.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(ValueError, match=r"cache: .*: expected a file that can be written \(database or disk is full"):
        embed([os.urandom(3000).hex() for _ in range(90)])
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda path, timeout: connect(f"file:{path}?mode=ro&immutable=1", uri=True))
    with pytest.raises(ValueError, match=r"expected a file that can be written \(attempt to write a readonly"):
        Embedder(Counter(), cache_dir=tmp_path)(["b"])
    monkeypatch.undo()
    content = path.read_bytes()
    path.write_bytes(content[:100] + b"\xff" * (len(content) - 100))
    with pytest.raises(ValueError, match=r"expected a cache of embeddings, got a damaged or another file"):
        Embedder(Counter(), cache_dir=tmp_path)(["a"])


# --- memory ---------------------------------------------------------------------------------------------------------


def out_of_memory_above(limit: int, monkeypatch: pytest.MonkeyPatch, module: Any, name: str, size: Any) -> list[int]:
    """A function of a module has memory for calls up to a size; the sizes that were tried."""
    tried: list[int] = []
    real = getattr(module, name)

    def limited(*arguments: Any, **others: Any) -> Any:
        tried.append(size(*arguments))
        if tried[-1] > limit:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes.")
        return real(*arguments, **others)

    monkeypatch.setattr(module, name, limited)
    return tried


def positions(_: object, rows: dict[str, torch.Tensor]) -> int:
    return rows["input_ids"].numel()


def test_scoring_halves_a_batch_that_does_not_fit_and_says_so(
    make_tiny_model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = make_tiny_model()
    slates = [EncodedSlate([1, 2, i], [[3] * (i % 4 + 1), [4, 5]]) for i in range(16)]
    expected = score_responses(slates, model)
    tried = out_of_memory_above(
        40, monkeypatch, scoring, "response_logprobs", lambda _, rows: rows["input_ids"].numel()
    )
    with caplog.at_level(logging.WARNING):
        found = score_responses(slates, model, cache_dir=tmp_path)
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=1e-5, atol=1e-5)
    assert "scoring: a batch of" in caplog.text
    assert "does not fit in memory; going on with halves" in caplog.text
    too_large = [size for size in tried if size > 40]
    assert len(too_large) == len(set(too_large)) <= 3  # a size that did not fit is not tried again
    tried.clear()
    assert score_responses(slates, model, cache_dir=tmp_path) == found
    assert tried == []


def test_a_response_that_does_not_fit_alone_is_an_error(make_tiny_model, monkeypatch: pytest.MonkeyPatch) -> None:
    out_of_memory_above(40, monkeypatch, scoring, "response_logprobs", positions)
    slates = [EncodedSlate([1, 2], [[3], [4] * 60])]
    with pytest.raises(MemoryError, match="scoring: expected memory for a batch of 62 tokens, which cannot be divided"):
        score_responses(slates, make_tiny_model())


def test_generation_halves_too_and_answers_the_same(
    make_tiny_model, tiny_tokenizer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from pope_align.generation import decoding

    prompts = [f"Question {i}?" for i in range(6)]
    arguments = (make_tiny_model(), tiny_tokenizer, prompts)
    expected = generate(*arguments, sampling=Sampling(4))
    tried = out_of_memory_above(2, monkeypatch, decoding, "decode_batch", lambda _, batch, *rest: len(batch))
    with caplog.at_level(logging.WARNING):
        assert generate(*arguments, sampling=Sampling(4)) == expected
    assert tried == [6, 3, 1, 2, 1, 2]
    assert "generating: a batch of" in caplog.text


def test_embedding_goes_on_with_smaller_batches(caplog: pytest.LogCaptureFixture) -> None:
    texts = ["x" * (i + 1) for i in range(30)]
    small, large = Counter(most=9), Counter()
    assert (Embedder(small, batch_size=64)(texts) == Embedder(large, batch_size=64)(texts)).all()
    assert small.tried == [64, 32, 16, 8]
    assert "embedding: a batch does not fit in memory; going on with 8 texts" in caplog.text
    with pytest.raises(torch.OutOfMemoryError):
        Embedder(Counter(most=0))(texts)


def test_only_errors_of_memory_are_taken_for_such() -> None:
    yes = [MemoryError(), torch.OutOfMemoryError(), RuntimeError("DefaultCPUAllocator: not enough memory")]
    assert all(map(memory.is_out_of_memory, yes))
    assert not any(map(memory.is_out_of_memory, [ValueError("memory"), RuntimeError("size mismatch")]))
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**60)  # what torch really says
    assert memory.is_out_of_memory(error.value)


# --- signals --------------------------------------------------------------------------------------------------------


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C as in a terminal; a test run in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_a_command_with_nothing_left_behind(
    number: int, code: int, make_slates, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_slates(make_slates(2), tmp_path / "log.jsonl")
    listed: list[list[str]] = []

    def interrupted(writer: object, slate: Slate) -> None:
        listed.append(sorted(os.listdir(tmp_path)))
        os.kill(os.getpid(), number)

    monkeypatch.setattr("pope_align.data.write._JsonLines.write", interrupted)
    out = str(tmp_path / "out.jsonl")
    monkeypatch.setattr(sys, "argv", ["pope", "convert", "--from", "slates", str(tmp_path / "log.jsonl"), "-o", out])
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == code
    assert len(listed[0]) == 5  # the log; a lock and an unfinished file of the slates, and of their report
    assert os.listdir(tmp_path) == ["log.jsonl"]
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_a_signal_inside_a_stage_ends_the_run_and_the_stage_is_not_done(
    number: int, error: type[BaseException], make_slates, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Typer gives a nested command that is interrupted an exit code, which was taken for the end of its work."""
    write_slates(make_slates(2), tmp_path / "log.jsonl")
    log, out = str(tmp_path / "log.jsonl"), str(tmp_path / "out.jsonl")
    stage = Stage("convert", "", "", ("convert", "--from", "slates", log, "-o", out), (log,), (out,))
    with monkeypatch.context() as patch, _ended_by_sigterm():
        patch.setattr("pope_align.data.write._JsonLines.write", lambda writer, slate: os.kill(os.getpid(), number))
        with pytest.raises(error):
            run_stages([stage], tmp_path)
    assert not is_done(stage, tmp_path)
    assert not Path(out).exists()
    run_stages([stage], tmp_path)
    assert is_done(stage, tmp_path)
    Path(out).unlink()
    with pytest.raises(ValueError, match=r"stage convert: expected it to write .*out.jsonl, got no such file"):
        run_stage(stage, tmp_path, lambda argv: None)
    (tmp_path / "stages.json").write_text("{")
    with pytest.raises(ValueError, match=r"stages.json: expected the JSON of a run"):
        run_stages([stage], tmp_path)


def test_the_fits_of_a_stopped_run_are_not_thrown_away(make_slates, tmp_path: Path) -> None:
    write_slates(make_slates(4, scored=False), tmp_path / "log.jsonl")
    (tmp_path / "out.jsonl.fits" / "0").mkdir(parents=True)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    log, model, out = (str(tmp_path / name) for name in ("log.jsonl", "model", "out.jsonl"))
    result = CliRunner().invoke(app, ["fit-logger", log, "--model", model, "--folds", "2", "-o", out])
    assert "holds the fits of a run that was stopped; pass --resume" in str(result.exception)
    assert (tmp_path / "out.jsonl.fits" / "0").is_dir()
