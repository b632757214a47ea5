"""LoRA files of every dialect, with seeded random weights, for a base model's layers."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

UNET = ("to_q", "to_k", "to_v", "to_out.0", "proj_in", "ff.net.2")
CONVOLUTIONS = (
    "conv_in",
    "time_embedding.linear_1",
    "conv1",
    "conv2",
    "time_emb_proj",
    "conv_shortcut",
)
TEXT = ("q_proj", "out_proj", "fc1")

SPELLINGS = {
    "dotted lora_down": {"lora_A": "lora_down", "lora_B": "lora_up"},
    "lora.down": {"lora_A": "lora.down", "lora_B": "lora.up"},
    "lora_linear_layer": {"lora_A": "lora_linear_layer.down", "lora_B": "lora_linear_layer.up"},
    "attention processors": {
        **{"to_out.0.": "to_out.", "q_proj.": "to_q.", "out_proj.": "to_out."},
        **{"attn1.": "attn1.processor.", "attn2.": "attn2.processor."},
        **{f"to_{n}.lora_A": f"to_{n}_lora.down" for n in ("q", "k", "v", "out")},
        **{f"to_{n}.lora_B": f"to_{n}_lora.up" for n in ("q", "k", "v", "out")},
        **{"lora_A": "lora.down", "lora_B": "lora.up"},
    },
}
"""What older files write for parts of diffusers' names of today, by dialect."""


def updates(
    model: Any, endings: tuple[str, ...], rank: int, seed: int, size: float = 0.15
) -> dict[str, Any]:
    """Random ``(down, up)`` of each layer of `model` with one of the name endings."""
    random, pairs = torch.Generator().manual_seed(seed), {}
    for name, layer in model.named_modules():
        if name.endswith(endings) and hasattr(layer, "weight"):
            shape = layer.weight.shape
            down = torch.randn(rank, *shape[1:], generator=random) * size
            up = torch.randn(shape[0], rank, *(1 for _ in shape[2:]), generator=random) * size
            pairs[name] = (down, up)
    return pairs


def write_diffusers(
    path: Path,
    pipeline: Any,
    rank: int,
    seed: int,
    *,
    text: bool = False,
    convolutions: bool = False,
    size: float = 0.15,
) -> Path:
    """peft's names with diffusers' prefixes; on the text encoder and convolutions if asked."""
    endings = UNET + CONVOLUTIONS if convolutions else UNET
    parts = {"unet": updates(pipeline.unet, endings, rank, seed, size)}
    if text:
        parts["text_encoder"] = updates(pipeline.text_encoder, TEXT, rank, seed, size)
    tensors = {}
    for part, pairs in parts.items():
        for name, (down, up) in pairs.items():
            tensors[f"{part}.{name}.lora_A.weight"] = down
            tensors[f"{part}.{name}.lora_B.weight"] = up
    save_file(tensors, path)
    return path


def write_kohya(
    path: Path,
    pipeline: Any,
    rank: int,
    seed: int,
    alpha: float,
    *,
    text: bool = False,
    with_alpha: tuple[str, ...] = UNET + TEXT,
) -> Path:
    """kohya's names, with alphas for layers of these endings; on the text encoder if asked."""
    parts = {"lora_unet_": updates(pipeline.unet, UNET, rank, seed)}
    if text:
        parts["lora_te_text_model_"] = updates(pipeline.text_encoder, TEXT, rank, seed)
    tensors = {}
    for prefix, pairs in parts.items():
        for name, (down, up) in pairs.items():
            layer = f"{prefix}{name.replace('.', '_')}"
            tensors[f"{layer}.lora_down.weight"] = down
            tensors[f"{layer}.lora_up.weight"] = up
            if name.endswith(with_alpha):
                tensors[f"{layer}.alpha"] = torch.tensor(alpha)
    save_file(tensors, path)
    return path


def write_rslora(path: Path, pipeline: Any, rank: int, seed: int, alpha: float) -> Path:
    """A rank-stabilised LoRA: diffusers keeps peft's settings in the file's metadata."""
    tensors, names = {}, []
    for name, (down, up) in updates(pipeline.unet, ("to_q", "to_v"), rank, seed).items():
        tensors[f"unet.{name}.lora_A.weight"] = down
        tensors[f"unet.{name}.lora_B.weight"] = up
        names.append(name)
    settings = {"r": rank, "lora_alpha": alpha, "use_rslora": True, "target_modules": names}
    metadata = {f"unet.{key}": value for key, value in settings.items()}
    save_file(tensors, path, {"lora_adapter_metadata": json.dumps(metadata), "format": "pt"})
    return path
