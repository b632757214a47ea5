"""The consumer against a real broker: the ways in which a message could get lost or done twice."""

import logging
import re
import ssl
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import datetime
from pathlib import Path
from urllib.parse import quote

import pika
import pytest
from certificates import write_chain
from rabbit import RabbitNode, free_ports
from tenacity import wait_fixed
from waiting import wait_until

from stylegen.queue import (
    REDELIVERIES,
    CallbackRunner,
    Delivery,
    DeliveryCounts,
    JobExecutor,
    connect,
    connection_parameters,
    consume_queue,
    ensure_queue,
    publish_control,
    publish_job,
    connection,
    reconnecting,
    start_rabbitmq_consumer,
    publish_with_retries,
)
from stylegen.queue.delivery import foreign_headers


@pytest.fixture(name="tls", scope="module")
def _tls(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Path, Path]:
    """The broker's port for ``amqps://``, its chain of certificates and its key."""
    (port,) = free_ports(1)
    return port, *write_chain(tmp_path_factory.mktemp("tls"), "127.0.0.1")


@pytest.fixture(name="rabbit", scope="module")
def _rabbit(tls: tuple[int, Path, Path]) -> Iterator[RabbitNode]:
    """A node of its own, since it is killed here; it speaks TLS, too."""
    node, (port, chain, key) = RabbitNode(), tls
    with (node.folder / "rabbitmq.conf").open("a", encoding="utf-8") as config:
        config.write(
            f"listeners.ssl.1 = 127.0.0.1:{port}\nssl_options.cacertfile = {chain}\n"
            f"ssl_options.certfile = {chain}\nssl_options.keyfile = {key}\n"
            "ssl_options.verify = verify_none\n"
        )
    with node:
        yield node


@pytest.fixture
def queue(rabbit: RabbitNode) -> str:
    """A queue of this test's own: durable, plain, empty."""
    name = f"test-{uuid.uuid4().hex}"
    with _channel(rabbit) as channel:
        channel.queue_declare(name, durable=True)
    return name


@contextmanager
def _channel(rabbit: RabbitNode) -> Iterator[pika.adapters.blocking_connection.BlockingChannel]:
    connection = pika.BlockingConnection(pika.URLParameters(rabbit.url))
    try:
        yield connection.channel()
    finally:
        connection.close()


def _ready_messages(rabbit: RabbitNode, queue: str) -> int:
    with _channel(rabbit) as channel:
        return channel.queue_declare(queue, passive=True).method.message_count


class _Poisoned(RuntimeError):
    """What a test's callback may raise; anything else fails the test."""


class _Consumer:
    """A consumer on a thread, its callback's record, and a gate that holds jobs back if `held`."""

    def __init__(
        self, rabbit: RabbitNode, queue: str, *, held: bool = False, **options: object
    ) -> None:
        self.seen: list[bytes] = []
        self.done: list[bytes] = []
        self.connections = 0
        self.stop = threading.Event()
        self.gate = threading.Event()
        if not held:
            self.gate.set()
        self.error: BaseException | None = None
        self._rabbit, self._queue, self._options = rabbit, queue, options
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        try:
            options = {"on_delivery": self._callback} | self._options
            consume_queue(
                self._queue,
                url=self._rabbit.url,
                stop=self.stop,
                on_ready=self._ready,
                **options,
            )
        except BaseException as error:  # pylint: disable=broad-exception-caught
            self.error = error

    def _callback(self, delivery: Delivery) -> None:
        body = delivery.body
        self.seen.append(body)
        if body == b"poison":
            raise _Poisoned("the result could not be reported")
        assert self.gate.wait(60)
        self.done.append(body)

    def _ready(self) -> None:
        self.connections += 1

    def wait_seen(self, count: int) -> None:
        """Wait until so many jobs have begun."""
        wait_until(lambda: len(self.seen) >= count)

    def wait_done(self, count: int) -> None:
        """Wait until so many jobs have ended."""
        wait_until(lambda: len(self.done) >= count)

    def wait_connected(self, count: int = 1) -> None:
        """Wait until it has been registered with the broker so many times."""
        wait_until(lambda: self.connections >= count)

    def join(self) -> None:
        """Wait until the consumer has returned or raised."""
        self.thread.join(30)
        assert not self.thread.is_alive()

    def __enter__(self) -> "_Consumer":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.gate.set()
        self.join()
        if self.error and not isinstance(self.error, _Poisoned):
            raise self.error


def test_a_message_is_consumed_and_acknowledged(rabbit: RabbitNode, queue: str) -> None:
    body = b'{"artist_name": "\xea\xb9\x80"} not JSON at all \xff'
    publish_job(body, url=rabbit.url, queue_name=queue)
    with _Consumer(rabbit, queue) as consumer:
        consumer.wait_done(1)
    assert consumer.done == [body] and consumer.error is None
    assert rabbit.queue_state(queue) == (0, 0)


def test_a_delivery_says_all_that_the_broker_said(rabbit: RabbitNode, queue: str) -> None:
    """Body, headers, and how long ago it was published, where its producer says when."""
    deliveries: list[Delivery] = []
    dated = pika.BasicProperties(headers={"x-own": "7"}, timestamp=int(time.time()) - 100)
    with _channel(rabbit) as channel:
        channel.basic_publish("", queue, b"dated", dated)
        channel.basic_publish("", queue, b"undated")
    with _Consumer(rabbit, queue, on_delivery=deliveries.append):
        wait_until(lambda: len(deliveries) == 2)
    first, second = deliveries
    assert (first.body, first.headers, first.redelivered) == (b"dated", {"x-own": "7"}, False)
    assert first.age is not None and 100 <= first.age < 200
    assert (second.body, second.headers, second.age) == (b"undated", {}, None)


def test_a_control_message_reaches_every_worker(rabbit: RabbitNode, queue: str) -> None:
    """Byte for byte, those of this queue and no others; the queue itself stays as it is."""
    other = f"{queue}-other"
    heard: dict[str, list[bytes]] = {"first": [], "second": [], "elsewhere": []}
    threads = []

    def hear(body: bytes) -> None:
        threads.append(threading.current_thread())
        heard["first"].append(body)

    with (
        _Consumer(rabbit, queue, on_control=hear) as first,
        _Consumer(rabbit, queue, on_control=heard["second"].append) as second,
        _Consumer(rabbit, other, on_control=heard["elsewhere"].append) as elsewhere,
    ):
        for consumer in (first, second, elsewhere):
            consumer.wait_connected()
        publish_control(b'{"generation_id": "\xea\xb9\x80"}', url=rabbit.url, queue_name=queue)
        publish_control(b"{}", url=rabbit.url, queue_name=other)
        wait_until(lambda: all(heard.values()))
        assert threads[0] is not first.thread  # where nothing it does delays a heartbeat
        states = rabbit.queue_states().items()
        heard_by = {name: state for name, state in states if name.startswith(f"{queue}.control.")}
        assert list(heard_by.values()) == [(0, 0)] * 2, "nothing is left to acknowledge"
        own = next(iter(heard_by))
        closed = pytest.raises(pika.exceptions.ChannelClosedByBroker)
        with _channel(rabbit) as channel, closed as refused:
            channel.queue_declare(own, passive=True)
        assert refused.value.reply_code == 405, "a worker's own queue is exclusive"
    said = [b'{"generation_id": "\xea\xb9\x80"}']
    assert heard == {"first": said, "second": said, "elsewhere": [b"{}"]}
    assert rabbit.queue_state(queue) == (0, 0)


def test_a_control_message_may_come_before_any_worker(rabbit: RabbitNode, queue: str) -> None:
    """Its exchange is there then; a message that nobody hears is gone."""
    publish_control(b"{}", url=rabbit.url, queue_name=queue)
    with _channel(rabbit) as channel:
        channel.exchange_declare(f"{queue}.control", "fanout", durable=True, passive=True)


def test_control_messages_wait_for_a_busy_worker(rabbit: RabbitNode, queue: str) -> None:
    """Beyond those that it has in hand, at the broker."""
    free, heard = threading.Event(), []

    def hear(body: bytes) -> None:
        free.wait(60)
        heard.append(body)

    sent = [b'{"generation_id": %d}' % number for number in range(40)]
    with _Consumer(rabbit, queue, on_control=hear) as consumer:
        consumer.wait_connected()
        for body in sent:
            publish_control(body, url=rabbit.url, queue_name=queue)
        free.set()
        wait_until(lambda: len(heard) == len(sent))
    assert sorted(heard) == sorted(sent)


def test_a_published_job_is_persistent(rabbit: RabbitNode, queue: str) -> None:
    publish_job(b"{}", url=rabbit.url, queue_name=queue)
    with _channel(rabbit) as channel:
        _, properties, body = channel.basic_get(queue, auto_ack=True)
    assert (properties.delivery_mode, properties.content_type) == (2, "application/json")
    assert body == b"{}"


def test_a_job_may_outlast_three_heartbeats(rabbit: RabbitNode, queue: str) -> None:
    publish_job(b"slow", url=rabbit.url, queue_name=queue)
    with _Consumer(rabbit, queue, heartbeat=2, held=True) as consumer:
        consumer.wait_seen(1)
        time.sleep(7)
        consumer.gate.set()
        consumer.wait_done(1)
    assert (consumer.seen, consumer.connections) == ([b"slow"], 1)
    assert rabbit.queue_state(queue) == (0, 0)


def test_the_second_message_waits_in_the_queue(rabbit: RabbitNode, queue: str) -> None:
    with _Consumer(rabbit, queue, held=True) as consumer:
        for body in (b"first", b"second"):
            publish_job(body, url=rabbit.url, queue_name=queue)
        consumer.wait_seen(1)
        assert rabbit.queue_state(queue) == (1, 1)
        consumer.gate.set()
        consumer.wait_done(2)
    assert consumer.done == [b"first", b"second"]


@pytest.mark.parametrize("arguments", [{"x-max-priority": 5}, {"x-queue-type": "quorum"}])
def test_an_existing_queue_is_accepted_as_it_is(
    rabbit: RabbitNode, arguments: dict[str, object]
) -> None:
    name = f"test-{uuid.uuid4().hex}"
    with _channel(rabbit) as channel:
        channel.queue_declare(name, durable=True, arguments=arguments)
    publish_job(b"{}", url=rabbit.url, queue_name=name)
    with _Consumer(rabbit, name) as consumer:
        consumer.wait_done(1)
    assert (consumer.connections, _ready_messages(rabbit, name)) == (1, 0)


def test_a_missing_queue_is_made_as_the_producers_make_it(rabbit: RabbitNode) -> None:
    name = f"test-{uuid.uuid4().hex}"
    with _Consumer(rabbit, name) as consumer:
        consumer.wait_connected()
        with _channel(rabbit) as producer:
            producer.queue_declare(queue=name, durable=True)
            producer.basic_publish("", name, b"{}")
        consumer.wait_done(1)
    assert consumer.connections == 1


def test_stop_finishes_and_acknowledges_the_job_in_flight(rabbit: RabbitNode, queue: str) -> None:
    for body in (b"first", b"second"):
        publish_job(body, url=rabbit.url, queue_name=queue)
    with _Consumer(rabbit, queue, held=True) as consumer:
        consumer.wait_seen(1)
        consumer.stop.set()
        time.sleep(1)
        assert not consumer.done
        consumer.gate.set()
        consumer.join()
    assert (consumer.done, consumer.error) == ([b"first"], None)
    assert rabbit.queue_state(queue) == (1, 0)


def test_stop_hands_back_what_was_prefetched(rabbit: RabbitNode, queue: str) -> None:
    with _Consumer(rabbit, queue, prefetch_count=3, held=True) as consumer:
        for body in (b"first", b"second", b"third"):
            publish_job(body, url=rabbit.url, queue_name=queue)
        consumer.wait_seen(1)
        wait_until(lambda: _ready_messages(rabbit, queue) == 0)
        consumer.stop.set()
        consumer.gate.set()
        consumer.join()
    assert consumer.done == [b"first"]
    assert rabbit.queue_state(queue) == (2, 0)


def test_two_threads_overlap_and_acknowledge_each(rabbit: RabbitNode, queue: str) -> None:
    with _Consumer(rabbit, queue, prefetch_count=2, threads=2, held=True) as consumer:
        for body in (b"first", b"second", b"third"):
            publish_job(body, url=rabbit.url, queue_name=queue)
        consumer.wait_seen(2)
        assert rabbit.queue_state(queue) == (1, 2)
        consumer.stop.set()
        consumer.gate.set()
        consumer.join()
    assert sorted(consumer.done) == [b"first", b"second"]
    assert rabbit.queue_state(queue) == (1, 0)


def test_two_jobs_cut_off_are_both_delivered_once_more(rabbit: RabbitNode, queue: str) -> None:
    with _Consumer(rabbit, queue, prefetch_count=2, threads=2, held=True) as consumer:
        for body in (b"first", b"second"):
            publish_job(body, url=rabbit.url, queue_name=queue)
        consumer.wait_seen(2)
        rabbit.close_all_connections()
        consumer.gate.set()
        consumer.wait_done(4)
        wait_until(lambda: rabbit.queue_state(queue) == (0, 0))
    assert sorted(consumer.seen) == [b"first", b"first", b"second", b"second"]


def test_an_idle_consumer_survives_a_closed_connection(rabbit: RabbitNode, queue: str) -> None:
    with _Consumer(rabbit, queue) as consumer:
        consumer.wait_connected()
        rabbit.close_all_connections()
        publish_job(b"{}", url=rabbit.url, queue_name=queue)
        consumer.wait_done(1)
    assert consumer.connections == 2
    assert rabbit.queue_state(queue) == (0, 0)


def test_a_job_cut_off_from_the_broker_is_delivered_once_more(
    rabbit: RabbitNode, queue: str
) -> None:
    publish_job(b"cut", url=rabbit.url, queue_name=queue)
    with _Consumer(rabbit, queue, held=True) as consumer:
        consumer.wait_seen(1)
        rabbit.close_all_connections()
        wait_until(lambda: _ready_messages(rabbit, queue) == 1)
        time.sleep(2)
        assert (consumer.seen, consumer.connections) == ([b"cut"], 1)  # busy: asks for nothing
        consumer.gate.set()
        consumer.wait_done(2)
    assert consumer.done == [b"cut", b"cut"]
    assert rabbit.queue_state(queue) == (0, 0)


def test_a_callback_that_raises_ends_the_consumer_and_keeps_the_message(
    rabbit: RabbitNode, queue: str, caplog: pytest.LogCaptureFixture
) -> None:
    publish_job(b"poison", url=rabbit.url, queue_name=queue)
    with _Consumer(rabbit, queue) as consumer:
        consumer.join()
    assert isinstance(consumer.error, _Poisoned) and consumer.seen == [b"poison"]
    assert rabbit.queue_state(queue) == (1, 0)
    assert "could not be reported (_Poisoned)" in caplog.text
    assert str(consumer.error) not in caplog.text


def test_a_deleted_queue_is_made_again(rabbit: RabbitNode, queue: str) -> None:
    with _Consumer(rabbit, queue) as consumer:
        consumer.wait_connected()
        with _channel(rabbit) as channel:
            channel.queue_delete(queue)
        consumer.wait_connected(2)
        publish_job(b"{}", url=rabbit.url, queue_name=queue)
        consumer.wait_done(1)


@pytest.fixture
def impatient(rabbit: RabbitNode) -> Iterator[RabbitNode]:
    """The broker, closing the channel of whoever holds a message for over a second."""
    change = (
        "application:set_env(rabbit, consumer_timeout, {}),"
        "application:set_env(rabbit, channel_tick_interval, {})"
    )
    rabbit.evaluate(change.format(1000, 500))
    yield rabbit
    rabbit.evaluate(change.format(1_800_000, 60_000))


def test_a_channel_closed_by_the_broker_is_noticed(impatient: RabbitNode, queue: str) -> None:
    publish_job(b"slow", url=impatient.url, queue_name=queue)
    with _Consumer(impatient, queue, held=True) as consumer:
        consumer.wait_seen(1)
        wait_until(lambda: _ready_messages(impatient, queue) == 1)
        wait_until(lambda: impatient.evaluate("rabbit_networking:connections()") == "[]")
        consumer.gate.set()
        consumer.wait_done(2)
    assert consumer.done == [b"slow", b"slow"]
    assert _ready_messages(impatient, queue) == 0


def test_a_killed_broker_comes_back_with_the_job(
    rabbit: RabbitNode, queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "RECONNECT_WAIT", wait_fixed(0.5))
    with _Consumer(rabbit, queue, held=True) as consumer:
        publish_job(b"persistent", url=rabbit.url, queue_name=queue)
        consumer.wait_seen(1)
        rabbit.kill()
        consumer.gate.set()
        consumer.wait_done(1)
        rabbit.start()
        consumer.wait_done(2)
    assert consumer.done == [b"persistent", b"persistent"]
    assert rabbit.queue_state(queue) == (0, 0)


def test_a_failure_after_stop_is_quiet() -> None:
    """Nobody waits for the broker any more."""
    stop = threading.Event()
    for attempt in reconnecting(stop):
        with attempt:
            stop.set()
            raise OSError("the broker is gone")
    assert attempt.retry_state.attempt_number == 1


def test_stop_ends_the_attempts_to_reach_a_dead_broker(caplog: pytest.LogCaptureFixture) -> None:
    stop = threading.Event()
    threading.Timer(0.5, stop.set).start()
    began = time.monotonic()
    consume_queue("idle", print, url="amqp://guest:guest@127.0.0.1:1/", stop=stop)
    assert time.monotonic() - began < 5
    assert "no broker (AMQPConnectionError)" in caplog.text


def test_credentials_stay_out_of_the_log(
    rabbit: RabbitNode, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    stop = threading.Event()
    threading.Timer(1.5, stop.set).start()
    url = f"amqp://guest:tr0ub4dor@127.0.0.1:{rabbit.port}/%2f"
    consume_queue("idle", print, url=url, stop=stop)
    assert "no broker (ProbableAuthenticationError)" in caplog.text
    assert "tr0ub4dor" not in caplog.text


@pytest.mark.parametrize(
    "url",
    [
        "tr0ub4dor",
        "amqp://u:tr0ub4dor/x@host",
        "amqp://h/?heartbeat=tr0ub4dor",
        "amqps://h/?ssl_options={'password':'tr0ub4dor'",
        "amqps://h/?ssl_options=" + 300 * "[" + "tr0ub4dor",
        "https://u:tr0ub4dor@h/",
    ],
)
def test_an_unreadable_url_is_not_quoted(url: str) -> None:
    with pytest.raises(ValueError) as caught:
        connection_parameters(url)
    assert "tr0ub4dor" not in str(caught.value) and caught.value.__suppress_context__


def test_every_wait_for_the_broker_has_a_limit() -> None:
    parameters = connection_parameters("amqp://host/?heartbeat=600")
    assert parameters.heartbeat == 30
    assert parameters.blocked_connection_timeout == 300


def test_a_callback_is_needed() -> None:
    stop = threading.Event()
    stop.set()  # one that consumes nevertheless returns
    with pytest.raises(ValueError, match="callback"):
        start_rabbitmq_consumer("image_generation", stop=stop)


def test_a_refused_queue_is_not_made_plain(rabbit: RabbitNode) -> None:
    name = f"test-{uuid.uuid4().hex}"
    with _channel(rabbit) as owner, _channel(rabbit) as other:
        owner.queue_declare(name, exclusive=True)
        with pytest.raises(pika.exceptions.ChannelClosedByBroker) as caught:
            ensure_queue(other.connection, name)
    assert caught.value.reply_code == 405


def test_the_broker_shows_whose_connection_it_is(rabbit: RabbitNode) -> None:
    """An operator tells ours apart in ``rabbitmqctl list_connections client_properties``."""
    with closing(connect(rabbit.url)):
        told = rabbit.evaluate("rabbit_networking:connection_info_all([client_properties])")
    texts = [bytes(map(int, each.split(","))) for each in re.findall(r"#Bin<([\d,]+)>", told)]
    assert texts[-2:] == [b"connection_name", b"stylegen"]


def test_a_message_without_headers_has_been_through_nothing() -> None:
    """Nor has one whose counts are not given."""
    assert DeliveryCounts() == DeliveryCounts.from_headers({}) == DeliveryCounts(0, 0, 0)


def test_what_a_broker_wrote_is_not_sent_on() -> None:
    """RabbitMQ 4 writes where a message died last, too; all that a producer wrote is kept."""
    turns, places = ("first", "last"), ("exchange", "queue", "reason")
    deaths = {f"x-{turn}-death-{place}": "x" for turn in turns for place in places}
    broker = deaths | {"x-death": [], "x-delivery-count": 1, "x-acquired-count": 1}
    routed, own = {"CC": ["x"], "BCC": ["x"]}, {"x-trace": "1", "x-last-deathly": "2"}
    assert foreign_headers(broker | routed | own) == own


def test_a_stale_delivery_is_neither_run_nor_reported() -> None:
    ran: list[bytes] = []
    done: list[Delivery] = []
    runner = CallbackRunner(lambda delivery: ran.append(delivery.body), threading.Event())
    jobs = JobExecutor(runner)
    for stale in (Delivery(runner.connection_epoch, 1, b"stale") for _ in range(2)):
        jobs.next_epoch()
        jobs.submit(stale, done.append).result()
    jobs.submit(Delivery(runner.connection_epoch, 1, b"fresh"), done.append).result()
    assert ran == [b"fresh"] and [each.body for each in done] == [b"fresh"]


def test_jobs_of_a_lost_connection_are_waited_for_with_a_beat() -> None:
    """Else the probe would end a worker whose job takes longer than a heartbeat may."""
    gate, beats = threading.Event(), list[int]()
    jobs = JobExecutor(CallbackRunner(lambda _: gate.wait(10), threading.Event()))
    future = jobs.submit(Delivery(0, 1, b""), lambda _: None)

    def beat() -> None:
        beats.append(len(beats))
        if len(beats) == 3:
            gate.set()

    jobs.next_epoch(beat)
    assert future.done() and len(beats) >= 3


def test_poison_candidates_run_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was in flight twice when a worker died has nobody beside it; others run together."""
    monkeypatch.setattr("stylegen.queue.executor.random.random", lambda: 0.0)
    beside: list[int] = []
    going: list[int] = []
    pair, on = threading.Barrier(3), threading.Event()

    def work(delivery: Delivery) -> None:
        going.append(delivery.tag)
        if delivery.is_poison_candidate:
            time.sleep(0.05)  # long enough for another to come, if it could
            beside.append(len(going))
        else:
            pair.wait(30)
            on.wait(30)
        going.remove(delivery.tag)

    runner = CallbackRunner(work, threading.Event())
    jobs = JobExecutor(runner, threads=5)
    deliveries = [Delivery(0, n, b"", {REDELIVERIES: n}) for n in (0, 1, 2, 3, 4)]
    futures = [jobs.submit(delivery, lambda _: None) for delivery in deliveries[:2]]
    pair.wait(30)
    futures += [jobs.submit(delivery, lambda _: None) for delivery in deliveries[2:]]
    on.set()
    for future in futures:
        future.result(30)
    assert beside == [1, 1, 1] and not runner.failure


def test_tls(
    tls: tuple[int, Path, Path], rabbit: RabbitNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``amqps://`` works with the broker's authority, in the URL or a variable; never without."""
    port, chain, _ = tls
    stranger = f"amqps://guest:guest@127.0.0.1:{port}/%2f"
    known = f"{stranger}?ssl_options=" + quote(str({"ca_certs": str(chain)}))
    publish_job(b"over TLS", url=known, queue_name="tls")
    with pytest.raises(ssl.SSLCertVerificationError):
        publish_job(b"to a stranger", url=stranger, queue_name="tls")
    monkeypatch.setenv("SSL_CERT_FILE", str(chain))
    publish_job(b"to one that the system trusts", url=stranger, queue_name="tls")
    assert _ready_messages(rabbit, "tls") == 2


class _Milliseconds(datetime):
    """Encoded as a timestamp, far beyond what can be decoded: the year 58692."""

    def utctimetuple(self) -> time.struct_time:
        return time.struct_time((1970, 1, 1, 0, 0, 1_790_000_000_000, 0, 1, 0))


_UNREADABLE = pika.BasicProperties(
    content_type="text/plain",
    content_encoding="utf-8",
    headers={"sent": _Milliseconds(2026, 1, 1)},
    priority=7,
)


def test_pika_alone_stops_at_headers_that_it_cannot_read(rabbit: RabbitNode, queue: str) -> None:
    """Why our connections are of a class of their own. It may go when this fails."""
    with _channel(rabbit) as channel:
        channel.basic_publish("", queue, b"poisoned", _UNREADABLE)
    plain = pika.BlockingConnection(pika.URLParameters(rabbit.url))
    with pytest.raises(pika.exceptions.StreamLostError):
        plain.channel().basic_get(queue)
    tolerant = connect(rabbit.url)
    _, properties, body = tolerant.channel().basic_get(queue)
    tolerant.close()
    assert (body, properties.headers, properties.priority) == (b"poisoned", {}, 7)
    assert (properties.content_type, properties.content_encoding) == ("text/plain", "utf-8")


def test_a_poisoned_header_does_not_block_the_queue(rabbit: RabbitNode, queue: str) -> None:
    """A message whose headers can't be read is a job like others."""
    with _channel(rabbit) as channel:
        channel.basic_publish("", queue, b"poisoned", _UNREADABLE)
        channel.basic_publish("", queue, b"next")
    with _Consumer(rabbit, queue) as consumer:
        consumer.wait_done(2)
    assert (consumer.done, consumer.connections) == ([b"poisoned", b"next"], 1)


def test_a_message_that_can_be_put_nowhere_is_a_lost_connection(
    rabbit: RabbitNode, queue: str
) -> None:
    """The broker takes nothing for a while: the worker goes on, and the message comes back."""
    seen, stop = [], threading.Event()

    def callback(delivery: Delivery) -> None:
        seen.append(delivery.body)
        if len(seen) == 1:
            raise pika.exceptions.AMQPConnectionError("a retry could not be published")
        stop.set()

    publish_job(b"{}", url=rabbit.url, queue_name=queue)
    consume_queue(queue, callback, url=rabbit.url, stop=stop)
    assert seen == [b"{}"] * 2 and rabbit.queue_state(queue) == (0, 0)


def test_a_queue_deleted_meanwhile_takes_no_message(
    rabbit: RabbitNode, queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker says so: no job is thrown away without a word."""

    def deleted(connection: pika.BlockingConnection, name: str, *_: object) -> None:
        connection.channel().queue_delete(name)

    monkeypatch.setattr("stylegen.queue.publish.ensure_queue", deleted)
    with pytest.raises(pika.exceptions.UnroutableError):
        publish_job(b"{}", url=rabbit.url, queue_name=queue)


def test_a_connection_that_is_closed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """pika has a ValueError for it, which is none of the address's; whoever publishes goes on."""
    with pytest.raises(ValueError):
        connect("amqp://host:port")

    def closed(*_: object, **__: object) -> None:
        raise ValueError("Expected connected socket, but getpeername() failed")

    monkeypatch.setattr("pika.BlockingConnection", closed)
    with pytest.raises(pika.exceptions.AMQPConnectionError):
        connect("amqp://guest:guest@localhost")


def test_each_attempt_to_publish_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An operator sees why a message waits, and no password."""
    (port,) = free_ports(1)
    url = f"amqp://guest:hunter2@127.0.0.1:{port}/%2F"
    monkeypatch.setattr("stylegen.queue.publish.PUBLISH_ATTEMPTS", 3)
    monkeypatch.setattr("stylegen.queue.publish.PUBLISH_WAIT", wait_fixed(0.01))
    with pytest.raises(pika.exceptions.AMQPConnectionError):
        publish_with_retries(b"{}", url=url, queue_name="nobody", headers={})
    assert sum("no broker (AMQPConnectionError)" in each for each in caplog.messages) == 2
    assert "hunter2" not in caplog.text
