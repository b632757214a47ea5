"""Write the job message's JSON Schema, made from the model: ``docs/job.schema.json``.

Usage: ``python tools/job_schema.py``.
"""

import json
from pathlib import Path

from stylegen.job import GenerationJob

TARGET = Path(__file__).parent.parent / "docs" / "job.schema.json"


def schema() -> str:
    """The schema as a file's text."""
    fields = GenerationJob.model_json_schema()
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return json.dumps(head | fields, indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    TARGET.write_text(schema(), encoding="utf-8")
    print(TARGET)
