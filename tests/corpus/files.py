"""Hostile and odd LoRA files, each with what must become of a job that names it."""

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lora_files import updates
from safetensors.torch import save

FILES: dict[str, tuple[Callable[[Any], bytes], str]] = {}
INVALID = "failed LORA_INVALID"
Tensors = dict[str, torch.Tensor]


def _file(name: str, make: Callable[[Any], bytes], outcome: str = INVALID) -> None:
    assert name not in FILES, name
    FILES[name] = make, outcome


def _header(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def _good(pipeline: Any, rank: int = 4, layers: tuple[str, ...] = ("to_q",)) -> Tensors:
    tensors = {}
    for name, (down, up) in updates(pipeline.unet, layers, rank, 1).items():
        tensors[f"unet.{name}.lora_A.weight"] = down
        tensors[f"unet.{name}.lora_B.weight"] = up
    return tensors


def _edited(name: str, edit: Callable[[Tensors], Any], outcome: str = INVALID) -> None:
    """A good file with its tensors changed."""

    def make(pipeline: Any) -> bytes:
        tensors = _good(pipeline)
        changed = edit(tensors)
        return save(changed if isinstance(changed, dict) else tensors)

    _file(name, make, outcome)


def _first(tensors: Tensors) -> str:
    return sorted(tensors)[0]


def _layer(tensors: Tensors) -> str:
    return _first(tensors).rpartition(".lora_")[0]


def _each(tensors: Tensors, change: Callable[[torch.Tensor], torch.Tensor]) -> Tensors:
    return {key: change(value).contiguous() for key, value in tensors.items()}


def _zipped(_: Any) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps([1]))
    return buffer.getvalue()


_OVER = {"A": (65, 64), "B": (64, 65)}
_F32 = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}

# Not safetensors
_file("empty", lambda _: b"")
_file("seven bytes", lambda _: b"1234567")
_file("text", lambda _: b"I am a LoRA, believe me. " * 40)
_file("a pickle", lambda _: pickle.dumps({"weight": [1.0]}))
_file("a torch archive", _zipped)
_file("a picture", lambda _: b"\xff\xd8\xff\xe0" + bytes(2000))

# Headers
_file("header: of no length", lambda _: _header(b""))
_file("header: longer than the file", lambda _: _header({"a": _F32}, length=10_000))
_file("header: 2^63 bytes", lambda _: _header({"a": _F32}, bytes(4), length=2**63))
_file("header: 2^64-1 bytes", lambda _: _header({"a": _F32}, bytes(4), length=2**64 - 1))
_file("header: not JSON", lambda _: _header(b"{{{{"))
_file("header: not UTF-8", lambda _: _header(b'{"\xff\xfe": 1}'))
_file("header: an array", lambda _: _header([1]))
_file("header: nested 50,000 deep", lambda _: _header(b"[" * 50_000))
_file("header: empty", lambda _: _header({}))
_file("header: metadata alone", lambda _: _header({"__metadata__": {"format": "pt"}}))
_file(
    "header: metadata of numbers",
    lambda _: _header({"__metadata__": {"a": 1}, "x": _F32}, bytes(4)),
)
_file("header: a tensor is a string", lambda _: _header({"a": "F32"}))
_file("header: unknown type", lambda _: _header({"a": _F32 | {"dtype": "F7"}}, bytes(4)))
_file("header: negative shape", lambda _: _header({"a": _F32 | {"shape": [-1]}}, bytes(4)))
_file(
    "header: shape overflows", lambda _: _header({"a": _F32 | {"shape": [2**40, 2**40]}}, bytes(4))
)
_file(
    "header: beyond the file", lambda _: _header({"a": _F32 | {"data_offsets": [0, 400]}}, bytes(4))
)
_file(
    "header: two gigabytes that are not there",
    lambda _: _header(
        {
            f"unet.mid.lora_{half}.weight": {"dtype": "F32", "shape": shape, "data_offsets": place}
            for half, shape, place in (
                ("A", [4, 2**26], [0, 2**30]),
                ("B", [2**26, 4], [2**30, 2**31]),
            )
        },
        bytes(64),
    ),
)
_file("header: backwards", lambda _: _header({"a": _F32 | {"data_offsets": [4, 0]}}, bytes(4)))
_file("header: overlapping", lambda _: _header({"a": _F32, "b": _F32}, bytes(4)))
_file("header: a hole", lambda _: _header({"a": _F32}, bytes(64)))
_file(
    "header: 500,000 tensors",
    lambda _: _header(
        {f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(500_000)}
    ),
)

# Keys
_edited(
    "keys: none of this model",
    lambda t: {f"a.b{i}.lora_A.weight": v for i, v in enumerate(t.values())},
)
_edited(
    "keys: another prefix", lambda t: {k.replace("unet.", "transformer."): v for k, v in t.items()}
)
_edited("values: all zero, which changes nothing", lambda t: _each(t, torch.zeros_like))
_edited("keys: half a pair", lambda t: t.pop(_first(t)) is None)
_edited(
    "keys: a layer in two dialects",
    lambda t: t
    | {
        _layer(t) + ending: t[_layer(t) + other].clone()
        for ending, other in (
            (".lora.down.weight", ".lora_A.weight"),
            (".lora.up.weight", ".lora_B.weight"),
        )
    },
)
_edited(
    "keys: a kohya layer whose halves are parted by their names",
    lambda t: {
        f"lora_unet_going_down_there.lora_{half}.weight": torch.zeros(4, 4)
        for half in ("down", "up")
    },
)
_file(
    "keys: kohya's two names of one text encoder",
    lambda p: save(
        {
            f"lora_te{n}_{name.replace('.', '_')}.lora_{word}.weight": half.clone()
            for name, pair in updates(p.text_encoder, ("fc1",), 4, 1).items()
            for n in ("", "1")
            for word, half in zip(("down", "up"), pair, strict=True)
        }
    ),
)
_edited("keys: only the downs", lambda t: {k: v for k, v in t.items() if "lora_A" in k})
_edited("keys: one too many", lambda t: t | {"unet.surprise": torch.zeros(3)})
_edited(
    "keys: a layer too many",
    lambda t: t
    | {"unet.no.lora_A.weight": torch.zeros(4, 8), "unet.no.lora_B.weight": torch.zeros(8, 4)},
)
_edited("keys: a whole model's", lambda t: {"unet.conv_in.weight": torch.zeros(64, 16, 3, 3)})
_edited(
    "keys: LoHa",
    lambda t: {"lora_unet_mid_block_attentions_0_proj_in.hada_w1_a": torch.zeros(4, 4)},
)
_edited(
    "keys: LoKr", lambda t: {"lora_unet_mid_block_attentions_0_proj_in.lokr_w1": torch.zeros(4, 4)}
)
_edited(
    "keys: SDXL's second encoder",
    lambda t: {k.replace("unet.", "text_encoder_2."): v for k, v in t.items()},
)
_edited("keys: a path", lambda t: {"../../etc/passwd": torch.zeros(1)})
_edited("keys: a textual inversion", lambda t: {"emb_params": torch.zeros(2, 96)})

# Alphas
_edited("alphas: of no layer", lambda t: t | {"unet.no.lora.alpha": torch.tensor(4.0)})
_edited(
    "alphas: two of a layer",
    lambda t: t
    | {f"{_layer(t)}{ending}": torch.tensor(2.0) for ending in (".alpha", ".lora.alpha")},
)

# Values and shapes
_edited("values: NaN", lambda t: t[_first(t)].fill_(float("nan")))
_edited("values: one infinity", lambda t: t[_first(t)].view(-1)[:1].fill_(float("inf")))
_edited("values: 1e30", lambda t: t[_first(t)].fill_(1e30))
_edited("values: integers", lambda t: _each(t, torch.Tensor.int))
_edited("values: complex", lambda t: _each(t, lambda x: x.to(torch.complex64)))
_edited("values: bool", lambda t: _each(t, torch.Tensor.bool))
_edited("shapes: transposed", lambda t: _each(t, torch.Tensor.t))
_edited(
    "shapes: ups transposed",
    lambda t: {k: v.t().contiguous() if "lora_B" in k else v for k, v in t.items()},
)
_file(
    "shapes: a convolution's axes turned",
    lambda p: save(
        {
            k: v.permute(0, 2, 3, 1).contiguous() if "lora_A" in k else v
            for k, v in _good(p, layers=("conv1",)).items()
        }
    ),
)
_edited("shapes: ranks differ", lambda t: t.update({_first(t): t[_first(t)][:2].contiguous()}))
_edited(
    "shapes: another model's width",
    lambda t: {k: torch.zeros(4, 320) if "lora_A" in k else torch.zeros(320, 4) for k in t},
)
_edited("shapes: scalars", lambda t: _each(t, lambda x: x.flatten()[0]))
_edited("shapes: five dimensions", lambda t: _each(t, lambda x: x[..., None, None, None]))
_file(
    "shapes: rank 0",
    lambda p: save(_each(_good(p), lambda x: x[:0] if x.shape[0] == 4 else x[:, :0])),
)
_file("shapes: rank 2,000", lambda p: save(_good(p, 2000)))
_file("shapes: more than full rank", lambda p: save(_good(p, 65)))
_edited(
    "shapes: more than full rank in one layer",
    lambda t: t
    | {f"{_layer(t)}.lora_{half}.weight": torch.zeros(size) for half, size in _OVER.items()},
)

# Odd, but good
_edited("good: no prefix", lambda t: {k.removeprefix("unet."): v for k, v in t.items()}, "complete")
_edited(
    "good: DoRA",
    lambda t: t | {_first(t).replace("lora_A.weight", "lora_magnitude_vector"): torch.ones(64)},
    "complete",
)
_edited("good: bfloat16", lambda t: _each(t, torch.Tensor.bfloat16), "complete")
_edited("good: half precision", lambda t: _each(t, torch.Tensor.half), "complete")
_edited("good: as convolutions", lambda t: _each(t, lambda x: x[..., None, None]), "complete")
_edited(
    "good: kohya's endings on dotted names",
    lambda t: {
        k.replace("lora_A", "lora_down").replace("lora_B", "lora_up"): v for k, v in t.items()
    },
    "complete",
)
_file("good: rank 1", lambda p: save(_good(p, 1)), "complete")
_file(
    "good: with metadata", lambda p: save(_good(p), {"ss_tag_frequency": "x" * 10_000}), "complete"
)


def write_all(folder: Path, pipeline: Any) -> dict[str, Path]:
    """Write every file; returns where each lies."""
    paths = {}
    for number, (name, (make, _)) in enumerate(FILES.items()):
        paths[name] = folder / f"{number}.safetensors"
        paths[name].write_bytes(make(pipeline))
    return paths
