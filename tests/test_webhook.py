"""Contracts of `stylegen.webhook`, against a real HTTP receiver on loopback."""

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests
import tenacity

from stylegen.job import InvalidMessage, WebhookError
from stylegen.webhook import (
    ProgressReporter,
    WebhookReceiver,
    allowed_url,
    complete_event_id,
    deliver_event,
    failed_event_id,
    progress_event_id,
    send_complete_webhook,
    send_failed_webhook,
    send_progress,
    webhook_urls,
)
from stylegen.webhook import delivery

TOKEN = "internal-t0ken"
MILESTONES = (0, 25, 50, 75, 90)  # by the contract
ALLOWED = (
    "https://api.example.com",
    "http://127.0.0.1:8000",
    "https://backend.internal:8443/",
)


@pytest.fixture(autouse=True)
def _calm(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pauses between attempts, no token from outside."""
    monkeypatch.setattr(delivery, "WAIT", tenacity.wait_none())
    monkeypatch.delenv("INTERNAL_API_TOKEN", raising=False)


@pytest.fixture(name="backend")
def _backend() -> Iterator[WebhookReceiver]:
    with WebhookReceiver() as running:
        yield running


def test_addresses_are_below_any_path() -> None:
    """Slashes at its end are no part of it, whatever the rest is made of."""
    for base in ("https://host/inboX", "https://host/inboX/", "https://host/inboX//"):
        assert webhook_urls(base).complete == "https://host/inboX/api/webhooks/inference/complete"


def send_everything(base: str, token: str | None = TOKEN) -> None:
    urls = webhook_urls(base)
    send_progress(
        urls.progress,
        500,
        13,
        50,
        progress_percent=25,
        estimated_seconds=4,
        token=token,
    )
    send_complete_webhook(urls.complete, 500, "https://cdn/gen_500.jpg", 0, token=token)
    send_failed_webhook(
        urls.failed,
        "g-1",
        "no",
        error_code="LORA_NOT_FOUND",
        retry_count=2,
        token=token,
    )


def test_what_goes_over_the_wire(backend: WebhookReceiver) -> None:
    send_everything(backend.url + "/")
    root = "/api/webhooks/inference"
    assert [(each.method, each.path, each.body) for each in backend.received] == [
        (
            "PATCH",
            f"{root}/progress",
            {
                "generation_id": 500,
                "progress": {
                    "current_step": 13,
                    "total_steps": 50,
                    "progress_percent": 25,
                    "estimated_seconds": 4,
                },
            },
        ),
        (
            "POST",
            f"{root}/complete",
            {
                "generation_id": 500,
                "result_url": "https://cdn/gen_500.jpg",
                "metadata": {"seed": 0, "steps": 50, "guidance_scale": 7.5},
            },
        ),
        (
            "POST",
            f"{root}/failed",
            {
                "generation_id": "g-1",
                "error_message": "no",
                "error_code": "LORA_NOT_FOUND",
                "retry_count": 2,
            },
        ),
    ]
    for each in backend.received:
        assert each.headers["Authorization"] == f"Bearer {TOKEN}"
        assert each.headers["X-Request-Source"] == "inference-server"
        assert each.headers["Content-Type"] == "application/json"


def test_metadata_and_defaults(backend: WebhookReceiver) -> None:
    facts = {"steps": 20, "aspect_ratio": "1:2"}
    send_complete_webhook(backend.url, 1, "https://cdn/1.jpg", 7, metadata=facts)
    send_failed_webhook(backend.url, 1, "no")
    assert backend.received[0].body["metadata"] == {
        "seed": 7,
        "steps": 20,
        "guidance_scale": 7.5,
        "aspect_ratio": "1:2",
    }
    assert backend.received[1].body["error_code"] == "GENERATION_FAILED"
    assert backend.received[1].body["retry_count"] == 0


def test_the_token_is_read_at_call_time(
    backend: WebhookReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    send_everything(backend.url, token=None)
    monkeypatch.setenv("INTERNAL_API_TOKEN", "later")
    send_everything(backend.url, token=None)
    seen = [each.headers.get("Authorization") for each in backend.received]
    assert seen == [None] * 3 + ["Bearer later"] * 3


def test_neither_proxy_nor_netrc_sees_the_token(
    backend: WebhookReceiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login thief password thief\n", encoding="ascii")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with WebhookReceiver() as proxy:
        for name in (
            "http_proxy",
            "HTTP_PROXY",
            "https_proxy",
            "all_proxy",
            "ALL_PROXY",
        ):
            monkeypatch.setenv(name, proxy.url)
        send_everything(backend.url)
        send_everything(backend.url, token="")
    assert not proxy.received
    seen = [each.headers.get("Authorization") for each in backend.received]
    assert seen == [f"Bearer {TOKEN}"] * 3 + [None] * 3


@pytest.mark.parametrize("status", [429, 500, 503])
def test_retries_carry_the_same_body(status: int) -> None:
    answers = iter([status, status, 200])
    with WebhookReceiver(lambda _: next(answers)) as backend:
        send_complete_webhook(backend.url, 500, "https://cdn/500.jpg", 1, token=TOKEN)
    assert len(backend.received) == 3
    assert all(each == backend.received[0] for each in backend.received)


@pytest.mark.parametrize("status", [401, 403, 404, 408])
def test_what_a_deployment_may_say_is_not_final(status: int) -> None:
    moods = iter([status, 200])
    with WebhookReceiver(lambda _: next(moods)) as backend:
        send_failed_webhook(backend.url, 500, "no", token=TOKEN)
    assert len(backend.received) == 2


@pytest.mark.parametrize("status", [301, 302, 307, 308, 400, 410, 413, 422])
def test_other_answers_are_final(status: int) -> None:
    with WebhookReceiver(lambda _: status) as backend:
        with pytest.raises(WebhookError, match=str(status)):
            send_failed_webhook(backend.url + "/secret?x=secret", 500, "no", token=TOKEN)
    assert len(backend.received) == 1


def test_giving_up(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "stylegen"):
        with WebhookReceiver(lambda _: 503) as backend:
            with pytest.raises(WebhookError, match="503") as caught:
                send_failed_webhook(backend.url + "/?x=secret", 500, "no", token=TOKEN)
        assert len(backend.received) == 4
        with pytest.raises(WebhookError) as dead:
            send_failed_webhook(backend.url + "/?x=secret", 500, "no", token=TOKEN)
    for text in (str(caught.value), str(dead.value), caplog.text):
        assert "secret" not in text and TOKEN not in text
    assert caught.value.transient


@pytest.mark.parametrize("status", [302, 404, 500])
def test_progress_is_best_effort(status: int, caplog: pytest.LogCaptureFixture) -> None:
    with WebhookReceiver(lambda _: status) as backend:
        send_progress(backend.url + "/?x=secret", 500, 1, 2, token=TOKEN)
    send_progress(backend.url + "/?x=secret", 500, 2, 2, token=TOKEN)  # nobody listens now
    assert len(backend.received) == 1
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2
    assert "secret" not in caplog.text and TOKEN not in caplog.text


@pytest.mark.parametrize("timeout", [0.2, 0.6])
def test_a_silent_receiver_times_out(timeout: float) -> None:
    """After the time that was set, and neither before nor long after."""
    release = threading.Event()
    with WebhookReceiver(lambda _: 200 if release.wait(60) else 500) as backend:
        began = time.monotonic()
        taken = send_progress(backend.url, 500, 1, 2, timeout=timeout)
        took = time.monotonic() - began
        with pytest.raises(WebhookError, match="Timeout"):
            send_failed_webhook(backend.url, 500, "no", timeout=timeout)
        all_took = time.monotonic() - began - took
        release.set()
    assert not taken and timeout <= took < timeout + 2
    assert 4 * timeout <= all_took < 4 * timeout + 4


@pytest.mark.parametrize(("options", "seconds"), [({}, 10.0), ({"timeout": 3.0}, 3.0)])
def test_ten_seconds_unless_asked_otherwise(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, float], seconds: float
) -> None:
    """The contract's time for a call, at each sender."""
    asked: list[float] = []

    def refuse(*_: Any, timeout: float, **__: Any) -> None:
        asked.append(timeout)
        raise requests.ConnectionError

    for name in ("patch", "post"):
        monkeypatch.setattr(requests, name, refuse)
    with pytest.raises(WebhookError):
        send_failed_webhook("http://127.0.0.1:1", 500, "no", **options)
    with pytest.raises(WebhookError):
        send_complete_webhook("http://127.0.0.1:1", 500, "https://cdn/1.jpg", 0, **options)
    assert not send_progress("http://127.0.0.1:1", 500, 1, 2, **options)
    assert asked == [seconds] * (4 + 4 + 1)


class _Busy(BaseHTTPRequestHandler):
    """Answers 503 with the server's ``Retry-After``, and then 200."""

    server: Any

    def do_POST(self) -> None:  # pylint: disable=invalid-name
        """Take a webhook, or ask for another time."""
        self.server.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
        first = len(self.server.bodies) == 1
        self.send_response(503 if first else 200)
        if first:
            self.send_header("Retry-After", self.server.asked)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Stay silent."""


@contextlib.contextmanager
def busy_receiver(retry_after: str) -> Iterator[Any]:
    """A receiver that wants to be asked again, once; its `bodies` are what it got."""
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), _Busy)
    server.bodies, server.asked = [], retry_after
    server.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def in_seconds(seconds: float) -> str:
    """A date from now, as HTTP writes it."""
    return format_datetime(datetime.now(timezone.utc) + timedelta(seconds=seconds), usegmt=True)


@pytest.mark.parametrize(
    ("asked", "least", "most"),
    [
        ("7", 7, 7),
        ("30", 30, 30),
        ("31", 30, 30),
        ("86400", 30, 30),
        ("9" * 400, 30, 30),
        ("DATE 20", 15, 20),
        ("DATE 3600", 30, 30),
        ("DATE -3600", 2, 2),
        ("Mon, 01 Jan 99999999999999999999 00:00:00 GMT", 2, 2),
        ("Mon, 01 Jan 2100 99999999999999999999:00:00 GMT", 2, 2),
        ("Mon, 01 Jan 2100 00:00:00 +99999999999999999999", 2, 2),
        ("Fri Jan  1 00:00:00 2100", 30, 30),
        ("9" * 10_000, 30, 30),
        ("1e400", 2, 2),
        ("²", 2, 2),
        ("0", 2, 2),
        ("1", 2, 2),
        ("", 2, 2),
        ("-3", 2, 2),
        ("1.5", 2, 2),
        ("soon", 2, 2),
    ],
)
def test_retry_after_is_honoured_and_bounded(
    monkeypatch: pytest.MonkeyPatch, asked: str, least: float, most: float
) -> None:
    """Seconds or a date, at most 30 s from now, no sooner than our own pause; else nothing."""
    pauses: list[float] = []
    monkeypatch.setattr(delivery, "WAIT", tenacity.wait_fixed(2))
    if asked.startswith("DATE"):
        asked = in_seconds(float(asked[5:]))
    with busy_receiver(asked) as receiver:
        deliver_event(receiver.url, {}, "complete_1", sleep=pauses.append)
    assert len(receiver.bodies) == 2 and receiver.bodies[0] == receiver.bodies[1]
    (pause,) = pauses
    assert least <= pause <= most


def test_a_long_pause_is_not_waited_for() -> None:
    """Who has less patience than is asked for gives up at once: the job waits elsewhere."""
    pauses: list[float] = []
    with busy_receiver("20") as receiver, pytest.raises(WebhookError):
        deliver_event(receiver.url, {}, "complete_1", patience=10, sleep=pauses.append)
    assert len(receiver.bodies) == 1 and not pauses


@pytest.mark.parametrize(
    ("url", "rebuilt"),
    [
        ("https://api.example.com", "https://api.example.com"),
        ("https://api.example.com/", "https://api.example.com"),
        ("HTTPS://API.Example.COM:443/v1/", "https://api.example.com/v1"),
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("https://backend.internal:8443/a/b", "https://backend.internal:8443/a/b"),
    ],
)
def test_allowed_urls(url: str, rebuilt: str) -> None:
    assert allowed_url(url, ALLOWED) == rebuilt


@pytest.mark.parametrize(("scheme", "port"), [("http", 80), ("https", 443)])
def test_a_schemes_own_port_may_be_said(scheme: str, port: int) -> None:
    """By the operator, by the job, or by neither: it is one origin."""
    plain, said = f"{scheme}://backend", f"{scheme}://backend:{port}"
    assert {allowed_url(url, (own,)) for url in (plain, said) for own in (plain, said)} == {plain}


HOSTILE = [
    "",
    "api.example.com",
    "//api.example.com",
    "https:api.example.com",
    "https://",
    "http://api.example.com",
    "https://api.example.com:8443",
    "https://api.example.com:99999",
    "https://api.example.com:x",
    "https://api.example.com.",
    "https://api.example.com.evil.org",
    "https://evil.org/https://api.example.com",
    "https://user@api.example.com",
    "https://user:pw@api.example.com",
    "https://api.example.com@evil.org",
    "https://api.example.com%40evil.org",
    "https://evil.org\\@api.example.com",
    "https://api.example.com\\.evil.org",
    "https://api.example.com/?next=x",
    "https://api.example.com?",
    "https://api.example.com/#x",
    "https://api.example.com/../x",
    "https://api.example.com/%2e%2e/x",
    "https://api.example.com\n",
    "\thttps://api.example.com",
    "https://api.example.com/a b",
    "https://api.exa\u00admple.com",
    "https://\u0430pi.example.com",
    "https://api\u3002example.com",
    "https://\uff41pi.example.com",
    "http://127.1:8000",
    "http://0x7f.1:8000",
    "http://0177.0.0.1:8000",
    "http://2130706433:8000",
    "http://127.0.0.1:08000x",
    "http://[::1]:8000",
    "http://[::ffff:127.0.0.1]:8000",
    "http://localhost:8000",
    "ftp://api.example.com",
    "file:///etc/passwd",
    "javascript:alert(1)",
]


@pytest.mark.parametrize("url", HOSTILE)
def test_hostile_urls(url: str) -> None:
    with pytest.raises(InvalidMessage) as caught:
        allowed_url(url, ALLOWED)
    assert "pw" not in str(caught.value)


def test_nothing_is_allowed_by_default() -> None:
    with pytest.raises(InvalidMessage):
        allowed_url("https://api.example.com", ())


def report(total: int, send: Callable[..., None], **close: Any) -> None:
    reporter = ProgressReporter(send, total)
    for step in range(total + 1):
        reporter(step)
    reporter.close(**close)


@pytest.mark.parametrize("total", [1, 2, 3, 4, 7, 20, 50, 100, 500])
def test_milestones(total: int) -> None:
    sent: list[tuple[int, int]] = []

    def send(step: int, _: int, *, progress_percent: int, **__: Any) -> None:
        sent.append((step, progress_percent))

    report(total, send)
    first = [next(s for s in range(total + 1) if 100 * s >= mark * total) for mark in MILESTONES]
    assert sent == list(zip(first, MILESTONES))


def test_estimates_are_measured() -> None:
    """Steps that are left, at the speed of those that were taken; time in line is none of it."""
    now, seconds, sent = [0.0], [], threading.Semaphore(0)

    def send(step: int, total: int, *, estimated_seconds: int, **__: Any) -> None:
        seconds.append((step, total, estimated_seconds))
        sent.release()

    before = set(threading.enumerate())
    with ProgressReporter(send, 100, clock=lambda: now[0]) as reporter:
        (own,) = set(threading.enumerate()) - before
        assert own.daemon  # a silent receiver keeps no process alive
        for clock, step in ((60, 0), (70, 25), (90, 50), (96, 75), (150, 90)):
            now[0] = float(clock)
            reporter(step)
            assert sent.acquire(timeout=30)
    assert seconds == [(0, 100, 0), (25, 100, 30), (50, 100, 30), (75, 100, 12), (90, 100, 10)]
    assert {type(estimate) for _, _, estimate in seconds} == {int}


def test_progress_arrives_in_order(backend: WebhookReceiver) -> None:
    report(50, partial(send_progress, webhook_urls(backend.url).progress, 500))
    bodies = [each.body["progress"] for each in backend.received]
    assert [body["progress_percent"] for body in bodies] == list(MILESTONES)
    assert [body["current_step"] for body in bodies] == [0, 13, 25, 38, 45]


def test_a_slow_receiver_does_not_slow_the_caller() -> None:
    """The first answer comes when the reporter is closed; who waits for it sends more than one."""
    with WebhookReceiver(lambda _: 200 if reporter.closed.wait(10) else 500) as backend:
        urls = webhook_urls(backend.url)
        reporter = ProgressReporter(partial(send_progress, urls.progress, 500), 50)
        for step in range(51):
            reporter(step)
        assert backend.wait_for(1, "progress", 10)
        reporter.close(patience=0)
        send_complete_webhook(urls.complete, 500, "https://cdn/500.jpg", 1)
        time.sleep(0.3)
    assert [each.event for each in backend.received] == ["progress", "complete"]


def test_a_receiver_that_lags_gets_the_newest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stylegen.webhook.progress.STALE_AFTER", 0.0)
    sent: list[int] = []
    begun, go = threading.Event(), threading.Event()

    def send(*_: Any, progress_percent: int, **__: Any) -> None:
        sent.append(progress_percent)
        begun.set()
        go.wait(10)

    reporter = ProgressReporter(send, 50)
    reporter(0)
    assert begun.wait(10)
    for step in range(1, 40):
        reporter(step)
    go.set()
    reporter.close()
    assert sent == [0, 75]


def test_leaving_by_an_error_drops_progress() -> None:
    with WebhookReceiver(lambda _: 200 if reporter.closed.wait(10) else 500) as backend:
        urls = webhook_urls(backend.url)
        with pytest.raises(ZeroDivisionError):
            with ProgressReporter(partial(send_progress, urls.progress, 500), 50) as reporter:
                for step in range(51):
                    reporter(step)
                backend.wait_for(1, "progress", 10)
                raise ZeroDivisionError
        send_failed_webhook(urls.failed, 500, "no")
        time.sleep(0.3)
    assert [each.event for each in backend.received] == ["progress", "failed"]


def test_the_receiver_waits(backend: WebhookReceiver) -> None:
    threading.Timer(0.1, send_everything, (backend.url,)).start()
    assert backend.wait_for(1, "failed", 10)[0].body["generation_id"] == "g-1"
    assert not backend.wait_for(1, "nothing", 0.05)


def raw_receiver(answer: bytes, drip: bytes = b"") -> str:
    """A server that answers once with these very bytes, then drips for three seconds."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with listener, listener.accept()[0] as peer, contextlib.suppress(OSError):
            peer.recv(65536)
            peer.sendall(answer)
            for _ in range(10 if drip else 0):
                time.sleep(0.3)
                peer.sendall(drip)

    threading.Thread(target=serve, daemon=True).start()
    return f"http://127.0.0.1:{listener.getsockname()[1]}/x?y=secret"


@pytest.mark.parametrize("status", ["300 Many", "302 Found", "304 Not Modified"])
def test_a_redirect_without_a_location_is_a_failure(status: str) -> None:
    url = raw_receiver(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode())
    with pytest.raises(WebhookError, match=status[:3]) as caught:
        send_complete_webhook(url, 500, "https://cdn/500.jpg", 1, token=TOKEN)
    assert "http://127.0.0.1:" in str(caught.value) and "secret" not in str(caught.value)


def test_a_dripping_body_costs_nothing() -> None:
    began = time.monotonic()
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"
    send_complete_webhook(raw_receiver(head, b"x"), 500, "https://cdn/500.jpg", 1, timeout=1)
    assert time.monotonic() - began < 1


def test_a_token_from_a_file_ends_in_a_newline(backend: WebhookReceiver) -> None:
    send_everything(backend.url, token=TOKEN + "\n")
    assert {each.headers["Authorization"] for each in backend.received} == {f"Bearer {TOKEN}"}


@pytest.mark.parametrize("token", ["two\nlines", "열쇠"])
def test_an_impossible_token_is_not_shown(
    backend: WebhookReceiver, token: str, caplog: pytest.LogCaptureFixture
) -> None:
    send_progress(backend.url, 500, 1, 2, token=token)
    with pytest.raises(WebhookError) as caught:
        send_failed_webhook(backend.url, 500, "no", token=token)
    assert token not in caplog.text and token[:3] not in str(caught.value)
    assert not backend.received


def test_an_event_keeps_its_id_until_a_redrive() -> None:
    """The ids that receivers have been dropping doubles by."""
    assert progress_event_id("g-1", 0) == "progress_g-1_0"
    assert complete_event_id(500) == "complete_500"
    assert [failed_event_id(500, redrives) for redrives in (0, 1, 12)] == [
        "failed_500",
        "failed_500_1",
        "failed_500_12",
    ]


def test_a_failing_sender_does_not_end_progress() -> None:
    sent: list[int] = []

    def send(*_: Any, progress_percent: int, **__: Any) -> None:
        sent.append(progress_percent)
        raise RuntimeError("secret")

    report(50, send)
    assert sent == list(MILESTONES)


@pytest.mark.parametrize("origin", ["*", "api.example.com", "ftp://api.example.com", ""])
def test_an_odd_entry_of_the_list_allows_nothing(origin: str) -> None:
    for url in ("https://api.example.com", "https://api.example.com:0"):
        with pytest.raises(InvalidMessage):
            allowed_url(url, (origin,))


def test_port_zero_is_not_the_default_port() -> None:
    with pytest.raises(InvalidMessage):
        allowed_url("https://api.example.com:0", ALLOWED)
