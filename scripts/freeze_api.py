"""Write ``tests/golden/public_api.json``: the public names and their signatures.

A difference is a change for every user: record it in CHANGELOG.md (docs/versioning.md says what a version may change),
then run ``python scripts/freeze_api.py``, which rewrites the file. ``--check`` only compares.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import inspect
import json
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pope_core import Objective

FILE = Path(__file__).parent.parent / "tests" / "golden" / "public_api.json"
#: The public modules of docs/versioning.md, with their public names if these are not all.
MODULES: dict[str, tuple[str, ...] | None] = {
    "pope_core": None,
    "pope_core.reference": None,
    "pope_core.testing": None,
    "pope_align": None,
    "pope_align.data": ("Slate", "SlateLog", "read_preferences", "read_slates", "write_slates"),
    "pope_align.integrations.trl": ("use_linear_logprobs", "use_pope_loss"),
    "pope_align.ope": None,
}


def annotation(value: Any) -> str:
    """The text of an annotation; unwraps those of NamedTuples, which Python versions print differently."""
    if isinstance(value, typing.ForwardRef):
        return str(value.__forward_arg__)
    return value if isinstance(value, str) else inspect.formatannotation(value).replace("ForwardRef", "")


def default(value: Any) -> str:
    """The text of a default. The defaults of `Objective` are only in its own entry."""
    if value == Objective():
        return "Objective()"
    if value == Objective.evaluation():
        return "Objective.evaluation()"
    if isinstance(value, type) or inspect.isroutine(value):
        return str(value.__qualname__)
    text = repr(value)
    return text if " at 0x" not in text else type(value).__name__


def signature(value: Any) -> str:
    """Parameters in order with annotations and defaults, and the return type."""
    given = inspect.signature(value)
    inherited: set[str] = set()
    if dataclasses.is_dataclass(value):  # fields of another library's class, which change with its versions
        foreign = [base for base in value.__mro__[1:] if not base.__module__.startswith("pope_")]
        inherited = {name for base in foreign for name in inspect.get_annotations(base)}
        inherited -= {name for base in value.__mro__ if base not in foreign for name in inspect.get_annotations(base)}
    texts, keyword_only = [], False
    for name, parameter in given.parameters.items():
        if name in inherited:
            continue
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and not keyword_only:
            keyword_only = True
            texts.append("*")
        stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
        keyword_only = keyword_only or stars == "*"
        text = stars + name
        if parameter.annotation is not inspect.Parameter.empty:
            text += f": {annotation(parameter.annotation)}"
        if parameter.default is not inspect.Parameter.empty:
            text += f" = {default(parameter.default)}"
        texts.append(text)
    returned = given.return_annotation
    return f"({', '.join(texts)})" + ("" if returned is inspect.Signature.empty else f" -> {annotation(returned)}")


def entry(value: Any) -> Any:
    """A signature; for a class, also those of its public methods and of our bases; for other values, their type."""
    if not inspect.isclass(value):
        return signature(value) if inspect.isroutine(value) else type(value).__name__
    methods = {}
    ours = [base for base in reversed(value.__mro__) if base is value or base.__module__.startswith("pope_")]
    members = {name: member for base in ours for name, member in vars(base).items()}
    for name, member in sorted(members.items()):
        if name.startswith("_"):
            continue
        getter = member.fget if isinstance(member, property) else getattr(member, "func", None)  # of a cached property
        if getter is not None:
            methods[name] = f"property -> {annotation(inspect.signature(getter).return_annotation)}"
        elif isinstance(member, (classmethod, staticmethod)) or inspect.isroutine(member):
            methods[name] = signature(getattr(value, name))
    return {"()": signature(value), **methods}


def public_names(module: Any) -> list[str]:
    """``__all__``, or the non-private names that a module without it defines."""
    if hasattr(module, "__all__"):
        return sorted(module.__all__)
    own = {name: value for name, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__}
    return sorted(n for n, v in own.items() if not n.startswith("_") and (inspect.isclass(v) or inspect.isroutine(v)))


def describe(name: str) -> dict[str, Any]:
    """Every public name of a module, and its entry."""
    module = importlib.import_module(name)
    found = {each: entry(getattr(module, each)) for each in MODULES[name] or public_names(module)}
    if name == "pope_core":  # differences of the two named objectives
        of_training = Objective().to_dict().items()
        found["Objective.evaluation()"] = dict(sorted(Objective.evaluation().to_dict().items() - of_training))
    return found


def differences(stored: Any, made: Any, path: str = "") -> Iterator[str]:
    """Entries that differ, by name."""
    if isinstance(stored, dict) and isinstance(made, dict):
        for name in sorted(set(stored) | set(made)):
            where = f"{path}.{name}" if path else name
            yield from differences(stored.get(name, "nothing"), made.get(name, "nothing"), where)
    elif stored != made:
        yield f"{path}:\n  frozen: {stored}\n  now:    {made}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the file instead of writing it")
    check = parser.parse_args().check
    made = {name: describe(name) for name in MODULES}
    if not check:
        FILE.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
        return
    found = list(differences(json.loads(FILE.read_text(encoding="utf-8")), made))
    if found:
        raise SystemExit("\n".join([*found, f"{len(found)} differences from {FILE.name}: see {Path(__file__).name}"]))


if __name__ == "__main__":
    main()
