"""TRL's own trainers with this project's log-probabilities and loss.

`use_linear_logprobs` lets a ``DPOTrainer`` or ``GRPOTrainer`` compute log-probabilities with
`pope_core.linear_response_logprobs`; its losses, metrics and arguments stay TRL's. `use_pope_loss` replaces the loss of
a ``GRPOTrainer`` by the POPE loss on its groups. Both change a trainer that is constructed and has not trained::

    trainer = trl.DPOTrainer(model, args=args, train_dataset=dataset)
    use_linear_logprobs(trainer)
    trainer.train()

They rely on the fused head of TRL's trainers (``trl.trainer.utils.add_fused_lm_head``), which is no public interface:
tried with TRL 1.16.0.
"""

from __future__ import annotations

import functools
import types
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel

import pope_core
from pope_core import Objective
from pope_core.devices import default_chunk_bytes

from .._extras import require
from ..data.rows import Tree
from ..models.causal_lm import LmHead, check_head, lm_head, pretrained
from ..training.options import refuse_degenerate

if TYPE_CHECKING:
    from accelerate import Accelerator
    from trl import DPOTrainer, GRPOTrainer


def use_linear_logprobs(trainer: DPOTrainer | GRPOTrainer) -> None:
    """Compute the log-probabilities of a TRL trainer from hidden states, with `pope_core.linear_response_logprobs`.

    Only positions of response tokens reach the head, on CPUs too, and their logits need a buffer of fixed size. What
    TRL logs of the logits (entropy, mean logits, token accuracy) costs one more product of the head, without gradient.

    Args:
        trainer: constructed, and not trained yet. Its loss is the same up to rounding.

    Raises:
        TypeError: another trainer.
        ValueError: what this head does not compute: an entropy bonus, an auxiliary loss of experts, vision models,
            a head cast to float32, a temperature with capped logits, sharded models.
    """
    trl = _trl()
    if not isinstance(trainer, (trl.DPOTrainer, trl.GRPOTrainer)):
        raise TypeError(f"trainer: expected TRL's DPOTrainer or GRPOTrainer, got {type(trainer).__name__}")
    temperature = float(getattr(trainer, "temperature", 1.0))
    policy = pretrained(trainer.accelerator.unwrap_model(trainer.model))
    head = lm_head(policy)
    obstacles = {
        "an entropy bonus (entropy_coef)": getattr(trainer, "_entropy_bonus_enabled", False),
        "router_aux_loss_coef": trainer.aux_loss_enabled,
        "a vision model": getattr(trainer, "_is_vlm", False),
        "cast_lm_head_to_fp32": getattr(trainer.args, "cast_lm_head_to_fp32", False),
        "temperature with logits that are capped": temperature != 1.0 and head.logit_softcap is not None,
        "FSDP": trainer.is_fsdp_enabled,
        "DeepSpeed": trainer.is_deepspeed_enabled,
    }
    _refuse("trainer", obstacles)
    check_head(policy, Tree([0], [[0, 0]]))
    _replace_head(policy, trainer.accelerator, temperature, statistics=True)
    if trainer.ref_model is not None:
        reference = pretrained(trainer.accelerator.unwrap_model(trainer.ref_model))
        _replace_head(reference, trainer.accelerator, temperature, statistics=False)


def use_pope_loss(trainer: GRPOTrainer, objective: Objective | None = None) -> None:
    """Replace the loss of a ``GRPOTrainer`` by `pope_core.slate_objective` on its groups.

    A group is a slate: the completions of one prompt, with TRL's advantages as utilities and the policy that sampled
    them as the logging policy. With ``Objective(normalization="none", diversity_weight=0, clip=None)`` the loss is that
    of GRPO with ``importance_sampling_level="sequence"`` (GSPO) and no clipping; the defaults add diversity, normalise
    weights within the group and clip them.

    Args:
        trainer: constructed, and not trained yet; with ``steps_per_generation=1`` and whole groups per device, so that
            the groups are together, and ``beta=0``. Its clipping (``epsilon``) and ``loss_type`` have no effect.
        objective: None for ``Objective()``. Advantages may be negative, so ``utility_form`` must be "feedback".

    Raises:
        TypeError: not a GRPOTrainer.
        ValueError: options of TRL's loss that have no effect on this one; a degenerate objective; what
            `use_linear_logprobs` refuses.
    """
    trl = _trl()
    if not isinstance(trainer, trl.GRPOTrainer):
        raise TypeError(f"trainer: expected TRL's GRPOTrainer, got {type(trainer).__name__}")
    objective = Objective() if objective is None else objective
    refuse_degenerate(objective)
    if objective.rewards_likelihood:
        raise ValueError(f"objective: expected utility_form='feedback', got {objective.utility_form!r}")
    args = trainer.args
    if args.steps_per_generation != 1 or args.per_device_train_batch_size % trainer.num_generations:
        raise ValueError(
            "trainer: expected steps_per_generation=1 and a per_device_train_batch_size of whole groups of "
            f"{trainer.num_generations}, got {args.steps_per_generation} and {args.per_device_train_batch_size}"
        )
    obstacles = {
        "beta": trainer.beta != 0.0,
        "use_vllm": trainer.use_vllm,
        "top_entropy_quantile": trainer.top_entropy_quantile < 1.0,
        "off_policy_mask_threshold": trainer.off_policy_mask_threshold is not None,
    }
    _refuse("trainer", obstacles)
    use_linear_logprobs(trainer)
    trainer.compute_loss = functools.partial(_pope_loss, trainer, objective)


def _trl() -> Any:
    trl = require("trl", extra="baselines", purpose="for pope_align.integrations.trl")
    if not hasattr(trl.trainer.utils, "FusedCausalLMOutput"):
        raise ImportError(f"trl: expected 1.16 or newer, whose trainers have a fused head, got {trl.__version__}")
    return trl


def _refuse(name: str, obstacles: dict[str, bool]) -> None:
    found = [obstacle for obstacle, present in obstacles.items() if present]
    if found:
        raise ValueError(f"{name}: expected one without {', '.join(found)}, which this loss does not have")


def _replace_head(model: PreTrainedModel, accelerator: Accelerator, temperature: float, *, statistics: bool) -> None:
    """Compute what TRL's trainers ask of ``model(..., fused_lm_head=True)`` with our operators."""
    output_class = _trl().trainer.utils.FusedCausalLMOutput
    theirs = model.forward

    @functools.wraps(type(model).forward)  # generate() reads the signature
    def forward(
        self: PreTrainedModel,
        *inputs: Any,
        fused_lm_head: bool = False,
        labels: torch.Tensor | None = None,
        **options: Any,
    ) -> Any:
        if not fused_lm_head:
            given = {} if labels is None else {"labels": labels}
            return theirs(*inputs, **given, **options)
        assert labels is not None
        with accelerator.autocast():
            states = self.base_model(*inputs, **{**options, "use_cache": False}).last_hidden_state
            where = labels[:, 1:] != -100
            hidden, targets, head = states[:, :-1][where], labels[:, 1:][where], lm_head(self)
            head = head._replace(logit_scale=head.logit_scale / temperature)
            found = {"log_probs": _token_logprobs(hidden, head, targets)}
            if statistics:
                found |= _statistics(hidden, head, targets)
        # Connected to the model also where no position has a label, so that backward() works.
        placed = {name: value.new_zeros(where.shape).masked_scatter(where, value) for name, value in found.items()}
        return output_class(label_mask=where, **placed)

    model.forward = types.MethodType(forward, model)


def _token_logprobs(hidden: torch.Tensor, head: LmHead, targets: torch.Tensor) -> torch.Tensor:
    """``[N]`` nats of the labels of ``[N, D]`` hidden states."""
    if targets.numel() == 0:
        return hidden.sum(-1)
    return pope_core.linear_response_logprobs(
        hidden,
        head.weight,
        targets,
        lm_head_bias=head.bias,
        response_offsets=torch.tensor([0, targets.numel()]),
        reduction="none",
        logit_scale=head.logit_scale,
        logit_softcap=head.logit_softcap,
    )


@torch.no_grad()
def _statistics(hidden: torch.Tensor, head: LmHead, targets: torch.Tensor) -> dict[str, torch.Tensor]:
    """``[N]`` of what TRL logs of the logits, in chunks of the default buffer."""
    size = max(1, default_chunk_bytes(hidden.device) // (4 * head.weight.shape[0]))
    parts = []
    for rows, target in zip(torch.split(hidden, size), torch.split(targets, size), strict=True):
        logits = head.logit_scale * torch.nn.functional.linear(rows, head.weight, head.bias).float()
        if head.logit_softcap is not None:
            logits = head.logit_softcap * torch.tanh(logits / head.logit_softcap)
        logprobs = logits.log_softmax(-1)
        entropy = -(logprobs.exp() * logprobs).sum(-1)
        parts.append((entropy, (2 * logprobs).logsumexp(-1), logits.mean(-1), logits.argmax(-1) == target))
    names = ("entropy", "log_sum_sq_probs", "mean_logits", "is_top1")
    return {name: torch.cat(columns) for name, columns in zip(names, zip(*parts, strict=True), strict=True)}


def _pope_loss(
    trainer: GRPOTrainer,
    objective: Objective,
    model: torch.nn.Module,
    inputs: dict[str, Any],
    return_outputs: bool = False,
    num_items_in_batch: torch.Tensor | int | None = None,
) -> torch.Tensor:
    """The POPE loss of one micro-batch of groups, in place of ``GRPOTrainer.compute_loss``."""
    if return_outputs:
        raise ValueError("return_outputs: expected False, as in TRL's GRPOTrainer, got True")
    width = inputs["completion_ids"].shape[1]
    mask = inputs["completion_mask"] * inputs.get("tool_mask", 1)
    input_ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
    labels = torch.full_like(input_ids, -100)
    labels[:, -width:] = inputs["completion_ids"].masked_fill(mask == 0, -100)
    attention_mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
    output = model(input_ids=input_ids, attention_mask=attention_mask, labels=labels, fused_lm_head=True)
    totals, tokens = output.log_probs[:, -width:].sum(1), mask.sum(1)
    old = inputs.get("old_per_token_logps")  # None while the policy is still the one that sampled
    logging = totals.detach() if old is None else (old * mask).sum(1)
    order, offsets = _slates(inputs["prompt_ids"], tokens)
    if order.numel() == 0:  # every completion is masked
        return 0.0 * totals.sum()
    value = pope_core.slate_objective(
        totals[order],
        logging[order],
        inputs["advantages"][order],
        offsets,
        tokens=tokens[order],
        objective=objective,
    )
    training = trainer.model.training
    _note(trainer, "train" if training else "eval", value, output.entropy[:, -width:], mask)
    return value.loss / (trainer.current_gradient_accumulation_steps if training else 1)


def _slates(prompt_ids: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """An order of the responses in which those of a prompt are together, and the offsets of the prompts; responses
    without tokens are left out.
    """
    _, group = torch.unique(prompt_ids, dim=0, return_inverse=True)
    order = group.argsort(stable=True)
    order = order[tokens[order] > 0]
    sizes = group[order].unique_consecutive(return_counts=True)[1]
    return order, pope_core.offsets_from_lengths(sizes.tolist()).to(prompt_ids.device)


def _note(trainer: GRPOTrainer, mode: str, value: Any, entropy: torch.Tensor, mask: torch.Tensor) -> None:
    """Metrics of this micro-batch, which TRL averages and logs; those that TRL's own loss would log are left out."""
    metrics = {
        "pope/value": value.value,
        "pope/utility": value.utility_value,
        "pope/diversity": value.diversity_value,
        "is/clip_fraction": value.clip_fraction,
        "entropy": (entropy * mask).sum() / mask.sum(),
    }
    for name, metric in metrics.items():
        trainer._metrics[mode][name].append(trainer.accelerator.gather(metric.detach().float()).mean().item())
