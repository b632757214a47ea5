"""A real S3-compatible server over HTTP, on loopback, for tests."""

import atexit
import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from typing import Any
from urllib.parse import urlsplit

import boto3
import requests
from botocore.awsrequest import AWSResponse
from botocore.config import Config
from urllib3 import HTTPResponse
from waiting import wait_until


def make_client(endpoint_url: str) -> Any:
    """A boto3 client for a server of the tests."""
    return boto3.client(
        "s3",
        endpoint_url=endpoint_url,
        aws_access_key_id="test",
        aws_secret_access_key="test",
        region_name="us-east-1",
        config=Config(retries={"total_max_attempts": 2}),
    )


class S3Server:
    """ministack in a process group of its own, as a context manager."""

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.endpoint_url = f"http://127.0.0.1:{port}"
        self._environment = os.environ | {"BIND_HOST": "127.0.0.1", "GATEWAY_PORT": str(port)}
        self._process: subprocess.Popen[bytes] | None = None

    def client(self) -> Any:
        """A boto3 client for this server."""
        return make_client(self.endpoint_url)

    def start(self) -> None:
        """Start it, and wait until it answers."""
        atexit.register(self.stop)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "ministack"],
            env=self._environment,
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 60
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("ministack did not start")
            time.sleep(0.1)

    def stop(self) -> None:
        """End it, and what it started."""
        atexit.unregister(self.stop)
        if self._process:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def __enter__(self) -> "S3Server":
        self.start()
        return self

    def _answers(self) -> bool:
        try:
            return requests.get(self.endpoint_url, timeout=1).status_code < 500
        except requests.RequestException:
            return False

    def __exit__(self, *_: Any) -> None:
        self.stop()


def error_body(code: str | None) -> bytes:
    """S3's error; None gives an answer without a body."""
    return f"<Error><Code>{code}</Code></Error>".encode() if code else b""


class _Gate(BaseHTTPRequestHandler):
    """Passes requests on, but refuses some, as a bucket's owner or an account's policy does."""

    server: "OwnerEnforcedGate"
    protocol_version = "HTTP/1.1"

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.before(self.command)
        with_acl = "x-amz-acl" in self.headers
        self.server.seen.append((self.command, with_acl))
        if refusal := self.server.refusal_of(self.command, self.path, with_acl):
            self._refuse(*refusal)
            return
        back = http.client.HTTPConnection(self.server.behind, timeout=10)
        back.request(self.command, self.path, body, dict(self.headers))
        answer = back.getresponse()
        data = answer.read()
        back.close()
        if answer.status == 404 and self.server.hides_missing:
            self._refuse(403, "AccessDenied")
        else:
            self._answer(answer.status, dict(answer.getheaders()), data)
        self.server.after(self.command)

    def _refuse(self, status: int, code: str | None) -> None:
        body = b"" if self.command == "HEAD" else error_body(code)
        self._answer(status, {"Content-Type": "application/xml"}, body)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _pass_on

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "transfer-encoding", "connection", "date"):
                self.send_header(name, value)
        if self.server.says_time:
            now = time.time() + self.server.clock_offset
            self.send_header("Date", formatdate(now, usegmt=True))
        length = headers.get("Content-Length") if self.command == "HEAD" else None
        self.send_header("Content-Length", length or str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:  # pylint: disable=arguments-differ
        """Stay silent."""


class OwnerEnforcedGate(ThreadingHTTPServer):
    """In front of a server that knows no owner-enforced buckets (ministack 1.5, moto 5.2).

    Args:
        server: What it stands in front of.
        refusal: Status and code of its answer to an ACL; None takes ACLs.
        refuses_all: It refuses every PUT.

    Attributes:
        refused_path: It also refuses each PUT whose path begins so.
        denied: Gets method, path and whether there is an ACL; what it denies, no policy allows.
        hides_missing: What is missing is denied, too, as to those who may not list.
        says_time: Answers have a date; `clock_offset` seconds later than it is.
        seen: (method, whether it had an ACL) of every request.
        before, after: Called with the method of each request, around passing it on.
    """

    daemon_threads = True

    def __init__(
        self,
        server: S3Server,
        refusal: tuple[int, str | None] | None = (400, "AccessControlListNotSupported"),
        *,
        refuses_all: bool = False,
    ) -> None:
        super().__init__(("127.0.0.1", 0), _Gate)
        self.refusal, self.refuses_all = refusal, refuses_all
        self.refused_path: str | None = None
        self.denied: Callable[[str, str, bool], bool] = lambda method, path, with_acl: False
        self.hides_missing, self.says_time, self.clock_offset = False, True, 0.0
        self.before: Callable[[str], None] = lambda method: None
        self.after: Callable[[str], None] = lambda method: None
        self.behind = server.endpoint_url.removeprefix("http://")
        self.endpoint_url = f"http://127.0.0.1:{self.server_port}"
        self.seen: list[tuple[str, bool]] = []

    def refusal_of(self, method: str, path: str, with_acl: bool) -> tuple[int, str | None] | None:
        """Status and code of what it refuses; None for a request that it passes on."""
        if self.denied(method, path, with_acl):
            return 403, "AccessDenied"
        if method != "PUT":
            return None
        if with_acl and self.refusal:
            return self.refusal
        begins = self.refused_path is not None and path.startswith(self.refused_path)
        return (403, "RefusedAnyway") if self.refuses_all or begins else None

    def client(self) -> Any:
        """A boto3 client that goes through the gate."""
        return make_client(self.endpoint_url)

    def __enter__(self) -> "OwnerEnforcedGate":
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


def put_half(server: S3Server, bucket: str, key: str, metadata: dict[str, str]) -> None:
    """A writer that promises 1000 bytes and dies after eight."""
    sent = {"Host": "bucket", "Content-Length": "1000"}
    sent |= {f"x-amz-meta-{name}": value for name, value in metadata.items()}
    head = "".join(f"{name}: {value}\r\n" for name, value in sent.items())
    host, port = server.endpoint_url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as line:
        line.sendall(f"PUT /{bucket}/{key} HTTP/1.1\r\n{head}\r\n".encode() + b'{"half":')
    client = server.client()
    wait_until(lambda: "Contents" in client.list_objects_v2(Bucket=bucket, Prefix=key))


def lose_conditions(client: Any) -> Any:
    """Make a client send its writes without conditions, as if the server ignored them."""

    def lose(request: Any, **_: Any) -> None:
        for name in ("If-None-Match", "If-Match"):
            del request.headers[name]

    client.meta.events.register("before-sign.s3.PutObject", lose)
    return client


def answer(client: Any, *answers: tuple[int, bytes]) -> list[tuple[int, bytes]]:
    """Answer a client's next uploads in the server's place.

    Args:
        client: A boto3 client.
        answers: Status and body of each answer.

    Returns:
        The answers that are left.
    """
    left = list(answers)

    def before_send(request: Any, **_: Any) -> AWSResponse | None:
        if not left:
            return None
        status, body = left.pop(0)
        raw = HTTPResponse(BytesIO(body), preload_content=False)
        return AWSResponse(request.url, status, {}, raw)

    client.meta.events.register("before-send.s3.PutObject", before_send)
    return left


_SHOWN = ("content-type", "if-none-match", "if-match", "x-amz-acl")


@contextmanager
def recorded(client: Any) -> Iterator[list[str]]:
    """The requests that a client sends meanwhile: method, path, headers that matter, status."""
    lines: list[str] = []

    def note(request: Any, **_: Any) -> None:
        headers = {
            name.lower(): value.decode() if isinstance(value, bytes) else value
            for name, value in request.headers.items()
        }
        shown = [f"{name}: {headers[name]}" for name in _SHOWN if name in headers]
        lines.append("  ".join([f"{request.method:4} {urlsplit(request.url).path}", *shown]))

    def note_answer(http_response: Any, **_: Any) -> None:
        lines[-1] += f"  → {http_response.status_code}"

    events = {"before-send.s3": note, "after-call.s3": note_answer}
    for event, handler in events.items():
        client.meta.events.register(event, handler)
    try:
        yield lines
    finally:
        for event, handler in events.items():
            client.meta.events.unregister(event, handler)
