"""The deployed worker, but for its device, which is lost at the third step of a picture."""

import sys
from typing import Any

import torch

from stylegen.pipeline import resident
from stylegen.worker import main

_load_pipeline = resident.load_pipeline


def lose(latents: torch.Tensor) -> None:
    """A CUDA error that stays: an index out of bounds, found by the kernel. A CPU acts it."""
    if not latents.is_cuda:
        raise torch.AcceleratorError("CUDA error: device-side assert triggered")
    table = torch.zeros(4, device=latents.device)
    print(table[torch.tensor([4_000_000], device=latents.device)].sum().item())


def load_pipeline(*given: Any, **options: Any) -> Any:
    """The worker's own, whose UNet loses the device."""
    pipeline, calls = _load_pipeline(*given, **options), []

    def before(_: Any, inputs: tuple[Any, ...]) -> None:
        calls.append(1)
        if len(calls) == 3:
            lose(inputs[0])

    pipeline.unet.register_forward_pre_hook(before)
    return pipeline


if __name__ == "__main__":
    resident.load_pipeline = load_pipeline
    sys.exit(main([]))
