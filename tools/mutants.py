"""Small mistakes in the code, made one at a time: does a test notice?

mutmut's operators make the mutants of functions; constants and regular expressions of a module get
a few of our own. A sample of each module is drawn by the seed, larger for a larger module. One run
of the tests under coverage tells which of them pass through a line; those of a mutated line are run
on a copy of the tree that holds the mutant, the quickest first, until one fails; then the module's
notebook with the same change is, by nbval; then mypy is asked, as in ``make check``. Survivors are
printed with their lines; those that nothing can tell apart are in ``tools/mutants.toml``, each with
the reason.

Texts for people, in errors and in the log, are left alone: their wording is no behaviour.
"""

import argparse
import ast
import difflib
import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from importlib.util import cache_from_source
from pathlib import Path
from queue import SimpleQueue
from typing import Any
from xml.etree import ElementTree

import libcst
from coverage import CoverageData
from forked_kernels import with_libraries
from libcst import matchers
from mutmut.mutation.file_mutation import create_mutations, deep_replace

ROOT = Path(__file__).parent.parent
OUT = ROOT / "out/mutants"
REASONS = Path(__file__).with_name("mutants.toml")
TESTS = {
    "webhook/origins": ["webhook", "webhook_hostile", "flow"],
    "webhook/events": ["webhook", "retries", "flow"],
    "webhook/connection": ["webhook_hostile", "webhook"],
    "webhook/request": ["webhook", "webhook_hostile", "flow"],
    "webhook/delivery": ["webhook", "webhook_hostile", "retries", "flow"],
    "webhook/progress": ["webhook", "flow"],
    "webhook/reach": ["check"],
    "queue/connection": ["queue", "retries"],
    "queue/publish": ["queue", "retries", "producers"],
    "queue/delivery": ["queue", "retries", "producers"],
    "queue/executor": ["queue", "retries"],
    "queue/control": ["queue", "retries", "consumer", "producers"],
    "queue/consumer": ["queue", "retries", "consumer", "producers"],
    "queue/retries": ["retries", "logs", "consumer", "flow", "producers"],
    "queue/rights": ["check"],
    "storage/store": ["storage", "flow"],
    "storage/keys": ["storage", "flow"],
    "storage/folder": ["storage", "flow", "retries"],
    "storage/s3_client": ["storage"],
    "storage/conditional": ["storage", "retries"],
    "storage/s3": ["storage", "settings_effect"],
    "storage/download": ["storage", "flow"],
    "storage/lora": ["storage", "flow"],
    "storage/cache": ["storage", "flow"],
    "storage/picture": ["storage", "flow"],
    "storage/manifest": ["storage", "flow", "retries"],
    "storage/rights": ["check"],
    "storage/erasure": ["erasure"],
    "pipeline/lora_file": ["lora_table", "lora", "hostile_jobs"],
    "pipeline/dialects": ["lora_table", "lora", "engine"],
    "pipeline/mistaken": ["lora_table", "lora"],
    "pipeline/lora_report": ["lora_table"],
    "pipeline/changes": ["lora_table", "lora"],
    "pipeline/adapter": ["lora_table", "lora", "engine", "hostile_jobs"],
    "pipeline/adapter_cache": ["lora", "settings_effect"],
    "pipeline/batched_lora": ["engine"],
    "pipeline/loading": ["engine", "settings_effect"],
    "pipeline/prompt": ["slow_prompts", "hostile_jobs", "engine"],
    "pipeline/schedulers": ["schedulers", "engine_guidance", "engine"],
    "pipeline/step_table": ["schedulers"],
    "pipeline/trajectory": ["schedulers", "engine_guidance"],
    "pipeline/device": ["engine"],
    "pipeline/task": ["engine_guidance", "engine"],
    "pipeline/admission": ["engine"],
    "pipeline/attention": ["engine"],
    "pipeline/batch": ["schedulers", "engine_guidance", "engine"],
    "pipeline/encode_decode": ["engine_guidance", "engine", "semantics", "hostile_jobs"],
    "pipeline/loop": ["engine"],
    "pipeline/warm_up": ["engine"],
    "pipeline/engine": ["engine_guidance", "engine", "semantics"],
    "pipeline/model_parts": ["check"],
    "signature/overlay": ["signature", "signed", "hostile_jobs"],
    "signature/fonts": ["signature", "settings_effect"],
    "signature/text": ["signature", "signed", "hostile_jobs"],
    "signature/image": ["signature", "signed", "hostile_jobs"],
    "signature/label": ["label", "provenance", "signed", "settings_effect"],
    "signature/provenance": ["label", "provenance"],
    "signature/c2pa": ["label"],
    "addresses": ["settings_kinds", "webhook_hostile"],
    "variables": ["settings_kinds"],
    "settings": ["settings_effect", "settings_kinds", "flow", "consumer", "processes"],
    "worker/running": ["health", "retries"],
    "worker/watchdog": ["health"],
    "worker/machine": ["check"],
    "worker/probes": ["health", "hostile_probes"],
    "worker/parts": ["flow", "logs", "retries", "settings_effect", "signed"],
    "worker/wiring": ["settings_effect", "consumer"],
    "worker/picture": ["flow", "signed", "settings_effect"],
    "worker/request": ["flow", "retries"],
    "worker/outcome": ["flow", "retries"],
    "worker/report": ["flow", "retries", "health"],
    "worker/flow": ["flow", "retries", "health"],
    "worker/cancel": ["retries", "flow"],
    "worker/delivery": ["retries", "consumer", "health", "producers"],
    "worker/consumer": ["health", "settings_effect", "consumer"],
    "worker/check": ["check", "settings_effect", "flow"],
    "worker/cli": ["flow", "retries", "settings_effect", "consumer", "processes"],
}
"""For each module, by its path, the tests that are about it, as in ``tests/test_NAME.py``."""
EVERYWHERE = ("limits",)
"""Tests that are about every module."""
LEAST = 3
"""Mutants of the smallest module."""
UNTIL_ONE_FAILS = ("-q", "-x", "-p", "no:cacheprovider")
QUICK = ("-p", "no:nbval")
"""nbval takes two seconds to import, and none of these tests is a notebook."""
NOTEBOOK = ("--nbval", "--nbval-current-env", "--nbval-cell-timeout", "120")
EXPORTED = re.compile(r"^# %% \.\./(?:\.\./)?(nbs/\S+\.ipynb) #(\w+)$", re.MULTILINE)
"""What nbdev writes above the code of a cell: its notebook, and its id."""
ENOUGH = 120.0
"""Seconds of tests that pass through a line; the slowest beyond that are left out."""
SLACK = 30.0, 6.0
"""A test may take so many seconds and so many times what it took; then it hangs."""


@dataclass(frozen=True)
class Mutant:
    """One changed line.

    Attributes:
        module: Its module's path below ``stylegen/``, without ``.py``.
        line: Where the change is, from 1.
        before: The line as it is.
        after: The line as it is changed.
        code: The module's source with the change.
    """

    module: str
    line: int
    before: str
    after: str
    code: str

    def __str__(self) -> str:
        return f"{self.module}:{self.line}\n    - {self.before}\n    + {self.after}"


class _Unseen(libcst.CSTVisitor):
    """Finds what no test should look at.

    That is what only people read, calls of a logger, the strings of raised errors and of a
    command's help; and ``strict=`` of a `zip`, which tells of a slip in the code and not of an
    input.
    """

    LOGS = re.compile(r"(_?log(ger)?\.\w+|warnings\.warn|print)\(")
    ERRORS = re.compile(r"\w*(Error|Invalid\w*|NotFound|_errors)\(")

    def __init__(self) -> None:
        self.found: set[int] = set()

    def on_visit(self, node: libcst.CSTNode) -> bool:
        """Note a call's nodes, or the strings of an error."""
        code = libcst.Module([]).code_for_node(node) if isinstance(node, libcst.Call) else ""
        if self.LOGS.match(code):
            self._note(node, matchers.MatchIfTrue(lambda _: True))
        elif (
            isinstance(node, libcst.Raise) or self.ERRORS.match(code) or _is_argument(node, "help")
        ):
            for text in matchers.findall(node, matchers.FormattedString()):
                self._note(text, matchers.MatchIfTrue(lambda _: True))
            self._note(node, matchers.SimpleString())
        elif _is_argument(node, "strict"):
            self._note(node, matchers.MatchIfTrue(lambda _: True))
        return True

    def _note(self, node: libcst.CSTNode, what: Any) -> None:
        self.found |= {id(each) for each in matchers.findall(node, what)}


def _is_argument(node: libcst.CSTNode, name: str) -> bool:
    """Whether it is a call's argument of this name."""
    return isinstance(node, libcst.Arg) and bool(node.keyword) and node.keyword.value == name


def in_functions(code: str) -> list[Callable[[], str]]:
    """Each of mutmut's mutations inside a function, as what makes the changed source."""
    module, mutations, _, _ = create_mutations("", code)
    unseen = _Unseen()
    module.visit(unseen)

    def changed(old: libcst.CSTNode, new: libcst.CSTNode) -> str:
        tree = deep_replace(module, old, new)
        assert isinstance(tree, libcst.Module)
        return tree.code

    return [
        partial(changed, each.original_node, each.mutated_node)
        for each in mutations
        if each.contained_by_top_level_function and id(each.original_node) not in unseen.found
    ]


def of_constants(code: str) -> list[Callable[[], str]]:
    """Each change of a constant that a module or a class assigns, in the same form."""
    data = code.encode()
    starts = [0, *itertools.accumulate(len(line) for line in data.splitlines(keepends=True))]

    def changed(start: int, stop: int, text: str) -> str:
        return (data[:start] + text.encode() + data[stop:]).decode()

    found = []
    for node in _assigned(ast.parse(code)):
        start = starts[node.lineno - 1] + node.col_offset
        stop = starts[(node.end_lineno or 0) - 1] + (node.end_col_offset or 0)
        texts = _other(node.value, data[start:stop].decode())
        found += [partial(changed, start, stop, text) for text in texts]
    return found


def _assigned(body: ast.AST) -> Iterator[ast.Constant]:
    """Numbers, flags and strings that a module, or a class in it, assigns to a name."""
    for statement in getattr(body, "body", ()):
        if isinstance(statement, ast.ClassDef):
            yield from _assigned(statement)
        elif isinstance(statement, ast.Assign | ast.AnnAssign) and statement.value:
            names = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            if [ast.unparse(name) for name in names] != ["__all__"]:
                yield from (
                    node
                    for node in ast.walk(statement.value)
                    if isinstance(node, ast.Constant) and isinstance(node.value, str | int | float)
                )


def _other(value: object, text: str) -> list[str]:
    """Other values that the literal might as well have."""
    if isinstance(value, bool):
        return [str(not value)]
    if isinstance(value, int | float):
        return [f"({text} + 1)", f"({text} * 0.5)" if isinstance(value, float) else f"({text} - 1)"]
    changes = (("+", "*"), ("*", "+"), ("?", ""), ("$", ""), ("^", ""), ("[", "[^"), (r"\.", "."))
    if text.startswith("r"):
        return [text.replace(old, new, 1) for old, new in changes if old in text]
    return [] if not value or text[0] not in "\"'" else [f"{text[0]}XX{text[1:]}"]


def sampled(module: str, code: str, count: int, seed: int) -> list[Mutant]:
    """Some of a module's mutants, an eighth of them of constants; a seed takes the same ones."""
    chosen, found = random.Random(f"{seed} {module}"), list[Mutant]()
    for makers, wanted in ((of_constants(code), max(1, count // 8)), (in_functions(code), count)):
        chosen.shuffle(makers)
        mutants = (_mutant(module, code, make()) for make in makers)
        mutants = (
            each
            for each in mutants
            if _without_description(each.before) != _without_description(each.after)
        )
        found += itertools.islice(mutants, wanted - len(found))
    return found


def _without_description(line: str) -> str:
    """A line without a setting's description, which is for people, or a `zip`'s ``strict=``."""
    bare = re.sub(r',? *(description=("[^"]*"|None)|strict=\w+)', "", line)
    return re.sub(r",? *\)", ")", bare).replace("Field(None)", "None")


def _mutant(module: str, code: str, changed: str) -> Mutant:
    old, new = code.splitlines(), changed.splitlines()
    blocks = difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
    _, low, high, start, stop = next(block for block in blocks if block[0] != "equal")
    before, after = (" ".join(map(str.strip, part)) for part in (old[low:high], new[start:stop]))
    return Mutant(module, low + 1, before, after, changed)


def is_in_function(mutant: Mutant) -> bool:
    """Whether a mutant's line is in a function, and not run by the import."""
    return any(
        isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body[0].lineno <= mutant.line <= (node.end_lineno or 0)
        for node in ast.walk(ast.parse(mutant.code))
    )


def notebooks_with(code: str, changed: str, folder: Path) -> dict[Path, str]:
    """The notebooks below a folder that a module's code is exported from, with a change of it."""
    found: dict[Path, str] = {}
    old, new = (EXPORTED.split(text)[1:] for text in (code, changed))
    for name, cell_id, before, after in zip(old[::3], old[1::3], old[2::3], new[2::3]):
        if before != after:
            path = folder / name
            notebook = json.loads(found.get(path) or path.read_text(encoding="utf-8"))
            (cell,) = (each for each in notebook["cells"] if each["id"] == cell_id)
            cell["source"] = _with_change("".join(cell["source"]), before, after)
            found[path] = json.dumps(notebook)
    return found


def _with_change(source: str, before: str, after: str) -> str:
    """A cell's source, changed as the code was that is exported from it."""
    old, new = before.splitlines(keepends=True), after.splitlines(keepends=True)
    for kind, low, high, start, stop in difflib.SequenceMatcher(None, old, new).get_opcodes():
        if kind != "equal":
            source = source.replace("".join(old[low:high]), "".join(new[start:stop]), 1)
    return source


@contextmanager
def replaced(texts: dict[Path, str]) -> Iterator[None]:
    """Files with other texts meanwhile; a module that was compiled is compiled again."""
    before = {path: path.read_text(encoding="utf-8") for path in texts}

    def write(contents: dict[Path, str]) -> None:
        for path, text in contents.items():
            path.write_text(text, encoding="utf-8")
            Path(cache_from_source(str(path))).unlink(missing_ok=True)

    write(texts)
    try:
        yield
    finally:
        write(before)


def _be_pytest(folder: Path, environment: dict[str, str], words: list[str]) -> None:
    """Be what ``python -m pytest WORDS`` is in a folder, forked; its log lies there."""
    import pytest

    os.setsid()
    os.chdir(folder)
    os.environ.update(environment)
    sys.path[:] = [str(folder), *(path for path in sys.path if path not in ("", str(ROOT)))]
    with Path("log").open("w", encoding="utf-8") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    sys.exit(pytest.main(words))


class Tree:
    """A copy of the project in which one module can be changed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shutil.rmtree(folder, ignore_errors=True)
        listed = subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True
        )
        for name in filter(None, listed.stdout.split("\0")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)

    def learn(self, file: str) -> int:
        """Run a file's tests under coverage; their exit code."""
        words = [sys.executable, "-m", "coverage", "run", "-m", "pytest", *UNTIL_ONE_FAILS, *QUICK]
        with (self.folder / "log").open("w", encoding="utf-8") as log:
            return subprocess.run(
                [*words, "--junitxml=junit.xml", file],
                cwd=self.folder,
                env=os.environ | self._environment(),
                stdout=log,
                stderr=log,
                check=False,
            ).returncode

    def run(self, tests: Iterable[str], *options: str, limit: float) -> int:
        """Run pytest here, forked, until a test fails; its exit code, or 1 when it hangs."""
        words = [*UNTIL_ONE_FAILS, *options, *tests]
        process = with_libraries().Process(
            target=_be_pytest, args=(self.folder, self._environment(), words)
        )
        process.start()
        group = process.pid or 0
        process.join(limit)
        if process.is_alive():
            os.kill(group, signal.SIGINT)  # so that brokers and servers are taken down
            process.join(SLACK[0])
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
        process.join()
        return abs(process.exitcode or 0)

    def _environment(self) -> dict[str, str]:
        own = {"PYTHONPATH": str(self.folder), "PYTHONDONTWRITEBYTECODE": ""}
        return own | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

    def survives(self, mutant: Mutant, tests: list[str], slowest: float, whole: float) -> bool:
        """Whether tests and types pass with the mutant; tests take so many seconds without it."""
        each, limit = (SLACK[0] + SLACK[1] * seconds for seconds in (slowest, whole))
        path = self.folder / "stylegen" / f"{mutant.module}.py"
        notebooks = notebooks_with(path.read_text(encoding="utf-8"), mutant.code, self.folder)
        names = map(str, notebooks)
        with replaced({path: mutant.code} | notebooks):
            return not (
                self.run(tests, *QUICK, f"--timeout={each:.0f}", limit=limit)
                or (notebooks and self.run(names, *NOTEBOOK, limit=SLACK[0] * SLACK[1]))
                or not self.is_typed()
            )

    def is_typed(self) -> bool:
        """Whether mypy finds nothing here."""
        command = [sys.executable, "-m", "mypy", "--no-error-summary"]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False)
        if done.returncode > 1:
            raise SystemExit(f"mypy can't be asked: {done.stdout}{done.stderr}")
        return done.returncode == 0


class Trees:
    """Copies of the project, each lent to one run at a time."""

    def __init__(self, count: int) -> None:
        self.count, self._free = count, SimpleQueue[Tree]()
        for number in range(count):
            self._free.put(Tree(OUT / f"tree-{number}"))

    @contextmanager
    def lent(self) -> Iterator[Tree]:
        """A copy that nobody else has; waits for one."""
        tree = self._free.get()
        try:
            yield tree
        finally:
            self._free.put(tree)


def _file(name: str) -> str:
    """Where the tests of a name are."""
    return f"tests/test_{name}.py"


class Map:
    """Which tests pass through which lines, and how long they take."""

    def __init__(self, trees: Trees, names: list[str]) -> None:
        self.seconds: dict[str, float] = {}
        self.lines: dict[tuple[str, int], set[str]] = {}
        longest_first = sorted(names, key=lambda name: -(ROOT / _file(name)).stat().st_size)
        with ThreadPoolExecutor(trees.count) as pool:
            list(pool.map(lambda name: self._learn(name, trees), longest_first))
        with trees.lent() as tree:
            if tree.run(self.seconds, *QUICK, "--collect-only", limit=SLACK[0] * SLACK[1]):
                raise SystemExit("pytest does not find the tests that it has just run")

    def _learn(self, name: str, trees: Trees) -> None:
        with trees.lent() as tree:
            (tree.folder / ".coveragerc").write_text(
                "[run]\nsource = stylegen\ndynamic_context = test_function\n"
                "concurrency = thread\ndata_file = coverage\n",
                encoding="utf-8",
            )
            if tree.learn(_file(name)):
                text = (tree.folder / "log").read_text(encoding="utf-8")
                raise SystemExit(f"{_file(name)} fails without a mutant:\n{text[-3000:]}")
            self._read(name, tree.folder)

    def _read(self, name: str, folder: Path) -> None:
        for case in ElementTree.parse(folder / "junit.xml").iter("testcase"):
            test = f"{_file(name)}::{(case.get('name') or '').partition('[')[0]}"
            self.seconds[test] = self.seconds.get(test, 0.0) + float(case.get("time") or 0)
        data = CoverageData(str(folder / "coverage"))
        data.read()
        for file in data.measured_files():
            for line, contexts in data.contexts_by_lineno(file).items():
                tests = {f"{_file(name)}::{each.rpartition('.')[2]}" for each in contexts}
                path = Path(file).relative_to(folder / "stylegen").with_suffix("")
                key = path.as_posix(), line
                self.lines.setdefault(key, set()).update(tests & self.seconds.keys())

    def tests_of(self, mutant: Mutant) -> tuple[list[str], float, float]:
        """The tests that pass through a mutant's line: the module's own first, the quickest first.

        With it the seconds that the slowest takes, and all of them.

        The module's own tests, where none is known to: other processes run some lines, and the
        import others, in whichever test it comes first.
        """
        files = [_file(name) for name in (*TESTS[mutant.module], *EVERYWHERE)]
        own = {file: place for place, file in enumerate(files)}
        reached = self.lines.get((mutant.module, mutant.line), set())
        if not reached or not is_in_function(mutant):
            reached = {test for test in self.seconds if test.partition("::")[0] in own}
        ordered = sorted(
            reached,
            key=lambda test: (own.get(test.partition("::")[0], len(own)), self.seconds[test], test),
        )
        sums = itertools.accumulate(self.seconds[test] for test in ordered)
        chosen = [test for test, total in zip(ordered, sums) if total <= ENOUGH] or ordered[:1]
        expected = [self.seconds[test] for test in chosen]
        return chosen, max(expected, default=0.0), sum(expected)


def reasons() -> dict[tuple[str, str, str], str]:
    """Why some mutants survive: by module, line as it is, and line as it is changed, or ``*``."""
    rows = tomllib.loads(REASONS.read_text(encoding="utf-8")).get("mutant", [])
    return {(row["module"], row["before"], row["after"]): row["reason"] for row in rows}


def report(verdicts: list[tuple[Mutant, bool]]) -> int:
    """Print what was caught and what survived; the number of survivors without a reason."""
    known, caught, unexplained = reasons(), 0, 0
    for mutant, survived in verdicts:
        caught += not survived
        if survived:
            module, before = mutant.module, mutant.before
            why = known.get((module, before, mutant.after)) or known.get((module, before, "*"))
            unexplained += why is None
            print(f"survived  {mutant}\n    {why or 'no reason is known'}")
    for module in dict.fromkeys(mutant.module for mutant, _ in verdicts):
        row = [not survived for mutant, survived in verdicts if mutant.module == module]
        print(f"{module:20} {sum(row):4} of {len(row):4} caught")
    for of, told_apart in (("", len(verdicts)), (" that can be told apart", caught + unexplained)):
        share = caught / max(1, told_apart)
        print(f"{caught} of {told_apart}{of} caught: {100 * share:.1f} %")
    return unexplained


def main() -> None:
    """Read the command line, draw the sample, run it, and report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--modules", nargs="+", choices=TESTS, default=list(TESTS))
    parser.add_argument("--sample", type=int, default=220, help="mutants in all, by size of module")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="mutants that are tried at a time")
    parser.add_argument("--minutes", type=float, default=60.0, help="then no further one is tried")
    options = parser.parse_args()
    begun, mutants = time.monotonic(), []
    codes = {
        module: (ROOT / f"stylegen/{module}.py").read_text(encoding="utf-8")
        for module in options.modules
    }
    whole = sum(map(len, codes.values()))
    for module, code in codes.items():
        count = max(LEAST, round(options.sample * len(code) / whole))
        mutants += sampled(module, code, count, options.seed)
    random.Random(options.seed).shuffle(mutants)
    trees = Trees(options.jobs)
    names = dict.fromkeys(name for module in options.modules for name in TESTS[module])
    names |= dict.fromkeys(EVERYWHERE)
    known = Map(trees, list(names))
    print(f"{len(mutants)} mutants; the tests took {time.monotonic() - begun:.0f} s", flush=True)

    verdicts: list[tuple[Mutant, bool]] = []
    over = threading.Event()

    def judge(mutant: Mutant) -> None:
        if over.is_set() or time.monotonic() - begun > 60 * options.minutes:
            return
        with trees.lent() as tree:
            survived = tree.survives(mutant, *known.tests_of(mutant))
        verdicts.append((mutant, survived))
        print("survived" if survived else "caught  ", mutant, flush=True)

    with ThreadPoolExecutor(options.jobs) as pool:
        try:
            list(pool.map(judge, mutants))
        except KeyboardInterrupt:
            over.set()
            print("ending after those that are being tried", file=sys.stderr)
    unexplained = report(sorted(verdicts, key=lambda pair: (pair[0].module, pair[0].line)))
    seconds, untried = time.monotonic() - begun, len(mutants) - len(verdicts)
    print(f"seed {options.seed}, {seconds:.0f} s, {untried} not tried for want of time")
    sys.exit(unexplained > 0)


if __name__ == "__main__":
    main()
