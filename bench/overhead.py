"""What the worker adds to a job outside the model: ``make bench``.

Real parts on loopback: a private RabbitMQ node, an S3 server over HTTP, a receiver. The model is
replaced by a sleep that nobody else may use at the same time, as a GPU. Overhead is the time in
which that device does nothing, a job: with one job in flight all that surrounds drawing (fetching,
signing, encoding, uploading, reporting, acknowledging); with two in flight what the next job's
drawing does not hide.

Usage: ``python bench/overhead.py [--jobs N] [--seconds S] [--repeats R]``. Prints a table; writes
``bench/results/overhead.json``.
"""

import argparse
import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from stylegen.job import GenerationJob
from stylegen.queue import Retries, consume_queue, publish_job
from stylegen.storage import make_s3_store
from stylegen.storage.cache import LoraFiles
from stylegen.webhook import WebhookReceiver
from stylegen.worker import Parts, do_delivery

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
# pylint: disable=wrong-import-position
from rabbit import RabbitNode  # noqa: E402
from s3_server import S3Server  # noqa: E402
from stored import store as store_result  # noqa: E402

BUCKET = "overhead"
BAR_MS = 5.0


class Device:
    """Draws one picture at a time, by sleeping; knows when it was busy."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.spans: list[tuple[float, float]] = []
        self._lock = threading.Lock()
        self._picture = Image.effect_noise((512, 512), 64).convert("RGB")

    def draw(self, job: GenerationJob, _lora: Path, *, on_step: Any, **_: Any) -> Image.Image:
        """A picture that compresses badly, after ten steps of sleep."""
        with self._lock:
            began = time.monotonic()
            for step in range(11):
                on_step(step * job.total_steps // 10)
                time.sleep(self.seconds / 11)
            self.spans.append((began, time.monotonic()))
        return self._picture.copy()

    def idle_ms(self) -> float:
        """Milliseconds between two pictures; the first ones warm caches and connections up."""
        starts, ends = zip(*self.spans[5:], strict=True)
        gaps = [1000 * (b - a) for a, b in zip(ends, starts[1:], strict=False)]
        return statistics.median(gaps)


def message(number: int, receiver: str) -> bytes:
    """A job of one of eight artists."""
    fields = {
        "generation_id": number,
        "style_id": number % 8,
        "lora_model_url": f"s3://{BUCKET}/{number % 8}.safetensors",
        "prompt_tags": ["red", "heart"],
        "artist_name": "김하늘",
        "webhook_url": receiver,
    }
    return json.dumps(fields).encode()


@contextmanager
def consumer(parts: Parts, retries: Retries, in_flight: int) -> Iterator[None]:
    """The worker's consumer, on a thread."""
    stop = threading.Event()
    options = {"url": retries.url, "stop": stop, "prefetch_count": in_flight, "threads": in_flight}
    place = retries.queue_name, partial(do_delivery, parts=parts, retries=retries)
    thread = threading.Thread(target=consume_queue, args=place, kwargs=options)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def measure(parts: Parts, url: str, in_flight: int, numbers: range, seconds: float) -> float:
    """Idle milliseconds a job, with so many jobs in flight."""
    device, retries = Device(seconds), Retries(url, f"overhead_{in_flight}")
    with WebhookReceiver() as backend:
        own = replace(parts, draw=device.draw, allowed_origins=(backend.url,))
        for number in numbers:
            body = message(number, backend.url)
            publish_job(body, url=url, queue_name=retries.queue_name)
        with consumer(own, retries, in_flight):
            assert len(backend.wait_for(len(numbers), "complete", 300)) == len(numbers)
    return device.idle_ms()


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=40, help="jobs of one measurement")
    parser.add_argument("--seconds", type=float, default=0.2, help="length of a drawing")
    parser.add_argument("--repeats", type=int, default=3, help="measurements, taken in turns")
    chosen = parser.parse_args()
    found: dict[int, list[float]] = {1: [], 2: []}
    with RabbitNode() as rabbit, S3Server() as s3, tempfile.TemporaryDirectory() as folder:
        s3.client().create_bucket(Bucket=BUCKET)
        for style in range(8):
            key = f"{style}.safetensors"
            s3.client().put_object(Bucket=BUCKET, Key=key, Body=bytes(200_000))
        keys = {"access_key_id": "test", "secret_access_key": "test", "region": "us-east-1"}
        store = make_s3_store(BUCKET, endpoint_url=s3.endpoint_url, **keys)
        loras = LoraFiles(store, Path(folder))
        parts = Parts(lambda *_: None, store, (), "bench", loras=loras, idempotent=True)
        for repeat in range(chosen.repeats):
            for in_flight in found:
                first = 1 + (2 * repeat + in_flight) * chosen.jobs
                numbers = range(first, first + chosen.jobs)
                found[in_flight].append(
                    measure(parts, rabbit.url, in_flight, numbers, chosen.seconds)
                )
    sums = {
        str(in_flight): {"median_ms": statistics.median(v), "all_ms": v}
        for in_flight, v in found.items()
    }
    result = {"jobs": chosen.jobs, "seconds": chosen.seconds, "idle_per_job": sums}
    store_result("overhead", result, "pika", "boto3", "requests")
    whole, left = sums["1"]["median_ms"], sums["2"]["median_ms"]
    print(f"one job in flight:  {whole:.1f} ms a job in which the device is idle")
    print(f"two jobs in flight: {left:.1f} ms a job (bar {BAR_MS:.0f})")
    return int(left > BAR_MS)


if __name__ == "__main__":
    sys.exit(main())
