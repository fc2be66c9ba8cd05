"""Whether computing in bfloat16 can be faster here than in float32."""

from __future__ import annotations

import os

import torch

# Instructions that multiply bfloat16: of x86-64 and of ARM, by torch's names.
INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16")
# What oneDNN may be held to that has none of them.
WITHOUT = ("sse41", "avx", "avx2", "avx2_vnni", "avx2_vnni_2", "avx512_core", "avx512_core_vnni")


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the processor or the GPU has instructions for it, and oneDNN may use them."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if os.environ.get("ONEDNN_MAX_CPU_ISA", "").lower() in WITHOUT:
        return False
    known = torch.cpu.get_capabilities()
    return device.type == "cpu" and any(known.get(name) for name in INSTRUCTIONS)
