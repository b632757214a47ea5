"""`stylegen-preload`, by the hub's own client, from a hub on loopback; then without any hub."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from stylegen.pipeline import load_pipeline, model_digest

COMMIT = "0f" * 20
MODEL = "owner/pocket"


class Hub(ThreadingHTTPServer):
    """Serves one model at one commit, as huggingface.co does: its list of files, and each file.

    Attributes:
        folder: The model's files.
        asked: Method and path of each request.
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.folder, self.url = folder, f"http://127.0.0.1:{self.server_port}"
        self.asked: list[tuple[str, str]] = []

    def described(self) -> dict[str, Any]:
        """The API's pages on the model and on its files, by path."""
        paths = [path for path in sorted(self.folder.rglob("*")) if path.is_file()]
        sizes = {path.relative_to(self.folder).as_posix(): path.stat().st_size for path in paths}
        model = {"id": MODEL, "sha": COMMIT, "siblings": [{"rfilename": name} for name in sizes]}
        tree = [{"type": "file", "oid": "", "path": n, "size": size} for n, size in sizes.items()]
        pages = {f"revision/{COMMIT}": model, f"tree/{COMMIT}": tree}
        return {f"/api/models/{MODEL}/{name}": page for name, page in pages.items()}


class _Answer(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        """As GET, without the body."""
        self.do_GET()

    def do_GET(self) -> None:
        """The list of files or a file of the commit; nothing else is there."""
        path = self.path.partition("?")[0]
        self.server.asked.append((self.command, path))
        if page := self.server.described().get(path):
            return self.answer(200, json.dumps(page).encode())
        name = path.removeprefix(f"/{MODEL}/resolve/{COMMIT}/")
        file = self.server.folder / name
        if name == path or not file.is_file():
            code = "EntryNotFound" if name != path else "RevisionNotFound"
            return self.answer(404, b"", **{"X-Error-Code": code})
        data = file.read_bytes()
        etag = f'"{hashlib.sha256(data).hexdigest()}"'
        return self.answer(200, data, **{"ETag": etag, "X-Repo-Commit": COMMIT})

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        """Send an answer; of HEAD its headers alone."""
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:  # pylint: disable=arguments-differ
        """Stay silent."""


@pytest.fixture(name="hub")
def _hub(pocket: Path) -> Iterator[Hub]:
    with Hub(pocket / "pocket") as hub:
        threading.Thread(target=hub.serve_forever, args=(0.05,), daemon=True).start()
        yield hub
        hub.shutdown()


def preload(
    home: Path, hub: str, revision: str, **variables: str
) -> "subprocess.CompletedProcess[str]":
    """The command, as it is installed, with the hub's client told of a hub by its own variables."""
    settings = {"STYLEGEN_MODEL": MODEL, "STYLEGEN_MODEL_REVISION": revision}
    client = {"HF_HOME": str(home), "HF_ENDPOINT": hub, "HF_HUB_OFFLINE": "0"}
    environment = os.environ | settings | client | {"STYLEGEN_DEVICE": "cpu"} | variables
    command = [str(Path(sys.executable).with_name("stylegen-preload"))]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


def test_a_model_is_fetched_once_and_loaded_without_a_hub(
    hub: Hub, tmp_path: Path, pocket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its commit alone; afterwards nobody is asked, and the weights are the hub's."""
    done = preload(tmp_path, hub.url, COMMIT)
    folder = tmp_path / f"hub/models--owner--pocket/snapshots/{COMMIT}"
    assert (done.returncode, done.stdout.strip()) == (0, str(folder)), done.stderr
    fetched = {path for method, path in hub.asked if method == "GET" and "/resolve/" in path}
    assert f"/{MODEL}/resolve/{COMMIT}/unet/diffusion_pytorch_model.safetensors" in fetched
    strange = [path for _, path in hub.asked if MODEL in path and COMMIT not in path]
    assert not strange, "another revision was asked for"
    hub.shutdown()
    hub.server_close()
    before = len(hub.asked)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    pipeline = load_pipeline(MODEL, device="cpu", revision=COMMIT)
    assert pipeline.unet.config.sample_size
    digest = model_digest(MODEL, half=False, revision=COMMIT)
    assert digest == model_digest(str(pocket / "pocket"), half=False)
    assert len(hub.asked) == before


def test_a_commit_that_the_hub_does_not_have(hub: Hub, tmp_path: Path) -> None:
    """Exit code 1 and one line; nothing is taken from another commit."""
    done = preload(tmp_path, hub.url, "1e" * 20)
    assert done.returncode == 1 and done.stdout == ""
    (line,) = [each for each in done.stderr.splitlines() if each.startswith("failed: ")]
    assert "Revision Not Found" in line and "1e1e1e" in line
    assert not list(tmp_path.rglob("*.safetensors"))
