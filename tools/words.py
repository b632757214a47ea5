"""Fails when a public name of the package is a word that only this project used, and says where.

Public names are a module's functions, classes and constants, a class's methods and fields, and the
parameters of all these. ``tools/words.toml`` holds the words, each with what to write instead.
Usage: ``python tools/words.py``.
"""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
TABLE = Path(__file__).with_name("words.toml")
EXPORTED = re.compile(r"# %% (?:\.\./)+(?P<notebook>nbs/.+\.ipynb) #(?P<cell>\w+)")


def is_public(name: str) -> bool:
    """Whether others may use a name."""
    return not name.startswith("_")


def bound(node: ast.stmt) -> Iterator[str]:
    """Names that a statement gives to values: constants of a module, fields of a class."""
    targets: list[ast.expr] = []
    if isinstance(node, ast.Assign):
        targets = node.targets
    elif isinstance(node, ast.AnnAssign):
        targets = [node.target]
    for target in targets:
        for part in ast.walk(target):
            if isinstance(part, ast.Name):
                yield part.id


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[tuple[int, str]]:
    """Lines and names of a function's parameters."""
    given = function.args
    every = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
    yield from ((each.lineno, each.arg) for each in every if each)


def public_names(body: list[ast.stmt]) -> Iterator[tuple[int, str]]:
    """Lines and public names of a module's or a class's statements."""
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            if is_public(node.name) or node.name == "__init__":
                yield node.lineno, node.name
                yield from parameters(node)
        elif isinstance(node, ast.ClassDef):
            if is_public(node.name):
                yield node.lineno, node.name
                yield from public_names(node.body)
        else:
            yield from ((node.lineno, name) for name in bound(node) if is_public(name))


def source(lines: list[str], line: int) -> str:
    """The notebook cell that a line of a module was exported from, if it was."""
    for text in reversed(lines[:line]):
        if match := EXPORTED.match(text):
            return f"{match['notebook']} cell {match['cell']}, "
    return ""


def wrong(root: Path, table: Mapping[str, Any]) -> Iterator[str]:
    """Each public name that is one of the words: where it is, and what to write instead.

    Args:
        root: The project's folder.
        table: Words that hold ``everywhere``, and words of a room by its name.
    """
    for path in sorted(root.glob("stylegen/**/*.py")):
        room = path.relative_to(root).parts[1]
        if room == "_modidx.py":
            continue
        text, words = path.read_text(encoding="utf-8"), table["everywhere"] | table.get(room, {})
        for line, name in public_names(ast.parse(text).body):
            if name in words:
                where = f"{source(text.splitlines(), line)}{path.relative_to(root)}:{line}"
                yield f"{where}: {name} → {words[name]}"


if __name__ == "__main__":
    complaints = list(wrong(ROOT, tomllib.loads(TABLE.read_text(encoding="utf-8"))))
    print("\n".join(complaints), file=sys.stderr)
    sys.exit(bool(complaints))
