"""SD 1.5 with tiny channels, and files of every kind for it beside what they mean.

Every module name that a real LoRA file speaks of is there, and a picture's worth of it takes
milliseconds. What a file means is computed here in float64, by each kind's published formula.
"""

import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

CHANNELS = (8, 16, 24, 24)
WORDS = 12
RANK = 2


def make_tiny(dtype: torch.dtype = torch.float32) -> Any:
    """The UNet's four blocks of two layers and a text encoder of twelve, with random weights."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=CHANNELS,
        cross_attention_dim=WORDS,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    text = CLIPTextConfig(
        vocab_size=64,
        hidden_size=WORDS,
        intermediate_size=16,
        num_hidden_layers=12,
        num_attention_heads=2,
        bos_token_id=0,
        eos_token_id=1,
    )
    return SimpleNamespace(unet=unet.to(dtype).eval(), text_encoder=CLIPTextModel(text).to(dtype))


def as_pipeline(tiny: Any) -> Any:
    """The same for diffusers' own loader."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return StableDiffusionPipeline(
            vae=None,
            text_encoder=tiny.text_encoder,
            tokenizer=None,
            unet=tiny.unet,
            scheduler=DDIMScheduler(),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )


def layers(tiny: Any) -> Iterator[tuple[str, Tensor]]:
    """Name, with the part of the model, and weight of all that a LoRA may change."""
    kinds = torch.nn.Linear, torch.nn.Conv2d
    for part in ("unet", "text_encoder"):
        for name, module in getattr(tiny, part).named_modules():
            if isinstance(module, kinds):
                yield f"{part}.{name}", module.weight.detach()


FEW = tuple(
    f"unet.{name}"
    for name in (
        "conv_in",
        "time_embedding.linear_1",
        "down_blocks.0.attentions.0.proj_in",
        "down_blocks.1.attentions.1.transformer_blocks.0.attn2.to_k",
        "down_blocks.1.resnets.0.conv_shortcut",
        "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj",
        "up_blocks.0.upsamplers.0.conv",
        "up_blocks.3.resnets.2.conv1",
        "conv_out",
    )
)
"""One of each shape."""

Made = tuple[dict[str, Tensor], Tensor]
"""Endings with tensors, and ΔW without a factor, in float64."""


def _random(*shape: int) -> Tensor:
    return torch.randn(shape) * 0.3


def _product(up: Tensor, down: Tensor) -> Tensor:
    return up.double() @ down.double()


def _core(core: Tensor, out: Tensor, inputs: Tensor) -> Tensor:
    """Tucker's: a core ``[r, p, …]`` between ``[r, out]`` and ``[p, in]``."""
    return torch.einsum("rp...,ro,pi->oi...", core.double(), out.double(), inputs.double())


def make_lora(weight: Tensor, rank: int = RANK) -> Made:
    """Two halves."""
    out, channels, *kernel = weight.shape
    down, up = _random(rank, channels, *kernel), _random(out, rank, *[1] * len(kernel))
    change = _product(up.flatten(1), down.flatten(1)).view(weight.shape)
    return {"lora_down.weight": down, "lora_up.weight": up}, change


def make_locon(weight: Tensor) -> Made:
    """Two halves about a core; a matrix has none."""
    out, channels, *kernel = weight.shape
    if not kernel:
        return make_lora(weight)
    down, up = _random(RANK, channels, 1, 1), _random(out, RANK, 1, 1)
    mid = _random(RANK, RANK, *kernel)
    halves = {"lora_down.weight": down, "lora_up.weight": up, "lora_mid.weight": mid}
    return halves, _core(mid, up.flatten(1).T, down.flatten(1))


def make_loha(weight: Tensor, rank: int = RANK) -> Made:
    """Two products, multiplied number by number."""
    tensors, change = dict[str, Tensor](), torch.ones(weight.shape, dtype=torch.float64)
    for n in (1, 2):
        a, b = _random(len(weight), rank), _random(rank, weight[0].numel())
        tensors |= {f"hada_w{n}_a": a, f"hada_w{n}_b": b}
        change *= _product(a, b).view(weight.shape)
    return tensors, change


def make_loha_core(weight: Tensor) -> Made:
    """The same about cores."""
    out, channels, *kernel = weight.shape
    if not kernel:
        return make_loha(weight)
    tensors, change = dict[str, Tensor](), torch.ones(weight.shape, dtype=torch.float64)
    for n in (1, 2):
        a, b, t = _random(RANK, out), _random(RANK, channels), _random(RANK, RANK, *kernel)
        tensors |= {f"hada_w{n}_a": a, f"hada_w{n}_b": b, f"hada_t{n}": t}
        change *= _core(t, a, b)
    return tensors, change


def make_lokr(weight: Tensor, *, first: bool = False, second: str = "") -> Made:
    """Blocks; each factor whole or in halves, the second perhaps about a core."""
    out, channels, *kernel = weight.shape
    a, c = 2, 1 + (channels % 2 == 0)
    b, d = out // a, channels // c
    tensors = {"lokr_w1": _random(a, c)}
    one = tensors["lokr_w1"].double()
    if first:
        tensors = {"lokr_w1_a": _random(a, RANK), "lokr_w1_b": _random(RANK, c)}
        one = _product(tensors["lokr_w1_a"], tensors["lokr_w1_b"])
    if second == "core" and kernel:
        halves = _random(RANK, b), _random(RANK, d), _random(RANK, RANK, *kernel)
        tensors |= dict(zip(("lokr_w2_a", "lokr_w2_b", "lokr_t2"), halves, strict=True))
        two = _core(halves[2], halves[0], halves[1])
    elif second:
        width = d * weight[0, 0].numel()
        tensors |= {"lokr_w2_a": _random(b, RANK), "lokr_w2_b": _random(RANK, width)}
        two = _product(tensors["lokr_w2_a"], tensors["lokr_w2_b"]).view(b, d, *kernel)
    else:
        tensors["lokr_w2"] = _random(b, d, *kernel)
        two = tensors["lokr_w2"].double()
    return tensors, torch.kron(one.view(a, c, *[1] * len(kernel)), two.contiguous())


def make_diff(weight: Tensor) -> Made:
    """All numbers."""
    diff = _random(*weight.shape)
    return {"diff": diff}, diff.double()


def with_dora(make: Callable[[Tensor], Made], by_output: bool) -> Callable[[Tensor], Made]:
    """A DoRA of another kind, in LyCORIS' form; of alpha 1 a rank, as the length isn't linear."""

    def made(weight: Tensor) -> Made:
        tensors, change = make(weight)
        changed, axis = weight.double() + change, 0 if by_output else 1
        rest = [other for other in range(weight.ndim) if other != axis]
        norm = torch.linalg.vector_norm(changed, dim=rest, keepdim=True)
        scale = norm.float() * (1 + 0.3 * torch.rand(norm.shape))
        changed = changed * (scale.double() / norm)
        return tensors | {"dora_scale": scale}, changed - weight.double()

    return made


KOHYA = {"unet": "lora_unet_", "text_encoder": "lora_te_text_model_"}


def kohya(layer: str) -> str:
    """kohya's name of a layer."""
    part, _, name = layer.partition(".")
    return KOHYA[part] + name.removeprefix("text_model.").replace(".", "_")


def write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    """A file, and nothing beside it."""
    save_file(
        {name: tensor.clone().contiguous() for name, tensor in tensors.items()}, path, metadata
    )
    return path


def write_kind(
    path: Path,
    tiny: Any,
    make: Callable[[Tensor], Made],
    *,
    names: tuple[str, ...] = FEW,
    spell: Callable[[str], str] = kohya,
    alpha: Tensor | None = None,
    factor: float = 1.0,
) -> tuple[Path, dict[str, Tensor]]:
    """A file of one kind, and each layer's ΔW."""
    torch.manual_seed(1)
    tensors, changes = dict[str, Tensor](), dict[str, Tensor]()
    for layer, weight in layers(tiny):
        if layer in names:
            made, change = make(weight)
            tensors |= {f"{spell(layer)}.{ending}": tensor for ending, tensor in made.items()}
            changes[layer] = change * factor
            if alpha is not None:
                tensors[f"{spell(layer)}.alpha"] = alpha
    return write(path, tensors), changes


def write_config(path: Path, **settings: Any) -> None:
    """peft's settings beside a file."""
    path.with_name("adapter_config.json").write_text(json.dumps(settings))
