"""The arguments of transformers and TRL, parsed from their source, because importing either takes seconds."""

from __future__ import annotations

import ast
import functools
import importlib.util
from pathlib import Path
from typing import Any, Literal, Optional, Union

from .typed import Option, option_of

#: The configuration classes of TRL's methods, and their files; the others have that of transformers.
_CLASSES = {
    "sft": ("trl", "trainer/sft_config.py", "SFTConfig"),
    "dpo": ("trl", "trainer/dpo_config.py", "DPOConfig"),
}
_BASES = {
    "_BaseConfig": ("trl", "trainer/base_config.py"),
    "TrainingArguments": ("transformers", "training_args.py"),
}
#: The files of the enumerations that transformers' arguments use.
_ENUMS = (
    ("transformers", "training_args.py"),
    ("transformers", "trainer_utils.py"),
    ("transformers", "utils/generic.py"),
)
_NAMES: dict[str, Any] = {
    "Any": Any,
    "Literal": Literal,
    "Optional": Optional,
    "Union": Union,
    "bool": bool,
    "dict": dict,
    "float": float,
    "int": int,
    "list": list,
    "str": str,
}


def training_arguments(method: str) -> dict[str, Option]:
    """The fields of ``TrainingArguments``, or of TRL's configuration of a baseline, by name.

    Raises:
        ImportError: the library is not installed.
    """
    library, path, name = _CLASSES.get(method, ("transformers", "training_args.py", "TrainingArguments"))
    return {option.name: option for option in _options(library, path, name)}


def _options(library: str, path: str, name: str) -> list[Option]:
    """The options of a class, after those of its bases."""
    tree = _source(library, path)
    node = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    inherited: list[Option] = []
    for base in node.bases:
        if isinstance(base, ast.Name) and base.id in _BASES:
            inherited += _options(*_BASES[base.id], base.id)
    return inherited + [
        _option(each.target.id, each.annotation, each.value)
        for each in node.body
        if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name) and each.value is not None
    ]


def _option(name: str, annotation: ast.expr, value: ast.expr) -> Option:
    keywords = {each.arg: each.value for each in value.keywords} if isinstance(value, ast.Call) else {"default": value}
    about = _literal(keywords.get("metadata")) or {}
    default = _literal(keywords.get("default"))
    hint = _hint(annotation)
    enum = _enum(annotation)
    if enum:
        optional = "None" in ast.unparse(annotation)
        return Option(name, "str", optional, enum, default, about.get("help", ""))
    return option_of(name, hint, default=default, text=" ".join(about.get("help", "").split()))


def _hint(annotation: ast.expr) -> Any:
    """The type of an annotation; Any for the library's own types."""
    try:
        return eval(ast.unparse(annotation), {"__builtins__": {}}, _NAMES)
    except (NameError, TypeError):
        return Any


def _enum(annotation: ast.expr) -> tuple[str, ...]:
    """The values of the enumeration in an annotation, if any."""
    names = {node.id for node in ast.walk(annotation) if isinstance(node, ast.Name)}
    return next((values for name, values in _enums().items() if name in names), ())


@functools.cache
def _enums() -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for library, path in _ENUMS:
        for node in _source(library, path).body:
            if isinstance(node, ast.ClassDef) and any(ast.unparse(base) == "ExplicitEnum" for base in node.bases):
                assigned = [each.value for each in node.body if isinstance(each, ast.Assign)]
                values = [value.value for value in assigned if isinstance(value, ast.Constant)]
                found[node.name] = tuple(str(value) for value in values)
    return found


def _literal(node: ast.expr | None) -> Any:
    if node is None:
        return None
    try:
        return ast.literal_eval(node)
    except ValueError:  # computed when the library is imported
        return None


@functools.cache
def _source(library: str, path: str) -> ast.Module:
    spec = importlib.util.find_spec(library)  # found, not imported
    if spec is None or not spec.submodule_search_locations:
        extra = "baselines" if library == "trl" else "train"
        raise ImportError(f"{library} is needed for pope train; install it with: pip install 'pope-core[{extra}]'")
    return ast.parse((Path(spec.submodule_search_locations[0]) / path).read_text(encoding="utf-8"))
