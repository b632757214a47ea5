"""Whoever reaches the health port may hold it; the probes answer all the same."""

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import pytest
import requests

from stylegen.worker import Health, HealthServer, Metrics, RunningJobs
from stylegen.worker.probes import CONNECTION_SECONDS, MAX_CONNECTIONS


@pytest.fixture(name="server")
def _server() -> Iterator[HealthServer]:
    """A worker's that loads its model."""
    with HealthServer(Health(RunningJobs()), Metrics(), 0) as server:
        yield server


def connect(server: HealthServer, *sent: bytes) -> socket.socket:
    """A connection on which something was sent."""
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=30)
    for part in sent:
        connection.sendall(part)
    return connection


def url(server: HealthServer, page: str = "livez") -> str:
    """A page's address."""
    return f"http://127.0.0.1:{server.port}/{page}"


def test_half_sent_requests(server: HealthServer) -> None:
    """254 took every descriptor; now the oldest make room, and a probe is answered at once."""
    before = threading.active_count()
    with ExitStack() as stack:
        held = [
            stack.enter_context(connect(server, b"GET /livez HTTP/1.1\r\nHost: a\r\n"))
            for _ in range(4 * MAX_CONNECTIONS)
        ]
        began = time.monotonic()
        assert requests.get(url(server), timeout=60).status_code == 200
        assert time.monotonic() - began < CONNECTION_SECONDS / 2
        assert threading.active_count() <= before
        assert held[0].recv(1) == b""


def test_a_byte_now_and_then(server: HealthServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slow is not silent; the connection ends all the same."""
    monkeypatch.setattr("stylegen.worker.probes.CONNECTION_SECONDS", 1.0)
    began = time.monotonic()
    with connect(server, b"GET /livez HTTP/1.1\r\nX: ") as connection:
        with suppress(OSError):
            while time.monotonic() - began < 30:
                connection.sendall(b"a")
                time.sleep(0.1)
    assert time.monotonic() - began < 20


def test_a_heap_of_headers_and_a_body(server: HealthServer) -> None:
    """Neither is kept."""
    with connect(server, b"GET /livez HTTP/1.1\r\nX: ", 2**17 * b"a") as connection:
        assert connection.recv(100).startswith(b"HTTP/1.0 431")
    answer = requests.post(url(server), data=bytes(2**20), timeout=30)
    assert answer.status_code == 413
    assert requests.get(url(server), timeout=30).status_code == 200


@pytest.mark.parametrize(("size", "status"), [(2**14 - 100, 200), (2**14 + 100, 431)])
def test_how_large_headers_may_be(server: HealthServer, size: int, status: int) -> None:
    """16 KiB in all."""
    begin, end = b"GET /livez HTTP/1.0\r\nX: ", b"\r\n\r\n"
    padding = (size - len(begin) - len(end)) * b"a"
    with connect(server, begin, padding, end) as connection:
        assert connection.recv(100).startswith(f"HTTP/1.0 {status}".encode())


def test_only_headers(server: HealthServer) -> None:
    """`HEAD`, as load balancers ask."""
    for page, status in (("livez", 200), ("readyz", 503), ("metrics", 200), ("none", 404)):
        answer = requests.head(url(server, page), timeout=30)
        assert (answer.status_code, answer.content) == (status, b"")
    with connect(server, b"HEAD /livez HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n") as bare:
        assert bare.makefile("rb").read().endswith(b"\r\n\r\n")


def test_chosen_metrics(server: HealthServer) -> None:
    """`name[]`, as Prometheus' federation asks."""
    answer = requests.get(url(server, "metrics?name[]=stylegen_jobs_in_progress"), timeout=30)
    lines = [line for line in answer.text.splitlines() if not line.startswith("#")]
    assert lines == ["stylegen_jobs_in_progress 0.0"]
    assert requests.get(url(server, "livez?verbose"), timeout=30).status_code == 200


@pytest.mark.parametrize("host", ["::", "::1", "127.0.0.1", "localhost"])
def test_addresses(host: str) -> None:
    """`::` is every address, of IPv4 too."""
    with HealthServer(Health(RunningJobs()), Metrics(), 0, host) as server:
        names = {"::": ["127.0.0.1", "[::1]"], "::1": ["[::1]"]}.get(host, ["127.0.0.1"])
        for name in names:
            assert requests.get(f"http://{name}:{server.port}/livez", timeout=30).ok
    with pytest.raises(OSError, match="."):
        requests.get(f"http://{names[0]}:{server.port}/livez", timeout=5)


def test_a_port_that_is_taken(server: HealthServer) -> None:
    """It is said at the start."""
    with pytest.raises(OSError, match="in use"):
        HealthServer(Health(RunningJobs()), Metrics(), server.port)


SCANNED = """
import resource, socket, struct, sys, threading, time
from stylegen.logs import set_up_logging, threads_logged
from stylegen.worker import Health, HealthServer, Metrics, RunningJobs
set_up_logging("INFO")
with threads_logged(), HealthServer(Health(RunningJobs()), Metrics(), 0) as server:
    for _ in range(20):
        scanner = socket.create_connection(("127.0.0.1", server.port))
        scanner.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        scanner.sendall(b"GET /metrics HTTP/1.1\\r\\nHost: a\\r\\n\\r\\n")
        scanner.close()
    waiting = socket.create_connection(("127.0.0.1", server.port))
    held = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    try:
        while True:
            held.append(open("/dev/null"))
    except OSError:
        pass
    held.pop().close()
    late = socket.socket()
    late.connect(("127.0.0.1", server.port))
    began = time.process_time()
    time.sleep(2)
    spent = time.process_time() - began
    for each in held:
        each.close()
    late.sendall(b"GET /livez HTTP/1.0\\r\\n\\r\\n")
    late.settimeout(30)
    answer = late.recv(12)
print(spent < 0.5, answer)
"""


def test_a_scanner_and_no_descriptors_left() -> None:
    """Resets are no lines of the log; without descriptors the server waits, and goes on after."""
    done = subprocess.run(
        [sys.executable, "-c", SCANNED], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout == "True b'HTTP/1.0 200'\n", done.stderr
    assert done.stderr == ""
