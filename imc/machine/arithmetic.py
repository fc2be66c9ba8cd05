"""What decides the bits of a run beside its configuration: the libraries, and the instructions they compute with."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch

from imc.machine.convolutions import chosen_by_time
from imc_kernels import native

# Of the processor's instructions those by which oneDNN and MKL choose their code; the others come with them.
INSTRUCTIONS = (
    *("fma3", "avx2", "avx_vnni", "avx512_f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "avx10_2"),
    *("neon", "sve", "sme"),
)


def arithmetic(device: torch.device, amp: str) -> dict[str, str | int]:
    """What a run on this device, with this ``--amp``, computes with, by name. To be asked when its threads are set.

    The same on two machines, a run of one configuration has the same bits on both.
    """
    if device.type != "cpu":
        convolutions = "the fastest" if chosen_by_time(device) else "as torch is set"
        name = torch.cuda.get_device_name(device)
        return {"torch": str(torch.__version__), "device": name, "amp": amp, "convolutions": convolutions}
    built = native.missing("_cpu") is None
    return {
        "torch": str(torch.__version__),
        "device": processor(),
        "amp": amp,
        "instructions": " ".join(name for name in INSTRUCTIONS if torch.cpu.get_capabilities().get(name)),
        "threads": torch.get_num_threads(),
        "ATEN_CPU_CAPABILITY": torch.backends.cpu.get_cpu_capability().lower(),
        "ONEDNN_MAX_CPU_ISA": os.environ.get("ONEDNN_MAX_CPU_ISA", "all").lower(),
        "MKL_CBWR": os.environ.get("MKL_CBWR", "") if torch.backends.mkl.is_available() else "no MKL",
        "IMC_CPU_CAPABILITY": native.module("_cpu").instruction_set() if built else "not built",
    }


def change(began: object, now: dict[str, str | int]) -> str | None:
    """What is another than when a run began, in one sentence; None where nothing is, or nothing is known.

    Args:
        began: what its checkpoint holds of :func:`arithmetic`, of whatever type.
        now: that of this process.
    """
    if not isinstance(began, dict):
        return None
    names = [name for name in now if name in began and began[name] != now[name]]
    if not names:
        return None
    before, here = (", ".join(f"{name} {values[name]!s:.100}" for name in names) for values in (began, now))
    return f"the run began with {before} and goes on with {here}: from here on its numbers may be rounded otherwise"


def processor() -> str:
    """Its name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
