"""Receivers that drip, pour, hint, redirect and hang: `stylegen.webhook` against real sockets."""

import contextlib
import gc
import math
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import tenacity
from certificates import server_context, tls_receiver, write_chain
from conftest import examples
from hypothesis import example, given
from hypothesis import strategies as st
from painter import ORDER, painting_parts

from stylegen.job import InvalidMessage, WebhookError, WebhookRefused, WebhookUnanswered
from stylegen.queue import RetryState
from stylegen.settings import SettingsError, load_settings
from stylegen.webhook import ReceivedWebhook, WebhookReceiver, allowed_url, deliver_event
from stylegen.webhook import delivery, retry_after, send_progress
from stylegen.worker import handle_generation_task

TOKEN = "internal-t0ken"
Talk = Callable[[socket.socket], None]


@pytest.fixture(autouse=True)
def _calm(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pauses between attempts, nothing from outside."""
    monkeypatch.setattr(delivery, "WAIT", tenacity.wait_none())
    for name in ("INTERNAL_API_TOKEN", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)


# Retry-After

UNREADABLE = [
    "Mon, 01 Jan 99999999999999999999 00:00:00 GMT",
    "Mon, 01 Jan 2100 99999999999999999999:00:00 GMT",
    "Mon, 01 Jan 2100 00:00:00 +99999999999999999999",
    "Mon, 99999999999999999999 Jan 2100 00:00:00 GMT",
    "Mon, 01 Jan 0000 00:00:00 GMT",
    "Mon, 01 Jan " + "9" * 10_000 + " 00:00:00 GMT",
    "Mon, 01 Jan 2020 00:00:00",
    "-1",
    "1e400",
    "1.5",
    "inf",
    "nan",
    "²",
    "٣",
    "Mon, 0١ Jan 2100 00:00:00 GMT",
    "",
    ",",
    "soon",
]
LONGEST = ["30", "31", "9" * 400, "9" * 10_000, "Fri, 01 Jan 2100 00:00:00 GMT"]
LONGEST += ["Friday, 01-Jan-27 00:00:00 GMT", "Fri Jan  1 00:00:00 2100", " 86400 "]
_NUMBERS = st.integers(-(10**30), 10**30) | st.integers(0, 70)
_DATES = st.builds(
    "{}, {} {} {} {}:{}:{} {}{}".format,
    st.sampled_from(["Mon", "Monday", ""]),
    _NUMBERS,
    st.sampled_from(["Jan", "Feb", "13", "jAn,"]),
    _NUMBERS | st.integers(1900, 2100),
    _NUMBERS,
    _NUMBERS,
    _NUMBERS,
    st.sampled_from(["GMT", "+", "-", "-0000", "EST", ""]),
    _NUMBERS | st.just(""),
)


@examples(500)
@given(st.text() | _DATES | st.from_regex(r"[\d:,\s+A-Za-z-]{0,40}"))
@example("0:0 ,")
@example("- 1 Jan 2 3")
@example("Mon, 1 Jan + 3 :")
def test_no_retry_after_raises(header: str) -> None:
    """Whatever a receiver writes there, a pause comes out."""
    seconds = retry_after(header)
    assert math.isfinite(seconds) and 0 <= seconds <= delivery.LONGEST_PAUSE


@pytest.mark.parametrize("header", UNREADABLE, ids=lambda text: ascii(text[:40]))
def test_what_is_no_time_asks_for_nothing(header: str) -> None:
    assert retry_after(header) == 0


@pytest.mark.parametrize("header", LONGEST, ids=lambda text: text[:40])
def test_the_longest_pause_has_a_limit(header: str) -> None:
    """Each of the three forms of a date in HTTP is read, and is in GMT."""
    assert retry_after(header) == delivery.LONGEST_PAUSE


# Answers without end


@contextlib.contextmanager
def receiver(talk: Talk, tls: ssl.SSLContext | None = None) -> Iterator[str]:
    """The URL of a server that talks on each line until that is cut; all are, when it ends."""
    scheme, talking = "https" if tls else "http", []

    def answer(line: socket.socket) -> None:
        with contextlib.suppress(OSError), line:
            line = tls.wrap_socket(line, server_side=True) if tls else line
            line.recv(65536)
            talk(line)
            line.close()

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                line, _ = server.accept()
                talking.append(threading.Thread(target=answer, args=(line,), name="receiver"))
                talking[-1].start()

    with socket.create_server(("127.0.0.1", 0)) as server:
        accepting = threading.Thread(target=serve, name="receiver")
        accepting.start()
        try:
            yield f"{scheme}://127.0.0.1:{server.getsockname()[1]}/x?y=secret"
        finally:
            server.shutdown(socket.SHUT_RDWR)
            accepting.join()
    for thread in talking:
        thread.join(30)
        assert not thread.is_alive(), "a line was never cut"


def says(first: bytes, again: bytes = b"", pause: float = 0.0) -> Talk:
    """Say one thing, then another again and again."""

    def talk(line: socket.socket) -> None:
        line.sendall(first)
        while again:
            line.sendall(again)
            time.sleep(pause)

    return talk


def hint_and_wait(line: socket.socket) -> None:
    """Say that an answer is coming, and no more."""
    line.sendall(HINT)
    wait(line)


def wait(line: socket.socket) -> None:
    """Say nothing."""
    while line.recv(65536):
        pass


OK = b"HTTP/1.1 200 OK\r\n"
HINT = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\nContent-Length: 7\r\n\r\n"
ENDLESS = {
    "a status that drips": says(b"HTTP/1.1 2", b"0", 0.02),
    "a header that drips": says(OK + b"X-Drip: ", b"a", 0.02),
    "headers that drip": says(OK, b"X-Drip: a\r\n", 0.02),
    "100, now and then": says(b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0.02),
    "102, now and then": says(b"", b"HTTP/1.1 102 Processing\r\n\r\n", 0.02),
    "a 100 whose headers drip": says(b"HTTP/1.1 100 Continue\r\n", b"X: a\r\n", 0.02),
    "silence": wait,
    "a hint, then silence": hint_and_wait,
}


def others() -> set[int | None]:
    """Threads that are no receiver's."""
    return {each.ident for each in threading.enumerate() if each.name != "receiver"}


@pytest.fixture(scope="module", name="authority")
def _authority(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ssl.SSLContext]:
    """The certificate of an authority of our own, and a server's side of TLS."""
    chain, key = write_chain(tmp_path_factory.mktemp("tls"), "127.0.0.1")
    return chain, server_context(chain, key)


@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
@pytest.mark.parametrize("case", ENDLESS)
def test_a_call_ends_at_its_deadline(
    case: str,
    tls: bool,
    authority: tuple[Path, ssl.SSLContext],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However the answer is drawn out: no sooner, hardly later, and no thread or line is left."""
    chain, context = authority
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(chain))
    before = others()
    with receiver(ENDLESS[case], context if tls else None) as url:
        began = time.monotonic()
        with pytest.raises(WebhookUnanswered, match="Timeout") as caught:
            deliver_event(url, {}, "complete_1", token=TOKEN, timeout=0.5, patience=0.1)
        took = time.monotonic() - began
        assert others() == before
    assert 0.5 <= took < 1.5
    assert "secret" not in str(caught.value) and caught.value.transient


@pytest.mark.parametrize("drips", [False, True])
def test_a_handshake_ends_at_its_deadline(drips: bool) -> None:
    """One that never comes, or comes a byte at a time."""
    record = says(b"\x16\x03\x03\x40\x00", b"\x02", 0.02)
    with receiver(record if drips else ENDLESS["silence"]) as url:
        began = time.monotonic()
        with pytest.raises(WebhookUnanswered):
            deliver_event(url.replace("http:", "https:"), {}, "c", timeout=0.5, patience=0.1)
        assert time.monotonic() - began < 1.5


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(says(b"", b"HTTP/1.1 100 Continue\r\n\r\n"), id="100 without end"),
        pytest.param(says(b"", HINT), id="103 without end"),
        pytest.param(says(OK, b"X-More: and more\r\n"), id="headers without end"),
        pytest.param(says(OK, b"X-Long: " + b"a" * 60_000 + b"\r\n"), id="long headers"),
        pytest.param(says(OK + b"X-Long: ", b"a" * 4096), id="a header without end"),
        pytest.param(says(b"HTTP/1.1 200 ", b"O" * 4096), id="a reason without end"),
        pytest.param(says(b"", b"\0" * 4096), id="no HTTP at all"),
        pytest.param(says(b"SSH-2.0-OpenSSH_9.6\r\n"), id="another protocol"),
        pytest.param(says(b"HTTP/1.1 \xb2\xb2\xb2 OK\r\n\r\n"), id="an odd status"),
        pytest.param(says(b"HTTP/7.0 200 OK\r\n\r\n"), id="an odd version"),
        pytest.param(says(b"HTTP/1.1 20"), id="cut short"),
        pytest.param(says(HINT), id="a hint, then nothing"),
        pytest.param(says(b""), id="nothing"),
    ],
)
def test_no_whole_answer_is_none(answer: Talk) -> None:
    """Nor is one that has no end: who sends it fast is not listened to until the deadline."""
    began = time.process_time()
    with receiver(answer) as url, pytest.raises(WebhookUnanswered, match="ConnectionError"):
        deliver_event(url, {}, "complete_1", timeout=60)
    assert time.process_time() - began < 5


@examples(60)
@given(
    st.sampled_from([b"", OK, b"HTTP/1.1 302 Found\r\n", b"HTTP/1.1 503 x\r\n", HINT]),
    st.lists(
        st.sampled_from(
            [
                b"Content-Length: 1\r\nContent-Length: 2\r\n",
                b"Content-Length: 5, 7\r\n",
                b"Content-Length: \xb2\r\n",
                b"Transfer-Encoding: chunked\r\n",
                b"Content-Encoding: zstd, gzip, x\r\n",
                b"Location: \xff\xfe\r\n",
                b"Location: http://[::1\r\n",
                b"Set-Cookie: a=b; expires=Mon, 99-Jan-99999999999 0:0:0 GMT; Max-Age=\xb2\r\n",
                b"Retry-After: \xb2\r\n",
                b" folded\r\n",
                b": none\r\n",
                b"\xf0\x28\x8c\x28\r\n",
            ]
        )
        | st.binary(max_size=40),
        max_size=5,
    ),
)
def test_no_answer_raises_anything_else(first: bytes, headers: list[bytes]) -> None:
    """It is taken or it is not; nothing of what a receiver sends ends a worker."""
    with receiver(says(first + b"".join(headers) + b"\r\n")) as url:
        with contextlib.suppress(WebhookError):
            deliver_event(url, {}, "complete_1", timeout=5, sleep=lambda _: None)


@pytest.mark.parametrize("lengths", [b"1\r\nContent-Length: 2", b"5, 7", b"-1", b"x"])
def test_nobody_minds_the_length_of_a_body(lengths: bytes) -> None:
    """It is not read: 200 is 200."""
    with receiver(says(OK + b"Content-Length: " + lengths + b"\r\n\r\nabc")) as url:
        deliver_event(url, {}, "complete_1", timeout=5)


@pytest.mark.parametrize("status", [b"200 OK", b"302 Found", b"308 Permanent Redirect", b"404 No"])
def test_no_body_is_read(status: bytes) -> None:
    """Of a body of any size a receiver gets rid of what lies in the sockets, and of no more."""
    sent = []

    def pour(line: socket.socket) -> None:
        line.sendall(b"HTTP/1.1 " + status + b"\r\nLocation: http://127.0.0.1:1/\r\n")
        line.sendall(b"Content-Length: 2000000000\r\n\r\n")
        while True:
            sent.append(line.send(bytes(1 << 16)))

    with receiver(pour) as url:
        assert send_progress(url, 1, 1, 2) == (status[:1] == b"2")
    assert sum(sent) < 32 << 20


def test_no_answer_is_packed() -> None:
    with WebhookReceiver() as backend:
        deliver_event(backend.url, {}, "complete_1")
    assert backend.received[0].headers["Accept-Encoding"] == "identity"


def test_hostile_calls_leave_nothing() -> None:
    """Neither threads nor sockets nor memory."""
    process = psutil.Process()

    def footprint() -> tuple[int, set[int | None], float]:
        gc.collect()
        return process.num_fds(), others(), process.memory_info().rss / 2**20

    tricks = [says(OK, b"X: a\r\n"), ENDLESS["100, now and then"], ENDLESS["a header that drips"]]
    tricks.append(says(OK + b"Content-Length: 9999999999\r\n\r\n", bytes(1 << 16)))
    with contextlib.ExitStack() as stack:
        urls = [stack.enter_context(receiver(talk)) for talk in tricks]
        for _ in range(2):
            for url in urls:
                send_progress(url, 1, 1, 2, timeout=0.2)
        before = footprint()
        for _ in range(5):
            for url in urls:
                send_progress(url, 1, 1, 2, timeout=0.2)
        after = footprint()
    assert after[1] == before[1]
    assert abs(after[0] - before[0]) <= len(urls)  # the receivers' ends close a moment later
    assert after[2] < before[2] + 16


# What comes before an answer


@pytest.mark.parametrize("status", [102, 103, 110, 199])
@pytest.mark.parametrize("times", [1, 3])
def test_what_comes_before_the_answer_is_passed_over(status: int, times: int) -> None:
    """As `100 Continue` is; the answer counts."""
    before = f"HTTP/1.1 {status} Wait\r\nLink: </a>\r\nContent-Length: 3\r\n\r\n".encode() * times
    before += b"HTTP/1.1 100 Continue\r\n\r\n"
    with receiver(says(before + b"HTTP/1.1 204 No Content\r\n\r\n")) as url:
        deliver_event(url, {}, "complete_1", timeout=5)
    with receiver(says(before + b"HTTP/1.1 410 Gone\r\n\r\n")) as url:
        with pytest.raises(WebhookRefused, match="410"):
            deliver_event(url, {}, "complete_1", timeout=5)


def test_another_protocol_is_no_hint() -> None:
    """Nobody asked for it, and no answer would follow."""
    switch = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n"
    with receiver(says(switch + OK + b"\r\n")) as url, pytest.raises(WebhookRefused, match="101"):
        deliver_event(url, {}, "complete_1", timeout=5)


# Several addresses


def resolves(monkeypatch: pytest.MonkeyPatch, host: str, *addresses: tuple[str, int]) -> None:
    """Have a host's name lead to these addresses, and other names where they lead."""
    look_up = socket.getaddrinfo

    def getaddrinfo(name: Any, *rest: Any, **options: Any) -> Any:
        if name != host:
            return look_up(name, *rest, **options)
        kind = socket.SOCK_STREAM
        return [each for found in addresses for each in look_up(*found, type=kind)]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


@contextlib.contextmanager
def black_hole(address: str, port: int = 0) -> Iterator[tuple[str, int]]:
    """An address that swallows connections: its backlog is full."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(
            socket.create_server((address, port), family=family, backlog=0)
        )
        for _ in range(4):
            waiting = stack.enter_context(socket.socket(family))
            waiting.setblocking(False)
            waiting.connect_ex(server.getsockname())
        yield address, server.getsockname()[1]


@pytest.mark.parametrize("dead", [["127.0.0.2"], ["::1"], ["127.0.0.2", "127.0.0.3"]])
def test_a_dead_address_leaves_time_for_the_next(
    monkeypatch: pytest.MonkeyPatch, dead: list[str]
) -> None:
    """As is usual of a host of two protocols whose one does not work."""
    with WebhookReceiver() as backend, contextlib.ExitStack() as stack:
        port = backend.server_port
        holes = [stack.enter_context(black_hole(address, port)) for address in dead]
        resolves(monkeypatch, "two.test", *holes, ("127.0.0.1", port))
        began = time.monotonic()
        assert send_progress(f"http://two.test:{port}/progress", 500, 1, 2, token=TOKEN)
        assert time.monotonic() - began < 3
    assert backend.received[0].headers["Authorization"] == f"Bearer {TOKEN}"
    assert backend.received[0].headers["Host"] == f"two.test:{port}"


def test_an_address_that_refuses_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with WebhookReceiver() as backend:
        port = backend.server_port
        resolves(monkeypatch, "two.test", ("127.0.0.2", port), ("127.0.0.1", port))
        assert send_progress(f"http://two.test:{port}/", 500, 1, 2)


def test_dead_addresses_share_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    with black_hole("127.0.0.1") as first, black_hole("127.0.0.2") as second:
        resolves(monkeypatch, "two.test", first, second)
        began = time.monotonic()
        with pytest.raises(WebhookUnanswered, match="ConnectTimeout"):
            deliver_event("http://two.test/", {}, "complete_1", timeout=0.6, patience=0.1)
        assert 0.6 <= time.monotonic() - began < 1.6


def test_a_resolver_that_hangs_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its thread ends with it."""
    answer, before = threading.Event(), others()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answer.wait(60) and [])
    began = time.monotonic()
    with pytest.raises(WebhookUnanswered, match="ConnectTimeout"):
        deliver_event("http://slow.test/", {}, "complete_1", timeout=0.3, patience=0.1)
    assert time.monotonic() - began < 1.3
    hanging = [each for each in threading.enumerate() if each.ident not in before]
    answer.set()
    for thread in hanging:
        assert thread.daemon
        thread.join(30)
    assert others() == before


@pytest.mark.parametrize("error", [socket.gaierror(-2, "secret"), None])
def test_a_host_without_address(monkeypatch: pytest.MonkeyPatch, error: OSError | None) -> None:
    """Whether the resolver says so or says nothing."""

    def getaddrinfo(*_: Any, **__: Any) -> list[Any]:
        if error:
            raise error
        return []

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    with pytest.raises(WebhookUnanswered, match="ConnectionError") as caught:
        deliver_event("http://none.test/", {}, "complete_1")
    assert "secret" not in str(caught.value)


# Only silence opens the circuit breaker


def test_an_answer_concerns_its_own_event() -> None:
    """Of thirty orders six are unknown to the backend; the others are as fast as without them."""
    state = RetryState(retries=3)

    def complete(unknown: set[int]) -> tuple[int, float]:
        def answer(webhook: ReceivedWebhook) -> int:
            is_unknown = webhook.body["generation_id"] in unknown
            return 404 if is_unknown and webhook.event == "complete" else 200

        def work(number: int) -> float:
            order = ORDER | {"generation_id": number, "webhook_url": backend.url}
            handle_generation_task(order, parts, state=state)
            return time.monotonic() - began

        with WebhookReceiver(answer) as backend, ThreadPoolExecutor(8) as pool:
            parts, began = painting_parts(backend.url), time.monotonic()
            jobs = {number: pool.submit(work, number) for number in range(1, 31)}
            for number in unknown:
                assert isinstance(jobs[number].exception(), WebhookError)
            ends = [jobs[number].result() for number in jobs.keys() - unknown]
        return len(ends), max(ends)

    (_, usual), (done, took) = complete(set()), complete({1, 2, 3, 11, 12, 30})
    assert done == 24 and took < usual + 2


@pytest.mark.parametrize("status", [404, 410, 429, 500, 503])
def test_an_answer_is_no_silence(status: int) -> None:
    with WebhookReceiver(lambda webhook: status) as backend:
        parts = painting_parts(backend.url)
        with pytest.raises(WebhookError) as caught:
            handle_generation_task(ORDER | {"webhook_url": backend.url}, parts, state=RetryState())
        assert not isinstance(caught.value, WebhookUnanswered)
        assert not parts.breaker.is_open(backend.url)


@pytest.mark.parametrize("answer", [says(b""), says(b"HTTP/1.1 2"), None])
def test_silence_opens_the_breaker(answer: Talk | None) -> None:
    """A line that is cut, in the middle of an answer or before; nobody who listens."""
    with receiver(answer or says(b"")) as url:
        origin = url.partition("/x")[0]
        if answer:
            parts = _unanswered(origin)
    if not answer:
        parts = _unanswered(origin)
    with pytest.raises(WebhookUnanswered, match="a moment ago"):
        order = ORDER | {"webhook_url": origin, "generation_id": 501}
        handle_generation_task(order, parts, state=RetryState(retries=3))


def _unanswered(origin: str) -> Any:
    """The parts of a worker whose first job was not answered."""
    parts = replace(painting_parts(origin), idempotent=True)
    with pytest.raises(WebhookUnanswered):
        handle_generation_task(ORDER | {"webhook_url": origin}, parts, state=RetryState(retries=3))
    assert parts.breaker.is_open(origin)
    return parts


# Origins

ALLOWED = ("http://[::1]:8080", "http://my_backend:8000", "http://127.0.0.1:8000")


@pytest.mark.parametrize(
    ("url", "rebuilt"),
    [
        ("http://[::1]:8080", "http://[::1]:8080"),
        ("http://[0:0:0:0:0:0:0:1]:8080/v1/", "http://[::1]:8080/v1"),
        ("HTTP://[0000::0001]:8080", "http://[::1]:8080"),
        ("http://my_backend:8000/", "http://my_backend:8000"),
        ("http://MY_BACKEND:8000", "http://my_backend:8000"),
    ],
)
def test_addresses_in_brackets_and_underscores(url: str, rebuilt: str) -> None:
    """An IPv6 address has one spelling, on either side."""
    assert allowed_url(url, ALLOWED) == rebuilt
    assert allowed_url(url, ("http://[::0:1]:8080/", "http://My_Backend:8000")) == rebuilt


STRANGE = [
    "http://127.1:8000",
    "http://0x7f.1:8000",
    "http://127.0.0.0x1:8000",
    "http://0177.0.0.1:8000",
    "http://2130706433:8000",
    "http://0x7f000001:8000",
    "http://127.0.0.1.:8000",
    "http://[::ffff:127.0.0.1]:8000",
    "http://[::ffff:7f00:1]:8080",
    "http://[::127.0.0.1]:8080",
    "http://[::1%lo]:8080",
    "http://[::1%25lo]:8080",
    "http://[fe80::1%1]:8080",
    "http://[::1:8080",
    "http://::1:8080",
    "http://[]:8080",
    "http://[:::]:8080",
    "http://[::1]]:8080",
    "http://[v1.a]:8080",
    "http://[::1]x:8080",
    "http://user@[::1]:8080",
    "http://user:pw@my_backend:8000",
    "http://my_backend:8000\\@evil.org",
    "http://evil.org\\@[::1]:8080",
    "http://my..backend:8000",
]


@pytest.mark.parametrize("url", STRANGE)
def test_strange_hosts_are_refused(url: str) -> None:
    """Even where an operator has written them, who is told at the start."""
    for origins in (ALLOWED, (url,), (*ALLOWED, url)):
        with pytest.raises(InvalidMessage) as caught:
            allowed_url(url, origins)
        assert "pw" not in str(caught.value)
    with pytest.raises(SettingsError, match="WEBHOOK_ALLOWED_ORIGINS") as wrong:
        load_settings(internal_api_token="t", webhook_allowed_origins=url)
    assert "pw" not in str(wrong.value) and "127" not in str(wrong.value)


def test_an_operator_may_name_them() -> None:
    given_origins = "http://[::1]:8080, http://my_backend:8000/, https://API.example.com"
    found = load_settings(internal_api_token="t", webhook_allowed_origins=given_origins)
    assert found.webhook_allowed_origins == tuple(given_origins.split(", "))


def test_an_address_in_brackets_is_called() -> None:
    """Over IPv6, by the rebuilt URL."""

    class Six(WebhookReceiver):
        """A receiver on ::1."""

        address_family = socket.AF_INET6

        def server_bind(self) -> None:
            self.server_address = ("::1", 0)
            super().server_bind()

    with Six() as backend:
        origin = f"http://[::1]:{backend.server_port}"
        deliver_event(allowed_url(f"http://[0::1]:{backend.server_port}", (origin,)), {}, "c")
    assert backend.received[0].headers["Host"] == origin.removeprefix("http://")


# Certificates


@pytest.mark.parametrize("variable", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_an_authority_of_our_own(
    variable: str,
    authority: tuple[Path, ssl.SSLContext],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Trusted where the environment says so; its proxies and netrc entries are not."""
    chain, context = authority
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login thief password thief\n", encoding="ascii")
    netrc.chmod(0o600)
    with tls_receiver(context) as backend, WebhookReceiver() as proxy:
        for name, value in {"NETRC": netrc, "https_proxy": proxy.url, "no_proxy": ""}.items():
            monkeypatch.setenv(name, str(value))
        with pytest.raises(WebhookUnanswered, match="SSLError"):
            deliver_event(backend.url, {}, "complete_1", token=TOKEN)
        assert not backend.received
        monkeypatch.setenv(variable, str(chain))
        deliver_event(backend.url, {}, "complete_1", token=TOKEN)
        assert send_progress(backend.url, 1, 1, 2, token=TOKEN)
    assert not proxy.received
    assert [each.headers["Authorization"] for each in backend.received] == [f"Bearer {TOKEN}"] * 2


def test_a_folder_of_authorities(
    authority: tuple[Path, ssl.SSLContext], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As OpenSSL wants it: each certificate's file is named by its subject's hash."""
    chain, context = authority
    root = chain.read_text("ascii").split("-----BEGIN")[-1]
    (tmp_path / "root.pem").write_text(f"-----BEGIN{root}", "ascii")
    subprocess.run(["openssl", "rehash", str(tmp_path)], check=True)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path))
    with tls_receiver(context) as backend:
        deliver_event(backend.url, {}, "complete_1")
    assert len(backend.received) == 1


@pytest.mark.parametrize("content", [None, "", "no certificate"])
def test_authorities_that_cannot_be_read(
    content: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One kind of error, which shows no path; a receiver without TLS does not mind."""
    bundle = tmp_path / "secret.pem"
    if content is not None:
        bundle.write_text(content, "ascii")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(bundle))
    with receiver(says(b"")) as url, pytest.raises(WebhookUnanswered, match="SSL") as caught:
        deliver_event(url.replace("http:", "https:"), {}, "complete_1")
    assert "secret" not in str(caught.value)
    with WebhookReceiver() as backend:
        deliver_event(backend.url, {}, "complete_1")
