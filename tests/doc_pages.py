"""The files and names that the code of each page takes for granted: a reader's own, made small."""

from __future__ import annotations

import gzip
import json
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

#: Gives a fixture by its name.
Fixture = Callable[[str], Any]


class Page(NamedTuple):
    """How to prepare an empty folder for a page's code, and Python that stands before its first block."""

    prepare: Callable[[Path, Fixture], None]
    preamble: str = ""


def save_model(folder: Path, fixture: Fixture, seed: int = 0) -> None:
    """A tiny language model with its tokenizer, where a page names a model."""
    fixture("make_tiny_model")(seed, max_position_embeddings=1024).save_pretrained(folder)
    fixture("tiny_tokenizer").save_pretrained(folder)


def write_log(path: Path, fixture: Fixture, *, scored: bool, count: int = 24, seed: int = 0) -> None:
    from pope_align.data import write_slates

    write_slates(fixture("make_slates")(count, scored=scored, sizes=(2, 3, 4), seed=seed), path)


def write_posts(path: Path, questions: int = 30) -> None:
    """A forum's export: questions of one line and three voted answers to each."""
    rng, rows, number = random.Random(0), [], 0
    colours = ["red", "green", "blue", "grey"]
    for _ in range(questions):
        number += 1
        question = number
        rows.append(
            f'<row Id="{question}" PostTypeId="1" Score="3" Title="Colour {question}?" '
            f'Body="&lt;p&gt;Which colour is best for door {question}?&lt;/p&gt;" CreationDate="2020-01-01T00:00:00"/>'
        )
        for colour in rng.sample(colours, 3):
            number += 1
            body = f"&lt;p&gt;I would take {colour} for it.&lt;/p&gt;"
            rows.append(
                f'<row Id="{number}" PostTypeId="2" ParentId="{question}" Score="{rng.randrange(9)}" Body="{body}" '
                'CreationDate="2020-01-02T00:00:00"/>'
            )
    text = "\n".join(rows)
    path.write_text(f'<?xml version="1.0" encoding="utf-8"?>\n<posts>\n{text}\n</posts>\n', encoding="utf-8")


RUN = """model: M
train_data: scored.parquet
output_dir: out
max_steps: 2
max_length: 200
use_cpu: true
report_to: none
save_strategy: "no"
"""

HUB_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"  # a folder of this name serves in its place


def readme(where: Path, fixture: Fixture) -> None:
    for name in ("M", HUB_NAME):
        save_model(where / name, fixture)
    write_posts(where / "Posts.xml")
    for name in ("scored.jsonl", "heldout.jsonl"):
        write_log(where / name, fixture, scored=True, seed=len(name))
    (where / "run.yaml").write_text(RUN, encoding="utf-8")


def training(where: Path, fixture: Fixture) -> None:
    save_model(where / HUB_NAME, fixture)
    for name in ("scored.jsonl", "heldout.jsonl"):
        write_log(where / name, fixture, scored=True, seed=len(name))


def migration(where: Path, fixture: Fixture) -> None:
    save_model(where / HUB_NAME, fixture)


def write_amazon(where: Path, reviews: int = 40) -> None:
    """Reviews and products as Amazon 2023 has them, under the names of its files."""
    products = [{"parent_asin": f"P{at}", "title": f"Film {at}", "features": []} for at in range(4)]
    rows = [
        {
            "rating": float(1 + at % 5),
            "title": "A view",
            "text": f"I saw it {at} times.",
            "asin": f"P{at % 4}",
            "parent_asin": f"P{at % 4}",
            "user_id": f"U{at}",
            "timestamp": 1_600_000_000_000 + at,
            "helpful_vote": at % 7,
            "verified_purchase": True,
        }
        for at in range(reviews)
    ]
    for name, each in (("Movies_and_TV", rows), ("meta_Movies_and_TV", products)):
        with gzip.open(where / f"{name}.jsonl.gz", "wt", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in each)


def data(where: Path, fixture: Fixture) -> None:
    from pope_align.data import write_slates

    write_log(where / "votes.jsonl", fixture, scored=False)
    slates = fixture("make_slates")(24, scored=False, sizes=(2, 3))
    write_slates([replace(slate, slate_id=f"s{at}") for at, slate in enumerate(slates)], where / "log.jsonl")
    for name in ("openai-community/gpt2", "FOLDER"):
        save_model(where / name, fixture)
    for name in ("movies.train.parquet", "movies.test.parquet"):
        write_log(where / name, fixture, scored=True, seed=len(name))
    write_amazon(where)


def samples_of(where: Path, name: str, files: dict[str, str]) -> None:
    """Files of a format's examples, under the names that a page gives them."""
    for source, target in files.items():
        (where / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(Path(__file__).parent / "formats" / name / source, where / target)


def logs(where: Path, fixture: Fixture) -> None:
    samples_of(where, "openai", {"log.jsonl": "requests.jsonl", "feedback.jsonl": "ratings.jsonl"})
    samples_of(where, "otel", {"spans.jsonl": "traces.jsonl", "otlp.jsonl": "evaluations.jsonl"})


def inspect(where: Path, fixture: Fixture) -> None:
    samples_of(where, "inspect", {"tea.eval": "logs/tea.eval"})


def lm_eval(where: Path, fixture: Fixture) -> None:
    rows = (Path(__file__).parent / "formats" / "lm-eval" / "samples_tea_2026-01-02.jsonl").read_text().splitlines()
    for model, answer in (("a", " Coffee"), ("b", " Sencha")):
        folder = where / "results" / f"model-{model}"
        folder.mkdir(parents=True)
        (folder / "samples_gsm8k_2026.jsonl").write_text(rows[0].replace(" Coffee", answer) + "\n")


def evaluation(where: Path, fixture: Fixture) -> None:
    write_log(where / "scored.parquet", fixture, scored=True)
    save_model(where / "base", fixture)
    save_model(where / "new", fixture, seed=1)


def metrics(where: Path, fixture: Fixture) -> None:
    import peft

    save_model(where / "MODEL", fixture)
    adapted = peft.get_peft_model(
        fixture("make_tiny_model")(0, max_position_embeddings=1024), peft.LoraConfig(target_modules=["q_proj"])
    )
    adapted.save_pretrained(where / "trained")
    write_log(where / "slates.jsonl", fixture, scored=False, count=4)
    rng = random.Random(0)
    ratings = [
        f"Question {question}?,{model} says {question},{rng.randint(1, 5)},{model},{group},{person}"
        for question in range(6)
        for model in ("m1", "m2")
        for group in range(3)
        for person in range(4)
    ]
    header = "question,response,rating,model,group,participant"
    (where / "ratings.csv").write_text("\n".join([header, *ratings, ""]), encoding="utf-8")


def write_rows(where: Path) -> None:
    """Shards with one row per response."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng, rows = np.random.default_rng(0), 300
    tokens = rng.integers(2, 9, rows)
    logging = -1.5 * tokens
    columns = {
        "prompt_id": np.arange(rows) // 3,
        "rating": rng.integers(1, 6, rows),
        "tokens": tokens,
        "logging_logprob": logging,
        "base_logprob": logging + rng.normal(-0.1, 0.2, rows),
        "new_logprob": logging + rng.normal(-0.1, 0.2, rows),
    }
    (where / "log").mkdir()
    for number, low in enumerate((0, 160)):
        shard = pa.table({name: column[low : low + 160] for name, column in columns.items()})
        pq.write_table(shard, where / "log" / f"{number}.parquet")


def scale(where: Path, fixture: Fixture) -> None:
    save_model(where / "MODEL", fixture)
    save_model(where / "NEW", fixture, seed=1)
    (where / "logs").mkdir()
    for name in ("a.parquet", "b.jsonl"):
        write_log(where / "logs" / name, fixture, scored=False, count=20, seed=ord(name[0]))
    write_rows(where)


ARRAYS = """
import numpy as np
from pope_align.ope import Predictions

rng = np.random.default_rng(0)
slates, k = 60, 3
utility, tokens = rng.random(slates * k), rng.integers(2, 9, slates * k)
logging_logprobs = -1.5 * tokens
base_logprobs, new_logprobs = (logging_logprobs + rng.normal(-0.1, 0.2, slates * k) for _ in range(2))
slate_offsets, conversations = np.arange(0, slates * k + 1, k), np.arange(slates) // 2
predictions = Predictions(np.full(slates * k, 0.5), np.full(slates, 0.5))
"""


LOSS = """
import torch
from types import SimpleNamespace

torch.manual_seed(0)
labels = torch.randint(0, 50, (10, 12))
labels[:, :4] = -100
input_ids, mask = labels.clamp(min=0), torch.ones_like(labels)
embedding, head = torch.nn.Embedding(50, 16), torch.nn.Linear(16, 50)
model = lambda ids, attention_mask: SimpleNamespace(logits=head(embedding(ids)))
logging_logprobs, utility = torch.full((10,), -30.0), torch.rand(10)
"""


def nothing(folder: Path, fixture: Fixture) -> None:
    """The page names no file."""


PAGES = {
    "README.md": Page(readme, LOSS),
    "docs/data.md": Page(data),
    "docs/evaluation.md": Page(evaluation, ARRAYS),
    "docs/inspect.md": Page(inspect),
    "docs/judge.md": Page(nothing),
    "docs/lm-eval.md": Page(lm_eval),
    "docs/logs.md": Page(logs),
    "docs/metrics.md": Page(metrics),
    "docs/migration-from-trl.md": Page(migration),
    "docs/scale.md": Page(scale),
    "docs/training.md": Page(training),
}
