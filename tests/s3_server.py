"""A real S3-compatible server over HTTP, on loopback, for tests."""

import os
import signal
import socket
import subprocess
import sys
import time
from typing import Any

import boto3
import requests
from botocore.config import Config


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
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint_url,
            aws_access_key_id="test",
            aws_secret_access_key="test",
            region_name="us-east-1",
            config=Config(retries={"total_max_attempts": 2}),
        )

    def __enter__(self) -> "S3Server":
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
        return self

    def _answers(self) -> bool:
        try:
            return requests.get(self.endpoint_url, timeout=1).status_code < 500
        except requests.RequestException:
            return False

    def __exit__(self, *_: Any) -> None:
        if self._process:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
