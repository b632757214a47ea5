"""Jobs that can't be done now, on a real broker; a flat picture stands for drawing."""

import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pika
import pytest
from asyncapi import message_validator
from conftest import TOKEN
from pika.exceptions import NackError
from PIL import Image
from rabbit import RabbitNode
from s3_server import OwnerEnforcedGate, S3Server
from tenacity import wait_none
from waiting import wait_until

from stylegen.job import StorageError
from stylegen.queue import (
    ATTEMPT,
    REDELIVERIES,
    REDRIVES,
    RetryState,
    Delivery,
    Retries,
    publish_job,
    redrive,
    consume_queue,
)
from stylegen.settings import Settings
from stylegen.storage import FolderStore, S3Store, find_manifest, make_s3_store
from stylegen.storage.keys import manifest_key
from stylegen.webhook import ReceivedWebhook, WebhookReceiver, deliver_event
from stylegen.worker import Parts, do_control, do_delivery, handle_generation_task, main
from stylegen.worker.cancel import cancel_job
from stylegen.worker.consumer import _detect_conditional_writes

Order = dict[str, Any]


@pytest.fixture(name="drawn")
def _drawn() -> list[Callable[[], None]]:
    """What happens while the next pictures are drawn."""
    return []


@pytest.fixture(name="flat")
def _flat(tmp_path: Path, backend: WebhookReceiver, drawn: list[Callable[[], None]]) -> Parts:
    """Parts that draw at once; their bucket is down until the file ``generations`` is gone."""

    def draw(*_: Any, **__: Any) -> Image.Image:
        if drawn:
            drawn.pop(0)()
        return Image.new("RGB", (512, 512))

    store = FolderStore(tmp_path)
    store.put("models/style_10.safetensors", b"tensors", "")
    (tmp_path / "generations").write_text("a file where a folder must be", encoding="ascii")
    return Parts(draw, store, (backend.url,), TOKEN)


@pytest.fixture(name="rabbit", scope="module")
def _rabbit(node: RabbitNode) -> RabbitNode:
    """A node, not a virtual host of one: it is killed here."""
    return node


@pytest.fixture(name="retries")
def _retries(rabbit: RabbitNode) -> Retries:
    return Retries(rabbit.url, f"test-{uuid.uuid4().hex}", (1, 1), max_redeliveries=2)


@contextmanager
def consuming(parts: Parts, retries: Retries) -> Iterator[threading.Thread]:
    """The worker's consumer on a thread."""
    stop = threading.Event()
    thread = threading.Thread(
        target=consume_queue,
        args=(retries.queue_name, partial(do_delivery, parts=parts, retries=retries)),
        kwargs={"url": retries.url, "stop": stop},
        daemon=True,
    )
    thread.start()
    yield thread
    stop.set()
    thread.join(30)
    assert not thread.is_alive(), "the consumer did not end"


@pytest.fixture(name="consumer")
def _consumer(flat: Parts, retries: Retries) -> Iterator[threading.Thread]:
    """That consumer, with those parts."""
    with consuming(flat, retries) as thread:
        yield thread


def dead_letter(retries: Retries, count: int = 1) -> list[tuple[dict[str, Any], bytes]]:
    """Take the dead letters: headers and bodies. Waits for `count`."""
    connection = pika.BlockingConnection(pika.URLParameters(retries.url))
    channel = connection.channel()
    channel.queue_declare(f"{retries.queue_name}.dead", durable=True)
    found = []
    for method, properties, body in channel.consume(
        f"{retries.queue_name}.dead", auto_ack=True, inactivity_timeout=30
    ):
        assert method, "no dead letter came"
        found.append((properties.headers, body))
        if len(found) == count:
            break
    connection.close()
    return found


def test_a_bucket_that_comes_back(
    flat: Parts, retries: Retries, order: Order, backend: WebhookReceiver, tmp_path: Path
) -> None:
    """The job waits, and is then done as if nothing had been; no failure is told."""
    publish_job(json.dumps(order).encode(), url=retries.url, queue_name=retries.queue_name)
    with consuming(flat, retries) as consumer:
        retried = partial(flat.metrics.registry.get_sample_value, "stylegen_jobs_total")
        wait_until(lambda: retried({"outcome": "retried"}) == 1)
        (tmp_path / "generations").unlink()
        assert backend.wait_for(1, "complete", timeout=30)
        assert consumer.is_alive()
    assert not [hook for hook in backend.received if hook.event == "failed"]


@pytest.mark.parametrize(("refused", "times"), [("", 3), ("generations/", 2), ("manifests/", 3)])
def test_a_bucket_that_refuses_writes_is_asked_before_it_is_drawn_for(
    s3: S3Server,
    retries: Retries,
    order: Order,
    backend: WebhookReceiver,
    caplog: pytest.LogCaptureFixture,
    refused: str,
    times: int,
) -> None:
    """It can be read: one picture is lost, and the log says so; one is drawn when it is back."""
    bucket, draws = f"refuses-{refused.strip('/')}-all".replace("--", "-"), []

    def draw(*_: Any, **__: Any) -> Image.Image:
        draws.append(1)
        return Image.new("RGB", (512, 512))

    s3.client().create_bucket(Bucket=bucket)
    s3.client().put_object(Bucket=bucket, Key="models/style_10.safetensors", Body=b"tensors")
    lora = {"lora_model_url": f"s3://{bucket}/models/style_10.safetensors"}
    with OwnerEnforcedGate(s3, (403, "AccessDenied")) as gate:
        gate.refused_path = f"/{bucket}/{refused}"
        store = S3Store(bucket, gate.client(), conditional=True)
        parts = Parts(draw, store, (backend.url,), TOKEN, idempotent=True)
        body = json.dumps(order | lora).encode()
        publish_job(body, url=retries.url, queue_name=retries.queue_name)
        count = partial(parts.metrics.registry.get_sample_value, "stylegen_jobs_total")
        with consuming(parts, retries):
            wait_until(lambda: (count({"outcome": "retried"}) or 0) >= times)
            assert len(draws) == 1
            gate.refused_path = None
            assert backend.wait_for(1, "complete", timeout=30)
    assert len(draws) == 2 and not [hook for hook in backend.received if hook.event == "failed"]
    said = [record.getMessage() for record in caplog.records]
    assert len([text for text in said if "nothing is drawn until" in text]) == 1
    assert [text for text in said if f"s3://{bucket}/{refused}" in text and "probe.json" in text]
    assert len([text for text in said if "can be stored again" in text]) == 1


def test_a_worker_that_starts_beside_such_a_bucket_draws_nothing(
    s3: S3Server, flat: Parts, retries: Retries, order: Order
) -> None:
    """What it asks of the bucket at its start has told it."""
    s3.client().create_bucket(Bucket="refuses-at-start")
    with OwnerEnforcedGate(s3, refuses_all=True) as gate:
        store = S3Store("refuses-at-start", gate.client())
        parts = replace(flat, store=store, draw=lambda *_, **__: pytest.fail("it was drawn"))
        _detect_conditional_writes(parts)
        _bring(parts, retries, order)
    count = parts.metrics.registry.get_sample_value
    assert count("stylegen_jobs_total", {"outcome": "retried"}) == 1


@pytest.mark.parametrize(
    "error",
    [
        OverflowError("a customer's prompt"),
        RecursionError("a customer's prompt"),
        IndexError(),
        MemoryError(),
        AssertionError("a customer's prompt"),
        UnicodeEncodeError("utf-8", "a customer's prompt", 0, 1, "surrogates not allowed"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_no_exception_of_a_job_ends_the_process(
    flat: Parts,
    retries: Retries,
    order: Order,
    backend: WebhookReceiver,
    error: Exception,
) -> None:
    """Whatever it is: tried again, then a dead letter; its text is told to nobody."""

    states = []

    def on_state(state: str) -> None:
        states.append(state)
        if state == "failed-reported":
            raise error

    parts = replace(flat, on_state=on_state)
    flat.store.root.joinpath("generations").unlink()  # type: ignore[attr-defined]
    poison = order | {"lora_model_url": "s3://models/none.safetensors"}
    for fields in (poison, *(order | {"generation_id": number} for number in range(1, 6))):
        publish_job(json.dumps(fields).encode(), url=retries.url, queue_name=retries.queue_name)
    with consuming(parts, retries) as consumer:
        ((headers, _),) = dead_letter(retries)
        assert headers["x-stylegen-error-code"] == "GENERATION_FAILED"
        assert headers["x-stylegen-error"] == f"unexpected {type(error).__name__}"
        assert headers[ATTEMPT] == 2
        assert backend.wait_for(5, "complete", timeout=30)
        assert consumer.is_alive()
    assert "prompt" not in str(headers)
    counted = parts.metrics.registry.get_sample_value
    assert counted("stylegen_jobs_total", {"outcome": "GENERATION_FAILED"}) == 1
    assert counted("stylegen_jobs_total", {"outcome": "retried"}) == 2
    assert states.count("retry-published") == 2 and states.count("dead-lettered") == 1


def test_a_bucket_that_stays_away(
    flat: Parts, retries: Retries, order: Order, backend: WebhookReceiver, consumer: Any
) -> None:
    """After the last retry: one failure, a dead letter with its reason; a redrive does the job."""
    body = json.dumps(order).encode()
    publish_job(body, url=retries.url, queue_name=retries.queue_name)
    (failed,) = backend.wait_for(1, "failed", timeout=60)
    assert (failed.body["error_code"], failed.body["retry_count"]) == ("RETRIES_EXHAUSTED", 2)
    ((headers, dead),) = dead_letter(retries)
    assert dead == body
    assert (headers["x-stylegen-error-code"], headers[ATTEMPT]) == ("RETRIES_EXHAUSTED", 2)
    publish_job(dead, url=retries.url, queue_name=f"{retries.queue_name}.dead", headers=headers)
    flat.store.root.joinpath("generations").unlink()  # type: ignore[attr-defined]
    assert redrive(retries.url, retries.queue_name) == 1
    assert backend.wait_for(1, "complete", timeout=30)
    assert consumer.is_alive()


def test_a_damaged_manifest_becomes_a_dead_letter(
    flat: Parts, retries: Retries, order: Order, backend: WebhookReceiver, rabbit: RabbitNode
) -> None:
    """Tried as often as any job, drawn never; what lies there stays, and the next job is done."""
    flat = replace(flat, idempotent=True)
    flat.store.root.joinpath("generations").unlink()  # type: ignore[attr-defined]
    flat.store.put(manifest_key(500), b"[" * 100_000, "")
    for generation_id in (500, 501):
        body = json.dumps(order | {"generation_id": generation_id}).encode()
        publish_job(body, url=rabbit.url, queue_name=retries.queue_name)
    stop = threading.Event()
    on_delivery = partial(do_delivery, parts=flat, retries=retries)
    options, place = {"url": rabbit.url, "stop": stop}, (retries.queue_name, on_delivery)
    thread = threading.Thread(target=consume_queue, args=place, kwargs=options, daemon=True)
    thread.start()
    assert backend.wait_for(1, "complete", timeout=30)
    ((headers, body),) = dead_letter(retries)
    stop.set()
    thread.join(30)
    assert json.loads(body)["generation_id"] == 500
    assert (headers["x-stylegen-error-code"], headers[ATTEMPT]) == ("STORAGE_ERROR", 2)
    message_validator("deadLetter", "headers").validate(headers)
    assert flat.store.read(manifest_key(500)) == b"[" * 100_000
    assert flat.store.read("generations/gen_500.jpg") is None


def test_a_broker_that_stays_away(
    flat: Parts,
    drawn: list[Callable[[], None]],
    retries: Retries,
    order: Order,
    backend: WebhookReceiver,
    rabbit: RabbitNode,
    consumer: threading.Thread,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A retry that can be put nowhere ends no worker: the message stays, and comes back."""
    assert flat
    monkeypatch.setattr("stylegen.queue.publish.PUBLISH_ATTEMPTS", 1)
    published = threading.Event()
    drawn.append(lambda: rabbit.kill() if published.wait(30) else None)
    publish_job(json.dumps(order).encode(), url=retries.url, queue_name=retries.queue_name)
    published.set()
    wait_until(lambda: not drawn)
    time.sleep(3)  # the length of the fault
    assert consumer.is_alive()
    rabbit.start()
    (failed,) = backend.wait_for(1, "failed", timeout=60)
    assert failed.body["error_code"] == "RETRIES_EXHAUSTED" and consumer.is_alive()


def test_a_job_that_kills_its_workers(
    flat: Parts, retries: Retries, order: Order, backend: WebhookReceiver
) -> None:
    """It is counted each time it comes back; in the end it is told and set aside, not drawn."""
    body = json.dumps(order).encode()
    for count in range(retries.max_redeliveries + 1):
        do_delivery(Delivery(0, 1, body, {REDELIVERIES: count}, True), flat, retries)
    (failed,) = backend.wait_for(1, "failed", timeout=30)
    assert failed.body["error_code"] == "RETRIES_EXHAUSTED"
    assert dead_letter(retries)[0][1] == body
    connection = pika.BlockingConnection(pika.URLParameters(retries.url))
    channel = connection.channel()
    found = [channel.basic_get(retries.queue_name, auto_ack=True)[1].headers for _ in range(2)]
    connection.close()
    assert [headers[REDELIVERIES] for headers in found] == [1, 2]


def test_a_job_is_done_once(
    flat: Parts,
    drawn: list[Callable[[], None]],
    retries: Retries,
    order: Order,
    backend: WebhookReceiver,
    s3: S3Server,
) -> None:
    """A committed job is told again in the same words, not drawn; its id is nobody else's."""
    bucket = f"once-{uuid.uuid4().hex}"
    s3.client().create_bucket(Bucket=bucket)
    s3.client().put_object(Bucket=bucket, Key="lora.safetensors", Body=b"tensors")
    keys = {"access_key_id": "test", "secret_access_key": "test", "region": "us-east-1"}
    store = make_s3_store(bucket, endpoint_url=s3.endpoint_url, **keys)
    assert store.detect_conditional_writes()
    parts = replace(flat, store=store, idempotent=True)
    mine = order | {"lora_model_url": f"s3://{bucket}/lora.safetensors"}
    drawn.extend([lambda: None] * 3)
    for fields in (mine, mine, mine | {"seed": 9}):
        do_delivery(Delivery(0, 1, json.dumps(fields).encode()), parts, retries)
    first, second = backend.wait_for(2, "complete", timeout=30)
    assert first.raw == second.raw and len(drawn) == 2
    assert [hook.event for hook in backend.received if hook.event == "failed"] == []
    assert dead_letter(retries)[0][0]["x-stylegen-error-code"] == "CONFLICT"
    stored = s3.client().list_objects_v2(Bucket=bucket)["Contents"]
    assert "manifests/gen_500.json" in {each["Key"] for each in stored}


def test_forged_counts_are_clamped() -> None:
    """Whoever may publish may write headers; none of them makes an attempt of its own kind."""
    for value, count in ((-5, 0), (10**12, 1000), ("7", 0), (None, 0), ([1], 0)):
        assert Delivery(0, 1, b"", {ATTEMPT: value}).counts.attempt == count


def ours(headers: dict[str, Any]) -> dict[str, Any]:
    """The headers that a message got from workers; producers may have set others."""
    return {name: value for name, value in headers.items() if name.startswith("x-stylegen-")}


def take(rabbit: RabbitNode, queue_name: str) -> tuple[pika.BasicProperties, bytes]:
    """Take a message that must be there: its properties and its bytes."""
    connection = pika.BlockingConnection(pika.URLParameters(rabbit.url))
    method, properties, body = connection.channel().basic_get(queue_name, auto_ack=True)
    connection.close()
    assert method, f"{queue_name} is empty"
    return properties, body


COUNTS = {"x-stylegen-attempt": 2, "x-stylegen-redeliveries": 1, "x-stylegen-redrives": 3}
"""What a message of the next tests was through, by the headers' names on the wire."""


def test_the_names_of_headers() -> None:
    """Workers of another version read them, too."""
    assert Delivery(0, 1, b"", COUNTS).counts.to_headers() == COUNTS


def _refused_stranger(order: Order, parts: Parts) -> bytes:
    assert parts
    return json.dumps(order | {"webhook_url": "https://evil.example"}).encode()


def _taken_id(order: Order, parts: Parts) -> bytes:
    handle_generation_task(order | {"seed": 7}, parts)
    return json.dumps(order).encode()


def _broken_bucket(order: Order, parts: Parts) -> bytes:
    parts.store.root.joinpath("generations").write_text("a file", "ascii")  # type: ignore
    return json.dumps(order).encode()


DEAD: dict[str, tuple[Callable[[Order, Parts], bytes], int, str, str]] = {
    "no JSON": (lambda *_: b"\xff", 200, "INVALID_MESSAGE", "not JSON"),
    "a stranger's": (_refused_stranger, 200, "INVALID_MESSAGE", "origin is not allowed"),
    "a taken id": (_taken_id, 200, "CONFLICT", "generation 500 is the id of another job"),
    "a broken bucket": (_broken_bucket, 200, "RETRIES_EXHAUSTED", "tried 3 times, at last: the "),
    "no receiver": (lambda order, _: json.dumps(order).encode(), 503, "WEBHOOK_FAILED", "(503)"),
    "refused": (lambda order, _: json.dumps(order).encode(), 410, "WEBHOOK_REFUSED", "(410)"),
}


@pytest.mark.parametrize("case", DEAD)
def test_dead_letters_say_why(
    flat: Parts,
    retries: Retries,
    order: Order,
    rabbit: RabbitNode,
    tmp_path: Path,
    monkeypatch: Any,
    case: str,
) -> None:
    """Whatever ends among the dead letters has its reason, in a word and in words, and its past."""
    monkeypatch.setattr("stylegen.webhook.delivery.WAIT", wait_none())
    make, status, code, text = DEAD[case]
    with WebhookReceiver(lambda _: status) as receiver:
        parts = replace(_on_bucket(flat, tmp_path), allowed_origins=(receiver.url,))
        body = make(order | {"webhook_url": receiver.url}, parts)
        do_delivery(Delivery(0, 1, body, COUNTS), parts, retries)
    properties, dead = take(rabbit, f"{retries.queue_name}.dead")
    assert dead == body
    assert ours(properties.headers) == COUNTS | {
        "x-stylegen-error-code": code,
        "x-stylegen-error": properties.headers["x-stylegen-error"],
    }
    assert text in properties.headers["x-stylegen-error"]
    assert (properties.delivery_mode, properties.content_type) == (2, "application/json")


def test_dead_letters_of_deadly_jobs_say_why(
    flat: Parts, retries: Retries, order: Order, rabbit: RabbitNode
) -> None:
    """So do those with which workers died too often."""
    counts = COUNTS | {"x-stylegen-redeliveries": 2}
    _bring(flat, retries, order, headers=counts, redelivered=True)
    properties, _ = take(rabbit, f"{retries.queue_name}.dead")
    assert ours(properties.headers) == counts | {
        "x-stylegen-error-code": "RETRIES_EXHAUSTED",
        "x-stylegen-error": "the job was in flight each time that a worker died",
    }


@pytest.mark.parametrize(("attempt", "seconds"), [(0, 600), (1, 700)])
def test_a_retry_keeps_its_past(
    flat: Parts, rabbit: RabbitNode, order: Order, attempt: int, seconds: int
) -> None:
    """One more attempt, nothing else counted; in the queue that sends it back in time."""
    patient = Retries(rabbit.url, f"test-{uuid.uuid4().hex}", (600, 700))
    _bring(flat, patient, order, headers=COUNTS | {"x-stylegen-attempt": attempt})
    name = f"{patient.queue_name}.retry.{seconds}s"
    connection = pika.BlockingConnection(pika.URLParameters(rabbit.url))
    back = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": patient.queue_name}
    back |= {"x-message-ttl": seconds * 1000}  # other arguments than the queue's would be refused
    connection.channel().queue_declare(name, durable=True, arguments=back)
    connection.close()
    properties, body = take(rabbit, name)
    assert body == json.dumps(order).encode()
    assert ours(properties.headers) == COUNTS | {"x-stylegen-attempt": attempt + 1}
    assert (properties.delivery_mode, properties.content_type) == (2, "application/json")


def test_a_redelivery_keeps_its_past(
    flat: Parts, retries: Retries, order: Order, rabbit: RabbitNode
) -> None:
    """What comes back after a worker's death is counted so, and not as an attempt."""
    _bring(flat, retries, order, headers=COUNTS, redelivered=True)
    properties, body = take(rabbit, retries.queue_name)
    assert body == json.dumps(order).encode()
    assert ours(properties.headers) == COUNTS | {"x-stylegen-redeliveries": 2}
    assert (properties.delivery_mode, properties.content_type) == (2, "application/json")


def test_outcomes_are_counted(flat: Parts, retries: Retries, order: Order, tmp_path: Path) -> None:
    """Each delivery once, by what became of it; and how long it waited, if it is new."""

    def count(outcome: str) -> float | None:
        return flat.metrics.registry.get_sample_value("stylegen_jobs_total", {"outcome": outcome})

    _bring(flat, retries, order, age=7.0)
    _bring(flat, retries, order, redelivered=True, age=20.0)
    _bring(flat, retries, order, headers={"x-stylegen-attempt": 2}, age=600.0)
    do_delivery(Delivery(0, 1, b"no message", age=-1.0), flat, retries)
    (tmp_path / "generations").unlink()
    _bring(flat, retries, order, headers={REDELIVERIES: 1}, age=30.0)
    absent = order | {"lora_model_url": "s3://models/none.safetensors"}
    _bring(flat, retries, absent, headers={REDRIVES: 1}, age=86_400.0)
    ends = ("RETRIES_EXHAUSTED", "INVALID_MESSAGE", "complete", "LORA_NOT_FOUND")
    assert {name: count(name) for name in ("retried", "redelivered", *ends)} == dict.fromkeys(
        ("retried", "redelivered", *ends), 1.0
    )
    ages = [
        flat.metrics.registry.get_sample_value(f"stylegen_queue_wait_seconds_{part}")
        for part in ("count", "sum")
    ]
    assert ages == [2.0, 7.0]
    assert flat.metrics.registry.get_sample_value("stylegen_jobs_in_progress") == 0.0


def test_a_redrive_counts_from_zero(retries: Retries, rabbit: RabbitNode) -> None:
    """Attempts, deaths and the reason are forgotten; one more redrive is not."""
    reason = {"x-stylegen-error-code": "RETRIES_EXHAUSTED", "x-stylegen-error": "at last"}
    dead = f"{retries.queue_name}.dead"
    publish_job(b"{}", url=retries.url, queue_name=dead, headers=COUNTS | reason)
    assert redrive(retries.url, retries.queue_name) == 1
    properties, body = take(rabbit, retries.queue_name)
    assert body == b"{}" and rabbit.queue_state(dead) == (0, 0)
    counts = Delivery(0, 1, body, properties.headers).counts
    assert (counts.attempt, counts.redeliveries, counts.redrives) == (0, 0, 4)
    assert "x-stylegen-error" not in "".join(properties.headers)
    assert (properties.delivery_mode, properties.content_type) == (2, "application/json")


def test_a_redrive_that_is_refused_loses_nothing(retries: Retries, rabbit: RabbitNode) -> None:
    """The work queue is full and refuses: the letter is still among the dead ones, as it was."""
    connection = pika.BlockingConnection(pika.URLParameters(rabbit.url))
    full = {"x-max-length": 1, "x-overflow": "reject-publish"}
    connection.channel().queue_declare(retries.queue_name, durable=True, arguments=full)
    connection.close()
    dead = f"{retries.queue_name}.dead"
    publish_job(b"first", url=retries.url, queue_name=retries.queue_name)
    publish_job(b"dead", url=retries.url, queue_name=dead, headers=COUNTS)
    with pytest.raises(NackError):
        redrive(retries.url, retries.queue_name)
    wait_until(lambda: rabbit.queue_state(dead) == (1, 0))
    assert ours(take(rabbit, dead)[0].headers) == COUNTS
    assert take(rabbit, retries.queue_name)[1] == b"first"


def test_redrive_one(rabbit: RabbitNode, monkeypatch: Any, capsys: Any) -> None:
    """``worker.py --redrive ID`` moves that generation only; the others keep their place."""
    name = f"test-{uuid.uuid4().hex}"
    for body in (b'{"generation_id": 1}', b"no message", b'{"generation_id": "two"}'):
        publish_job(body, url=rabbit.url, queue_name=f"{name}.dead")
    for key, value in {
        "INTERNAL_API_TOKEN": TOKEN,
        "WEBHOOK_ALLOWED_ORIGINS": "https://api.example.com",
        "RABBITMQ_URL": rabbit.url,
        "STYLEGEN_QUEUE": name,
    }.items():
        monkeypatch.setenv(key, value)
    assert main(["--redrive", "two"]) == 0
    assert rabbit.queue_state(name) == (1, 0)
    assert rabbit.queue_state(f"{name}.dead") == (2, 0)
    assert main(["--redrive"]) == 0
    assert main(["--redrive", "all"]) == 1
    assert rabbit.queue_state(name) == (3, 0)
    assert capsys.readouterr().out.split() == ["moved", "1", "moved", "2", "moved", "0"]


def test_delays_are_a_setting() -> None:
    """Seconds with commas; nothing but whole positive ones."""
    own: dict[str, Any] = {"internal_api_token": "t", "webhook_allowed_origins": "https://a"}
    assert Settings(**own).stylegen_retry_delays == (5, 30, 300)
    settings = Settings(**own, stylegen_retry_delays="1, 2", stylegen_max_redeliveries=3)
    assert (settings.stylegen_retry_delays, settings.stylegen_max_redeliveries) == ((1, 2), 3)
    with pytest.raises(ValueError):
        Settings(**own, stylegen_retry_delays="0")


def test_commands_say_what_stands_in_their_way(monkeypatch: Any, capsys: Any) -> None:
    """No broker, no traceback; a bucket that can't be written, the same."""
    for key, value in {
        "INTERNAL_API_TOKEN": TOKEN,
        "WEBHOOK_ALLOWED_ORIGINS": "https://api.example.com",
        "RABBITMQ_URL": "amqp://guest:s3cret@127.0.0.1:1/%2f",
        "STYLEGEN_STORAGE_FOLDER": "/dev/null/nowhere",
    }.items():
        monkeypatch.setenv(key, value)
    assert main(["--redrive"]) == 1
    assert main(["--cancel", "500"]) == 1
    assert main(["--cancel", "no id"]) == 2
    shown = capsys.readouterr().err
    assert "no broker" in shown and "can't be written" in shown and "not an id" in shown
    assert "s3cret" not in shown and "Traceback" not in shown


def _on_bucket(flat: Parts, tmp_path: Path) -> Parts:
    """Parts that write results down, with a bucket that works."""
    (tmp_path / "generations").unlink()
    return replace(flat, idempotent=True)


def _ends(backend: WebhookReceiver) -> list[tuple[str, bytes]]:
    return [(hook.event, hook.raw) for hook in backend.received if hook.event != "progress"]


def _bring(parts: Parts, retries: Retries, fields: Order, **more: Any) -> None:
    do_delivery(Delivery(0, 1, json.dumps(fields).encode(), **more), parts, retries)


def _failed_once(parts: Parts, retries: Retries, order: Order) -> Order:
    """A job whose LoRA was missing, which was told; now the file is there."""
    late = order | {"lora_model_url": "s3://models/late.safetensors"}
    _bring(parts, retries, late)
    parts.store.put("models/late.safetensors", b"tensors", "")
    return late


def test_a_failure_is_told_in_the_same_words(
    flat: Parts, retries: Retries, order: Order, backend: WebhookReceiver, tmp_path: Path
) -> None:
    """A receiver that was away, or a LoRA that appears later, makes no second end."""
    parts = _on_bucket(flat, tmp_path)
    late = _failed_once(parts, retries, order)
    _bring(parts, retries, late, headers={ATTEMPT: 1})
    first, second = _ends(backend)
    assert first == second and first[0] == "failed"


def test_a_wrong_message_does_not_end_a_finished_job(
    flat: Parts, retries: Retries, order: Order, backend: WebhookReceiver, tmp_path: Path
) -> None:
    """Its id has a result already: a conflict for the operator, nothing for the receiver."""
    parts = _on_bucket(flat, tmp_path)
    _bring(parts, retries, order)
    _bring(parts, retries, order | {"seed": -1})
    assert [event for event, _ in _ends(backend)] == ["complete"]
    assert dead_letter(retries)[0][0]["x-stylegen-error-code"] == "CONFLICT"


def test_a_redrive_supersedes_a_failure_and_never_a_picture(
    flat: Parts, retries: Retries, order: Order, backend: WebhookReceiver, tmp_path: Path
) -> None:
    """An operator's second try is drawn; one more finds the picture and tells it again."""
    parts = _on_bucket(flat, tmp_path)
    missing = order | {"lora_model_url": "s3://models/late.safetensors"}
    _bring(parts, retries, missing)
    _bring(parts, retries, missing, headers={REDRIVES: 1})
    parts.store.put("models/late.safetensors", b"tensors", "")
    for count in (2, 3):
        _bring(parts, retries, missing, headers={REDRIVES: count})
    events = _ends(backend)
    assert [event for event, _ in events] == ["failed", "failed", "complete", "complete"]
    assert events[2] == events[3]


def test_what_cannot_be_written_down_is_not_told(
    flat: Parts, rabbit: RabbitNode, order: Order, backend: WebhookReceiver, tmp_path: Path
) -> None:
    """While the bucket is away nobody knows whether the job is done: it waits, however often."""
    (tmp_path / "manifests").write_text("a file where a folder must be", encoding="ascii")
    patient = Retries(rabbit.url, f"test-{uuid.uuid4().hex}", (1, 600))
    parts = replace(flat, idempotent=True)
    for attempt in (1, 2, 2):
        _bring(parts, patient, order | {"seed": -1}, headers={ATTEMPT: attempt})
    assert not _ends(backend)
    assert rabbit.queue_state(f"{patient.queue_name}.retry.600s") == (3, 0)
    (tmp_path / "manifests").unlink()
    _bring(parts, patient, order | {"seed": -1}, headers={ATTEMPT: 2})
    assert [event for event, _ in _ends(backend)] == ["failed"]


def test_a_redrive_gives_no_id_away(
    flat: Parts, retries: Retries, order: Order, backend: WebhookReceiver, tmp_path: Path
) -> None:
    """Whoever comes first after a redrive, the id stays that of the job that had it first."""
    parts = _on_bucket(flat, tmp_path)
    first = _failed_once(parts, retries, order)
    _bring(parts, retries, order | {"artist_name": "Another"}, headers={REDRIVES: 1})
    assert [event for event, _ in _ends(backend)] == ["failed"]
    assert dead_letter(retries)[0][0]["x-stylegen-error-code"] == "CONFLICT"
    _bring(parts, retries, first, headers={REDRIVES: 1})
    assert [event for event, _ in _ends(backend)] == ["failed", "complete"]


def test_a_redriven_job_in_hand_can_be_canceled(
    flat: Parts, retries: Retries, order: Order, backend: WebhookReceiver, tmp_path: Path
) -> None:
    """Its earlier failure is written down, and does not keep it from being called off."""
    parts = _on_bucket(flat, tmp_path)
    late = _failed_once(parts, retries, order)

    def draw(*_: Any, on_step: Callable[[int], None], **__: Any) -> Image.Image:
        do_control(json.dumps({"generation_id": order["generation_id"]}).encode(), parts)
        on_step(1)
        raise AssertionError("drawn on")

    _bring(replace(parts, draw=draw), retries, late, headers={REDRIVES: 1})
    told = [hook.body["error_code"] for hook in backend.received if hook.event == "failed"]
    assert told == ["LORA_NOT_FOUND", "CANCELED"]


def test_a_redriven_job_that_waits_can_be_canceled(
    flat: Parts, retries: Retries, order: Order, backend: WebhookReceiver, tmp_path: Path
) -> None:
    """It has failed and is not drawn again; a picture that is done stays."""
    parts = _on_bucket(flat, tmp_path)
    late = _failed_once(parts, retries, order)
    _bring(parts, retries, order | {"generation_id": 501})
    for number in (order["generation_id"], 501):
        do_control(json.dumps({"generation_id": number}).encode(), parts)
    _bring(replace(parts, draw=None), retries, late, headers={REDRIVES: 1})
    told = [hook.body.get("error_code") for hook in backend.received if hook.event != "progress"]
    assert told == ["LORA_NOT_FOUND", None, "CANCELED"]


@pytest.mark.parametrize("body", [b"{}", b'{"generation_id": null}', b"[]", b"\xff"])
def test_a_control_message_without_an_id_is_named(
    flat: Parts, body: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """It can be no job's."""
    do_control(body, flat)
    assert [record.getMessage() for record in caplog.records] == [
        "not canceled: a control message names no generation"
    ]


def test_a_job_by_itself_is_attempted_once() -> None:
    """Without retries an error that may pass is reported as it is."""
    error = StorageError("away")
    assert RetryState().final_error(error) is error and not RetryState().is_retryable(error)


def test_no_progress_after_the_end(
    flat: Parts, retries: Retries, order: Order, tmp_path: Path
) -> None:
    """The same job twice in one worker: the second tells the end, after the first's progress."""

    def draw(*_: Any, on_step: Callable[[int], None], **__: Any) -> Image.Image:
        for step in range(51):
            on_step(step)
        return Image.new("RGB", (512, 512))

    def answer(hook: ReceivedWebhook) -> int:
        if hook.event == "progress":
            time.sleep(0.2)  # a slow receiver, not a pause of the test's
        return 200

    with WebhookReceiver(answer) as slow:
        parts = replace(_on_bucket(flat, tmp_path), draw=draw, allowed_origins=(slow.url,))
        twice = [order | {"webhook_url": slow.url}] * 2
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(partial(_bring, parts, retries), twice))
        events = [hook.event for hook in slow.received]
    assert events == ["progress"] * 5 + ["complete"] * 2


def test_a_silent_receiver_holds_no_hand(
    flat: Parts, retries: Retries, order: Order, tmp_path: Path, monkeypatch: Any
) -> None:
    """Who comes next goes to a retry queue at once; only the last attempt waits again."""
    monkeypatch.setattr("stylegen.worker.report.TIMEOUT", 0.1)
    monkeypatch.setattr("stylegen.worker.report.PATIENCE", 0.1)
    short = partial(deliver_event, timeout=0.5)
    monkeypatch.setattr("stylegen.worker.report.deliver_event", short)
    hangs = threading.Event()
    with WebhookReceiver(lambda hook: 200 if hangs.wait(60) else 500) as silent:
        parts = replace(_on_bucket(flat, tmp_path), allowed_origins=(silent.url,))
        for number, attempt in ((1, 0), (2, 0), (3, 2)):
            fields = order | {"generation_id": number, "webhook_url": silent.url}
            _bring(parts, retries, fields, headers={ATTEMPT: attempt})
        hangs.set()
        asked = [hook.body["generation_id"] for hook in silent.received if hook.event != "progress"]
    assert asked == [1, 3]


def test_a_spent_job_touches_nothing(
    flat: Parts, retries: Retries, order: Order, backend: WebhookReceiver
) -> None:
    """What kills a worker may be the LoRA's file or the signature: neither is fetched again."""

    class Deadly(FolderStore):
        """A bucket whose files kill."""

        def fetch(self, url: str, target: Path, *, max_bytes: int) -> None:
            raise AssertionError("fetched")

    parts = replace(flat, store=Deadly(flat.store.root))  # type: ignore[attr-defined]
    mark = {"signature": {"image_url": "s3://models/mark.png"}}
    _bring(parts, retries, order | mark, headers={REDELIVERIES: 2}, redelivered=True)
    (failed,) = backend.wait_for(1, "failed")
    assert failed.body["error_code"] == "RETRIES_EXHAUSTED"


def test_a_retry_queue_that_would_keep_messages(rabbit: RabbitNode, retries: Retries) -> None:
    """A plain queue under its name has no end: the message is set aside, with the reason."""
    name = f"{retries.queue_name}.retry.1s"
    publish_job(b"parked", url=rabbit.url, queue_name=name)
    retries.schedule_retry(Delivery(0, 1, b"{}"))
    assert rabbit.queue_state(name) == (1, 0)
    ((headers, body),) = dead_letter(retries)
    assert (headers["x-stylegen-error-code"], headers[ATTEMPT], body) == ("WRONG_QUEUE", 0, b"{}")
    assert name in headers["x-stylegen-error"]


def test_a_cancellation_is_a_failure_on_record(tmp_path: Path) -> None:
    """Whichever worker meets the job later reports what stands there."""
    store = FolderStore(tmp_path)
    assert cancel_job(7, store)
    manifest = find_manifest(store, 7, "any job's digest")
    assert manifest and (manifest.event, manifest.event_id) == ("failed", "failed_7")
    assert manifest.payload["error_code"] == "CANCELED"
    stored = json.loads(store.read(manifest_key(7)) or b"")
    assert stored["job"] == "*", "as workers of other versions read and write it"


def test_an_id_to_cancel_is_exact(monkeypatch: Any, tmp_path: Path, capsys: Any) -> None:
    """0500 is a string's id; 500 is not canceled by it."""
    for key, value in {
        "INTERNAL_API_TOKEN": TOKEN,
        "WEBHOOK_ALLOWED_ORIGINS": "https://api.example.com",
        "RABBITMQ_URL": "amqp://guest:guest@127.0.0.1:1/%2f",
        "STYLEGEN_STORAGE_FOLDER": str(tmp_path),
    }.items():
        monkeypatch.setenv(key, value)
    main(["--cancel", "0500"])
    assert [path.name for path in (tmp_path / "manifests").iterdir()] == ["gen_0500.json"]
    assert capsys.readouterr()
