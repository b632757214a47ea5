"""Stable Diffusion 1.5 with random weights: the real one's arithmetic, without its licence.

Usage: ``python bench/sd15.py FOLDER`` writes a diffusers folder of 2 GB. The sizes are those of the
published configs; only the vocabulary is the pocket model's, since no tokenizer can be made up.
"""

import sys
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from stylegen.pocket import packaged


def make_parts(tokenizer: CLIPTokenizer) -> dict[str, torch.nn.Module]:
    """UNet, autoencoder and text encoder of SD 1.5, from seed 0."""
    torch.manual_seed(0)
    words = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        projection_dim=768,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    unet = UNet2DConditionModel(
        sample_size=64,
        block_out_channels=(320, 640, 1280, 1280),
        cross_attention_dim=768,
        attention_head_dim=8,
    )
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
    )
    return {"unet": unet, "vae": vae, "text_encoder": CLIPTextModel(words)}


def build_sd15(folder: Path) -> Path:
    """Write the folder, in half precision, and return it."""
    tokenizer = CLIPTokenizer.from_pretrained(packaged() / "pocket/tokenizer")
    pipeline = StableDiffusionPipeline(
        **make_parts(tokenizer),
        tokenizer=tokenizer,
        scheduler=DPMSolverMultistepScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to(torch.float16).save_pretrained(folder)
    return folder


if __name__ == "__main__":
    print(build_sd15(Path(sys.argv[1])))
