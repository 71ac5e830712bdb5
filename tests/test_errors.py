"""Bad input is refused before any work, in one voice: the argument, what was expected, what came, and where."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from plain import plain
from torch.autograd import forward_ad

import pope_core
from pope_core._checks import CHECK_VARIABLE
from pope_core.objective import CHOICES
from pope_core.testing import TARGETS, Target, make_slates

every_target = pytest.mark.parametrize("target", TARGETS, ids=str)


@pytest.fixture(autouse=True)
def _values_are_checked_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU too: an assertion of the device ends its process, and all later tests with it (see `test_gpu.py`)."""
    monkeypatch.setenv(CHECK_VARIABLE, "1")


class Inputs:
    """Good arguments of every public function, to be spoilt one at a time."""

    def __init__(self, target: Target) -> None:
        p = make_slates().to(target.device)  # 3 slates, 6 responses, 18 tokens, V = 37, D = 8
        self.backend = target.backend
        self.logits, self.hidden, self.labels = p.logits, p.hidden.clone(), p.labels.clone()
        self.lm_head_weight, self.lm_head_bias = p.lm_head_weight.clone(), p.lm_head_bias.clone()
        self.response_offsets, self.slate_offsets = p.response_offsets.clone(), p.slate_offsets.clone()
        self.logging_logprobs, self.utility = p.logging_logprobs.clone(), p.utility.clone()
        self.logprobs = p.logging_logprobs + 0.1
        self.token_counts = p.tokens
        self.options: dict[str, Any] = {}

    @property
    def log_data(self) -> tuple[torch.Tensor, ...]:
        return self.logging_logprobs, self.utility, self.slate_offsets

    @property
    def tokens(self) -> dict[str, Any]:
        return {"response_offsets": self.response_offsets, "backend": self.backend}

    def slate_objective(self) -> None:
        pope_core.slate_objective(
            self.logprobs, *self.log_data, tokens=self.token_counts, backend=self.backend, **plain(**self.options)
        )

    def response_logprobs(self) -> None:
        pope_core.response_logprobs(self.logits, self.labels, **self.tokens, **self.options)

    def pope_loss(self) -> None:
        pope_core.pope_loss(self.logits, self.labels, *self.log_data, **self.tokens, **plain(**self.options))

    def linear_response_logprobs(self) -> None:
        head = {"lm_head_weight": self.lm_head_weight, "lm_head_bias": self.lm_head_bias}
        pope_core.linear_response_logprobs(
            hidden=self.hidden, labels=self.labels, **head, **self.tokens, **self.options
        )

    def linear_pope_loss(self) -> None:
        pope_core.linear_pope_loss(
            self.hidden,
            self.lm_head_weight,
            self.labels,
            *self.log_data,
            lm_head_bias=self.lm_head_bias,
            **self.tokens,
            **plain(**self.options),
        )


OBJECTIVE = ("slate_objective", "pope_loss", "linear_pope_loss")
LOGITS = ("response_logprobs", "pope_loss")
HIDDEN = ("linear_response_logprobs", "linear_pope_loss")
TOKENS = LOGITS + HIDDEN

Spoil = Callable[[Inputs], None]


def put(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Spoil:
    return lambda x: setattr(x, name, change(getattr(x, name)))


def at(name: str, index: int, value: float) -> Spoil:
    return lambda x: getattr(x, name).__setitem__(index, value)


def option(**options: Any) -> Spoil:
    return lambda x: x.options.update(options)


def nothing(x: torch.Tensor) -> None:
    return None


#: What is spoilt, in which functions, and what the message must say.
CASES: list[tuple[str, tuple[str, ...], Spoil, str]] = [
    # options
    (
        "weighting",
        OBJECTIVE,
        option(weighting="product"),
        f"weighting: expected one of {', '.join(CHOICES['weighting'])}, got 'product'",
    ),
    (
        "normalization",
        OBJECTIVE,
        option(normalization="all"),
        f"normalization: expected one of {', '.join(CHOICES['normalization'])}, got 'all'",
    ),
    (
        "utility_form",
        OBJECTIVE,
        option(utility_form="votes"),
        f"utility_form: expected one of {', '.join(CHOICES['utility_form'])}, got 'votes'",
    ),
    (
        "diversity_form",
        OBJECTIVE,
        option(diversity_form="kl"),
        f"diversity_form: expected one of {', '.join(CHOICES['diversity_form'])}, got 'kl'",
    ),
    (
        "negative alpha",
        OBJECTIVE,
        option(diversity_weight=-0.1),
        "diversity_weight: expected a finite number >= 0, got -0.1",
    ),
    (
        "NaN alpha",
        OBJECTIVE,
        option(diversity_weight=float("nan")),
        "diversity_weight: expected a finite number >= 0, got nan",
    ),
    (
        "infinite alpha",
        OBJECTIVE,
        option(diversity_weight=float("inf")),
        "diversity_weight: expected a finite number >= 0, got inf",
    ),
    ("clip of zero", OBJECTIVE, option(clip=0.0), "clip: expected None or a finite number > 0, got 0.0"),
    ("infinite clip", OBJECTIVE, option(clip=float("inf")), "clip: expected None or a finite number > 0, got inf"),
    ("num_slates", OBJECTIVE, option(num_slates=0), "num_slates: expected None or an integer >= 1, got 0"),
    (
        "num_slates in batch",
        OBJECTIVE,
        option(num_slates=4, normalization="batch"),
        "num_slates: has no meaning with normalization='batch'",
    ),
    (
        "no alpha",
        OBJECTIVE,
        option(diversity_weight=None),
        "diversity_weight: expected a finite number >= 0, got None",
    ),
    ("listed clip", OBJECTIVE, option(clip=[5.0]), "clip: expected None or a finite number > 0, got [5.0]"),
    (
        "boolean num_slates",
        OBJECTIVE,
        option(num_slates=True),
        "num_slates: expected None or an integer >= 1, got True",
    ),
    ("no logit_scale", HIDDEN, option(logit_scale=None), "logit_scale: expected a number in [1e-30, 1e+30], got None"),
    (
        "logit_softcap in quotes",
        HIDDEN,
        option(logit_softcap="30"),
        "logit_softcap: expected None or a number in [1e-30, 1e+30], got '30'",
    ),
    (
        "fractional chunk_bytes",
        HIDDEN,
        option(chunk_bytes=1.5),
        "chunk_bytes: expected None or a number of bytes >= 1, got 1.5",
    ),
    (
        "tokens as a list",
        ("slate_objective",),
        lambda x: setattr(x, "token_counts", [1] * 6),
        "tokens: expected a torch.Tensor, got list",
    ),
    (
        "complex lm_head_bias",
        HIDDEN,
        put("lm_head_bias", lambda t: t.to(torch.complex64)),
        "lm_head_bias: expected a float32, float64, bfloat16 or float16 tensor, got torch.complex64",
    ),
    (
        "complex tokens",
        ("slate_objective",),
        put("token_counts", lambda t: t.to(torch.complex64)),
        "tokens: expected integers of shape [6], one per response, got torch.complex64 [6]",
    ),
    ("logit_scale", HIDDEN, option(logit_scale=0.0), "logit_scale: expected a number in [1e-30, 1e+30], got 0.0"),
    ("tiny logit_scale", HIDDEN, option(logit_scale=1e-40), "logit_scale: expected a number in [1e-30, 1e+30]"),
    ("NaN logit_scale", HIDDEN, option(logit_scale=float("nan")), "logit_scale: expected a number in [1e-30, 1e+30]"),
    (
        "logit_softcap",
        HIDDEN,
        option(logit_softcap=-1.0),
        "logit_softcap: expected None or a number in [1e-30, 1e+30], got -1.0",
    ),
    (
        "logit_softcap that float32 does not hold",
        HIDDEN,
        option(logit_softcap=1e-300),
        "logit_softcap: expected None or a number in [1e-30, 1e+30], got 1e-300",
    ),
    (
        "infinite logit_softcap",
        HIDDEN,
        option(logit_softcap=float("inf")),
        "logit_softcap: expected None or a number in [1e-30, 1e+30], got inf",
    ),
    ("chunk_bytes", HIDDEN, option(chunk_bytes=0), "chunk_bytes: expected None or a number of bytes >= 1, got 0"),
    # rows and labels
    (
        "integer logits",
        LOGITS,
        put("logits", torch.Tensor.long),
        "logits: expected a float32, float64, bfloat16 or float16 tensor, got torch.int64",
    ),
    (
        "flat logits",
        LOGITS,
        put("logits", torch.Tensor.flatten),
        "logits: expected shape [N, C] (packed) or [R, L, C] (padded), got [666]",
    ),
    (
        "no logits",
        LOGITS,
        lambda x: [put("logits", lambda t: t[:0])(x), put("labels", lambda t: t[:0])(x)],
        "logits: expected at least one token and one column, got shape [0, 37]",
    ),
    (
        "no hidden",
        HIDDEN,
        lambda x: [put("hidden", lambda t: t[:0])(x), put("labels", lambda t: t[:0])(x)],
        "hidden: expected at least one token and one column, got shape [0, 8]",
    ),
    ("few labels", TOKENS, put("labels", lambda t: t[:-1]), "labels: expected shape [18] to match"),
    ("float labels", TOKENS, put("labels", torch.Tensor.float), "labels: expected int64 or int32, got torch.float32"),
    (
        "label too large",
        TOKENS,
        at("labels", 4, 37),
        "labels: expected token ids in [0, 37) or -100, got 37 at token 4",
    ),
    ("negative label", TOKENS, at("labels", 5, -1), "labels: expected token ids in [0, 37) or -100, got -1 at token 5"),
    (
        "response without tokens",
        TOKENS,
        lambda x: x.labels.__setitem__(slice(int(x.response_offsets[1]), int(x.response_offsets[2])), -100),
        "labels: expected at least one response token in every response, got none in response 1",
    ),
    ("no response_offsets", TOKENS, put("response_offsets", nothing), "response_offsets: required with packed"),
    (
        "scalar response_offsets",
        TOKENS,
        put("response_offsets", lambda t: t[0]),
        "response_offsets: expected shape [n + 1] with n >= 1, got []",
    ),
    (
        "single response_offset",
        TOKENS,
        put("response_offsets", lambda t: t[:1]),
        "response_offsets: expected shape [n + 1] with n >= 1, got [1]",
    ),
    (
        "float response_offsets",
        TOKENS,
        put("response_offsets", torch.Tensor.float),
        "response_offsets: expected int64 or int32, got torch.float32",
    ),
    (
        "late response_offsets",
        TOKENS,
        at("response_offsets", 0, 1),
        "response_offsets: expected offsets from 0 to 18 (the number of labels), got 1 to 18",
    ),
    (
        "short response_offsets",
        TOKENS,
        at("response_offsets", -1, 17),
        "response_offsets: expected offsets from 0 to 18 (the number of labels), got 0 to 17",
    ),
    (
        "empty response",
        TOKENS,
        lambda x: x.response_offsets.__setitem__(2, x.response_offsets[1]),
        "response_offsets: expected strictly increasing offsets (no empty run), got",
    ),
    (
        "NaN logits",
        LOGITS,
        lambda x: x.logits[7].__setitem__(3, torch.nan),
        "logits: expected logits without NaN or +inf, got one in row 7",
    ),
    (
        "infinite logits",
        LOGITS,
        lambda x: x.logits[7].__setitem__(3, torch.inf),
        "logits: expected logits without NaN or +inf, got one in row 7",
    ),
    (
        "only -inf logits",
        LOGITS,
        lambda x: x.logits[7].fill_(-torch.inf),
        "logits: expected a logit above -inf in every row, got none in row 7",
    ),
    (
        "only -inf logits in bfloat16",
        LOGITS,
        lambda x: [put("logits", torch.Tensor.bfloat16)(x), x.logits[7].fill_(-torch.inf)],
        "logits: expected a logit above -inf in every row, got none in row 7",
    ),
    (
        "only -inf logits in float64",
        LOGITS,
        lambda x: [put("logits", torch.Tensor.double)(x), x.logits[7].fill_(-torch.inf)],
        "logits: expected a logit above -inf in every row, got none in row 7",
    ),
    (
        "bias of -inf",
        HIDDEN,
        lambda x: x.lm_head_bias.fill_(-torch.inf),
        "expected a logit above -inf in every row, got none in row 0",
    ),
    (
        "NaN hidden",
        HIDDEN,
        lambda x: x.hidden[9].__setitem__(0, torch.nan),
        "expected logits without NaN or +inf, got one in row 9",
    ),
    # the head
    (
        "narrow head",
        HIDDEN,
        put("lm_head_weight", lambda t: t[:, :5]),
        "lm_head_weight: expected shape [V, 8] to match hidden, got [37, 5]",
    ),
    (
        "flat head",
        HIDDEN,
        put("lm_head_weight", lambda t: t[0]),
        "lm_head_weight: expected shape [V, 8] to match hidden, got [8]",
    ),
    (
        "integer head",
        HIDDEN,
        put("lm_head_weight", torch.Tensor.long),
        "lm_head_weight: expected a float32, float64, bfloat16 or float16 tensor, got torch.int64",
    ),
    (
        "head of another dtype",
        HIDDEN,
        put("lm_head_weight", torch.Tensor.bfloat16),
        "lm_head_weight: expected torch.float32 like hidden (or torch.autocast), got torch.bfloat16",
    ),
    ("short bias", HIDDEN, put("lm_head_bias", lambda t: t[1:]), "lm_head_bias: expected shape [37], got [36]"),
    # what the log brings
    (
        "few logging_logprobs",
        OBJECTIVE,
        put("logging_logprobs", lambda t: t[:-1]),
        "logging_logprobs: expected shape [6], one number per response, got [5]",
    ),
    (
        "integer utility",
        OBJECTIVE,
        put("utility", torch.Tensor.long),
        "utility: expected a floating-point tensor, got torch.int64",
    ),
    (
        "trainable logging_logprobs",
        OBJECTIVE,
        put("logging_logprobs", torch.Tensor.requires_grad_),
        "logging_logprobs: is data to the objective and gets no gradient; pass logging_logprobs.detach()",
    ),
    (
        "trainable utility",
        OBJECTIVE,
        put("utility", torch.Tensor.requires_grad_),
        "utility: is data to the objective and gets no gradient; pass utility.detach()",
    ),
    (
        "NaN utility",
        OBJECTIVE,
        at("utility", 3, torch.nan),
        "utility: expected finite numbers, got nan at response 3 (slate 1)",
    ),
    (
        "infinite logging_logprobs",
        OBJECTIVE,
        at("logging_logprobs", 5, -torch.inf),
        "logging_logprobs: expected finite numbers, got -inf at response 5 (slate 2)",
    ),
    (
        "scalar slate_offsets",
        OBJECTIVE,
        put("slate_offsets", lambda t: t[:1]),
        "slate_offsets: expected shape [n + 1] with n >= 1, got [1]",
    ),
    (
        "float slate_offsets",
        OBJECTIVE,
        put("slate_offsets", torch.Tensor.double),
        "slate_offsets: expected int64 or int32, got torch.float64",
    ),
    (
        "short slate_offsets",
        OBJECTIVE,
        at("slate_offsets", -1, 5),
        "slate_offsets: expected offsets from 0 to 6 (the number of responses), got 0 to 5",
    ),
    (
        "decreasing slate_offsets",
        OBJECTIVE,
        at("slate_offsets", 1, 5),
        "slate_offsets: expected strictly increasing offsets (no empty run), got 5 then 4 at index 1",
    ),
    (
        "NaN response_logprobs",
        ("slate_objective",),
        at("logprobs", 0, torch.nan),
        "response_logprobs: expected finite numbers, got nan at response 0 (slate 0)",
    ),
    (
        "integer response_logprobs",
        ("slate_objective",),
        put("logprobs", torch.Tensor.long),
        "response_logprobs: expected a floating-point tensor of shape [R], got torch.int64 [6]",
    ),
    (
        "square response_logprobs",
        ("slate_objective",),
        put("logprobs", lambda t: t[None]),
        "response_logprobs: expected a floating-point tensor of shape [R], got torch.float32 [1, 6]",
    ),
]
EVERY_CASE = [
    pytest.param(f, spoil, says, id=f"{name}-{f}") for name, functions, spoil, says in CASES for f in functions
]


@every_target
@pytest.mark.parametrize(("function", "spoil", "says"), EVERY_CASE)
def test_bad_input_is_refused(target: Target, function: str, spoil: Spoil, says: str) -> None:
    inputs = Inputs(target)
    getattr(inputs, function)()  # good as they are
    spoil(inputs)
    with pytest.raises(ValueError, match=re.escape(says)):
        getattr(inputs, function)()


@every_target
@pytest.mark.parametrize("weighting", ["response", "slate", "geometric"])
@pytest.mark.parametrize("function", OBJECTIVE)
def test_without_a_clip_an_absurd_weight_names_its_slate_and_the_remedy(
    target: Target, function: str, weighting: str
) -> None:
    inputs = Inputs(target)
    inputs.options["weighting"] = weighting
    inputs.logging_logprobs[4:6] -= 200 * inputs.token_counts[4:6]
    with pytest.raises(ValueError, match=r"^clip: slate 2 has log-weight \d+\.\d, above 80 nats, and clip=None; set"):
        getattr(inputs, function)()
    inputs.options["clip"] = 5.0
    getattr(inputs, function)()


@every_target
def test_a_word_of_probability_zero_is_named_by_its_response(target: Target) -> None:
    inputs = Inputs(target)
    inputs.logits[int(inputs.response_offsets[3]), inputs.labels[int(inputs.response_offsets[3])]] = -torch.inf
    with pytest.raises(
        ValueError, match=r"^response_logprobs: expected finite numbers, got -inf at response 3 \(slate 1\)"
    ):
        inputs.pope_loss()


@every_target
def test_padded_rows_and_response_offsets_exclude_each_other(target: Target) -> None:
    p = make_slates().to(target.device)
    logits, labels = p.padded(p.logits)
    with pytest.raises(
        ValueError, match=r"^response_offsets: expected None with padded logits \[R, L, C\], got shape \[7\]"
    ):
        pope_core.response_logprobs(logits, labels, response_offsets=p.response_offsets, backend=target.backend)


@every_target
def test_the_log_must_have_as_many_responses_as_the_batch(target: Target) -> None:
    p, longer = (problem.to(target.device) for problem in (make_slates(), make_slates((3, 1, 2, 1))))
    with pytest.raises(
        ValueError, match=r"^logging_logprobs: expected shape \[6\], one number per response, got \[7\]"
    ):
        pope_core.pope_loss(
            p.logits, p.labels, *longer.log_data, response_offsets=p.response_offsets, backend=target.backend
        )


def test_tensors_on_two_devices_are_refused() -> None:
    p = make_slates()
    with pytest.raises(ValueError, match=r"^labels: expected a tensor on cpu like logits, got meta"):
        pope_core.response_logprobs(p.logits, p.labels.to("meta"), response_offsets=p.response_offsets)
    with pytest.raises(ValueError, match=r"^utility: expected a tensor on cpu like"):
        pope_core.slate_objective(p.utility, p.logging_logprobs, p.utility.to("meta"), p.slate_offsets, tokens=p.tokens)
    with pytest.raises(ValueError, match=r"^lm_head_weight: expected a tensor on cpu like hidden, got meta"):
        pope_core.linear_response_logprobs(
            p.hidden, p.lm_head_weight.to("meta"), p.labels, response_offsets=p.response_offsets
        )


@every_target
@pytest.mark.parametrize("change", [{"diversity_weight": 1e308}, {"utility": 1e308}, {"utility": 1e39}], ids=str)
@pytest.mark.parametrize("function", OBJECTIVE)
def test_a_value_that_overflows_is_refused(target: Target, function: str, change: dict[str, float]) -> None:
    inputs = Inputs(target)
    inputs.options.update(clip=2.0, **{name: x for name, x in change.items() if name != "utility"})
    inputs.utility = inputs.utility.double() + change.get("utility", 0.0)
    with pytest.raises(ValueError, match=r"^utility, diversity_weight: expected a finite value in float32, got -?inf"):
        getattr(inputs, function)()


@pytest.mark.parametrize("target", [t for t in TARGETS if t.backend != "reference"], ids=str)
@pytest.mark.parametrize("function", OBJECTIVE + TOKENS[::2])
def test_forward_mode_derivatives_are_refused_not_zero(target: Target, function: str) -> None:
    inputs = Inputs(target)
    name = {"slate_objective": "logprobs"}.get(function, "logits" if function in LOGITS else "lm_head_weight")
    with forward_ad.dual_level():
        setattr(inputs, name, forward_ad.make_dual(getattr(inputs, name), torch.ones_like(getattr(inputs, name))))
        with pytest.raises(RuntimeError, match=r"has a tangent, but forward-mode differentiation is not implemented"):
            getattr(inputs, function)()


def test_offsets_need_lengths() -> None:
    for lengths in ([], [[1, 2]], torch.ones(2, 2, dtype=torch.int64)):
        with pytest.raises(ValueError, match=r"^lengths: expected a non-empty list of integers, got shape"):
            pope_core.offsets_from_lengths(lengths)
    for lengths, got in (
        ([1.7, 2.9], "float32"),
        (torch.ones(2), "float32"),
        ([True, False], "bool"),
        ([3, -1], "-1 at index 1"),
        (torch.tensor([0, 3]), "0 at index 0"),
    ):
        with pytest.raises(ValueError, match=rf"^lengths: expected positive integers, got .*{got}"):
            pope_core.offsets_from_lengths(lengths)
    assert pope_core.offsets_from_lengths([3, 1]).tolist() == [0, 3, 4]
    assert pope_core.offsets_from_lengths(torch.tensor([2], dtype=torch.int32)).dtype == torch.int64


@pytest.mark.parametrize("module", [pope_core.PopeLoss, pope_core.LinearPopeLoss])
def test_a_module_shows_its_objective(module: type[torch.nn.Module]) -> None:
    assert "diversity_weight=0.2" in repr(module(pope_core.Objective(diversity_weight=0.2)))


@pytest.mark.parametrize(
    ("tokens", "got"),
    [
        (None, "got None"),
        (torch.ones(5, dtype=torch.int64), r"got torch.int64 \[5\]"),
        (torch.ones(6), r"got torch.float32 \[6\]"),
        (torch.tensor([1, 1, 1, 0, 1, 1]), "got 0 at response 3"),
    ],
)
@every_target
def test_an_objective_per_token_needs_the_numbers_of_tokens(
    target: Target, tokens: torch.Tensor | None, got: str
) -> None:
    inputs = Inputs(target)
    tokens = None if tokens is None else tokens.to(target.device)
    with pytest.raises(ValueError, match=f"^tokens: expected .*{got}"):
        pope_core.slate_objective(inputs.logprobs, *inputs.log_data, tokens=tokens, backend=target.backend)
    per_response = pope_core.Objective(length_normalize=False)
    pope_core.slate_objective(inputs.logprobs, *inputs.log_data, objective=per_response, backend=target.backend)


def test_errors_come_before_gradients_are_formed() -> None:
    inputs = Inputs(Target("cpu"))
    inputs.logging_logprobs -= 200 * inputs.token_counts
    inputs.hidden.requires_grad_()
    inputs.lm_head_weight.requires_grad_()
    with pytest.raises(ValueError, match=r"^clip: "):
        inputs.linear_pope_loss()
    assert inputs.hidden.grad is None


TENSORS = ["logits", "labels", "logging_logprobs", "utility", "slate_offsets", "response_offsets"]


@pytest.mark.parametrize("name", TENSORS)
@pytest.mark.parametrize("kind", ["numpy", "list"])
def test_what_is_no_tensor_is_refused_by_name(name: str, kind: str) -> None:
    given = {each: getattr(make_slates(), each) for each in TENSORS}
    given[name] = given[name].numpy() if kind == "numpy" else given[name].tolist()
    with pytest.raises(ValueError, match=rf"{name}: expected a torch.Tensor, got (ndarray|list)"):
        pope_core.pope_loss(**given)


@pytest.mark.parametrize("bad", [{"clip": "5"}, {"clip": True}, {"diversity_weight": "a"}, {"diversity_weight": False}])
def test_options_that_are_no_numbers_are_refused(bad: dict[str, Any]) -> None:
    (name,) = bad
    with pytest.raises(ValueError, match=f"{name}: expected"):
        pope_core.Objective(**bad)


def test_an_objective_is_an_objective_and_lengths_are_numbers() -> None:
    given = {each: getattr(make_slates(), each) for each in TENSORS}
    for bad in ({}, "slate", None):
        with pytest.raises(ValueError, match=r"objective: expected a pope_core\.Objective"):
            pope_core.pope_loss(**given, objective=bad)
    for lengths in (None, ["a"]):
        with pytest.raises(ValueError, match="lengths: expected a list of positive integers"):
            pope_core.offsets_from_lengths(lengths)
