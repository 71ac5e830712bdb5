"""A world with known truth: a small language model whose responses can all be enumerated, and target policies.

Responses are the strings of up to ``LENGTH`` tokens over ``TOKENS`` ordinary ones and an end-of-sequence token, so
expectations under every policy are exact sums, and on-policy samples are cheap.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from .._arrays import Floats
from ..ope import FreshScores, LoggedSlates, Predictions

TOKENS, LENGTH = 3, 5
_EOS, _PROMPT = TOKENS, 3  # id of the end token; tokens of a prompt


@dataclass(frozen=True, eq=False)
class World:
    """Log-probabilities of every response to every query under every policy, and the responses' true rewards."""

    logging: Floats  # [Q, N] totals, nats
    targets: dict[str, Floats]  # each [Q, N]
    reward: Floats  # [Q, N] probability that a response is liked
    model: Floats  # [Q, N] the prediction of an imperfect reward model
    tokens: npt.NDArray[np.int64]  # [N]

    def logprobs(self, policy: str) -> Floats:
        return self.targets[policy]

    def value(self, policy: str, diversity_weight: float, *, length_normalize: bool) -> tuple[float, float, float]:
        """The exact V, V_CU and V_Div of a policy."""
        log_pi = self.targets[policy]
        pi = np.exp(log_pi)
        surprise = -log_pi / self.tokens if length_normalize else -log_pi
        utility = float((pi * self.reward).sum(1).mean())
        diversity = float((pi * surprise).sum(1).mean())
        return utility + diversity_weight * diversity, utility, diversity

    def chi_squared(self, policy: str) -> float:
        """``E_0[w^2] - 1``, the variance of a weight; in the limit of many responses the ESS share is 1 / (1 + it)."""
        return float(np.exp(2 * self.targets[policy] - self.logging).sum(1).mean()) - 1

    def sample(
        self, policy: str, slates: int, size: int, random: np.random.Generator, *, fresh: int = 4
    ) -> tuple[LoggedSlates, Predictions]:
        """A log of slates with Bernoulli feedback, scored under ``policy``, and the reward model's predictions.

        Queries are drawn with replacement, so slates are independent. Predictions for the policy are means over
        ``fresh`` samples of its own.
        """
        query = random.integers(0, len(self.logging), slates)
        rows = np.repeat(query, size)
        chosen = _draw(self._cumulative(self.logging), rows, random)
        own_rows = np.repeat(query, fresh)
        own = _draw(self._cumulative(self.targets[policy]), own_rows, random)
        log = LoggedSlates.from_arrays(
            (random.random(rows.size) < self.reward[rows, chosen]).astype(np.float64),
            self.logging[rows, chosen],
            {policy: self.targets[policy][rows, chosen]},
            np.arange(0, rows.size + 1, size),
            tokens=self.tokens[chosen],
            how="recorded",
            written_by="model",
            fresh={
                policy: FreshScores(
                    np.repeat(np.arange(slates), fresh),
                    self.targets[policy][own_rows, own],
                    self.logging[own_rows, own],
                    self.tokens[own],
                )
            },
        )
        target = self.model[own_rows, own].reshape(slates, fresh).mean(1)
        surprise = -self.targets[policy][own_rows, own].reshape(slates, fresh).mean(1)
        return log, Predictions(self.model[rows, chosen], target, surprise, "study")

    def _cumulative(self, log_pi: Floats) -> Floats:
        return np.cumsum(np.exp(log_pi), axis=1)


def _draw(cumulative: Floats, rows: npt.NDArray[np.int64], random: np.random.Generator) -> npt.NDArray[np.int64]:
    """One response per row, by inversion; rows of one query are looked up together."""
    uniform = random.random(rows.size) * cumulative[rows, -1]
    chosen = np.empty(rows.size, dtype=np.int64)
    for query in np.unique(rows):
        mine = rows == query
        chosen[mine] = np.searchsorted(cumulative[query], uniform[mine], side="right")
    return np.minimum(chosen, cumulative.shape[1] - 1)


def make_world(seed: int = 0, *, queries: int = 50, tuned: tuple[int, ...] = (2, 4, 8, 16)) -> World:
    """A random Llama as the logging policy; targets by temperature, and by ``tuned`` steps of exact policy gradient."""
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=TOKENS + 1 + queries,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            initializer_range=0.35,
        )
    )
    responses, tokens = _responses()
    reward, believed = _rewards(responses, tokens, queries, random)
    with torch.no_grad():
        logits = _logits(model, queries)
        targets = {f"temperature {t:g}": _totals(logits / t, responses) for t in (0.9, 0.7, 0.5, 1.5)}
        logging = _totals(logits, responses)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-4)
    goal = torch.from_numpy(reward).float()
    for step in range(1, max(tuned) + 1):
        log_pi = _log_pi(_logits(model, queries), responses)
        loss = -(log_pi.exp() * goal).sum(1).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if step in tuned:
            with torch.no_grad():
                targets[f"tuned {step}"] = _totals(_logits(model, queries), responses)
    return World(logging, targets, reward, believed, tokens)


def _responses() -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """``[N, LENGTH]`` token ids, padded with -1 after the end, and their numbers of tokens."""
    rows = []
    for length in range(1, LENGTH + 1):
        for body in itertools.product(range(TOKENS), repeat=length - 1):
            ends = [_EOS] if length < LENGTH else range(TOKENS + 1)
            rows += [[*body, end, *[-1] * (LENGTH - length)] for end in ends]
    responses = np.array(rows)
    return responses, (responses >= 0).sum(1)


def _rewards(
    responses: npt.NDArray[np.int64], tokens: npt.NDArray[np.int64], queries: int, random: np.random.Generator
) -> tuple[Floats, Floats]:
    """True rewards depend on query, tokens and length; the reward model sees the average query only."""
    counts = np.stack([(responses == token).sum(1) for token in range(TOKENS + 1)], axis=1) / tokens[:, None]  # [N, T]
    first = np.eye(TOKENS + 1)[responses[:, 0]]
    features = np.concatenate([counts, first, (tokens[:, None] - 3.5) / 2], axis=1)  # [N, F]
    taste = random.normal(0, 1.0, features.shape[1]) + random.normal(0, 0.7, (queries, features.shape[1]))  # [Q, F]
    score = taste @ features.T
    reward = 1 / (1 + np.exp(-1.5 * (score - score.mean())))
    return reward, np.broadcast_to(0.2 + 0.6 * reward.mean(0), reward.shape)


def _logits(model: LlamaForCausalLM, queries: int) -> torch.Tensor:
    """``[Q, contexts, TOKENS + 1]``: of the next token after every string of ordinary tokens, by query."""
    strings = torch.tensor(list(itertools.product(range(TOKENS), repeat=LENGTH - 1)))  # [3^4, 4]
    prompt = (torch.arange(queries) + TOKENS + 1)[:, None, None].expand(-1, len(strings), _PROMPT)
    whole = torch.cat([prompt, strings.expand(queries, -1, -1)], dim=2).reshape(-1, _PROMPT + LENGTH - 1)
    logits = model(input_ids=whole).logits[:, _PROMPT - 1 :, : TOKENS + 1]
    return logits.reshape(queries, len(strings), LENGTH, TOKENS + 1).double()


def _log_pi(logits: torch.Tensor, responses: npt.NDArray[np.int64]) -> torch.Tensor:
    """``[Q, N]`` total log-probability of every response."""
    log_probs = logits.log_softmax(-1)
    place = np.where(responses[:, :-1] < TOKENS, np.maximum(responses[:, :-1], 0), 0)
    string = torch.from_numpy(place @ TOKENS ** np.arange(LENGTH - 2, -1, -1))  # a string with the response's beginning
    total = log_probs.new_zeros(len(log_probs), len(responses))
    for position in range(LENGTH):
        token = torch.from_numpy(responses[:, position])
        here = log_probs[:, string, position].gather(-1, token.clamp(min=0).expand(len(log_probs), -1)[..., None])
        total = total + here[..., 0] * (token >= 0)
    return total


def _totals(logits: torch.Tensor, responses: npt.NDArray[np.int64]) -> Floats:
    return np.asarray(_log_pi(logits, responses).numpy(), dtype=np.float64)
