"""How throughput grows with workers, and whether anything gets lost: ``make scale``.

Real parts on loopback: a private RabbitMQ node, an S3 server over HTTP, a receiver of webhooks, and
N worker processes that run the deployed consumer, each with one job in flight. Only the model is
replaced, by a sleep of a job's length, so that two cores can feed eight "GPUs". Prints tables;
writes ``bench/results/scale.json`` and ``bench/results/scale.svg``.

Usage: ``python bench/scale.py [--seconds S] [--jobs-per-worker K] [--soak JOBS]``.
"""

import argparse
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pika

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
# pylint: disable=wrong-import-position
from rabbit import RabbitNode  # noqa: E402
from s3_server import S3Server  # noqa: E402
from stored import store  # noqa: E402

from stylegen.fleet.ledger import report  # noqa: E402
from stylegen.fleet.loadgen import (  # noqa: E402
    LoadReceiver,
    ensure_bucket,
    run_load,
    upload_loras,
)
from stylegen.fleet.orders import Load  # noqa: E402
from stylegen.job import GenerationJob  # noqa: E402
from stylegen.queue import Delivery, consume_queue  # noqa: E402
from stylegen.settings import QUEUE_NAME  # noqa: E402
from stylegen.worker import Parts, consumer, main as run_worker, make_store  # noqa: E402

QUEUE, BUCKET = QUEUE_NAME, "stylelicense-images"
FLEETS = (1, 2, 4, 8)
UTILISATION = 0.7
"""Share of a fleet's capacity that arrives in the runs that measure waiting."""


def sleeping_worker(seconds: float) -> int:
    """The deployed worker, but for its model: a sleep in as many steps as the job asks for."""
    from PIL import Image

    def draw(job: GenerationJob, _lora: Any, *, on_step: Any = None) -> Image.Image:
        on_step(0)
        for step in range(1, job.num_inference_steps + 1):
            time.sleep(seconds / job.num_inference_steps)
            on_step(step)
        return Image.new("RGB", job.resolution, "#c8b4a0")

    consumer.make_parts = lambda settings, metrics: Parts(
        draw=draw,
        store=make_store(settings),
        allowed_origins=settings.webhook_allowed_origins,
        token=settings.internal_api_token.get_secret_value(),
        metrics=metrics,
    )
    return run_worker([])


class Bench:
    """The parts, and workers on them."""

    def __init__(self, rabbit: RabbitNode, s3: S3Server, folder: Path) -> None:
        self.rabbit, self.s3, self.folder = rabbit, s3, folder
        with LoadReceiver(lambda webhook: 200) as probe:
            self.receiver = ("127.0.0.1", probe.server_port)
        self._environment = os.environ | {
            "INTERNAL_API_TOKEN": "bench",
            "WEBHOOK_ALLOWED_ORIGINS": f"http://127.0.0.1:{self.receiver[1]}",
            "RABBITMQ_URL": rabbit.url,
            "AWS_ENDPOINT_URL_S3": s3.endpoint_url,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
            "S3_BUCKET": BUCKET,
            "LOG_LEVEL": "WARNING",
            "STYLEGEN_PREFETCH": "1",  # a sleep is not shared as a batch is
        }
        self.fleet: list[subprocess.Popen[bytes]] = []

    def start_worker(self, seconds: float) -> subprocess.Popen[bytes]:
        """One more worker process."""
        command = [sys.executable, __file__, "--worker", str(seconds)]
        with (self.folder / "workers.log").open("ab") as log:
            process = subprocess.Popen(command, env=self._environment, stdout=log, stderr=log)
        self.fleet.append(process)
        return process

    def kill_worker(self) -> bool:
        """Kill the oldest, as a machine that is switched off; tells whether it was alive."""
        victim = self.fleet.pop(0)
        victim.kill()
        return victim.wait() == -signal.SIGKILL

    @contextmanager
    def workers(self, count: int, seconds: float) -> Iterator[None]:
        """A fleet whose consumers are all registered; ended in good order."""
        for _ in range(count):
            self.start_worker(seconds)
        try:
            self.wait_for_consumers(count)
            yield
        finally:
            for process in self.fleet:
                process.send_signal(signal.SIGTERM)
            for process in self.fleet:
                process.wait(60)
            self.fleet.clear()

    def wait_for_consumers(self, count: int) -> None:
        """Wait until the queue has that many consumers."""
        connection = pika.BlockingConnection(pika.URLParameters(self.rabbit.url))
        channel = connection.channel()
        channel.queue_declare(QUEUE, durable=True)
        deadline = time.monotonic() + 120
        while channel.queue_declare(QUEUE, passive=True).method.consumer_count != count:
            assert time.monotonic() < deadline, (self.folder / "workers.log").read_text()[-3000:]
            connection.sleep(0.1)
        connection.close()

    def run(self, load: Load, **options: Any) -> dict[str, Any]:
        """One load through the fleet; its ledger's sums."""
        sums = report(run_load(load, broker=self.rabbit.url, receiver=self.receiver, **options))
        return asdict(sums)


def measure_fleet(bench: Bench, count: int, seconds: float, per_worker: int) -> dict[str, Any]:
    """Throughput with a full queue, then waiting times with customers at random moments."""
    load = Load(jobs=per_worker * count, rate=math.inf)
    with bench.workers(count, seconds):
        full = bench.run(load)
        rate = UTILISATION * full["jobs_per_second"]
        arriving = bench.run(Load(jobs=2 * per_worker * count, rate=rate, seed=count))
    return {"workers": count, "full_queue": full, "random_arrivals": arriving}


def measure_broker(rabbit: RabbitNode, jobs: int = 2000) -> float:
    """Milliseconds per message of the consumer alone: delivery, an empty job, acknowledgement."""
    connection = pika.BlockingConnection(pika.URLParameters(rabbit.url))
    channel = connection.channel()
    channel.queue_declare("empty_jobs", durable=True)
    body = json.dumps({"prompt_tags": ["x" * 500]}).encode()
    for _ in range(jobs):
        channel.basic_publish("", "empty_jobs", body, pika.BasicProperties(delivery_mode=2))
    connection.close()
    stop, done = threading.Event(), [0.0]

    def count(_: Delivery) -> None:
        done.append(time.monotonic())
        if len(done) > jobs:
            stop.set()

    consume_queue("empty_jobs", count, url=rabbit.url, stop=stop)
    return 1000 * (done[-1] - done[1]) / (jobs - 1)


def soak(bench: Bench, jobs: int, count: int = 8, kills: int = 10) -> dict[str, Any]:
    """Many short jobs while workers are killed; then count everything that should be there."""
    ended, killed, lock = [0], [0], threading.Lock()

    def kill_now_and_then(webhook: Any) -> None:
        if webhook.event != "complete":
            return
        with lock:
            ended[0] += 1
            if ended[0] % (jobs // (kills + 1)) or ended[0] // (jobs // (kills + 1)) > kills:
                return
            killed[0] += bench.kill_worker()  # in the middle of a job
            bench.start_worker(0.01)

    load = Load(jobs=jobs, rate=math.inf, artists=50)
    upload(bench, load)
    with bench.workers(count, 0.01):
        sums = bench.run(load, on_webhook=kill_now_and_then, patience=3600)
        state = wait_until_empty(bench.rabbit)
    pages = bench.s3.client().get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
    keys = {item["Key"] for page in pages for item in page.get("Contents", [])}
    expected = {f"generations/gen_{load.run}-{number}.jpg" for number in range(jobs)}
    found = len(expected & keys)
    return sums | {"killed": killed[0], "pictures": found, "left_in_queue": sum(state)}


def wait_until_empty(rabbit: RabbitNode) -> tuple[int, int]:
    """The queue's messages once the last acknowledgements are in; at most 30 seconds later."""
    deadline = time.monotonic() + 30
    while (state := rabbit.queue_state(QUEUE)) != (0, 0) and time.monotonic() < deadline:
        time.sleep(0.2)
    return state


def upload(bench: Bench, load: Load) -> None:
    """Put a LoRA file for each artist into the bucket. The sleep does not read it."""
    from safetensors.numpy import save_file
    import numpy as np

    style = bench.folder / "style.safetensors"
    save_file({"unet.down.lora_A.weight": np.zeros((4, 320), np.float32)}, style)
    client = bench.s3.client()
    ensure_bucket(client, BUCKET)
    upload_loras(load, bench.folder, client)


def plot(fleets: list[dict[str, Any]], path: Path) -> None:
    """Throughput against ideal, and the wait of the unlucky hundredth."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "stylegen"
    from matplotlib import pyplot

    counts = [row["workers"] for row in fleets]
    speeds = [row["full_queue"]["jobs_per_second"] for row in fleets]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    left.plot(counts, [speeds[0] * count for count in counts], "--", color="0.6", label="ideal")
    left.plot(counts, speeds, "o-", label="measured")
    left.set(xlabel="workers", ylabel="jobs per second", xticks=counts, title="full queue")
    left.legend(frameon=False)
    for name, label in (("wait_p50", "p50"), ("wait_p99", "p99")):
        right.plot(counts, [row["random_arrivals"][name] for row in fleets], "o-", label=label)
    title = f"random arrivals, {UTILISATION:.0%} of capacity"
    right.set(xlabel="workers", ylabel="seconds until drawing", xticks=counts, title=title)
    right.legend(frameon=False)
    figure.savefig(path, metadata={"Date": None})


def show(result: dict[str, Any]) -> None:
    """Print the tables."""
    base = result["fleets"][0]["full_queue"]["jobs_per_second"]
    print(f"\n{'workers':>8}{'jobs/s':>9}{'x one':>8}{'ideal':>8}{'wait p50':>10}{'wait p99':>10}")
    for row in result["fleets"]:
        speed, waits = row["full_queue"]["jobs_per_second"], row["random_arrivals"]
        print(
            f"{row['workers']:8}{speed:9.3f}{speed / base:8.2f}{speed / base / row['workers']:8.1%}"
            f"{waits['wait_p50']:10.2f}{waits['wait_p99']:10.2f}"
        )
    print(f"broker: {result['broker_ms_per_job']:.2f} ms per job")
    if result["soak"]:
        sums = result["soak"]
        print(
            f"{sums['ordered']} jobs, {sums['killed']} workers killed: {sums['complete']} complete,"
            f" {sums['lost']} lost, {sums['pictures']} pictures, {sums['doubled']} reported twice,"
            f" {sums['jobs_per_second']:.1f} jobs/s"
        )


def main(seconds: float, per_worker: int, soaked: int) -> int:
    """Measure, print, store; 1 when a promise was broken."""
    with RabbitNode() as rabbit, S3Server() as s3, tempfile.TemporaryDirectory() as folder:
        bench = Bench(rabbit, s3, Path(folder))
        upload(bench, Load())
        fleets = []
        for count in FLEETS:
            fleets.append(measure_fleet(bench, count, seconds, per_worker))
            print(json.dumps(fleets[-1]), flush=True)
        result: dict[str, Any] = {
            "job_seconds": seconds,
            "fleets": fleets,
            "broker_ms_per_job": measure_broker(rabbit),
            "soak": soak(bench, soaked) if soaked else None,
        }
    show(result)
    plot(fleets, store("scale", result, "pika", "boto3", "requests").with_suffix(".svg"))
    return int(not is_kept(result))


def is_kept(result: dict[str, Any]) -> bool:
    """The promises: four workers do 3.8 times the work of one, and nothing is lost."""
    speed = {row["workers"]: row["full_queue"]["jobs_per_second"] for row in result["fleets"]}
    runs = [run for row in result["fleets"] for run in (row["full_queue"], row["random_arrivals"])]
    kept = speed[4] >= 3.8 * speed[1] and all(run["complete"] == run["ordered"] for run in runs)
    if sums := result["soak"]:
        kept &= sums["complete"] == sums["pictures"] == sums["ordered"]
        kept &= sums["lost"] == sums["left_in_queue"] == 0
    return bool(kept)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=2.0, help="length of a job")
    parser.add_argument("--jobs-per-worker", type=int, default=20)
    parser.add_argument("--soak", type=int, default=10_000, help="jobs of the long run; 0: none")
    parser.add_argument("--worker", type=float, metavar="SECONDS", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        sys.exit(sleeping_worker(options.worker))
    sys.exit(main(options.seconds, options.jobs_per_worker, options.soak))
