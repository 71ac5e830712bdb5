"""``pope label``."""

from __future__ import annotations

from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from ..generation.labels import Labeller

_REFS, _JUDGE = "By embeddings (similarity, energy, set-utility)", "By a judge"
_RATERS = "By raters (utilitarian, maximin, nash, group)"
_BY_REFERENCES = ("similarity", "energy", "set-utility")
_BY_GROUPS = ("utilitarian", "maximin", "nash")  # `data.transforms.Aggregation`
#: The `utility_transform` with which training takes scores that are on one scale for the whole log.
_TRANSFORMS = {"energy": "reward", "set-utility": "none"}
#: The option that each kind of feedback requires.
_NEEDS = {
    **dict.fromkeys(_BY_REFERENCES, "refs"),
    "command": "command",
    "python": "function",
    "judge": "model",
    "group": "raters",
}
#: The kinds of feedback that read an option; for any other it must have its default.
_READ_BY: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("refs", "embedding_model", "vote_weights", "cache"), _BY_REFERENCES),
    **dict.fromkeys(("voices", "score_range"), _BY_GROUPS),
    "raters": ("group",),
    "command": ("command",),
    "function": ("python",),
    **dict.fromkeys(("model", "base_url", "key_variable", "max_tokens", "concurrency", "budget_tokens"), ("judge",)),
}


def label(
    gens: Annotated[Path, typer.Argument(help="Generations, as pope generate writes them; or slates, for new scores.")],
    by: Annotated[
        Literal[
            "similarity",
            "energy",
            "set-utility",
            "utilitarian",
            "maximin",
            "nash",
            "group",
            "command",
            "python",
            "judge",
        ],
        typer.Option("--with", metavar="HOW", help="similarity, energy, set-utility, maximin, judge ...: see below."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="Slates: .jsonl or .parquet.")],
    refs: Annotated[
        Path | None, typer.Option(metavar="LOG", help="Slates with people's responses.", rich_help_panel=_REFS)
    ] = None,
    embedding_model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Default: all-MiniLM-L6-v2.", rich_help_panel=_REFS)
    ] = None,
    vote_weights: Annotated[
        Literal["log1p", "votes", "softmax", "uniform"],
        typer.Option(metavar="NAME", help="log1p, votes, softmax or uniform.", rich_help_panel=_REFS),
    ] = "log1p",
    cache: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder for cached embeddings.", rich_help_panel=_REFS)
    ] = Path(".pope_cache"),
    voices: Annotated[
        Literal["groups", "annotators"],
        typer.Option(help="Whose feedback utilitarian, maximin and nash combine.", rich_help_panel=_RATERS),
    ] = "groups",
    raters: Annotated[
        str | None, typer.Option(metavar="NAME", help="The group of raters.", rich_help_panel=_RATERS)
    ] = None,
    score_range: Annotated[
        tuple[float, float],
        typer.Option(
            metavar="LOW HIGH", help="Ratings that become 0 and 1, before they are combined.", rich_help_panel=_RATERS
        ),
    ] = (0.0, 1.0),
    command: Annotated[
        str | None,
        typer.Option(metavar="COMMAND", help="A program that reads JSON lines and writes a number for each."),
    ] = None,
    function: Annotated[
        str | None,
        typer.Option(metavar="MODULE:NAME", help="A function name(prompt, completions) that returns their scores."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="Name of the judge at the endpoint.", rich_help_panel=_JUDGE)
    ] = None,
    base_url: Annotated[
        str | None, typer.Option(metavar="URL", help="Default: OpenAI's.", rich_help_panel=_JUDGE)
    ] = None,
    key_variable: Annotated[
        str, typer.Option(metavar="NAME", help="Environment variable with the API key.", rich_help_panel=_JUDGE)
    ] = "OPENAI_API_KEY",
    max_tokens: Annotated[
        int, typer.Option(metavar="N", help="Maximum tokens of a reply.", rich_help_panel=_JUDGE)
    ] = 512,
    concurrency: Annotated[
        int, typer.Option(metavar="N", min=1, help="Concurrent requests.", rich_help_panel=_JUDGE)
    ] = 4,
    budget_tokens: Annotated[
        int | None,
        typer.Option(metavar="N", help="Maximum tokens of this run, prompts and replies.", rich_help_panel=_JUDGE),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
    json_out: Annotated[
        str | None, typer.Option("--json", metavar="FILE", help="Write counts as JSON; - for standard output.")
    ] = None,
) -> None:
    """Score a model's answers, so that they become a log: slates for training and evaluation.

    Generations made with --logprobs give slates with recorded propensities: logging_logprobs under the sampling
    distribution. Feedback by embeddings: similarity (nearness to what people wrote), energy (far from the other
    answers, near to people: the reward whose gradient lowers the energy distance) and set-utility (how much each answer
    adds for people who each take the nearest one, rescaled to [0, 1] over the log). Feedback by opinion groups, for
    slates with group_scores: set-utility without --refs, utilitarian (the groups' mean), maximin (the group served
    worst) and nash (their geometric mean); with --voices annotators, by annotators, for slates with ratings. group is
    the mean rating by one group (--raters); slates that it did not rate are left out. Others: command, python, judge.
    Example:

        pope label gens.jsonl --with energy --refs slates.jsonl -o labelled.jsonl
    """
    from .._files import claim_output
    from .checks import check_cache, check_input, check_json, check_key, check_log, required

    check_input(gens, "gens")
    given = {name: value for name, value in locals().items() if name in _READ_BY}
    _refuse_unread(by, given)
    if (need := _NEEDS.get(by)) and by != "set-utility":  # slates with group_scores need no references
        required(given[need], f"--{need} (for --with {by})")
    if by == "set-utility" and refs is None:
        _refuse_unread(
            "set-utility without --refs", {name: given[name] for name in ("embedding_model", "vote_weights", "cache")}
        )
    if not score_range[0] < score_range[1]:
        raise ValueError(f"--score-range: expected two numbers, low < high, got {score_range[0]:g} {score_range[1]:g}")
    if refs is not None:
        check_log(refs, "--refs")
    if by == "judge":
        check_key(key_variable, base_url)
    if by in _BY_REFERENCES:
        check_cache(cache)
    check_json(json_out, overwrite=overwrite)
    with claim_output(out, overwrite=overwrite, endings=(".jsonl", ".parquet")):
        from dataclasses import replace

        from ..data import read_slates, write_slates
        from ..generation.generations import holds_slates, of_slates, read_generations
        from ..generation.labelled import labelled_slates, relabelled, rescaled
        from .console import err, progress, show_json

        log = read_slates(gens) if holds_slates(gens) else None
        generations = read_generations(gens) if log is None else of_slates(log, gens.stem)
        err.print(str(generations if log is None else log))
        labeller: Labeller
        if by in _BY_GROUPS:
            from ..generation.labels import ByAggregation

            if log is None:
                raise ValueError(f"gens: expected slates with group_scores for --with {by}, got generations")
            labeller = ByAggregation(log, by, voices, score_range)  # type: ignore[arg-type]  # one of _BY_GROUPS
        elif by == "group":
            from ..generation.labels import ByOneGroup, rated_by

            if log is None:
                raise ValueError("gens: expected slates with ratings for --with group, got generations")
            rated = rated_by(log, required(raters, "--raters"))
            if len(rated) < len(log):
                err.print(f"{len(log) - len(rated)} of {len(log)} slates left out, which {raters} did not rate")
            log = replace(log, slates=tuple(rated))
            generations = of_slates(log, gens.stem)
            labeller = ByOneGroup(log, required(raters, "--raters"))
        elif by == "set-utility" and refs is None and log is not None:
            from ..generation.labels import ByGroups

            labeller = ByGroups(log)
        elif by in _BY_REFERENCES:
            labeller = _by_references(
                by, required(refs, f"--refs (for --with {by})"), embedding_model, vote_weights, cache
            )
        elif by == "command":
            from ..generation.labels import ByCommand

            labeller = ByCommand(required(command, "--command"))
        elif by == "python":
            from ..generation.labels import ByFunction

            labeller = ByFunction(required(function, "--function"))
        else:
            from ..generation.endpoint import Budget, Endpoint
            from ..judging.asking import AskOptions, open_calls
            from ..judging.rating import ByJudge

            endpoint = Endpoint(model or "", base_url, key_variable, budget=Budget(max_tokens=budget_tokens))
            calls = open_calls(str(out.with_name(out.name + ".calls.jsonl")))
            labeller = ByJudge(endpoint, calls, AskOptions(max_tokens=max_tokens), concurrency)
        with progress("labelling", "texts") as report:
            scores = labeller(generations, report)
        about: dict[str, Any] = dict(labeller.about)
        if by == "set-utility":
            scores, about["rescaled"] = rescaled(scores)
        if by in _TRANSFORMS:
            about["utility_transform"] = _TRANSFORMS[by]
        if log is not None:
            slates, counts = relabelled(log, scores, about), {"slates": len(log)}
            remark = f"{len(log)} slates with new scores"
        else:
            slates, what = labelled_slates(generations, scores, about)
            counts, remark = what.to_dict(), str(what)
        if not slates:
            raise ValueError(f"gens: expected answers that slates can hold, got none: {remark}")
        write_slates(slates, out)
    err.print(f"wrote {remark} to {out}")
    show_json({"out": str(out), **about, **counts}, json_out)


def _refuse_unread(by: str, given: dict[str, Any]) -> None:
    """Raises: ValueError: an option that this kind of feedback does not read."""
    for name, value in given.items():
        if by not in _READ_BY[name] and value != signature(label).parameters[name].default:
            option, readers = name.replace("_", "-"), ", ".join(_READ_BY[name])
            raise ValueError(f"--{option}: expected with --with {readers} only, got --with {by}")


def _by_references(by: str, refs: Path, embedding_model: str | None, weights: Any, cache: Path) -> Labeller:
    from ..data import read_slates
    from ..generation.labels import ByReferences
    from ..metrics.embeddings import Embedder

    return ByReferences(by, read_slates(refs), Embedder(embedding_model, cache_dir=cache), weights)
