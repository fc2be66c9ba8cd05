"""The kernels of this process."""

from __future__ import annotations

import torch

from imc.errors import UserError
from imc_kernels import backends


def choose_backend(name: str, device: torch.device) -> str:
    """The backend that a name stands for: "auto" for the one asked for otherwise, or the first that serves the device.

    Raises:
        UserError: it cannot run here.
    """
    try:
        chosen = backends.requested() if name == "auto" else name
        serving = backends.serving(device.type, torch.float32)
    except ValueError as error:
        raise UserError(str(error)) from None
    if chosen is None:
        return serving[0]
    if chosen not in backends.BACKENDS:
        raise UserError(f"--backend {chosen!r} is not known; accepted are auto, {', '.join(backends.BACKENDS)}")
    refusal = backends.BACKENDS[chosen].refusal(device.type, torch.float32)
    if refusal is not None:
        raise UserError(f"--backend {chosen} cannot run here: {refusal}")
    return chosen
