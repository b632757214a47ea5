"""Stable Diffusion 1.5 with random weights: the real one's arithmetic, without its licence.

Usage: ``python bench/sd15.py FOLDER`` writes a diffusers folder of 2 GB. The sizes are those of the
published configs; only the vocabulary is the pocket model's, since no tokenizer can be made up.
`TINY` has the same blocks and almost no channels, for trying a bench out on a CPU.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from stylegen.pipeline import quiet_libraries
from stylegen.pocket import packaged


def make_vae() -> AutoencoderKL:
    """SD 1.5's autoencoder."""
    return AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
    )


def make_tiny_vae() -> AutoencoderTiny:
    """One that decodes in no time, into 32 times as many pixels a side."""
    blocks: dict[str, Any] = {"num_encoder_blocks": (1,) * 6, "num_decoder_blocks": (1,) * 6}
    channels = (8,) * 6
    return AutoencoderTiny(
        encoder_block_out_channels=channels, decoder_block_out_channels=channels, **blocks
    )


@dataclass(frozen=True)
class Shape:
    """Sizes of the text encoder and the UNet, the latents of 512 pixels, the autoencoder."""

    words: int = 768
    layers: int = 12
    depth: int = 2
    side: int = 64
    unet: tuple[int, ...] = (320, 640, 1280, 1280)
    vae: Callable[[], torch.nn.Module] = make_vae


SD15 = Shape()
TINY = Shape(words=32, layers=1, depth=1, side=16, unet=(32,), vae=make_tiny_vae)


def make_unet(shape: Shape = SD15) -> UNet2DConditionModel:
    """The UNet, on torch's current device and from its current seed."""
    levels = len(shape.unet)
    return UNet2DConditionModel(
        sample_size=shape.side,
        block_out_channels=shape.unet,
        down_block_types=("CrossAttnDownBlock2D",) * (levels - 1) + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * (levels - 1),
        layers_per_block=shape.depth,
        cross_attention_dim=shape.words,
        attention_head_dim=8,
    )


def make_parts(tokenizer: CLIPTokenizer, shape: Shape = SD15) -> dict[str, torch.nn.Module]:
    """UNet, autoencoder and text encoder, from seed 0, on torch's current device."""
    torch.manual_seed(0)
    words = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.words,
        intermediate_size=4 * shape.words,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.words // min(64, shape.words // 2),
        projection_dim=shape.words,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return {"unet": make_unet(shape), "vae": shape.vae(), "text_encoder": CLIPTextModel(words)}


def make_pipeline(
    shape: Shape = SD15, device: str = "cpu", dtype: torch.dtype = torch.float16
) -> StableDiffusionPipeline:
    """The whole pipeline, made where it is to draw: seconds, and the same weights each time."""
    quiet_libraries()
    tokenizer = CLIPTokenizer.from_pretrained(packaged() / "pocket/tokenizer")
    with torch.device(device):
        parts = make_parts(tokenizer, shape)
    pipeline = StableDiffusionPipeline(
        **{name: part.to(dtype).eval() for name, part in parts.items()},
        tokenizer=tokenizer,
        scheduler=DPMSolverMultistepScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def build_sd15(folder: Path) -> Path:
    """Write the folder, in half precision, and return it."""
    make_pipeline().save_pretrained(folder)
    return folder


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    print(build_sd15(parser.parse_args().folder))
