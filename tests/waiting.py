"""Waiting for a condition, never for a time."""

import time
from collections.abc import Callable


def wait_until(ready: Callable[[], object], timeout: float = 30.0) -> None:
    """Poll until `ready()`; fails after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not ready():
        assert time.monotonic() < deadline, f"never became true: {ready}"
        time.sleep(0.05)
