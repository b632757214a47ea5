"""The operator's commands and benches, in small: load, scaling, supervision, affinity."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pika
import pytest
import requests
from conftest import TOKEN
from PIL import Image
from rabbit import RabbitNode, free_ports
from s3_server import S3Server
from waiting import wait_until

from stylegen.fleet.affinity import declare_affinity
from stylegen.fleet.ledger import Ledger
from stylegen.fleet.loadgen import make_parser, ensure_bucket, send
from stylegen.fleet.orders import Load
from stylegen.fleet.supervisor import KeptWorker, keep_running, worker_environments
from stylegen.job import WebhookError
from stylegen.queue import Delivery, consume_queue, publish_control
from stylegen.storage import FolderStore, S3Store
from stylegen.storage.cache import LoraFiles
from stylegen.webhook import WebhookReceiver
from stylegen.worker import Parts, handle_generation_task

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "bench"))
import affinity as affinity_bench  # noqa: E402  pylint: disable=wrong-import-position
import playground as panel_bench  # noqa: E402  pylint: disable=wrong-import-position
import scale  # noqa: E402  pylint: disable=wrong-import-position
from stored import RESULTS  # noqa: E402  pylint: disable=wrong-import-position

sys.path.insert(0, str(ROOT / "tools"))
import sizing  # noqa: E402  pylint: disable=wrong-import-position


@pytest.fixture(name="rabbit", scope="module")
def _rabbit(node: RabbitNode) -> RabbitNode:
    """A node, not a virtual host of one: it is changed and killed here."""
    return node


@pytest.fixture(scope="module")
def bench(
    rabbit: RabbitNode, s3: S3Server, tmp_path_factory: pytest.TempPathFactory
) -> scale.Bench:
    """The scale bench's parts."""
    made = scale.Bench(rabbit, s3, tmp_path_factory.mktemp("scale"))
    scale.upload(made, Load())
    return made


def test_two_workers_do_more_than_one(bench: scale.Bench) -> None:
    """The bench of `make scale` with two fleets of a few jobs; nothing is lost."""
    one, two = (scale.measure_fleet(bench, count, 1.0, 6) for count in (1, 2))
    for row in (one, two):
        for name in ("full_queue", "random_arrivals"):
            assert row[name]["complete"] == row[name]["ordered"] and row[name]["lost"] == 0
    speeds = [row["full_queue"]["jobs_per_second"] for row in (one, two)]
    assert speeds[1] > 1.5 * speeds[0]


def test_killed_workers_lose_nothing(bench: scale.Bench) -> None:
    """The long run in short: two workers are killed in the middle of a job."""
    sums = scale.soak(bench, 60, count=2, kills=2)
    assert sums["complete"] == sums["pictures"] == 60
    assert sums["lost"] == sums["left_in_queue"] == 0
    assert sums["killed"] == 2


def test_only_kills_that_happened_are_counted(bench: scale.Bench) -> None:
    """A worker that had ended by itself was not killed."""
    for command, killed in ((["true"], False), (["sleep", "60"], True)):
        worker = subprocess.Popen(command)  # pylint: disable=consider-using-with
        with suppress(subprocess.TimeoutExpired):
            worker.wait(1)
        bench.fleet.append(worker)
        assert bench.kill_worker() is killed and not bench.fleet


def loadgen(*words: str) -> subprocess.CompletedProcess[str]:
    """Run the load generator's command."""
    command = [sys.executable, "-m", "stylegen.fleet.loadgen", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_ledger_counts_what_is_lost(rabbit: RabbitNode) -> None:
    """Nobody consumes this queue: every job is lost, and the command says so."""
    done = loadgen(
        "--broker", rabbit.url, "--queue", "nobody", "--jobs=3", "--rate=inf", "--patience=0.5"
    )
    assert done.returncode == 1
    sums = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert (sums["ordered"], sums["complete"], sums["lost"]) == ("3", "0", "3")
    assert rabbit.queue_state("nobody") == (3, 0)


def test_orders_say_when_they_were_sent(rabbit: RabbitNode) -> None:
    """By its timestamp a worker knows how long each message waited."""
    before = int(time.time())
    load, found = Load(jobs=2, rate=10.0), []
    send(load, Ledger(), "http://127.0.0.1", broker=rabbit.url, queue_name="timed")
    stop = threading.Event()

    def take(delivery: Delivery) -> None:
        found.append(delivery.age)
        if len(found) == load.jobs:
            stop.set()

    consume_queue("timed", take, url=rabbit.url, stop=stop)
    assert all(0 <= age <= time.time() - before for age in found)


def test_loadgen_reads_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exported addresses of a deployment are not where a load goes: loopback unless told."""
    monkeypatch.setenv("RABBITMQ_URL", "amqp://broker.example.com")
    monkeypatch.setenv("RABBITMQ_HOST", "broker.example.com")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "https://bucket.example.com")
    chosen = make_parser().parse_args([])
    assert {urlsplit(url).hostname for url in (chosen.broker, chosen.s3)} == {"127.0.0.1"}


def test_loadgen_tells_of_a_missing_broker() -> None:
    """Nobody listens there: one line says so."""
    (port,) = free_ports(1)
    done = loadgen("--broker", f"amqp://guest:guest@127.0.0.1:{port}/%2F", "--jobs=1")
    assert done.returncode == 1 and "can't be reached" in done.stderr


def test_loadgen_tells_of_a_missing_exchange(rabbit: RabbitNode) -> None:
    """One line that names it, not a traceback; the same where an exchange leads nowhere."""
    for exchange, told in (("nowhere", "no exchange 'nowhere'"), ("amq.direct", "no queue")):
        done = loadgen("--broker", rabbit.url, "--exchange", exchange, "--jobs=1")
        assert done.returncode == 1 and told in done.stderr
        assert len(done.stderr.splitlines()) == 1


@pytest.fixture(name="studio")
def _studio(rabbit: RabbitNode, tmp_path: Path) -> Iterator[tuple[RabbitNode, int]]:
    """The broker, whose queue ``cut`` has a worker; and a port that it may report to."""
    (tmp_path / "models").mkdir()
    for style in range(Load.artists):
        (tmp_path / f"models/style_{style}.safetensors").write_bytes(b"a style")
    (port,), stop = free_ports(1), threading.Event()

    def draw(job: Any, _: Path, *, on_step: Any) -> Image.Image:
        on_step(0)
        time.sleep(0.05)  # slower than orders come
        return Image.new("RGB", (256, 256))

    parts = Parts(
        draw, FolderStore(tmp_path), (f"http://127.0.0.1:{port}",), TOKEN, idempotent=True
    )

    def work(delivery: Delivery) -> None:
        # A broker's restart brings a message twice, and who ordered it may have left by then. Any
        # other job that is not reported is missing in the ledger.
        with suppress(WebhookError):
            handle_generation_task(delivery.body, parts=parts)

    worker = threading.Thread(
        target=consume_queue,
        args=("cut", work),
        kwargs={"stop": stop, "url": rabbit.url},
        daemon=True,
    )
    worker.start()
    yield rabbit, port
    stop.set()
    worker.join(60)
    assert not worker.is_alive(), "the worker did not end"


def test_a_broker_that_restarts_leaves_the_ledger(studio: tuple[RabbitNode, int]) -> None:
    """No more is ordered; what was ordered is waited for and told, and the error is said."""
    rabbit, port = studio
    words = f"--broker={rabbit.url} --queue=cut --jobs=5000 --rate=50 --listen=127.0.0.1:{port}"
    words += " --show --patience=90"
    command = [sys.executable, "-m", "stylegen.fleet.loadgen", *words.split()]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as load:  # type: ignore[call-overload]
        while "/complete" not in (line := load.stdout.readline()):
            assert line
        rabbit.kill()
        rabbit.start()
        told, error = load.communicate(timeout=240)
    sums = dict(line.split(maxsplit=1) for line in told.splitlines() if "webhooks" not in line)
    assert load.returncode == 1 and f"{sums['ordered']} of 5000 jobs" in error
    assert 0 < int(sums["ordered"]) < 5000
    assert (sums["complete"], sums["lost"]) == (sums["ordered"], "0")


@pytest.mark.parametrize(("queue", "jobs", "rate"), [("left", 3, "inf"), ("begun", 5000, "20")])
def test_an_interrupt_leaves_the_ledger(
    rabbit: RabbitNode, queue: str, jobs: int, rate: str
) -> None:
    """Ctrl-C ends the waiting, and the ordering before it; it tells what is known by then."""
    # a shell's background jobs, such as these tests may be, ignore SIGINT, and so do their children
    code = (
        "import signal, sys; from stylegen.fleet.loadgen import main\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler); sys.exit(main())"
    )
    words = ("--broker", rabbit.url, f"--queue={queue}", f"--jobs={jobs}", f"--rate={rate}")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(
        [sys.executable, "-c", code, *words], text=True, **pipes
    ) as load:  # type: ignore[call-overload]
        try:
            wait_until(lambda: rabbit.queue_states().get(queue, (0, 0))[0] >= 3, timeout=60)
            load.send_signal(signal.SIGINT)
            told, error = load.communicate(timeout=60)
        finally:
            load.kill()
    sums = dict(line.split(maxsplit=1) for line in told.splitlines())
    assert load.returncode == 1 and "Traceback" not in error
    assert 3 <= int(sums["ordered"]) == int(sums["lost"]) <= jobs


def consumers(rabbit: RabbitNode, queue: str) -> int:
    """How many consumers a queue has."""
    connection = pika.BlockingConnection(pika.URLParameters(rabbit.url))
    count = connection.channel().queue_declare(queue, durable=True).method.consumer_count
    connection.close()
    return int(count)


def wait_for_consumers(rabbit: RabbitNode, queue: str, count: int) -> None:
    """Wait at most two minutes for that many consumers."""
    deadline = time.monotonic() + 120
    while consumers(rabbit, queue) != count:
        assert time.monotonic() < deadline
        time.sleep(0.2)


def neighbouring_ports() -> int:
    """The first of two free ports that follow each other."""
    while True:
        (port,) = free_ports(1)
        with suppress(OSError), socket.create_server(("127.0.0.1", port + 1)):
            return port


def probe(port: int) -> int:
    """What a worker's liveness probe is told; 0 while nobody listens."""
    with suppress(requests.ConnectionError):
        return requests.get(f"http://127.0.0.1:{port}/livez", timeout=10).status_code
    return 0


def test_supervisor_replaces_and_ends_workers(
    rabbit: RabbitNode, environment: dict[str, str]
) -> None:
    """Two real workers, each with its probe; one is killed and comes back; SIGTERM ends both."""
    port = neighbouring_ports()
    environment |= {"STYLEGEN_HEALTH_PORT": str(port)}
    command = [sys.executable, "-m", "stylegen.fleet.supervisor", "--workers", "2"]
    with subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, text=True, cwd="/"
    ) as supervisor:
        try:
            numbers = [int(supervisor.stderr.readline().rsplit(" ", 1)[1]) for _ in range(2)]
            wait_for_consumers(rabbit, "supervised", 2)
            assert [probe(port), probe(port + 1)] == [200, 200]
            os.kill(numbers[0], signal.SIGKILL)
            wait_for_consumers(rabbit, "supervised", 1)
            wait_for_consumers(rabbit, "supervised", 2)
            assert [probe(port), probe(port + 1)] == [200, 200]
            supervisor.send_signal(signal.SIGTERM)
            assert supervisor.wait(60) == 0
            wait_for_consumers(rabbit, "supervised", 0)
        finally:
            supervisor.kill()


@pytest.mark.parametrize(
    ("gpus", "workers", "expected"),
    [
        (["0", "GPU-b"], None, [("9100", "0"), ("9101", "GPU-b")]),
        (["0", "1"], 3, [("9100", "0"), ("9101", "1"), ("9102", "0")]),
        ([], 2, [("9100", None), ("9101", None)]),
        ([], None, [("9100", None)]),
    ],
)
def test_each_worker_has_its_own_port_and_card(
    gpus: list[str], workers: int | None, expected: list[tuple[str, str | None]]
) -> None:
    """Ports are counted up, cards taken in turn, everything else is shared."""
    common = {"STYLEGEN_HEALTH_PORT": "9100", "INTERNAL_API_TOKEN": "t"}
    made = worker_environments(common, gpus, workers)
    names = ("STYLEGEN_HEALTH_PORT", "CUDA_VISIBLE_DEVICES")
    assert [tuple(each.get(name) for name in names) for each in made] == expected
    assert {each["INTERNAL_API_TOKEN"] for each in made} == {"t"}
    for port in ("", "0"):  # none, or any that is free
        made = worker_environments({"STYLEGEN_HEALTH_PORT": port}, gpus, workers)
        assert {each["STYLEGEN_HEALTH_PORT"] for each in made} == {port}


class Pauses(threading.Event):
    """An event that writes down how long somebody would wait for it, and is set in the end."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.pauses: list[float | None] = []
        self._most = most

    def wait(self, timeout: float | None = None) -> bool:
        """Do not wait."""
        self.pauses.append(timeout)
        if len(self.pauses) == self._most:
            self.set()
        return self.is_set()


def test_a_worker_that_dies_at_once_is_started_ever_later() -> None:
    """Twice as long each time, from a second to a minute; real processes, pauses only noted."""
    stop, starts = Pauses(8), []

    class Counted(KeptWorker):
        """A worker that may not be started without end."""

        def run_once(self) -> float:
            """Start it, if the test goes on."""
            starts.append(super().run_once())
            assert len(starts) <= 8, "it is started without a pause"
            return starts[-1]

    kept = Counted(["false"], {}, stop)
    keep_running(kept, stop)
    assert stop.pauses == [1, 2, 4, 8, 16, 32, 60, 60] and kept.exit_code == 1


def test_a_worker_that_lived_for_a_while_is_started_soon() -> None:
    """After over a minute it counts as good, and the next death as the first."""
    lives, stop = [0.1, 59.0, 61.0, 0.1, 0.1], Pauses(5)
    kept = SimpleNamespace(exit_code=3, run_once=lambda: lives.pop(0))
    keep_running(kept, stop)  # type: ignore[arg-type]
    assert stop.pauses == [1, 2, 1, 2, 4]


def test_supervisor_ends_with_wrong_settings() -> None:
    """Settings that no restart mends end it, with the worker's own code."""
    bare = {"PATH": os.environ["PATH"], "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "stylegen.fleet.supervisor", "--workers", "2"]
    done = subprocess.run(command, env=bare, capture_output=True, text=True, timeout=60, cwd="/")
    assert done.returncode == 2 and "INTERNAL_API_TOKEN" in done.stderr


@pytest.fixture(scope="module")
def hashing(rabbit: RabbitNode) -> RabbitNode:
    """The broker, with the consistent-hash exchange from now on."""
    rabbit.enable("rabbitmq_consistent_hash_exchange")
    return rabbit


def test_affinity_finds_more_styles_at_hand(hashing: RabbitNode) -> None:
    """With 64 artists, four workers and eight kept styles, at least twice the hits."""
    styles = affinity_bench.styles_of(300, 64, "equal")
    shared, affine = (affinity_bench.measure(hashing, styles, way) for way in (False, True))
    assert affine["hits"] > 2 * shared["hits"]


def test_each_affinity_queue_hears_cancellations(hashing: RabbitNode) -> None:
    """What a backend publishes for the plain queue reaches the workers of all of them."""
    connection = pika.BlockingConnection(pika.URLParameters(hashing.url))
    last = declare_affinity(connection, count=4)[-1]
    connection.close()
    stop, heard = threading.Event(), []
    patience = threading.Timer(30, stop.set)
    patience.start()

    def hear(body: bytes) -> None:
        heard.append(body)
        stop.set()

    consume_queue(
        last,
        lambda delivery: None,
        url=hashing.url,
        stop=stop,
        on_ready=lambda: publish_control(b'{"generation_id": 500}', url=hashing.url),
        on_control=hear,
    )
    patience.cancel()
    assert heard == [b'{"generation_id": 500}']


def test_bucket_requests_are_as_sizing_says(
    s3: S3Server, backend: WebhookReceiver, order: dict[str, Any], tmp_path: Path
) -> None:
    """A job whose LoRA is at hand asks a real bucket as often as the arithmetic counts."""
    client, asked = s3.client(), []
    for bucket in ("models", "requests"):
        ensure_bucket(client, bucket)
    client.put_object(Bucket="models", Key="style_10.safetensors", Body=b"a style")
    store = S3Store("requests", client)
    store.detect_conditional_writes()
    parts = Parts(
        lambda job, lora, *, on_step: Image.new("RGB", job.resolution),
        store,
        (backend.url,),
        TOKEN,
        loras=LoraFiles(store, tmp_path, 2**20),
        idempotent=True,
    )
    assert handle_generation_task(order, parts).error_code is None
    client.meta.events.register("before-send.s3", lambda request, **_: asked.append(request.method))
    assert handle_generation_task(order | {"generation_id": 501}, parts).error_code is None
    assert len(asked) == sizing.REQUESTS


def test_stored_results_keep_the_promises() -> None:
    """What the documents quote was measured by this bench, and was good."""
    result: dict[str, Any] = json.loads((RESULTS / "scale.json").read_text(encoding="utf-8"))
    assert scale.is_kept(result) and result["soak"]["ordered"] >= 10_000


def test_panel_bench_opens_the_notebook(tmp_path: Path) -> None:
    """All of its cells run, and the panel that is shown is the one that is loaded."""
    panel_bench.open_notebook(tmp_path)


def test_stored_panel_results_keep_the_promises() -> None:
    """The same of the panel's bench; and a figure that misses its bar is one it exits for."""
    path = RESULTS / "playground.json"
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    assert result["bars"] == panel_bench.BARS and panel_bench.missed(result) == []
    for name, bar in panel_bench.BARS.items():
        worse = bar / 1.01 if name == "updates_per_s" else bar * 1.01
        assert panel_bench.missed(result | {name: worse}) == [name]
