"""Hostile and odd AMQP properties of a good message: whatever they say, the job is done."""

import time
from datetime import datetime
from typing import Any

from stylegen.queue import ATTEMPT, REDELIVERIES, REDRIVES

_MS = 1_790_000_000_000


class Milliseconds(datetime):
    """A header's timestamp as JavaScript's ``Date.now()`` writes it: the year 58692."""

    def utctimetuple(self) -> time.struct_time:
        """The parts of the date, as pika's encoder reads them."""
        return time.struct_time((1970, 1, 1, 0, 0, _MS, 0, 1, 0))


def _nested(depth: int) -> dict[str, Any]:
    table: dict[str, Any] = {"end": 1}
    for _ in range(depth):
        table = {"in": table}
    return table


PROPERTIES: dict[str, dict[str, Any]] = {
    "timestamp: milliseconds": {"timestamp": _MS},
    "timestamp: 2^63-1": {"timestamp": 2**63 - 1},
    "type and encoding: anything": {"content_type": "text/html", "content_encoding": "gzip"},
    "priority: 255": {"priority": 255},
} | {
    f"headers: {name}": {"headers": table}
    for name, table in {
        "a timestamp in milliseconds": {"sent": Milliseconds(2026, 1, 1)},
        "the same, nested": {"more": [{"sent": Milliseconds(2026, 1, 1)}], ATTEMPT: 1},
        "an attempt below zero": {ATTEMPT: -5},
        "an attempt beyond all": {ATTEMPT: 10**12},
        "an attempt that is text": {ATTEMPT: "7"},
        "an attempt that is a table": {ATTEMPT: {"a": [1, {"b": None}]}},
        "redeliveries beyond all": {REDELIVERIES: 10**12},
        "redrives beyond all": {REDRIVES: 10**12},
        "redrives below zero": {REDRIVES: -1},
        "tables, 60 deep": _nested(60),
        "bytes that are no text": {"raw": b"\xff\xfe", "x-stylegen-error": b"\x00"},
        "an empty name": {"": 1},
        "a death that never was": {"x-death": [{"count": 10**9, "queue": "q"}]},
        "500 of them": {f"h{i}": i for i in range(500)},
    }.items()
}
