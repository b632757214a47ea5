"""Try every fault and print what became of the jobs: ``make faults``.

Usage: ``python tests/faults/run.py [--only TEXT] [--repeats N] [--save]``. Rows are saved without
``--only``, or with ``--save``: by RabbitMQ's version in ``bench/results/faults.json``, from there
in ``docs/faults.md``. Ends with 1 if anything was lost, doubled or wrong, or if the worker needed
too long after a broker that was killed.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
sys.path[:0] = [str(Path(__file__).parent), str(ROOT / "tests")]
# pylint: disable=wrong-import-position
from cases import CASES  # noqa: E402
from ground import Ground, Verdict  # noqa: E402
from rabbit import RabbitNode  # noqa: E402
from s3_server import S3Server  # noqa: E402

RESULTS, PAGE = ROOT / "bench/results/faults.json", ROOT / "docs/faults.md"
_RESTART, _SOON = "broker: SIGKILL and restart", 5.0
"""The case whose median recovery must be within so many seconds."""

_HEAD = """\
# Faults

What `make faults` breaks, and what became of the jobs. The parts are real: a private RabbitMQ node,
an S3 server and a receiver over HTTP, TCP proxies before each, and the deployed worker, whose model
is replaced by pictures in the artist's colour.

- *Lost*: a job without a terminal event, or without the picture that its event names.
- *Doubled*: a job with two different terminal events, even if the receiver refused one of them. The
  same event twice, with the same id and the same bytes, is what a receiver must expect.
- *Wrong*: also a worker that ended by itself, progress out of order or after a job's end, and a
  dead letter too many or for another reason.
- *Recovery*: from the end of the fault to the first job completed of those sent since, or else of
  those that were waiting (–: there were none).

What only one job or message can be blamed for is tried without processes: the corpus of hostile
messages and files (`tests/corpus`), and `make fuzz` with random ones, which says how many it tried
and how many exceptions were not ours: 0.

`make rabbitmq4` tries the broker's faults on RabbitMQ 4, too. A full work queue that refuses
messages costs no more than the killed worker's share: its case prints how many jobs end in 10 s
with two workers and after each kill of one, and is wrong at less than half.
"""

_TABLE = """
## RabbitMQ {version}

{jobs} jobs, {injections} faults:
**{lost} lost, {doubled} doubled,
{wrong} otherwise wrong**. Recovery from a broker that was killed: {broker:.1f} s (median).

| fault | injected | jobs | lost | doubled | recovery (s) |
|---|---|---|---|---|---|
"""


def try_case(name: str, rabbit: RabbitNode, s3: S3Server) -> Verdict:
    """Run one case; an error in it is a wrong result."""
    with Ground(rabbit, s3) as ground:
        try:
            CASES[name](ground)
            verdict = ground.settle()
        except Exception as error:  # pylint: disable=broad-exception-caught
            verdict = ground.settle(timeout=5)
            verdict.wrong.append(f"{type(error).__name__}: {error}")
        if not verdict.is_good:
            print(ground.logs()[-6000:], verdict, sep="\n", file=sys.stderr)
        return verdict


def row(name: str, verdicts: list[Verdict]) -> dict[str, Any]:
    """A case's line of the table."""
    return {
        "fault": name,
        "injections": sum(v.injections for v in verdicts),
        "jobs": sum(v.jobs for v in verdicts),
        "lost": sum(len(v.lost) for v in verdicts),
        "doubled": sum(len(v.doubled) for v in verdicts),
        "wrong": sum(len(v.wrong) for v in verdicts),
        "recovery": round(statistics.median(v.recovery for v in verdicts), 2),
    }


def restart(rows: list[dict[str, Any]]) -> float:
    """Seconds to the first job after a broker was killed; 0 if that was not tried."""
    return next((r["recovery"] for r in rows if r["fault"] == _RESTART), 0.0)


def table(version: str, rows: list[dict[str, Any]]) -> str:
    """One version's table as Markdown."""
    sums = {key: sum(r[key] for r in rows) for key in ("jobs", "injections", "lost", "doubled")}
    head = _TABLE.format(
        version=version, **sums, wrong=sum(r["wrong"] for r in rows), broker=restart(rows)
    )
    lines = [
        f"| {r['fault']} | {r['injections']} | {r['jobs']} | {r['lost']} | {r['doubled']} "
        f"| {format(r['recovery'], '.1f') if r['recovery'] else '–'} |"
        for r in rows
    ]
    return head + "\n".join(lines) + "\n"


def report() -> str:
    """The page of all stored rows."""
    by_version = json.loads(RESULTS.read_text("utf-8"))
    return _HEAD + "".join(table(*each) for each in by_version.items())


def save(version: str, rows: list[dict[str, Any]]) -> None:
    """Write rows down in place of the version's earlier ones of the same names, and the report."""
    by_version = json.loads(RESULTS.read_text("utf-8"))
    merged = {r["fault"]: r for r in [*by_version.get(version, []), *rows]}
    by_version[version] = [merged[name] for name in CASES if name in merged]
    RESULTS.write_text(json.dumps(by_version, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(report(), encoding="utf-8")


def main() -> int:
    """Run the cases; write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="cases whose name holds this text")
    parser.add_argument("--repeats", type=int, default=3, help="runs of the broker's restart")
    parser.add_argument("--save", action="store_true", help="save the rows of these cases, too")
    chosen = parser.parse_args()
    rows = []
    with RabbitNode() as rabbit, S3Server() as s3:
        version = rabbit.version()
        for name in (name for name in CASES if chosen.only in name):
            started = time.monotonic()
            repeats = chosen.repeats if name == _RESTART else 1
            rows.append(row(name, [try_case(name, rabbit, s3) for _ in range(repeats)]))
            facts = {key: value for key, value in rows[-1].items() if key != "fault"}
            print(f"{name:60} {facts} {time.monotonic() - started:.1f} s", flush=True)
    bad = [r for r in rows if r["lost"] or r["doubled"] or r["wrong"]]
    if chosen.save or not chosen.only:
        save(version, rows)
    print(f"{len(rows)} cases, {len(bad)} bad, {restart(rows):.1f} s after a broker's restart")
    return int(bool(bad) or restart(rows) > _SOON)


if __name__ == "__main__":
    sys.exit(main())
