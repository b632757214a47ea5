"""A private JupyterLab: own port, token, folders and settings; shared with nobody."""

import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

_START_LIMIT = 120.0
_POLL = 0.1
_SETTINGS = {
    "apputils-extension/notification": '{"fetchNews": "false", "checkForUpdates": false}',
    "docmanager-extension/plugin": '{"autosave": false}',
}


class Lab:
    """A server on a folder: ``with Lab(folder) as lab: page.goto(lab.url("a.ipynb"))``."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._token = folder, secrets.token_hex(16)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self._port = listener.getsockname()[1]
        self._own = tempfile.TemporaryDirectory(prefix="stylegen-lab-")
        self._log = Path(self._own.name) / "log"
        self._server: subprocess.Popen[bytes] | None = None

    def url(self, notebook: str) -> str:
        """Where a browser opens a notebook of the folder."""
        return f"http://127.0.0.1:{self._port}/lab/tree/{notebook}?token={self._token}"

    def _environment(self) -> dict[str, str]:
        own = Path(self._own.name)
        for name, text in _SETTINGS.items():
            file = own / f"settings/@jupyterlab/{name}.jupyterlab-settings"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        names = {"CONFIG_DIR": "config", "RUNTIME_DIR": "runtime", "DATA_DIR": "data"}
        lab = {"SETTINGS_DIR": "settings", "WORKSPACES_DIR": "workspaces"}
        paths = {f"JUPYTER_{name}": str(own / value) for name, value in names.items()}
        paths |= {f"JUPYTERLAB_{name}": str(own / value) for name, value in lab.items()}
        return os.environ | paths | {"OMP_NUM_THREADS": "1"}  # the pocket model's best

    def __enter__(self) -> "Lab":
        options = {
            "ServerApp.ip": "127.0.0.1",
            "ServerApp.port": self._port,
            "ServerApp.port_retries": 0,
            "ServerApp.open_browser": False,
            "ServerApp.allow_root": True,
            "ServerApp.root_dir": self._folder,
            "IdentityProvider.token": self._token,
            "LabApp.expose_app_in_browser": True,
            "KernelManager.transport": "ipc",  # a TCP port may be taken before a kernel has it
        }
        with self._log.open("wb") as log:
            self._server = subprocess.Popen(  # pylint: disable=consider-using-with
                [sys.executable, "-m", "jupyterlab", *(f"--{k}={v}" for k, v in options.items())],
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        limit = time.monotonic() + _START_LIMIT
        while not self._answers():
            if self._server.poll() is not None or time.monotonic() > limit:
                self.__exit__()
                raise RuntimeError(f"JupyterLab did not start\n{self._log.read_text()[-3000:]}")
            time.sleep(_POLL)
        return self

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/api", timeout=5):
                return True
        except (OSError, urllib.error.URLError):
            return False

    def __exit__(self, *_: Any) -> None:
        if self._server:
            self._server.terminate()  # it ends its kernels first
            try:
                self._server.wait(30)
            except subprocess.TimeoutExpired:
                self._server.kill()
                self._server.wait(30)
