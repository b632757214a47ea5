"""The serving bench in small: who is drawn when, by the engine's own loop in the bench's time."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))
import serving  # noqa: E402  pylint: disable=wrong-import-position

from stylegen.pipeline.admission import MAX_SKIPPED_BATCHES  # noqa: E402


@pytest.mark.parametrize("mix", serving.MIXES)
def test_batches_are_full_and_waits_are_short(mix: str) -> None:
    """At 0.95 of what full batches draw, no other way to batch is better at any figure."""
    trace = serving.make_trace(600, 0.95, mix)
    rows = {name: serving.Server(way, trace).run() for name, way in serving.WAYS.items()}
    ours, static, one, single = (rows[name] for name in serving.WAYS)
    assert ours["batch"] >= static["batch"] > 4 * one["batch"] and single["batch"] == 1
    assert ours["p99"] <= static["p99"] and ours["p50"] <= static["p50"]
    assert 10 * ours["p50"] < one["p50"] <= single["p50"]
    assert ours["within_2_solo"] >= static["within_2_solo"] > one["within_2_solo"]


def test_what_is_stored_meets_the_bars() -> None:
    """The docs quote these figures."""
    stored = json.loads((serving.RESULTS / "serving.json").read_text(encoding="utf-8"))
    rows = {(row["mix"], row["load"], row["way"]): row for row in stored["rows"]}
    for mix in serving.MIXES:
        ours, static, one = (rows[mix, 0.95, name] for name in list(serving.WAYS)[:3])
        assert ours["batch"] >= 7.4 and ours["p99"] <= static["p99"]
        assert 10 * ours["p50"] <= one["p50"]


def test_a_rare_format_is_not_starved() -> None:
    """However many others come, four batches of younger ones are let in before it, and no more."""
    flood, rare = [serving.Arrival(0.0, n % 5, "1:1") for n in range(300)], (3, 120, 210)
    for place in rare:
        flood[place] = serving.Arrival(0.0, 1, "2:2")
    server = serving.Server(serving.WAYS["this engine"], flood)
    server.run()
    for place in rare:
        earlier = server.order[: server.order.index(place)]
        younger = sum(number > place for number in earlier) / serving.BATCH
        assert MAX_SKIPPED_BATCHES / 2 < younger < MAX_SKIPPED_BATCHES + 1


def test_who_is_set_aside_goes_on() -> None:
    """A picture half drawn, of a rare format: as many younger ones come before it, and no more."""
    ended: list[int | str] = []

    class Noted(serving.Server):
        """Remembers whose picture ends when."""

        def finish(self, task: serving.Task, **_: object) -> None:
            super().finish(task)
            ended.append(task.job.generation_id)

    flood = [serving.Arrival(0.3, n % 5, "1:1") for n in range(300)]
    trace = [serving.Arrival(0.0, 1, "2:2"), *flood]
    Noted(serving.WAYS["this engine"], trace).run()
    younger = ended.index(0) / serving.BATCH
    assert 1 <= younger < MAX_SKIPPED_BATCHES + 1


def test_a_popular_artist_does_not_empty_the_batch() -> None:
    """Many of its jobs are late at a time, in two formats; batches are full nevertheless."""
    styles = [0 if n < serving.IN_FLIGHT else n for n in range(200)]
    flood = [serving.Arrival(0.0, n, serving.FORMATS[i // 2 % 2]) for i, n in enumerate(styles)]
    server = serving.Server(serving.WAYS["this engine"], flood)
    assert server.run()["batch"] > 7.6
