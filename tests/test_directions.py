"""Rooms of the package import in one direction, and what goes against it is named."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tools"))
from directions import wrong  # noqa: E402  pylint: disable=wrong-import-position,import-error


def test_the_package() -> None:
    """The rooms keep to it, by the command that `make check` runs."""
    subprocess.run([sys.executable, str(ROOT / "tools/directions.py")], check=True)


def test_against_it(tmp_path: Path) -> None:
    """However it is written, an import against the direction is named with file and line."""
    modules = {
        "job": "import json\nfrom .settings import load\n",
        "queue/__init__": "from ..job import Job\nfrom .. import worker\n",
        "queue/control": "from . import consumer\nfrom ..storage.s3 import S3\n",
        "queue/consumer": "from stylegen.worker.probes import Health\n",
        "pipeline/__init__": "def late():\n    from stylegen.playground import grid\n",
        "signature/text": "import stylegen.webhook.origins\nfrom stylegen import __version__\n",
        "attic/box": "import stylegen.job\n",
    }
    for name, code in modules.items():
        path = tmp_path / f"stylegen/{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(code, encoding="utf-8")
    assert list(wrong(tmp_path)) == [
        "stylegen/attic/box.py:1: tools/directions.py does not say what attic may import",
        "stylegen/job.py:2: job may not import settings",
        "stylegen/pipeline/__init__.py:2: pipeline may not import playground",
        "stylegen/queue/__init__.py:2: queue may not import worker",
        "stylegen/queue/consumer.py:1: queue may not import worker",
        "stylegen/queue/control.py:2: queue may not import storage",
        "stylegen/signature/text.py:1: signature may not import webhook",
    ]
