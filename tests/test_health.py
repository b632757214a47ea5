"""What probes, counters and limits say of a worker, while it is well and while it is not."""

import json
import re
import threading
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import requests
from conftest import TOKEN
from painter import Painter, consuming
from PIL import Image
from rabbit import Broker, free_ports
from tenacity import wait_fixed, wait_none
from waiting import wait_until

from stylegen.job import WebhookError
from stylegen.queue import connection, publish_job
from stylegen.settings import Settings
from stylegen.storage import FolderStore
from stylegen.webhook import ReceivedWebhook, WebhookReceiver
from stylegen.worker import (
    Health,
    HealthServer,
    Metrics,
    Parts,
    RunningJobs,
    handle_generation_task,
    start_watchdog,
)

Order = dict[str, Any]


def status(port: int, page: str) -> int:
    """A page's status; 0 while nobody listens."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/{page}", timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


@pytest.fixture(name="painter")
def _painter(monkeypatch: pytest.MonkeyPatch) -> Painter:
    """The engine of each worker that this test makes; and no model is loaded for it."""
    painter = Painter()
    monkeypatch.setattr("stylegen.pipeline.resident.load_pipeline", lambda *_, **__: None)
    monkeypatch.setattr("stylegen.pipeline.resident.Engine", painter)
    return painter


@pytest.fixture(name="store")
def _store(tmp_path: Path) -> FolderStore:
    """A bucket with one LoRA."""
    store = FolderStore(tmp_path / "bucket")
    store.put("models/style_10.safetensors", b"tensors", "")
    return store


@pytest.fixture(name="settings")
def _settings(
    rabbit: Broker, backend: WebhookReceiver, store: FolderStore, tmp_path: Path
) -> Settings:
    """A worker's, with a health port and a queue of its own."""
    (port,) = free_ports(1)
    return Settings(
        internal_api_token=TOKEN,
        webhook_allowed_origins=backend.url,
        rabbitmq_url=rabbit.url,
        stylegen_queue=f"test-{uuid.uuid4().hex}",
        stylegen_storage_folder=store.root,
        stylegen_cache_folder=tmp_path / "cache",
        stylegen_device="cpu",
        stylegen_health_port=port,
    )


def send(settings: Settings, order: Order) -> None:
    """Publish a job to a worker's queue."""
    url = settings.rabbitmq_url.get_secret_value() if settings.rabbitmq_url else ""
    publish_job(json.dumps(order).encode(), url=url, queue_name=settings.stylegen_queue)


def test_a_worker_without_a_broker_is_not_ready(
    settings: Settings, painter: Painter, rabbit: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It lives all the time, and is ready but for the while between two connections."""
    monkeypatch.setattr(connection, "RECONNECT_WAIT", wait_fixed(2))
    port = settings.stylegen_health_port or 0
    with consuming(settings, painter):
        wait_until(lambda: status(port, "readyz") == 200)
        rabbit.close_all_connections()
        wait_until(lambda: status(port, "readyz") == 503)
        assert status(port, "livez") == 200
        wait_until(lambda: status(port, "readyz") == 200)
    assert status(port, "livez") == 0


def test_a_worker_that_ends_is_not_ready(
    settings: Settings, painter: Painter, order: Order, backend: WebhookReceiver
) -> None:
    """While it finishes the job in flight it lives, and wants no more."""
    port = settings.stylegen_health_port or 0
    painter.gate.clear()
    with consuming(settings, painter) as stop:
        send(settings, order)
        wait_until(lambda: painter.begun)
        assert [status(port, page) for page in ("livez", "readyz")] == [200, 200]
        stop.set()
        assert [status(port, page) for page in ("livez", "readyz")] == [200, 503]
    assert len(backend.wait_for(1, "complete")) == 1


def test_the_connections_thread_gives_signs_of_life(
    settings: Settings, painter: Painter, order: Order, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When idle, beside a job, and while the last job is finished."""
    beats: list[float] = []
    beat = Health.beat
    monkeypatch.setattr(Health, "beat", lambda health: (beats.append(0.0), beat(health)))

    def goes_on() -> bool:
        count = len(beats)
        wait_until(lambda: len(beats) >= count + 3)
        return True

    painter.gate.clear()
    with consuming(settings, painter) as stop:
        assert goes_on()
        send(settings, order)
        wait_until(lambda: painter.begun)
        assert goes_on()
        stop.set()
        assert goes_on()


def test_a_worker_with_a_hanging_job_is_not_live(
    settings: Settings, painter: Painter, order: Order, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its probe says so, and it ends itself by the code of a device that is lost."""
    codes: list[int] = []
    watchdog = partial(start_watchdog, exit_with=codes.append, every=0.02)
    monkeypatch.setattr("stylegen.worker.consumer.start_watchdog", watchdog)
    settings = settings.model_copy(update={"stylegen_job_timeout": 0.5})
    port = settings.stylegen_health_port or 0
    painter.gate.clear()
    with consuming(settings, painter):
        send(settings, order)
        wait_until(lambda: painter.begun)
        wait_until(lambda: status(port, "livez") == 503)
        assert status(port, "readyz") == 503
        wait_until(lambda: codes)
        assert codes == [3]


class Clock:
    """A clock that a test turns on by `seconds`."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        """The time."""
        return self.seconds


@pytest.fixture(name="clock")
def _clock() -> Clock:
    return Clock()


@pytest.fixture(name="running_jobs")
def _running_jobs(clock: Clock) -> RunningJobs:
    """By that clock, with a limit of 600 s."""
    return RunningJobs(600, clock)


@pytest.fixture(name="health")
def _health(running_jobs: RunningJobs, clock: Clock) -> Health:
    """A connected worker's."""
    health = Health(running_jobs, clock=clock)
    health.connected = True
    return health


@pytest.fixture(name="probes")
def _probes(health: Health) -> Iterator[Callable[[], list[int]]]:
    """What ``/livez`` and ``/readyz`` answer."""
    with HealthServer(health, Metrics(), 0) as server:
        yield lambda: [status(server.port, page) for page in ("livez", "readyz")]


def test_a_minute_without_a_sign_of_life(
    health: Health, probes: Callable[[], list[int]], clock: Clock
) -> None:
    """A worker whose broker thread hangs is restarted; not while it still starts."""
    assert probes() == [200, 200]  # loading a model takes minutes
    health.beat()
    clock.seconds += 50
    assert probes() == [200, 200]
    clock.seconds += 12
    assert probes() == [503, 503]
    health.beat()
    assert probes() == [200, 200]


def test_half_as_long_again_as_the_limit(
    running_jobs: RunningJobs, probes: Callable[[], list[int]], clock: Clock
) -> None:
    """A job hangs at 900 s of 600; one that waits hangs when no job moves for as long."""
    with running_jobs.job("drawn") as drawn, running_jobs.job("waits"):
        drawn.step(0)
        clock.seconds += 890
        assert (probes(), running_jobs.overdue()) == ([200, 200], [])
        clock.seconds += 20
        assert (probes(), running_jobs.overdue()) == ([503, 503], ["drawn", "waits"])
        drawn.ended.set()  # only webhooks are left of it
        assert running_jobs.overdue() == ["waits"]
        drawn.moved()
        assert (probes(), running_jobs.overdue()) == ([200, 200], [])
    assert probes() == [200, 200]


def test_the_watchdog_ends_with_the_process(running_jobs: RunningJobs, clock: Clock) -> None:
    """Its thread is named in a dump, keeps no process alive, and ends one that hangs."""
    codes: list[int] = []
    before = set(threading.enumerate())
    start_watchdog(running_jobs, codes.append, every=0.01)
    (watchdog,) = set(threading.enumerate()) - before
    assert watchdog.name == "watchdog" and watchdog.daemon
    with running_jobs.job(7) as running:
        running.step(0)
        clock.seconds += 901
        watchdog.join(30)
    assert codes == [3]


def test_pages_as_a_scraper_reads_them(health: Health) -> None:
    """Prometheus 3 refuses a page whose type it does not know; lengths are right."""
    metrics = Metrics()
    metrics.count_lookup(True)
    with HealthServer(health, metrics, 0) as server:
        for page in ("livez", "metrics", "nowhere"):
            answer = requests.get(
                f"http://127.0.0.1:{server.port}/{page}",
                headers={"Accept-Encoding": "identity"},
                timeout=10,
            )
            kind, length = (answer.headers[name] for name in ("Content-Type", "Content-Length"))
            assert re.fullmatch(r"text/plain; (version=[\d.]+; )?charset=utf-8", kind)
            assert ("version" in kind) == (page == "metrics")
            assert int(length) == len(answer.content)
            assert page != "metrics" or answer.content == metrics.page()


def test_look_ups_are_counted_by_result() -> None:
    """The dashboard's share of hits lives on these two."""
    metrics = Metrics()
    for hit in (True, False, False):
        metrics.count_lookup(hit)
    results = [
        metrics.registry.get_sample_value("stylegen_lora_cache_total", {"result": result})
        for result in ("hit", "miss")
    ]
    assert results == [1, 2]


@pytest.mark.parametrize(
    ("in_line", "drawing", "event"),
    [(10_000, 0, "complete"), (10_000, 590, "complete"), (0, 601, "failed")],
)
def test_a_limit_runs_from_the_first_step(
    store: FolderStore,
    order: Order,
    backend: WebhookReceiver,
    clock: Clock,
    running_jobs: RunningJobs,
    in_line: float,
    drawing: float,
    event: str,
) -> None:
    """Waiting for a turn is free; a job drawn for longer than 600 s is reported as failed."""

    def draw(*_: Any, on_step: Callable[[int], None], **__: Any) -> Image.Image:
        clock.seconds += in_line
        on_step(0)
        clock.seconds += drawing
        on_step(4)
        return Image.new("RGB", (512, 512))

    parts = Parts(draw, store, (backend.url,), TOKEN, running_jobs=running_jobs)
    handle_generation_task(order, parts)
    (last,) = [hook for hook in backend.received if hook.event != "progress"]
    assert last.event == event
    if event == "failed":
        assert last.body["error_code"] == "TIMEOUT" and "600 s" in last.body["error_message"]


def test_waiting_for_ones_own_id_is_free(running_jobs: RunningJobs, clock: Clock) -> None:
    """The second message of a job waits for the first, and its time begins after it."""
    asked, began = threading.Event(), []

    def run_second() -> None:
        asked.set()
        with running_jobs.job(7) as second:
            began.append(second.began)

    thread = threading.Thread(target=run_second)
    with running_jobs.job(7):
        thread.start()
        assert asked.wait(30)
        thread.join(0.2)
        assert not began
        clock.seconds += 1000
    thread.join(30)
    assert began == [1000]


def counted(parts: Parts) -> dict[tuple[str, str], float]:
    """Webhooks by event and result, as a scrape shows those that there were."""
    text = parts.metrics.page().decode()
    lines = [line for line in text.splitlines() if "_deliveries_total{" in line]
    found = {}
    for line in lines:
        labels = dict(part.split("=") for part in line[line.index("{") + 1 : -5].split(","))
        if line.endswith(" 0.0"):
            continue
        found[labels["event"].strip('"'), labels["result"].strip('"}')] = float(line.split()[-1])
    return found


@pytest.mark.parametrize("code", [410, 503])
@pytest.mark.parametrize("refused", ["progress", "complete", "failed"])
def test_webhooks_are_counted_by_their_fate(
    store: FolderStore, order: Order, monkeypatch: pytest.MonkeyPatch, refused: str, code: int
) -> None:
    """An alert lives on those that were not taken, refused or in vain: one for each event."""
    monkeypatch.setattr("stylegen.webhook.delivery.WAIT", wait_none())

    def answer(hook: ReceivedWebhook) -> int:
        return code if hook.event == refused else 200

    def draw(*_: Any, on_step: Callable[[int], None], **__: Any) -> Image.Image:
        for step in range(5):
            on_step(step)
        if refused == "failed":
            raise RuntimeError("no picture")
        return Image.new("RGB", (512, 512))

    with WebhookReceiver(answer) as receiver:
        parts = Parts(draw, store, (receiver.url,), TOKEN)
        job = partial(handle_generation_task, order | {"webhook_url": receiver.url}, parts)
        if refused == "progress":
            job()
        else:
            with pytest.raises(WebhookError):
                job()
    ending = "failed" if refused == "failed" else "complete"
    assert counted(parts) == {
        ("progress", "failed" if refused == "progress" else "delivered"): 5.0,
        (ending, "failed" if refused == ending else "delivered"): 1.0,
    }


def test_a_receiver_that_is_gone_counts(
    store: FolderStore, order: Order, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody listens: neither progress nor the end was taken."""
    monkeypatch.setattr("stylegen.webhook.delivery.WAIT", wait_none())
    (port,) = free_ports(1)
    gone = f"http://127.0.0.1:{port}"

    def draw(*_: Any, on_step: Callable[[int], None], **__: Any) -> Image.Image:
        on_step(0)
        return Image.new("RGB", (512, 512))

    parts = Parts(draw, store, (gone,), TOKEN)
    with pytest.raises(WebhookError):
        handle_generation_task(order | {"webhook_url": gone}, parts)
    assert counted(parts) == {("progress", "failed"): 1.0, ("complete", "failed"): 1.0}
    assert parts.metrics.registry.get_sample_value("stylegen_breaker_trips_total") == 1.0
