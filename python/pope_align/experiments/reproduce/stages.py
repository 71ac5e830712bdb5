"""The stages of an experiment, in the order in which they are run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from ...compare.stages import Stage
from . import parts
from .methods import AGAIN, BASE, PEOPLE, Feedback, Method
from .parts import PartCounts
from .plan import SOURCE, VALIDATION, Arguments, Cost, Measured, ReproductionPlan, ReproductionRequest
from .protocol import BASE_TEMPERATURES

#: Added to the seeds of all samples but those of the base's front. The base's second sample and the methods have the
#: same random numbers: a method that is the base gains over the front what the base sampled again does, not less.
_OTHER_SEED = 1000

#: About how many tokens our questions and our unrelated text have.
_ABILITY_TOKENS = 4_000


def preparation(request: ReproductionRequest) -> dict[str, Stage]:
    """The stages that need no model, by data set: its parts."""
    sizes = request.sizes
    stages = {}
    for name, data in {SOURCE: request.data, **request.tests}.items():
        out = request.folder / name / "parts"
        train = sizes.train if name == SOURCE else 0
        argv = ["step", "parts", data, "--train", str(train), "--test", str(sizes.test)]
        argv += ["--most", str(sizes.candidates if not request.protocol.own else 64), "--answers", str(sizes.answers)]
        if request.protocol.own and sizes.reference_characters:
            argv += ["--characters", str(sizes.reference_characters)]
        if train and sizes.tuned:
            argv += ["--validation", str(sizes.validation)]
        if request.protocol.matching:
            argv += ["--matching", request.protocol.matching]
        stages[name] = Stage(
            f"parts-{name}", f"the parts of {data}", str(Cost()), (*argv, "-o", str(out)), (data,), (str(out),)
        )
    return stages


def make_plan(
    request: ReproductionRequest, counts: Mapping[str, PartCounts], rates: Mapping[str, float] | None = None
) -> ReproductionPlan:
    """The stages after the parts of every data set are there.

    Args:
        counts: of every data set.
        rates: the learning rate of every method, chosen from what the plan's first stages measure (`chosen_rates`).
            None: the first of the rates, which gives the same costs.

    Raises:
        ValueError: no training part.
    """
    if not counts[SOURCE].train:
        raise ValueError(
            f"data: expected slates for training beside the test part, got {counts[SOURCE].matching} in all"
        )
    return _Builder(request, counts).build(rates or {})


class _Builder:
    """Stages in the order in which they are run."""

    def __init__(self, request: ReproductionRequest, counts: Mapping[str, PartCounts]) -> None:
        self.request, self.counts, self.sizes = request, counts, request.sizes
        self.plan = ReproductionPlan(request)
        self.folder = request.folder
        self.cache = ("--cache", request.folder / "cache")
        self.logs: dict[tuple[str, int], Path] = {}
        self.trained: set[Path] = set()

    def build(self, rates: Mapping[str, float]) -> ReproductionPlan:
        if self.sizes.tuned:
            self._tuning()
        policies: dict[tuple[str, int], str | Path] = {}
        for seed in range(self.request.seeds):
            policies[BASE, seed] = self.request.model
            for method in self.request.methods:
                rate = rates.get(method.name, self.sizes.learning_rates[0])
                policies[method.name, seed] = self._train(method, seed, rate)
        for data in self.request.reported:
            self._data_set(data, policies)
        if self.request.protocol.shows == "table":
            self._abilities(policies)
        return self.plan

    # --- training ---------------------------------------------------------------------------------------------------

    def _tuning(self) -> None:
        """Every method at every learning rate, with the first seed, and its answers to the validation prompts."""
        prompts = self._part(SOURCE, parts.VALIDATION)
        folder = self.folder / VALIDATION
        for method in self.request.methods:
            for rate in self.sizes.learning_rates:
                name = f"{method.name}-{rate:g}"
                model = self._train(method, 0, rate)
                answers = self._answers(VALIDATION, name, 0, 1.0, model)
                self.plan.add(
                    f"metrics-{VALIDATION}-{name}",
                    f"{VALIDATION}: metrics of {method.name} at the learning rate {rate:g}",
                    Cost(embedded=self.counts[SOURCE].validation * self.sizes.answers),
                    ["metrics", f"{name}={answers}", "--refs", prompts, *self.cache, "-o", folder / "metrics" / name],
                    reads=[prompts, answers],
                    writes=folder / "metrics" / name,
                )
                self.plan.tuning[method.name, rate] = Measured(
                    VALIDATION, name, 0, 1.0, name, folder / "metrics" / name
                )
        self.plan.tuning_stages = len(self.plan.stages)

    def _train(self, method: Method, seed: int, rate: float) -> Path:
        sizes, slates = self.sizes, self.counts[SOURCE].train
        name = f"{method.name}-{rate:g}-{seed}" if sizes.tuned else f"{method.name}-{seed}"
        out = self.folder / "models" / name
        if out in self.trained:
            return out
        self.trained.add(out)
        log = self._log(method.feedback, seed)
        steps = -(-slates // sizes.batch) * sizes.epochs
        options = {
            "learning-rate": rate,
            "max-steps": steps,  # the same for every method: an epoch of DPO on all pairs is several of the others
            "gradient-accumulation-steps": sizes.batch,
            "max-length": sizes.max_length,
            "seed": seed,
            "save-strategy": "no",
            "report-to": "none",
        }
        argv: Arguments = ["train", log, "--model", self.request.model, *method.train, *_flags(options), "-o", out]
        return self.plan.add(
            f"train-{name}",
            f"{method.label}, seed {seed}: trained on {slates} slates, learning rate {rate:g}",
            Cost(steps=steps),
            argv,
            reads=[log, self.request.model],
            writes=out,
        )

    def _log(self, feedback: Feedback, seed: int) -> Path:
        """The training log with some feedback; its stages are added once."""
        if not self.request.protocol.own and feedback == "votes":
            seed = 0  # what people wrote is the same for every seed
        if (feedback, seed) not in self.logs:
            self.logs[feedback, seed] = self._new_log(feedback, seed)
        return self.logs[feedback, seed]

    def _new_log(self, feedback: Feedback, seed: int) -> Path:
        people = self._part(SOURCE, parts.TRAIN)
        if feedback == "people":
            return people
        if feedback == "shuffled":
            votes, out = self._log("votes", seed), self.folder / "logs" / f"shuffled-{seed}.jsonl"
            argv: Arguments = ["step", "shuffle", votes, "--seed", str(seed), "-o", out]
            return self.plan.add(
                f"shuffled-{seed}", f"its votes permuted, seed {seed}", Cost(), argv, reads=[votes], writes=out
            )
        if not self.request.protocol.own:
            return self._scored(SOURCE, parts.TRAIN)
        candidates = self._candidates(seed)
        how = "similarity" if feedback == "votes" else feedback
        out = self.folder / "logs" / f"{feedback}-{seed}.jsonl"
        texts = self.counts[SOURCE].train * self.sizes.candidates + self.counts[SOURCE].train_responses
        return self.plan.add(
            f"{feedback}-{seed}",
            f"their feedback: {how}, seed {seed}",
            Cost(embedded=texts),
            ["label", candidates, "--with", how, "--refs", people, *self.cache, "-o", out],
            reads=[candidates, people],
            writes=out,
        )

    def _candidates(self, seed: int) -> Path:
        if ("candidates", seed) in self.logs:
            return self.logs["candidates", seed]
        out, people = self.folder / "logs" / f"candidates-{seed}.jsonl", self._part(SOURCE, parts.TRAIN)
        argv: Arguments = ["generate", people, "--model", self.request.model, "--logprobs"]
        options = {"n": self.sizes.candidates, "max-new-tokens": self.sizes.max_new_tokens, "seed": seed}
        count = self.counts[SOURCE].train * self.sizes.candidates
        self.logs["candidates", seed] = self.plan.add(
            f"candidates-{seed}",
            f"{self.sizes.candidates} own candidates to every training prompt, with their propensities, seed {seed}",
            Cost(written=count * self.sizes.max_new_tokens),
            [*argv, *_flags(options), "-o", out],
            reads=[people, self.request.model],
            writes=out,
            work=[out.with_name(f"{out.name}.journal")],
        )
        return self.logs["candidates", seed]

    def _scored(self, data: str, part: str) -> Path:
        """A log of people's with the propensities of a logging policy that is cloned from it, in two folds."""
        log, out = self._part(data, part), self.folder / data / f"scored-{part}"
        counts = self.counts[data]
        responses = counts.train_responses if part == parts.TRAIN else counts.test_responses
        argv: Arguments = ["fit-logger", log, "--model", self.request.logging_model, "--folds", "2", "--epochs", "1"]
        return self.plan.add(
            f"propensities-{data}-{part.partition('.')[0]}",
            f"a logging policy cloned from {self.request.logging_model} on {data}, in two folds",
            Cost(read=3 * responses * min(counts.tokens, self.sizes.max_length)),
            [*argv, "--max-length", str(self.sizes.max_length), *self.cache, "-o", out],
            reads=[log, self.request.logging_model],
            writes=out,
            work=[out.with_name(f"{out.name}.fits")],
            resume=["--resume"],
        )

    def _part(self, data: str, name: str) -> Path:
        return self.folder / data / "parts" / name

    # --- what the models say ----------------------------------------------------------------------------------------

    def _data_set(self, data: str, policies: Mapping[tuple[str, int], str | Path]) -> None:
        first: dict[str, Path] = {}  # answers of the first seed at temperature 1, by method
        for (method, seed), model in self._sampled(policies):
            files = {}
            for temperature in BASE_TEMPERATURES if method == BASE else self.sizes.temperatures:
                files[temperature] = self._answers(data, method, seed, temperature, model)
            if seed == 0 and method != AGAIN:
                first[method] = files[1.0]
            self._metrics(data, method, seed, files, model)
            if self.request.third_model is not None and method != AGAIN:
                self._fluency(data, method, seed, files[1.0])
        if self.counts[data].divided:
            people = self._part(data, parts.OTHERS)
            self._metrics(data, PEOPLE, 0, {1.0: people}, None)
            if self.request.third_model is not None:
                self._fluency(data, PEOPLE, 0, people)
        if self.request.protocol.value:
            self._values(data, {method: model for (method, seed), model in policies.items() if seed == 0})
        if self.request.judge:
            self._judge(data, first)

    def _sampled(self, policies: Mapping[tuple[str, int], str | Path]) -> Iterator[tuple[tuple[str, int], str | Path]]:
        """Every policy, the base a second time."""
        for (method, seed), model in policies.items():
            yield (method, seed), model
            if method == BASE:
                yield (AGAIN, seed), model

    def _answers(self, data: str, method: str, seed: int, temperature: float, model: str | Path) -> Path:
        name = f"{method}-{seed}-T{temperature:g}"
        out = self.folder / data / "answers" / f"{name}.jsonl"
        sampled = seed + (0 if method == BASE else _OTHER_SEED)
        options = {
            "model": model,
            "name": name,
            "n": self.sizes.answers,
            "temperature": temperature,
            "max-new-tokens": self.sizes.max_new_tokens,
            "seed": sampled,
        }
        if data == VALIDATION:
            prompts, slates = self._part(SOURCE, parts.VALIDATION), self.counts[SOURCE].validation
        else:
            prompts, slates = self._part(data, parts.REFERENCES), self.counts[data].test
        count = slates * self.sizes.answers
        return self.plan.add(
            f"answers-{data}-{name}",
            f"{data}: {self.sizes.answers} answers of {method}, seed {seed}, at temperature {temperature:g}",
            Cost(written=count * self.sizes.max_new_tokens),
            ["generate", prompts, *_flags(options), "-o", out],
            reads=[prompts, model],
            writes=out,
            work=[out.with_name(f"{out.name}.journal")],
        )

    def _metrics(
        self, data: str, method: str, seed: int, files: Mapping[float, Path], model: str | Path | None
    ) -> None:
        references, out = self._part(data, parts.REFERENCES), self.folder / data / "metrics" / f"{method}-{seed}"
        names = {temperature: f"{method}-{seed}-T{temperature:g}" for temperature in files}
        argv: Arguments = ["metrics", *(f"{names[temperature]}={path}" for temperature, path in files.items())]
        if self.request.protocol.own and model is not None:
            for temperature in files:  # probabilities of references do not depend on the temperature
                argv += ["--policy", model if temperature == 1 else "-"]
            argv += ["--max-length", str(self.sizes.max_length)]
        argv += [*self.request.aligner, "--refs", references, *self.cache, "-o", out]
        texts = self.counts[data].test * self.sizes.answers * len(files) + self.counts[data].references
        self.plan.add(
            f"metrics-{data}-{method}-{seed}",
            f"{data}: metrics of {method}, seed {seed}",
            Cost(embedded=texts),
            argv,
            reads=[references, *files.values(), *([] if model is None else [model])],
            writes=out,
        )
        self.plan.measured += [
            Measured(data, method, seed, temperature, names[temperature], out) for temperature in files
        ]

    def _fluency(self, data: str, method: str, seed: int, answers: Path) -> None:
        model, out = str(self.request.third_model), self.folder / data / "fluency" / f"{method}-{seed}.json"
        count = self.counts[data].test * self.sizes.answers
        argv: Arguments = ["step", "fluency", answers, "--model", model]
        argv += ["--max-length", str(4 * self.sizes.max_length), "-o", out]
        self.plan.fluency[data, method, seed] = self.plan.add(
            f"fluency-{data}-{method}-{seed}",
            f"{data}: nats per token of {method}, seed {seed}, under {model}",
            Cost(read=count * self.sizes.max_new_tokens),
            argv,
            reads=[answers, model],
            writes=out,
        )

    # --- values, judge, abilities -----------------------------------------------------------------------------------

    def _values(self, data: str, policies: Mapping[str, str | Path]) -> None:
        log, out = self._scored(data, parts.TEST), self.folder / data / "values.json"
        argv: Arguments = ["evaluate", log]
        for name, model in policies.items():
            argv += ["--policy", f"{name}={model}"]
        counts = self.counts[data]
        read = counts.test_responses * min(counts.tokens, self.sizes.max_length) * len(policies)
        self.plan.values[data] = self.plan.add(
            f"values-{data}",
            f"{data}: off-policy values of all methods, first seed",
            Cost(read=read),
            [*argv, "--estimator", "pope", "--max-length", str(self.sizes.max_length), *self.cache, "-o", out],
            reads=[log, *policies.values()],
            writes=out,
        )

    def _judge(self, data: str, answers: Mapping[str, Path]) -> None:
        references, out = self._part(data, parts.REFERENCES), self.folder / data / "judge"
        ours = [name for name in answers if name.startswith("pope")][:1]
        order = [*ours, *(name for name in answers if name not in ours)]
        sets = [f"{name}={answers[name]}" for name in order]
        self.plan.judged[data] = self.plan.add(
            f"judge-{data}",
            f"{data}: {order[0]} against the others, by a judge in both orders",
            Cost(requests=2 * self.counts[data].test * (len(order) - 1)),
            ["judge", *sets, "--refs", references, *self.request.judge, "-o", out],
            reads=[references, *answers.values()],
            writes=out / "judge.json",
            work=[out],
        )

    def _abilities(self, policies: Mapping[tuple[str, int], str | Path]) -> None:
        for (method, seed), model in policies.items():
            if method == BASE and seed:
                continue  # the same model
            out = self.folder / "abilities" / f"{method}-{seed}.json"
            self.plan.abilities[method, seed] = self.plan.add(
                f"abilities-{method}-{seed}",
                f"general abilities of {method}, seed {seed}",
                Cost(read=_ABILITY_TOKENS),
                ["step", "abilities", model, *self.request.abilities, "-o", out],
                reads=[model],
                writes=out,
            )


def _flags(options: Mapping[str, object]) -> list[str]:
    return [text for name, value in options.items() for text in (f"--{name}", str(value))]
