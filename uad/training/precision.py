"""The arithmetic of training: what the machine computes, and what must not be rounded."""

from typing import ContextManager

import torch


def whole_float32() -> ContextManager[None]:
    """Let an NVIDIA GPU round the factors of its convolutions to no TF32 (10 bits), in which they are else computed."""
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)


def precision_on(device: torch.device, wanted: str) -> str:
    """The precision to train in, where `wanted` is asked for: float32 in place of bfloat16 that the CPU only imitates.

    oneDNN has bfloat16 convolutions for x86 processors with AVX-512. On one with AVX2 its reference code runs them: a
    step of MobileNetV2 took 8.2 s in place of 1.2 s, one of PDN 13 s in place of 0.7 s (AMD EPYC, 2 cores).

    Args:
        device: where the model trains.
        wanted: as Lightning names it, such as bf16-mixed.

    Returns:
        `wanted`, or 32-true, which is then said.
    """
    imitated = device.type == "cpu" and torch.backends.cpu.get_cpu_capability() == "AVX2"
    if not (wanted.startswith("bf16") and imitated):
        return wanted
    print(f"this processor does not compute bfloat16: training takes float32, in place of {wanted}")
    return "32-true"
