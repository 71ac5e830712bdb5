"""``pope judge``."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..judging.match import Match


_SETS, _REPLIES, _ENDPOINT = "What the judge sees", "Replies", "The endpoint"


def judge(
    gens: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME=FILE...", help="Generations, at least two; the first is compared with the others."
        ),
    ],
    refs: Annotated[Path, typer.Option(metavar="LOG", help="Slates with people's responses.")],
    model: Annotated[str, typer.Option(metavar="NAME", help="Name of the judge at the endpoint.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="DIR", help="Folder for verdicts, figure, and every call.")
    ] = Path("judge"),
    limit: Annotated[int | None, typer.Option(metavar="N", help="Only the first prompts.", min=1)] = None,
    level: Annotated[float, typer.Option(metavar="P", help="Confidence level of the intervals.")] = 0.95,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print how many requests it would send, and send none.")
    ] = False,
    json_out: Annotated[
        str | None,
        typer.Option(
            "--json", metavar="FILE", help="Also write results as JSON; - for standard output, instead of the table."
        ),
    ] = None,
    set_size: Annotated[int, typer.Option(metavar="N", help="Maximum answers of a set.", rich_help_panel=_SETS)] = 50,
    references: Annotated[int, typer.Option(metavar="N", help="Human responses shown.", rich_help_panel=_SETS)] = 3,
    max_characters: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Maximum length of an answer or response; default: unlimited.", rich_help_panel=_SETS
        ),
    ] = None,
    repairs: Annotated[
        int, typer.Option(metavar="N", help="Retries after a reply without a verdict.", rich_help_panel=_REPLIES)
    ] = 2,
    max_tokens: Annotated[
        int, typer.Option(metavar="N", help="Maximum tokens of a reply, reasoning included.", rich_help_panel=_REPLIES)
    ] = 512,
    json_mode: Annotated[
        bool, typer.Option("--json-mode", help="Ask the endpoint to enforce JSON, if it can.", rich_help_panel=_REPLIES)
    ] = False,
    base_url: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="Any OpenAI-compatible endpoint; default: OpenAI's.", rich_help_panel=_ENDPOINT
        ),
    ] = None,
    key_variable: Annotated[
        str, typer.Option(metavar="NAME", help="Environment variable with the API key.", rich_help_panel=_ENDPOINT)
    ] = "OPENAI_API_KEY",
    concurrency: Annotated[
        int, typer.Option(metavar="N", help="Concurrent requests.", min=1, rich_help_panel=_ENDPOINT)
    ] = 4,
    requests_per_minute: Annotated[
        float | None, typer.Option(metavar="N", help="Rate limit; default: none.", rich_help_panel=_ENDPOINT)
    ] = None,
    timeout: Annotated[
        float, typer.Option(metavar="S", help="Seconds to wait for a reply.", rich_help_panel=_ENDPOINT)
    ] = 120.0,
    max_attempts: Annotated[
        int, typer.Option(metavar="N", min=1, help="Maximum attempts per request.", rich_help_panel=_ENDPOINT)
    ] = 6,
    budget_requests: Annotated[
        int | None, typer.Option(metavar="N", help="Maximum requests of this run.", rich_help_panel=_ENDPOINT)
    ] = None,
    budget_tokens: Annotated[
        int | None,
        typer.Option(metavar="N", help="Maximum tokens of this run, prompts and replies.", rich_help_panel=_ENDPOINT),
    ] = None,
) -> None:
    """Compute win rates of sets of answers by an LLM judge, in both orders, with the paper's protocol.

    Every reply is kept in the output folder, and the same command continues a run that stopped. Example:

        pope judge pope=pope.parquet sft=sft.parquet --refs slates.jsonl --model gpt-4o -o judge
    """
    from .._files import check_output_folder, write_json
    from .checks import check_input, check_json, check_key, check_log, hold_folder

    if len(gens) < 2:
        raise ValueError(f"generations: expected at least two sets to compare, got {len(gens)}")
    given = [(name or None, Path(file)) for name, _, file in (each.rpartition("=") for each in gens)]
    for _, file in given:
        check_input(file, "generations")
    check_log(refs, "--refs")
    if not 0 < level < 1:
        raise ValueError(f"level: expected a number in (0, 1), got {level}")
    if not dry_run:
        check_key(key_variable, base_url)
    # In a folder with calls, that run is continued: known replies are reused.
    check_output_folder(out, overwrite=(out / "calls.jsonl").is_file())
    check_json(json_out, overwrite=(out / "calls.jsonl").is_file())
    hold_folder(out)

    from ..data import read_slates
    from ..generation.endpoint import Budget, Endpoint
    from ..generation.generations import GenerationSet, read_generations
    from ..judging.asking import open_calls
    from ..judging.match import JudgeOptions, plan
    from ..judging.match import judge as judge_sets
    from .console import err, progress, show_json

    options = JudgeOptions(
        set_size=set_size,
        references=references,
        max_characters=max_characters,
        repairs=repairs,
        max_tokens=max_tokens,
        json_mode=json_mode,
    )
    sets = []
    for name, file in given:
        generations = read_generations(file, model=name)
        sets.append(GenerationSet(generations.model, generations.rows[:limit], generations.settings))
        err.print(str(sets[-1]))
    slates = read_slates(refs)
    for other in sets[1:]:
        requests, tokens = plan(sets[0], other, slates, options)
        err.print(f"{sets[0].model} against {other.model}: {requests} requests, about {tokens} prompt tokens")
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
        "judge": {"model": model, "base_url": endpoint.address, **asdict(options)},
        "level": level,
        "spent": {"requests": budget.requests, "tokens": budget.tokens},
        "matches": summaries,
    }
    write_json(out / "judge.json", content)
    _write_verdicts(matches, out / "verdicts.jsonl")
    show_json(content, json_out)
    if json_out != "-":
        _show(summaries, level)
    _draw(summaries, model, out / "judge.png")
    err.print(
        f"{budget.requests} requests, {budget.tokens} tokens; wrote {out}/judge.json, verdicts.jsonl, judge.png, "
        "calls.jsonl"
    )


def _write_verdicts(matches: list[Match], path: Path) -> None:
    from .._files import write_text

    lines = [
        json.dumps({"a": match.a, "b": match.b, **asdict(verdict), "outcome": verdict.outcome}, ensure_ascii=False)
        for match in matches
        for verdict in match.verdicts
    ]
    write_text(path, "\n".join(lines) + "\n")


def _draw(summaries: list[dict[str, Any]], model: str, path: Path) -> None:
    """Draw the figure last, so that all results are written even if it fails."""
    from .._files import replacing
    from ..judging.figure import win_rates

    with replacing(path) as partial:
        win_rates(summaries, judge=model).savefig(partial, dpi=150)


def _show(summaries: list[dict[str, Any]], level: float) -> None:
    from .console import out, table

    def share(of: dict[str, Any]) -> str:
        return "n/a" if of["value"] is None else f"{of['value']:.2f} [{of['low']:.2f}, {of['high']:.2f}]"

    lines: list[tuple[str, Callable[[dict[str, Any]], str]]] = [
        ("won / tied / lost", lambda of: f"{of['win_count']} / {of['tie_count']} / {of['loss_count']}"),
        ("no verdict", lambda of: str(of["invalid_count"] + of["failed_count"] + of["unjudged_count"])),
        ("win rate, ties half", lambda of: share(of["win_rate"])),
        ("first shown won", lambda of: share(of["first_shown"])),
        ("orders agree", lambda of: share(of["consistent"])),
    ]
    title = f"{summaries[0]['a']}, judged in both orders; {level:.0%} Wilson intervals"
    columns = ["", *(f"against {each['b']}" for each in summaries)]
    table(title, columns, [[name, *map(show, summaries)] for name, show in lines])
    for each in summaries:
        if each["invalid_count"] or each["failed_count"] or each["unjudged_count"]:
            out.print(
                f"{each['a']} against {each['b']}: {each['invalid_count']} without valid JSON, {each['failed_count']} "
                f"where the endpoint failed, {each['unjudged_count']} beyond the budget; repeat the command for "
                "the last two",
            )
