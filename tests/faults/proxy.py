"""Cables that break: a TCP proxy, an HTTP front of a bucket, and a backend that misbehaves."""

import itertools
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from stylegen.webhook import ReceivedWebhook, WebhookReceiver

_RESET = struct.pack("ii", 1, 0)


class Proxy:
    """A TCP proxy on loopback.

    Its `mode` is what the cable does: ``pass``, ``reset`` (every connection is reset), ``hole``
    (bytes are swallowed), ``slow`` (a few bytes at a time) or ``truncate`` (answers break off).
    """

    def __init__(self, host: str, port: int) -> None:
        self.mode = "pass"
        self.faults = 0
        self._target = (host, port)
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            if self.mode == "reset":
                self.faults += 1
                _reset(client)
                continue
            try:
                server = socket.create_connection(self._target)
            except OSError:
                _reset(client)
                continue
            self._pairs.append((client, server))
            for source, sink, answers in ((client, server, False), (server, client, True)):
                pump = (source, sink, answers)
                threading.Thread(target=self._pump, args=pump, daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, answers: bool) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                self._forward(data, sink, answers)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _forward(self, data: bytes, sink: socket.socket, answers: bool) -> None:
        if self.mode == "hole":
            self.faults += 1
        elif self.mode == "truncate" and answers:
            self.faults += 1
            sink.sendall(data[: len(data) // 2])
            raise OSError
        elif self.mode == "slow":
            self.faults += 1
            for start in range(0, len(data), 256):
                sink.sendall(data[start : start + 256])
                time.sleep(0.005)
        else:
            sink.sendall(data)

    @contextmanager
    def fault(self, mode: str) -> Iterator[None]:
        """The cable's `mode` for the length of a block; what is open is hit as well."""
        self.mode = mode
        if mode == "reset":
            self.cut()
        try:
            yield
        finally:
            self.mode = "pass"
            if mode == "hole":  # what was swallowed is missing: no such stream can go on
                self.cut()

    def cut(self) -> None:
        """Reset every open connection."""
        pairs, self._pairs = self._pairs, []
        for client, server in pairs:
            self.faults += 1
            _reset(client)
            _reset(server)

    def close(self) -> None:
        """End it."""
        self._server.close()
        self.cut()


def _reset(end: socket.socket) -> None:
    with suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        end.shutdown(socket.SHUT_RDWR)  # wakes whoever reads, and holds the socket open
        end.close()


Rule = Callable[[str, str], "str | None"]
"""Gets a request's method and path; names what goes wrong with it, or None."""


class BucketFront(ThreadingHTTPServer):
    """Stands before an S3 server and spoils the requests that `rule` chooses.

    A rule names a status (``500``, ``503``, ``403``), ``slow``, ``truncate`` (half of the answer)
    or ``reset after`` (done, but the answer is lost).
    """

    daemon_threads = True

    def __init__(self, endpoint_url: str) -> None:
        super().__init__(("127.0.0.1", 0), _FrontHandler)
        self.target = urlsplit(endpoint_url).netloc
        self.faults = 0
        self.rule: Rule = lambda method, path: None
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def handle_error(self, *_: Any) -> None:
        """A client that hangs up is what these tests are about."""


class _FrontHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: BucketFront

    def _take(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = self.server.rule(self.command, self.path)
        self.server.faults += fault is not None
        if fault and fault.isdigit():
            self._answer(int(fault), {}, f"<Error><Code>Fault{fault}</Code></Error>".encode())
            return
        status, headers, answer = self._ask(body)
        if fault == "slow":
            time.sleep(1.0)
        elif fault == "truncate":
            headers["Content-Length"] = str(2 * len(answer) + 1)
            self.close_connection = True
        elif fault == "reset after":
            _reset(self.connection)
            return
        self._answer(status, headers, answer)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _take  # noqa: N815

    def _ask(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        upstream = HTTPConnection(self.server.target, timeout=30)
        upstream.request(self.command, self.path, body, dict(self.headers))
        answer = upstream.getresponse()
        data, headers = answer.read(), dict(answer.getheaders())
        upstream.close()
        return answer.status, headers, data

    def _answer(self, status: int, headers: dict[str, str], data: bytes) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(data))} | headers).items():
            if name.lower() not in ("transfer-encoding", "connection", "server", "date"):
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:  # pylint: disable=arguments-differ
        """Stay silent."""


class Backend(WebhookReceiver):
    """A receiver; `trick` chooses what goes wrong with a webhook, by name, or None.

    A trick is a status, ``lag`` (taken, but the answer comes late), ``hint`` (taken, after a word
    that it will be), ``hang``, ``drip`` or ``promise`` (for ever), ``flood`` (an answer of 300 MB)
    or ``divert`` (the same elsewhere). `seen` holds every webhook in the order of arrival, also
    those that were tricked: a receiver may have stored what it answered badly. `told_at` says when
    an id's first terminal event was taken.
    """

    def __init__(self) -> None:
        super().__init__()
        self.RequestHandlerClass = _BackendHandler  # pylint: disable=invalid-name
        self.faults = 0
        self.seen: list[ReceivedWebhook] = []
        self.told_at: dict[int, float] = {}
        self.trick: Callable[[ReceivedWebhook], str | None] = lambda webhook: None
        self.ended = threading.Event()

    def take(self, webhook: ReceivedWebhook) -> int:
        """Record a webhook that is answered well."""
        if webhook.event != "progress":
            self.told_at.setdefault(webhook.body["generation_id"], time.monotonic())
        return super().take(webhook)

    def handle_error(self, *_: Any) -> None:
        """A client that hangs up is what these tests are about."""


class _BackendHandler(BaseHTTPRequestHandler):
    server: Backend
    webhook: ReceivedWebhook

    def _take(self) -> None:
        self.webhook = ReceivedWebhook.read(self)
        self.server.seen.append(self.webhook)
        trick = self.server.trick(self.webhook)
        self.server.faults += trick is not None
        if trick is None:
            self._answer(self.server.take(self.webhook))
        elif trick.isdigit():
            self._answer(int(trick))
        else:
            getattr(self, f"_{trick}")()

    do_POST = do_PATCH = _take  # noqa: N815

    def _answer(self, status: int, length: int = 0) -> None:
        self.send_response(status)
        self.send_header("Location", "http://169.254.169.254/latest/meta-data")
        self.send_header("Retry-After", "1")
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def _lag(self) -> None:
        self.server.ended.wait(1.0)
        self._answer(self.server.take(self.webhook))

    def _hang(self) -> None:
        self.server.ended.wait(60)

    def _drip(self) -> None:
        for letter in itertools.chain(b"HTTP/1.1 200 OK\r\nX-Slow: ", itertools.repeat(120)):
            self.wfile.write(bytes([letter]))
            if self.server.ended.wait(0.5):
                return

    def _hint(self) -> None:
        self.send_response_only(103)
        self.end_headers()
        self._answer(self.server.take(self.webhook))

    def _promise(self) -> None:
        while not self.server.ended.is_set():
            self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _divert(self) -> None:
        self._flood(302)

    def _flood(self, status: int = 500) -> None:
        self._answer(status, 300 * 2**20)
        for _ in range(300):
            self.wfile.write(bytes(2**20))

    def log_message(self, *_: Any) -> None:  # pylint: disable=arguments-differ
        """Stay silent."""
