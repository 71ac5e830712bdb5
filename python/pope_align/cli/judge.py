"""``pope judge``."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ..judge import Match


def judge(
    gens: Annotated[
        list[str],
        typer.Option(help="Generations, FILE or NAME=FILE, at least two: the first is compared with every other."),
    ],
    refs: Annotated[Path, typer.Option(help="Slates with people's responses.", exists=True, dir_okay=False)],
    model: Annotated[str, typer.Option(help="The judge's name at the endpoint.")],
    base_url: Annotated[
        str | None, typer.Option(help="Of an OpenAI-compatible endpoint; default: OpenAI's own.")
    ] = None,
    key_variable: Annotated[str, typer.Option(help="Environment variable with the API key.")] = "OPENAI_API_KEY",
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for verdicts, figure, and every call.")] = Path(
        "judge"
    ),
    limit: Annotated[int | None, typer.Option(help="Only the first prompts.", min=1)] = None,
    set_size: Annotated[int, typer.Option(help="Answers of a set, at most.")] = 50,
    references: Annotated[int, typer.Option(help="Human responses shown.")] = 3,
    max_characters: Annotated[int | None, typer.Option(help="Of one answer or response shown; default: all.")] = None,
    repairs: Annotated[int, typer.Option(help="Further questions after a reply that is no verdict.")] = 2,
    max_tokens: Annotated[int, typer.Option(help="Of a reply.")] = 512,
    json_mode: Annotated[bool, typer.Option(help="Have the endpoint enforce JSON, if it can.")] = False,
    concurrency: Annotated[int, typer.Option(help="Requests on their way together.", min=1)] = 4,
    requests_per_minute: Annotated[float | None, typer.Option(help="At most; default: as many as go.")] = None,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for a reply.")] = 120.0,
    max_attempts: Annotated[int, typer.Option(help="Sendings of one request.")] = 6,
    budget_requests: Annotated[int | None, typer.Option(help="Requests of this run, at most.")] = None,
    budget_tokens: Annotated[int | None, typer.Option(help="Tokens of this run, at most, both ways.")] = None,
    level: Annotated[float, typer.Option(help="Of the intervals.")] = 0.95,
    dry_run: Annotated[bool, typer.Option(help="Say what it would ask for, and ask for nothing.")] = False,
) -> None:
    """Win rates of sets of answers by an LLM judge, in both orders, with the paper's protocol.

    Every reply is kept in the output folder: a run that stopped for whatever reason goes on where it was. Example:

        pope judge --gens pope=pope.parquet --gens sft=sft.parquet --refs slates.jsonl --model gpt-4o --out judge
    """
    from ..data import read_slates
    from ..generation.endpoint import Budget, Endpoint
    from ..generation.generations import GenerationSet, read_generations
    from ..judge import JudgeOptions, open_calls, plan
    from ..judge import judge as judge_sets
    from ..judge_figure import win_rates
    from .console import err, progress

    if len(gens) < 2:
        raise ValueError(f"gens: expected at least two sets to compare, got {len(gens)}")
    sets = []
    for given in gens:
        name, _, file = given.rpartition("=")
        generations = read_generations(file, model=name or None)
        sets.append(GenerationSet(generations.model, generations.rows[:limit], generations.settings))
        err.print(str(sets[-1]), markup=False)
    slates = read_slates(refs)
    options = JudgeOptions(set_size, references, max_characters, repairs, max_tokens=max_tokens, json_mode=json_mode)
    for other in sets[1:]:
        requests, tokens = plan(sets[0], other, slates, options)
        err.print(f"{sets[0].model} against {other.model}: {requests} requests, {tokens} prompt tokens or so")
    if dry_run:
        return
    budget = Budget(budget_requests, budget_tokens)
    endpoint = Endpoint(
        model,
        base_url,
        key_variable,
        timeout=timeout,
        max_attempts=max_attempts,
        requests_per_minute=requests_per_minute,
        budget=budget,
    )
    out.mkdir(parents=True, exist_ok=True)
    calls = open_calls(str(out / "calls.jsonl"))
    matches = []
    for other in sets[1:]:
        with progress(f"judging {sets[0].model} against {other.model}", "readings") as report:
            matches.append(
                judge_sets(
                    sets[0],
                    other,
                    slates,
                    endpoint,
                    calls=calls,
                    options=options,
                    concurrency=concurrency,
                    progress=report,
                )
            )
    summaries = [match.summary(level) for match in matches]
    content = {
        "judge": {"model": model, "base_url": base_url, **asdict(options)},
        "level": level,
        "spent": {"requests": budget.requests, "tokens": budget.tokens},
        "matches": summaries,
    }
    (out / "judge.json").write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    _write_verdicts(matches, out / "verdicts.jsonl")
    win_rates(summaries, judge=model).savefig(out / "judge.png", dpi=150)
    _show(summaries, level)
    err.print(
        f"{budget.requests} requests, {budget.tokens} tokens; wrote {out}/judge.json, verdicts.jsonl, judge.png, "
        "calls.jsonl",
        markup=False,
    )


def _write_verdicts(matches: list[Match], path: Path) -> None:
    lines = [
        json.dumps({"a": match.a, "b": match.b, **asdict(verdict), "outcome": verdict.outcome}, ensure_ascii=False)
        for match in matches
        for verdict in match.verdicts
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _show(summaries: list[dict[str, Any]], level: float) -> None:
    from .console import out, table

    def share(of: dict[str, Any]) -> str:
        return "n/a" if of["value"] is None else f"{of['value']:.2f} [{of['low']:.2f}, {of['high']:.2f}]"

    rows = []
    for each in summaries:
        missing = each["invalid_count"] + each["failed_count"] + each["unjudged_count"]
        rows.append(
            [
                f"{each['a']} against {each['b']}",
                f"{each['win_count']} / {each['tie_count']} / {each['loss_count']}",
                str(missing),
                share(each["win_rate"]),
                share(each["first_shown"]),
                share(each["consistent"]),
            ]
        )
    columns = ["Sets", "Won / tied / lost", "No verdict", "Win rate, ties half", "First shown won", "Orders agree"]
    table(f"Judged in both orders, {level:.0%} Wilson intervals", columns, rows)
    for each in summaries:
        if each["invalid_count"] or each["failed_count"] or each["unjudged_count"]:
            out.print(
                f"{each['a']} against {each['b']}: {each['invalid_count']} without valid JSON, {each['failed_count']} "
                f"where the endpoint failed, {each['unjudged_count']} beyond the budget; the last two are asked again "
                "by the same command",
                markup=False,
            )
