"""docs/asyncapi.yaml as a judge of messages."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import yaml
from referencing import Registry
from referencing.jsonschema import DRAFT202012

DOCS = Path(__file__).parent.parent / "docs"
DOCUMENT: dict[str, Any] = yaml.safe_load((DOCS / "asyncapi.yaml").read_text(encoding="utf-8"))
_JOB = json.loads((DOCS / "job.schema.json").read_text(encoding="utf-8"))
_REGISTRY: Registry[Any] = Registry().with_resources(
    (name, DRAFT202012.create_resource(body))
    for name, body in {"asyncapi.yaml": DOCUMENT, "job.schema.json": _JOB}.items()
)


def message_validator(name: str, part: str = "payload") -> jsonschema.Draft202012Validator:
    """What judges a message's payload or headers.

    Args:
        name: Its name in the document.
        part: ``payload`` or ``headers``.
    """
    place = f"/components/messages/{name}/{part}"
    if "schemaFormat" in DOCUMENT["components"]["messages"][name][part]:
        place += "/schema"
    return jsonschema.Draft202012Validator(
        {"$ref": f"asyncapi.yaml#{place}"},
        registry=_REGISTRY,
        format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER,
    )
