"""The turns that a chat template rendered, recovered from the token ids, and proved by rendering them again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from .._extras import require
from .checks import Turn
from .tokenize import tokenizer_fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MARKS = {role: f"@{role}@" for role in ("system", "user", "assistant")}


@dataclass(frozen=True)
class Untemplate:
    """Turns prompts and responses from token ids into text, for one tokenizer."""

    tokenizer: PreTrainedTokenizerBase

    def prompt(self, ids: Sequence[int]) -> str | list[Turn] | None:
        """The turns (text, for a tokenizer without a chat template) that give exactly these ids; None if none do."""
        text = self.tokenizer.decode(ids, skip_special_tokens=False)
        if self.tokenizer.chat_template is None:
            plain = self.tokenizer.decode(ids, skip_special_tokens=True)
            return plain if self.tokenizer(plain)["input_ids"] == list(ids) else None
        for turns in self._readings(text):
            if self._rendered(turns) == text and self._ids(turns) == list(ids):
                return turns
        return None

    @cached_property
    def fingerprint(self) -> str:
        """The tokenizer's, as provenance has it."""
        return tokenizer_fingerprint(self.tokenizer)

    def response(self, ids: Sequence[int]) -> str:
        """The text of sampled tokens without the end of the turn."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=False))

    def is_end(self, token: int) -> bool:
        """Whether a token is one that no text gives, as those that end a turn."""
        return token in self.tokenizer.all_special_ids

    def _rendered(self, turns: list[Turn]) -> str:
        return str(self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))

    def _ids(self, turns: list[Turn]) -> list[int]:
        text = self._rendered(turns)
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _readings(self, text: str) -> Iterator[list[Turn]]:
        """Conversations whose turns alternate, with and without a system turn, by what stands between turns."""
        jinja = require("jinja2", extra="train", purpose="for chat templates")
        for roles in (["user"], ["system", "user"]):
            probe = [{"role": role, "content": _MARKS[role]} for role in [*roles, "assistant", "user"]]
            try:
                start, _, rest = self._rendered(probe[: len(roles)]).partition(_MARKS[roles[0]])
                whole = self._rendered(probe)
            except jinja.exceptions.TemplateError:  # it has no system turns
                continue
            between = rest.partition(_MARKS["user"])[0] if len(roles) == 2 else ""
            end = rest.rpartition(_MARKS["user"])[2] if len(roles) == 2 else rest
            after_user = whole.partition(_MARKS["user"])[2].partition(_MARKS["assistant"])[0]
            after_assistant = whole.partition(_MARKS["assistant"])[2].partition(_MARKS["user"])[0]
            if not text.startswith(start) or not text.endswith(end):
                continue
            inside = text[len(start) : len(text) - len(end) if end else None]
            turns: list[Turn] = []
            if len(roles) == 2:
                system, found, inside = inside.partition(between)
                if not found:
                    continue
                turns.append({"role": "system", "content": system})
            role = "user"
            while True:
                separator = after_user if role == "user" else after_assistant
                content, found, later = inside.partition(separator) if separator else (inside, "", "")
                turns.append({"role": role, "content": content})
                if not found:
                    break
                inside, role = later, "assistant" if role == "user" else "user"
            yield turns
