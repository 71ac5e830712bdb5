"""From TRL's preference data to a trained model in three ways: our trainer, and TRL's own with our head or our loss.

    python examples/trl_users.py MODEL OUT

MODEL is any causal language model with a chat template; it prints versions and what each run logged last. With a tiny
model it takes seconds on a CPU.
"""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path

from datasets import Dataset
from pope_align import PopeConfig, PopeTrainer
from pope_align.integrations.trl import use_linear_logprobs, use_pope_loss
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer

PAIRS = [
    ("Which colour for the door?", "Red, because it is seen from far.", "No idea."),
    ("Which colour for the door?", "Green, as the garden.", "No idea."),
    ("And the roof?", "Slate grey.", "Whatever you like, really."),
]


def rows() -> Dataset:
    """TRL's conversational preference format."""
    return Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": prompt}],
                "chosen": [{"role": "assistant", "content": chosen}],
                "rejected": [{"role": "assistant", "content": rejected}],
            }
            for prompt, chosen, rejected in PAIRS
        ]
    )


def shorter(completions: list[list[dict[str, str]]], **columns: object) -> list[float]:
    return [-float(len(completion[0]["content"])) for completion in completions]


def main(model: str, out: Path) -> None:
    print(", ".join(f"{name} {version(name)}" for name in ("trl", "transformers", "torch", "datasets", "pope-core")))
    common = {"max_steps": 2, "logging_steps": 1, "use_cpu": True, "report_to": "none", "save_strategy": "no"}
    pope = PopeTrainer(
        model, PopeConfig(str(out / "pope"), **common), train_dataset=rows(), eval_dataset={"pairs": rows()}
    )
    dpo = DPOTrainer(model, args=DPOConfig(str(out / "dpo"), bf16=False, **common), train_dataset=rows())
    use_linear_logprobs(dpo)
    group = {"num_generations": 2, "per_device_train_batch_size": 4, "steps_per_generation": 1}
    grpo = GRPOTrainer(
        model,
        shorter,
        GRPOConfig(str(out / "grpo"), bf16=False, max_completion_length=8, **group, **common),
        train_dataset=rows().select_columns(["prompt"]),
    )
    use_pope_loss(grpo)
    for name, trainer, metric in (("pope", pope, "pope/value"), ("dpo", dpo, "loss"), ("grpo", grpo, "pope/value")):
        trainer.train()
        last = [entry[metric] for entry in trainer.state.log_history if metric in entry][-1]
        print(f"{name}: {metric} {last:.4f}")
    print(f"held out: utility {pope.evaluate()['eval_pairs_pope/utility_self_normalized']:.4f}")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
