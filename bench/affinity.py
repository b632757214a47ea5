"""What one queue per worker gains and costs, against one queue for all.

Gains: styles at hand, so less work per job. Costs: the fullest queue outlasts the others.
A real broker with the consistent-hash exchange; four real consumers, each with a disk cache of its
own (`stylegen.storage.cache`) that holds eight styles. A job is a sleep, longer where its style
must be fetched.

Usage: ``python bench/affinity.py [--jobs N]``. Prints a table and writes
``bench/results/affinity.json``.
"""

import argparse
import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pika

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
# pylint: disable=wrong-import-position
from rabbit import RabbitNode  # noqa: E402
from stored import store  # noqa: E402

from stylegen.fleet.affinity import affinity_exchange, declare_affinity  # noqa: E402
from stylegen.queue import Delivery, consume_queue  # noqa: E402
from stylegen.storage.cache import LoraFiles  # noqa: E402

WORKERS, KEPT, QUEUE, SIZE = 4, 8, "image_generation", 1024
DRAW, FETCH = 0.010, 0.005
"""Seconds of a drawing and of a fetch: at 2 s a picture, a style takes 1 s to fetch and load."""


def styles_of(jobs: int, artists: int, popularity: str) -> list[int]:
    """The styles of a series of jobs; `zipf` orders the n-th artist 1/n as often as the first."""
    rng = np.random.default_rng(0)
    weights = 1 / np.arange(1, artists + 1) if popularity == "zipf" else np.ones(artists)
    return [int(style) for style in rng.choice(artists, jobs, p=weights / weights.sum())]


class Far:
    """Every style's file, as far away as a bucket."""

    def fetch(self, url: str, target: Path, *, max_bytes: int) -> None:
        """Write the file that `url` names, after a while."""
        time.sleep(FETCH)
        target.write_bytes(url.encode().ljust(SIZE))

    def version(self, url: str) -> str:
        """None is ever overwritten."""
        return url


def make_worker(count: list[int], folder: Path, left: Callable[[], None]) -> Callable[..., None]:
    """A worker's callback: fetch the style unless it is at hand, draw, count jobs and hits."""

    def looked_up(hit: bool) -> None:
        count[1] += hit

    files = LoraFiles(Far(), folder, KEPT * SIZE, looked_up)

    def on_delivery(delivery: Delivery) -> None:
        with files.get(f"s3://models/{json.loads(delivery.body)['style_id']}"):
            time.sleep(DRAW)
        count[0] += 1
        left()

    return on_delivery


def measure(rabbit: RabbitNode, styles: list[int], by_style: bool) -> dict[str, float]:
    """One series of jobs: share of hits, seconds of work per job, busiest worker's jobs by mean."""
    connection = pika.BlockingConnection(pika.URLParameters(rabbit.url))
    queues = declare_affinity(connection, QUEUE, WORKERS) if by_style else [QUEUE] * WORKERS
    channel = connection.channel()
    channel.queue_declare(queues[0], durable=True)
    for style in styles:
        place = (affinity_exchange(QUEUE), str(style)) if by_style else ("", QUEUE)
        channel.basic_publish(*place, json.dumps({"style_id": style}).encode())
    connection.close()
    stop, lock, done = threading.Event(), threading.Lock(), [0]
    counts = [[0, 0] for _ in range(WORKERS)]

    def left() -> None:
        with lock:
            done[0] += 1
            if done[0] == len(styles):
                stop.set()

    with tempfile.TemporaryDirectory() as folder:
        threads = [
            threading.Thread(
                target=partial(consume_queue, url=rabbit.url, stop=stop),
                args=(queue, make_worker(counts[number], Path(folder, str(number)), left)),
            )
            for number, queue in enumerate(queues)
        ]
        for thread in threads:
            thread.start()
        stop.wait(600)
        for thread in threads:
            thread.join()
    hits = sum(found for _, found in counts) / len(styles)
    busiest = max(jobs for jobs, _ in counts) * WORKERS / len(styles)
    return {"hits": hits, "work": DRAW + (1 - hits) * FETCH, "busiest": busiest}


def main(jobs: int) -> None:
    """Measure, print, store."""
    rows = []
    rabbit = RabbitNode()
    (rabbit.folder / "plugins").write_text("[rabbitmq_consistent_hash_exchange].\n")
    print(f"{'artists':>8} {'popularity':10}{'hits: shared':>14}{'by style':>10}{'busiest':>9}")
    with rabbit:
        for artists in (16, 32, 64, 128):
            for popularity in ("equal", "zipf"):
                styles = styles_of(jobs, artists, popularity)
                shared, affine = (measure(rabbit, styles, by_style) for by_style in (False, True))
                row = {"artists": artists, "popularity": popularity}
                rows.append(row | {"shared": shared, "by_style": affine})
                hits = f"{shared['hits']:14.0%}{affine['hits']:10.0%}"
                print(f"{artists:8} {popularity:10}{hits}{affine['busiest']:9.2f}")
    result = {"workers": WORKERS, "kept": KEPT, "jobs": jobs, "draw": DRAW, "fetch": FETCH}
    store("affinity", result | {"rows": rows}, "pika")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=1000)
    main(parser.parse_args().jobs)
