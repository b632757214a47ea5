"""What producers write, and full queues refuse: real broker, real messages, no job harmed."""

import gzip
import json
import struct
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pika
import pytest
from conftest import examples
from corpus.headers import PROPERTIES
from hypothesis import given
from hypothesis import strategies as st
from painter import ORDER, painting_parts
from pika.adapters.blocking_connection import BlockingChannel
from rabbit import Broker
from waiting import wait_until

from stylegen.queue import (
    ATTEMPT,
    REDELIVERIES,
    REDRIVES,
    Delivery,
    Retries,
    connect,
    ensure_queue,
    publish_control,
    redrive,
    consume_queue,
)
from stylegen.queue.connection import _TolerantConnection
from stylegen.queue.delivery import (
    EXPIRATION,
    copy_properties,
    foreign_headers,
    from_pika,
    returned_queue,
)
from stylegen.storage import FolderStore
from stylegen.webhook import WebhookReceiver
from stylegen.worker import do_control, do_delivery

HEADERS = {
    "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    "tracestate": "vendor=1",
    "x-tenant": {"name": "김하늘", "plan": [1, None, True]},
    "raw": b"\xff\xfe",
}
SENT = {
    "content_type": "application/vnd.job+json",
    "priority": 7,
    "correlation_id": "c-1",
    "message_id": "m-1",
    "reply_to": "answers",
    "type": "job",
    "app_id": "backend",
    "cluster_id": "c",
    "timestamp": 1_700_000_000,
}
FULL = {"x-max-length": 1, "x-overflow": "reject-publish"}


@contextmanager
def channel_to(rabbit: Broker) -> Iterator[BlockingChannel]:
    """A producer's channel, with confirms; messages in flight on it come back at the end."""
    connection = connect(rabbit.url)
    try:
        channel = connection.channel()
        channel.confirm_delivery()
        yield channel
    finally:
        connection.close()


@pytest.fixture(name="retries")
def _retries(rabbit: Broker) -> Retries:
    return Retries(rabbit.url, f"test-{uuid.uuid4().hex}", (1,), max_redeliveries=3)


def publish(rabbit: Broker, queue: str, body: bytes = b"{}", **properties: Any) -> None:
    """Publish as a producer does, into a queue that is made plain if there is none."""
    with channel_to(rabbit) as channel:
        ensure_queue(channel.connection, queue)
        channel.basic_publish("", queue, body, pika.BasicProperties(**properties))


def take(rabbit: Broker, queue: str) -> Delivery:
    """Take the message that must come: as a worker gets it."""
    found: list[Delivery] = []

    def look() -> bool:
        with channel_to(rabbit) as channel:
            channel.queue_declare(queue, passive=True)
            method, properties, body = channel.basic_get(queue, auto_ack=True)
            found.extend([from_pika(0, method, properties, body, "guest")] if method else [])
        return bool(found)

    wait_until(look)
    return found[0]


def fall(rabbit: Broker, queue: str) -> None:
    """A worker dies with the queue's next message in flight."""
    with channel_to(rabbit) as channel:
        assert channel.basic_get(queue)[0]


def said(delivery: Delivery) -> dict[str, Any]:
    """What a message says of itself, but for what is ours and the broker's."""
    properties = delivery.properties
    headers = {name: properties.headers.get(name) for name in HEADERS}
    return {name: getattr(properties, name) for name in SENT} | {"headers": headers}


WAYS: dict[str, Callable[[Retries, Delivery], object]] = {
    "retry": lambda retries, delivery: retries.schedule_retry(delivery),
    "redelivery": lambda retries, delivery: retries.requeue(delivery),
    "dead letter": lambda retries, delivery: retries.dead_letter(delivery, "TIMEOUT", "late"),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_copy_says_what_its_producer_said(rabbit: Broker, retries: Retries, way: str) -> None:
    """Twice the same way; a dead letter is moved back. Bytes, properties, headers stay."""
    queue = retries.queue_name
    publish(rabbit, queue, b"\xff", **SENT, headers=HEADERS, expiration="600000", user_id="guest")
    wanted = SENT | {"headers": HEADERS}
    for _ in range(2):
        delivery = take(rabbit, queue)
        WAYS[way](retries, delivery)
        if way == "dead letter":
            assert rabbit.queue_state(f"{queue}.dead") == (1, 0)
            assert redrive(rabbit.url, queue) == 1
    delivery = take(rabbit, queue)
    assert (delivery.body, said(delivery)) == (b"\xff", wanted)
    assert delivery.properties.delivery_mode == 2


def test_an_expiration_shortens_no_pause_and_drops_no_letter(
    rabbit: Broker, retries: Retries
) -> None:
    """Of 1 ms: it waits a retry's whole second, and stays a dead letter; then it is what it was."""
    queue = retries.queue_name
    with channel_to(rabbit) as channel:
        channel.queue_declare(queue, durable=True)
    sent = Delivery(0, 1, b"{}", properties=pika.BasicProperties(expiration="1"))
    began = time.monotonic()
    retries.schedule_retry(sent)
    delivery = take(rabbit, queue)
    assert time.monotonic() - began >= 1.0
    assert delivery.properties.expiration is None
    retries.dead_letter(delivery, "TIMEOUT", "late")
    letter = take(rabbit, f"{queue}.dead")
    assert letter.properties.expiration is None
    long = Delivery(0, 1, b"{}", properties=pika.BasicProperties(expiration="600000"))
    retries.dead_letter(long, "TIMEOUT", "late")
    assert redrive(rabbit.url, queue) == 1
    assert take(rabbit, queue).properties.expiration == "600000"


@pytest.mark.parametrize("text", ["", "abc", "-1", "1.5", "99999999999", "²", None, 5.5])
def test_a_made_up_expiration_is_none(rabbit: Broker, retries: Retries, text: Any) -> None:
    """The broker would close the channel of who publishes it."""
    delivery = Delivery(0, 1, b"{}", {"x-stylegen-expiration": text})
    retries.requeue(delivery)
    assert take(rabbit, retries.queue_name).properties.expiration is None


def test_another_accounts_message_is_sent_on(rabbit: Broker, retries: Retries) -> None:
    """`user_id` is checked by the broker: a copy has the worker's."""
    url = rabbit.add_user()
    connection = connect(url)
    connection.channel().queue_declare(retries.queue_name, durable=True)
    theirs = pika.BasicProperties(user_id=urlsplit(url).username, headers={ATTEMPT: 1})
    connection.channel().basic_publish("", retries.queue_name, b"{}", theirs)
    connection.close()
    delivery = take(rabbit, retries.queue_name)
    assert delivery.counts.attempt == 0
    retries.requeue(delivery)
    assert take(rabbit, retries.queue_name).properties.user_id == "guest"


def _deep(levels: int) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for _ in range(levels):
        table = {"": table}
    return table


ODD: dict[str, dict[str, Any]] = {name: PROPERTIES[name] for name in PROPERTIES} | {
    "100 KiB": {"headers": {"x-large": "x" * 100 * 1024, "traceparent": "00"}},
    "127 KiB in a thousand": {"headers": {f"x-{n}": "x" * 115 for n in range(1000)}},
    "as deep as can be read": {"headers": {"x-deep": _deep(200), "traceparent": "00"}},
    "a history that goes round": {
        "headers": {"x-death": [{"count": 1, "reason": "expired", "queue": "QUEUE"}]}
    },
    "copies for others": {"headers": {"CC": ["QUEUE"], "BCC": ["QUEUE"]}},
}


@pytest.mark.parametrize("name", ODD)
def test_odd_properties_keep_no_message_from_its_way(
    rabbit: Broker, retries: Retries, name: str
) -> None:
    """Retried, redelivered, dead-lettered and moved back: there is one message each time."""
    queue = retries.queue_name
    properties = pika.BasicProperties(**ODD[name])
    for death in (properties.headers or {}).get("x-death", []):
        death["queue"] = queue
    copies = (properties.headers or {}).get("CC")
    with channel_to(rabbit) as channel:
        channel.queue_declare(queue, durable=True)
        channel.basic_publish("", queue, b"{}", properties)
    delivery = take(rabbit, queue)
    if copies:
        delivery.headers["CC"][:] = [queue]  # type: ignore[index]
    for way in WAYS.values():
        way(retries, delivery)
        if way is WAYS["dead letter"]:
            assert redrive(rabbit.url, queue) == 1
        delivery = take(rabbit, queue)
        assert rabbit.queue_state(queue) == (0, 0)
        if "traceparent" in delivery.headers:
            assert delivery.headers["traceparent"] == "00"


def test_the_foreign_headers_that_fit_are_kept(rabbit: Broker, retries: Retries) -> None:
    """One that can't be sent on takes no other with it."""
    headers = {
        "x-beyond": 10**300,
        "x-large": "x" * 2**18,
        "traceparent": "00",
        "x-deep": _deep(490),
    }
    retries.requeue(Delivery(0, 1, b"{}", headers))
    kept = take(rabbit, retries.queue_name).headers
    assert {name: kept.get(name) for name in headers} == dict.fromkeys(headers) | {
        "traceparent": "00"
    }


# Any properties

FLAGS = {
    name.removeprefix("FLAG_").lower(): flag
    for name, flag in vars(pika.BasicProperties).items()
    if name.startswith("FLAG_")
}
SHORT_TEXTS = sorted(set(FLAGS) - {"headers", "delivery_mode", "priority", "timestamp"})
SIZES = dict(zip(b"tbBUsuIiLlfdTD", (1, 1, 1, 2, 2, 2, 4, 4, 8, 8, 4, 8, 8, 5), strict=True))
"""Bytes of each kind of value whose length is fixed (AMQP 0-9-1, 4.2.1, and RabbitMQ's own)."""


def short_text(data: bytes) -> bytes:
    """With its length in a byte."""
    return bytes([len(data)]) + data


def sized(data: bytes) -> bytes:
    """With its length in four."""
    return struct.pack(">I", len(data)) + data


TEXTS = st.binary(max_size=12) | st.text(max_size=12).map(str.encode)
NAMES = st.sampled_from(
    [name.encode() for name in (ATTEMPT, REDELIVERIES, REDRIVES, EXPIRATION, "x-death", "CC")]
)
FIXED = st.one_of(
    (st.binary(min_size=size, max_size=size) | st.just(b"\xff" * size)).map(bytes([kind]).__add__)
    for kind, size in SIZES.items()
)
VALUES = st.recursive(
    FIXED
    | st.just(b"V")
    | st.tuples(st.sampled_from([b"S", b"x"]), TEXTS.map(sized)).map(b"".join),
    lambda inner: st.lists(inner, max_size=3).map(lambda items: b"A" + sized(b"".join(items)))
    | st.lists(st.tuples(TEXTS.map(short_text), inner).map(b"".join), max_size=3).map(
        lambda items: b"F" + sized(b"".join(items))
    ),
    max_leaves=6,
)
TABLES = st.lists(st.tuples((NAMES | TEXTS).map(short_text), VALUES).map(b"".join), max_size=5).map(
    lambda items: sized(b"".join(items))
)
PARTS = {name: TEXTS.map(short_text) for name in SHORT_TEXTS} | {
    "headers": TABLES,
    "delivery_mode": st.binary(min_size=1, max_size=1),
    "priority": st.binary(min_size=1, max_size=1),
    "timestamp": st.binary(min_size=8, max_size=8)
    | st.integers(0, 2**33).map(lambda seconds: struct.pack(">Q", seconds)),
    "user_id": st.just(short_text(b"guest")) | TEXTS.map(short_text),
    "expiration": (TEXTS | st.integers(0, 2**33).map(lambda n: str(n).encode())).map(short_text),
}


def read(properties: bytes) -> pika.BasicProperties:
    """What a connection makes of a message's properties as they come from the broker."""
    content = struct.pack(">HHQ", pika.BasicProperties.INDEX, 0, 2) + properties
    connection = _TolerantConnection.__new__(_TolerantConnection)
    connection._frame_buffer = b"\x02\0\1" + sized(content) + b"\xce"
    used, frame = connection._read_frame()
    assert used == len(connection._frame_buffer)
    return frame.properties


@dataclass(frozen=True)
class Kept(Retries):
    """Sends nothing; keeps where a message would go."""

    ways: list[str] = field(default_factory=list)

    def requeue(self, delivery: Delivery) -> None:
        """Keep the way."""
        self.ways.append("redelivered")

    def dead_letter(self, delivery: Delivery, code: str, text: str) -> None:
        """Keep the way; its reason must be one that can be written."""
        assert text.encode()
        self.ways.append(code)


PARTS_OF_A_WORKER = painting_parts()


@examples(100)
@given(chosen=st.fixed_dictionaries({}, optional=PARTS), redelivered=st.booleans())
def test_any_properties_keep_no_message_from_its_way(
    chosen: dict[str, bytes], redelivered: bool
) -> None:
    """Whatever the broker lets pass: it is settled, and what is sent on says the same."""
    ordered = sorted(chosen, key=lambda name: -FLAGS[name])
    flags = struct.pack(">H", sum(FLAGS[name] for name in chosen))
    properties = read(flags + b"".join(chosen[name] for name in ordered))
    method = pika.spec.Basic.Deliver(delivery_tag=1, redelivered=redelivered)
    delivery, kept = from_pika(0, method, properties, b"no job", "guest"), Kept("amqp://localhost")
    counts = delivery.counts.to_headers()
    assert all(0 <= count <= 1000 for count in counts.values())
    assert properties.user_id == "guest" or not any(counts.values())
    do_delivery(delivery, PARTS_OF_A_WORKER, kept)
    assert kept.ways in (["redelivered"], ["INVALID_MESSAGE"])
    for expires in (False, True):
        copied = copy_properties(delivery, counts, expires=expires)
        copied.user_id = "guest"
        again = read(b"".join(copied.encode()))
        assert all(
            getattr(again, name) == getattr(properties, name)
            for name in {*SHORT_TEXTS, "priority", "timestamp"} - {"user_id", "expiration"}
        )
        twice = from_pika(0, method, again, b"", "guest")
        assert twice.counts == delivery.counts
        assert foreign_headers(twice.headers) == foreign_headers(delivery.headers)


# Counts


@contextmanager
def consuming(
    retries: Retries, on_delivery: Callable[[Delivery], None], **options: Any
) -> Iterator[list[float]]:
    """A consumer on a thread, and when it connected; ends in good order."""
    stop, connections = threading.Event(), list[float]()
    own: dict[str, Any] = {"url": retries.url, "stop": stop}
    own["on_ready"] = lambda: connections.append(time.monotonic())
    thread = threading.Thread(
        target=consume_queue,
        args=(retries.queue_name, on_delivery),
        kwargs=own | options,
        daemon=True,
    )
    thread.start()
    wait_until(lambda: connections)
    try:
        yield connections
    finally:
        stop.set()
        thread.join(60)
        assert not thread.is_alive(), "the consumer did not end"


FORGED = [1, 2, 3, 20, 999, 1000, 1001, 2**31, 2**62, -1, -(2**40), "7", True, [1]]


@pytest.mark.parametrize("value", FORGED)
@pytest.mark.parametrize("count", [ATTEMPT, REDELIVERIES, REDRIVES])
def test_a_producers_counts_are_none(
    rabbit: Broker, retries: Retries, count: str, value: Any
) -> None:
    """Whatever it writes, its message has been through nothing; then it is counted from one."""
    publish(rabbit, retries.queue_name, headers={count: value, "x-own": 1})
    delivery = take(rabbit, retries.queue_name)
    assert (delivery.counts.attempt, delivery.counts.redeliveries) == (0, 0)
    assert delivery.counts.redrives == 0 and delivery.headers["x-own"] == 1
    retries.requeue(delivery)
    assert take(rabbit, retries.queue_name).counts.redeliveries == 1


@pytest.mark.parametrize("value", [1, 999, 1000, 1001, 2**40])
def test_made_up_redrives_make_no_redrive_void(
    rabbit: Broker, retries: Retries, backend: WebhookReceiver, value: int
) -> None:
    """The job fails, an operator mends it and moves it back: it is done."""
    with channel_to(rabbit) as channel:
        channel.queue_declare(retries.queue_name, durable=True)
    body = json.dumps(ORDER | {"webhook_url": backend.url}).encode()
    broken = []

    def draw(*args: Any, **options: Any) -> Any:
        if not broken:
            broken.append(1)
            raise RuntimeError("a bug")
        return painting_parts().draw(*args, **options)

    parts = replace(painting_parts(backend.url), draw=draw, idempotent=True)
    publish(rabbit, retries.queue_name, body, headers={REDRIVES: value})
    with consuming(retries, partial(do_delivery, parts=parts, retries=retries)):
        assert backend.wait_for(1, "failed", timeout=30)
        retries.dead_letter(Delivery(0, 1, body), "GENERATION_FAILED", "a bug")
        assert redrive(rabbit.url, retries.queue_name) == 1
        assert backend.wait_for(1, "complete", timeout=30)


# Full queues


def _make_full(rabbit: Broker, queue: str) -> None:
    """A worker has died with a job of a queue in flight, and the queue has filled up since."""
    with channel_to(rabbit) as worker, channel_to(rabbit) as producer:
        producer.queue_declare(queue, durable=True, arguments=FULL)
        producer.basic_publish("", queue, b"redelivered")
        assert worker.basic_get(queue)[0]
        producer.basic_publish("", queue, b"next")


def test_a_full_queue_stops_nobody(
    rabbit: Broker, retries: Retries, caplog: pytest.LogCaptureFixture
) -> None:
    """What it refuses is counted beside it and done; the connection stays, and the log names it."""
    queue = retries.queue_name
    _make_full(rabbit, queue)
    done: list[tuple[bytes, int]] = []
    with channel_to(rabbit) as producer:

        def work(delivery: Delivery) -> None:
            if delivery.redelivered:
                wait_until(lambda: refill(producer))
                retries.requeue(delivery)
            else:
                done.append((delivery.body, delivery.counts.redeliveries))

        def refill(channel: BlockingChannel) -> bool:
            try:
                channel.basic_publish("", queue, b"more")
            except pika.exceptions.NackError:
                return True
            return False

        with consuming(retries, work) as connections:
            wait_until(lambda: (b"redelivered", 1) in done)
    assert len(connections) == 1
    assert f"queue {queue} is full" in caplog.text


@pytest.mark.parametrize("kind", ["classic", "quorum"])
def test_what_kills_workers_ends_though_its_queue_is_full(
    rabbit: Broker, retries: Retries, backend: WebhookReceiver, kind: str
) -> None:
    """It is counted beside the full queue each time, and in the end it is a dead letter."""
    queue, parts = retries.queue_name, painting_parts(backend.url)
    with channel_to(rabbit) as producer:
        arguments = FULL | {"x-queue-type": kind, "x-max-length": 3}
        producer.queue_declare(queue, durable=True, arguments=arguments)
        body = json.dumps(ORDER | {"webhook_url": backend.url}).encode()
        producer.basic_publish("", queue, body)
        place = queue
        for _ in range(retries.max_redeliveries):
            fall(rabbit, place)
            redelivered = _look(rabbit, place)
            wait_until(lambda: _is_full(producer, queue))
            assert redelivered.redelivered and redelivered.body == body
            do_delivery(redelivered, parts, retries)
            place = returned_queue(queue)
        fall(rabbit, place)
        do_delivery(_look(rabbit, place), parts, retries)
    assert rabbit.queue_state(f"{queue}.dead") == (1, 0)
    (failed,) = backend.wait_for(1, "failed")
    assert failed.body["error_code"] == "RETRIES_EXHAUSTED"


def _is_full(producer: BlockingChannel, queue: str) -> bool:
    try:
        producer.basic_publish("", queue, b"{}")
    except pika.exceptions.NackError:
        return True
    return False


def _look(rabbit: Broker, queue: str) -> Delivery:
    """The first message of a queue, as its redelivery; it is acknowledged, as a worker would."""
    with channel_to(rabbit) as channel:
        method, properties, body = channel.basic_get(queue, auto_ack=True)
    return from_pika(0, method, properties, body, "guest")


def test_full_dead_letters_keep_the_message_and_the_connection(
    rabbit: Broker, retries: Retries, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is handed back after a pause, again and again; the next job is done meanwhile."""
    monkeypatch.setattr("stylegen.queue.executor.REFUSED_PAUSE", 0.1)
    queue, done = retries.queue_name, []
    with channel_to(rabbit) as channel:
        channel.queue_declare(f"{queue}.dead", durable=True, arguments=FULL)
        channel.basic_publish("", f"{queue}.dead", b"an old letter")
    for body in (b"wrong", b"right"):
        publish(rabbit, queue, body)

    def work(delivery: Delivery) -> None:
        if delivery.redelivered:
            return retries.requeue(delivery)
        if delivery.body == b"wrong":
            retries.dead_letter(delivery, "INVALID_MESSAGE", "no job")
        return done.append(delivery.body)

    with consuming(retries, work) as connections:
        wait_until(lambda: done)
        take(rabbit, f"{queue}.dead")
        wait_until(lambda: len(done) == 2)
        letter = take(rabbit, f"{queue}.dead")
    assert (done, letter.body) == ([b"right", b"wrong"], b"wrong") and len(connections) == 1


# Priority


@pytest.mark.parametrize("prefetch", [1, 4])
def test_an_urgent_job_whose_worker_died_comes_first_again(
    rabbit: Broker, retries: Retries, backend: WebhookReceiver, prefetch: int
) -> None:
    """Of thirty-one, on a queue with priorities: not thirty-first."""
    queue = retries.queue_name
    with channel_to(rabbit) as channel:
        channel.queue_declare(queue, durable=True, arguments={"x-max-priority": 9})
    for number in range(31):
        body = json.dumps(ORDER | {"generation_id": number + 1, "webhook_url": backend.url})
        publish(rabbit, queue, body.encode(), priority=0 if number else 9)
    fall(rabbit, queue)
    parts = painting_parts(backend.url)
    work = partial(do_delivery, parts=parts, retries=retries)
    with consuming(retries, work, prefetch_count=prefetch):
        ends = backend.wait_for(31, "complete", timeout=60)
    order = [hook.body["generation_id"] for hook in ends]
    assert order.index(1) < prefetch and sorted(order) == list(range(1, 32))


# What can't be read


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "zstd", "br", "utf-16", "x\nInjected: 1"])
def test_a_foreign_encoding_is_named(
    rabbit: Broker, retries: Retries, backend: WebhookReceiver, encoding: str
) -> None:
    """The dead letter's reason says why the message could not be read."""
    body = gzip.compress(json.dumps(ORDER).encode(), mtime=0)
    publish(rabbit, retries.queue_name, body, content_encoding=encoding)
    do_delivery(take(rabbit, retries.queue_name), painting_parts(backend.url), retries)
    letter = take(rabbit, f"{retries.queue_name}.dead")
    assert (letter.headers["x-stylegen-error-code"], letter.body) == ("INVALID_MESSAGE", body)
    assert f"its content_encoding is {encoding!a}" in letter.headers["x-stylegen-error"]
    assert letter.properties.content_encoding == encoding


@pytest.mark.parametrize("encoding", [None, "", "utf-8", "UTF8", "gzip"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_what_can_be_read_is_done_whatever_its_label(
    rabbit: Broker,
    retries: Retries,
    backend: WebhookReceiver,
    encoding: str | None,
    mark: bytes,
) -> None:
    """Also behind a byte order mark."""
    body = mark + json.dumps(ORDER | {"webhook_url": backend.url}).encode()
    publish(rabbit, retries.queue_name, body, content_encoding=encoding)
    do_delivery(take(rabbit, retries.queue_name), painting_parts(backend.url), retries)
    assert backend.wait_for(1, "complete")


@pytest.mark.parametrize("encoding", [None, "", "utf-8", "UTF8", "identity"])
def test_a_plain_encoding_is_no_reason(
    rabbit: Broker, retries: Retries, backend: WebhookReceiver, encoding: str | None
) -> None:
    """A message that can't be read in spite of it is refused for what it is."""
    publish(rabbit, retries.queue_name, b"no JSON", content_encoding=encoding)
    do_delivery(take(rabbit, retries.queue_name), painting_parts(backend.url), retries)
    letter = take(rabbit, f"{retries.queue_name}.dead")
    assert "content_encoding" not in letter.headers["x-stylegen-error"]


# Cancellations


def _cancel(number: int | str) -> bytes:
    return json.dumps({"generation_id": number}).encode()


def test_a_flood_of_cancellations_writes_nothing(tmp_path: Path, backend: WebhookReceiver) -> None:
    """Twenty thousand ids that nobody has seen; the newest are remembered for jobs to come."""
    store = FolderStore(tmp_path)
    store.put("models/style_10.safetensors", b"tensors", "")
    parts = replace(painting_parts(backend.url), store=store, idempotent=True)
    do_control(_cancel("early"), parts)
    before = sorted(tmp_path.rglob("*"))
    for number in range(1, 20_001):
        do_control(_cancel(number), parts)
    do_control(_cancel("mine"), parts)
    assert sorted(tmp_path.rglob("*")) == before
    assert len(vars(vars(parts.running_jobs)["_canceled"])["_ids"]) == 10_000
    retries = Retries("amqp://nobody.example")
    for number in ("mine", 20_000, "another"):
        fields = ORDER | {"generation_id": number, "webhook_url": backend.url}
        do_delivery(Delivery(0, 1, json.dumps(fields).encode()), parts, retries)
    ends = [hook for hook in backend.received if hook.event != "progress"]
    codes = [hook.body.get("error_code") for hook in ends]
    assert codes == ["CANCELED", "CANCELED", None]


def test_control_messages_wait_at_the_broker(rabbit: Broker, retries: Retries) -> None:
    """While one is worked on, a worker holds few others; the oldest of too many are dropped."""
    gate, heard = threading.Event(), list[bytes]()

    def slow(body: bytes) -> None:
        gate.wait(60)
        heard.append(body)

    exchange = f"{retries.queue_name}.control"

    def waiting() -> tuple[int, int]:
        states = rabbit.queue_states().items()
        return next(state for name, state in states if name.startswith(f"{exchange}."))

    with consuming(retries, print, on_control=slow):
        with channel_to(rabbit) as channel:
            for number in range(12_000):
                channel.basic_publish(exchange, "", b"%d" % number)
        wait_until(lambda: waiting() == (10_000, 16))
        publish_control(b"last", url=rabbit.url, queue_name=retries.queue_name)
        gate.set()
        wait_until(lambda: b"last" in heard, timeout=60)
        wait_until(lambda: waiting() == (0, 0))
    assert heard[:16] == [b"%d" % number for number in range(16)] and len(heard) == 10_016
