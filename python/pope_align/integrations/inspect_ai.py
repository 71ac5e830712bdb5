"""Our metrics as scorers and epoch reducers of Inspect AI.

A metric of `pope_align.metrics.registry` describes the set of a model's answers to one prompt. In Inspect these are the
choices of a sample's output (``num_choices``), which the scorer measures, or the answers of all its epochs, which the
reducer measures. The target's entries are the references.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from .._arrays import Floats
from .._extras import require
from ..data import Slate
from ..generation.generations import Generation
from ..metrics.lexical import words
from ..metrics.prompt import AnsweredPrompt, MetricOptions
from ..metrics.registry import BY_NAME, check_names

_scorer = require("inspect_ai.scorer", extra="inspect", purpose="for scorers of Inspect")

#: ``[n, d]`` unit vectors of texts.
Embed = Callable[[list[str]], Floats]

_OURS = "pope_align"


def pope_metric(name: str, embed: Embed | None = None, options: MetricOptions | None = None) -> Any:
    """A scorer: one of our metrics, of the choices in a sample's output and the entries of its target.

    Args:
        name: a key of `pope_align.metrics.registry.BY_NAME` that needs nothing but answers, e.g. "coverage" or
            "distinct_1".
        embed: gives unit vectors of texts; None for `pope_align.metrics.embeddings.Embedder`, loaded at first use.
        options: of the metrics; None for their defaults.

    Raises:
        ValueError: an unknown metric, or one that needs a policy, groups or AlignScore.
    """
    measure = _Measure(name, embed, options or MetricOptions())

    async def score(state: Any, target: Any) -> Any:
        answers = [choice.message.text for choice in state.output.choices]
        facts = {"prompt": state.input_text, "answers": answers, "references": list(target)}
        return _scorer.Score(value=measure(facts), answer=state.output.completion, metadata={_OURS: facts})

    # Made for each metric, so that reports of several name each of them.
    return _scorer.scorer(metrics=[_scorer.mean(), _scorer.stderr()], name=f"pope_{name}")(lambda: score)()


def over_epochs(name: str, embed: Embed | None = None, options: MetricOptions | None = None) -> Any:
    """A reducer for ``Epochs(n, over_epochs(NAME))``: the metric of the answers of all epochs of a sample.

    It computes on scores of `pope_metric`; scores of other scorers are averaged, as Inspect's ``mean`` does.

    Args:
        name, embed, options: as in `pope_metric`.
    """
    measure = _Measure(name, embed, options or MetricOptions())
    average = _scorer.mean_score()

    def reduce(scores: list[Any]) -> Any:
        found = [(score.metadata or {}).get(_OURS) for score in scores]
        facts = [each for each in found if isinstance(each, Mapping)]
        if len(facts) < len(found):
            return average(scores)
        joined = {**facts[0], "answers": [answer for each in facts for answer in each["answers"]]}
        return _scorer.Score(value=measure(joined), answer=scores[0].answer, metadata={_OURS: joined})

    return _scorer.score_reducer(name=f"pope_{name}")(lambda: reduce)()


class _Measure:
    """A metric of the answers to one prompt."""

    def __init__(self, name: str, embed: Embed | None, options: MetricOptions) -> None:
        check_names([name])
        if BY_NAME[name].needs != "answers":
            raise ValueError(f"name: expected a metric that needs only answers, got {name}: {BY_NAME[name].needs}")
        self.metric, self.embed, self.options = BY_NAME[name], embed, options

    def __call__(self, facts: Mapping[str, Any]) -> float:
        references = facts["references"] or [""]
        slate = Slate(facts["prompt"], references, [1.0] * len(references))
        generation = Generation("sample", facts["prompt"], facts["answers"])
        texts = list(dict.fromkeys([*facts["answers"], *references, facts["prompt"]]))
        vectors = _Vectors(texts, self._embedder())
        return float(self.metric.compute(AnsweredPrompt(generation, slate, vectors, words, self.options)))

    def _embedder(self) -> Callable[[], Embed]:
        def made() -> Embed:
            if self.embed is None:
                from ..metrics.embeddings import Embedder

                self.embed = Embedder()
            return self.embed

        return made


class _Vectors(Mapping[str, Floats]):
    """Vectors of texts, computed when the first is asked for: metrics of words need none."""

    def __init__(self, texts: Sequence[str], embedder: Callable[[], Embed]) -> None:
        self.texts, self.embedder = list(texts), embedder
        self.found: dict[str, Floats] = {}

    def __getitem__(self, text: str) -> Floats:
        if not self.found:
            self.found = dict(zip(self.texts, self.embedder()(self.texts), strict=True))
        return self.found[text]

    def __iter__(self) -> Iterator[str]:
        return iter(self.texts)

    def __len__(self) -> int:
        return len(self.texts)
