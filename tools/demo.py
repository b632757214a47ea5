"""One job on embedded defaults: pocket model, folder storage, a real receiver on loopback.

Usage: ``make demo``, or ``python tools/demo.py [FOLDER]`` (default: ``out/demo``).
"""

import argparse
import contextlib
import json
import os
import sys
from pathlib import Path

from tqdm import tqdm

from stylegen.pocket import main as lay_out_pocket
from stylegen.webhook import ReceivedWebhook, WebhookReceiver
from stylegen.worker import main as worker


def show(webhook: ReceivedWebhook) -> int:
    """Print a webhook as it arrives, above the progress bar."""
    tqdm.write(f"{webhook.method} {webhook.path}\n    {json.dumps(webhook.body)}")
    return 200


def write_job(folder: Path, webhook_url: str) -> Path:
    """Write the demo's job as a producer would send it."""
    job = {
        "generation_id": 1,
        "style_id": "watercolour",
        "lora_model_url": "s3://models/watercolour.safetensors",
        "prompt_tags": ["red", "heart", "white background"],
        "artist_name": "김하늘",
        "webhook_url": webhook_url,
        "aspect_ratio": "1:1",
        "seed": 42,
    }
    path = folder / "job.json"
    path.write_text(json.dumps(job, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    return path


def main(folder: Path) -> int:
    """Lay the packaged model out, start the receiver, do the job by the worker's command."""
    with contextlib.redirect_stdout(None):
        lay_out_pocket([str(folder)])
    with WebhookReceiver(show) as backend:
        os.environ |= {
            "INTERNAL_API_TOKEN": "demo-token",
            "WEBHOOK_ALLOWED_ORIGINS": backend.url,
            "STYLEGEN_STORAGE_FOLDER": str(folder),
            "STYLEGEN_MODEL": str(folder / "pocket"),
            "STYLEGEN_TORCH_THREADS": "1",
            "LOG_LEVEL": "WARNING",
        }
        return worker(["--job", str(write_job(folder, backend.url))])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, nargs="?", default=Path("out/demo"), help="out/demo")
    sys.exit(main(parser.parse_args().folder.resolve()))
