"""Every file that artists bring: drawn as its kind's formula has it, or refused by what it is."""

import json
import random
import re
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lora_model as files
import lycoris.kohya
import pytest
import torch
from hypothesis import settings
from lora_model import FEW, RANK, kohya, layers, write, write_config, write_kind
from safetensors.torch import load_file
from torch import Tensor

from stylegen.fleet.lora import main
from stylegen.job import LoraInvalid
from stylegen.pipeline.adapter import read_adapter
from stylegen.pipeline.adapter_cache import AdapterCache
from stylegen.pipeline.batched_lora import AddedLora, MergedLora
from stylegen.pipeline.dialects import spellings
from stylegen.pipeline.lora_file import check_lora_file
from stylegen.pipeline.lora_report import report_lora, sd15_shapes
from stylegen.storage import FolderStore, LoraFiles
from stylegen.storage.cache import file_digest
from stylegen.storage.lora import downloaded_lora

DOC = Path(__file__).parent.parent / "docs/lora.md"
NEAR = 1e-4
"""Of a change's norm, in float32."""


@pytest.fixture(name="tiny", scope="module")
def _tiny() -> Any:
    """SD 1.5's names, tiny channels."""
    return files.make_tiny()


@pytest.fixture(name="stock", scope="module")
def _stock(tiny: Any) -> Any:
    """The same for diffusers."""
    return files.as_pipeline(tiny)


def apart(one: Tensor, other: Tensor) -> float:
    """The norm of what differs, of the other's."""
    return float((one.double().flatten(1) - other.double().flatten(1)).norm() / other.norm())


def ours(path: Path, tiny: Any) -> dict[str, Tensor]:
    """What we add to each layer."""
    pairs = read_adapter(path, tiny).updates
    return {name: up.double() @ down.double().flatten(1) for name, (down, up) in pairs.items()}


def assert_means(path: Path, tiny: Any, changes: dict[str, Tensor], near: float = NEAR) -> None:
    """A file changes these layers, so."""
    found = ours(path, tiny)
    assert found.keys() == changes.keys()
    worst = max((apart(found[name], changes[name]), name) for name in changes)
    assert worst[0] <= near, worst


def stock_changes(path: Path, stock: Any) -> dict[str, Tensor]:
    """What diffusers adds."""
    stock.load_lora_weights(path.parent, weight_name=path.name, adapter_name="a")
    try:
        return {
            f"{part}.{name}": layer.get_delta_weight("a").detach()
            for part in ("unet", "text_encoder")
            for name, layer in getattr(stock, part).named_modules()
            if "a" in getattr(layer, "lora_A", {})
        }
    finally:
        stock.unload_lora_weights()


# Kinds

KINDS_MADE: dict[str, Callable[[Tensor], files.Made]] = {
    "LoRA": files.make_lora,
    "LoCon with a Tucker core": files.make_locon,
    "LoHa": files.make_loha,
    "LoHa with Tucker cores": files.make_loha_core,
    **{
        f"LoKr, first {first or 'whole'}, second {second or 'whole'}": (
            partial(files.make_lokr, first=bool(first), second=second)
        )
        for first in ("", "halves")
        for second in ("", "halves", "core")
    },
    "full difference": files.make_diff,
    "DoRA by outputs": files.with_dora(files.make_lora, True),
    "DoRA by inputs": files.with_dora(files.make_lora, False),
    "DoRA of a LoHa": files.with_dora(files.make_loha, True),
}


@pytest.mark.parametrize("kind", KINDS_MADE)
def test_a_kind_is_its_formula(tiny: Any, tmp_path: Path, kind: str) -> None:
    """On a layer of each shape; where the kind has a rank, with the alpha of half of it."""
    scaled = not kind.startswith(("full", "DoRA")) and "second whole" not in kind
    alpha, factor = (torch.tensor(RANK / 2), 0.5) if scaled else (None, 1.0)
    make = KINDS_MADE[kind]
    path, changes = write_kind(tmp_path / "x.safetensors", tiny, make, alpha=alpha, factor=factor)
    assert_means(path, tiny, changes)
    assert check_lora_file(path)


def test_a_rank_beyond_full_is_folded(tiny: Any, tmp_path: Path) -> None:
    """A LoHa of rank 32 has 1,024 columns; no layer of these has more than 24 that say anything."""
    make = partial(files.make_loha, rank=32)
    path, changes = write_kind(tmp_path / "x.safetensors", tiny, make)
    assert_means(path, tiny, changes)
    weights = dict(layers(tiny))
    for layer, size in read_adapter(path, tiny).sizes.items():
        assert size.rank == min(len(weights[layer]), weights[layer][0].numel())


def test_both_forms_of_a_batch_draw_it(tiny: Any, tmp_path: Path) -> None:
    """A LoHa and a LoKr in one batch, added and merged, are the model with W + ΔW in it."""
    makes = files.make_loha, partial(files.make_lokr, second="core")
    written = [write_kind(tmp_path / f"{n}.safetensors", tiny, m) for n, m in enumerate(makes)]
    adapters = [read_adapter(path, tiny) for path, _ in written]
    torch.manual_seed(2)
    x, words = torch.randn(2, 4, 8, 8), torch.randn(2, 3, files.WORDS)

    def answer(rows: slice) -> Tensor:
        with torch.no_grad():
            return tiny.unet(x[rows], torch.tensor(500), words[rows]).sample

    expected = []
    for row, (_, changes) in enumerate(written):
        before = {name: dict(layers(tiny))[name].clone() for name in changes}
        for name, change in changes.items():
            dict(layers(tiny))[name].add_(change.float())
        expected.append(answer(slice(row, row + 1)))
        for name, weight in before.items():
            dict(layers(tiny))[name].copy_(weight)
    for form in (AddedLora, partial(MergedLora, slots=2)):
        batch = form(tiny.unet, "unet", "cpu")
        batch.put(adapters)
        assert torch.allclose(answer(slice(None)), torch.cat(expected), atol=1e-4)
        batch.remove()


# A trainer's own writer, and a second opinion

TRAINED: dict[str, dict[str, Any]] = {
    "lora": {},
    "lora, use_tucker": {},
    "lora, dora_wd": {},
    "lora, dora_wd, not wd_on_output": {},
    "lora, rs_lora": {},
    "loha": {},
    "loha, use_tucker": {},
    "loha, dora_wd": {},
    "lokr": {"factor": 2},
    "lokr, decompose_both": {"factor": 4},
    "lokr, use_tucker": {"factor": 2},
    "lokr, full_matrix": {"factor": 4},
}
"""What is set of LyCORIS' trainer for kohya's."""


@pytest.mark.parametrize("trained", TRAINED)
def test_lycoris_files_mean_what_lycoris_computes(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: str
) -> None:
    """Written by its own network. Where it is merged, `lycoris_lora` applies some factors twice.

    So an alpha of the rank is taken, but for LoCon, whose product is the plain one.
    """
    monkeypatch.setattr(lycoris.kohya.logger, "disabled", True)
    algo, *switches = trained.split(", ")
    options = TRAINED[trained] | {
        s.removeprefix("not "): not s.startswith("not ") for s in switches
    }
    alpha = RANK / 2 if algo == "lora" and "dora_wd" not in trained else RANK
    network = lycoris.kohya.create_network(
        *(1.0, RANK, alpha, None, tiny.text_encoder, tiny.unet),
        **{"algo": algo, "conv_dim": RANK, "conv_alpha": alpha, "preset": "unet-convblock-only"},
        **options,
    )
    network.apply_to(tiny.text_encoder, tiny.unet, False, True)
    torch.manual_seed(3)
    modules = network.unet_loras
    try:
        for name, parameter in network.named_parameters():
            if "dora" not in name:
                parameter.data = files._random(*parameter.shape)
        network.save_weights(path := tmp_path / "x.safetensors", None, {})
    finally:
        for module in modules:
            module.restore()
    known, weights = spellings(tiny), dict(layers(tiny))
    changes = {}
    for module in modules:
        layer = known[module.lora_name]
        weight = weights[layer]
        changes[layer] = module.get_merged_weight(1.0, weight.shape)[0].detach() - weight
    assert len(changes) > 50
    assert_means(path, tiny, changes)


# Dialects


def everything(tiny: Any) -> tuple[str, ...]:
    """Every layer that there is, 354."""
    names = tuple(name for name, _ in layers(tiny))
    assert len(names) == 282 + 72
    return names


STABILITY = {
    "unet.conv_in": "input_blocks.0.0",
    "unet.time_embedding.linear_1": "time_embed.0",
    "unet.down_blocks.0.attentions.0.proj_in": "input_blocks.1.1.proj_in",
    "unet.down_blocks.1.attentions.1.transformer_blocks.0.attn2.to_k": (
        "input_blocks.5.1.transformer_blocks.0.attn2.to_k"
    ),
    "unet.down_blocks.1.resnets.0.conv_shortcut": "input_blocks.4.0.skip_connection",
    "unet.mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj": (
        "middle_block.1.transformer_blocks.0.ff.net.0.proj"
    ),
    "unet.up_blocks.0.upsamplers.0.conv": "output_blocks.2.1.conv",
    "unet.up_blocks.3.resnets.2.conv1": "output_blocks.11.0.in_layers.2",
    "unet.conv_out": "out.2",
}
"""Of `FEW`, written down by hand."""


def te1(layer: str) -> str:
    """kohya's name of a text encoder that is one of two."""
    return kohya(layer).replace("lora_te_", "lora_te1_")


SPELLED: dict[str, Callable[[str], str]] = {
    "kohya": kohya,
    "kohya, `lora_te1_`": te1,
    "OneTrainer, dotted": lambda layer: layer,
    "LDM names, kohya": lambda layer: "lora_unet_" + STABILITY[layer].replace(".", "_"),
    "LDM names, ComfyUI": lambda layer: f"diffusion_model.{STABILITY[layer]}",
}


@pytest.mark.parametrize("dialect", SPELLED)
def test_a_dialect_names_every_layer(tiny: Any, tmp_path: Path, dialect: str) -> None:
    """All layers of the model, or those whose names were written down by hand."""
    names = FEW if dialect.startswith("LDM") else everything(tiny)
    alpha = torch.tensor(RANK / 2)
    path, changes = write_kind(
        tmp_path / "x.safetensors",
        tiny,
        files.make_lora,
        names=names,
        spell=SPELLED[dialect],
        alpha=alpha,
        factor=0.5,
    )
    assert_means(path, tiny, changes)


ENDINGS = {
    "diffusers, new": ("lora_A.weight", "lora_B.weight"),
    "diffusers, `.lora.down`": ("lora.down.weight", "lora.up.weight"),
    "diffusers, `lora_linear_layer`": (
        "lora_linear_layer.down.weight",
        "lora_linear_layer.up.weight",
    ),
    "peft, `.default`": ("lora_A.default.weight", "lora_B.default.weight"),
}


def respelled(path: Path, rename: Callable[[str], str]) -> None:
    """The same tensors under other names."""
    write(path, {rename(name): tensor for name, tensor in load_file(path).items()})


@pytest.mark.parametrize("dialect", ENDINGS)
def test_endings(tiny: Any, stock: Any, tmp_path: Path, dialect: str) -> None:
    """However the halves are called; text encoders' layers with and without `text_model`."""
    names, (down, up) = everything(tiny), ENDINGS[dialect]
    path, changes = write_kind(
        tmp_path / "x.safetensors", tiny, files.make_lora, names=names, spell=str
    )
    respelled(path, lambda n: n.replace("lora_down.weight", down).replace("lora_up.weight", up))
    assert_means(path, tiny, changes)
    if dialect == "diffusers, new":
        assert_means(path, tiny, stock_changes(path, stock))
    respelled(path, lambda n: n.replace("text_encoder.", "text_encoder.text_model."))
    assert_means(path, tiny, changes)


def test_processors(tiny: Any, tmp_path: Path) -> None:
    """diffusers' first form: attention processors' own layers, without the part of the model."""
    names = tuple(n for n in everything(tiny) if re.search(r"attn.*(to_|[qkv]_proj|out_proj)", n))
    path, changes = write_kind(
        tmp_path / "x.safetensors", tiny, files.make_lora, names=names, spell=str
    )

    def old(name: str) -> str:
        name = re.sub(r"(attn\d)\.to_(\w+)(\.0)?\.lora_", r"\1.processor.to_\2_lora.", name)
        name = re.sub(r"self_attn\.([qkv]|out)(_proj)\.lora_", r"self_attn.to_\1_lora.", name)
        return name.removeprefix("unet.")

    respelled(path, old)
    assert_means(path, tiny, changes)


def test_no_two_layers_share_a_name(tiny: Any) -> None:
    """Each spelling that is looked up was made by one layer."""
    known = spellings(tiny)
    assert set(everything(tiny)) <= set(known.values())
    for layer in everything(tiny):
        assert known[layer] == known[kohya(layer)] == layer


# Strength

ALPHAS = {
    "I64, as kohya's trainer writes by default": torch.tensor(1),
    "I32": torch.tensor(1, dtype=torch.int32),
    "F64": torch.tensor(1.0, dtype=torch.float64),
    "F16": torch.tensor(1.0).half(),
    "BF16": torch.tensor(1.0).bfloat16(),
    "of one dimension": torch.tensor([1.0]),
    "negative": torch.tensor(-3.0),
    "large": torch.tensor(100_000),
}


@pytest.mark.parametrize("alpha", ALPHAS)
def test_an_alpha_of_any_type(tiny: Any, tmp_path: Path, alpha: str) -> None:
    """One number is one number."""
    value = ALPHAS[alpha]
    factor = float(value) / RANK
    path, changes = write_kind(
        tmp_path / "x.safetensors", tiny, files.make_lora, alpha=value, factor=factor
    )
    assert_means(path, tiny, changes)


def test_ranks_that_differ_by_layer(tiny: Any, tmp_path: Path) -> None:
    """As ``resize_lora`` writes them; stock diffusers gives layers others' ranks."""
    ranks = iter([1, 2, 3, 4, 5, 6, 7, 8, 2])
    path, changes = write_kind(
        tmp_path / "x.safetensors",
        tiny,
        lambda weight: files.make_lora(weight, next(ranks)),
        alpha=torch.tensor(4.0),
    )
    sizes = read_adapter(path, tiny).sizes
    changes = {name: change * 4 / sizes[name].rank for name, change in changes.items()}
    assert_means(path, tiny, changes)
    assert len({size.rank for size in sizes.values()}) == 8


def test_a_scalar_is_a_factor(tiny: Any, tmp_path: Path) -> None:
    """LyCORIS' of a layer, of any kind."""
    path, changes = write_kind(tmp_path / "x.safetensors", tiny, files.make_loha)
    scalars = {f"{kohya(layer)}.scalar": torch.tensor(0.25) for layer in changes}
    write(path, load_file(path) | scalars)
    assert_means(path, tiny, {name: change / 4 for name, change in changes.items()})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_no_worse_than_stock(tmp_path: Path, dtype: torch.dtype) -> None:
    """A file of half precision in a model of half precision: W + ΔW in float64 is the judge."""
    tiny = files.make_tiny(torch.float16)
    path, changes = write_kind(
        tmp_path / "x.safetensors", tiny, files.make_lora, alpha=torch.tensor(3.0), factor=1.5
    )
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(path).items()}
    write(path, tensors)
    exact = {}
    for name in changes:
        halves = (tensors[f"{kohya(name)}.lora_{half}.weight"] for half in ("up", "down"))
        up, down = (half.double().flatten(1) for half in halves)
        exact[name] = 1.5 * up @ down
    mine, theirs = ours(path, tiny), stock_changes(path, files.as_pipeline(tiny))
    worst = [max(apart(found[name], exact[name]) for name in exact) for found in (mine, theirs)]
    assert worst[0] <= max(1.25 * worst[1], 2e-3), worst


# peft


def peft(layer: str) -> str:
    """peft's name of a layer: of one model, whichever it is."""
    return "base_model.model." + layer.partition(".")[2]


def write_peft(path: Path, tiny: Any, rank: int, part: str) -> tuple[Path, dict[str, Tensor]]:
    """``adapter_model.safetensors`` of one part of the model."""
    ending = {"unet": "to_q", "text_encoder": "q_proj"}[part]
    names = tuple(name for name in everything(tiny) if name.endswith(ending))
    make = partial(files.make_lora, rank=rank)
    path, changes = write_kind(path, tiny, make, names=names, spell=peft)
    respelled(path, lambda n: n.replace("lora_down", "lora_A").replace("lora_up", "lora_B"))
    return path, changes


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_pefts_alpha_is_beside_the_file(tiny: Any, tmp_path: Path, part: str) -> None:
    """peft's default is 8, whatever the rank; without its settings the file is refused."""
    path, changes = write_peft(tmp_path / "adapter_model.safetensors", tiny, 4, part)
    with pytest.raises(LoraInvalid, match="tells no alpha, .*: base_model.model"):
        read_adapter(path, tiny)
    write_config(path, peft_type="LORA", r=4, lora_alpha=8, alpha_pattern={}, use_rslora=False)
    first = read_adapter(path, tiny).sha256
    assert_means(path, tiny, {name: 2 * change for name, change in changes.items()})
    write_config(path, r=4, lora_alpha=8, use_rslora=True)
    assert_means(path, tiny, {name: 4 * change for name, change in changes.items()})
    assert read_adapter(path, tiny).sha256 != first
    for text in ("", "[]", "{" * 100_000, '{"lora_alpha": "much"}'):
        path.with_name("adapter_config.json").write_text(text)
        with pytest.raises(LoraInvalid):
            read_adapter(path, tiny)


@pytest.mark.parametrize("cached", [True, False])
def test_a_jobs_peft_file_finds_its_settings(tiny: Any, tmp_path: Path, cached: bool) -> None:
    """In a bucket, under the same prefix; mended settings count for the next job."""
    store, bucket = FolderStore(tmp_path / "store"), tmp_path / "store/models/anna"
    bucket.mkdir(parents=True)
    path, changes = write_peft(bucket / "adapter_model.safetensors", tiny, 4, "unet")
    loras = LoraFiles(store, tmp_path / "cache") if cached else None
    adapters = AdapterCache(partial(read_adapter, pipeline=tiny))
    url, found = "s3://models/anna/adapter_model.safetensors", []
    for alpha in (8, 2, 2):
        write_config(path, r=4, lora_alpha=alpha)
        with loras.get(url) if loras else downloaded_lora(url, store) as lora:
            found.append(adapters.get(lora))
    norms = [float(adapter.flat.norm() ** 2) for adapter in found]
    assert norms[0] == pytest.approx(4 * norms[1]) and len(found[0].updates) == len(changes)
    assert found[2] is found[1] or not cached
    path.with_name("adapter_config.json").unlink()
    with loras.get(url) if loras else downloaded_lora(url, store) as lora:
        with pytest.raises(LoraInvalid, match="tells no alpha"):
            adapters.get(lora)


def test_pefts_dora_is_stocks(tiny: Any, stock: Any, tmp_path: Path) -> None:
    """Magnitudes in diffusers' names, on matrices and convolutions."""
    path, _ = write_kind(tmp_path / "x.safetensors", tiny, files.make_lora, spell=str)
    respelled(path, lambda n: n.replace("lora_down", "lora_A").replace("lora_up", "lora_B"))
    tensors, weights = load_file(path), dict(layers(tiny))
    for layer in FEW:
        weight = weights[layer]
        norm = weight.flatten(1).norm(dim=1) * 1.5
        shape = (1, -1, 1, 1) if weight.ndim == 4 else (-1,)
        tensors[f"{layer}.lora_magnitude_vector"] = norm.view(shape)
    write(path, tensors)
    adapter = read_adapter(path, tiny)
    torch.manual_seed(2)
    x, words = torch.randn(1, 4, 8, 8), torch.randn(1, 3, files.WORDS)
    batch = AddedLora(tiny.unet, "unet", "cpu")
    batch.put([adapter])
    with torch.no_grad():
        mine = tiny.unet(x, torch.tensor(500), words).sample
        batch.remove()
        stock.load_lora_weights(path.parent, weight_name=path.name)
        theirs = stock.unet(x, torch.tensor(500), words).sample
        stock.unload_lora_weights()
        plain = tiny.unet(x, torch.tensor(500), words).sample
    assert torch.allclose(mine, theirs, atol=1e-4) and not torch.allclose(mine, plain, atol=1e-2)


# Refusals


def _raw(data: bytes) -> Callable[[Path, Any], object]:
    return lambda path, tiny: path.write_bytes(data)


def _tensors(**shapes: tuple[int, ...]) -> Callable[[Path, Any], object]:
    """Tensors of these shapes; ``__`` is a dot."""
    return lambda path, tiny: write(
        path, {name.replace("__", "."): torch.ones(shape) for name, shape in shapes.items()}
    )


def _beside(make: Callable[[Tensor], files.Made], **more: Tensor) -> Callable[[Path, Any], object]:
    """A file of one kind and other tensors; ``__`` is a dot."""

    def written(path: Path, tiny: Any) -> None:
        write_kind(path, tiny, make)
        others = {name.replace("__", "."): tensor for name, tensor in more.items()}
        write(path, load_file(path) | others)

    return written


def _changed(change: Callable[[str, Tensor], Tensor]) -> Callable[[Path, Any], object]:
    """A LoRA with other tensors."""

    def written(path: Path, tiny: Any) -> None:
        write_kind(path, tiny, files.make_lora, alpha=torch.tensor(1.0))
        write(path, {name: change(name, tensor) for name, tensor in load_file(path).items()})

    return written


TO_K = "down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
NORM = "lora_unet_down_blocks_0_resnets_0_norm1"
REFUSED: dict[str, tuple[Callable[[Path, Any], object], str]] = {
    "an empty file": (_raw(b""), "an empty file"),
    "a git-lfs pointer": (
        _raw(b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 1\n"),
        "a git-lfs pointer, not the file",
    ),
    "an HTML page": (_raw(b"<!DOCTYPE html><html>" + bytes(99)), "a web page, not the file"),
    "a pickle (.pt renamed)": (_raw(b"PK\x03\x04" + bytes(99)), "a pickle (.pt, .ckpt or .bin)"),
    "an old pickle": (_raw(b"\x80\x02}q\x00(X\x05" + bytes(99)), "a pickle (.pt, .ckpt or .bin)"),
    "gzip": (_raw(b"\x1f\x8b\x08" + bytes(99)), "a gzip archive, not the file"),
    "SDXL": (
        _tensors(
            lora_te1_text_model_x__alpha=(1,),
            lora_te2_text_model_encoder_layers_30_x__lora_up__weight=(8, 4),
        ),
        "an SDXL LoRA: lora_te2_text_model",
    ),
    "SDXL's UNet": (
        _tensors(
            lora_unet_input_blocks_7_1_transformer_blocks_3_attn1_to_k__lora_down__weight=(2, 8),
            lora_unet_input_blocks_7_1_transformer_blocks_3_attn1_to_k__lora_up__weight=(8, 2),
        ),
        "an SDXL LoRA: lora_unet_input_blocks_7_1_transformer_blocks_3",
    ),
    "SD 2.x": (
        _tensors(
            **{
                f"lora_unet_{TO_K}__lora_down__weight": (2, 1024),
                f"lora_unet_{TO_K}__lora_up__weight": (8, 2),
            }
        ),
        f"an SD 2 LoRA: lora_unet_{TO_K}.lora_down.weight",
    ),
    "Flux": (
        _tensors(
            lora_unet_double_blocks_0_img_attn_proj__lora_down__weight=(2, 8),
            lora_unet_double_blocks_0_img_attn_proj__lora_up__weight=(8, 2),
        ),
        "a LoRA for Flux, SD 3 or another transformer: lora_unet_double_blocks_0",
    ),
    "SD 3, in diffusers' names": (
        _tensors(
            transformer__transformer_blocks__1__attn__to_q__lora_A__weight=(2, 8),
            transformer__transformer_blocks__1__attn__to_q__lora_B__weight=(8, 2),
        ),
        "a LoRA for Flux, SD 3 or another transformer: transformer.transformer_blocks",
    ),
    "a textual inversion": (
        _tensors(emb_params=(4, 768)),
        "a textual inversion, not a LoRA: emb_params",
    ),
    "a checkpoint": (
        _tensors(model__diffusion_model__input_blocks__0__0__weight=(8, 4, 3, 3)),
        "a checkpoint, not a LoRA: model.diffusion_model.input_blocks.0.0.weight",
    ),
    "a UNet": (
        _tensors(conv_in__weight=(8, 4, 3, 3), conv_in__bias=(8,)),
        "a model's own weights, not a LoRA: conv_in.bias",
    ),
    "fp8": (
        _changed(lambda n, t: t.to(torch.float8_e4m3fn) if "lora_up" in n else t),
        "a tensor has type F8_E4M3, where BF16, F16, F32 are known: lora_unet_",
    ),
    "normalisation layers, `w_norm`": (
        _beside(files.make_lora, **{f"{NORM}__w_norm": torch.ones(8)}),
        "a change of normalisation layers, which is not supported: lora_unet_down_blocks_0",
    ),
    "normalisation layers, LoHa": (
        _beside(
            files.make_loha,
            **{f"{NORM}__hada_w{n}_{half}": torch.ones(8, 8) for n in (1, 2) for half in "ab"},
        ),
        f"a LoHa is not supported for normalisation layers: {NORM}.hada_w1_a",
    ),
    "IA3": (
        _tensors(
            **{f"lora_unet_{TO_K}__weight": (8,), f"lora_unet_{TO_K}__on_input": (1,)},
        ),
        f"an IA3, which is not supported: lora_unet_{TO_K}.on_input",
    ),
    "embeddings inside, `bundle_emb`": (
        _beside(files.make_lora, bundle_emb__cat__clip_l=torch.ones(1, 768)),
        "a LoRA with embeddings inside, which are not supported: bundle_emb.cat.clip_l",
    ),
    "a bias, `diff_b`": (
        _beside(files.make_lora, lora_unet_conv_in__diff_b=torch.ones(8)),
        "a change of a bias, which is not supported: lora_unet_conv_in.diff_b",
    ),
    "all `up` zero": (
        _changed(lambda n, t: t * 0 if "lora_up" in n else t),
        "the file changes nothing",
    ),
    "alpha 0 everywhere": (
        _changed(lambda n, t: t * 0 if n.endswith("alpha") else t),
        "the file changes nothing",
    ),
    "a number that is not finite": (
        _changed(lambda n, t: t * torch.inf if n == "lora_unet_conv_in.lora_up.weight" else t),
        "unet.conv_in: values that are not finite in half precision",
    ),
    "half of a pair": (
        _beside(
            files.make_lora, lora_unet_mid_block_resnets_0_conv1__lora_up__weight=torch.ones(24, 2)
        ),
        "half of a pair is missing: lora_unet_mid_block_resnets_0_conv1.lora_up.weight",
    ),
    "a layer of no model": (
        _beside(files.make_loha, lora_unet_nowhere__diff=torch.ones(2, 2)),
        "a layer of the file is not in the base model: lora_unet_nowhere.diff",
    ),
    "two kinds on one layer": (
        _beside(files.make_lora, lora_unet_conv_in__diff=torch.ones(8, 4, 3, 3)),
        "tensors of two kinds belong to one layer, such as lora_unet_conv_in.diff",
    ),
    "an alpha of two numbers": (
        _beside(files.make_lora, lora_unet_conv_in__alpha=torch.ones(2)),
        "an alpha or scalar is not one number: lora_unet_conv_in.alpha",
    ),
    "DoRA, lengths of another layer": (
        _beside(files.make_lora, lora_unet_conv_in__dora_scale=torch.ones(5, 1, 1, 1)),
        "unet.conv_in: magnitudes that fit no axis of the weight: lora_unet_conv_in.dora_scale",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_file_is_refused_by_what_it_is(tiny: Any, tmp_path: Path, what: str) -> None:
    """The artist reads what it is, and one tensor that tells."""
    write_it, refusal = REFUSED[what]
    write_it(path := tmp_path / "x.safetensors", tiny)
    with pytest.raises(LoraInvalid, match=re.escape(refusal)):
        read_adapter(path, tiny)


def test_long_notes_of_a_trainer_are_read(tiny: Any, tmp_path: Path) -> None:
    """kohya counts each tag of each picture: ten MiB of them."""
    path, changes = write_kind(tmp_path / "x.safetensors", tiny, files.make_lora)
    tags = json.dumps({f"tag {number}": number for number in range(400_000)})
    assert len(tags) > 8 * 2**20
    write(path, load_file(path), {"ss_tag_frequency": tags, "ss_network_dim": "Dynamic"})
    assert_means(path, tiny, changes)


@pytest.mark.parametrize("factor", [1e-4, 1e4])
def test_halves_are_about_equal(tiny: Any, tmp_path: Path, factor: float) -> None:
    """However a trainer shares a LoHa's size among its factors: half precision has both."""
    path, _ = write_kind(tmp_path / "x.safetensors", tiny, files.make_loha)
    tensors = {
        name: tensor * (factor if name.endswith("hada_w1_a") else 1)
        for name, tensor in load_file(path).items()
    }
    write(path, tensors, {})
    for down, up in read_adapter(path, tiny).updates.values():
        assert 0.1 < float(down.abs().max() / up.abs().max()) < 10


def test_stable_diffusions_own_shapes() -> None:
    """What ``stylegen-lora`` compares a file with."""
    layer = sd15_shapes().text_encoder.encoder.layers[0].mlp.fc1
    assert tuple(layer.weight.shape) == (3072, 768)


@pytest.mark.parametrize(("length", "shown"), [(80, "n" * 80), (81, "n" * 80 + "…")])
def test_a_note_has_one_line(tiny: Any, tmp_path: Path, length: int, shown: str) -> None:
    """A report shows 80 characters of it."""
    path, _ = write_kind(tmp_path / "x.safetensors", tiny, files.make_lora)
    write(path, load_file(path), {"ss_training_comment": "n" * length})
    assert report_lora(path, tiny).notes["ss_training_comment"] == shown


# Never half applied

MUTANTS = 5 * settings().max_examples
"""500, and ten times as many by `make fuzz`."""


def mutated(data: bytes, chance: random.Random) -> bytes:
    """A file with one thing changed: bytes of its header, names, shapes, types, or its length."""
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    names = [name for name in header if name != "__metadata__"]
    name = chance.choice(names)
    way = chance.randrange(8)
    if way == 0:
        start = chance.randrange(8 + length)
        return (
            data[:start]
            + chance.randbytes(chance.randrange(12))
            + data[start + chance.randrange(12) :]
        )
    if way == 1:
        return data[: chance.randrange(len(data))]
    if way == 2:
        header[name + chance.choice([".x", "_", ".default.weight", ".alpha"])] = header.pop(name)
    elif way == 3:
        header[name]["shape"] = chance.sample(header[name]["shape"], len(header[name]["shape"]))
    elif way == 4:
        header[name]["dtype"] = chance.choice(["F16", "I32", "BF16", "F8_E5M2", "U8", "BOOL"])
    elif way == 5:
        old, new = chance.choice([("lora_", "hada_"), ("unet", "te"), ("up", "down"), ("_", ".")])
        header = {n.replace(old, new, chance.randrange(1, 3)): v for n, v in header.items()}
    elif way == 6:
        header[name]["shape"] = [
            chance.choice([0, 1, 2, 2**40, -1, 3.5]) for _ in range(chance.randrange(5))
        ]
    else:
        header[chance.choice(names)] = header[name]
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def drawn_whole(path: Path, tiny: Any) -> bool:
    """Whether a file is drawn, and then with every one of its tensors."""
    try:
        adapter = read_adapter(path, tiny)
    except LoraInvalid:
        return False
    named = [name for name in load_file(path) if not name.endswith("alpha")]
    layers_of = {re.split(r"\.(?:lora|hada|lokr|diff)", name)[0] for name in named}
    assert len(layers_of) == len(adapter.updates), named
    return True


def test_mutants_are_drawn_whole_or_refused(tiny: Any, tmp_path: Path) -> None:
    """No other exception than the job's, and no layer of a file left out."""
    names, chance = FEW[:3], random.Random(21)
    makes = files.make_lora, files.make_loha, files.make_loha_core, files.make_lokr, files.make_diff
    paths = [
        write_kind(tmp_path / f"{n}.safetensors", tiny, make, names=names)[0]
        for n, make in enumerate(makes)
    ]
    originals = [path.read_bytes() for path in paths]
    path, drawn = tmp_path / "mutant.safetensors", 0
    for number in range(MUTANTS):
        path.write_bytes(mutated(originals[number % len(originals)], chance))
        drawn += drawn_whole(path, tiny)
    assert 0 < drawn < MUTANTS / 4


# The command


def test_the_command_says_what_a_file_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a LoHa for SD 1.5, of a DoRA without the model's numbers, and of no LoRA."""
    made, change = files.make_loha(torch.zeros(320, 4, 3, 3), 4)
    tensors = {f"lora_unet_conv_in.{ending}": tensor for ending, tensor in made.items()}
    tensors["lora_unet_conv_in.alpha"] = torch.tensor(2)
    path = write(tmp_path / "x.safetensors", tensors, {"ss_output_name": "anna\n"})
    assert main([str(path)]) == 0
    shown = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert shown.pop("norm") == f"{float(change.norm()) / 2:.4g}"
    assert shown == {
        "kind": "LoHa",
        "layers": "unet 1",
        "rank": "16",
        "alpha": "2",
        "sha256": file_digest(path),
        "ss_output_name": "anna ",
    }
    write(path, tensors | {"lora_unet_conv_in.dora_scale": torch.ones(320, 1, 1, 1)})
    assert main([str(path)]) == 1
    assert "needs the model's own weights" in capsys.readouterr().err
    path.write_bytes(b"")
    assert main([str(path)]) == 1
    assert capsys.readouterr().err == "refused: an empty file\n"


# The page


def rows(page: str) -> dict[str, str]:
    """The tables of a page: first cell to second."""
    text = page.replace("\\|", "")
    found = re.findall(r"^\| ([^|]+?) \| ([^|]+?) \|", text, re.MULTILINE)
    return {first: second for first, second in found if first not in ("file", "파일")}


DRAWN = {
    *(kind.split(",")[0] for kind in KINDS_MADE),
    *SPELLED,
    *ENDINGS,
    *(f"alpha {alpha}" for alpha in ALPHAS),
    "rank that differs by layer",
    "`.scalar`",
    "attention processors, diffusers' first form",
    "peft's `adapter_model.safetensors`",
    "DoRA, peft's `lora_magnitude_vector`",
    "metadata of many MiB",
}
"""What the tests above draw."""


@pytest.mark.parametrize("page", [DOC, DOC.parent / "ko/lora.md"], ids=["en", "ko"])
def test_the_page_is_the_table(page: Path) -> None:
    """What is drawn and what is refused, each with the words that an artist reads."""
    drawn, _, refused = page.read_text(encoding="utf-8").rpartition("\n## ")
    assert rows(drawn).keys() == DRAWN
    messages = {what: text for what, (_, text) in REFUSED.items()}
    messages["peft's file alone"] = "the file tells no alpha"
    quoted = rows(refused)
    assert quoted.keys() == messages.keys()
    for what, cell in quoted.items():
        assert f"{cell.strip('`')}" in messages[what], what
