"""Tokenises slates, with an exact boundary between the prompt and each response."""

from __future__ import annotations

import datetime
import functools
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from .schema import Turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: Text whose tokens differ between tokenizers: scripts, digits, white space, code, an emoji.
_FINGERPRINT_TEXT = "The quick brown fox,  1234567890 naïve Zürich 東京 мир\n\tdef f(x):\r\n    return x**2 🙂"

#: A placeholder response, to find out what the template writes around one.
_PROBE = "<probe>"

#: A chat template's call for the current time.
_CLOCK = re.compile(r"strftime_now\(\s*(?:format\s*=\s*)?(?P<quote>['\"])(?P<format>.*?)(?P=quote)\s*\)")

#: Prefixes for a response that is tokenised separately from its prompt: SentencePiece-like tokenizers add a space at
#: the start of a text, but not after one of these.
_ANCHORS = ("", "\n", ".", "x")


class Texts(Protocol):
    """The fields of a slate that tokenising needs; generated responses without ratings have only these."""

    @property
    def prompt(self) -> str | list[Turn]: ...
    @property
    def completions(self) -> list[str] | list[list[Turn]]: ...
    @property
    def logging_policy(self) -> dict[str, Any] | None: ...
    @property
    def slate_id(self) -> str | None: ...
    @property
    def finished(self) -> list[bool] | None: ...
    @property
    def completion_ids(self) -> list[list[int]] | None: ...


@dataclass(frozen=True, slots=True)
class EncodedSlate:
    """The token ids of a slate: one prompt and ``k`` responses.

    The model reads ``prompt_ids + completion_ids[i]``. A response ends with its end-of-turn token unless it was cut
    here or, according to ``Slate.finished``, when it was logged.
    """

    prompt_ids: list[int]
    completion_ids: list[list[int]]  # [k]
    prompt_tokens_dropped: int = 0
    completion_tokens_dropped: list[int] = field(default_factory=list)  # [k]
    boundary_splits: int = 0  # responses whose first characters merge with the prompt's last; see `encode_slate`
    tokenizer: str = ""  # `tokenizer_fingerprint` of the tokenizer
    template_date: str | None = None  # the date for the chat template, if it uses one


@dataclass(frozen=True, slots=True)
class TruncationReport:
    """Truncation of a log: how many prompts and responses were cut, and by how many tokens."""

    max_length: int
    slates: int
    responses: int
    prompts_truncated: int
    prompt_tokens_dropped: int
    completions_truncated: int
    completion_tokens_dropped: int
    boundary_splits: int

    @classmethod
    def of(cls, encoded: Sequence[EncodedSlate], max_length: int) -> TruncationReport:
        dropped = [count for slate in encoded for count in slate.completion_tokens_dropped]
        return cls(
            max_length=max_length,
            slates=len(encoded),
            responses=len(dropped),
            prompts_truncated=sum(slate.prompt_tokens_dropped > 0 for slate in encoded),
            prompt_tokens_dropped=sum(slate.prompt_tokens_dropped for slate in encoded),
            completions_truncated=sum(count > 0 for count in dropped),
            completion_tokens_dropped=sum(dropped),
            boundary_splits=sum(slate.boundary_splits for slate in encoded),
        )

    @property
    def anything_cut(self) -> bool:
        return self.prompts_truncated > 0 or self.completions_truncated > 0

    def __str__(self) -> str:
        splits = f"; {self.boundary_splits} responses split from the prompt" if self.boundary_splits else ""
        return (
            f"max_length {self.max_length}: cut {self.prompts_truncated} of {self.slates} prompts "
            f"({self.prompt_tokens_dropped} tokens on the left) and {self.completions_truncated} of {self.responses} "
            f"responses ({self.completion_tokens_dropped} tokens at the end){splits}"
        )


def encode_slate(
    slate: Texts,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    template_date: str | None = None,
    where: str = "slate",
) -> EncodedSlate:
    """Token ids of one slate's prompt and responses.

    With a chat template, a text prompt is one user turn and a text response one assistant turn; the prompt ends with
    the template's generation prompt, and a response with its end-of-turn token (text that the template writes after it,
    such as a newline, is left out, because the model never generates it). Without a chat template, the tokens are the
    prompt's text, the response's text and the end-of-sequence token.

    Prompt and response are tokenised together, and the prompt's own tokens must be a prefix of the result. Where a
    tokenizer merges characters across the boundary (a response that begins with a newline), the two are tokenised
    separately, as in generation, where the prompt's tokens are fixed before the response begins. ``boundary_splits``
    counts these.

    Where the slate has the sampled tokens themselves (``completion_ids``) and they are of this tokenizer, they are the
    response: a model may write a text in other tokens than a tokenizer would, and its propensity belongs to those.

    ``max_length`` covers prompt and response. If the prompt and the longest response do not fit, responses may take
    what the prompt leaves or half of ``max_length``, whichever is more, and are cut at the end; the prompt gets the
    rest and is cut on the left, after its begin-of-sequence token where it has one. All responses of a slate keep the
    same prompt.

    Args:
        template_date: the date (2026-11-28) for chat templates that write today's date; None for the date with which
            the slate was scored (``logging_policy["template_date"]``), else `today`.
        where: the slate's name in errors.

    Raises:
        ValueError: ``max_length < 2``; an invalid ``template_date``; a template that rejects the turns, does not extend
            its own prompt, or ends a turn without a special token; turns without a template; a tokenizer with neither
            an end-of-sequence token nor a template.
    """
    return _Format(tokenizer, template_date).encode(slate, max_length, where)


def encode_slates(
    slates: Iterable[Texts],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    template_date: str | None = None,
) -> tuple[list[EncodedSlate], TruncationReport]:
    """`encode_slate` for every slate of a log, in order, with one report of what was cut."""
    chat = _Format(tokenizer, template_date)
    encoded = []
    for number, slate in enumerate(slates, start=1):
        name = f" ({slate.slate_id})" if slate.slate_id else ""
        encoded.append(chat.encode(slate, max_length, f"slate {number}{name}"))
    return encoded, TruncationReport.of(encoded, max_length)


def reads_clock(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the chat template writes today's date (Llama 3, SmolLM3, Granite and gpt-oss do)."""
    return "strftime_now" in json.dumps(tokenizer.chat_template)


@functools.cache
def today() -> str:
    """The date (2026-11-28) of the first call in this process, so that work that runs past midnight keeps its date."""
    return datetime.date.today().isoformat()


def check_day(day: object) -> str:
    """A day for `encode_slate`, as 2026-11-28.

    Raises:
        ValueError: it is no date.
    """
    try:
        return datetime.date.fromisoformat(day).isoformat()  # type: ignore[arg-type]  # a TypeError is caught
    except (TypeError, ValueError):
        raise ValueError(f"template_date: expected a date such as 2026-11-28, got {day!r}") from None


def dated(template: str, date: str) -> str:
    """``template`` with ``date`` (2026-11-28, at midnight) in place of the current time.

    Raises:
        ValueError: the template computes the format of its date at run time.
    """
    day = datetime.datetime.fromisoformat(date)
    text = _CLOCK.sub(lambda call: json.dumps(day.strftime(call["format"])), template)
    if "strftime_now(" in text:
        raise ValueError(
            "chat_template: expected strftime_now to be called with a format in quotes, so that a day can be put in "
            f"its place, got {text[text.index('strftime_now(') :][:60]!r}"
        )
    return text


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """A short hash of what determines a slate's tokens: vocabulary size, special tokens, template, ids of a sample
    text.

    Equal for the same tokenizer loaded from different places or by different library versions.
    """
    content = [
        len(tokenizer),
        tokenizer(_FINGERPRINT_TEXT).input_ids,
        sorted(map(str, tokenizer.all_special_tokens)),
        tokenizer.chat_template,
    ]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


class _Format:
    """Formats and tokenises prompts and responses with one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template_date: str | None) -> None:
        self.tokenizer = tokenizer
        self.template_date = template_date
        self.reads_clock = reads_clock(tokenizer)
        self.name = tokenizer.name_or_path or type(tokenizer).__name__
        self.fingerprint = tokenizer_fingerprint(tokenizer)
        added = [str(token) for token in tokenizer.added_tokens_decoder.values()]
        self.special_tokens = {
            token for token in added if token.strip()
        }  # some tokenizers have added tokens that are runs of spaces

    def encode(self, slate: Texts, max_length: int, where: str) -> EncodedSlate:
        if max_length < 2:
            raise ValueError(
                f"max_length: expected an integer >= 2 (a prompt token and a response token), got {max_length}"
            )
        date = self.date(slate)
        if self.tokenizer.chat_template:
            prompt, wholes = self.render(slate, where, date)
            opening, closing = [], []
        else:
            prompt, wholes = self.plain(slate, where)
            opening, closing = self.opening(), [self.eos(where)]
        prompt_ids, *whole_ids = self.ids([prompt, *wholes])
        splits = 0
        if (completion_ids := self.sampled(slate, where)) is None:
            tails = [self.tail(prompt, prompt_ids, *whole, where) for whole in zip(wholes, whole_ids, strict=True)]
            completion_ids = [tail + closing for tail, _ in tails]
            splits = sum(split for _, split in tails)
            if slate.finished is not None:  # a response that was cut at a limit has no end-of-turn token
                completion_ids = [ids if done else ids[:-1] for ids, done in zip(completion_ids, slate.finished)]
        prompt_ids = opening + prompt_ids
        prompt_limit, completion_limit = _fit(len(prompt_ids), max(map(len, completion_ids)), max_length)
        return EncodedSlate(
            prompt_ids=self.cut_left(prompt_ids, prompt_limit),
            completion_ids=[ids[:completion_limit] for ids in completion_ids],
            prompt_tokens_dropped=max(len(prompt_ids) - prompt_limit, 0),
            completion_tokens_dropped=[max(len(ids) - completion_limit, 0) for ids in completion_ids],
            boundary_splits=splits,
            tokenizer=self.fingerprint,
            template_date=date,
        )

    # --- text: the prompt, and prompt + response for every response -------------------------------------------------

    def plain(self, slate: Texts, where: str) -> tuple[str, list[str]]:
        texts = [slate.prompt, *slate.completions]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError(
                f"{where}: expected text, got chat turns, and tokenizer {self.name!r} has no chat template"
            )
        prompt, *completions = [str(text) for text in texts]
        return prompt, [prompt + completion for completion in completions]

    def render(self, slate: Texts, where: str, date: str | None) -> tuple[str, list[str]]:
        turns = _turns("user", slate.prompt)
        text = self.tokenizer.get_chat_template()
        write = functools.partial(self.template, text if date is None else dated(text, date), where=where)
        prompt = write(turns, generation_prompt=True)
        probed = write([*turns, *_turns("assistant", _PROBE)])
        after = self.after_end_of_turn(probed.rpartition(_PROBE)[2], where)
        wholes = [write([*turns, *_turns("assistant", completion)]) for completion in slate.completions]
        for whole in [probed, *wholes]:
            if not (whole.startswith(prompt) and whole.endswith(after)):
                raise ValueError(
                    f"{where}: expected the chat template of tokenizer {self.name!r} to extend its own generation "
                    f"prompt ({prompt[-40:]!r}) and to end with {after!r}, got a conversation that does not: "
                    f"{whole[-80:]!r}"
                )
        return prompt, [whole[: len(whole) - len(after)] for whole in wholes]

    def date(self, slate: Texts) -> str | None:
        """The date for the template; None if it uses none."""
        if not self.reads_clock:
            return None
        return check_day(self.template_date or (slate.logging_policy or {}).get("template_date") or today())

    def template(self, text: str, turns: list[Turn], *, where: str, generation_prompt: bool = False) -> str:
        from jinja2 import TemplateError  # comes with every library that renders chat templates

        try:
            written = self.tokenizer.apply_chat_template(
                turns, chat_template=text, tokenize=False, add_generation_prompt=generation_prompt
            )
        except TemplateError as error:
            raise ValueError(
                f"{where}: the chat template of tokenizer {self.name!r} refuses its turns: {error}"
            ) from error
        return str(written)

    def after_end_of_turn(self, closing: str, where: str) -> str:
        """The part of ``closing``, the template's text after a response, that follows the end-of-turn token."""
        found = [(closing.find(token), -len(token)) for token in self.special_tokens if token in closing]
        if not found:
            raise ValueError(
                f"{where}: expected the chat template of tokenizer {self.name!r} to close a response with a special "
                f"token, got {closing!r}; without one the model cannot end its turn"
            )
        start, minus_length = min(found)
        return closing[start - minus_length :]

    # --- tokens -----------------------------------------------------------------------------------------------------

    def ids(self, texts: list[str]) -> list[list[int]]:
        return self.tokenizer(texts, add_special_tokens=False, verbose=False).input_ids

    def sampled(self, slate: Texts, where: str) -> list[list[int]] | None:
        """The tokens that were sampled, if the slate has them and they are of this tokenizer."""
        if (slate.logging_policy or {}).get("tokenizer_fingerprint") != self.fingerprint:
            return None
        largest = max((max(ids) for ids in slate.completion_ids or []), default=0)
        if largest >= len(self.tokenizer):
            raise ValueError(
                f"{where}: completion_ids: expected tokens below {len(self.tokenizer)}, the entries of tokenizer "
                f"{self.name!r}, got {largest}"
            )
        return slate.completion_ids

    def tail(
        self, prompt: str, prompt_ids: list[int], whole: str, whole_ids: list[int], where: str
    ) -> tuple[list[int], bool]:
        """The response's tokens, and whether it had to be split from the prompt."""
        if whole_ids[: len(prompt_ids)] == prompt_ids:
            return whole_ids[len(prompt_ids) :], False
        response = whole[len(prompt) :]
        text = self.tokenizer.decode(whole_ids)
        for anchor in _ANCHORS:
            before, anchored = self.ids([anchor, anchor + response])
            tail_ids = anchored[len(before) :]
            if anchored[: len(before)] == before and self.tokenizer.decode(prompt_ids + tail_ids) == text:
                return tail_ids, True
        raise ValueError(
            f"{where}: expected the prompt's tokens to be a prefix of the whole's, got others at the boundary, "
            f"and tokenizer {self.name!r} writes the response differently when it stands alone: {response[:40]!r}"
        )

    def cut_left(self, prompt_ids: list[int], limit: int) -> list[int]:
        """The last ``limit`` tokens; the first is replaced by the begin-of-sequence token if the prompt has one,
        because the model never saw a text without it.
        """
        if len(prompt_ids) > limit > 1 and prompt_ids[0] == self.tokenizer.bos_token_id:
            return [prompt_ids[0], *prompt_ids[1 - limit :]]
        return prompt_ids[-limit:]

    def opening(self) -> list[int]:
        """The begin-of-sequence token, if the tokenizer adds one to every text."""
        bos = self.tokenizer.bos_token_id
        return [bos] if isinstance(bos, int) and self.tokenizer("").input_ids[:1] == [bos] else []

    def eos(self, where: str) -> int:
        eos = self.tokenizer.eos_token_id
        if not isinstance(eos, int):
            raise ValueError(
                f"{where}: expected a chat template or an eos_token, got tokenizer {self.name!r} with neither"
            )
        return eos


def _turns(role: str, value: str | list[Turn]) -> list[Turn]:
    return [{"role": role, "content": value}] if isinstance(value, str) else value


def _fit(prompt: int, longest: int, max_length: int) -> tuple[int, int]:
    """The maximum numbers of tokens of the prompt and of each response."""
    completion_limit = min(longest, max(max_length - prompt, max_length // 2))
    return max_length - completion_limit, completion_limit
