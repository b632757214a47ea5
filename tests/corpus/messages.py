"""Hostile and odd messages, each with what must become of it.

``{port}`` and ``{stranger}`` in a message are the ports of the job's receiver and of one that is
not allowed. An outcome is ``complete``, ``failed CODE`` (the job's receiver is told) or ``dead
CODE`` (nobody may be told: a dead letter with its reason).
"""

import json
from collections.abc import Callable
from typing import Any

Fields = dict[str, Any]
Make = Callable[[Fields], bytes]
MESSAGES: dict[str, tuple[Make, str]] = {}


def _raw(name: str, outcome: str, make: Make) -> None:
    assert name not in MESSAGES, name
    MESSAGES[name] = make, outcome


def _with(name: str, outcome: str, **changes: Any) -> None:
    _raw(name, outcome, lambda fields: json.dumps(fields | changes).encode())


def _without(name: str, outcome: str, field: str) -> None:
    def make(fields: Fields) -> bytes:
        return json.dumps({k: v for k, v in fields.items() if k != field}).encode()

    _raw(name, outcome, make)


def _text(name: str, outcome: str, edit: Callable[[str], str]) -> None:
    """A message changed in its text, for what JSON's writer would not write."""
    _raw(name, outcome, lambda fields: edit(json.dumps(fields)).encode("utf-8", "surrogatepass"))


DEAD, FAILED = "dead INVALID_MESSAGE", "failed INVALID_MESSAGE"

# Bytes
for _name, _bytes in {
    "empty": b"",
    "blank": b"  \n",
    "one byte": b"\xff",
    "a null": b"null",
    "a number": b"17",
    "a string": b'"job"',
    "an array": b"[1]",
    "an empty object": b"{}",
    "an unfinished object": b'{"generation_id": 1',
    "two objects": b"{}{}",
    "single quotes": b"{'generation_id': 1}",
    "a pickle": b"cos\nsystem\n(S'true'\ntR.",
    "XML": b'<?xml version="1.0"?><job/>',
    "nested 100,000 deep": b"[" * 100_000,
    "objects nested 30,000 deep": b'{"a":' * 30_000,
    "a number of 5,000 digits": b'{"generation_id": ' + b"9" * 5000 + b"}",
}.items():
    _raw(_name, DEAD, lambda fields, data=_bytes: data)  # type: ignore[misc]
_raw("UTF-16", DEAD, lambda fields: json.dumps(fields).encode("utf-16"))
_raw("a byte order mark", "complete", lambda fields: b"\xef\xbb\xbf" + json.dumps(fields).encode())
_raw(
    "Latin-1",
    DEAD,
    lambda fields: json.dumps(fields | {"artist_name": "Zoë"}, ensure_ascii=False).encode(
        "latin-1"
    ),
)
_raw("over 256 kB", DEAD, lambda fields: json.dumps(fields | {"pad": "x" * 300_000}).encode())
_text("a comment", DEAD, lambda text: text + " // draw it")
_text("a trailing comma", DEAD, lambda text: text[:-1] + ",}")
_text("a double key", "complete", lambda text: text[:-1] + ', "seed": 7}')
_with("an unknown field, nested", "complete", more=[[[[{"a": [1]}]]]])
_with("a field of Python's", "complete", __class__="x", model_config={}, prompt="ignored")

# Ids: whoever names none can't be told
for _name, _value in {
    "null": None,
    "zero": 0,
    "negative": -1,
    "2^63": 2**63,
    "a float": 1.5,
    "true": True,
    "empty": "",
    "a path": "../../etc/passwd",
    "a space": "a b",
    "129 characters": "x" * 129,
    "Arabic digits": "١٢",
    "a line break": "a\n",
    "a NUL": "a\x00",
    "a list": [1],
    "an object": {"$ne": 0},
}.items():
    _with(f"generation_id: {_name}", DEAD, generation_id=_value)
_without("generation_id: missing", DEAD, "generation_id")
_with("generation_id: a word", "complete", generation_id="corpus-word_1")

# Receivers: the token goes to nobody else
for _name, _value in {
    "null": None,
    "another origin": "https://evil.example",
    "userinfo": "http://127.0.0.1@evil.example",
    "another port": "http://127.0.0.1:{stranger}",
    "another scheme": "https://127.0.0.1:{port}",
    "a name of the same address": "http://localhost:{port}",
    "a name with a dot": "http://127.0.0.1.:{port}",
    "a short address": "http://127.1:{port}",
    "a hexadecimal address": "http://0x7f.1:{port}",
    "an octal address": "http://0177.0.0.1:{port}",
    "an address as a number": "http://2130706433:{port}",
    "no address": "http://0:{port}",
    "full-width digits": "http://１２７.0.0.1:{port}",
    "IPv6": "http://[::ffff:127.0.0.1]:{port}",
    "IPv6, the longer form": "http://[0:0:0:0:0:ffff:7f00:1]:{port}",
    "userinfo before the receiver": "http://evil.example@127.0.0.1:{port}",
    "a password before the receiver": "http://a:b@127.0.0.1:{port}",
    "the receiver as userinfo": "http://127.0.0.1:{port}@127.0.0.1:{stranger}",
    "a backslash to a stranger": "http://127.0.0.1:{port}\\@127.0.0.1:{stranger}",
    "a fragment before a stranger": "http://127.0.0.1:{stranger}#@127.0.0.1:{port}",
    "a query": "http://127.0.0.1:{port}/?to=",
    "a parent folder": "http://127.0.0.1:{port}/../admin",
    "an encoded path": "http://127.0.0.1:{port}/%2e%2e/admin",
    "a tab within": "http://127.0.\t0.1:{port}",
    "blanks around": " http://127.0.0.1:{port} ",
    "one slash": "http:/127.0.0.1:{port}",
    "no scheme": "//127.0.0.1:{port}",
    "a backslash": "http://127.0.0.1\\@evil.example",
    "a file": "file:///etc/passwd",
    "a script": "javascript:alert(1)",
    "gopher": "gopher://127.0.0.1:25/",
    "a line break": "http://127.0.0.1:{port}\r\nX: y",
    "port 0": "http://127.0.0.1:0",
    "port 99999": "http://127.0.0.1:99999",
    "a number": 7,
    "an internal address": "http://169.254.169.254/latest",
}.items():
    _with(f"webhook_url: {_name}", DEAD, webhook_url=_value)
_without("webhook_url: missing", DEAD, "webhook_url")
_with("webhook_url: capitals", "complete", webhook_url="HTTP://127.0.0.1:{port}")

# LoRAs
for _name, _value in {
    "null": None,
    "empty": "",
    "http": "http://evil.example/a.safetensors",
    "a local file": "file:///etc/passwd",
    "no key": "s3://models",
    "no bucket": "s3:///a.safetensors",
    "a parent folder": "s3://models/../secrets/a.safetensors",
    "a query": "s3://models/a.safetensors?versionId=1",
    "userinfo": "s3://key:secret@models/a.safetensors",
    "3,000 characters": "s3://models/" + "a" * 3000 + ".safetensors",
    "a list": ["s3://models/a.safetensors"],
}.items():
    _with(f"lora_model_url: {_name}", FAILED, lora_model_url=_value)
for _name, _value in {
    "another suffix": "s3://models/a.ckpt",
    "an encoded parent": "s3://models/%2e%2e/a.safetensors",  # keys are literal at S3
}.items():
    _with(f"lora_model_url: {_name}", "failed LORA_NOT_FOUND", lora_model_url=_value)
_with(
    "lora_model_url: nothing there",
    "failed LORA_NOT_FOUND",
    lora_model_url="s3://models/no.safetensors",
)
_with(
    "lora_model_url: no such bucket",
    "failed LORA_NOT_FOUND",
    lora_model_url="s3://no-such-bucket/a.safetensors",
)
_with("extra_loras: five", FAILED, extra_loras=[{"url": "s3://models/a.safetensors"}] * 5)
_with("extra_loras: no url", FAILED, extra_loras=[{"scale": 1}])
_with("extra_loras: http", FAILED, extra_loras=[{"url": "http://evil.example/a.safetensors"}])

# Fields
for _field, _values in {
    "style_id": (None, -1, 1.5, True, "../x", ["a"]),
    "prompt_tags": (None, [], "red", [1], [""], [" "], ["x"] * 257, ["x" * 5000], ["a\x00b"], {}),
    "artist_name": (None, "", "  ", "x" * 201, "a\nb", 7),
    "aspect_ratio": (5, ["1:1"]),
    "seed": (-1, 2**63, 1.5, "42", True),
    "num_inference_steps": (0, 501, 10**9, "50", 1.5),
    "guidance_scale": (-1, 51, "7", True),
    "scheduler": ("plms", "DPMSolver++", 1),
    "lora_scale": (5, -5, "1"),
    "negative_prompt": ("a\x1b[31m", 5, "x" * 5000),
    "signature": ("big", {"position": "middle"}, {"opacity": 256}, {"opacity": 1.5}),
    "prompt_syntax": ("a1111", 1),
    "speed_profile": ("fastest", 2),
}.items():
    for _value in _values:
        _name = json.dumps(_value)
        _with(
            f"{_field}: {_name[:30]}{len(_name) if len(_name) > 30 else ''}",
            FAILED,
            **{_field: _value},
        )
_text("seed: NaN", FAILED, lambda text: text[:-1] + ', "seed": NaN}')
_text("guidance_scale: 1e400", FAILED, lambda text: text[:-1] + ', "guidance_scale": 1e400}')
_text("lora_scale: -Infinity", FAILED, lambda text: text[:-1] + ', "lora_scale": -Infinity}')
_text("a lone surrogate", FAILED, lambda text: text.replace("red", "\\ud800"))
_with(
    "an artist whom no font can draw", "failed SIGNATURE_UNRENDERABLE", artist_name="\ue000\ue001"
)
_with(
    "a signature that is not there",
    "failed SIGNATURE_UNRENDERABLE",
    signature={"image_url": "s3://models/none.png"},
)
_with(
    "a signature from elsewhere",
    FAILED,
    signature={"image_url": "http://evil.example/a.png"},
)
_with("aspect_ratio: unknown", "complete", aspect_ratio="16:9")
_with("seed: 0", "complete", seed=0)
_with("num_inference_steps: 1.0", "complete", num_inference_steps=1.0)
_with("seed: 2^63-1", "complete", seed=2**63 - 1)
_with("optional fields: null", "complete", seed=None, signature=None, negative_prompt=None)
_with("a signature's fields: null", "complete", signature={"position": None, "image_url": None})
_with("tags: emoji, right to left, zero width", "complete", prompt_tags=["🌹", "أحمر", "a\u200bb"])
_with("tags: weights, as literal text", "complete", prompt_tags=["(red:1.5)", "[heart]", "\\"])
_with(
    "tags: compel's syntax, unbalanced", "complete", prompt_tags=["(((red"], prompt_syntax="compel"
)
_with("tags: as long as can be", "complete", prompt_tags=["red heart"] * 256)
