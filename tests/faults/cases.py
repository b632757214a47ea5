"""What breaks, case by case: each orders jobs, breaks something, and says when it is mended."""

import json
import os
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random
from typing import Any

from ground import ARTISTS, BUCKET, Expected, Ground, wait_until

from stylegen.queue import publish_control

Case = Callable[[Ground], None]
CASES: dict[str, Case] = {}
SHORT: list[str] = []
"""Names of the cases that ``make test`` runs."""


def case(name: str, *, short: bool = False) -> Callable[[Case], Case]:
    """Register a case under the name that the report shows."""

    def register(function: Case) -> Case:
        CASES[name] = function
        if short:
            SHORT.append(name)
        return function

    return register


FAILED = ("failed",)


# A worker dies, or is stopped


def _killed_at(*states: str, tag: str = "flat", expected: Expected = Expected()) -> Case:
    def run(ground: Ground) -> None:
        ground.order(4, tag, expected=expected)
        worker = ground.start(FAULT_STATE=",".join(states))
        worker.wait_for_exit(len(states))
        ground.inject(len(states))
        ground.healed()

    return run


for _state in ("validated", "generated", "uploaded", "committed", "notified"):
    case(f"worker: SIGKILL when {_state}", short=_state in ("uploaded", "notified"))(
        _killed_at(_state)
    )

case("worker: SIGKILL when a failure was reported", short=True)(
    _killed_at("failed-reported", tag="raise", expected=Expected(FAILED, "GENERATION_FAILED"))
)
case("worker: SIGKILL when a retry was published")(_killed_at("retry-published", tag="oom"))
case("worker: SIGKILL when a redelivered message was published")(
    _killed_at("generated", "republished")
)


@case("worker: SIGKILL when a message was dead-lettered")
def _killed_aside(ground: Ground) -> None:
    expected = Expected(FAILED, "RETRIES_EXHAUSTED", "RETRIES_EXHAUSTED", letters=2)
    ground.order(1, "starved", expected=expected)  # killed before the ack: dead-lettered again
    ground.order(2)
    worker = ground.start(FAULT_STATE="dead-lettered")
    worker.wait_for_exit()
    ground.inject()
    ground.healed()


@case("worker: SIGKILL when idle")
def _killed_idle(ground: Ground) -> None:
    worker = ground.start()
    worker.signal(signal.SIGKILL)
    worker.wait_for_exit()
    ground.inject()
    ground.healed()
    ground.order(2)


@case("worker: frozen (SIGSTOP), another takes over, thawed", short=True)
def _zombie(ground: Ground) -> None:
    frozen = ground.start()
    (number,) = ground.order(1, "slow", expected=Expected(shared=True))
    ground.wait_progress(number)
    frozen.signal(signal.SIGSTOP)
    ground.inject()
    ground.start()
    ground.rabbit.close_all_connections()
    ground.healed()
    ground.wait_told([number])
    frozen.signal(signal.SIGCONT)
    wait_until(lambda: ground.consumers() == 2)


@case("worker: SIGTERM in the middle of a job")
def _terminated(ground: Ground) -> None:
    worker = ground.start()
    numbers = ground.order(3, "slow")
    ground.wait_progress(numbers[0])
    worker.signal(signal.SIGTERM)
    ground.inject()
    ground.healed()
    assert worker.wait_for_exit() == 0
    assert ground.told(numbers[0])


@case("worker: SIGTERM twice")
def _terminated_twice(ground: Ground) -> None:
    worker = ground.start()
    numbers = ground.order(2, "slow")
    ground.wait_progress(numbers[0])
    worker.signal(signal.SIGTERM)
    time.sleep(0.2)  # the kernel merges equal signals that are still pending
    worker.signal(signal.SIGTERM)
    ground.inject()
    ground.healed()
    assert worker.wait_for_exit(timeout=10) == 4
    assert not ground.told(numbers[0])


@case("worker: drain past its deadline", short=True)
def _past_the_deadline(ground: Ground) -> None:
    worker = ground.start(STYLEGEN_DRAIN_TIMEOUT="1")
    numbers = ground.order(2, "slow")
    ground.wait_progress(numbers[0])
    worker.signal(signal.SIGTERM)
    ground.inject()
    ground.healed()
    assert worker.wait_for_exit(timeout=10) == 4
    assert not ground.told(numbers[0])


# The broker


def _wait_told_again(ground: Ground, number: int) -> None:
    """Wait for the proof that a job was in flight at the fault: its ack was lost."""
    wait_until(lambda: len(ground.told(number)) >= 2)


@case("broker: stop_app, start_app")
def _app_stopped(ground: Ground) -> None:
    ground.start()
    (number,) = ground.order(1, "held")
    ground.order(4)
    ground.wait_progress(number)
    ground.rabbit.control("stop_app")
    ground.inject()
    ground.free(number)
    ground.wait_told([number])
    ground.rabbit.control("start_app")
    ground.healed()
    ground.order(2)
    _wait_told_again(ground, number)


@case("broker: SIGKILL and restart", short=True)
def _broker_killed(ground: Ground) -> None:
    ground.start()
    ground.order(4)
    ground.rabbit.kill()
    ground.inject()
    ground.rabbit.start()
    ground.healed()
    ground.order(2)


@case("broker: away for longer than a message is published")
def _broker_away(ground: Ground) -> None:
    ground.start()
    numbers = ground.order(2, "slow", "oom")
    ground.wait_progress(numbers[0])
    ground.rabbit.kill()
    ground.inject()
    time.sleep(45.0)  # the length of the fault
    ground.rabbit.start()
    ground.healed()


@case("broker: all connections closed, three times")
def _connections_closed(ground: Ground) -> None:
    ground.start()
    for _ in range(3):
        (number,) = ground.order(1, "held")
        ground.order(2)
        ground.wait_progress(number)
        ground.rabbit.close_all_connections()
        ground.inject()
        ground.free(number)
        _wait_told_again(ground, number)
    ground.healed()
    ground.order(2)


@case("broker: memory alarm")
def _alarm(ground: Ground) -> None:
    ground.start()
    (retried,) = ground.order(1, "held", "oom")
    done = ground.order()
    ground.wait_progress(retried)
    ground.rabbit.control("set_vm_memory_high_watermark", "absolute", "1")
    try:
        ground.inject()
        ground.free(retried)
        wait_until(lambda: "blocked" in ground.rabbit.control("list_connections", "state"))
        ground.wait_told(done)  # though the other job can't be published again
        assert not ground.told(retried)
    finally:
        ground.rabbit.control("set_vm_memory_high_watermark", "0.6")
    ground.healed()
    ground.order(2)


@case("broker: acknowledgement timeout")
def _ack_timeout(ground: Ground) -> None:
    change = (
        "application:set_env(rabbit, consumer_timeout, {}),"
        "application:set_env(rabbit, channel_tick_interval, {})"
    )
    ground.rabbit.evaluate(change.format(1000, 500))
    try:
        ground.start()
        (number,) = ground.order(1, "slow")
        ground.wait_told([number])
        ground.inject()
    finally:
        ground.rabbit.evaluate(change.format(1_800_000, 60_000))
    ground.healed()
    ground.order(2)


@case("broker: queue deleted under the consumer")
def _queue_deleted(ground: Ground) -> None:
    ground.start()
    with ground.channel() as channel:
        channel.queue_delete(ground.queue)
    ground.inject()
    ground.declare()
    ground.healed()
    ground.order(3)


@case("broker: queue with arguments of its own")
def _other_arguments(ground: Ground) -> None:
    with ground.channel() as channel:
        channel.queue_delete(ground.queue)
    ground.declare(**{"x-max-priority": 5})
    ground.inject()
    ground.start()
    ground.healed()
    ground.order(3)


def _make_quorum(ground: Ground) -> None:
    with ground.channel() as channel:
        channel.queue_delete(ground.queue)
    ground.declare(**{"x-queue-type": "quorum"})


@case("broker: quorum queue, worker killed")
def _quorum(ground: Ground) -> None:
    _make_quorum(ground)
    ground.order(3)
    worker = ground.start(FAULT_STATE="generated")
    worker.wait_for_exit()
    ground.inject()
    ground.healed()


@case("broker: queue with priorities, worker killed with the urgent job", short=True)
def _urgent(ground: Ground) -> None:
    with ground.channel() as channel:
        channel.queue_delete(ground.queue)
    ground.declare(**{"x-max-priority": 9})
    others = ground.order(30)
    (urgent,) = ground.order(1, "held", priority=9)
    worker = ground.start(STYLEGEN_PREFETCH="1")
    ground.wait_progress(urgent)
    worker.signal(signal.SIGKILL)
    ground.inject()
    ground.free(urgent)
    ground.healed()
    ground.wait_told([*others, urgent])
    first = min(others, key=lambda number: ground.backend.told_at[number])
    assert ground.backend.told_at[urgent] < ground.backend.told_at[first]


def _keep_full(ground: Ground, stop: threading.Event) -> None:
    """A producer that knows no pause; what is refused is not ordered."""
    with ground.channel() as channel:
        channel.confirm_delivery()
        while not stop.is_set():
            if not ground.order_on(channel, Expected(shared=True)):
                stop.wait(0.01)


def _full_queue(ground: Ground, **arguments: Any) -> None:
    with ground.channel() as channel:
        channel.queue_delete(ground.queue)
    ground.declare(**{"x-max-length": 20, "x-overflow": "reject-publish"} | arguments)
    stop = threading.Event()
    producer = threading.Thread(target=_keep_full, args=(ground, stop))
    producer.start()
    try:
        _, dying = ground.start(), ground.start()
        rates = [ground.rate(10.0)]
        for _ in range(3):
            dying.signal(signal.SIGKILL)
            ground.inject()
            rates.append(ground.rate(10.0))
    finally:
        stop.set()
        producer.join()
    ground.healed()
    print(f"ends per 10 s, with two workers and after each kill of one: {rates}")
    assert min(rates[1:]) >= 0.5 * rates[0], f"ends per 10 s: {rates}"


@case("broker: queue full and refusing, one of two workers killed three times")
def _full_classic(ground: Ground) -> None:
    _full_queue(ground)
    assert f"queue {ground.queue} is full" in ground.logs()


@case("broker: quorum queue full and refusing, one of two workers killed three times")
def _full_quorum(ground: Ground) -> None:
    """Such a queue may take a new connection's first message though it is full: none is refused."""
    _full_queue(ground, **{"x-queue-type": "quorum"})


@case("broker: account without permissions for a while")
def _no_permission(ground: Ground) -> None:
    ground.start()
    ground.rabbit.control("clear_permissions", "guest")
    ground.rabbit.close_all_connections()
    ground.inject()
    wait_until(lambda: "no broker" in ground.logs())
    ground.rabbit.control("set_permissions", "guest", ".*", ".*", ".*")
    ground.healed()
    ground.order(3)


@case("broker: retry queues missing")
def _no_retry_queue(ground: Ground) -> None:
    ground.start()
    ground.wait_told(ground.order(1, "oom"))
    (number,) = ground.order(1, "held", "oom")
    ground.wait_progress(number)
    with ground.channel() as channel:
        channel.queue_declare(f"{ground.queue}.retry.1s", passive=True)  # raises if there is none
        channel.queue_delete(f"{ground.queue}.retry.1s")
    ground.inject()
    ground.healed()
    ground.free(number)
    ground.order(2)


@case("broker: a retry queue that would keep messages")
def _wrong_retry_queue(ground: Ground) -> None:
    with ground.channel() as channel:
        channel.queue_declare(f"{ground.queue}.retry.1s", durable=True)
    ground.inject()
    ground.start()
    ground.order(2, "oom", expected=Expected((), dead="WRONG_QUEUE"))
    ground.order(2)


@case("broker and bucket: away together")
def _both_away(ground: Ground) -> None:
    ground.start()
    (number,) = ground.order(1, "held")
    ground.order(3)
    ground.wait_progress(number)
    cable = ground.cables["bucket"]
    with cable.fault("reset"):
        ground.rabbit.kill()
        faults = cable.faults
        ground.free(number)
        wait_until(lambda: cable.faults > faults and "no broker" in ground.logs())
        ground.rabbit.start()
    assert not ground.told(number)
    ground.inject(2)
    ground.healed()
    ground.order(2)


# Cables


def _cable(name: str, mode: str) -> Case:
    def run(ground: Ground) -> None:
        ground.start()
        cable = ground.cables[name]
        ground.order(4)
        with cable.fault(mode):
            ground.order(4)
            wait_until(lambda: cable.faults > 0)
            time.sleep(2.0)  # the length of the fault
        ground.inject(cable.faults)
        ground.healed()
        ground.order(2)

    return run


for _name in ("broker", "bucket", "receiver"):
    for _mode in ("reset", "hole", "slow", "truncate"):
        case(
            f"cable to the {_name}: {_mode}",
            short=(_name, _mode) in {("bucket", "reset"), ("broker", "hole")},
        )(_cable(_name, _mode))


# The bucket


def _bucket(fault: str, methods: tuple[str, ...], count: int) -> Case:
    def run(ground: Ground) -> None:
        left = threading.Semaphore(count)

        def rule(method: str, path: str) -> str | None:
            wanted = method in methods and path.startswith(f"/{BUCKET}/")
            return fault if wanted and left.acquire(blocking=False) else None

        ground.start()
        ground.front.rule = rule
        ground.order(4)
        wait_until(lambda: ground.front.faults == count, timeout=90)
        ground.inject(count)
        ground.healed()

    return run


for _fault, _methods, _count in (
    ("500", ("PUT",), 12),
    ("503", ("GET", "HEAD", "PUT"), 12),
    ("403", ("PUT",), 3),
    ("slow", ("GET", "PUT"), 6),
    ("truncate", ("GET",), 3),
    ("reset after", ("PUT",), 4),
):
    case(f"bucket: {_fault} on {', '.join(_methods)}", short=_fault == "reset after")(
        _bucket(_fault, _methods, _count)
    )


@case("bucket: down for longer than all retries")
def _bucket_down(ground: Ground) -> None:
    ground.start()
    ground.front.rule = lambda method, path: "500" if method == "PUT" else None
    (number,) = ground.order()
    attempts = "settled: outcome=retried"
    wait_until(lambda: ground.logs().count(attempts) >= 5, timeout=240)  # three are all allowed
    assert not ground.told(number), "a failure was told that could not be written down"
    assert ground.drawn(number) == 1, "drawn again for a bucket that takes no picture"
    ground.inject(ground.front.faults)
    ground.front.rule = lambda method, path: None
    ground.healed()


@case("bucket: can't be read for longer than all retries, a lost ack before")
def _bucket_unreadable(ground: Ground) -> None:
    def rule(method: str, path: str) -> str | None:
        return "500" if method in ("GET", "HEAD") and path.startswith(f"/{BUCKET}/") else None

    waiting = [rule]

    def choose(hook: Any) -> str | None:
        if hook.event == "complete" and waiting:
            ground.front.rule = waiting.pop()

    ground.backend.trick = choose
    worker = ground.start(FAULT_STATE="notified")
    (number,) = ground.order()
    worker.wait_for_exit()
    wait_until(lambda: ground.front.faults >= 24, timeout=240)  # three attempts have twelve
    ground.inject(ground.front.faults)
    ground.front.rule = lambda method, path: None
    ground.healed()
    wait_until(lambda: len(ground.told(number)) == 2)
    assert ground.drawn(number) == 1


_PARTS = 9 * 2**20
"""A size that is downloaded in two parts."""


@case("bucket: LoRA replaced while it is fetched, and later")
def _replaced(ground: Ground) -> None:
    artist = list(ARTISTS)[0]
    others = ["#ffffff", "#0000ff"]
    colours = [*others, ARTISTS[artist]]
    ground.put_lora(artist, "#000000", _PARTS)

    def rule(method: str, path: str) -> str | None:
        if method == "GET" and path.endswith("/0.safetensors") and colours:
            ground.put_lora(artist, colours.pop(0), _PARTS)

    ground.front.rule = rule
    numbers = ground.order(8)
    ground.start()
    ground.wait_told(numbers)
    assert not colours
    ground.inject(3)
    for colour in others:
        ground.put_lora(artist, colour)
        numbers = ground.order(4)
        ground.styles |= {n: colour for n in numbers if ground.artists[n] == artist}
        ground.wait_told(numbers)
        ground.inject()


# This machine


@contextmanager
def _file_size_limit(ground: Ground, size: int) -> Iterator[None]:
    """No process of the workers can write a file beyond `size`, as on a full disk."""
    pids = [keeper.process.pid for keeper in ground.workers if keeper.process]
    before = [resource.prlimit(pid, resource.RLIMIT_FSIZE) for pid in pids]
    for pid, (_, hard) in zip(pids, before, strict=True):
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        for pid, limits in zip(pids, before, strict=True):
            resource.prlimit(pid, resource.RLIMIT_FSIZE, limits)


@case("machine: no file can be written (disk full)")
def _disk_full(ground: Ground) -> None:
    ground.start()
    ground.wait_told(ground.order())  # the next ones are of other artists
    with _file_size_limit(ground, 0):
        numbers = ground.order(3)
        wait_until(lambda: ground.count("retry.1s"))
    failed = ground.logs().count("STORAGE_ERROR: this machine's disk fails")
    assert failed and not any(map(ground.told, numbers))
    ground.inject(failed)
    ground.healed()


@case("machine: the LoRA cache can't be written")
def _cache_unusable(ground: Ground) -> None:
    (ground.folder / "cache").mkdir()
    for name in ("blobs", "in-flight"):
        (ground.folder / "cache" / name).write_text(
            "a file where a folder must be", encoding="ascii"
        )
    ground.inject()
    ground.start()
    ground.healed()
    ground.order(4)


# The receiver


def _receiver(trick: str, count: int, expected: Expected, *tags: str, **environment: str) -> Case:
    def run(ground: Ground) -> None:
        left = threading.Semaphore(count)

        def choose(hook: Any) -> str | None:
            terminal = hook.event != "progress"
            return trick if terminal and left.acquire(blocking=False) else None

        ground.backend.trick = choose
        ground.start(**environment)
        ground.order(2, *tags, expected=expected)
        wait_until(lambda: ground.backend.faults == count, timeout=90)
        ground.inject(count)
        ground.healed()

    return run


_REFUSED = Expected((), dead="WEBHOOK_REFUSED")
case("receiver: 500", short=True)(_receiver("500", 5, Expected()))
case("receiver: 429 with Retry-After")(_receiver("429", 3, Expected()))
case("receiver: 410")(_receiver("410", 2, _REFUSED))
case("receiver: 302 to an internal address")(_receiver("302", 2, _REFUSED))
case("receiver: hangs")(_receiver("hang", 2, Expected()))
case("receiver: hangs for longer than a job may take", short=True)(
    _receiver("hang", 1, Expected(), STYLEGEN_JOB_TIMEOUT="5", STYLEGEN_PREFETCH="1")
)
case("receiver: 500 for a failure", short=True)(
    _receiver("500", 5, Expected(FAILED, "GENERATION_FAILED"), "raise")
)
case("receiver: drips")(_receiver("drip", 1, Expected()))
case("receiver: answers 300 MB")(_receiver("flood", 2, Expected()))
case("receiver: 302 with 300 MB")(_receiver("divert", 2, _REFUSED))
case("receiver: 100 Continue for ever")(_receiver("promise", 1, Expected()))
case("receiver: 103 before its answer")(_receiver("hint", 2, Expected()))
case("receiver: 404 for some of its orders")(_receiver("404", 5, Expected()))


# The model


@case("model: out of memory")
def _out_of_memory(ground: Ground) -> None:
    ground.start()
    ground.order(3, "oom")
    ground.inject(3)
    ground.healed()


@case("model: raises")
def _raises(ground: Ground) -> None:
    ground.start()
    ground.order(2, "raise", expected=Expected(FAILED, "GENERATION_FAILED"))
    ground.order(2)
    ground.inject(2)
    ground.healed()


@case("model: too slow for the job's limit")
def _too_slow(ground: Ground) -> None:
    ground.start(STYLEGEN_JOB_TIMEOUT="3", STYLEGEN_PREFETCH="1")
    ground.order(1, "slow", expected=Expected(FAILED, "TIMEOUT"))
    ground.order(2)
    ground.inject()
    ground.healed()


@case("model: hangs in a step", short=True)
def _hangs(ground: Ground) -> None:
    worker = ground.start(STYLEGEN_JOB_TIMEOUT="10")
    ground.order(1, "hang")
    assert worker.wait_for_exit() == 3
    ground.inject()
    ground.healed()


@case("model: hard abort")
def _aborts(ground: Ground) -> None:
    worker = ground.start()
    ground.order(1, "abort")
    worker.wait_for_exit()
    ground.inject()
    ground.healed()
    ground.order(1)


def _poisoned(ground: Ground) -> None:
    worker = ground.start(STYLEGEN_MAX_REDELIVERIES="6", STYLEGEN_PREFETCH="3")
    worker.allow(-signal.SIGKILL)
    companions = ground.order(2, "slow")
    ground.wait_progress(companions[0])
    expected = Expected(FAILED, "RETRIES_EXHAUSTED", "RETRIES_EXHAUSTED")
    (poison,) = ground.order(1, "poison", expected=expected)
    ground.order(2)
    ground.wait_told([poison], timeout=300)
    ground.inject(len(worker.exits))
    ground.healed()


@case("model: kills the worker each time")
def _kills(ground: Ground) -> None:
    _poisoned(ground)


@case("model: kills the worker each time, quorum queue")
def _kills_quorum(ground: Ground) -> None:
    _make_quorum(ground)
    _poisoned(ground)


def _poison_among_many(ground: Ground) -> None:
    worker = ground.start(STYLEGEN_MAX_REDELIVERIES="6", STYLEGEN_PREFETCH="3")
    worker.allow(-signal.SIGKILL)
    ground.order(50, expected=Expected(shared=True))
    expected = Expected(FAILED, "RETRIES_EXHAUSTED", "RETRIES_EXHAUSTED")
    (poison,) = ground.order(1, "poison", expected=expected)
    ground.order(50, expected=Expected(shared=True))
    ground.wait_told([poison], timeout=300)
    ground.inject(len(worker.exits))
    ground.healed()


@case("model: one job of 101 kills the worker each time")
def _poison_classic(ground: Ground) -> None:
    _poison_among_many(ground)


@case("model: one job of 101 kills the worker each time, quorum queue")
def _poison_quorum(ground: Ground) -> None:
    _make_quorum(ground)
    _poison_among_many(ground)


@case("model: the device is lost")
def _device_lost(ground: Ground) -> None:
    worker = ground.start()
    ground.order(1, "cuda")
    assert worker.wait_for_exit() == 3
    ground.inject()
    ground.healed()
    ground.order(1)


# One job more than once, or no more


@case("job: twice, two workers", short=True)
def _twice(ground: Ground) -> None:
    ground.start(STYLEGEN_PREFETCH="1")
    ground.start(STYLEGEN_PREFETCH="1")
    (number,) = ground.order(1, "slow", expected=Expected(shared=True))
    ground.publish(ground.fields(number, "slow"))
    ground.inject()
    wait_until(lambda: len(ground.told(number)) == 2)


@case("job: twice in one worker, the receiver slow with progress", short=True)
def _twice_in_one(ground: Ground) -> None:
    ground.backend.trick = lambda hook: "lag" if hook.event == "progress" else None
    ground.start()
    (number,) = ground.order()
    ground.publish(ground.fields(number))
    ground.inject()
    wait_until(lambda: len(ground.told(number)) == 2)
    assert ground.drawn(number) == 1


@case("job: a hundred times")
def _hundred_times(ground: Ground) -> None:
    ground.start()
    ground.start()
    (number,) = ground.order(1, expected=Expected(shared=True))
    ground.publish(*([ground.fields(number)] * 99))
    ground.inject(99)
    wait_until(lambda: len(ground.told(number)) == 100)


@case("job: its id with another payload", short=True)
def _conflict(ground: Ground) -> None:
    ground.start()
    (number,) = ground.order(1, expected=Expected(dead="CONFLICT"))
    ground.wait_told([number])
    ground.publish(_other(ground, number))
    ground.inject()


def _other(ground: Ground, number: int) -> dict[str, Any]:
    """Another artist's job under the same id."""
    return ground.fields(number + 1) | {"generation_id": number}


@case("job: its id with another payload, both dead-lettered and moved back")
def _both_moved_back(ground: Ground) -> None:
    ground.start()
    expected = Expected(("failed", "complete"), "RETRIES_EXHAUSTED", "CONFLICT")
    (number,) = ground.order(1, "starved", expected=expected)
    wait_until(lambda: ground.count("dead") == 1)
    ground.publish(_other(ground, number))
    wait_until(lambda: ground.count("dead") == 2)
    (ground.folder / "fed").touch()
    with ground.channel() as channel:  # the first payload behind the other: that one comes first
        _, properties, body = channel.basic_get(f"{ground.queue}.dead", auto_ack=True)
        channel.basic_publish("", f"{ground.queue}.dead", body, properties)
    for moved in (2, 1):
        assert ground.command("--redrive").strip() == f"moved {moved}"
        ground.inject(moved)
        wait_until(lambda: ground.count("dead") == 1)
    ground.healed()


def _cancel(ground: Ground, number: int) -> None:
    body = json.dumps({"generation_id": number}).encode()
    publish_control(body, url=ground.rabbit.url, queue_name=ground.queue)
    ground.inject()


_CANCELED = Expected(FAILED, "CANCELED")


@case("job: canceled while it runs", short=True)
def _canceled_running(ground: Ground) -> None:
    ground.start()
    (number,) = ground.order(1, "slow", expected=_CANCELED)
    ground.wait_progress(number)
    _cancel(ground, number)
    ground.healed()
    ground.wait_told([number])
    ground.order(1)


@case("job: canceled while it waits")
def _canceled_waiting(ground: Ground) -> None:
    ground.start(STYLEGEN_PREFETCH="1")
    (first,) = ground.order(1, "slow")
    ground.wait_progress(first)  # a worker that is not there yet hears nothing
    (number,) = ground.order(1, "slow", expected=_CANCELED)
    _cancel(ground, number)
    ground.healed()


@case("job: canceled after it is done")
def _canceled_late(ground: Ground) -> None:
    ground.start()
    (number,) = ground.order(1)
    ground.wait_told([number])
    _cancel(ground, number)
    ground.publish(ground.fields(number))
    wait_until(lambda: len(ground.told(number)) == 2)


# Many


@case("fleet: 500 jobs, 4 workers, one killed each second")
def _random_kills(ground: Ground) -> None:
    for _ in range(4):
        ground.start()
    # A worker may die between sending a message on and acknowledging it: then there are two of it.
    numbers, random = ground.order(500, expected=Expected(shared=True)), Random(7)
    while sum(bool(ground.told(number)) for number in numbers) < 450:
        time.sleep(1.0)
        random.choice(ground.workers).signal(signal.SIGKILL)
        ground.inject()
    ground.healed()


def _footprint(pid: int) -> tuple[int, int, int]:
    """Resident kB, descriptors, threads."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    facts = dict(line.split(":", 1) for line in status.splitlines())
    descriptors = len(os.listdir(f"/proc/{pid}/fd"))
    return int(facts["VmRSS"].split()[0]), descriptors, int(facts["Threads"])


@case("fleet: 400 jobs through one worker, which stays as it was; the receiver drips and hangs")
def _flat(ground: Ground) -> None:
    worker = ground.start(STYLEGEN_PREFETCH="8")
    ground.wait_told(ground.order(150), timeout=180)
    assert worker.process
    before = _footprint(worker.process.pid)
    tricks = iter(["drip", "hang"] * 8)
    ground.backend.trick = lambda hook: next(tricks, None)
    ground.wait_told(ground.order(250), timeout=300)
    ground.inject(ground.backend.faults)

    def is_flat() -> bool:
        after = _footprint(worker.process.pid) if worker.process else before
        few = after[1] <= before[1] + 4 and after[2] <= before[2] + 2
        return few and after[0] < 1.1 * before[0]

    with suppress(AssertionError):
        wait_until(is_flat, timeout=30)  # a call that hangs has ten seconds
    assert is_flat(), f"{before} became {_footprint(worker.process.pid)}"
